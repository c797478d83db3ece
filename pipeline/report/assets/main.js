// Puts the page together.
const THEMES = ["system", "light", "dark"];
const darkWanted = matchMedia("(prefers-color-scheme: dark)");
let theme = "system";

function applyTheme() {
  const dark = theme === "dark" || (theme === "system" && darkWanted.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  redrawAll();
}

document.getElementById("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  applyTheme();
});
darkWanted.addEventListener("change", applyTheme);
applyTheme();

const parts = [summarySection, compareSection, funnelSection, gallerySection, measuresSection, agreementSection, balanceSection, sourcesSection, failuresSection, timingsSection, recipeSection];
document.getElementById("main").replaceChildren(...parts.map((make) => make()).filter(Boolean));
document.getElementById("sections").append(...SECTIONS.map(([id, title]) => el("a", { href: `#${id}` }, title)));
document.getElementById("foot").append(el("p", {}, `Made by Hearscape from the tables of ${FACTS.name}. Charts: Apache ECharts (Apache License 2.0). Opened from disk, this page asks nothing of any network.`));
document.documentElement.dataset.ready = "yes";
