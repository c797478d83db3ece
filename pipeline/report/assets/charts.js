// Charts: Apache ECharts as SVG, drawn when they come into view, and again when the theme changes.
const CHARTS = new Map();
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  },
  { rootMargin: "300px" },
);
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (!CHARTS.get(target)?.chart) continue;
    CHARTS.get(target).chart.resize();
    draw(target); // bars are as wide as their bins, in pixels
  }
});

/** A place for a chart; `options(width)` gives what ECharts wants, each time with the colours of the day. */
function chart(label, options, tall = false) {
  const node = el("div", { class: tall ? "chart tall" : "chart", role: "img", "aria-label": label });
  CHARTS.set(node, { options, chart: null });
  seen.observe(node);
  resized.observe(node);
  return node;
}

function draw(node) {
  const held = CHARTS.get(node);
  if (!held.chart) held.chart = echarts.init(node, null, { renderer: "svg" });
  held.chart.setOption(held.options(node.clientWidth), { notMerge: true });
}

/** Draws again what is drawn already. */
function redraw(node) {
  if (CHARTS.get(node)?.chart) draw(node);
}

function redrawAll() {
  for (const [node, held] of CHARTS) if (held.chart) draw(node);
}

function common(extra) {
  return {
    animation: false,
    textStyle: { color: color("--soft"), fontFamily: "system-ui, sans-serif", fontSize: 11 },
    grid: { left: 8, right: 12, top: 12, bottom: 4, containLabel: true },
    tooltip: {
      trigger: "axis",
      confine: true,
      backgroundColor: color("--paper"),
      borderColor: color("--line"),
      textStyle: { color: color("--ink"), fontSize: 12 },
      renderMode: "html",
    },
    ...extra,
  };
}

const escaped = (text) => echarts.format.encodeHTML(String(text));

function axis(extra) {
  return {
    axisLine: { lineStyle: { color: color("--line") } },
    axisTick: { show: false },
    axisLabel: { color: color("--soft"), hideOverlap: true, fontSize: 11 },
    splitLine: { show: false },
    ...extra,
  };
}

function countAxis(logarithmic = false) {
  return axis({
    type: logarithmic ? "log" : "value",
    min: logarithmic ? 0.5 : 0,
    minInterval: 1,
    splitNumber: 3,
    splitLine: { show: true, lineStyle: { color: color("--line"), opacity: 0.6 } },
    axisLine: { show: false },
    axisLabel: { color: color("--soft"), fontSize: 11, formatter: (n) => (n < 1 ? "" : n >= 10000 ? `${n / 1000}k` : n) },
  });
}

const STRIPES = () => ({ symbol: "rect", dashArrayX: [1, 0], dashArrayY: [3, 3], rotation: Math.PI / 4, color: color("--paper") });

const isRound = (n) => Number(n.toPrecision(2)) === n;

/** A histogram of kept and rejected clips. Lines: [{at, text, look}]. */
function histogram(measure, lines, logarithmic, width) {
  const { edges } = measure;
  const middle = edges.slice(0, -1).map((edge, i) => (edge + edges[i + 1]) / 2);
  const series = ["kept", "rejected"].map((state, i) => ({
    name: state,
    type: "bar",
    stack: logarithmic ? undefined : "clips",
    barCategoryGap: "8%",
    barGap: "-100%",
    itemStyle: { color: color(`--${state}`), opacity: logarithmic ? 0.65 : 1, decal: i ? STRIPES() : undefined },
    data: measure[state].map((n, k) => [middle[k], n === 0 ? null : n]),
    barWidth: Math.max(2, (0.9 * (width - 60)) / measure[state].length),
    barMinHeight: 2,
  }));
  series.push({
    name: "lines", type: "line", data: [], silent: true,
    markLine: {
      symbol: "none", animation: false,
      data: lines.map((line) => ({
        xAxis: line.at,
        lineStyle: { color: color(line.look), width: 2, type: line.dashed ? "dashed" : "solid" },
        label: { formatter: line.text, color: color("--ink"), fontSize: 11, position: "end", distance: 0, offset: [0, line.dashed ? -12 : 0] },
      })),
    },
  });
  return common({
    aria: { enabled: true, decal: { show: false } },
    grid: { left: 4, right: 12, top: lines.length ? 30 : 10, bottom: 2, containLabel: true },
    xAxis: axis({ type: "value", min: edges[0], max: edges.at(-1), axisLabel: { showMinLabel: isRound(edges[0]), showMaxLabel: isRound(edges.at(-1)), color: color("--soft"), hideOverlap: true, fontSize: 11, formatter: (n) => (measure.unit === "share" ? `${Number((100 * n).toFixed(2))} %` : Number(n.toPrecision(4))) } }),
    yAxis: countAxis(logarithmic),
    tooltip: {
      ...common({}).tooltip,
      axisPointer: { type: "shadow" },
      formatter: (points) => {
        const k = points[0]?.dataIndex ?? 0;
        const span = `${amount(edges[k], measure.unit)} to ${amount(edges[k + 1], measure.unit)}`;
        return escaped(`${span}: ${plural(measure.kept[k], "clip")} kept, ${count(measure.rejected[k])} rejected`);
      },
    },
    series,
  });
}

