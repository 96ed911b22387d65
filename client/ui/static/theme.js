// Light, dark, or as the system: a switch that the browser remembers.

import { $ } from "./dom.js";
import { forgetColors } from "./colors.js";

const NAMES = { auto: "Auto", light: "Light", dark: "Dark" };

export function startTheme(redraw) {
  const order = Object.keys(NAMES);
  let theme = localStorage.getItem("sidelight-theme") ?? "auto";
  if (!NAMES[theme]) theme = "auto";
  const apply = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    $("theme").textContent = NAMES[theme];
    $("theme").setAttribute("aria-label", `Theme: ${theme === "auto" ? "as the system" : theme}`);
    forgetColors();
    redraw();
  };
  $("theme").addEventListener("click", () => {
    theme = order[(order.indexOf(theme) + 1) % order.length];
    localStorage.setItem("sidelight-theme", theme);
    apply();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}
