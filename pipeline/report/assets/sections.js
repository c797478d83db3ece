// The sections that are tables and figures.
function tile(parts, text) {
  const [value, unit] = Array.isArray(parts) ? parts : [parts, ""];
  return el("div", { class: "tile" }, el("b", {}, typeof value === "number" ? count(value) : value, unit ? el("small", {}, ` ${unit}`) : null), el("span", {}, text));
}

function summarySection() {
  const head = FACTS.headline;
  const share = head.num_clips ? head.num_kept / head.num_clips : 0;
  const licences = head.licences.map((l) => `${l.licence ?? "not stated"} (${plural(l.clips, "clip")})`).join(", ") || "none";
  const sizes = head.renditions.map((r) => `${r.name} (${r.video_codec}, ${bytes(r.num_bytes)} in ${plural(r.num_shards, "shard")})`).join(", ");
  SECTIONS.push(["summary", "Summary"]);
  return el(
    "section",
    { id: "summary" },
    el("h1", {}, FACTS.name),
    el("p", { class: "lead" }, `${plural(head.num_sources, "source")} gave ${plural(head.num_clips, "clip")}; ${count(head.num_kept)} of them (${percent(share)}) are kept, ${length(head.kept_hours)} of picture with sound.`),
    FACTS.notes.map((note) => el("p", { class: "note" }, note)),
    FACTS.funnel.problems.map((problem) => el("p", { class: "note" }, `The numbers do not agree: ${problem}. Run the build again.`)),
    el("div", { class: "tiles" }, tile(head.num_kept, "clips kept"), tile(lengthParts(head.kept_hours), "of picture with sound"), tile(head.num_kept_sources, `of ${count(head.num_sources)} sources gave clips`),
      tile(head.num_classes, "classes"), tile(bytesParts(head.num_bytes), "in shards"), tile([percent(share).replace(" %", ""), "%"], "of measured clips kept")),
    el("dl", {}, el("dt", {}, "renditions"), el("dd", {}, sizes || "none"), el("dt", {}, "licences"), el("dd", {}, licences),
      el("dt", {}, "encoders"), el("dd", {}, head.encoder_id ?? "none")),
  );
}

const LOOK = { kept: "k", rejected: "r", failed: "f", pending: "p" };

function funnelTable(rows, total, caption) {
  return el("div", { class: "scroll funnel" }, el("table", { "aria-label": caption }, el("tbody", {}, rows.map((row) =>
    el("tr", { class: row.step ? "step" : "loss", "data-kind": row.kind, "data-count": row.count },
      el("td", {}, row.text),
      el("td", { class: "barcell" }, bar([[total ? row.count / total : 0, LOOK[row.kind] ?? "k"]], `${row.text}: ${count(row.count)} of ${count(total)}`)),
      el("td", { class: "num" }, `${row.step ? "" : "− "}${count(row.count)}`),
      el("td", { class: "num soft" }, total ? percent(row.count / total) : ""),
      el("td", { class: "wrap soft small" }, row.advice ?? "")),
  ))));
}

