// One text that is translated, and what is seen of it: the target's words, the heatmap, the curves, the heads.

import { $, copy, element, onFrame, percent } from "./dom.js";
import { Attention } from "./attention.js";
import { Curves } from "./curves.js";
import { Exports } from "./exports.js";
import { describeCell, Heatmap } from "./heatmap.js";
import { Heads } from "./heads.js";
import { openStream } from "./stream.js";
import { Words } from "./words.js";

// Of a text that grows: milliseconds until what the newest token looks at is shown again (nobody can read it at each
// token), and how many words have colours.
const LOOK_WAIT = 100, TINT_MOST = 48;

export class Pane {
  // `settings()` gives {kind, reduction, layer, head, view}; `changed()` is called where the stream begins or ends.
  constructor({ title, file = "sidelight", settings, changed, fail }) {
    this.settings = settings;
    this.changed = changed;
    this.fail = fail;
    this.pinned = new Set();
    this.stream = null;
    this.attention = null;
    this.fixed = null; // the word that is picked by a click
    const look = (word) => {
      this.hovered = word !== null;
      this.#bringWord(word ?? this.fixed);
    };
    const pick = (word) => {
      this.fixed = this.fixed === word ? null : word;
      this.#bringWord(this.fixed);
    };
    this.words = new Words({ label: `${title}: words, arrow keys move`, look, pick, follow: true });
    this.source = new Words({ label: "Source as the model reads it", look: (word) => this.#bringSource(word), pick: () => {} });
    this.legend = element("p", { class: "legend note", hidden: true }, element("span", { class: "word", text: "dotted", data: { confidence: "middle" } }), " confidence under 70%, ", element("span", { class: "word", text: "underlined", data: { confidence: "low" } }), " under 40%");
    this.name = element("h2", { text: title });
    this.facts = element("span", { class: "count" });
    this.copy = element("button", { class: "plain", text: "Copy", on: { click: () => copy(this.text, this.copy) } });
    this.card = element("div", { class: "card target" }, element("div", { class: "card-head" }, this.name, this.facts, element("span", { class: "grow" }), this.copy), this.words.box, this.legend);
    this.heatmap = new Heatmap({ point: (...values) => this.#point(...values), pick: (line) => pick(this.#wordOf(line)) });
    this.curves = new Curves((line) => this.#bringLine(line));
    this.heads = new Heads((head) => this.#pin(head));
    this.detail = element("div", { class: "detail", "aria-live": "polite" });
    this.unpin = element("button", { class: "plain", text: "Unpin", hidden: true, on: { click: () => this.#pin(null) } });
    this.range = element("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Steps: how far the text is written" });
    this.range.addEventListener("input", () => this.scrub(Number(this.range.value)));
    this.rangeText = element("output", { class: "count" });
    this.scrubber = element("label", { class: "scrubber" }, element("span", { text: "Step" }), this.range, this.rangeText);
    this.views = element("div", { class: "views" });
    this.note = element("p", { class: "note", role: "status" });
    this.aside = element(
      "aside",
      { class: "card look", "aria-label": `Where it looked: ${title}` },
      element("h3", { text: "Source, as the model reads it" }),
      this.source.box,
      this.detail,
      element("div", { class: "card-head" }, element("h3", { text: "Head by head" }), element("span", { class: "grow" }), this.unpin),
      this.heads.box,
    );
    this.exports = new Exports(this, { view: () => this.settings().view, file, title });
    const foot = element("div", { class: "card-foot" }, this.scrubber, this.exports.box);
    this.stage = element("div", { class: "stage" }, element("div", { class: "card main" }, this.note, this.views, foot), this.aside);
    this.stage.hidden = true;
    this.refresh = onFrame(() => this.#refresh());
    this.view();
  }

  get text() {
    return this.attention?.steps.map((step) => step.text).join("") ?? "";
  }

  get isRunning() {
    return Boolean(this.stream?.isOpen);
  }

  // Begins a stream. The stream before it is cancelled. `lacks` are picks that the model does not have.
  run(start, lacks) {
    this.stop();
    this.lacks = lacks;
    this.kind = start.kind;
    this.result = null;
    this.fixed = null;
    this.facts.textContent = "…";
    this.exports.offer(this);
    this.stream = openStream(start, (message) => this.#take(message));
    this.changed();
  }

  stop() {
    this.stream?.close();
    this.stream = null;
    this.changed();
  }

  clear() {
    this.stop();
    this.attention = null;
    this.words.clear();
    this.source.clear();
    this.facts.textContent = "";
    this.detail.replaceChildren();
    this.stage.hidden = this.legend.hidden = true;
  }

  #take(message) {
    if (message.event === "started") this.begin(message);
    else if (message.event === "step") this.addStep(message);
    else if (message.event === "encoder_self") this.attention.addMatrix(message);
    else if (message.event === "finished") this.end(message);
    else if (message.event === "error") {
      this.fail(message);
      this.facts.textContent = "";
      this.changed();
    }
    this.refresh();
  }

  begin(started) {
    const before = this.attention;
    this.attention = new Attention(started, this.kind);
    if (before && before.heads.length !== this.attention.heads.length) this.pinned.clear();
    this.words.clear();
    this.#showSource();
    this.stage.hidden = this.legend.hidden = false;
    this.scrubbed = null;
    this.pick();
    this.heatmap.show(this.attention);
    this.curves.show(this.attention);
  }

  // The source of a simultaneous translation has grown.
  grow(started) {
    this.attention.grow(started);
    this.#showSource();
    this.heatmap.redraw();
    this.curves.draw();
  }

  #showSource() {
    const { sourceText, source } = this.attention.started;
    let end = 0;
    this.source.clear();
    source.forEach((token, index) => {
      this.source.add(index, sourceText.slice(Math.min(end, token.begin), token.end), token);
      end = Math.max(end, token.end);
    });
  }

  addStep(message) {
    this.attention.add(message);
    const { token, joined, text, scores } = message;
    this.words.add(message.index, text, { ...token, joined }, scores.probability);
  }

  end(message) {
    this.result = message.result;
    this.attention.alignment = message.alignment;
    const { sourceTokens, targetTokens, total } = message.usage;
    const cut = message.stopReason === "length" ? ", cut at the limit" : "";
    this.facts.textContent = `${sourceTokens} → ${targetTokens} tokens${cut} · ${(1000 * total).toFixed(0)} ms · confidence ${percent(this.confidence)}`;
    this.changed();
  }

  // The mean of the probabilities of all words.
  get confidence() {
    const known = this.words.words.filter((word) => word.confidence !== undefined);
    return known.reduce((sum, word) => sum + word.confidence, 0) / Math.max(1, known.length);
  }

  // Takes over the picks of heads and of the reduction.
  pick() {
    const { attention } = this;
    if (!attention) return;
    const { layer, head, reduction } = this.settings();
    let chosen = null;
    if (this.pinned.size) chosen = new Set(this.pinned);
    else if (layer !== "" || head !== "")
      chosen = new Set(attention.heads.flatMap((one, index) => ((layer === "" || one.layer === Number(layer)) && (head === "" || one.head === Number(head)) ? [index] : [])));
    const isEmpty = chosen?.size === 0 && attention.heads.length > 0;
    if (isEmpty) chosen = null;
    attention.pick(chosen, reduction);
    const lacks = [...(this.lacks ?? []), ...(isEmpty ? [[layer && `layer ${layer}`, head && `head ${head}`].filter(Boolean).join(", ")] : [])];
    this.note.textContent = lacks.length ? `This model has no ${lacks.join(", no ")}: its default is shown.` : "";
    this.unpin.hidden = !this.pinned.size;
    this.heads.show(attention, this.pinned, layer === "" ? null : Number(layer));
    this.heatmap.redraw();
    this.curves.draw();
    this.#bringWord(this.fixed);
  }

  // Shows the heatmap or the curves.
  view() {
    const curves = this.settings().view === "curves";
    this.views.replaceChildren(curves ? this.curves.box : this.heatmap.box);
    curves ? this.curves.draw() : this.heatmap.redraw();
  }

  scrub(step) {
    const { attention } = this;
    if (!attention) return;
    this.scrubbed = step >= attention.steps.length ? null : step;
    const until = this.scrubbed ?? Infinity;
    this.heatmap.until = this.curves.until = until;
    this.words.pale(until);
    if (this.scrubbed) this.heatmap.reveal(step - 1);
    this.heatmap.redraw();
    this.curves.draw();
    this.#bringLine(step - 1);
    this.#showRange();
  }

  #showRange() {
    const count = this.attention.steps.length, at = this.scrubbed ?? count;
    this.range.max = count;
    this.range.value = at;
    const token = this.attention.steps[at - 1]?.token.label;
    this.range.setAttribute("aria-valuetext", token ? `step ${at} of ${count}: ${token}` : `step ${at} of ${count}`);
    this.rangeText.textContent = `${at} / ${count}`;
  }

  #refresh() {
    if (!this.attention) return;
    this.#showRange();
    this.exports.offer(this);
    if (!this.hovered && this.fixed === null && this.scrubbed === null && this.#mayLook()) this.#bringNewest();
    this.heatmap.grow(); // from here on: places are asked for, for which the browser must lay out all that has changed
    this.curves.grow();
    this.words.settle(!this.isRunning);
    this.source.settle(!this.isRunning);
  }

  #pin(head) {
    if (head === null) this.pinned.clear();
    else this.pinned.has(head) ? this.pinned.delete(head) : this.pinned.add(head);
    this.pick();
    this.changed();
  }

  #wordOf(line) {
    return this.words.places[line] ?? null;
  }

  #bringWord(word) {
    if (!this.attention) return;
    const members = this.words.words[word]?.members;
    if (!members || this.attention.isSelf) {
      this.heatmap.bring(null);
      this.#bringNewest();
      return;
    }
    this.words.mark(word);
    this.#look(this.attention.wordRow(members), this.words.words[word].label, members.at(-1), this.words.words[word].confidence);
  }

  // Where nothing is hovered or picked: what was written last.
  #bringNewest() {
    const { attention, scrubbed } = this;
    if (!attention?.length) return;
    let line = attention.isSelf ? 0 : (scrubbed || attention.length) - 1;
    while (line > 0 && attention.lines()[line].special) line--;
    this.#bringLine(line, true);
  }

  #bringLine(line, live = false) {
    const { attention } = this;
    if (!attention || line === null || line < 0 || line >= attention.length) return;
    this.words.mark(this.#wordOf(line));
    this.#look(attention.row(line), attention.lines()[line].label, line, attention.steps[line]?.probability, live);
  }

  // Shows where a row looks: in the source's words, as a list, and head by head.
  #look(row, label, line, confidence, live = false) {
    const { attention } = this, columns = attention.columns();
    if (!live) this.heatmap.bring(line);
    this.heads.bring(line);
    this.#tint(row);
    const groups = Attention.words(columns.slice(0, row.length)).map((members) => ({
      label: members.map((i) => columns[i].label).join(""),
      value: members.reduce((sum, i) => sum + row[i], 0),
    }));
    groups.sort((a, b) => b.value - a.value);
    const greatest = groups[0]?.value || 1;
    const items = groups.slice(0, 5).filter(({ value }) => value > 0).map(({ label: text, value }) => {
      const bar = element("i", { class: "bar" });
      bar.style.inlineSize = `${Math.max(1, (100 * value) / greatest)}%`;
      const number = attention.started.isShare && attention.picked.reduction === "mean" ? percent(value) : value.toPrecision(3);
      return element("li", {}, element("bdi", { text }), element("span", { class: "track" }, bar), element("span", { class: "number", text: number }));
    });
    const heading = element("p", { class: "look-head" }, element("bdi", { class: "looked", text: label }), " looked at");
    if (confidence !== undefined && confidence !== null) heading.append(element("span", { class: "count", text: `confidence ${percent(confidence)}` }));
    this.detail.setAttribute("aria-live", live ? "off" : "polite");
    this.detail.replaceChildren(heading, element("ol", { class: "looks" }, ...items));
  }

  #mayLook() {
    const now = performance.now();
    if (this.isRunning && now - (this.looked ?? 0) < LOOK_WAIT) return false;
    this.looked = now;
    return true;
  }

  // Colours words by a row: those of the source, or of the target where it looks at itself.
  #tint(row) {
    const { attention } = this, isTarget = attention.kind === "decoder_self" && attention.started.encoderDecoder;
    const view = isTarget ? this.words : this.source, shift = isTarget ? attention.started.prefix.length : 0;
    const most = row.reduce((greatest, value) => Math.max(greatest, value), 1e-9);
    const shares = view.words.map(({ members }) => members.reduce((sum, i) => sum + Math.max(0, row[i + shift] ?? 0), 0) / most);
    view.tint(shares, this.isRunning ? TINT_MOST : Infinity);
  }

  // Brings out what a source word is looked at by.
  #bringSource(word) {
    const { attention } = this;
    if (!attention || attention.kind !== "cross") return;
    this.source.mark(word);
    if (word === null) {
      this.words.tint(null);
      return;
    }
    const { members } = this.source.words[word], most = Math.max(attention.most, 1e-9);
    this.words.tint(this.words.words.map(({ members: lines }) => {
      const row = attention.wordRow(lines);
      return members.reduce((sum, i) => sum + Math.max(0, row[i] ?? 0), 0) / most;
    }));
  }

  #point(line, column, event) {
    const tip = $("tip"), { attention } = this;
    tip.hidden = line === undefined || column === null;
    this.hovered = line !== undefined;
    if (line === undefined) {
      this.#bringWord(this.fixed);
      return;
    }
    this.#bringLine(line);
    if (column === null) return;
    const text = describeCell(attention, line, column);
    tip.hidden = !text;
    tip.replaceChildren(element("bdi", { text: attention.lines()[line].label }), " ← ", element("bdi", { text: attention.columns()[column].label }), element("b", { text: ` ${text}` }));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 18}px`;
  }
}
