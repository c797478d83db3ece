"""Generate videos from sounds with a fitted model: ``python -m trainer.generate --checkpoint runs/NAME --sound rain.wav --out rain.mp4``.

Several sounds go to a folder: ``--sound *.wav --out videos/ --sheet sheet.png``. A sound that cannot be used does not stop the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClipError, OutputError, RecipeError
from pipeline.runtime.commands import Command, run_command
from pipeline.runtime.interrupts import INTERRUPTED
from pipeline.runtime.process_folder import system_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainer.model.sound_video import SoundVideoModel
    from trainer.rendering.contact_sheet import SheetRow
    from trainer.rendering.sound_to_video import GenerateSettings

SUFFIX = ".mp4"
OTHER_VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".webm")
SETTINGS = ("seconds", "fps", "seed", "truncation", "motion", "resolution", "batch_size", "crf")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="runs/NAME", required=True, help="folder of a run, or a model's file")
    parser.add_argument("--sha256", help="of a checkpoint that is a URL")
    parser.add_argument(
        "--sound", metavar="FILE", type=Path, nargs="+", required=True,
        help="sounds, or videos whose sound is taken",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="OUT", type=Path, required=True, help="a name.mp4; for several sounds a folder"
    )
    parser.add_argument("--sheet", metavar="SHEET.png", type=Path, help="also write a contact sheet of all videos")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    parser.add_argument(
        "--seconds",
        type=float,
        help="length of the videos: longer sounds are cut, shorter ones end with a still picture",
    )
    parser.add_argument("--fps", type=float, help="frames for each second (25)")
    parser.add_argument("--seed", type=int, help="another seed gives another video of the same sound (0)")
    parser.add_argument(
        "--truncation", type=float, help="0 to 2; lower is nearer to the average picture (default: the model's own)"
    )
    parser.add_argument("--motion", type=float, help="0 to 4: how far the picture moves from frame to frame (1)")
    parser.add_argument("--resolution", type=int, help="side of the pictures in pixels (default: the generator's)")
    parser.add_argument("--batch-size", type=int, help="pictures that are generated at once (8)")
    parser.add_argument("--crf", type=int, help="H.264 quality, 0 (lossless) to 51 (18)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 and so on")


def _run(options: argparse.Namespace, _: str) -> int:
    try:
        return _make_videos(options)
    except KeyboardInterrupt:
        print("Interrupted; complete videos are kept.", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


GENERATE = Command(
    summary="turn sounds into videos with a fitted model", add_options=_add_options, run=_run, logs_warnings=True
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a sound could not be used, 2 refused (the message says what to correct), 130 interrupted."""
    return run_command(GENERATE, "python -m trainer.generate", arguments)


def _make_videos(options: argparse.Namespace) -> int:
    system_folder()
    jobs = _jobs(options.sound, options.out)
    _check_outputs(jobs, options.sheet, overwrite=options.overwrite)
    settings = _settings({name: getattr(options, name) for name in SETTINGS})
    model, settings = _model(options, settings)
    from trainer.rendering.contact_sheet import MAX_ROWS, write_sheet  # noqa: PLC0415 (after what can be refused)

    rows: list[SheetRow] = []
    num_failed = 0
    for job in jobs:
        try:
            row = _make(job, model, settings)
            if options.sheet is not None and len(rows) < MAX_ROWS:
                rows.append(row)
        except ClipError as error:
            num_failed += 1
            print(f"failed: {error}", file=sys.stderr)  # noqa: T201
    if rows:
        write_sheet(options.sheet, rows)
        num_made = len(jobs) - num_failed
        left_out = f" (the first {MAX_ROWS} of {num_made})" if num_made > MAX_ROWS else ""
        print(f"{options.sheet}: contact sheet, rows: {len(rows)}{left_out}")  # noqa: T201
    return 1 if num_failed else 0


@dataclass(frozen=True, slots=True)
class VideoJob:
    """A sound and the path of its video."""

    sound: Path
    video: Path


def _jobs(sounds: Sequence[Path], out: Path) -> list[VideoJob]:
    """A job for every sound. ``out`` is a file for one sound, or a folder.

    Raises OutputError for a file that is no mp4, for one file for several sounds, and if two sounds share a path.
    """
    if out.suffix.lower() in OTHER_VIDEOS:
        raise OutputError(f"--out {out}: videos are written as mp4; name it {out.with_suffix(SUFFIX)}")
    if out.suffix.lower() == SUFFIX and not out.is_dir():
        if len(sounds) > 1:
            raise OutputError(f"--out {out} is one file, and there are {len(sounds)} sounds; name a folder")
        return [VideoJob(sounds[0], out)]
    jobs: dict[Path, VideoJob] = {}
    for sound in sounds:
        video = out / f"{sound.stem}{SUFFIX}"
        if video in jobs:
            raise OutputError(
                f"--sound: {jobs[video].sound} and {sound} would both become {video}; make them in two runs, to two folders"
            )
        jobs[video] = VideoJob(sound, video)
    return list(jobs.values())


