// Simultaneous mode: the text is translated while it is typed. What is written is committed; the draft is held back, and
// more source may change it.

import { element, visible } from "./dom.js";
import { Pane } from "./pane.js";
import { openStream } from "./stream.js";

export class Live {
  constructor({ settings, changed, fail }) {
    this.changed = changed;
    this.fail = fail;
    this.pane = new Pane({ title: "Target, as far as it is committed", settings, changed: () => {}, fail });
    this.draft = element("p", { class: "draft", dir: "auto" });
    this.draftText = element("bdi");
    this.draft.append(element("span", { class: "draft-name", text: "held" }), " ", this.draftText);
    this.read = element("p", { class: "read", dir: "auto", "aria-label": "Source: what the target is firm up to" });
    this.done = element("button", { class: "plain", text: "The text ends here", on: { click: () => this.complete() } });
    this.card = this.pane.card;
    this.pane.legend.before(this.draft);
    this.card.firstChild.append(this.done);
    this.card.prepend(this.read);
    this.stage = this.pane.stage;
    this.stream = null;
    this.sent = "";
  }

  get isRunning() {
    return Boolean(this.stream?.isOpen);
  }

  view() {
    this.pane.view();
  }

  run(text, start) {
    this.start = start;
    this.last = text;
    this.#restart();
    this.type(text);
  }

  stop() {
    this.stream?.close();
    this.stream = null;
    this.changed();
  }

  clear() {
    this.stop();
    this.pane.clear();
  }

  #open() {
    this.stop();
    this.steps = 0;
    this.firm = 0;
    this.started = null;
    this.draftText.textContent = "";
    this.read.replaceChildren();
    this.stream = null;
  }

  // The source as it is now. Complete words go to the server; a word that was sent cannot change, so a change of it begins
  // anew, and so does a text that goes on after its end.
  type(text) {
    if (!text.startsWith(this.sent) || (this.sent && !this.isRunning)) this.#restart();
    const complete = text.slice(0, text.search(/\S*$/u));
    if (complete.length > this.sent.length && complete.trim()) this.#send({ add: complete.slice(this.sent.length) }, complete);
    this.last = text;
  }

  // The last word is complete, and no more comes.
  complete() {
    if (this.sent && !this.isRunning) this.#restart();
    const rest = this.last.slice(this.sent.length).trimEnd();
    if (this.sent || rest) this.#send({ ...(rest ? { add: rest } : {}), done: true }, this.last);
  }

  #restart() {
    this.pane.clear();
    this.sent = "";
    this.#open();
  }

  #send(message, sent) {
    if (!this.stream) {
      this.pane.kind = this.start.kind;
      this.stream = openStream({ task: "follow", ...this.start }, (event) => this.#take(event));
      this.changed();
    }
    if (!this.stream.isOpen) return;
    this.stream.send(message);
    this.sent = sent;
  }

  #take(message) {
    const { pane } = this;
    if (message.event === "started") {
      // The source has grown: steps that were written stay, with the rows over the source as it was.
      if (pane.attention) {
        pane.grow(message);
      } else pane.begin(message);
      this.started = message;
      this.#showRead();
    } else if (message.event === "step") {
      this.draftText.textContent = "";
      pane.addStep(message);
      this.firm = Math.max(this.firm, message.decision?.firm ?? 0);
      this.#showRead();
    } else if (message.event === "awaiting") {
      this.draftText.textContent = "";
      this.firm = message.firm;
      this.#showRead();
    } else if (message.event === "draft") this.draftText.textContent += visible(message.text);
    else if (message.event === "finished") {
      pane.end(message);
      this.draftText.textContent = "";
      this.firm = Infinity;
      this.#showRead();
      this.changed();
    } else if (message.event === "error") {
      this.fail(message);
      this.changed();
    }
    pane.refresh();
  }

  // The source: the part that the target is firm up to, and the part that is held back.
  #showRead() {
    if (!this.started) return;
    const { sourceText, source } = this.started;
    const at = this.firm === Infinity ? sourceText.length : source[this.firm - 1]?.end ?? 0;
    this.read.replaceChildren(element("span", { class: "firm", text: visible(sourceText.slice(0, at)) }), element("span", { class: "held", text: visible(sourceText.slice(at)) }));
  }
}
