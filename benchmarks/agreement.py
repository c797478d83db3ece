"""Compares what the agreement filter keeps and rejects on labelled material with the rates that its calibration promises.

python -m benchmarks.agreement FOLDER [--rate 0.1] [--calibration DATASET_OR_JSON] [--recipe RECIPE] [--only FILE]

``FOLDER/index.csv`` has the columns path, kind, class and audio_kind. Rows of kind landscape and audio_kind natural are clips with their
own sound. ``FOLDER/pairs.csv`` (video, sound, class, sound_class, match) adds recordings to silent videos; match is 1 if they fit, else 0.
The project's own samples are rendered. All files are processed as in a build: one decode, previews, clips, the rules before agreement.

The packaged calibration was made from such clips. Therefore the last two lines judge each place (clips of one class and repo in
``index.csv``) by a threshold that is calibrated on the other places.

Without ``--recipe`` the packaged pair is used, without ``--calibration`` the pair's own calibration. ``--only`` names a file with the
paths that may be used, one a line: those that the encoders were not trained on.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.agreement.calibration import Calibration, calibrate, read_calibration
from pipeline.agreement.pairs import draw_scores
from pipeline.build.recipe import load_recipe
from pipeline.encoders.pair import EncoderPair, EncoderPairSettings, load_pair, packaged_calibration
from pipeline.errors import ClipError, UserError
from pipeline.judge.rules import JudgeSettings, judge_clip
from pipeline.measure.clips import ClipSettings
from pipeline.measure.previews import read_frames, read_sounds
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.sound import SAMPLE_RATE_HZ
from pipeline.measure.video import MeasureSettings, measure_video
from pipeline.media.ffmpeg import ffmpeg_path, probe
from pipeline.synthetic.catalogue import catalogue
from pipeline.synthetic.render import render

CLIPS = ClipSettings(length_seconds=10.0, min_seconds=2.0)
Rows = NDArray[np.float32]
WITH = " with "
"""Separates, in a label, the class of a joined clip's picture and the class of its sound."""


@dataclass(frozen=True, slots=True)
class EmbeddedFile:
    """A file, with the embeddings (N, D) of its clips that pass the rules before agreement."""

    name: str
    label: str
    place: str
    """The same for all files that show one place."""
    pictures: Rows
    sounds: Rows

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.label.split(WITH))

    @property
    def agreements(self) -> Rows:
        """(N,): the cosine of each clip's picture and sound."""
        cosines_N: Rows = np.sum(self.pictures * self.sounds, axis=1, dtype=np.float32)
        return cosines_N


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=0.1, help="accepted share of wrong pairs, 0..1 (%(default)s)")
    parser.add_argument("--calibration", help="a calibration's JSON, or a dataset with one")
    parser.add_argument("--recipe", help="a recipe that names the encoders")
    parser.add_argument("--only", type=Path, help="a file with the paths that may be used")
    options = parser.parse_args()
    settings = load_recipe(options.recipe).encoders if options.recipe else EncoderPairSettings()
    if settings is None:
        parser.error(f"{options.recipe} names no encoders")
    only = set(options.only.read_text().split()) if options.only else None
    pair = load_pair(settings)
    with tempfile.TemporaryDirectory(prefix="hearscape-bench-") as name:
        groups = _groups(options.folder, only, pair, Path(name))
    try:
        calibration = _calibration(options.calibration, pair.encoder_id, groups)
        point = calibration.point(options.rate)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"encoders {pair.encoder_id}")
    print(
        f"false accepts {100 * options.rate:g} %: agreement {point.threshold:.4f} or more, from {calibration.num_clips} clips of "
        f"{calibration.num_sources} sources (AUC {calibration.auc:.3f}, {calibration.auc_low:.3f} to {calibration.auc_high:.3f})"
    )
    true_rate = _rate_text(point.true_accept_rate, point.true_accept_low, point.true_accept_high)
    false_rate = _rate_text(options.rate, point.false_accept_low, point.false_accept_high)
    print(f"{'':<40}{'files':>6}{'pairs':>8}{'kept':>8}{'rejected':>10}{'share kept':>12}   promised")
    for title, scores_of_files, are_true in _rows(groups):
        kept = [scores >= point.threshold for scores in scores_of_files]
        _print_row(title, kept, true_rate if are_true else false_rate)
    try:
        own, swapped = _unseen_places([*groups["natural"], *groups["1"]], pair.encoder_id, options.rate)
        _print_row("natural, match: threshold of others", own, true_rate)
        _print_row("the same, swapped across classes", swapped, false_rate)
    except UserError as error:
        print(f"the other places give no threshold: {error}")
    _print_errors(groups, point.threshold)
    return 0


