// What-if: other thresholds, and what would stay. The numbers are the judge's own: see pipeline/report/whatif.py.
const WHAT_IF = DATA.what_if;

class WhatIf {
  constructor(data) {
    this.data = data;
    this.chosen = data.rules.map((rule) => rule.now);
    this.ready = this.unpack();
  }

  async unpack() {
    const { data } = this;
    const packed = Uint8Array.from(atob(data.packed), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const n = data.num_packed;
    const r = data.rules.length;
    this.codes = data.rules.map((_, i) => new Uint8Array(buffer, i * n, n));
    this.fate = new Uint8Array(buffer, r * n, n);
    this.asked = new Uint8Array(buffer, (r + 1) * n, n);
    // sliced, as the wider numbers need not stand at a multiple of their size
    this.label = new Uint16Array(buffer.slice((r + 2) * n, (r + 4) * n));
    this.millis = new Uint32Array(buffer.slice((r + 4) * n, (r + 8) * n));
    this.labelsNow = this.walk(data.rules.map((rule) => rule.now)).labels;
  }

  get moved() {
    return this.chosen.flatMap((step, i) => (step === this.data.rules[i].now ? [] : [i]));
  }

  /** {clips, hours, exact, labels}: what stays at the chosen steps. */
  result() {
    const { data, moved } = this;
    const whole = data.num_packed === data.num_clips;
    if (moved.length === 0) return { clips: data.now.clips, hours: data.now.millis / 3.6e6, exact: true, labels: null };
    const walked = this.walk(this.chosen);
    if (whole) return { clips: walked.clips, hours: walked.millis / 3.6e6, exact: true, labels: walked.labels };
    const scale = data.num_clips / data.num_packed;
    if (moved.length === 1) {
      const alone = this.alone(moved[0]);
      return { ...alone, exact: true, labels: walked.labels, scale };
    }
    return { clips: Math.round(walked.clips * scale), hours: (walked.millis * scale) / 3.6e6, exact: false, labels: walked.labels, scale };
  }

  /** What stays when this rule alone is moved, counted over all clips. */
  alone(i) {
    const rule = this.data.rules[i];
    const step = this.chosen[i];
    if (step === rule.now) return { clips: this.data.now.clips, hours: this.data.now.millis / 3.6e6 };
    if (step === null) return { clips: rule.off.clips, hours: rule.off.millis / 3.6e6 };
    return { clips: rule.clips[step], hours: rule.millis[step] / 3.6e6 };
  }

  walk(chosen) {
    const { rules, labels } = this.data;
    const counts = new Uint32Array(labels.length);
    const tests = rules.flatMap((rule, i) => {
      const step = chosen[i];
      if (rule.by_class && step === rule.now) return [[this.asked, 1, true]];
      return step === null ? [] : [[this.codes[i], step, rule.side === "at_least"]];
    });
    let clips = 0;
    let millis = 0;
    next: for (let k = 0; k < this.fate.length; k += 1) {
      if (this.fate[k]) continue;
      for (const [codes, step, atLeast] of tests) {
        if (codes === this.asked ? !codes[k] : atLeast ? step >= codes[k] : step < codes[k]) continue next;
      }
      clips += 1;
      millis += this.millis[k];
      counts[this.label[k]] += 1;
    }
    return { clips, millis, labels: counts };
  }
}

function stepText(rule, step) {
  return step === null ? "off" : `${rule.side === "at_most" ? "at most" : "at least"} ${amount(rule.steps[step], rule.unit)}`;
}

/** The slider under a measure; `changed` is called when it moves. */
function ruleControl(model, i, changed) {
  const rule = model.data.rules[i];
  const id = `rule-${rule.setting}`;
  const out = el("output", { for: id, id: `${id}-value` });
  const effect = el("span", { class: "soft small", id: `${id}-effect` });
  const start = rule.now ?? (rule.side === "at_most" ? rule.steps.length - 1 : 0);
  const slider = el("input", { type: "range", id, min: 0, max: rule.steps.length - 1, step: 1, ".value": String(start), "data-setting": rule.setting });
  const on = el("input", { type: "checkbox", id: `${id}-on`, ".checked": rule.now !== null });
  const show = () => {
    const step = model.chosen[i];
    out.textContent = stepText(rule, step);
    slider.disabled = step === null;
    slider.setAttribute("aria-valuetext", stepText(rule, step));
    const change = model.alone(i).clips - model.data.now.clips;
    effect.textContent = step === rule.now ? "as built" : `alone: ${change > 0 ? "+" : ""}${count(change)} clips`;
  };
  const apply = () => {
    model.chosen[i] = on.checked ? Number(slider.value) : null;
    show();
    changed(i);
  };
  slider.addEventListener("input", apply);
  on.addEventListener("change", apply);
  const reset = () => {
    slider.value = String(start);
    on.checked = rule.now !== null;
    model.chosen[i] = rule.now;
    show();
  };
  const byClass = rule.by_class ? el("p", { class: "soft small" }, "Built with a threshold for each class; moved, one holds for all.") : null;
  const node = el(
    "div",
    { class: "rule" },
    el("div", { class: "rule-row" }, el("label", { for: id }, "Keep: ", out), effect),
    slider,
    el("div", { class: "rule-row small" }, el("label", {}, on, " ", el("code", {}, `judge.${rule.setting}`)), el("span", { class: "soft" }, words(rule.reason))),
    byClass,
  );
  show();
  return { node, reset };
}

/** What the chosen thresholds come to, and how to ask for them. */
function whatIfSummary(model) {
  const clips = el("b", { id: "whatif-clips" });
  const hours = el("b", { id: "whatif-hours" });
  const change = el("span", { id: "whatif-change" });
  const classes = el("div", { class: "grow small soft", id: "whatif-classes" });
  const settings = el("code", { id: "whatif-settings" });
  const reset = el("button", { type: "button", id: "whatif-reset" }, "Back to the build");
  const command = el("div", { class: "sum-row small" }, settings, copyButton(() => settings.textContent, "Copy settings"));
  const node = el(
    "div",
    { class: "sum", role: "status", "aria-live": "polite" },
    el("div", { class: "sum-row" }, el("span", {}, "Would stay: ", clips, " clips, ", hours), change, classes, reset),
    command,
  );
  const show = () => {
    const found = model.result();
    const built = model.data.now;
    clips.textContent = `${found.exact ? "" : "about "}${count(found.clips)}`;
    clips.dataset.value = String(found.clips);
    hours.textContent = length(found.hours);
    hours.dataset.value = String(found.hours);
    const difference = found.clips - built.clips;
    change.className = difference < 0 ? "down" : "up";
    change.textContent = model.moved.length ? `${difference > 0 ? "▲ +" : difference < 0 ? "▼ " : "± "}${count(difference)} clips against the build` : "as built";
    reset.disabled = !model.moved.length;
    command.hidden = !model.moved.length;
    settings.textContent = model.moved
      .map((i) => `--set judge.${model.data.rules[i].setting}=${model.chosen[i] === null ? "none" : model.data.rules[i].steps[model.chosen[i]]}`)
      .join(" ");
    classes.textContent = found.labels ? classChanges(model, found) : "";
  };
  return { node, show, reset };
}

function classChanges(model, found) {
  const scale = found.scale ?? 1;
  const changes = model.data.labels
    .map((label, i) => [label, Math.round((found.labels[i] - model.labelsNow[i]) * scale), found.labels[i]])
    .filter((entry) => entry[1] !== 0)
    .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const shown = changes.slice(0, 5).map(([label, n, left]) => `${label} ${n > 0 ? "+" : ""}${count(n)}${left === 0 ? " (none left)" : ""}`);
  return shown.join(", ") + (changes.length > 5 ? `, and ${changes.length - 5} more classes` : "");
}

/** The section of all measures, with the sliders of those that have a rule. */
function measuresSection() {
  const groups = new Map();
  const model = WHAT_IF ? new WhatIf(WHAT_IF) : null;
  const summary = model ? whatIfSummary(model) : null;
  const logarithmic = el("input", { type: "checkbox", id: "log-counts" });
  const drawn = [];
  const controls = [];
  const changed = (i) => {
    const held = drawn.find((entry) => entry.rule === i);
    if (held) {
      redraw(held.node);
      held.card.classList.toggle("changed", model.chosen[i] !== model.data.rules[i].now);
    }
    summary.show();
  };
  for (const measure of FACTS.measures) {
    const rule = model ? model.data.rules.findIndex((each) => each.setting === measure.setting) : -1;
    const lines = () => {
      const found = [];
      if (measure.threshold !== null) found.push({ at: measure.threshold, text: "built", look: "--mark" });
      if (rule >= 0 && model.chosen[rule] !== null && model.chosen[rule] !== model.data.rules[rule].now) {
        const at = model.data.rules[rule].steps[model.chosen[rule]];
        if (at >= measure.edges[0] && at <= measure.edges.at(-1)) found.push({ at, text: "what if", look: "--s2", dashed: true });
      }
      return found;
    };
    const node = chart(describeHistogram(measure), (width) => histogram(measure, lines(), logarithmic.checked, width));
    const control = rule >= 0 ? ruleControl(model, rule, changed) : null;
    if (control) controls.push(control);
    const missing = measure.missing.kept + measure.missing.rejected;
    const kept = measure.quantiles.kept;
    const plain = (value) => (measure.unit === "share" ? amount(value, "share") : String(Number(value.toPrecision(3))));
    const card = el(
      "div",
      { class: "card", id: `measure-${measure.name}` },
      el("h3", {}, measure.label, measure.unit && measure.unit !== "share" ? el("span", { class: "unit" }, `, ${measure.unit}`) : null),
      el("p", { class: "soft small" }, measure.meaning, missing ? ` Not measurable in ${plural(missing, "clip")}.` : ""),
      node,
      kept ? el("p", { class: "soft small" }, `kept: median ${plain(kept[2])}, 5–95 %: ${plain(kept[0])} to ${plain(kept[4])}`) : null,
      control?.node,
    );
    drawn.push({ node, card, rule });
    if (!groups.has(measure.group)) groups.set(measure.group, []);
    groups.get(measure.group).push(card);
  }
  logarithmic.addEventListener("change", () => drawn.forEach(({ node }) => redraw(node)));
  if (model) {
    summary.reset.addEventListener("click", () => {
      controls.forEach((control) => control.reset());
      drawn.forEach((held) => {
        held.card.classList.remove("changed");
        redraw(held.node);
      });
      summary.show();
    });
    summary.show();
    model.ready.then(() => {
      document.documentElement.dataset.whatif = "ready";
      summary.show();
    });
  }
  if (!FACTS.measures.length) return null;
  const sampled = model && model.data.num_packed < model.data.num_clips;
  const lead = model
    ? "How each measure is distributed, and what other thresholds would do. Move a slider: the numbers are what the build itself would decide from the stored measures, without another download or decode. Duplicates and caps are not worked out anew: a clip that they took stays away, one that comes in anew counts."
    : "How each measure is distributed over the clips.";
  return section(
    "measures",
    model ? "Measures, and what if" : "Measures",
    lead,
    sampled ? el("p", { class: "soft small" }, `One moved threshold is counted over all ${count(model.data.num_clips)} clips; several at once are estimated from ${count(model.data.num_packed)} of them.`) : null,
    model && model.data.now.clips !== FACTS.headline.num_kept ? el("p", { class: "note" }, `By its stored measures and thresholds ${count(model.data.now.clips)} clips would be kept, and the build kept ${count(FACTS.headline.num_kept)}: it was made by another version, or not to its end.`) : null,
    el("div", { class: "rule-row" }, legend([["k", "kept"], ["r", "rejected"], ["--mark", "threshold of the build"]]), el("label", {}, logarithmic, " logarithmic counts")),
    [...groups].map(([name, cards]) => [el("h3", {}, name), el("div", { class: "cards" }, cards), el("br")]),
    summary?.node,
  );
}
