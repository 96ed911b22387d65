// The heatmap: a line for each token that is written, a column for each that it looks at. Only the part that is seen is
// drawn; a line that comes new is drawn alone. What the browser must lay out the page for (sizes, places) is asked once a
// drawing at most, never for each cell.

import { debounce, direction, element, onFrame, percent } from "./dom.js";
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
    this.seen = { width: 0, height: 0, top: 0, left: 0 }; // what the box shows
    this.hasScrolled = false; // by itself, to a new line: the event of it tells nothing new
    const drawLater = debounce(150, this.draw); // but the user may have scrolled in the same frame
    this.box.addEventListener("scroll", () => {
      this.hasScrolled ? drawLater() : this.draw();
      this.hasScrolled = false;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const cell = this.#find(event);
      cell ? point(cell.line, cell.column, event) : point();
    });
    this.canvas.addEventListener("pointerleave", () => point());
    this.canvas.addEventListener("click", (event) => {
      const cell = this.#find(event);
      if (cell) pick(cell.line);
    });
    new ResizeObserver(() => this.#resize() && this.redraw()).observe(this.box);
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

  // The last line is new. To be called within a frame: it is drawn at once.
  grow() {
    this.follow = this.seen.top + this.seen.height >= this.height - 3 * LINE;
    this.#draw();
  }

  bring(line) {
    if (line === this.current) return;
    this.current = line;
    this.redraw();
  }

  // Scrolls to a line that is not seen.
  reveal(line) {
    const top = line * LINE, seen = this.seen.height - this.head;
    if (top < this.seen.top) this.box.scrollTop = top;
    else if (top + LINE > this.seen.top + seen) this.box.scrollTop = top + LINE - seen;
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.box, { seen } = this;
    const isOther = width !== seen.width || height !== seen.height;
    Object.assign(seen, { width, height });
    return isOther;
  }

  // The size of all that there is, and of the box. Returns whether the place in it may be another one.
  #measure() {
    const { attention, seen } = this, { width } = seen, narrow = width < 480;
    this.columns = attention.columns();
    this.label = narrow ? 76 : 128;
    this.head = narrow ? 70 : 86;
    const skew = Math.round(this.head / Math.tan(-ANGLE)); // the last label leans out
    const count = Math.max(1, this.columns.length), free = width - this.label - Math.min(60, skew) - 2;
    this.cell = Math.max(narrow ? 7 : 9, Math.min(64, Math.floor(free / count)));
    this.fullWidth = this.label + count * this.cell + Math.min(60, skew);
    this.mirrored = direction(attention.started.sourceText) === "rtl";
    this.height = this.head + attention.length * LINE + 2;
    setSize(this.room, Math.max(width, this.fullWidth), this.height);
    const limit = Math.min(innerHeight * 0.62, 640);
    if (setSize(this.box, null, Math.min(Math.max(this.height, this.head + 3 * LINE), limit))) this.#resize();
    const ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(seen.width * ratio) || this.canvas.height !== Math.round(seen.height * ratio)) {
      this.canvas.width = Math.round(seen.width * ratio);
      this.canvas.height = Math.round(seen.height * ratio);
      setSize(this.canvas, seen.width, seen.height);
      this.whole = true;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  #x(column) {
    const place = this.mirrored ? this.columns.length - 1 - column : column;
    return this.label + place * this.cell - this.seen.left;
  }

  // The columns that are seen: [first, last), in the order of the text.
  #seenColumns(count) {
    const first = Math.max(0, Math.floor(this.seen.left / this.cell));
    const last = Math.ceil((this.seen.left + this.seen.width - this.label) / this.cell), all = this.columns.length;
    return this.mirrored ? [Math.max(0, all - last), Math.min(count, all - first)] : [first, Math.min(count, last)];
  }

  #draw() {
    const { attention, context, seen } = this;
    if (!attention || !this.box.isConnected) return;
    if (!seen.width && !(this.#resize() && seen.width)) return; // hidden: the size tells when it is seen
    const count = this.columns?.length, most = attention.most;
    this.#measure();
    if (this.follow) this.box.scrollTop = this.height;
    const { scrollTop: top, scrollLeft: left } = this.box;
    if (this.follow && top !== seen.top) this.hasScrolled = true;
    const down = top - seen.top;
    if (left !== seen.left || down < 0) this.whole = true;
    Object.assign(seen, { top, left });
    this.follow = false;
    const first = Math.max(0, Math.floor(top / LINE));
    const last = Math.min(attention.length, Math.ceil((top + seen.height - this.head) / LINE));
    for (let line = first; line < last; line++) attention.row(line); // so that the greatest number is known
    const isWhole = Number.isInteger(down * (devicePixelRatio || 1)) && down < seen.height - this.head;
    const whole = this.whole || !isWhole || this.columns.length !== count || attention.most !== most;
    if (whole) context.clearRect(0, 0, seen.width, seen.height);
    else if (down) this.#shift(down);
    const from = whole ? first : Math.max(first, Math.min(this.drawn, this.drawnWhole));
    context.font = FONT;
    context.textBaseline = "middle";
    context.save();
    context.beginPath();
    context.rect(0, this.head, seen.width, seen.height - this.head);
    context.clip();
    for (let line = from; line < last; line++) this.#drawLine(line);
    context.restore();
    if (whole) this.#drawHead();
    this.drawn = attention.length;
    this.drawnWhole = Math.floor((top + seen.height - this.head) / LINE); // the lines before it are not cut
    this.whole = false;
    this.canvas.setAttribute("aria-label", `Heatmap: ${attention.length} lines, ${this.columns.length} columns`);
  }

  // Moves the lines that are drawn: quicker than to draw them again.
  #shift(down) {
    const { context, canvas, head, seen } = this, ratio = devicePixelRatio || 1, height = seen.height - head;
    const [from, size] = [(head + down) * ratio, (height - down) * ratio];
    context.drawImage(canvas, 0, from, canvas.width, size, 0, head, canvas.width / ratio, height - down);
    context.clearRect(0, seen.height - down, seen.width, down);
  }

  #drawLine(line) {
    const { context, attention } = this, y = this.head + line * LINE - this.seen.top, row = attention.row(line);
    const most = attention.most || 1, gap = this.cell > 14 ? 1 : 0;
    context.globalAlpha = line < this.until ? 1 : 0.25;
    const [from, to] = this.#seenColumns(row.length);
    for (let column = from; column < to; column++) {
      context.fillStyle = heat(row[column] / most);
      context.fillRect(this.#x(column), y + 1, this.cell - gap, LINE - 1 - gap);
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
      context.strokeRect(this.label - 1, y + 0.5, Math.min(this.columns.length * this.cell, this.seen.width) + 1, LINE - 1);
    }
    context.globalAlpha = 1;
  }

  #drawHead() {
    const { context } = this, { card, ink, soft } = palette();
    context.fillStyle = card;
    context.fillRect(0, 0, this.seen.width, this.head);
    const every = Math.max(1, Math.ceil(13 / this.cell));
    context.textAlign = "left";
    context.save();
    context.beginPath();
    context.rect(this.label - 2, 0, this.seen.width, this.head);
    context.clip();
    const [from, to] = this.#seenColumns(this.columns.length);
    for (let column = from; column < to; column++) {
      if (column % every) continue;
      const x = this.#x(column), token = this.columns[column];
      context.save();
      context.translate(x + this.cell / 2 + 1, this.head - 7);
      context.rotate(ANGLE);
      context.fillStyle = token.special ? soft : ink;
      context.fillText(cut(context, token.label, (this.head - 14) / Math.sin(-ANGLE)), 0, 0);
      context.restore();
    }
    context.restore();
  }

  // The line and the column under the pointer.
  #find({ offsetX, offsetY }) {
    const { attention } = this;
    if (!attention || !this.columns || offsetY < this.head) return null;
    const line = Math.floor((offsetY - this.head + this.seen.top) / LINE);
    if (line >= attention.length) return null;
    const place = Math.floor((offsetX - this.label + this.seen.left) / this.cell);
    const column = this.mirrored ? this.columns.length - 1 - place : place;
    return { line, column: offsetX < this.label || column < 0 || column >= this.columns.length ? null : column };
  }
}

// Sets the size of an element in pixels, where it is another one. Returns whether it was.
function setSize(node, width, height) {
  const size = { width: width === null ? "" : `${width}px`, height: `${height}px` };
  const isOther = node.style.width !== size.width || node.style.height !== size.height;
  if (isOther) Object.assign(node.style, size);
  return isOther;
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
