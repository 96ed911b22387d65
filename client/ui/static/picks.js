// What is shown: kind, heads, reduction, row and method. All options come from the model, as the server describes it.

import { element, option } from "./dom.js";
import { REDUCTION_NAMES } from "./attention.js";

const KINDS = { cross: "Cross-attention", decoder_self: "Decoder self-attention", encoder_self: "Encoder self-attention" };
const METHODS = { weights: "attention weights", value_norms: "norms of values", rollout: "rollout" };
const ROWS = { "": "default", predicting: "that predicts the token", reading: "that reads the token" };

export const DEFAULTS = { kind: "", preset: "", layer: "", head: "", reduction: "mean", row: "", method: "weights", view: "map" };

const defaultKind = (kinds) => (kinds.includes("cross") ? "cross" : kinds[0] ?? "");

export class Picks {
  // `ask()` is called where the server must be asked again, `show()` where the page knows all that it needs.
  constructor(box, values, { ask, show, view }) {
    this.box = box;
    this.values = values;
    this.selects = {};
    const add = (name, label, call) => {
      const select = element("select", { id: `pick-${name}` });
      select.addEventListener("change", () => {
        values[name] = select.value;
        if (name === "preset" || name === "kind") values.layer = values.head = "";
        this.enable();
        call();
      });
      this.selects[name] = select;
      return element("label", { class: "field", data: { pick: name } }, label, select);
    };
    this.views = element("div", { class: "segments", role: "group", "aria-label": "View" });
    for (const [name, text] of [["map", "Heatmap"], ["curves", "Curves"]])
      this.views.append(element("button", { text, "aria-pressed": values.view === name, data: { view: name }, on: { click: () => {
        values.view = name;
        this.enable();
        view();
      } } }));
    this.tools = element("div", { class: "tools" });
    box.replaceChildren(
      this.views,
      add("kind", "Kind", ask),
      add("preset", "Heads", ask),
      add("layer", "Layer", show),
      add("head", "Head", show),
      add("reduction", "Reduction", show),
      add("row", "Row", ask),
      add("method", "Method", ask),
      element("span", { class: "grow" }),
      this.tools,
    );
  }

  // Offers what a model has.
  offer(model) {
    this.model = model;
    const kinds = Object.keys(model.attentions), { values } = this;
    if (!kinds.includes(values.kind)) values.kind = defaultKind(kinds);
    if (!model.presets.includes(values.preset)) values.preset = "";
    if (!model.methods.includes(values.method)) values.method = "weights";
    this.#fill("kind", kinds.map((kind) => [kind, KINDS[kind] ?? kind]));
    this.#fill("preset", [["", "all"], ...model.presets.map((name) => [name, `preset “${name}”`])]);
    this.#fill("reduction", REDUCTION_NAMES.map((name) => [name, name]));
    this.#fill("row", Object.entries(ROWS));
    this.#fill("method", (model.methods.length ? model.methods : ["weights"]).map((name) => [name, METHODS[name] ?? name]));
    this.enable();
  }

  enable() {
    const { values, model } = this, size = model.attentions[values.kind] ?? { layers: 0, heads: 0 };
    if (values.kind !== "cross") values.preset = "";
    if (values.method === "rollout") values.head = values.preset = "";
    const count = (length, name) => [["", "all"], ...[...Array(length).keys()].map((i) => [String(i), `${name} ${i}`])];
    this.#fill("layer", count(size.layers, "layer"));
    this.#fill("head", count(size.heads, "head"));
    this.#disable("preset", values.kind !== "cross" || values.method === "rollout" || !model.presets.length);
    this.#disable("layer", values.preset !== "");
    this.#disable("head", values.preset !== "" || values.method === "rollout");
    this.#disable("row", values.kind === "encoder_self" || values.method === "rollout");
    for (const name of Object.keys(this.selects)) {
      const select = this.selects[name];
      if (![...select.options].some(({ value }) => value === values[name])) values[name] = select.options[0]?.value ?? "";
      select.value = values[name];
    }
    for (const button of this.views.children) button.setAttribute("aria-pressed", String(button.dataset.view === values.view));
  }

  // The fields of a request to a model, and what the model lacks of the picks: they are those of the first model, and a
  // model that is compared with it has its own default then.
  request(model) {
    const { kind, preset, row, method } = this.values, kinds = Object.keys(model.attentions), lacks = [];
    const own = (name, value, options, other) => {
      if (!value || options.includes(value)) return value;
      lacks.push(name);
      return other;
    };
    const fields = {
      kind: own((KINDS[kind] ?? kind).toLowerCase(), kind, kinds, defaultKind(kinds)),
      preset: own(`preset “${preset}”`, preset, model.presets, ""),
      method: own(METHODS[method] ?? method, method, ["weights", ...model.methods], "weights"),
    };
    const hasRow = fields.kind !== "encoder_self" && fields.method !== "rollout";
    return { fields: { ...fields, row: hasRow ? row : "" }, lacks };
  }

  #fill(name, options) {
    const select = this.selects[name];
    if (select.dataset.filled === JSON.stringify(options)) return;
    select.dataset.filled = JSON.stringify(options);
    select.replaceChildren(...options.map(([value, text]) => option(value, text)));
    select.value = this.values[name];
  }

  #disable(name, disabled) {
    this.selects[name].disabled = disabled;
  }
}
