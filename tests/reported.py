"""A dataset whose numbers are known: measures drawn at random, verdicts by the real judge, real media in real shards."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from pipeline.dataset.manifest import Counts, Manifest, Rendition, write_manifest
from pipeline.dataset.shards import Sample, SampleContent, ShardSettings, member_names, plan_shards, write_shard
from pipeline.dataset.source_records import DoneRecords, SourceRecord
from pipeline.dataset.tables import ClipRow, EmbeddingRow, write_embeddings, write_samples
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.judge.rules import JudgeSettings, judge_clip
from pipeline.measure.clips import ClipSettings
from pipeline.measure.previews import FrameRoll, PreviewSettings
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasureSettings, measure_key
from pipeline.runtime.folder import Folder
from pipeline.schema import AgreementMeasures, PictureMeasures, Reason, SoundMeasures, Source, Span, State, clip_key

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
KOREAN = "빗소리"
LABELS = ("rain", "ocean", KOREAN, HOSTILE)
SECONDS = 3
JUDGE = JudgeSettings(min_agreement=0.1, max_white_share=None)
RECIPE: dict[str, Any] = {
    "name": "synthetic",
    "judge": JUDGE.model_dump(mode="json"),
    "scenes": SceneSettings().model_dump(mode="json"),
    "clips": ClipSettings().model_dump(mode="json"),
    "measure": MeasureSettings().model_dump(mode="json"),
}


def measures(rng: np.random.Generator) -> tuple[PictureMeasures, SoundMeasures | None, AgreementMeasures | None]:
    """Most pass every rule, each rule takes some, and some stand exactly at a threshold."""

    def draw(usual: float, bad: float, at: float) -> float:
        return float(rng.choice([usual, usual + (bad - usual) * rng.random(), at], p=[0.85, 0.1, 0.05]))

    picture = PictureMeasures(
        num_frames=75, luma_mean=round(float(rng.uniform(10, 240)), 4), luma_std=draw(40, 0, 4.0), black_share=draw(0, 1, 0.96),
        white_share=draw(0, 1, 0.5), motion=draw(6, 0, 0.4), still_share=draw(0, 1, 0.8), sharpness=draw(0.01, 0, 0.0003),
        bar_left_px=int(rng.choice([0, 333, 700])), bar_top_px=int(rng.choice([0, 137])), bar_right_px=0, bar_bottom_px=0,
        picture_hash=rng.bytes(8).hex(),
    )  # fmt: skip
    sound = SoundMeasures(
        loudness_lufs=None if rng.random() < 0.05 else draw(-20, -70, -55.0), peak_dbfs=-3.0, covered_share=draw(1, 0, 0.95),
        silent_share=draw(0, 1, 0.8), clipped_share=draw(0, 0.1, 0.02), dc_offset=draw(0, 0.2, 0.05), dual_mono=None,
        speech_share=draw(0, 1, 0.3), music_share=draw(0, 0.3, 0.05), sound_hash=rng.bytes(8).hex(),
    )  # fmt: skip
    cosine = float(rng.choice([round(float(rng.normal(0.3, 0.15)), 4), 0.1], p=[0.95, 0.05]))
    agreement = AgreementMeasures("pair-1", cosine, min(cosine + 0.05, 1.0)) if rng.random() > 0.03 else None
    return picture, sound if rng.random() > 0.03 else None, agreement


def make_rows(
    num: int, judge: JudgeSettings = JUDGE, rule: AgreementRule | None = None, seed: int = 0
) -> list[ClipRow]:
    """Clips of sources with two each, judged; of those that stay, some are taken as duplicates, and one failed."""
    rng = np.random.default_rng(seed)
    rows: list[ClipRow] = []
    for i in range(num):
        picture, sound, agreement = measures(rng)
        source_id, span = f"source{i // 2:03d}", Span(i % 2 * 10_000, i % 2 * 10_000 + SECONDS * 1000)
        labels = LABELS[i // 2 % 4 : i // 2 % 4 + (2 if i // 2 % 8 == 0 else 1)]
        verdict = judge_clip(picture, sound, agreement, (1280, 720), judge, rule, labels)
        state, reason = (State.KEPT, None) if verdict.kept else (State.REJECTED, verdict.reason)
        if verdict.kept and i % 11 == 3:
            state, reason = State.REJECTED, Reason.DUPLICATE
        elif verdict.kept and i > num // 2 and not any(row.state is State.FAILED for row in rows):
            state = State.FAILED
        rows.append(ClipRow(
            key=clip_key(source_id, span), source_id=source_id, url=f"https://example.org/watch/{source_id}.mp4", labels=labels,
            caption=HOSTILE if i == 0 else f"clip {i}", licence="CC-BY-4.0" if i % 3 else None,
            split=("train", "test")[i // 2 % 3 == 0] if state is State.KEPT else None, state=state, reason=reason,
            detail=verdict.detail, video_sha256=f"{i // 2:064x}", scene_index=0, start_ms=span.start_ms, end_ms=span.end_ms,
            shard=None, source_width_px=1280, source_height_px=720, source_fps=25.0, picture=picture, sound=sound, agreement=agreement,
        ))  # fmt: skip
    return rows


@functools.cache
def tiny_media() -> tuple[bytes, bytes]:
    """An H.264 mp4 with sound, and the sound as FLAC: SECONDS of grey that brightens, and a tone."""
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(44_100 * SECONDS) / 44_100)).astype(np.float32)
    buffer, flac = io.BytesIO(), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=25, options={"g": "12", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 256, 144, "yuv420p"
        sound = container.add_stream("aac", rate=44_100, layout="mono")
        for number in range(25 * SECONDS):
            image = np.full((144, 256, 3), 40 + 2 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        frame.sample_rate = 44_100
        container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    soundfile.write(flac, tone, 44_100, format="FLAC")
    return buffer.getvalue(), flac.getvalue()


def write_dataset(
    folder: Folder,
    rows: Sequence[ClipRow],
    *,
    rule: AgreementRule | None = None,
    recipe: dict[str, Any] = RECIPE,
    embed: bool = True,
    name: str = "synthetic",
) -> Manifest:
    """Shards, tables, ledger, timings and manifest, as a build leaves them."""
    kept = [row for row in rows if row.state is State.KEPT]
    mp4, flac = tiny_media()
    plans = plan_shards(
        [Sample(row.key, str(row.split), len(mp4), "v1") for row in kept], ShardSettings(max_samples=20)
    )
    by_key = {row.key: row for row in kept}

    def load(key: str) -> SampleContent:
        titled = HOSTILE if by_key[key].caption == HOSTILE else f"Title of {by_key[key].source_id}"
        return SampleContent(mp4, flac, {"provenance": {"title": titled}}, np.ones(4), np.ones(4))

    shards = [write_shard(plan, "144", folder, load) for plan in plans]
    shard_of = {sample.key: plan.file_name for plan in plans for sample in plan.samples}
    table = [dataclasses.replace(row, shard=shard_of.get(row.key)) for row in rows]
    files = [write_samples(table, folder)]
    if embed:
        files += [record for record in [write_embeddings(list(embeddings(rows)), folder)] if record]
    manifest = Manifest(
        name=name,
        recipe=recipe,
        versions={"hearscape": "0.1.0"},
        encoder_id="pair-1" if embed else None,
        agreement_rule=rule,
        members=member_names(has_embeddings=True),
        renditions=(Rendition(name="144", short_side_px=144, video_codec="h264", sound_codec="aac"),),
        splits=tuple(sorted({plan.split for plan in plans})),
        shards=tuple(shards),
        files=tuple(files),
        sources=source_counts(rows),
        clips=clip_counts(rows),
    )
    write_manifest(manifest, folder)
    folder.write_bytes("ledger.jsonl", "".join(ledger(rows)).encode())
    folder.write_bytes(
        "timings.jsonl",
        b'{"source_id": "source000", "fetch": 1.5, "measure": 2.5}\n{"source_id": "source001", "fetch": 0.5}\n',
    )
    return manifest


def embeddings(rows: Sequence[ClipRow]) -> list[EmbeddingRow]:
    """Sounds that point where their pictures do, but for noise; classes point to different places."""
    rng = np.random.default_rng(5)
    found = []
    for row in rows:
        if row.agreement is not None:
            direction = np.eye(4)[LABELS.index(row.labels[0])]
            picture, sound = (direction + 0.25 * rng.standard_normal(4) for _ in range(2))
            found.append(EmbeddingRow(row.key, "pair-1", picture, sound))
    return found


def states_of_sources(rows: Sequence[ClipRow]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows:
        rank = [State.REJECTED, State.FAILED, State.KEPT]
        before = found.get(row.source_id, State.REJECTED)
        found[row.source_id] = max(State(before), row.state, key=rank.index).value
    return found


def source_counts(rows: Sequence[ClipRow]) -> Counts:
    """The sources of the clips, one that is a dead link, one without sound, and a row that cannot be read."""
    states = [*states_of_sources(rows).values(), "failed", "failed", "rejected"]
    rejected, failed = states.count("rejected"), states.count("failed")
    return Counts(
        states={"kept": states.count("kept"), "rejected": rejected, "failed": failed, "pending": 0},
        reasons={"no_clip_kept": rejected - 1, "no_audio": 1},
        failures={"http_404": 1, "bad_row": 1, "clips_failed": failed - 2},
    )


def clip_counts(rows: Sequence[ClipRow]) -> Counts:
    states = [row.state.value for row in rows]
    reasons = [row.reason.value for row in rows if row.reason]
    splits = [str(row.split) for row in rows if row.state is State.KEPT]
    return Counts(
        states={state.value: states.count(state.value) for state in State},
        reasons={r: reasons.count(r) for r in set(reasons)},
        failures={"encode": states.count("failed")},
        splits={s: splits.count(s) for s in set(splits)},
    )


def ledger(rows: Sequence[ClipRow]) -> list[str]:
    lines: list[dict[str, Any]] = [
        {
            "source_id": "row9",
            "state": "failed",
            "failure": {"stage": "sources", "code": "bad_row", "message": "no url", "transient": False},
            "listed_at": "list.csv:9",
        },
        {
            "source_id": "dead",
            "url": "https://example.org/dead.mp4",
            "state": "failed",
            "failure": {"stage": "fetch", "code": "http_404", "message": HOSTILE, "transient": False},
        },
        {
            "source_id": "mute",
            "url": "javascript:alert(1)",
            "state": "rejected",
            "reason": "no_audio",
            "detail": "the file has no sound track",
        },
    ]
    for source_id, state in states_of_sources(rows).items():
        own = [row for row in rows if row.source_id == source_id]
        lines.append(
            {
                "source_id": source_id,
                "url": own[0].url,
                "state": state,
                "reason": "no_clip_kept" if state == "rejected" else None,
                "num_scenes": 1,
                "clips": [
                    {
                        "key": row.key,
                        "state": row.state,
                        "reason": row.reason,
                        "failure": {"stage": "cut", "code": "encode", "message": "boom", "transient": False}
                        if row.state is State.FAILED
                        else None,
                    }
                    for row in own
                ],
            }
        )
    return [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]


def write_previews(folder: Folder, row: ClipRow) -> None:
    """The state that a build leaves of a rejected clip's source: ten seconds that darken, with a tone."""
    state = Folder(f"{folder.url}/state")
    sha256 = str(row.video_sha256)
    records = DoneRecords(state, "done/abc")
    records.put(
        SourceRecord(Source(row.source_id, row.url), State.REJECTED, Reason.NO_CLIP_KEPT, content_sha256=sha256)
    )
    records.close_batch("batch", [row.source_id])
    key = measure_key(sha256, (0, None), SceneSettings(), ClipSettings(), MeasureSettings())
    roll = FrameRoll(PreviewSettings())
    for second in range(20):
        roll.add(float(second), np.full((144, 256, 3), 250 - 10 * second, np.uint8))
    stem = Path(state.url) / "previews" / key[:2] / key
    stem.parent.mkdir(parents=True, exist_ok=True)
    roll.save(stem.with_name(f"{key}.frames.npz"))
    tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(44_100 * 20) / 44_100)).astype(np.float32)
    soundfile.write(stem.with_name(f"{key}.flac"), tone, 44_100, format="FLAC")
