"""Evaluates a model: reads it and the held-out clips, measures whether its videos follow the sound, and reports a table and a verdict.

For held-out clips, videos are generated from their own sound, another class's, silence, and a sound that changes class half-way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.encoders.pair import EncoderPairSettings
from pipeline.errors import DataError, ManifestError, OutputError
from pipeline.runtime.remote import Retries
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.encoders.pair import EncoderPair
    from trainer.model.sound_video import SoundVideoConfig
    from trainer.model.sound_video_file import SoundVideoHeader
    from trainer.proof.sound_proof import HeldOutClip

FEW_SOURCES = 10
"""With fewer sources the report calls the intervals rough: they are bootstrapped over the sources."""
SMALLEST_PX = 16


class EvaluateRecipe(Settings):
    """Which clips are measured, how, and by which encoders."""

    split: str = "validation"
    """Split of the datasets whose clips are used. The model must not have learned from it."""
    num_clips: int = Field(default=200, ge=2)
    """Largest number of clips: equally many of each dataset, the first in the order of its shards, which a build shuffles."""
    num_seeds: int = Field(default=1, ge=1, le=1000)
    """Latents for each clip."""
    seed: int = Field(default=0, ge=0)
    """Seed of latents, noise, the choice of other sounds, and the bootstrap."""
    truncation: float | None = Field(default=None, ge=0, le=2)
    """psi of the latents. None: the model's own."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures that are generated at once."""
    encoders: EncoderPairSettings = EncoderPairSettings()
    """The encoders that measure agreement, with the fields of a build recipe; by default the packaged pair. They should not have been
    part of the loss in training."""
    device: str = "auto"
    """Where the model runs: auto (a GPU if there is one), cpu, cuda, or cuda:1 and so on."""
    retries: Retries = Retries()
    """How often a request to a server is repeated, and how long to wait before."""


