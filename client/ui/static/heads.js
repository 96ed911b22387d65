// Head by head: what each head looks at while one token is written, as small bars. A click pins heads.

import { direction, element } from "./dom.js";
import { heat, palette } from "./colors.js";

const MOST = 192; // pictures: of a larger model, those of one layer are shown

export class Heads {
  constructor(pin) {
    this.box = element("div", { class: "heads", role: "group", "aria-label": "Heads" });
    this.pin = pin;
    this.cells = [];
    this.observer = new ResizeObserver((entries) => {
      for (const { target, contentRect } of entries) this.widths.set(target, Math.round(contentRect.width));
      this.bring(this.line);
    });
  }

  // Lays out a picture for each head.
  show(attention, pinned, layer) {
    this.attention = attention;
    this.box.replaceChildren();
    this.observer.disconnect();
    this.widths = new Map(); // of the canvases, once they are laid out
    this.line = null;
    this.cells = [];
    if (attention.heads.length < 2) return;
    const listed = attention.heads.map((head, index) => ({ ...head, index }));
    const shown = listed.length > MOST ? listed.filter((head) => head.layer === (layer ?? listed.at(-1).layer)) : listed;
    const lines = new Map();
    for (const head of shown) lines.set(head.layer, [...(lines.get(head.layer) ?? []), head]);
    for (const [name, heads] of lines) {
      const line = element("div", { class: "heads-line" }, element("span", { class: "heads-layer", text: `L${name}`, title: `layer ${name}` }));
      line.style.gridTemplateColumns = `24px repeat(${Math.min(4, heads.length)}, minmax(0, 1fr))`;
      for (const head of heads) {
        const canvas = element("canvas", { width: 1, height: 1 });
        const button = element(
          "button",
          { class: "head", "aria-pressed": pinned.has(head.index), "aria-label": head.label, title: head.label },
          canvas,
        );
        button.addEventListener("click", () => this.pin(head.index));
        line.append(button);
        this.observer.observe(canvas);
        this.cells.push({ canvas, button, head });
      }
      this.box.append(line);
    }
  }

  mark(pinned) {
    for (const { button, head } of this.cells) button.setAttribute("aria-pressed", String(pinned.has(head.index)));
  }

  // Draws the bars of one line.
  bring(line) {
    this.line = line;
    const ratio = devicePixelRatio || 1, { line: rule } = palette();
    const mirrored = this.attention && direction(this.attention.started.sourceText) === "rtl"; // as the heatmap is
    for (const { canvas, button, head } of this.cells) {
      const row = line === null ? new Float32Array(0) : this.attention.headRow(line, head.index);
      const word = row.length ? this.attention.columns()[greatestOf(row)]?.label ?? "" : "";
      const label = word ? `${head.label}, looks most at ${word}` : head.label;
      if (button.title !== label) {
        button.title = label;
        button.setAttribute("aria-label", label);
      }
      const width = this.widths.get(canvas), height = 26, context = canvas.getContext("2d");
      if (!width) continue;
      if (canvas.width !== Math.round(width * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = height * ratio;
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      context.fillStyle = rule;
      context.fillRect(0, height - 1, width, 1);
      const bars = fitBars(row, width), most = bars[greatestOf(bars)] || 1, step = width / Math.max(1, bars.length);
      bars.forEach((value, bar) => {
        const place = mirrored ? bars.length - 1 - bar : bar, share = value / most;
        if (share <= 0.02) return;
        context.fillStyle = heat(0.35 + 0.65 * share);
        context.fillRect(place * step, height - 1 - share * (height - 3), Math.max(1, step - (step > 3 ? 1 : 0)), share * (height - 3));
      });
    }
  }
}

function greatestOf(row) {
  let greatest = 0;
  for (let position = 1; position < row.length; position++) if (row[position] > row[greatest]) greatest = position;
  return greatest;
}

// A bar for each position; where there are more positions than pixels, the greatest of those that share a pixel.
function fitBars(row, width) {
  if (row.length <= width) return row;
  const bars = new Float32Array(width);
  for (let position = 0; position < row.length; position++) {
    const bar = Math.floor((position * width) / row.length);
    if (row[position] > bars[bar]) bars[bar] = row[position];
  }
  return bars;
}
