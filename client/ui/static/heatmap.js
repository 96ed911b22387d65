// The heatmap: a line for each token that is written, a column for each that it looks at. Only the part that is seen is
// drawn; a line that comes new is drawn alone.

import { direction, element, onFrame, percent } from "./dom.js";
import { heat, palette } from "./colors.js";

const LINE = 22, FONT = "12.5px system-ui, sans-serif", ANGLE = -Math.PI / 3.4;

export class Heatmap {
  // `point(line, column)` is called where the pointer is; without arguments where it has left.
  constructor({ point, pick }) {
    this.canvas = element("canvas", { class: "map-canvas", role: "img", "aria-label": "Heatmap" });
    this.room = element("div", { class: "map-room" }, this.canvas);
    this.box = element("div", { class: "map", tabindex: 0, role: "group", "aria-label": "Heatmap, scrolls" }, this.room);
    this.context = this.canvas.getContext("2d");
    this.draw = onFrame(() => this.#draw());
    this.attention = null;
    this.current = null; // the line that is brought out
    this.until = Infinity; // lines from here on are pale: the scrubber stands before them
    this.drawn = 0; // how many lines are on the canvas, of those that are seen
    this.box.addEventListener("scroll", () => this.redraw());
    this.canvas.addEventListener("pointermove", (event) => {
      const cell = this.#find(event);
      cell ? point(cell.line, cell.column, event) : point();
    });
    this.canvas.addEventListener("pointerleave", () => point());
    this.canvas.addEventListener("click", (event) => {
      const cell = this.#find(event);
      if (cell) pick(cell.line);
    });
    new ResizeObserver(() => this.redraw()).observe(this.box);
  }

  show(attention) {
    this.attention = attention;
    this.until = Infinity;
    this.current = null;
    this.box.scrollTop = 0;
    this.redraw();
  }

  // Draws everything again: the picks, the size or the place have changed.
  redraw() {
    this.whole = true;
    this.draw();
  }

  // The last line is new.
  grow() {
    const follows = this.box.scrollTop + this.box.clientHeight >= this.box.scrollHeight - 3 * LINE;
    this.follow = follows;
    this.draw();
  }

  bring(line) {
    if (line === this.current) return;
    this.current = line;
    this.redraw();
  }

  // Scrolls to a line that is not seen.
  reveal(line) {
    const top = line * LINE, seen = this.box.clientHeight - this.head;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + LINE > this.box.scrollTop + seen) this.box.scrollTop = top + LINE - seen;
  }

