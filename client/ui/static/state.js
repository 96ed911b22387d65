// The state of the page in its address: behind the #, which browsers send to nobody.

import { DEFAULTS } from "./picks.js";

const TEXTS = ["text", "target", "model", "model2", "from", "to"];
const NAMES = ["mode", ...TEXTS, ...Object.keys(DEFAULTS), "pins"];

export function readState() {
  const found = new URLSearchParams(location.hash.slice(1)), state = { mode: "translate", pins: "", ...DEFAULTS };
  for (const name of TEXTS) state[name] = "";
  for (const name of NAMES) if (found.has(name)) state[name] = found.get(name);
  return state;
}

export function stateLink(state) {
  const pairs = NAMES.filter((name) => state[name] && state[name] !== DEFAULTS[name]).map((name) => [name, state[name]]);
  return `${location.origin}${location.pathname}#${new URLSearchParams(pairs)}`;
}