function funnelSection() {
  const { sources, clips } = FACTS.funnel;
  const adviceOf = Object.fromEntries(FACTS.rejections.map((r) => [`${r.what} ${r.reason}`, r.advice]));
  const failureAdvice = Object.fromEntries(FACTS.failures.map((f) => [f.code, f.advice]));
  const sourceRows = sources.steps.map((step) => step.what === "lost"
    ? { text: words(step.why), count: step.count, kind: step.kind, advice: step.kind === "rejected" ? adviceOf[`sources ${step.why}`] : step.kind === "failed" ? failureAdvice[step.why] : "Not come to an end yet: run the build again." }
    : { text: step.what === "listed" ? "Sources listed" : "Sources that gave clips", count: step.count, kind: "kept", step: true });
  const clipRows = [{ text: "Clips measured", count: clips.total, kind: "kept", step: true }];
  for (const r of FACTS.rejections.filter((each) => each.what === "clips")) clipRows.push({ text: words(r.reason), count: r.count, kind: "rejected", advice: r.advice });
  if (clips.states.failed) clipRows.push({ text: "failed", count: clips.states.failed, kind: "failed", advice: "See the failures below." });
  clipRows.push({ text: "Clips kept", count: clips.states.kept ?? 0, kind: "kept", step: true });
  return section("funnel", "From sources to clips", "Every source and every clip ends in one state, for one reason; each step less its losses is the next.",
    legend([["k", "kept"], ["r", "rejected"], ["f", "failed"], ["p", "pending"]]),
    el("div", { id: "funnel-sources" }, sources.total ? funnelTable(sourceRows, sources.total, "Sources") : null), el("br"),
    el("div", { id: "funnel-clips" }, funnelTable(clipRows, clips.total, "Clips")));
}

function agreementSection() {
  const found = FACTS.agreement;
  if (!found) return null;
  const { pairs, calibration } = found;
  const parts = [];
  if (found.problem) parts.push(el("p", { class: "note" }, found.problem));
  if (pairs) {
    const at = pairs.at_threshold;
    parts.push(
      el("div", { class: "tiles" }, tile(pairs.auc.toFixed(3), "area under the curve: 0.5 is chance, 1 perfect"), tile(pairs.median_matched.toFixed(3), "median cosine, matched"), tile(pairs.median_shuffled.toFixed(3), "median cosine, shuffled"),
        at ? tile([Number((100 * at.true_accept_rate).toFixed(1)), "%"], "of true pairs pass") : null, at ? tile([Number((100 * at.false_accept_rate).toFixed(1)), "%"], "of wrong pairs pass") : null),
      el("div", { class: "two" },
        el("figure", { style: "margin:0" }, chart(`Agreement of ${count(pairs.num_matched)} matched and ${count(pairs.num_shuffled)} shuffled pairs: medians ${pairs.median_matched} and ${pairs.median_shuffled}.`, () => pairsOptions(pairs, found.threshold), true), el("figcaption", { class: "small" }, "Matched: a picture with its own sound. Shuffled: with the sound of another source and class.")),
        el("figure", { style: "margin:0" }, chart(`ROC: area ${pairs.auc}.`, () => rocOptions(pairs), true), el("figcaption", { class: "small" }, "True pairs that pass, against wrong pairs that pass, at every threshold."))),
    );
  }
  if (found.threshold !== null) parts.push(el("p", {}, `Asked of every clip: a cosine of ${Number(found.threshold.toFixed(4))}`, found.origin ? ` (${found.origin})` : "", ". ", Object.keys(found.per_class).length ? `Of some classes another: ${Object.entries(found.per_class).map(([l, t]) => `${l} ${Number(t.toFixed(3))}`).join(", ")}.` : ""));
  else parts.push(el("p", {}, "Agreement is stored and not enforced: no threshold was asked."));
  if (calibration) {
    parts.push(el("h3", {}, "Calibration of this build"), el("p", { class: "soft small" }, `On the clips that pass every other rule. Area ${calibration.auc.toFixed(3)} (95 %: ${calibration.auc_low.toFixed(3)} to ${calibration.auc_high.toFixed(3)}), from ${plural(calibration.num_clips, "true pair")} of ${plural(calibration.num_sources, "source")} and ${plural(calibration.num_wrong_pairs, "wrong pair")}.`),
      table([{ title: "Wrong pairs that pass", class: "num", cell: (p) => percent(p.false_accept_rate) }, { title: "Cosine", class: "num", cell: (p) => p.threshold.toFixed(4) }, { title: "True pairs that pass", class: "num", cell: (p) => percent(p.true_accept_rate) }], calibration.points, "Calibration", "narrow"));
  }
  if (found.by_class.length) {
    parts.push(el("details", {}, el("summary", {}, "Agreement by class"), table([{ title: "Class", cell: (c) => c.label }, { title: "Clips", class: "num", cell: (c) => count(c.clips) }, { title: "Median cosine", class: "num", cell: (c) => c.median.toFixed(3) }, { title: "10–90 %", class: "num", cell: (c) => `${c.low.toFixed(3)} to ${c.high.toFixed(3)}` }], found.by_class, "Agreement by class")));
  }
  return section("agreement", "Agreement of sound and picture", `How well sound and picture match in the shared space of the encoders, measured in ${plural(found.num_measured, "clip")}, kept and rejected alike.`, parts);
}

