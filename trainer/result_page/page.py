"""The page as HTML: one file with its videos, which asks nothing of any network. All text from files is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.runtime.html_page import asset, filled, policy, script_of
from trainer.result_page.measures import MeasureRow, PageMeasures
from trainer.result_page.videos import Change, Clip, Comparison, Missing

PACKAGE = "trainer.result_page"
MEDIA = "img-src data:; media-src data:; connect-src 'none'"


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do next."""

    title: str
    command: str
    file: str
    """The page of the documentation."""


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Everything that the page shows."""

    name: str
    lead: str
    comparisons: Sequence[Comparison]
    changes: Sequence[Change]
    picture_note: str
    measures: PageMeasures | str
    """Or why there are none."""
    steps: Sequence[Step]
    provenance: Sequence[tuple[str, str]]
    recipe_json: str | None


def render(page: ResultPage) -> str:
    """The page as HTML."""
    script = script_of([asset(PACKAGE, "page.js")])
    parts = {
        "policy": policy([script], MEDIA),
        "title": escape(f"Video from sound: {page.name}"),
        "style": asset(PACKAGE, "page.css"),
        "name": escape(page.name),
        "lead": escape(page.lead),
        "summary": _summary(page.measures),
        "comparisons": _cards([_comparison(each) for each in page.comparisons], "There is no sound to show."),
        "picture_note": escape(page.picture_note),
        "changes": _cards(
            [_change(each) for each in page.changes], "There are no two sounds of different classes to change between."
        ),
        "measures": _measures(page.measures),
        "steps": "".join(map(_step, page.steps)),
        "provenance": "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.provenance),
        "recipe": ""
        if page.recipe_json is None
        else f'<details><summary>All settings</summary><pre tabindex="0">{escape(page.recipe_json)}</pre></details>',
        "script": script,
    }
    return filled(asset(PACKAGE, "page.html"), parts)


# the videos


def _cards(cards: Sequence[str], without: str) -> str:
    return f'<div class="shows">{"".join(cards)}</div>' if cards else _note(without)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _video(clip: Clip | Missing, label: str, more: str = "") -> str:
    if isinstance(clip, Missing):
        return f'<p class="gone">No video: {escape(clip.why)}</p>'
    return (
        f'<video controls playsinline preload="auto" aria-label="{escape(label)}"{more} '
        f'poster="{_data("image/jpeg", clip.poster_jpg)}" src="{_data("video/mp4", clip.mp4)}"></video>'
    )


def _timeline(spectrum_png: bytes | None, marks: str = "") -> str:
    """The spectrogram, with a line that moves with the video."""
    if spectrum_png is None:
        return ""
    image = f'<img alt="Spectrogram of the sound that is heard" src="{_data("image/png", spectrum_png)}">'
    return f'<div class="timeline">{image}{marks}<i class="now" aria-hidden="true"></i></div>'


def _play(words: str) -> str:
    return f'<button type="button" class="play" hidden>{words}</button>'


def _comparison(shown: Comparison) -> str:
    heard, name = escape(shown.sound.shown_class), escape(shown.sound.path.stem)
    other = "another class" if shown.other is None else escape(shown.other.shown_class)
    button = _play("▶ Play both") if isinstance(shown.right, Clip) or isinstance(shown.wrong, Clip) else ""
    return f"""
<article class="card show">
  <header><h3>You hear <b>{heard}</b> <span class="unit">{name}</span></h3>{button}</header>
  <div class="pair">
    <figure class="right">{_video(shown.right, f"Video of the sound {shown.sound.shown_class}")}
      <figcaption>from this sound: <b>{heard}</b></figcaption></figure>
    <figure class="wrong">{_video(shown.wrong, f"Video of another class's sound, with the sound {shown.sound.shown_class}")}
      <figcaption>from another sound: <b>{other}</b></figcaption></figure>
  </div>
  {_timeline(shown.spectrum_png)}
</article>"""


def _change(change: Change) -> str:
    first, second = escape(change.first.shown_class), escape(change.second.shown_class)
    title = f"<h3>From <b>{first}</b> to <b>{second}</b></h3>"
    if isinstance(change.clip, Missing):
        return f'<article class="card show"><header>{title}</header>{_video(change.clip, "")}</article>'
    share = f"{100 * change.change_seconds / change.seconds:.2f}%"
    marks = f'<i class="turn" style="left:{share}" aria-hidden="true"></i>'
    times = f' data-change="{change.change_seconds:.3f}" data-first="{first}" data-second="{second}"'
    return f"""
