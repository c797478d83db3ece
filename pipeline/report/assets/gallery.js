// Look and listen: clips with their frames and spectrograms. On disk the page holds a choice of clips; served, it asks for any.
const GALLERY = DATA.gallery;
const UNIT_OF = Object.fromEntries(DATA.measures.map((m) => [m.name, m]));
const PAGE = 48;

function valueOf(clip, name) {
  return clip.values[GALLERY.measures.indexOf(name)];
}

/** The clips that a query asks for: {total, clips}. */
async function findClips(query, offset) {
  if (!SERVED) {
    const found = localMatches(query);
    return { total: found.length, clips: found.slice(offset, offset + PAGE) };
  }
  const asked = new URLSearchParams({ offset, limit: PAGE });
  for (const [name, value] of Object.entries(query)) if (value !== "" && value !== null) asked.set(name, value);
  const answer = await fetch(`/api/clips?${asked}`);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

function localMatches(query) {
  const text = query.text.trim().toLowerCase();
  const [low, high] = [query.low, query.high].map((value) => (value === "" ? null : Number(value)));
  const found = GALLERY.clips.filter((clip) => {
    if (query.state && clip.state !== query.state) return false;
    if (query.reason && clip.reason !== query.reason) return false;
    if (query.label && !clip.labels.includes(query.label)) return false;
    if (query.split && clip.split !== query.split) return false;
    if (text && ![clip.key, clip.title, clip.caption, clip.url].some((field) => field && field.toLowerCase().includes(text))) return false;
    if (low !== null || high !== null) {
      const value = valueOf(clip, query.measure);
      if (value === null || (low !== null && value < low) || (high !== null && value > high)) return false;
    }
    return true;
  });
  if (!query.sort) return found;
  const sign = query.order === "falling" ? -1 : 1;
  const key = query.sort === "key" ? (clip) => clip.key : (clip) => valueOf(clip, query.sort);
  return found
    .map((clip) => [key(clip), clip])
    .sort(([a], [b]) => (a === null ? 1 : b === null ? -1 : a < b ? -sign : a > b ? sign : 0))
    .map(([, clip]) => clip);
}

const stripOf = (clip) => (SERVED && clip.strip ? `/strip/${encodeURIComponent(clip.key)}.webp` : clip.strip || null);
const spectrumOf = (clip) => (SERVED && clip.spectrum ? `/spectrum/${encodeURIComponent(clip.key)}.webp` : clip.spectrum || null);

/** Frames side by side of which one shows at a time; the pointer moves through them. */
function frameBox(clip, frames = GALLERY.frame.count) {
  const source = stripOf(clip);
  const box = el("span", { class: "frame" });
  const gone = () => box.replaceChildren(el("span", { class: "gone" }, "no frame: neither its shard nor its previews are here"));
  if (!source) {
    gone();
    return { box, show: () => {} };
  }
  const image = el("img", { src: source, alt: `${frames} frames of ${clip.key}`, loading: "lazy", onerror: gone });
  image.style.width = `${100 * frames}%`;
  const show = (share) => (image.style.left = `${-100 * Math.min(frames - 1, Math.floor(share * frames))}%`);
  show(0.5);
  box.append(image);
  return { box, show };
}

function clipButton(clip, sortedBy, open) {
  const { box, show } = frameBox(clip);
  const spectrum = spectrumOf(clip);
  const name = clip.title ?? clip.caption ?? clip.source_id;
  const shown = sortedBy && sortedBy !== "key" ? sortedBy : valueOf(clip, "agreement") !== null ? "agreement" : null;
  const button = el(
    "button",
    { type: "button", class: "tilebtn", "data-key": clip.key, onclick: () => open(clip) },
    box,
    spectrum ? el("img", { class: "spectrum", src: spectrum, alt: "spectrogram", loading: "lazy", onerror: (event) => event.target.remove() }) : null,
    el(
      "span",
      { class: "under" },
      el("span", { class: "name" }, name),
      el("span", { class: `badge ${clip.state}` }, clip.state === "rejected" ? `✗ ${words(clip.reason ?? "rejected")}` : clip.state === "kept" ? "✓ kept" : `! ${clip.state}`),
      " ",
      el("span", { class: "soft" }, [clip.labels.join(", "), shown ? `${UNIT_OF[shown].label.toLowerCase()} ${amount(valueOf(clip, shown), UNIT_OF[shown].unit)}` : null].filter(Boolean).join(" · ")),
    ),
  );
  button.addEventListener("pointermove", (event) => {
    const place = box.getBoundingClientRect();
    show((event.clientX - place.left) / place.width);
  });
  button.addEventListener("pointerleave", () => show(0.5));
  return el("li", {}, button);
}

function player(clip) {
  const { box } = frameBox(clip);
  const spectrum = spectrumOf(clip);
  const strip = stripOf(clip);
  const look = spectrum ? el("img", { class: "spectrum", src: spectrum, alt: "spectrogram of the sound, 60 Hz to 16 kHz" }) : null;
  if (!SERVED) {
    const command = `python -m pipeline.report serve ${FACTS.location}`;
    return [
      strip ? el("div", { class: "frames" }, el("img", { src: strip, alt: `frames of ${clip.key}` })) : box,
      look,
      el("p", { class: "small soft" }, clip.shard ? "Clips play when the page is served from where the shards are:" : "The sound of rejected clips plays when the page is served, as long as their previews are there:"),
      el("div", { class: "rule-row" }, el("code", {}, command), copyButton(() => command)),
    ];
  }
  if (clip.shard) {
    const video = el("video", { controls: true, autoplay: true, playsinline: true, id: "player", src: `/clip/${encodeURIComponent(FACTS.headline.renditions[0].name)}/${encodeURIComponent(clip.key)}.mp4` });
    const sizes = el("select", { "aria-label": "Rendition", onchange: (event) => (video.src = `/clip/${encodeURIComponent(event.target.value)}/${encodeURIComponent(clip.key)}.mp4`) },
      FACTS.headline.renditions.map((r) => el("option", { value: r.name }, `rendition ${r.name}`)));
    return [video, look, el("div", { class: "rule-row" }, sizes, el("a", { href: `/sound/${encodeURIComponent(clip.key)}.flac` }, "the lossless sound"))];
  }
  if (!clip.spectrum) return [box, el("p", { class: "small soft" }, "Neither a cut clip nor previews of it are stored.")];
  const frames = 8;
  const moving = frameBox({ ...clip }, frames);
  const image = moving.box.querySelector("img");
  if (image) image.src = `/strip/${encodeURIComponent(clip.key)}.webp?frames=${frames}`;
  const sound = el("audio", { controls: true, autoplay: true, id: "player", src: `/sound/${encodeURIComponent(clip.key)}.wav` });
  sound.addEventListener("timeupdate", () => moving.show(sound.duration ? sound.currentTime / sound.duration : 0));
  return [moving.box, look, sound, el("p", { class: "small soft" }, "A rejected clip was not cut: these are the frames and the sound that were kept when it was measured.")];
}

/** What is known of a clip, in the dialog; arrow keys go through the list. */
function openClip(list, index) {
  const dialog = document.getElementById("clip");
  const clip = list[index];
  const facts = [
    ["verdict", el("span", {}, el("span", { class: `badge ${clip.state}` }, clip.state), clip.reason ? ` ${words(clip.reason)}` : "", clip.detail ? el("span", { class: "soft" }, ` (${clip.detail})`) : "")],
    ["classes", clip.labels.join(", ") || "none"],
    ["caption", clip.caption],
    ["title", clip.title],
    ["source", sourceLink(clip.url, clip.url ?? clip.source_id, clip.start_ms, clip.end_ms)],
    ["time", `${clock(clip.start_ms)} to ${clock(clip.end_ms)}, scene ${clip.scene_index ?? "?"}`],
    ["licence", clip.licence ?? "not stated"],
    ["split", clip.split],
    ["shard", clip.shard],
    ["shown, heard", clip.shown_class || clip.heard_class ? `${clip.shown_class ?? "?"}, ${clip.heard_class ?? "?"}` : null],
    ["id", el("code", {}, clip.key)],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  const measured = DATA.measures.filter((m) => valueOf(clip, m.name) !== null);
  const limits = Object.fromEntries(FACTS.measures.map((m) => [m.name, m]));
  const go = (step) => openClip(list, (index + step + list.length) % list.length);
  const close = () => dialog.close();
  dialog.replaceChildren(
    el("div", { class: "clip-head" }, el("h3", { id: "clip-title" }, clip.title ?? clip.caption ?? clip.source_id), el("span", { class: "num" },
      el("button", { type: "button", "aria-label": "Previous clip", onclick: () => go(-1) }, "←"), " ",
      el("button", { type: "button", "aria-label": "Next clip", onclick: () => go(1) }, "→"), " ",
      el("button", { type: "button", "aria-label": "Close", onclick: close, autofocus: true }, "✕"))),
    el("div", { class: "clip-body" },
      el("div", {}, player(clip), el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))),
      el("div", {}, measured.length ? table(
        [
          { title: "Measure", cell: (m) => m.label },
          { title: "Value", class: "num", cell: (m) => amount(valueOf(clip, m.name), m.unit) },
          { title: "Asked", class: "num", cell: (m) => asked(limits[m.name], valueOf(clip, m.name), m.unit) },
        ], measured, "Measures of the clip") : el("p", { class: "soft" }, "It was not measured."))),
  );
  dialog.onkeydown = (event) => {
    if (event.target.matches("video, audio, input, select")) return;
    if (event.key === "ArrowRight") go(1);
    if (event.key === "ArrowLeft") go(-1);
  };
  dialog.onclose = () => {
    if (dialog.open) return; // told late: the next clip is open already
    dialog.replaceChildren(); // ends what plays
    document.querySelector(`[data-key="${CSS.escape(clip.key)}"]`)?.focus();
  };
  if (!dialog.open) dialog.showModal();
}