def evaluate(
    recipe: EvaluateRecipe,
    checkpoint: str,
    shards: str,
    sha256: str | None = None,
    json_path: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measures a checkpoint on the datasets below ``shards``. Returns the result as JSON values, and writes it to ``json_path``.

    Raises UserError for a checkpoint, dataset or output that cannot be used.
    """
    from pipeline.encoders.device import pick_device  # noqa: PLC0415
    from pipeline.encoders.pair import load_pair  # noqa: PLC0415
    from trainer.model.sound_video_file import find_model, load_model  # noqa: PLC0415
    from trainer.proof.sound_proof import EvaluateSettings, prove  # noqa: PLC0415

    _check_output(json_path, overwrite)
    device = pick_device(recipe.device, "--device")
    path = find_model(checkpoint, sha256)
    model, header = load_model(path)
    locations = locations_with(shards, recipe.split, recipe.retries)
    judge = load_pair(recipe.encoders)
    clips = read_clips(locations, recipe, header.model, model.generator.resolution)
    settings = EvaluateSettings(
        num_seeds=recipe.num_seeds,
        seed=recipe.seed,
        truncation=recipe.truncation,
        batch_size=recipe.batch_size,
        use_blocks=header.stage == "video",
    )
    measures = prove(model.to(device), clips, judge, settings)
    result = _result(path, header, judge, locations, recipe, measures)
    if json_path is not None:
        _write(json_path, result)
    return result


def locations_with(shards: str, split: str, retries: Retries | None = None) -> list[str]:
    """The datasets below a folder or URL that have samples of a split. Raises ManifestError if there is none."""
    from pipeline.dataset.manifest import find_manifests, read_manifest  # noqa: PLC0415

    manifests = [(location, read_manifest(location, retries)) for location in find_manifests(shards, retries)]
    if not manifests:
        raise ManifestError(
            f"{shards}: there is no dataset below it; build one with 'python -m flows.build_dataset RECIPE', or name another folder"
        )
    with_split = [location for location, manifest in manifests if manifest.clips.splits.get(split)]
    if not with_split:
        splits = "; ".join(f"{manifest.name}: {', '.join(manifest.splits) or 'none'}" for _, manifest in manifests)
        raise ManifestError(
            f"--split {split}: no dataset below {shards} has samples of it; the splits there are: {splits}"
        )
    return with_split


def read_clips(
    locations: Sequence[str], recipe: EvaluateRecipe, config: SoundVideoConfig, resolution: int
) -> list[HeldOutClip]:
    """Clips in the form of the model's training: its window and number of frames, at its generator's resolution.

    Raises DataError if a dataset cannot be read, or no clip has a label.
    """
    from trainer.proof.sound_proof import held_out_clips  # noqa: PLC0415
    from trainer.streaming.reader import DatasetMix, Reader, ReaderSettings  # noqa: PLC0415

    settings = ReaderSettings(
        num_frames=config.num_frames,
        picture_px=max(resolution, SMALLEST_PX),
        window_seconds=config.window_seconds,
        upscale=True,
        mel=False,
        batch_size=8,
        num_workers=0,
        retries=recipe.retries,
    )
    clips: list[HeldOutClip] = []
    for number, location in enumerate(locations):
        limit = (recipe.num_clips - len(clips)) // (len(locations) - number)
        if not limit:
            continue
        reader = Reader([DatasetMix(location=location)], settings, split=recipe.split, seed=recipe.seed, shuffle=False)
        try:
            clips += held_out_clips(reader, limit)
        finally:
            reader.close()
    if not clips:
        raise DataError(f"no clip of split {recipe.split!r} has a label: sounds of another class cannot be chosen")
    return clips


def _result(
    path: Path,
    header: SoundVideoHeader,
    judge: EncoderPair,
    locations: Sequence[str],
    recipe: EvaluateRecipe,
    measures: Mapping[str, float],
) -> dict[str, Any]:
    judge_ids = {judge.encoder_id, judge.picture.encoder_id, judge.sound.encoder_id}
    return {
        "checkpoint": str(path),
        "stage": header.stage,
        "samples_seen": header.samples_seen,
        "datasets": list(locations),
        "settings": recipe.model_dump(mode="json"),
        "measured_by": judge.encoder_id,
        "loss_encoder_ids": list(header.encoder_ids),
        "measured_by_loss_encoder": bool(judge_ids & set(header.encoder_ids)),
        "ignores_the_sound": ignores_the_sound(measures),
        "verdict": verdict(measures),
        "measures": dict(measures),
    }


def ignores_the_sound(measures: Mapping[str, float]) -> bool:
    """Whether the interval of ``right_minus_wrong`` includes 0 or lies below it."""
    return measures["right_minus_wrong_low"] <= 0


def verdict(measures: Mapping[str, float]) -> str:
    """One to three sentences: whether the right sound agrees better, by how much, and with which interval."""
    difference, low, high = (measures[f"right_minus_wrong{end}"] for end in ("", "_low", "_high"))
    count = f"{measures['num_clips']:.0f} clips of {measures['num_sources']:.0f} sources"
    figures = f"{difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {count})"
    if high < 0:
        text = f"The model ignores the sound: videos agree less with their own sound than those of another class's sound do, by {figures}."
    elif low <= 0:
        text = f"The model ignores the sound: with the right sound videos do not agree with it more than with another class's, {figures}."
    else:
        text = f"The sound matters: videos of the right sound agree with it more than those of another class's sound, by {figures}."
    real_difference = measures.get("real_right_minus_wrong", 0.0)
    if low > 0 and real_difference > 0:
        text += f" Real frames lead by {real_difference:+.3f}."
    if measures["num_sources"] < FEW_SOURCES:
        text += f" With fewer than {FEW_SOURCES} sources the interval is rough."
    return text


ROWS = (
    ("agreement, right sound", "agreement_right", None),
    ("agreement, another class's sound", "agreement_wrong", None),
    ("agreement, silence", "agreement_silent", None),
    ("right minus another class's", "right_minus_wrong", None),
    ("right minus silence", "right_minus_silent", None),
    ("sound found from video, first", "retrieval_at_1", "retrieval_chance"),
    ("sound found from video, first 5", "retrieval_at_5", "retrieval_at_5_chance"),
    ("nearest sound of its class", "retrieval_class", "retrieval_class_chance"),
    ("class of video is that of sound", "class_accuracy", "class_chance"),
    ("video follows change half-way", "change_in_time", None),
    ("halves apart, changed sound", "half_distance_changed", None),
    ("halves apart, same sound", "half_distance_unchanged", None),
)
"""Rows of the table: title, measure, and the measure that is the score of guessing (None: no such measure)."""


def result_text(result: Mapping[str, Any]) -> str:
    """The table of measures, and the verdict."""
    measures: Mapping[str, float] = result["measures"]
    lines = [f"{'':<34}{'value':>8}   {'95 % interval':<20}{'chance':>8}{'real frames':>14}"]
    for title, name, chance in ROWS:
        if name not in measures:
            continue
        interval = f"{measures[f'{name}_low']:+.3f} to {measures[f'{name}_high']:+.3f}"
        by_chance = f"{measures[chance]:.3f}" if chance is not None and chance in measures else ""
        real = f"{measures[f'real_{name}']:.3f}" if f"real_{name}" in measures else ""
        lines.append(f"{title:<34}{measures[name]:>8.3f}   {interval:<20}{by_chance:>8}{real:>14}".rstrip())
    lines.append(f"measured by {result['measured_by']}")
    if result["measured_by_loss_encoder"]:
        lines.append(
            "This encoder was part of the loss, so its measures are too high. Another encoder (--set encoders...) is a better judge."
        )
    if "change_in_time_low" in measures and not result["ignores_the_sound"]:
        follows = measures["change_in_time_low"] > 0
        lines.append(
            f"When the sound changes half-way, the picture {'follows' if follows else 'does not follow measurably'}."
        )
    lines.append(result["verdict"])
    return "\n".join(lines)


def _check_output(path: Path | None, overwrite: bool) -> None:
    if path is None:
        return
    if path.is_dir():
        raise OutputError(f"--json {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise OutputError(f"--json {path} is there already; choose another name, or replace it with --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: the folder cannot be made: {error.strerror or error}") from error


def _write(path: Path, result: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