def _print_row(title: str, kept_by_file: Sequence[NDArray[np.bool_]], promised: str) -> None:
    """``kept_by_file``: for each file, whether each of its pairs is kept."""
    kept = np.concatenate([np.zeros(0, np.bool_), *kept_by_file])
    share = f"{100 * kept.mean():.1f} %" if len(kept) else "-"
    print(f"{title:<40}{len(kept_by_file):>6}{len(kept):>8}{kept.sum():>8}{(~kept).sum():>10}{share:>12}   {promised}")


def _rate_text(share: float, low: float, high: float) -> str:
    return f"{100 * share:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _calibration(location: str | None, encoder_id: str, groups: dict[str, list[EmbeddedFile]]) -> Calibration:
    if location is None and packaged_calibration() is not None:
        location = str(packaged_calibration())
    if location is not None:
        calibration = read_calibration(location)
        if calibration.encoder_id == encoder_id:
            return calibration
        print(f"{location} is of other encoders: {calibration.encoder_id}")
    print(
        "no calibration of these encoders: the natural clips and the samples are used to calibrate, so their rates are too good"
    )
    return _calibrate([*groups["natural"], *groups["kept"]], encoder_id)


def _calibrate(files: Sequence[EmbeddedFile], encoder_id: str) -> Calibration:
    file_of_clip = [file for file in files for _ in file.pictures]
    return calibrate(
        np.concatenate([file.pictures for file in files]),
        np.concatenate([file.sounds for file in files]),
        [file.place for file in file_of_clip],
        [file.classes for file in file_of_clip],
        encoder_id,
    )


def _unseen_places(
    files: Sequence[EmbeddedFile], encoder_id: str, rate: float
) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    """For each file, whether its clips pass with their own sounds, and with sounds of other classes, at the threshold of other places."""
    thresholds = {
        place: _calibrate([file for file in files if file.place != place], encoder_id).point(rate).threshold
        for place in {file.place for file in files}
    }
    own = [file.agreements >= thresholds[file.place] for file in files]
    swapped = [scores >= thresholds[file.place] for file, scores in zip(files, _swapped(files), strict=True)]
    return own, swapped


def _groups(folder: Path, only: set[str] | None, pair: EncoderPair, work: Path) -> dict[str, list[EmbeddedFile]]:
    def usable(*paths: str) -> bool:
        return only is None or only.issuperset(paths)

    groups: dict[str, list[EmbeddedFile]] = {"natural": [], "1": [], "0": [], "kept": [], "wrong_sound": []}
    with (folder / "index.csv").open(newline="") as file:
        index = list(csv.DictReader(file))
    places = {row["path"]: f"{row.get('repo') or row['path']} {row['class']}" for row in index}
    for row in index:
        if (row["kind"], row["audio_kind"]) == ("landscape", "natural") and usable(row["path"]):
            groups["natural"] += _embed_file(folder / row["path"], row["class"], places[row["path"]], pair, work)
    with (folder / "pairs.csv").open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if usable(row["video"], row["sound"]):
                joined = _join(folder / row["video"], folder / row["sound"], work / f"pair{number:02d}.mkv")
                label = f"{row['class']}{WITH}{row['sound_class']}"
                groups[row["match"]] += _embed_file(joined, label, places[row["video"]], pair, work)
    for spec in catalogue():
        group = "kept" if spec.expected == "kept" else spec.name
        if group in groups:
            path = work / spec.file_name
            render(spec, path)
            groups[group] += _embed_file(path, spec.label, spec.name, pair, work)
    return groups


