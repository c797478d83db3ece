// The button #theme: system, light, dark. Whoever draws in colours of the theme hears "themechange" of the document.
const THEMES = ["system", "light", "dark"];
const darkWanted = matchMedia("(prefers-color-scheme: dark)");
let theme = "system";

function applyTheme() {
  const dark = theme === "dark" || (theme === "system" && darkWanted.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  document.dispatchEvent(new Event("themechange"));
}

document.getElementById("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  applyTheme();
});
darkWanted.addEventListener("change", applyTheme);
applyTheme();