function describeHistogram(measure) {
  const parts = [`${measure.label}: histogram of kept and rejected clips.`];
  for (const [state, q] of Object.entries(measure.quantiles)) {
    parts.push(`${state}: median ${amount(q[2], measure.unit)}, 90 % between ${amount(q[0], measure.unit)} and ${amount(q[4], measure.unit)}.`);
  }
  if (measure.threshold !== null) parts.push(`Threshold ${measure.side === "at_most" ? "at most" : "at least"} ${amount(measure.threshold, measure.unit)}.`);
  return parts.join(" ");
}

/** Matched against shuffled pairs, in percent of each. */
function pairsOptions(pairs, threshold) {
  const total = { matched: pairs.num_matched, shuffled: pairs.num_shuffled };
  const middle = pairs.edges.slice(0, -1).map((edge, i) => (edge + pairs.edges[i + 1]) / 2);
  const looks = { matched: ["--kept", "solid", "circle"], shuffled: ["--rejected", "dashed", "diamond"] };
  return common({
    legend: { top: 0, textStyle: { color: color("--soft") }, data: ["matched", "shuffled"] },
    grid: { left: 8, right: 16, top: 34, bottom: 20, containLabel: true },
    xAxis: axis({ type: "value", min: pairs.edges[0], max: pairs.edges.at(-1), name: "agreement (cosine)", nameLocation: "middle", nameGap: 24, axisLabel: { color: color("--soft"), hideOverlap: true, formatter: (n) => Number(n.toFixed(2)) } }),
    yAxis: axis({ type: "value", axisLabel: { color: color("--soft"), formatter: "{value} %" }, splitLine: { show: true, lineStyle: { color: color("--line") } } }),
    tooltip: { ...common({}).tooltip, formatter: (points) => escaped(`cosine ${points[0].value[0].toFixed(2)}: ${points.map((p) => `${p.seriesName} ${p.value[1].toFixed(1)} %`).join(", ")}`) },
    series: Object.entries(looks).map(([name, [look, type, symbol]], i) => ({
      name, type: "line", step: "middle", symbol, showSymbol: false, lineStyle: { color: color(look), type, width: 2 }, itemStyle: { color: color(look) },
      areaStyle: { color: color(look), opacity: 0.12 },
      data: pairs[name].map((n, k) => [middle[k], (100 * n) / total[name]]),
      markLine: i || threshold === null ? undefined : { symbol: "none", animation: false, data: [{ xAxis: threshold }], lineStyle: { color: color("--mark"), width: 2, type: "solid" }, label: { formatter: `asked ${Number(threshold.toFixed(3))}`, color: color("--ink") } },
    })),
  });
}

function rocOptions(pairs) {
  const at = pairs.at_threshold;
  return common({
    grid: { left: 8, right: 16, top: 16, bottom: 22, containLabel: true },
    xAxis: axis({ type: "value", min: 0, max: 100, name: "wrong pairs that pass", nameLocation: "middle", nameGap: 24, axisLabel: { color: color("--soft"), formatter: "{value} %" } }),
    yAxis: axis({ type: "value", min: 0, max: 100, axisLabel: { color: color("--soft"), formatter: "{value} %" }, splitLine: { show: true, lineStyle: { color: color("--line") } } }),
    tooltip: { ...common({}).tooltip, trigger: "item", formatter: (p) => escaped(p.value.length > 2 ? `at cosine ${p.value[2]}: ${p.value[1].toFixed(1)} % of true pairs and ${p.value[0].toFixed(1)} % of wrong pairs pass` : "") },
    series: [
      { type: "line", silent: true, showSymbol: false, data: [[0, 0], [100, 100]], lineStyle: { color: color("--line"), type: "dashed" } },
      { name: "ROC", type: "line", step: "start", symbolSize: 5, data: [[0, 0], ...pairs.roc.map(([f, t, x]) => [100 * f, 100 * t, x]), [100, 100]], lineStyle: { color: color("--kept"), width: 2.5 }, itemStyle: { color: color("--kept") }, showSymbol: false },
      ...(at ? [{ name: "chosen", type: "scatter", symbol: "diamond", symbolSize: 14, itemStyle: { color: color("--rejected"), borderColor: color("--paper"), borderWidth: 2 }, data: [[100 * at.false_accept_rate, 100 * at.true_accept_rate]], label: { show: true, position: at.false_accept_rate < 0.7 ? "right" : "left", formatter: "chosen threshold", color: color("--ink") } }] : []),
    ],
  });
}
