"""The recipe of a fit: what every stage is told, composed, and the datasets that it is about. Settings sit in the files that use them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from pipeline.dataset.manifest import find_manifests, read_manifest
from pipeline.errors import ManifestError, RecipeError
from pipeline.runtime.remote import Retries
from pipeline.settings import Settings
from trainer.align.settings import AlignSettings
from trainer.engine.run import FitDataset, RunSettings
from trainer.invert.settings import InvertSettings, StudentSettings
from trainer.prior.settings import PriorSettings
from trainer.streaming.reader import DatasetMix, ReaderSettings
from trainer.video.settings import VideoSettings

logger = logging.getLogger(__name__)


class FitRecipe(Settings):
    """How to fit a model."""

    shards: str | None = None
    """Folder or URL: every dataset below it is streamed from. None: the command names it with --shards."""
    stages: tuple[str, ...] | None = Field(None, min_length=1)
    """The stages that are run. None: all there are."""
    weights: dict[str, float] = Field(default_factory=dict)
    """How often an epoch reads the samples of a dataset, by its name; 0 leaves it out. A dataset that is not named: 1."""
    run: RunSettings = RunSettings()
    """Where and how the fit runs."""
    reader: ReaderSettings = ReaderSettings()
    """What is read of each sample."""
    prior: PriorSettings = PriorSettings()
    """The stage that trains a generator of pictures."""
    align: AlignSettings = AlignSettings()
    """The stage that fits the sound encoder."""

    student: StudentSettings = StudentSettings()
    """The stage that makes a picture encoder without gradients one with."""
    invert: InvertSettings = InvertSettings()
    """The stage that puts sounds into the generator's space of styles."""
    video: VideoSettings = VideoSettings()
    """The stage that walks through that space with the sound."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.out).expanduser() if self.run.out is not None else Path("runs") / self.run.name


def find_datasets(shards: str, weights: Mapping[str, float], retries: Retries | None = None) -> list[FitDataset]:
    """Every dataset below a folder or URL that has samples to train on, by location.

    Raises ManifestError when there is none or one cannot be read, RecipeError for weights of what is not there.
    """
    locations = find_manifests(shards, retries)
    if not locations:
        raise ManifestError(
            f"{shards}: there is no dataset below it; build one with 'python -m flows.build_dataset RECIPE', or name another folder"
        )
    found = [(location, read_manifest(location, retries)) for location in locations]
    names = {manifest.name for _, manifest in found}
    if unknown := sorted(set(weights) - names):
        raise RecipeError(f"weights: no dataset is named {', '.join(unknown)}; there are: {', '.join(sorted(names))}")
    for name in weights:
        if len(same := [location for location, manifest in found if manifest.name == name]) > 1:
            raise RecipeError(
                f"weights: {len(same)} datasets are named {name}, one weight cannot be meant for all of them: {', '.join(same)}; build one "
                "under another name, or fit on other folders"
            )
    if negative := sorted(name for name, weight in weights.items() if not 0 <= weight < float("inf")):
        raise RecipeError(f"weights: {', '.join(negative)}: a weight is 0 or more")
    datasets = []
    for location, manifest in found:
        weight = weights.get(manifest.name, 1.0)
        if weight and not manifest.clips.splits.get("train"):
            logger.warning("%s has no samples to train on: its splits are %s", location, dict(manifest.clips.splits))
        elif weight:
            datasets.append(FitDataset(DatasetMix(location=location, weight=weight), manifest))
    if not datasets:
        raise ManifestError(
            f"{shards}: none of its datasets ({', '.join(sorted(names))}) has samples to train on and a weight above 0"
        )
    return datasets
