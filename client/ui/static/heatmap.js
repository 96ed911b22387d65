// The heatmap: a line for each token that is written, a column for each that it looks at. Lines are drawn on tiles, which
// are canvases of a few lines: a new line changes one small canvas, and scrolling up and down needs no drawing but of
// tiles that come into sight. Only the tiles and the columns that are seen exist. What the browser must lay out the page
// for (sizes, places) is asked once a drawing at most, never for each cell.

import { direction, element, Follower, onFrame, percent } from "./dom.js";
import { heat, palette } from "./colors.js";

const LINE = 22, TILE = 8, FONT = "12.5px system-ui, sans-serif", ANGLE = -Math.PI / 3.4;

export class Heatmap {
  // `point(line, column)` is called where the pointer is; without arguments where it has left.
  constructor({ point, pick }) {
    this.top = element("canvas", { class: "map-head" });
    this.room = element("div", { class: "map-room", role: "img", "aria-label": "Heatmap" }, this.top);
    this.box = element("div", { class: "map", tabindex: 0, role: "group", "aria-label": "Heatmap, scrolls" }, this.room);
    this.tiles = new Map(); // those in sight: {node, canvas, drawn: how many lines}, by their place
    this.draw = onFrame(() => this.#draw());
    this.attention = null;
    this.current = null; // the line that is brought out
    this.until = Infinity; // lines from here on are pale: the scrubber stands before them
    this.seen = { width: 0, height: 0, top: 0, left: 0 }; // what the box shows
    this.follower = new Follower(this.box);
    this.box.addEventListener("scroll", this.draw);
    this.room.addEventListener("pointermove", (event) => {
      const cell = this.#find(event);
      cell ? point(cell.line, cell.column, event) : point();
    });
    this.room.addEventListener("pointerleave", () => point());
    this.room.addEventListener("click", (event) => {
      const cell = this.#find(event);
      if (cell) pick(cell.line);
    });
    new ResizeObserver(() => this.#resize() && this.redraw()).observe(this.box);
  }

  show(attention) {
    this.attention = attention;
    this.until = Infinity;
    this.current = null;
    this.follower.reset();
    this.redraw();
  }

  // Draws everything again: the picks, the size or the place have changed.
  redraw() {
    this.whole = true;
    this.draw();
  }

  // The last line is new. To be called within a frame: it is drawn at once.
  grow() {
    this.#draw(true);
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
    this.follower.check(); // a text that is still written does not go on from there, unless it is the end
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.box, { seen } = this;
    const isOther = width !== seen.width || height !== seen.height;
    Object.assign(seen, { width, height });
    return isOther;
  }

  // The size of all that there is, and of the box.
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

  #draw(follows = false) {
    const { attention, seen } = this;
    if (!attention || !this.box.isConnected) return;
    if (!seen.width && !(this.#resize() && seen.width)) return; // hidden: the size tells when it is seen
    const count = this.columns?.length;
    this.#measure();
    if (follows) this.follower.follow(this.height);
    const { scrollTop: top, scrollLeft: left } = this.box;
    if (left !== seen.left || this.columns.length !== count) this.whole = true;
    Object.assign(seen, { top, left });
    const first = Math.max(0, Math.floor(top / LINE));
    const last = Math.min(attention.length, Math.ceil((top + seen.height - this.head) / LINE));
    for (let line = first; line < last; line++) attention.row(line); // so that the greatest number is known
    if (attention.most !== this.most) this.whole = true; // others ask for rows too: what counts is what was drawn with
    this.most = attention.most;
    if (this.whole) this.#drawHead();
    this.#drawTiles(Math.floor(first / TILE), Math.ceil(last / TILE));
    this.whole = false;
    this.room.setAttribute("aria-label", `Heatmap: ${attention.length} lines, ${this.columns.length} columns`);
  }

  // Draws what is new on the tiles from `first` up to `end`, and drops the others.
  #drawTiles(first, end) {
    for (const [place, { node }] of this.tiles)
      if (place < first || place >= end) {
        node.remove();
        this.tiles.delete(place);
      }
    for (let place = first; place < end; place++) {
      const tile = this.tiles.get(place) ?? this.#addTile(place), begin = place * TILE;
      if (this.whole) tile.drawn = 0;
      const to = Math.min(begin + TILE, this.attention.length);
      if (begin + tile.drawn >= to) continue;
      if (!tile.drawn) {
        fit(tile.canvas, this.seen.width, TILE * LINE);
        tile.node.style.top = `${this.head + begin * LINE}px`;
      }
      const context = tile.canvas.getContext("2d");
      for (let line = begin + tile.drawn; line < to; line++) this.#drawLine(context, line, (line - begin) * LINE);
      tile.drawn = to - begin;
    }
  }

  #addTile(place) {
    const canvas = element("canvas"), node = element("div", { class: "map-tile" }, canvas);
    this.room.append(node);
    const tile = { node, canvas, drawn: 0 };
    this.tiles.set(place, tile);
    return tile;
  }

  #drawLine(context, line, y) {
    const { attention } = this, row = attention.row(line);
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
    const { card, ink, soft } = palette(), context = fit(this.top, this.seen.width, this.head);
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
  #find({ clientX, clientY }) {
    const { attention, seen } = this;
    if (!attention || !this.columns) return null;
    const room = this.room.getBoundingClientRect(), x = clientX - room.left, y = clientY - room.top;
    const line = Math.floor((y - this.head) / LINE);
    if (y - seen.top < this.head || line >= attention.length) return null;
    const place = Math.floor((x - this.label) / this.cell);
    const column = this.mirrored ? this.columns.length - 1 - place : place;
    return { line, column: x - seen.left < this.label || column < 0 || column >= this.columns.length ? null : column };
  }
}

// Makes a canvas empty and as large as it is to be, in pixels of the page. Returns its context.
function fit(canvas, width, height) {
  const ratio = devicePixelRatio || 1, context = canvas.getContext("2d");
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  setSize(canvas, width, height);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = FONT;
  context.textBaseline = "middle";
  return context;
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
