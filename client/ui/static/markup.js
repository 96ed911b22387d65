// Markup transfer: HTML in, HTML out as text, and the words of both texts with the places of the tags. The HTML is never a
// part of this page: tags are shown as labels.

import { copy, element, percent, visible } from "./dom.js";
import { openStream } from "./stream.js";

const PLACEMENTS = {
  links: "by links of its words",
  neighbours: "by links of the words beside it",
  empty: "empty: none of its words came over",
  copied: "copied",
  structure: "by the structure of the text",
};

export class MarkupView {
  constructor({ changed, fail }) {
    this.changed = changed;
    this.fail = fail;
    this.output = element("pre", { class: "html", dir: "auto", tabindex: 0, "aria-label": "HTML of the target" });
    this.copy = element("button", { class: "plain", text: "Copy", on: { click: () => copy(this.marked ?? "", this.copy) } });
    this.card = element("div", { class: "card target" }, element("div", { class: "card-head" }, element("h2", { text: "HTML of the target" }), element("span", { class: "grow" }), this.copy), this.output);
    this.stage = element("div", { class: "marked" });
    this.stream = null;
  }

  get isRunning() {
    return Boolean(this.stream?.isOpen);
  }

  run(start) {
    this.stop();
    this.stream = openStream(start, (message) => {
      if (message.event === "alignment") this.#show(message);
      else this.fail(message);
      this.changed();
    });
    this.changed();
  }

  stop() {
    this.stream?.close();
    this.stream = null;
  }

  clear() {
    this.stop();
    this.output.textContent = "";
    this.stage.replaceChildren();
  }

  #show({ marked, sourceText, targetText, report }) {
    this.marked = marked;
    this.output.textContent = visible(marked);
    const reports = report.map((one, index) => ({ ...one, color: index % 6 }));
    const rows = reports.map(({ markup, source, target, placement, score, color }) =>
      element(
        "tr",
        {},
        element("td", {}, element("code", { class: "tag", text: visible(markup), data: { color } })),
        element("td", {}, element("bdi", { text: visible(sourceText.slice(...source)) })),
        element("td", {}, element("bdi", { text: visible(targetText.slice(...target)) })),
        element("td", { text: PLACEMENTS[placement] ?? "" }),
        element("td", { class: "number", text: percent(score) }),
      ),
    );
    const names = ["Tag", "Source", "Target", "Placed", "Score"];
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...names.map((text) => element("th", { text, scope: "col" })))), element("tbody", {}, ...rows));
    this.stage.replaceChildren(
      element("div", { class: "card" }, element("h2", { text: "Source words and tags" }), withTags(sourceText, reports, "source")),
      element("div", { class: "card" }, element("h2", { text: "Target words and tags" }), withTags(targetText, reports, "target")),
      element("div", { class: "card wide", tabindex: 0, role: "group", "aria-label": "What became of each tag" }, reports.length ? table : element("p", { class: "note", text: "The text has no tags." })),
    );
  }
}

// A text whose marked parts are coloured, each behind a label with its tag.
function withTags(text, reports, side) {
  const marks = reports.map(({ [side]: [begin, end], ...more }) => ({ begin, end, ...more })).sort((a, b) => a.begin - b.begin || b.end - a.end);
  const place = element("p", { class: "tagged", dir: "auto" });
  const open = [{ node: place, end: Infinity, closing: "" }];
  let at = 0;
  const write = (to) => {
    while (at < to || open.at(-1).end <= to) {
      const { node, end } = open.at(-1), stop = Math.min(to, end);
      if (stop > at) node.append(visible(text.slice(at, stop)));
      at = Math.max(at, stop);
      if (end <= to && open.length > 1) node.append(open.pop().closing);
      else if (at >= to) break;
    }
  };
  for (const { begin, end, markup, color } of marks) {
    write(begin);
    const node = element("span", { class: "marked-part", data: { color } }, element("code", { class: "tag", text: visible(markup), data: { color } }));
    open.at(-1).node.append(node);
    const name = /^<([^\s/>]+)/.exec(markup)?.[1];
    open.push({ node, end, closing: name && end > begin ? element("code", { class: "tag", text: `</${name}>`, data: { color } }) : "" });
  }
  write(text.length);
  while (open.length > 1) {
    const { node, closing } = open.pop();
    node.append(closing);
  }
  return place;
}
