// The page: its modes, its texts and its state. `pane` has one translation, `live` and `markup` the other modes.

import { $, copy, debounce, element, option } from "./dom.js";
import { forgetColors } from "./colors.js";
import { Live } from "./live.js";
import { MarkupView } from "./markup.js";
import { Pane } from "./pane.js";
import { Picks } from "./picks.js";
import { readState, stateLink } from "./state.js";

const EXAMPLES = {
  translate: "Where did you buy that old book?",
  compare: "Where did you buy that old book?",
  live: "",
  markup: "My <b>sister</b> is learning <i>German</i> this year.",
};
const TITLES = { translate: "Translate", compare: "Compare", live: "Translate as I type", markup: "Translate with markup" };

const state = readState();
const texts = { ...EXAMPLES };
if (state.text) texts[state.mode] = state.text;
if (!(state.mode in EXAMPLES)) state.mode = "translate";
let models = [];

const fail = ({ message, field }, of = "") => {
  $("error").textContent = `${of}${field && !message.startsWith(field) ? `${field}: ` : ""}${message}`;
  if (/^(source|text)\b/.test(field)) $("source").setAttribute("aria-invalid", "true");
  if (/^(given|target)\b/.test(field)) given.setAttribute("aria-invalid", "true");
};
const settings = () => state;
const changed = () => {
  const running = shownPanes().some((pane) => pane.isRunning) || live.isRunning || markup.isRunning;
  $("stop").disabled = !running;
  $("status").textContent = running ? "Writing …" : models.length ? "Ready" : "";
  document.body.classList.toggle("running", running);
  state.pins = [...main().pinned].join(".");
};

const first = new Pane({ title: "Target", settings, changed: () => changed(), fail });
const second = new Pane({ title: "Compared with", file: "sidelight-compared", settings, changed: () => changed(), fail: (error) => fail(error, "Compared with: ") });
const live = new Live({ settings, changed: () => changed(), fail });
const markup = new MarkupView({ changed: () => changed(), fail });
const main = () => (state.mode === "live" ? live.pane : first);
const shownPanes = () => (state.mode === "compare" ? [first, second] : state.mode === "translate" ? [first] : []);
const picks = new Picks($("picks"), state, {
  ask: () => run(),
  show: () => [first, second, live.pane].forEach((pane) => pane.pick()),
  view: () => [first, second, live.pane].forEach((pane) => pane.view()),
});

// A link that restores the state, the text included. It stands in the address line too.
const share = element("button", { class: "plain", text: "Copy link", title: "Copy a link that restores this state", "aria-label": "Copy a link that restores this state" });
share.addEventListener("click", () => {
  history.replaceState(null, "", stateLink({ ...state, text: $("source").value }));
  copy(location.href, share);
});
picks.tools.append(share);

// What the second pane of a comparison has: another model, or a target that is given.
const given = element("textarea", { id: "given", rows: 2, dir: "auto", spellcheck: "false", "aria-describedby": "error", placeholder: "A target of your own; empty: the model writes it" });
const secondModel = element("select", { id: "model2" });
const comparison = element(
  "div",
  { class: "card-head comparison" },
  element("label", { class: "field" }, "Model", secondModel),
  element("label", { class: "field grow" }, "Given target", given),
);

const byName = (name) => models.find((model) => model.name === name) ?? models.find((model) => model.default) ?? models[0];

// Which model, from and to which language: models without languages take none.
function modelFields(model) {
  const languages = model.languages.length ? { source_language: state.from, target_language: state.to } : {};
  return { model: model.name, ...languages };
}

function translate(pane, name, more = {}) {
  const model = byName(name), { fields, lacks } = picks.request(model);
  const links = model.encoderDecoder && fields.kind === "cross";
  pane.run({ task: "attribute", source: $("source").value, ...modelFields(model), ...fields, links, ...more }, lacks);
}

function run() {
  $("error").textContent = "";
  for (const box of [$("source"), given]) box.removeAttribute("aria-invalid");
  [first, second, live, markup].forEach((view) => view.stop());
  texts[state.mode] = $("source").value;
  if (!models.length) return;
  const model = byName(state.model);
  if (state.mode === "live") live.run($("source").value, { ...modelFields(model), ...picks.request(model).fields, words: Number($("words").value) });
  else if (!$("source").value.trim()) [first, second, markup].forEach((view) => view.clear());
  else if (state.mode === "markup") markup.run({ task: "align", source: $("source").value, ...modelFields(model), markup: "html" });
  else {
    translate(first, state.model);
    if (state.mode === "compare") translate(second, state.model2, state.target ? { target: state.target } : {});
  }
}

