"""The recipe of a build: composes the settings of all stages, and loads them from TOML. The settings of a stage are in its own file."""

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
"""Settings that are resolved into an :class:`AgreementRule`. The rule's numbers take their place in hashes."""


class ExecutionSettings(Settings):
    """Where and how parallel a build runs. None of these settings changes what is built."""

    workers: int | None = Field(None, ge=1)
    """Processes that decode and encode at once. None: one per core."""
    process_memory_bytes: int | None = Field(4 << 30, ge=256 << 20)
    """Memory limit of one process that decodes or encodes. A process above it is ended, and its source fails: until the next run, and
    after three such runs for good. 8K video needs most of the default. Linux only. None: no limit."""
    downloads: int = Field(4, ge=1)
    """Sources that are fetched at once."""
    batch_size: int = Field(64, ge=1)
    """Sources per batch. A batch is one task in Prefect."""
    batches_in_flight: int = Field(2, ge=1)
    """Batches that run at once, so that the cores stay busy while one of them ends."""
    task_runner: Literal["threads", "dask", "ray"] = "threads"
    """Where batches run: on this machine, or on a cluster (needs the extra ``cluster``)."""
    cluster_address: str | None = None
    """Address of the Dask or Ray cluster. None: a local one is started."""
    store: str | None = None
    """Local folder for downloads. None: ``state/downloads`` in the output, which must then be local."""
    store_budget_bytes: int | None = Field(None, gt=0)
    """Disk space for downloads. Above it, files of finished sources are deleted. None: all are kept."""
    scratch: str | None = None
    """Local folder for temporary files. None: ``state/tmp`` in the output if it is local, else the system's."""
    min_free_bytes: int = Field(1 << 30, ge=0)
    """A build refuses to start with less free disk space than this."""
    keep_previews: bool = True
    """Whether the previews (small frames and sound for the encoders, about 80 KB per second) are kept when their source has finished, so
    that another encoder needs no new decode."""
    previews_budget_bytes: int | None = Field(None, gt=0)
    """Disk space for previews. Above it, those of the sources that finished longest ago are deleted. None: no limit."""
    decode_again: bool = False
    """Whether a source is fetched and decoded once more if an encoder needs its previews and they were deleted. False: the source fails
    with a message that says so, and the next run tries again. Damaged previews are always made again."""
    try_failed_again: bool = False
    """Whether sources with a lasting failure (a dead link, a damaged file) are tried once more. Sources with a transient failure (a
    broken connection, a stall, status 429, a killed process) are tried again by every run."""
    bugs: Literal["stop", "record"] = "stop"
    """What happens at a bug of this program. ``stop``: the build ends with the traceback. ``record``, for long runs: the traceback goes to
    the log, the source fails with the code ``bug``, and the build goes on. Such sources are counted in progress and summary. Another
    version of the program tries them again, and this version with ``try_failed_again``."""
    keep_cuts: bool = True
    """Whether cut clips are kept beside the shards, so that another threshold or another order of shards needs no new cut."""


class BuildRecipe(Settings):
    """How to build one dataset."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the dataset."""
    output: str
    """Folder of the dataset: a path, relative to the working directory, or a URL of fsspec (s3://bucket/folder)."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Source lists: paths or URLs."""
    download: DownloadSettings = DownloadSettings()
    """How sources are fetched."""
    probe: ProbeSettings = ProbeSettings()
    """Limits for the header of a file."""
    scenes: SceneSettings = SceneSettings()
    """How cuts between scenes are detected."""
    clips: ClipSettings = ClipSettings()
    """How scenes are divided into clips."""
    measure: MeasureSettings = MeasureSettings()
    """What is measured while the file is decoded."""
    encoders: EncoderPairSettings | None = None
    """The shared space of picture and sound. None: agreement is not measured."""
    agreement: AgreementSettings = AgreementSettings()
    """How well sound and picture must agree in that space."""
    judge: JudgeSettings = JudgeSettings()
    """The limits that a clip must keep."""
    cut: CutSettings = CutSettings()
    """How kept clips are encoded."""
    dedup: DedupSettings = DedupSettings()
    """When two clips are duplicates or related."""
    split: SplitSettings = SplitSettings()
    """Training, validation and test parts."""
    balance: BalanceSettings = BalanceSettings()
    """How many clips one class or source may give."""
    shards: ShardSettings = ShardSettings()
    """How samples are packed."""
    execution: ExecutionSettings = ExecutionSettings()
    """Where and how parallel the build runs."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        wanted, cosine = self.agreement.false_accept_rate, self.judge.min_agreement
        if wanted is not None and cosine is not None:
            raise ValueError(
                f"judge.min_agreement = {cosine:g} and agreement.false_accept_rate = {wanted:g} both set the threshold of "
                "agreement: keep one of them"
            )
        if self.encoders is None and (wanted is not None or cosine is not None):
            named = "judge.min_agreement" if wanted is None else "agreement.false_accept_rate"
            raise ValueError(f"{named} needs encoders: without them agreement is not measured")
        return self

    def per_source_hash(self, rule: AgreementRule | None = None, encoder_id: str | None = None) -> str:
        """Hash of everything that determines the outcome of a source on its own: the settings, the numbers of ``rule`` (whatever their
        origin), and the encoders by the content of their files."""
        decisive = {"download", "probe", "scenes", "clips", "measure", "encoders", "agreement", "judge", "cut"}
        settings = self.model_dump_json(include=decisive, exclude={**_RESOLVED, "download": {"check_for_changes"}})
        thresholds = rule.model_dump_json(exclude={"origin", "calibration_id"}) if rule and rule.enforced else None
        return stable_hash(settings, thresholds, encoder_id, length=24)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> BuildRecipe:
    """Reads a recipe. ``changes``: such as ``clips.length_seconds=4``, with a value in TOML, or a text if it is not TOML.

    Raises RecipeError, which lists all problems, each with the name of its field.
    """
    return read_recipe(BuildRecipe, path, changes)
