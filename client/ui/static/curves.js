// Curves from the words of the target to the words of the source: what each target word looks at, and once the text is
// written, the word links of the server. Two columns, so that long texts, narrow screens and all scripts have room.

import { direction, element, Follower, percent, svgElement, visible } from "./dom.js";
import { Attention } from "./attention.js";

const LINE = 26, MOST = 600; // words of a text that have curves
const LEAST = 0.12; // weaker looks are not drawn

export class Curves {
  constructor(bring) {
    this.svg = svgElement("svg", { class: "curves-svg", "aria-hidden": "true" });
    this.left = element("ol", { class: "curves-words left", "aria-label": "Source words" });
    this.right = element("ol", { class: "curves-words right", "aria-label": "Target words" });
    this.note = element("p", { class: "note" });
    this.pair = element("div", { class: "curves-pair" }, this.left, this.svg, this.right);
    this.box = element("div", { class: "curves" }, this.pair, this.note);
    this.follower = new Follower(this.pair);
    this.right.addEventListener("pointerover", ({ target }) => {
      const word = [...this.right.children].indexOf(target.closest("li"));
      if (word < 0 || word === this.marked) return;
      this.mark(word);
      bring(this.target[word].lines.at(-1) ?? null);
    });
    this.right.addEventListener("pointerleave", () => this.mark(null));
    this.width = 0; // of the curves, once they are laid out
    new ResizeObserver(([{ contentRect }]) => {
      const isOther = contentRect.width !== this.width;
      this.width = contentRect.width;
      if (isOther) this.draw();
    }).observe(this.svg);
  }

  show(attention) {
    this.attention = attention;
    this.left.replaceChildren();
    this.right.replaceChildren();
    this.follower.reset();
    this.until = Infinity;
    this.draw();
  }

  // Draws all: the picks, the size or the links have changed.
  draw() {
    this.count = 0; // target words that have their curves
    this.links = [];
    this.svg.replaceChildren();
    this.grow();
  }

  // Draws what is new: of the words that were there, only the last one may have changed.
  grow() {
    if (!this.attention || !this.box.isConnected || !this.width) return;
    const { alignment, kind } = this.attention, linked = Boolean(alignment) && kind === "cross";
    const from = linked ? 0 : Math.max(0, this.count - 1);
    const { source, target, links } = linked ? this.#collectLinks() : this.#collect(from);
    this.target = target;
    this.links = [...this.links.filter(({ to }) => to < from), ...links].filter(({ to, from: word }) => to < MOST && word < MOST);
    fill(this.left, source.slice(0, MOST), from && this.left.children.length - 1);
    fill(this.right, target.slice(0, MOST), from);
    this.svg.style.height = `${Math.max(source.length, target.length, 1) * LINE}px`;
    while (this.svg.lastChild && Number(this.svg.lastChild.dataset.to) >= from) this.svg.lastChild.remove();
    this.svg.append(...this.links.filter(({ to }) => to >= from).map((link) => this.#path(link, source)));
    this.count = target.length;
    this.follower.follow(Math.min(target.length, MOST) * LINE);
    this.note.textContent = linked
      ? (links.length ? "Word links of the server, as the model is calibrated." : "The server links no words of these texts.")
      : "What each word looks at. Word links of the server come with the end of the text.";
  }

  #path({ from, to, score }, source) {
    const { width } = this, top = from * LINE + LINE / 2, bottom = to * LINE + LINE / 2;
    const path = svgElement("path", {
      d: `M0 ${top} C${width * 0.45} ${top} ${width * 0.55} ${bottom} ${width} ${bottom}`,
      "stroke-width": (1 + 2.5 * score).toFixed(2),
      "stroke-opacity": (0.25 + 0.75 * score).toFixed(2),
    });
    Object.assign(path.dataset, { from, to });
    path.classList.toggle("pale", (this.target[to].lines?.[0] ?? 0) >= this.until);
    path.append(svgElement("title", {}, `${source[from].label} – ${this.target[to].label}: ${percent(score)}`));
    return path;
  }

  // The two lists of words, each {label, lines or positions, special}, and the word links of the server between them.
  #collectLinks() {
    const { alignment, steps, started } = this.attention, targetText = steps.map((step) => step.text).join("");
    const source = alignment.source.map(([begin, end]) => ({ label: visible(started.sourceText.slice(begin, end)) }));
    const target = alignment.target.map(([begin, end]) => ({
      label: visible(targetText.slice(begin, end)),
      lines: steps.flatMap(({ token }, i) => (token.begin < end && token.end > begin ? [i] : [])),
    }));
    const links = alignment.links.map(([from, to, score]) => ({ from, to, score })).sort((a, b) => a.to - b.to);
    return { source, target, links };
  }

  // The two lists of words, and what the target words look at from the word `first` on.
  #collect(first) {
    const { attention } = this, columns = attention.columns(), lines = attention.lines();
    const source = Attention.words(columns).map((positions) => wordOf(columns, positions));
    const place = source.flatMap(({ members }, index) => members.map(() => index));
    const target = Attention.words(lines).map((members) => ({ ...wordOf(lines, members), lines: members }));
    const links = target.slice(first, MOST).flatMap((word, index) => {
      const sums = new Map();
      attention.wordRow(word.lines).forEach((value, position) => sums.set(place[position], (sums.get(place[position]) ?? 0) + value));
      const whole = [...sums.values()].reduce((a, b) => a + Math.max(0, b), 0) || 1;
      const strong = [...sums].filter(([from, value]) => value / whole >= LEAST && !source[from].special);
      return strong.map(([from, value]) => ({ from, to: first + index, score: value / whole }));
    });
    return { source, target, links };
  }

  // Brings out the curves of one target word.
  mark(word) {
    this.marked = word;
    this.svg.classList.toggle("some", word !== null);
    const from = new Set();
    for (const path of this.svg.children) {
      const on = word !== null && Number(path.dataset.to) === word;
      path.classList.toggle("on", on);
      if (on) from.add(Number(path.dataset.from));
    }
    [...this.left.children].forEach((item, index) => item.classList.toggle("on", from.has(index)));
    [...this.right.children].forEach((item, index) => item.classList.toggle("on", index === word));
  }
}

function wordOf(tokens, members) {
  return { label: members.map((index) => tokens[index].label).join(""), members, special: tokens[members[0]].special };
}

// Makes the items of a list those of the words. The items before `from` are so already.
function fill(list, words, from) {
  for (let index = Math.max(0, from); index < words.length; index++) {
    const word = words[index], item = list.children[index] ?? list.appendChild(element("li", {}, element("bdi")));
    if (item.firstChild.textContent !== word.label) {
      item.firstChild.textContent = word.label;
      item.firstChild.dir = direction(word.label);
    }
    item.classList.toggle("special", Boolean(word.special));
  }
  while (list.children.length > words.length) list.lastChild.remove();
}
