// Puts the page together.
document.addEventListener("themechange", redrawAll);

const parts = [summarySection, compareSection, funnelSection, gallerySection, measuresSection, agreementSection, balanceSection, sourcesSection, failuresSection, timingsSection, recipeSection];
document.getElementById("main").replaceChildren(...parts.map((make) => make()).filter(Boolean));
document.getElementById("sections").append(...SECTIONS.map(([id, title]) => el("a", { href: `#${id}` }, title)));
document.getElementById("foot").append(el("p", {}, `Made by Hearscape from the tables of ${FACTS.name}. Charts: Apache ECharts (Apache License 2.0). Opened from disk, this page asks nothing of any network.`));
document.documentElement.dataset.ready = "yes";