const SPLIT_LOOKS = ["--s1", "--s3", "--s2", "--s4", "--s5", "--s6"];

function balanceSection() {
  const { listed, num } = FACTS.classes;
  const most = Math.max(1, ...listed.map((c) => c.kept));
  const splits = FACTS.splits.map((s) => s.split);
  const look = (split) => SPLIT_LOOKS[Math.min(splits.indexOf(split), SPLIT_LOOKS.length - 1)];
  const leaks = FACTS.leakage;
  const rows = (shown) => table([
    { title: "Class", class: "wrap", cell: (c) => c.label ?? "(no label)" },
    { title: "Kept clips by split", class: "barcell", cell: (c) => bar(splits.map((s) => [(c.splits[s] ?? 0) / most, look(s)]), `${c.label ?? "no label"}: ${splits.map((s) => `${s} ${c.splits[s] ?? 0}`).join(", ")}`) },
    { title: "Kept", class: "num", cell: (c) => count(c.kept) },
    { title: "Length", class: "num", cell: (c) => length(c.hours) },
    { title: "Sources", class: "num", cell: (c) => count(c.sources) },
    { title: "Rejected", class: "num", cell: (c) => count(c.rejected) },
    { title: "Mostly for", class: "whole", cell: (c) => Object.entries(c.reasons).sort((a, b) => b[1] - a[1]).slice(0, 2).map(([r, n]) => `${words(r)} ${count(n)}`).join(", ") },
  ], shown, "Classes");
  return section("balance", "Classes and splits", null,
    legend(splits.map((s) => [look(s), s])),
    listed.length ? rows(listed.slice(0, 25)) : el("p", { class: "soft" }, "No clips."),
    listed.length > 25 ? el("details", {}, el("summary", {}, `${count(num - 25)} more classes${num > listed.length ? `, of which the ${count(listed.length - 25)} largest` : ""}`), rows(listed.slice(25))) : null,
    el("br"),
    el("div", { class: "two" },
      FACTS.splits.length ? table([{ title: "Split", cell: (s) => s.split }, { title: "Clips", class: "num", cell: (s) => count(s.clips) }, { title: "Share", class: "num", cell: (s) => percent(s.clips / Math.max(1, FACTS.headline.num_kept)) }, { title: "Length", class: "num", cell: (s) => length(s.hours) }, { title: "Sources", class: "num", cell: (s) => count(s.sources) }], FACTS.splits, "Splits") : el("p", { class: "soft" }, "No split: nothing was kept."),
      el("div", { class: "card", id: "leakage" }, el("h3", {}, "Do splits share material?"), leaks.map((l) => el("p", { class: l.count ? "bad" : "good" }, `${l.title}: ${l.count ? plural(l.count, l.what.replace(/s$/, ""), l.what) : "none"}`, l.examples.length ? el("span", { class: "soft small" }, ` (${l.examples.map((e) => e.join(" and ")).join("; ")})`) : "")))));
}