// Offers the models, their languages and their limits.
function showModel() {
  const model = byName(state.model);
  if (!model) return;
  state.model = model.name;
  $("model").value = model.name;
  picks.offer(model);
  showLanguages();
  count();
}

function showLanguages() {
  const shown = state.mode === "compare" ? [state.model, state.model2] : [state.model];
  const hidden = !shown.some((name) => byName(name)?.languages.length);
  for (const node of document.querySelectorAll('[data-for="languages"]')) node.hidden = hidden;
}

function count() {
  const bytes = new TextEncoder().encode($("source").value).length, most = byName(state.model)?.maxSourceBytes;
  $("count").textContent = most ? `${bytes.toLocaleString("en")} / ${most.toLocaleString("en")} bytes` : "";
  $("count").classList.toggle("over", Boolean(most) && bytes > most);
}

function showMode(mode) {
  texts[state.mode] = $("source").value;
  [first, second, live, markup].forEach((view) => view.stop());
  state.mode = mode;
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const chosen = tab.id === `tab-${mode}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  $("main").setAttribute("aria-labelledby", `tab-${mode}`);
  $("source").value = texts[mode];
  $("source-label").textContent = mode === "markup" ? "HTML" : "Source";
  $("run").textContent = TITLES[mode];
  $("run").hidden = mode === "live";
  document.body.dataset.mode = mode;
  for (const node of document.querySelectorAll('[data-for="live"]')) node.hidden = mode !== "live";
  const views = { translate: [first], compare: [first, second], live: [live], markup: [markup] }[mode];
  $("targets").replaceChildren(...views.map((view) => view.card));
  $("views").replaceChildren(...views.map((view) => view.stage));
  if (mode === "compare") second.card.prepend(comparison);
  showLanguages();
  $("picks").hidden = mode === "markup";
  views.forEach((view) => view.view?.());
  run();
}

async function start() {
  document.addEventListener("theme", () => {
    forgetColors();
    [first, second, live.pane].forEach((pane) => pane.pick());
  });
  $("source").value = texts[state.mode];
  const response = await fetch("/models");
  const answer = await response.json().catch(() => ({ message: "the page's own server does not answer" }));
  if (!response.ok) {
    fail(answer);
    return;
  }
  models = answer.filter((model) => model.readsText);
  for (const select of [$("model"), secondModel]) select.replaceChildren(...models.map(({ name }) => option(name, name)));
  const model = byName(state.model), others = models.filter((other) => other !== model);
  const other = others.find(({ encoderDecoder }) => encoderDecoder === model.encoderDecoder) ?? others[0];
  state.model2 = byName(state.model2 || other?.name)?.name ?? "";
  secondModel.value = state.model2;
  given.value = state.target;
  $("source-language").value = state.from;
  $("target-language").value = state.to;
  showModel();
  const pins = state.pins.split(".").filter(Boolean).map(Number);
  showMode(state.mode);
  if (pins.length) main().pinned = new Set(pins);
  listen();
}

function listen() {
  const soon = debounce(100, run);
  $("source").addEventListener("input", () => {
    count();
    if (state.mode === "live") live.type($("source").value);
    else soon();
  });
  $("source").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  addEventListener("keydown", (event) => event.key === "Escape" && stop());
  // A link to another state, opened where the page is. The link that skips the header has no state.
  addEventListener("hashchange", () => location.hash.includes("=") && location.reload());
  given.addEventListener("input", () => {
    state.target = given.value;
    soon();
  });
  const stop = () => [first, second, live, markup].forEach((view) => view.stop());
  $("stop").addEventListener("click", stop);
  $("run").addEventListener("click", run);
  $("model").addEventListener("change", () => {
    state.model = $("model").value;
    showModel();
    run();
  });
  secondModel.addEventListener("change", () => {
    state.model2 = secondModel.value;
    showLanguages();
    run();
  });
  $("words").addEventListener("change", run);
  for (const [id, name] of [["source-language", "from"], ["target-language", "to"]])
    $(id).addEventListener("change", () => {
      state[name] = $(id).value.trim();
      run();
    });
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => showMode(tab.id.slice(4)));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = by && tabs[(index + by + tabs.length) % tabs.length];
      if (next) {
        next.focus();
        showMode(next.id.slice(4));
      }
    });
  });
}

start();
