"""The recipe of a fit: the settings of all stages, and the datasets to fit on. Each settings class is in the file that uses it."""

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
from trainer.invert.settings import InvertSettings
from trainer.prior.settings import PriorSettings
from trainer.streaming.reader import DatasetMix, ReaderSettings
from trainer.video.settings import VideoSettings

logger = logging.getLogger(__name__)


class FitRecipe(Settings):
    """How to fit a model."""

    shards: str | None = None
    """Folder or URL. Every dataset below it is read. None: the command's --shards names it."""
    stages: tuple[str, ...] | None = Field(None, min_length=1)
    """The stages to run. None: all."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Name of a dataset -> how often an epoch reads its samples. 0: the dataset is left out. Datasets not named here have weight 1."""
    run: RunSettings = RunSettings()
    """Where and how the fit runs."""
    reader: ReaderSettings = ReaderSettings()
    """How samples are read, and which parts of each."""
    prior: PriorSettings = PriorSettings()
    """The prior stage: trains a generator of pictures."""
    align: AlignSettings = AlignSettings()
    """The align stage: trains the sound encoder."""
    invert: InvertSettings = InvertSettings()
    """The invert stage: trains the encoder from sounds to styles of the generator (W+)."""
    video: VideoSettings = VideoSettings()
    """The video stage: trains the recurrent blocks that move the styles with the sound."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.run.out).expanduser() if self.run.out is not None else Path("runs") / self.run.name


def find_datasets(shards: str, weights: Mapping[str, float], retries: Retries | None = None) -> list[FitDataset]:
    """The datasets below a folder or URL that have samples to train on, sorted by location.

    Raises ManifestError if there is none or one cannot be read, RecipeError for a weight that names no dataset or several.
    """
    locations = find_manifests(shards, retries)
    if not locations:
        raise ManifestError(
            f"{shards}: there is no dataset below it; build one with 'python -m flows.build_dataset RECIPE', or name another folder"
        )
    manifests = [(location, read_manifest(location, retries)) for location in locations]
    names = {manifest.name for _, manifest in manifests}
    if unknown := sorted(set(weights) - names):
        raise RecipeError(f"weights: no dataset is named {', '.join(unknown)}; there are: {', '.join(sorted(names))}")
    for name in weights:
        ambiguous = [location for location, manifest in manifests if manifest.name == name]
        if len(ambiguous) > 1:
            raise RecipeError(
                f"weights: {len(ambiguous)} datasets are named {name}, so that the weight is ambiguous: {', '.join(ambiguous)}; "
                "build one under another name, or fit on other folders"
            )
    if negative := sorted(name for name, weight in weights.items() if not 0 <= weight < float("inf")):
        raise RecipeError(f"weights: {', '.join(negative)}: a weight is 0 or more")
    datasets = []
    for location, manifest in manifests:
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