function sourcesSection() {
  const found = FACTS.sources;
  const { shapes } = FACTS;
  const kept = FACTS.headline.num_kept;
  const parts = (rows, name, text) => {
    const most = Math.max(1, ...rows.map((r) => r.clips));
    return table([{ title: name, class: "whole", cell: text }, { title: "Clips", class: "barcell", cell: (r) => bar([[r.kept / most, "k"], [(r.clips - r.kept) / most, "r"]], `${count(r.kept)} kept of ${count(r.clips)}`) }, { title: "Kept", class: "num", cell: (r) => count(r.kept) }, { title: "Measured", class: "num", cell: (r) => count(r.clips) }], rows, name);
  };
  return section("sources", "Sources", kept && found.median_clips !== null ? `A source that gave clips gave ${Number(found.median_clips)} at the median and ${count(found.highest_clips)} at the most; the most productive tenth gave ${percent(found.clips_of_top_tenth / kept)} of all kept clips.` : null,
    el("div", { class: "two" }, shapes.sizes.length ? parts(shapes.sizes, "Size of the source", (r) => `${r.size.replace("x", " × ")} px`) : null, shapes.frame_rates.length ? parts(shapes.frame_rates, "Frame rate", (r) => `${r.fps} frames/s`) : null),
    el("br"),
    found.hosts.length ? table([{ title: "From", cell: (h) => h.host }, { title: "Sources", class: "num", cell: (h) => count(h.sources) }, { title: "Gave clips", class: "num", cell: (h) => count(h.kept) }, { title: "Rejected", class: "num", cell: (h) => count(h.rejected) }, { title: "Failed", class: "num", cell: (h) => count(h.failed) }, { title: "Clips kept of measured", class: "num", cell: (h) => `${count(h.kept_clips)} of ${count(h.clips)}` }], found.hosts, "Hosts") : null,
    el("details", {}, el("summary", {}, "Sources that gave most"), table([{ title: "Source", class: "wrap", cell: (s) => sourceLink(s.url, s.source_id) }, { title: "Kept", class: "num", cell: (s) => count(s.kept) }, { title: "Measured", class: "num", cell: (s) => count(s.clips) }, { title: "Length", class: "num", cell: (s) => length(s.hours) }], found.most, "Sources that gave most")),
    el("details", {}, el("summary", {}, `${plural(found.num_nothing, "source")} that gave nothing`), found.num_nothing > found.nothing.length ? el("p", { class: "soft small" }, `The first ${count(found.nothing.length)}; all are in ledger.jsonl.`) : null,
      table([{ title: "Source", class: "wrap", cell: (s) => sourceLink(s.url, s.source_id ?? s.listed_at ?? "?") }, { title: "", cell: (s) => el("span", { class: `badge ${s.state}` }, words(s.cause)) }, { title: "Detail", class: "wrap", cell: (s) => s.detail }, { title: "Listed at", class: "wrap", cell: (s) => s.listed_at ?? "" }], found.nothing, "Sources that gave nothing", "stack")));
}

function failuresSection() {
  if (!FACTS.failures.length) return section("failures", "Failures", "Nothing failed.");
  return section("failures", "Failures", "What could not be processed, by cause, with an example and what to do.",
    table([
      { title: "Cause", cell: (f) => el("span", {}, el("b", {}, words(f.code)), el("br"), el("span", { class: "soft small" }, `${f.stage}${f.transient ? ", tried again by the next run" : ""}`)) },
      { title: "How many", class: "num", cell: (f) => plural(f.count, f.what) },
      { title: "Example", class: "wrap", cell: (f) => f.examples.slice(0, 1).map((e) => [sourceLink(e.url, e.source_id ?? e.listed_at ?? "?"), e.listed_at ? el("span", { class: "soft small" }, ` ${e.listed_at}`) : "", el("div", { class: "small" }, e.message)]) },
      { title: "What to do", class: "wrap", cell: (f) => f.advice },
    ], FACTS.failures, "Failures", "stack"));
}

function seconds(n) {
  return n < 120 ? `${Number(n.toFixed(2))} s` : length(n / 3600);
}

