// Curves from the words of the target to the words of the source: what each target word looks at, and once the text is
// written, the word links of the server. Two columns, so that long texts, narrow screens and all scripts have room.

import { direction, element, percent, svgElement, visible } from "./dom.js";
import { Attention } from "./attention.js";

const LINE = 26, MOST = 600; // words of a text that have curves
const LEAST = 0.12; // weaker looks are not drawn

export class Curves {
  constructor(bring) {
    this.svg = svgElement("svg", { class: "curves-svg", "aria-hidden": "true" });
    this.left = element("ol", { class: "curves-words left", "aria-label": "Source words" });
    this.right = element("ol", { class: "curves-words right", "aria-label": "Target words" });
    this.note = element("p", { class: "note" });
    this.box = element("div", { class: "curves" }, element("div", { class: "curves-pair" }, this.left, this.svg, this.right), this.note);
    this.bring = bring;
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  show(attention) {
    this.attention = attention;
    this.drawn = { left: 0, right: 0 };
    this.left.replaceChildren();
    this.right.replaceChildren();
    this.until = Infinity;
    this.draw();
  }

  // The two lists of words, each {label, lines or positions, special}, and the links between them.
  #collect() {
    const { attention } = this, { alignment } = attention;
    const targetText = attention.steps.map((step) => step.text).join("");
    if (alignment && attention.kind === "cross") {
      const source = alignment.source.map(([begin, end]) => ({ label: visible(attention.started.sourceText.slice(begin, end)) }));
      const target = alignment.target.map(([begin, end]) => ({
        label: visible(targetText.slice(begin, end)),
        lines: attention.steps.flatMap(({ token }, i) => (token.begin < end && token.end > begin ? [i] : [])),
      }));
      const links = alignment.links.map(([from, to, score]) => ({ from, to, score }));
      return { source, target, links, linked: true };
    }
    const columns = attention.columns(), lines = attention.lines();
    const source = Attention.words(columns).map((positions) => wordOf(columns, positions));
    const place = new Map(source.flatMap((word, index) => word.members.map((position) => [position, index])));
    const target = Attention.words(lines).map((members) => ({ ...wordOf(lines, members), lines: members }));
    const links = [];
    target.slice(0, MOST).forEach((word, to) => {
      const sums = new Map();
      attention.wordRow(word.lines).forEach((value, position) => {
        const index = place.get(position);
        if (index !== undefined) sums.set(index, (sums.get(index) ?? 0) + value);
      });
      const whole = [...sums.values()].reduce((a, b) => a + Math.max(0, b), 0) || 1;
      for (const [from, value] of sums) if (value / whole >= LEAST && !source[from].special) links.push({ from, to, score: value / whole });
    });
    return { source, target, links, linked: false };
  }

  draw() {
    if (!this.attention || !this.box.isConnected || !this.box.clientWidth) return;
    const { source, target, links, linked } = this.#collect();
    this.links = links;
    fill(this.left, source.slice(0, MOST));
    fill(this.right, target.slice(0, MOST));
    [...this.right.children].forEach((item, index) => {
      item.onpointerenter = () => {
        this.mark(index);
        this.bring(target[index].lines.at(-1) ?? null);
      };
      item.onpointerleave = () => this.mark(null);
    });
    const height = Math.max(source.length, target.length, 1) * LINE, width = Math.max(60, this.svg.clientWidth || 160);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.style.height = `${height}px`;
    const paths = links.filter(({ from, to }) => from < MOST && to < MOST).map(({ from, to, score }) => {
      const top = from * LINE + LINE / 2, bottom = to * LINE + LINE / 2;
      const path = svgElement("path", {
        d: `M0 ${top} C${width * 0.45} ${top} ${width * 0.55} ${bottom} ${width} ${bottom}`,
        "stroke-width": (1 + 2.5 * score).toFixed(2),
        "stroke-opacity": (0.25 + 0.75 * score).toFixed(2),
      });
      path.dataset.from = from;
      path.dataset.to = to;
      path.classList.toggle("pale", (target[to].lines?.[0] ?? 0) >= this.until);
      path.append(svgElement("title", {}, `${source[from].label} – ${target[to].label}: ${percent(score)}`));
      return path;
    });
    this.svg.replaceChildren(...paths);
    this.note.textContent = linked
      ? (links.length ? "Word links of the server, as the model is calibrated." : "The server links no words of these texts.")
      : "What each word looks at. Word links of the server come with the end of the text.";
  }

  // Brings out the curves of one target word.
  mark(word) {
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

// Makes the items of a list those of the words, and touches only what has changed.
function fill(list, words) {
  words.forEach((word, index) => {
    const item = list.children[index] ?? list.appendChild(element("li", {}, element("bdi")));
    if (item.firstChild.textContent !== word.label) {
      item.firstChild.textContent = word.label;
      item.firstChild.dir = direction(word.label);
    }
    item.classList.toggle("special", Boolean(word.special));
  });
  while (list.children.length > words.length) list.lastChild.remove();
}
