// What can be taken along of a pane: a picture as SVG or PNG, and all numbers as JSON for Inseq.

import { direction, download, element } from "./dom.js";
import { heat, palette } from "./colors.js";

export class Exports {
  // `view()` is the view that is shown; `file` is how the files begin. A comparison has two of each button, so the names
  // of the buttons have the pane's `title`.
  constructor(pane, { view, file, title }) {
    const button = (text, name, click) => element("button", { class: "plain", text, title: name, "aria-label": `${name}: ${title}`, on: { click } });
    const draw = () => picture(pane, view());
    this.svg = button("SVG", "Save the picture as SVG", () => save(`${file}.svg`, new Blob([draw()], { type: "image/svg+xml" })));
    this.png = button("PNG", "Save the picture as PNG", async () => save(`${file}.png`, await toPng(draw())));
    this.json = button("JSON", "Save all numbers as JSON for Inseq", () => download(`${file}.json`, `/results/${pane.result}.json`));
    this.box = element("div", { class: "tools" }, this.svg, this.png, this.json);
  }

  // Enables what there is.
  offer({ result, attention }) {
    this.svg.disabled = this.png.disabled = !attention?.length;
    this.json.disabled = !result || attention?.isSelf;
  }
}

function save(name, blob) {
  const url = URL.createObjectURL(blob);
  download(name, url);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escape = (text) => text.replace(/[&<>"]/g, (character) => escapes[character]);

// The picture of a view, as the text of an SVG file. All colours are in the file.
export function picture(pane, view) {
  return view === "curves" ? drawCurves(pane) : drawMap(pane.attention);
}

function frame(width, height, parts) {
  const { card } = palette();
  const style = 'font-family="system-ui, sans-serif" font-size="12.5"';
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ${style}><rect width="100%" height="100%" fill="${card}"/>${parts.join("")}</svg>\n`;
}

function drawMap(attention) {
  const columns = attention.columns(), lines = attention.lines(), { ink, soft } = palette();
  const cell = 24, label = 130, head = 100, mirrored = direction(attention.started.sourceText) === "rtl", parts = [];
  const x = (column) => label + (mirrored ? columns.length - 1 - column : column) * cell;
  columns.forEach((token, column) =>
    parts.push(`<text transform="translate(${x(column) + 14},${head - 8}) rotate(-52)" fill="${token.special ? soft : ink}">${escape(token.label)}</text>`),
  );
  const rows = lines.map((_, line) => attention.row(line)), most = attention.most || 1;
  lines.forEach((token, line) => {
    const y = head + line * cell;
    parts.push(`<text x="${label - 8}" y="${y + 16}" text-anchor="end" fill="${token.special ? soft : ink}">${escape(token.label)}</text>`);
    (rows[line] ?? []).forEach((value, column) =>
      parts.push(`<rect x="${x(column)}" y="${y}" width="23" height="23" fill="${heat(value / most)}"><title>${escape(`${token.label} ← ${columns[column].label}: ${value.toPrecision(3)}`)}</title></rect>`),
    );
  });
  return frame(label + columns.length * cell + 70, head + lines.length * cell + 12, parts);
}

function drawCurves(pane) {
  const { curves } = pane, { ink, accent } = palette(), line = 26, middle = 220, parts = [];
  const texts = (list) => [...list.children].map((item) => item.textContent), from = texts(curves.left), to = texts(curves.right);
  const y = (index) => 12 + index * line + line / 2;
  for (const { from: source, to: target, score } of curves.links)
    parts.push(`<path d="M210 ${y(source)} C${210 + middle * 0.45} ${y(source)} ${210 + middle * 0.55} ${y(target)} ${210 + middle} ${y(target)}" fill="none" stroke="${accent}" stroke-width="${(1 + 2.5 * score).toFixed(2)}" stroke-opacity="${(0.25 + 0.75 * score).toFixed(2)}"/>`);
  from.forEach((text, index) => parts.push(`<text x="200" y="${y(index) + 4}" text-anchor="end" fill="${ink}">${escape(text)}</text>`));
  to.forEach((text, index) => parts.push(`<text x="${220 + middle}" y="${y(index) + 4}" fill="${ink}">${escape(text)}</text>`));
  return frame(640, 24 + line * Math.max(from.length, to.length), parts);
}

// Draws an SVG file as PNG, at twice its size where a canvas can be so large.
async function toPng(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const scale = Math.min(2, 8000 / image.width, 8000 / image.height);
    const canvas = element("canvas", { width: Math.ceil(image.width * scale), height: Math.ceil(image.height * scale) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}