def _check_outputs(jobs: Sequence[VideoJob], sheet: Path | None, *, overwrite: bool) -> None:
    """Makes the folders. Raises OutputError for outputs that exist already or cannot be written."""
    outputs = [job.video for job in jobs] + ([] if sheet is None else [sheet])
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise OutputError(f"--sheet {sheet}: contact sheets are written as PNG; name it {sheet.with_suffix('.png')}")
    sounds = {job.sound.resolve() for job in jobs}
    if inputs := [path for path in outputs if path.resolve() in sounds]:
        raise OutputError(f"{inputs[0]} is one of the sounds; choose another --out")
    if folders := [path for path in outputs if path.is_dir()]:
        raise OutputError(f"{folders[0]} is a folder; choose another name")
    existing = [str(path) for path in outputs if path.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise OutputError(
            f"{', '.join(existing[:3])}{more}: there already; choose another name, or replace with --overwrite"
        )
    for path in outputs:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: the folder cannot be made: {error.strerror or error}") from error


def _settings(options: Mapping[str, Any]) -> GenerateSettings:
    """The settings of the command line's options. Raises RecipeError with all problems, each with the name of its option."""
    from pydantic import ValidationError  # noqa: PLC0415 (after --help)

    from pipeline.runtime.recipe_file import problems_of  # noqa: PLC0415
    from trainer.rendering.sound_to_video import GenerateSettings  # noqa: PLC0415

    try:
        return GenerateSettings.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        lines = [f"--{line.replace('_', '-', 1)}" for line in problems_of(error)]
        raise RecipeError("\n  ".join(lines)) from error


def _model(options: argparse.Namespace, settings: GenerateSettings) -> tuple[SoundVideoModel, GenerateSettings]:
    """The model on its device, and the settings, which switch the recurrent blocks off for a model of the invert stage."""
    from pipeline.encoders.device import pick_device  # noqa: PLC0415
    from trainer.model.sound_video_file import find_model, load_model  # noqa: PLC0415

    device = pick_device(options.device, "--device")
    path = find_model(options.checkpoint, options.sha256)
    model, header = load_model(path)
    if header.stage == "invert":
        print(f"{path} is of the invert stage: each segment of sound gives its own picture, without recurrent blocks")  # noqa: T201
        settings = settings.model_copy(update={"use_blocks": False})
    return model.to(device), settings


def _make(job: VideoJob, model: SoundVideoModel, settings: GenerateSettings) -> SheetRow:
    """Generates and writes a video. Returns its row of the contact sheet. Raises MediaError for a sound that cannot be used."""
    from trainer.rendering.contact_sheet import SheetRow, shown_frames, tile  # noqa: PLC0415
    from trainer.rendering.sound_file import open_sound  # noqa: PLC0415
    from trainer.rendering.sound_to_video import video_of  # noqa: PLC0415
    from trainer.rendering.video_writer import write_mp4  # noqa: PLC0415

    sound = open_sound(job.sound)
    video = video_of(model, sound, settings)
    num_frames, encoded = video.num_frames, video.encoded
    seconds = num_frames / settings.fps
    sheet_frames = set(shown_frames(num_frames))
    tiles: list[NDArray[np.uint8]] = []

    def keep_tiles(frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        for number, frame in enumerate(frames):
            if number in sheet_frames:
                tiles.append(tile(frame))
            yield frame

    with _with_progress(keep_tiles(video.frames), num_frames, job.video.name) as frames:
        write_mp4(job.video, frames, settings.fps, sound, crf=settings.crf)
    side = settings.resolution or model.generator.resolution
    print(  # noqa: T201
        f"{job.video}: {seconds:.1f} s, {num_frames} frames of {side} x {side} at {settings.fps:g} a second, seed {settings.seed}"
    )
    if settings.seconds is not None and settings.seconds - encoded.seconds > 1 / settings.fps:
        print(  # noqa: T201
            f"{job.sound} ends after {encoded.seconds:.1f} s: silence follows, and the last picture stays"
        )
    note = f"{seconds:.1f} s\nseed {settings.seed}"
    return SheetRow(job.sound.stem, note, tiles, encoded.mel_MT, min(1.0, encoded.seconds / seconds))


@contextmanager
def _with_progress(
    frames: Iterator[NDArray[np.uint8]], num_frames: int, name: str
) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """Yields the same frames. On a terminal a progress bar shows how many are done and the remaining time."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    if not console.is_terminal:
        yield frames
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("frames,"), TimeRemainingColumn(),
        TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=num_frames)

        def counted() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                yield frame
                progress.advance(task)

        yield counted()


if __name__ == "__main__":
    sys.exit(main())
