// Small helpers for the document. Texts only ever become text nodes.

export const $ = (id) => document.getElementById(id);

// Makes an element. `properties` are attributes, but for `text`, `on` (listeners) and `data`.
export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "text") node.textContent = value;
    else if (key === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (key === "data") Object.assign(node.dataset, value);
    else if (key.startsWith("aria-") && value !== undefined) node.setAttribute(key, String(value));
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(key, String(value));
  }
  node.append(...children);
  return node;
}

export const svgElement = (name, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
};

const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/u;
const NEAR = 60; // pixels from the end of a box that count as its end
const COPIED = "Copied";
const STRONG = /[\p{L}]/u;

// The direction of a text: that of its first letter. Without letters: "auto" is what a browser may still find out.
export function findDirection(text) {
  for (const character of text.slice(0, 400))
    if (STRONG.test(character)) return RTL.test(character) ? "rtl" : "ltr";
  return "auto";
}

export const direction = (text) => (findDirection(text) === "rtl" ? "rtl" : "ltr");

// A text to be shown: characters that control, or that turn the direction of what stands beside them, are visible.
export const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

export const percent = (share) => (share > 0.9995 ? "100%" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`);

export function debounce(wait, call) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), wait);
  };
}

// Calls at most once for each frame that the browser draws.
export function onFrame(call) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      call();
    });
  };
}

// Keeps the end of what grows in a box in sight, unless the user has scrolled away from it. A browser scrolls by itself
// too, where a box becomes shorter or larger: only what follows an act of the user counts.
export class Follower {
  constructor(box) {
    this.box = box;
    this.isAway = false;
    this.end = 0; // the place in the box up to which there is something; null: all of it
    let isUsed = false;
    for (const act of ["wheel", "touchmove", "pointerdown", "keydown"]) box.addEventListener(act, () => (isUsed = true), { passive: true });
    box.addEventListener("scroll", () => isUsed && this.check());
    new ResizeObserver(() => this.#go()).observe(box); // a smaller box shows less
  }

  // The box is at its begin, and follows.
  reset() {
    this.isAway = false;
    this.end = 0;
    this.box.scrollTop = 0;
  }

  // Finds out whether the box is away from its end.
  check() {
    const { scrollTop, scrollHeight, clientHeight } = this.box;
    this.isAway = scrollTop + clientHeight < scrollHeight - NEAR;
  }

  // The box has grown, up to `end`. Asks for places: to be called where the page is laid out.
  follow(end = null) {
    this.end = end;
    this.#go();
  }

  #go() {
    const place = (this.end ?? this.box.scrollHeight) - this.box.clientHeight;
    if (!this.isAway && place > this.box.scrollTop) this.box.scrollTop = place;
  }
}

export function option(value, text) {
  const node = element("option", { text });
  node.value = value;
  return node;
}

export function download(name, url) {
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

// Copies a text, and has the button say so for a moment. A browser may refuse it, and has no clipboard for a page that is
// not secure: then the button says nothing.
export async function copy(text, button) {
  const { textContent: name } = button;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return;
  }
  if (name === COPIED) return;
  button.textContent = COPIED;
  setTimeout(() => (button.textContent = name), 1500);
}