function timingsSection() {
  const t = FACTS.timings;
  if (!t.stages.length) return null;
  return section("timings", "Time", `${seconds(t.seconds)} of work in all, counted over all sources (many ran at once); they waited ${seconds(t.waited_seconds || 0)} for each other, for servers and for free cores.`,
    table([
      { title: "Stage", cell: (s) => s.stage },
      { title: "", class: "barcell", cell: (s) => bar([[s.share, "--s1"]], `${percent(s.share)} of the time`) },
      { title: "In all", class: "num", cell: (s) => seconds(s.seconds) }, { title: "Share", class: "num", cell: (s) => percent(s.share) },
      { title: "Sources", class: "num", cell: (s) => count(s.sources) }, { title: "Median", class: "num", cell: (s) => seconds(s.median_seconds) }, { title: "95 %", class: "num", cell: (s) => seconds(s.p95_seconds) },
    ], t.stages, "Time by stage"),
    el("details", {}, el("summary", {}, "Sources that took longest"), table([{ title: "Source", class: "wrap", cell: (s) => s.source_id }, { title: "Time", class: "num", cell: (s) => seconds(s.seconds) }, { title: "Of which", class: "wrap", cell: (s) => Object.entries(s.stages).map(([n, v]) => `${n} ${seconds(v)}`).join(", ") }], t.slowest, "Slowest sources")));
}

function compareSection() {
  const c = FACTS.compare;
  if (!c) return null;
  const sign = (n) => `${n > 0 ? "+" : ""}${count(n)}`;
  const pair = (what, rows) => table([{ title: what, cell: (r) => words(r.name) }, { title: `${c.other} (before)`, class: "num", cell: (r) => count(r.before) }, { title: `${FACTS.name} (now)`, class: "num", cell: (r) => count(r.now) }, { title: "Change", class: "num", cell: (r) => sign(r.now - r.before) }], rows, what);
  const flipped = (f) => f.examples.map((e) => el("div", { class: "small" }, el("code", {}, e.key), el("span", { class: "soft" }, ` ${[e.before_detail, e.now_detail].filter(Boolean).join(" → ")}`)));
  return section("compare", `Compared with ${c.other}`, `${plural(c.num_same, "clip")} of both builds ended alike, ${count(c.num_flipped)} otherwise; ${count(c.num_only_now)} are new, ${count(c.num_only_before)} are gone.`,
    el("h3", {}, "What changed in the recipe"),
    c.recipe.length ? table([{ title: "Setting", cell: (r) => el("code", {}, r.setting) }, { title: "Before", class: "wrap", cell: (r) => r.before }, { title: "Now", class: "wrap", cell: (r) => r.now }], c.recipe, "Recipe changes", "stack") : el("p", { class: "soft" }, "Nothing."),
    c.versions.length ? el("details", {}, el("summary", {}, `${plural(c.versions.length, "version")} changed`), table([{ title: "Of", cell: (r) => r.name }, { title: "Before", cell: (r) => r.before }, { title: "Now", cell: (r) => r.now }], c.versions, "Versions")) : null,
    el("br"), el("div", { class: "two" }, pair("Clips", c.clips), pair("Why clips were rejected", c.reasons)), el("br"), pair("Kept clips by class", c.classes),
    el("br"), el("h3", {}, "Clips whose verdict flipped"),
    c.flips.length ? el("div", { id: "flips" }, table([{ title: "Before", cell: (f) => words(f.before) }, { title: "Now", cell: (f) => words(f.now) }, { title: "Clips", class: "num", cell: (f) => count(f.count) }, { title: "For example", class: "wrap", cell: flipped }], c.flips, "Flips", "stack")) : el("p", { class: "soft" }, "None."));
}

function recipeSection() {
  return section("recipe", "Recipe and versions", null, el("details", {}, el("summary", {}, "The resolved recipe"), el("pre", { tabindex: "0" }, JSON.stringify(FACTS.recipe, null, 2))), el("dl", {}, Object.entries(FACTS.versions).map(([name, version]) => [el("dt", {}, name), el("dd", {}, version)])));
}
