"""The recipe of a build: the settings of every stage, composed, and loaded from TOML. Each stage's settings sit in its own file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.agreement.measures import AgreementSettings
from pipeline.dataset.balance import BalanceSettings
from pipeline.dataset.dedup import DedupSettings
from pipeline.dataset.shards import ShardSettings
from pipeline.dataset.split import SplitSettings
from pipeline.encoders.pair import EncoderPairSettings
from pipeline.fetch.settings import DownloadSettings
from pipeline.judge.agreement_rule import AgreementRule
from pipeline.judge.rules import JudgeSettings, ProbeSettings
from pipeline.measure.clips import ClipSettings
from pipeline.measure.scenes import SceneSettings
from pipeline.measure.video import MeasureSettings
from pipeline.media.cut import CutSettings
from pipeline.runtime.recipe_file import read_recipe
from pipeline.schema import stable_hash
from pipeline.settings import Settings

_RESOLVED: dict[str, set[str]] = {
    "agreement": {"false_accept_rate", "calibration", "per_class"},
    "judge": {"min_agreement"},
}
"""Settings that stand for numbers found elsewhere: an :class:`AgreementRule`."""


class ExecutionSettings(Settings):
    """Where and how wide a build runs. Nothing here changes what is built."""

    workers: int | None = Field(None, ge=1)
    """Processes that decode and encode at once. None: one per core."""
    process_memory_bytes: int | None = Field(4 << 30, ge=256 << 20)
    """Memory that one process may hold that decodes or encodes; one that holds more is ended, and its source fails: for now,
    and for good when that was so in three runs. 8K video needs most of the default. Linux only. None: no limit."""
    downloads: int = Field(4, ge=1)
    """Sources that are fetched at once."""
    batch_size: int = Field(64, ge=1)
    """Sources per batch: the unit that Prefect sees."""
    batches_in_flight: int = Field(2, ge=1)
    """Batches that run at once, so that the cores stay busy while one of them ends."""
    task_runner: Literal["threads", "dask", "ray"] = "threads"
    """Where batches run: on this machine, or on a cluster (needs the extra ``cluster``)."""
    cluster_address: str | None = None
    """Address of the Dask or Ray cluster. None: a local one is started."""
    store: str | None = None
    """Folder of this machine where downloads are kept. None: ``state/downloads`` in the output, which must then be local."""
    store_budget_bytes: int | None = Field(None, gt=0)
    """Disk space for downloads: above it, files that are finished with are deleted. None: all are kept."""
    scratch: str | None = None
    """Folder of this machine for files in the making. None: ``state/tmp`` in the output if it is local, else the system's."""
    min_free_bytes: int = Field(1 << 30, ge=0)
    """A build refuses to start with less free disk space than this."""
    keep_previews: bool = True
    """Whether the small frames and the sound that an encoder takes in (some 80 KB a second) stay when their source has finished, so
    that another encoder needs no new decode."""
    previews_budget_bytes: int | None = Field(None, gt=0)
    """Disk space for them: above it, those of the sources that finished longest ago are deleted. None: no limit."""
    decode_again: bool = False
    """Whether a source whose small frames and sound are gone is fetched and decoded once more when an encoder needs them. Otherwise
    that source fails, and says so; the next run tries it again. Those that are damaged are made again in any case."""
    try_failed_again: bool = False
    """Whether what failed for good (a dead link, a damaged file) is fetched and decoded once more. What may pass by itself (a broken
    connection, a stall, 429, a killed process) every run tries again anyway."""
    bugs: Literal["stop", "record"] = "stop"
    """What an error of this program itself does, which says nothing of the source that it met: ``stop`` ends the build with its
    traceback. ``record``, for long runs, writes it to the log, ends the source as failed (``bug``), and goes on; such sources are
    counted wherever the build says how it goes, and tried again by every other version of the program, or by the same one with
    ``try_failed_again``."""
    keep_cuts: bool = True
    """Whether cut clips stay beside the shards, so that another threshold or another order of shards needs no new cut."""


class BuildRecipe(Settings):
    """How to build one dataset."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the dataset."""
    output: str
    """Folder of the dataset: a path (relative ones from where the build is started) or a URL of fsspec (s3://bucket/folder)."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Source lists: paths or URLs."""
    download: DownloadSettings = DownloadSettings()
    """How sources are fetched."""
    probe: ProbeSettings = ProbeSettings()
    """What the header of a file may rule out."""
    scenes: SceneSettings = SceneSettings()
    """How cuts are found."""
    clips: ClipSettings = ClipSettings()
    """How scenes are divided into clips."""
    measure: MeasureSettings = MeasureSettings()
    """What is measured in the one decode."""
    encoders: EncoderPairSettings | None = None
    """The shared space of picture and sound. None: agreement is not measured."""
    agreement: AgreementSettings = AgreementSettings()
    """What is asked of sound and picture in that space."""
    judge: JudgeSettings = JudgeSettings()
    """The rules for a clip."""
    cut: CutSettings = CutSettings()
    """How kept clips are encoded."""
    dedup: DedupSettings = DedupSettings()
    """When two clips are the same."""
    split: SplitSettings = SplitSettings()
    """Training, validation and test parts."""
    balance: BalanceSettings = BalanceSettings()
    """How many clips one class or source may give."""
    shards: ShardSettings = ShardSettings()
    """How samples are packed."""
    execution: ExecutionSettings = ExecutionSettings()
    """Where and how wide the build runs."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        wanted, cosine = self.agreement.false_accept_rate, self.judge.min_agreement
        if wanted is not None and cosine is not None:
            raise ValueError(
                f"judge.min_agreement = {cosine:g} and agreement.false_accept_rate = {wanted:g} are two answers to one "
                "question: keep one of them"
            )
        if self.encoders is None and (wanted is not None or cosine is not None):
            named = "judge.min_agreement" if wanted is None else "agreement.false_accept_rate"
            raise ValueError(f"{named} needs encoders: without them agreement is not measured")
        return self

    def per_source_hash(self, rule: AgreementRule | None = None, encoder_id: str | None = None) -> str:
        """Names everything that decides what becomes of one source on its own: the settings, ``rule`` for what they ask
        of agreement (by its numbers, wherever they come from), and the encoders by what is in their files."""
        decisive = {"download", "probe", "scenes", "clips", "measure", "encoders", "agreement", "judge", "cut"}
        settled = self.model_dump_json(include=decisive, exclude={**_RESOLVED, "download": {"check_for_changes"}})
        asked = rule.model_dump_json(exclude={"origin", "calibration_id"}) if rule and rule.enforced else None
        return stable_hash(settled, asked, encoder_id, length=24)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> BuildRecipe:
    """Reads a recipe. ``changes`` are like ``clips.length_seconds=4``: the value is TOML, or text where it is not.

    Raises RecipeError with every problem at once, each with its field's name.
    """
    return read_recipe(BuildRecipe, path, changes)