<article class="card show">
  <header>{title}{_play("▶ Play")}</header>
  <div class="changing">
    {_video(change.clip, f"Video of a sound that changes from {change.first.shown_class} to {change.second.shown_class}", times)}
    <p class="heard" aria-live="off" hidden>Now heard: <b>{first}</b></p>
  </div>
  {_timeline(change.spectrum_png, marks)}
  <p class="halves"><span style="width:{share}">{first}</span><span>{second}</span></p>
  <p class="small soft">The sound changes at {change.change_seconds:.1f} s.</p>
</article>"""


# the measures

TILES = {
    "right_minus_wrong": "right sound minus another class's",
    "class_accuracy": "class of the video is that of its sound",
    "change_in_time": "video follows a change half-way",
}


def _figure(row: MeasureRow, value: float | None) -> str:
    if value is None:
        return ""
    if row.name.startswith(("retrieval_", "class_")):
        return f"{100 * value:.1f} %"
    is_difference = row.chance is not None
    return f"{value:+.3f}" if is_difference and value else f"{value:.3f}"


def _chance(row: MeasureRow) -> str:
    return "0" if row.chance == 0 else _figure(row, row.chance)


def _interval(row: MeasureRow) -> str:
    return "" if row.low is None or row.high is None else f"{_figure(row, row.low)} to {_figure(row, row.high)}"


def _summary(measures: PageMeasures | str) -> str:
    if isinstance(measures, str):
        return _note(f"There are no measures: {measures}.")
    tiles = []
    for row in measures.rows:
        if row.name in TILES:
            lines = [TILES[row.name]]
            lines += [] if row.chance is None else [f"chance {_chance(row)}"]
            lines += [] if row.real is None else [f"real frames {_figure(row, row.real)}"]
            tiles.append(f'<div class="tile"><b>{_figure(row, row.value)}</b><span>{"<br>".join(lines)}</span></div>')
    return f'<p class="verdict">{escape(measures.verdict)}</p><div class="tiles">{"".join(tiles)}</div>'


def _measures(measures: PageMeasures | str) -> str:
    if isinstance(measures, str):
        return _note(f"There are no measures: {measures}. Measure with the command below.")
    notes = "".join(map(_note, measures.notes))
    if measures.missing:
        notes += _note(f"Not measured here: {', '.join(measures.missing)}.")
    lowest = min(
        [0.0, *(row.low for row in measures.rows if row.low is not None), *(row.value for row in measures.rows)]
    )
    body = "".join(_row(row, lowest) for row in measures.rows)
    return f"""{notes}
<ul class="keys">
<li><i class="key-band"></i>value and its 95 % interval</li>
<li><i class="key-chance"></i>chance</li><li><i class="key-real"></i>real frames</li>
</ul>
<div class="scroll stack" tabindex="0" role="region" aria-label="Measures"><table>
<thead><tr><th scope="col">Measure</th><th scope="col" class="num">Value</th><th scope="col" class="num">95 % interval</th>
<th scope="col" class="num">Chance</th><th scope="col" class="num">Real frames</th>
<th scope="col"><span class="skip">Drawn</span></th></tr></thead>
<tbody>{body}</tbody></table></div>"""


def _row(row: MeasureRow, lowest: float) -> str:
    def place(value: float) -> str:
        share = (value - lowest) / (1 - lowest) if lowest < 1 else 0.0
        return f"{100 * min(1.0, max(0.0, share)):.2f}%"

    marks = ""
    if row.low is not None and row.high is not None:
        marks += f'<i class="band" style="left:{place(row.low)};right:calc(100% - {place(row.high)})"></i>'
    for kind, value in (("chance", row.chance), ("real", row.real), ("value", row.value)):
        if value is not None:
            marks += f'<i class="at-{kind}" style="left:{place(value)}"></i>'
    cells = (
        ("Value", f"<b>{_figure(row, row.value)}</b>"),
        ("95 % interval", _interval(row)),
        ("Chance", _chance(row)),
        ("Real frames", _figure(row, row.real)),
    )
    figures = "".join(f'<td class="num" data-title="{title}">{text}</td>' for title, text in cells)
    return (
        f'<tr><td class="wrap"><b>{escape(row.title)}</b><br><span class="soft small">{escape(row.words)}</span></td>{figures}'
        f'<td class="drawn" aria-hidden="true"><span class="track">{marks}</span></td></tr>'
    )


def _step(step: Step) -> str:
    return f"""
<li><h3>{escape(step.title)}</h3>
  <div class="command"><pre tabindex="0"><code>{escape(step.command)}</code></pre>
    <button type="button" class="copy" hidden>Copy</button></div>
  <p class="small soft">More: <code>{escape(step.file)}</code></p></li>"""
