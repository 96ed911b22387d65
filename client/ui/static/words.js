// A text as words: each can be hovered, focused (arrow keys move) and pinned. The confidence of a word is the underline.
//
// For each word that is added or changed, a browser lays out and paints the whole block that it stands in again. So the
// lines of a long text are in blocks of their own, and what is written touches the last block alone. A block ends where a
// line ends, so the text looks like one, and they are no blocks for CSS: a copied text has no ends of lines of its own.

import { element, findDirection, Follower, percent, visible } from "./dom.js";

const BLOCK = 32, FEW = 6; // words of a block, at least, and words that come before places are asked for again

export class Words {
  // `look(word | null)` is called where a word is hovered or focused, `pick(word)` where it is clicked. `follow`: the
  // box scrolls to the end of a text that grows.
  constructor({ label, look, pick, follow = false }) {
    this.box = element("p", { class: "words", dir: "auto", role: "group", "aria-label": label });
    this.words = []; // {node, members, probabilities}
    this.places = []; // of tokens: the index of the word
    this.look = look;
    const of = (event) => this.words.findIndex(({ node }) => node === event.target.closest(".word"));
    this.box.addEventListener("pointerover", (event) => look(of(event) < 0 ? null : of(event)));
    this.box.addEventListener("pointerleave", () => look(null));
    this.box.addEventListener("focusin", (event) => look(of(event)));
    this.box.addEventListener("focusout", () => look(null));
    this.box.addEventListener("click", (event) => of(event) >= 0 && pick(of(event)));
    this.box.addEventListener("keydown", (event) => this.#move(event, of(event), pick));
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width !== this.width) this.#join(); // lines end elsewhere
      this.width = contentRect.width;
    }).observe(this.box);
    if (follow) this.follower = new Follower(this.box);
    this.clear();
  }

  clear() {
    this.words = [];
    this.places = [];
    this.box.dir = "auto";
    this.block = element("span", { class: "lines" });
    this.first = 0; // the first word of the last block
    this.split = 1; // words before this one do not begin a block
    this.box.replaceChildren(this.block);
    this.follower?.reset();
  }

  // Adds a token: `text` as it stands in the text, with its spaces.
  add(index, text, { joined, special, label }, probability) {
    if (special) return;
    let word = this.words.at(-1);
    text = visible(text);
    if (this.box.dir === "auto") this.box.dir = findDirection(text); // "auto" reads the whole text for each new word
    const rest = text.trimStart(), space = text.slice(0, text.length - rest.length);
    if (!word || !joined) {
      if (space || this.words.length === 0) this.block.append(space);
      const node = element("span", { class: "word", role: "button", tabindex: this.words.length ? -1 : 0, text: "" });
      this.block.append(node);
      word = { node, members: [], probabilities: [] };
      this.words.push(word);
    }
    word.members.push(index);
    this.places[index] = this.words.length - 1;
    word.node.append(word.node.textContent || !space ? text : rest);
    if (probability !== undefined && probability !== null) {
      word.probabilities.push(probability);
      const mean = word.probabilities.reduce((a, b) => a + b, 0) / word.probabilities.length;
      word.confidence = mean;
      word.node.dataset.confidence = mean < 0.4 ? "low" : mean < 0.7 ? "middle" : "high";
      word.node.setAttribute("aria-label", `${word.node.textContent}, confidence ${percent(mean)}`);
    }
    word.label = word.node.textContent || label;
  }

  // Ends blocks where lines end, and keeps the end of the text in sight. Asks for places, for which the browser must lay
  // out the page: while a text grows (`all` is false), once for some words only.
  settle(all) {
    const { words } = this, begins = [];
    if (!all && words.length - this.split < FEW) return;
    this.follower?.follow();
    for (let index = Math.max(this.split, this.first + 1); index < words.length; index++) {
      const { node } = words[index], { offsetTop: top, offsetHeight: height } = words[index - 1].node;
      const from = begins.at(-1)?.index ?? this.first;
      if (index - from < BLOCK || node.offsetTop < top + height) continue;
      begins.push({ index, height: node.offsetTop - words[from].node.offsetTop });
    }
    this.split = words.length - 1; // the last word may still grow, and go to the next line
    for (const { index, height } of begins) this.#begin(index, height);
  }

  // Puts a word, and all behind it, into a new block. `height` is that of the block before, which keeps it while it is out
  // of sight: with less, the box would be scrolled back.
  #begin(index, height) {
    this.block.style.containIntrinsicHeight = `auto ${height}px`;
    const block = element("span", { class: "lines" }), { node } = this.words[index];
    while (node.nextSibling) block.append(node.nextSibling);
    block.prepend(node);
    this.block.after(block);
    this.block = block;
    this.first = index;
  }

  // Makes one block of all.
  #join() {
    const [first, ...others] = this.box.children;
    for (const block of others) {
      first.append(...block.childNodes);
      block.remove();
    }
    this.block = first;
    this.first = 0;
    this.split = 1;
  }

  // Colours words: `shares` are numbers of 0 to 1 by word; null: no colours. `most`: only so many words, the strongest;
  // the browser takes its time for each.
  tint(shares, most = Infinity) {
    if (shares && shares.length > most) {
      const least = Float64Array.from(shares).sort().at(-most);
      shares = shares.map((share) => (share < least ? 0 : share));
    }
    this.words.forEach((word, index) => {
      const share = Math.min(20, Math.round(20 * (shares?.[index] ?? 0))); // in steps, so that few words change
      if (share === word.share) return;
      word.share = share;
      word.node.style.setProperty("--share", `${5 * share}%`);
      word.node.classList.toggle("strong", share > 12);
    });
  }

  mark(index) {
    this.words[this.marked]?.node.classList.remove("here");
    this.words[index]?.node.classList.add("here");
    this.marked = index;
  }

  pale(from) {
    this.words.forEach(({ node, members }) => node.classList.toggle("later", members[0] >= from));
  }

  #move(event, index, pick) {
    const rtl = getComputedStyle(this.box).direction === "rtl" ? -1 : 1;
    const to = { ArrowRight: index + rtl, ArrowLeft: index - rtl, Home: 0, End: this.words.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") pick(index);
    else if (to === undefined || !this.words[to]) return;
    else {
      this.words[index]?.node.setAttribute("tabindex", -1);
      this.words[to].node.setAttribute("tabindex", 0);
      this.words[to].node.focus();
    }
    event.preventDefault();
  }
}