def _join(video: Path, sound: Path, out: Path) -> Path:
    """Writes the video's picture with the sound, as long as the shorter of both, to ``out``."""
    inputs = ["-i", str(video), "-i", str(sound), "-map", "0:v:0", "-map", "1:a:0", "-c:v", "copy", "-c:a", "flac"]
    subprocess.run([ffmpeg_path(), "-v", "error", "-nostdin", "-y", *inputs, "-shortest", str(out)], check=True)
    return out


def _embed_file(path: Path, label: str, place: str, pair: EncoderPair, work: Path) -> Iterator[EmbeddedFile]:
    """Yields the file with its embeddings; nothing, after a line that says why, if it cannot be read or all its clips are rejected."""
    frames_path, sound_path = work / "frames.npz", work / "sound.flac"
    try:
        facts = probe(path)
        assert facts.video is not None
        video = measure_video(
            path, facts, section_ms=(0, None), scenes=SceneSettings(), clips=CLIPS, settings=MeasureSettings(),
            frames_out=frames_path, sound_out=sound_path,
        )  # fmt: skip
    except ClipError as error:
        print(f"left out: {path.name}: {error}")
        return
    size = (facts.video.width, facts.video.height)
    verdicts = [judge_clip(clip.picture, clip.sound, None, size, JudgeSettings()) for clip in video.clips]
    reasons = sorted({str(verdict.reason) for verdict in verdicts if not verdict.kept})
    if reasons:
        num_rejected = sum(not verdict.kept for verdict in verdicts)
        print(f"left out: {path.name}: {num_rejected} of {len(verdicts)} clips ({', '.join(reasons)})")
    clips = [clip for clip, verdict in zip(video.clips, verdicts, strict=True) if verdict.kept]
    if not clips:
        return
    spans = [(clip.span.start_seconds, clip.span.end_seconds) for clip in clips]
    with frames_path.open("rb") as frames, sound_path.open("rb") as sound:
        embedded = pair.embed_clips(read_frames(frames, spans, 8), read_sounds(sound, spans), SAMPLE_RATE_HZ)
    yield EmbeddedFile(path.name, label, place, embedded.picture, embedded.sound)


def _rows(groups: dict[str, list[EmbeddedFile]]) -> Iterator[tuple[str, list[Rows], bool]]:
    """Title, scores by file, and whether picture and sound of the pairs belong together."""
    yield "natural clips, their own sound", [file.agreements for file in groups["natural"]], True
    yield "natural clips, swapped across classes", _swapped(groups["natural"]), False
    yield "pairs.csv, match", [file.agreements for file in groups["1"]], True
    yield "pairs.csv, mismatch", [file.agreements for file in groups["0"]], False
    yield "samples, their own sound", [file.agreements for file in groups["kept"]], True
    yield "samples, swapped across classes", _swapped(groups["kept"]), False
    yield "samples, wrong sound", [file.agreements for file in groups["wrong_sound"]], False


def _swapped(files: Sequence[EmbeddedFile]) -> list[Rows]:
    """For each file, the scores of its pictures with sounds of other classes."""
    if not files:
        return []
    file_of_clip = [number for number, file in enumerate(files) for _ in file.pictures]
    scores = draw_scores(
        np.concatenate([file.pictures for file in files]),
        np.concatenate([file.sounds for file in files]),
        [files[number].place for number in file_of_clip],
        [files[number].classes for number in file_of_clip],
    ).scores
    file_of_score = np.asarray(file_of_clip)[scores.pictures]
    return [scores.mismatched[file_of_score == number].astype(np.float32) for number in range(len(files))]


def _print_errors(groups: dict[str, list[EmbeddedFile]], threshold: float) -> None:
    """Prints every clip whose verdict is wrong."""
    for title, is_match in (("natural", True), ("1", True), ("kept", True), ("0", False), ("wrong_sound", False)):
        for file in groups[title]:
            for agreement in file.agreements:
                if (agreement >= threshold) != is_match:
                    print(f"{'rejected' if is_match else 'kept':<9}{agreement:>8.4f}  {file.name} ({file.label})")


if __name__ == "__main__":
    sys.exit(main())
