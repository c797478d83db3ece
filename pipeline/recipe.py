"""The recipe of a build: the settings of every stage, composed, and loaded from TOML. Each stage's settings sit in its own file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.balance import BalanceSettings
from pipeline.clips import ClipSettings
from pipeline.cut import CutSettings
from pipeline.dedup import DedupSettings
from pipeline.download import DownloadSettings
from pipeline.encoders.pair import EncoderPairSettings
from pipeline.errors import RecipeError
from pipeline.judge import JudgeSettings, ProbeSettings
from pipeline.measure import MeasureSettings
from pipeline.scenes import SceneSettings
from pipeline.schema import stable_hash
from pipeline.settings import Settings
from pipeline.shard import ShardSettings
from pipeline.split import SplitSettings


class ExecutionSettings(Settings):
    """Where and how wide a build runs. Nothing here changes what is built."""

    workers: int | None = Field(None, ge=1)
    """Processes that decode and encode at once. None: one per core."""
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

    def per_source_hash(self) -> str:
        """Names everything that decides what becomes of one source on its own."""
        decisive = {"download", "probe", "scenes", "clips", "measure", "encoders", "judge", "cut"}
        return stable_hash(self.model_dump_json(include=decisive), length=24)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> BuildRecipe:
    """Reads a recipe. ``changes`` are like ``clips.length_seconds=4``: the value is TOML, or text where it is not.

    Raises RecipeError with every problem at once, each with its field's name.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: not TOML: {error}") from error
    for change in changes:
        _apply(values, change)
    try:
        # JSON mode: a list of TOML may stand for a tuple, and nothing else is bent
        return BuildRecipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise RecipeError("\n  ".join([f"recipe {path}:", *problems_of(error)])) from error


def problems_of(error: ValidationError) -> list[str]:
    """One line for each problem: field, what is wrong, the value."""
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field}: there is no such setting")
        elif problem["type"] == "missing":
            lines.append(f"{field}: missing")
        else:
            lines.append(f"{field}: {problem['msg']} (got {problem['input']!r:.200})")
    return lines


def _apply(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {change!r}: write it like clips.length_seconds=4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip().lower() in ("none", "null") else text
    for part in parts[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {change!r}: {part} is a value, it has no settings inside")
        values = inner
    values[parts[-1]] = value
