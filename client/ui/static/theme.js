// Light, dark, or as the system: a switch that the browser remembers. This is no module: it runs before anything is drawn,
// so that no page shows the other theme first. The attribute data-theme has the theme, and the event "theme" tells of it.

(() => {
  const KEY = "sidelight-theme", order = ["auto", "light", "dark"];
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const meta = document.querySelector('meta[name="color-scheme"]');

  // A browser may refuse its storage: then the choice is forgotten with the page.
  const remember = (name) => {
    try {
      localStorage.setItem(KEY, name);
    } catch {}
  };
  const recall = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  };

  let choice = recall();
  if (!order.includes(choice)) choice = "auto";

  const apply = () => {
    const theme = choice === "auto" ? (system.matches ? "dark" : "light") : choice;
    root.dataset.theme = meta.content = theme;
    document.dispatchEvent(new Event("theme"));
  };
  const name = (button) => {
    button.textContent = `Theme: ${choice}`;
  };

  apply();
  system.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    name(button);
    button.addEventListener("click", () => {
      choice = order[(order.indexOf(choice) + 1) % order.length];
      remember(choice);
      name(button);
      apply();
    });
  });
})();