  #measure() {
    const { attention } = this, width = this.box.clientWidth, narrow = width < 480;
    this.columns = attention.columns();
    this.label = narrow ? 76 : 128;
    this.head = narrow ? 70 : 86;
    const skew = Math.round(this.head / Math.tan(-ANGLE)); // the last label leans out
    const count = Math.max(1, this.columns.length), free = width - this.label - Math.min(60, skew) - 2;
    this.cell = Math.max(narrow ? 7 : 9, Math.min(64, Math.floor(free / count)));
    this.fullWidth = this.label + count * this.cell + Math.min(60, skew);
    this.mirrored = direction(attention.started.sourceText) === "rtl";
    const height = this.head + attention.length * LINE + 2;
    this.room.style.width = `${Math.max(width, this.fullWidth)}px`;
    this.room.style.height = `${height}px`;
    const limit = Math.min(innerHeight * 0.62, 640);
    this.box.style.height = `${Math.min(Math.max(height, this.head + 3 * LINE), limit)}px`;
    const tall = this.box.clientHeight, ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(tall * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(tall * ratio);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${tall}px`;
      this.whole = true;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.size = { width, height: tall };
  }

  #x(column) {
    const place = this.mirrored ? this.columns.length - 1 - column : column;
    return this.label + place * this.cell - this.box.scrollLeft;
  }

  #draw() {
    const { attention, context } = this;
    if (!attention || !this.box.isConnected) return;
    const count = this.columns?.length, most = attention.most;
    this.#measure();
    if (this.follow) {
      this.follow = false;
      const bottom = this.box.scrollHeight - this.box.clientHeight;
      if (this.box.scrollTop < bottom - 1) {
        this.box.scrollTop = bottom;
        this.whole = true;
      }
    }
    const first = Math.max(0, Math.floor(this.box.scrollTop / LINE));
    const last = Math.min(attention.length, Math.ceil((this.box.scrollTop + this.size.height - this.head) / LINE));
    for (let line = first; line < last; line++) attention.row(line); // so that the greatest number is known
    const whole = this.whole || this.columns.length !== count || attention.most !== most;
    if (whole) context.clearRect(0, 0, this.size.width, this.size.height);
    const from = whole ? first : Math.max(first, this.drawn);
    context.font = FONT;
    context.textBaseline = "middle";
    context.save();
    context.beginPath();
    context.rect(0, this.head, this.size.width, this.size.height - this.head);
    context.clip();
    for (let line = from; line < last; line++) this.#drawLine(line);
    context.restore();
    if (whole) this.#drawHead();
    this.drawn = attention.length;
    this.whole = false;
    this.canvas.setAttribute("aria-label", `Heatmap: ${attention.length} lines, ${this.columns.length} columns`);
  }

  #drawLine(line) {
    const { context, attention } = this, y = this.head + line * LINE - this.box.scrollTop, row = attention.row(line);
    const most = attention.most || 1, gap = this.cell > 14 ? 1 : 0;
    context.globalAlpha = line < this.until ? 1 : 0.25;
    for (let column = 0; column < row.length; column++) {
      const x = this.#x(column);
      if (x + this.cell < this.label || x > this.size.width) continue;
      context.fillStyle = heat(row[column] / most);
      context.fillRect(x, y + 1, this.cell - gap, LINE - 1 - gap);
    }
    const { card, ink, soft, accent } = palette(), token = attention.lines()[line];
    context.fillStyle = card;
    context.fillRect(0, y, this.label - 4, LINE);
    context.fillStyle = line === this.current ? accent : token.special ? soft : ink;
    context.direction = direction(token.label);
    context.textAlign = "right";
    context.fillText(cut(context, token.label, this.label - 14), this.label - 8, y + LINE / 2 + 0.5);
    context.direction = "ltr";
    if (line === this.current) {
      context.strokeStyle = accent;
      context.lineWidth = 1.5;
      context.strokeRect(this.label - 1, y + 0.5, Math.min(this.columns.length * this.cell, this.size.width) + 1, LINE - 1);
    }
    context.globalAlpha = 1;
  }

  #drawHead() {
    const { context } = this, { card, ink, soft } = palette();
    context.fillStyle = card;
    context.fillRect(0, 0, this.size.width, this.head);
    const every = Math.max(1, Math.ceil(13 / this.cell));
    context.textAlign = "left";
    context.save();
    context.beginPath();
    context.rect(this.label - 2, 0, this.size.width, this.head);
    context.clip();
    this.columns.forEach((token, column) => {
      const x = this.#x(column);
      if (column % every || x < this.label - this.cell || x > this.size.width) return;
      context.save();
      context.translate(x + this.cell / 2 + 1, this.head - 7);
      context.rotate(ANGLE);
      context.fillStyle = token.special ? soft : ink;
      context.fillText(cut(context, token.label, (this.head - 14) / Math.sin(-ANGLE)), 0, 0);
      context.restore();
    });
    context.restore();
  }

  // The line and the column under the pointer.
  #find({ offsetX, offsetY }) {
    const { attention } = this;
    if (!attention || !this.columns || offsetY < this.head) return null;
    const line = Math.floor((offsetY - this.head + this.box.scrollTop) / LINE);
    if (line >= attention.length) return null;
    const place = Math.floor((offsetX - this.label + this.box.scrollLeft) / this.cell);
    const column = this.mirrored ? this.columns.length - 1 - place : place;
    return { line, column: offsetX < this.label || column < 0 || column >= this.columns.length ? null : column };
  }
}

const widths = new Map();

// The beginning of a text that fits.
function cut(context, text, width) {
  const key = `${width} ${text}`;
  if (widths.has(key)) return widths.get(key);
  let shown = text;
  if (context.measureText(text).width > width) {
    const letters = [...text];
    while (letters.length && context.measureText(`${letters.join("")}…`).width > width) letters.pop();
    shown = `${letters.join("")}…`;
  }
  if (widths.size > 5000) widths.clear();
  widths.set(key, shown);
  return shown;
}

// What a cell says.
export function describeCell(attention, line, column) {
  const value = attention.row(line)[column];
  if (value === undefined) return "";
  return attention.started.isShare && attention.picked.reduction === "mean" ? percent(value) : value.toPrecision(3);
}
