"""Writes the page of a finished run, ``index.html`` in its folder, from its model, its videos and its measures."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.dataset.manifest import find_manifests, read_manifest
from pipeline.errors import ManifestError, OutputError
from pipeline.runtime.installed import installed_version
from trainer.engine.stats import fitted_seconds
from trainer.model.sound_video_file import find_model, load_model
from trainer.rendering.sound_to_video import GenerateSettings
from trainer.result_page.measures import read_measures
from trainer.result_page.page import ResultPage, Step, render
from trainer.result_page.videos import Change, Clip, Comparison, Missing, PageSound, changes, compare

PAGE_NAME = "index.html"
MAX_PAGE_BYTES = 25_000_000
"""Videos that would make the page larger are left out, with a line that says so."""
VERSIONS_OF = ("hearscape", "torch", "av")


@dataclass(frozen=True, slots=True)
class PageSource:
    """What the page of a run is made from."""

    run: Path
    """Folder of the run."""
    shards: str
    """Folder or URL of the datasets that it was fitted to."""
    sounds: Sequence[PageSound]
    """Sounds that were not in training."""
    videos: Path
    """Folder with the video of each sound, as ``trainer.generate`` made them with ``settings``."""
    settings: GenerateSettings
    measures: Path | None
    """The JSON that ``trainer.evaluate`` wrote. None: it could not measure."""
    recipe: str | None = None
    """Name of the recipe. None: it is not said."""


def write_page(source: PageSource, max_bytes: int = MAX_PAGE_BYTES) -> Path:
    """Writes ``index.html`` into the run's folder and returns its path. What is missing is said on the page, in its place.

    Raises CheckpointError if the run holds no model, OutputError if the page cannot be written.
    """
    path = find_model(str(source.run))
    model, header = load_model(path)
    settings = source.settings.model_copy(update={"use_blocks": header.stage == "video"})
    comparisons, changing = fitting(
        compare(model, source.sounds, source.videos, settings), changes(model, source.sounds, settings), max_bytes
    )
    px = model.generator.resolution
    scaled = f" and shows them at {settings.resolution}" if settings.resolution not in (None, px) else ""
    page = ResultPage(
        name=source.run.resolve().name,
        lead=_lead(source),
        comparisons=comparisons,
        changes=changing,
        picture_note=f"The generator draws pictures of {px} x {px} pixels{scaled}. Seed of the random numbers: {settings.seed}. "
        "The other sound is the one half the list further that is of another class.",
        measures="they could not be measured" if source.measures is None else read_measures(source.measures),
        steps=next_steps(source.run, source.shards),
        provenance=[
            *_provenance(source),
            ("Model", f"{path.parent.name}/{path.name}, {header.samples_seen:,} samples seen"),
        ],
        recipe_json=_recipe_text(source.run),
    )
    target = source.run / PAGE_NAME
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(render(page).encode("utf-8", "replace"))
        partial.replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def fitting(
    comparisons: Sequence[Comparison], changing: Sequence[Change], max_bytes: int
) -> tuple[list[Comparison], list[Change]]:
    """The same, with as many videos as ``max_bytes`` allow: first those of the right sounds, then the changes, then the others."""
    left = max_bytes - 500_000  # for text, styles and spectrograms

    def kept(clip: Clip | Missing) -> Clip | Missing:
        nonlocal left
        if isinstance(clip, Missing):
            return clip
        size = (len(clip.mp4) + len(clip.poster_jpg)) * 4 // 3
        if size > left:
            return Missing(f"the page would be larger than {max_bytes / 1e6:.0f} MB")
        left -= size
        return clip

    with_right = [replace(each, right=kept(each.right)) for each in comparisons]
    with_changes = [replace(each, clip=kept(each.clip)) for each in changing]
    return [replace(each, wrong=kept(each.wrong)) for each in with_right], with_changes


def next_steps(run: Path, shards: str) -> list[Step]:
    """Commands that go on from here."""
    checkpoint, datasets = shlex.quote(str(run)), shlex.quote(shards)
    return [
        Step(
            "Make videos of your own sounds",
            f"python -m trainer.generate --checkpoint {checkpoint} --sound *.wav --out videos/ --sheet sheet.png",
            "docs/howto/train.md",
        ),
        Step(
            "Build a dataset from your own links: name them in the source list of the recipe",
            "hearscape new mine\nhearscape build mine/manifests/recipes/landscape.toml",
            "docs/howto/own-links.md",
        ),
        Step(
            "Fit the largest model that this machine and these datasets allow",
            "hearscape fit --shards manifests/ --dry-run      # says which, and how long it takes\nhearscape fit --shards manifests/",
            "docs/howto/train.md",
        ),
        Step(
            "Measure again, with more latents or other encoders",
            f"python -m trainer.evaluate --checkpoint {checkpoint} --shards {datasets} --seeds 8",
            "docs/explanation/model.md",
        ),
    ]


def _lead(source: PageSource) -> str:
    classes = {label for sound in source.sounds for label in sound.labels}
    seconds = fitted_seconds(source.run)
    fitted = "" if seconds is None else f" It was fitted in {seconds / 60:.0f} minutes."
    return f"Videos that a model made of {len(source.sounds)} sounds of {len(classes)} classes, none of which it heard in training.{fitted}"


def _provenance(source: PageSource) -> Iterable[tuple[str, str]]:
    seconds = fitted_seconds(source.run)
    yield "Run", str(source.run)
    yield "Recipe", source.recipe or "not known"
    yield "Fitted in", "not known" if seconds is None else f"{seconds / 60:.0f} minutes"
    yield from _datasets(source.shards)
    packages = [f"{name} {installed_version(name)}" for name in VERSIONS_OF]
    yield "Versions", ", ".join([*packages, f"Python {platform.python_version()}"])


def _datasets(shards: str) -> Iterable[tuple[str, str]]:
    try:
        manifests = [read_manifest(location) for location in find_manifests(shards)]
    except ManifestError as error:
        yield "Dataset", f"cannot be read: {error}"
        return
    for manifest in manifests:
        splits = ", ".join(f"{name} {number}" for name, number in sorted(manifest.clips.splits.items()))
        kept = manifest.clips.states.get("kept", 0)
        yield "Dataset", f"{manifest.name}: {kept} clips ({splits}) of {manifest.sources.states.get('kept', 0)} sources"


def _recipe_text(run: Path) -> str | None:
    try:
        return json.dumps(json.loads((run / "recipe.json").read_text(encoding="utf-8")), indent=2, ensure_ascii=False)
    except (OSError, ValueError):
        return None
