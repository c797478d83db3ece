// Small things that every part of the page uses. Text only ever goes in as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const FACTS = DATA.facts;
const SERVED = document.documentElement.dataset.served === "yes";

/** An element: attributes, properties (with a leading dot), listeners (on...), children as nodes or text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith(".")) node[name.slice(1)] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const WHOLE = new Intl.NumberFormat("en");
const count = (n) => WHOLE.format(n);
const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

function percent(share, digits = 1) {
  const value = 100 * share;
  if (value !== 0 && Math.abs(value) < 0.1) return `${Number(value.toPrecision(2))} %`;
  return `${Number(value.toFixed(digits))} %`;
}

/** Hours as people say them, split in number and unit. */
function lengthParts(hours) {
  const seconds = hours * 3600;
  if (seconds < 120) return [Number(seconds.toFixed(1)), "s"];
  if (seconds < 7200) return [Number((seconds / 60).toFixed(1)), "min"];
  if (hours < 100) return [Number(hours.toFixed(2)), "h"];
  return [count(Math.round(hours)), "h"];
}
const length = (hours) => lengthParts(hours).join(" ");

function bytesParts(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let i = 0;
  while (value >= 1000 && i < units.length - 1) {
    value /= 1000;
    i += 1;
  }
  return [Number(value.toFixed(value < 10 && i > 0 ? 2 : value < 100 && i > 0 ? 1 : 0)), units[i]];
}
const bytes = (n) => bytesParts(n).join(" ");

/** A measure's value with its unit. */
function amount(value, unit) {
  if (value === null || value === undefined) return "not measured";
  if (unit === "share") return percent(value, 2);
  if (unit === "cosine" || unit === "correlation") return `${Number(value.toFixed(4))} ${unit}`; // the 0.00007779 of a noise says nothing
  const number = Math.abs(value) >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(4)));
  return unit ? `${number} ${unit}` : number;
}

const words = (name) => String(name).replaceAll("_", " ");

/** A place in time inside a source. */
function clock(millis) {
  const seconds = millis / 1000;
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const text = (parts[0] ? parts : parts.slice(1)).map((n, i) => (i ? String(n).padStart(2, "0") : n)).join(":");
  const rest = Math.round((seconds - whole) * 10);
  return rest ? `${text}.${rest}` : text;
}

/** The source at a time, for http(s) links; null for anything else, which is never made a link. */
function linkAt(url, startMs, endMs) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return null;
  }
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:") return null;
  if (startMs === undefined) return parsed.href;
  if (/(^|\.)(youtube\.com|youtu\.be|vimeo\.com)$/.test(parsed.hostname)) {
    parsed.searchParams.set("t", `${Math.floor(startMs / 1000)}s`);
    return parsed.href;
  }
  parsed.hash = `t=${startMs / 1000},${endMs / 1000}`;
  return parsed.href;
}

function sourceLink(url, text, startMs, endMs) {
  const target = linkAt(url, startMs, endMs);
  if (target === null) return el("span", { class: "mono" }, text ?? url ?? "");
  return el("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, text ?? url);
}

function copyButton(text, label = "Copy") {
  const button = el("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select the text and copy it";
    }
    setTimeout(() => (button.textContent = label), 1600);
  });
  return button;
}

/** A table. Columns: {title, cell(row), class}. `look`: "stack" for one that phones show row by row, "narrow" for one of few figures. */
function table(columns, rows, caption, look = "") {
  return el(
    "div",
    { class: `scroll ${look}`.trim(), tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", class: c.class }, c.title)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, columns.map((c) => el("td", { class: c.class, "data-title": look.includes("stack") ? c.title : null }, c.cell(row)))))),
    ),
  );
}

/** Parts of a whole as one bar: [share, class or colour, title]. */
function bar(parts, label) {
  return el(
    "div",
    { class: "bar", role: "img", "aria-label": label, title: label },
    parts.map(([share, look]) => {
      const piece = el("i", { class: look.startsWith("--") ? null : look });
      piece.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
      if (look.startsWith("--")) piece.style.background = `var(${look})`;
      return piece;
    }),
  );
}

function legend(entries) {
  return el("ul", { class: "keys" }, entries.map(([look, text]) => {
    const key = el("i", { class: look.startsWith("--") ? null : look });
    if (look.startsWith("--")) key.style.background = `var(${look})`;
    return el("li", {}, key, text);
  }));
}

const SECTIONS = [];
const SHORT = { compare: "Compare", funnel: "From sources to clips", measures: "Measures, what if", agreement: "Agreement", balance: "Classes, splits", recipe: "Recipe" };
/** A section of the page, also in the navigation, there by its short name. */
function section(id, title, lead, ...children) {
  SECTIONS.push([id, SHORT[id] ?? title]);
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), lead ? el("p", { class: "lead" }, lead) : null, ...children);
}