/** What the build asked of a measure, marked where the clip does not have it. */
function asked(limit, value, unit) {
  if ((limit?.threshold ?? null) === null) return "";
  const most = limit.side === "at_most";
  const ofClass = limit.name === "agreement" && Object.keys(FACTS.agreement?.per_class ?? {}).length > 0; // then other limits hold
  const fails = !ofClass && (most ? value > limit.threshold : value < limit.threshold);
  return el("span", { class: fails ? "bad" : null }, `${most ? "≤" : "≥"} ${amount(limit.threshold, unit === "share" ? "share" : "")}`);
}

function choice(title, name, values, query, changed) {
  return el("label", {}, title, el("select", { name, onchange: (event) => { query[name] = event.target.value; changed(); } },
    el("option", { value: "" }, "all"), values.map((value) => el("option", { value }, words(value)))));
}

function gallerySection() {
  if (!GALLERY.num_clips) return null;
  const query = { state: "", reason: "", label: "", split: "", text: "", measure: "", low: "", high: "", sort: "", order: "falling" };
  const list = el("ul", { class: "gallery" });
  const status = el("p", { class: "soft small", role: "status", id: "gallery-count" });
  const more = el("button", { type: "button" }, "Show more");
  let held = [];
  let turn = 0;
  const fill = async (fresh) => {
    turn += 1;
    const mine = turn;
    const before = fresh ? [] : held; // what is shown stays, and opens, until the answer is here
    let found;
    try {
      found = await findClips(query, before.length);
    } catch (error) {
      status.textContent = `The clips could not be had: ${error.message}`;
      return;
    }
    if (mine !== turn) return;
    held = before.concat(found.clips);
    const nodes = found.clips.map((clip, i) => clipButton(clip, query.sort, () => openClip(held, before.length + i)));
    if (fresh) list.replaceChildren(...nodes);
    else list.append(...nodes);
    const all = SERVED || GALLERY.clips.length === GALLERY.num_clips;
    status.textContent = `${plural(found.total, "clip")}${all ? "" : ` of the ${count(GALLERY.clips.length)} in this page (${count(GALLERY.num_clips)} in the dataset; served, the page shows them all)`}`;
    more.hidden = held.length >= found.total;
  };
  more.addEventListener("click", () => fill(false));
  const refill = () => fill(true);
  const values = (name) => [...new Set(GALLERY.clips.map((clip) => clip[name]).filter(Boolean))].sort();
  const labels = FACTS.classes.listed.map((c) => c.label).filter(Boolean);
  const reasons = [...new Set([...FACTS.rejections.filter((r) => r.what === "clips").map((r) => r.reason), ...values("reason")])].filter(Boolean);
  const measured = FACTS.measures;
  let timer;
  const later = () => { clearTimeout(timer); timer = setTimeout(refill, 160); };
  const number = (title, name) => el("label", {}, title, el("input", { type: "number", step: "any", name, oninput: (event) => { query[name] = event.target.value; later(); } }));
  const filters = el(
    "form",
    { class: "filters", onsubmit: (event) => event.preventDefault() },
    choice("Verdict", "state", ["kept", "rejected", "failed"], query, refill),
    choice("Reason", "reason", reasons, query, refill),
    choice("Class", "label", labels, query, refill),
    choice("Split", "split", FACTS.splits.map((s) => s.split).filter(Boolean), query, refill),
    el("label", {}, "Id, title or caption", el("input", { type: "search", name: "text", oninput: (event) => { query.text = event.target.value; later(); } })),
    el("label", {}, "Sort by", el("select", { name: "sort", onchange: (event) => { query.sort = event.target.value; refill(); } },
      el("option", { value: "" }, "a mix of all"), el("option", { value: "key" }, "id"), measured.map((m) => el("option", { value: m.name }, m.label)))),
    el("label", {}, "Order", el("select", { name: "order", onchange: (event) => { query.order = event.target.value; refill(); } },
      el("option", { value: "falling" }, "highest first"), el("option", { value: "rising" }, "lowest first"))),
    el("label", {}, "Only where", el("select", { name: "measure", onchange: (event) => { query.measure = event.target.value; refill(); } },
      el("option", { value: "" }, "any measure"), measured.map((m) => el("option", { value: m.name }, m.unit && m.unit !== "share" ? `${m.label} (${m.unit})` : m.unit === "share" ? `${m.label} (0 to 1)` : m.label)))),
    number("From", "low"),
    number("To", "high"),
  );
  refill();
  return section("clips", "Look and listen", "Frames from the clips themselves, and what is heard in them: low tones below, high ones above. Move over a picture to see later frames; open it for its measures.", filters, status, list, el("p", {}, more));
}
