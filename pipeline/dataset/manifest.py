"""The manifest of a built dataset: what was built, from what, and the checksum of every file. Light to import.

python -m pipeline.manifest verify manifests/NAME [--deep]
python -m pipeline.manifest withdraw manifests/NAME --source ID...
"""

from __future__ import annotations

import functools
import json
import os
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import ManifestError, ShardError
from pipeline.judge.agreement_rule import AgreementRule, Calibration
from pipeline.runtime.bounded import read_bounded, reading_failures
from pipeline.settings import JsonRecord

if TYPE_CHECKING:
    from pipeline.runtime.folder import Folder
    from pipeline.runtime.remote import Retries

SCHEMA_VERSION: Literal[1] = 1
FORMAT: Literal["hearscape-dataset"] = "hearscape-dataset"
FILE_NAME = "manifest.json"
MAX_BYTES = 256 << 20
"""Largest manifest that is read. It holds about a million shards."""
_NOT_BUILT = "does not exist: no dataset was built there, or not to its end"

Name = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
RelativePath = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
"""A path below the manifest's folder, with '/', without '..'."""
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
Count = Field(ge=0)


class Rendition(JsonRecord):
    """One family of shards: all clips at one size."""

    name: str = Name
    """Also the name of its folder in ``shards/``."""
    short_side_px: int | None = Field(default=None, ge=1)
    """Short side of the picture; less where the source is smaller. None: as the source."""
    video_codec: str
    """Codec of the picture in ``<key>.mp4``, such as ``h264``."""
    sound_codec: str
    """Codec of the sound in ``<key>.mp4``, such as ``aac``. The lossless sound is in ``<key>.flac``."""


class ShardRecord(JsonRecord):
    """One tar."""

    path: str = RelativePath
    """Relative to the manifest's folder: ``shards/<rendition>/<split>-000000.tar``."""
    rendition: str
    split: str
    num_samples: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    sha256: str = Sha256

    @property
    def index_path(self) -> str:
        """Path of the JSON beside the tar that says where each member lies in it."""
        return self.path.removesuffix(".tar") + ".index.json"


class FileRecord(JsonRecord):
    """One file beside the shards."""

    path: str = RelativePath
    num_rows: int | None = Field(default=None, ge=0)
    """Number of rows. None: the file is not a table."""
    num_bytes: int = Count
    sha256: str = Sha256


class Counts(JsonRecord):
    """Number of sources, or of clips, by outcome. Each is in one state."""

    states: dict[str, int]
    """``kept``, ``rejected``, ``failed``, ``pending``."""
    reasons: dict[str, int] = Field(default_factory=dict)
    """The rejected ones by reason; adds up to ``states["rejected"]``."""
    failures: dict[str, int] = Field(default_factory=dict)
    """The failed ones by error code; adds up to ``states["failed"]``."""
    splits: dict[str, int] = Field(default_factory=dict)
    """The kept ones by split; adds up to ``states["kept"]``. Empty: not counted."""
    classes: dict[str, int] = Field(default_factory=dict)
    """The kept ones by label. One with several labels counts in each."""

    @property
    def total(self) -> int:
        return sum(self.states.values())

    @model_validator(mode="after")
    def _add_up(self) -> Counts:
        for name, state in (("reasons", "rejected"), ("failures", "failed"), ("splits", "kept")):
            parts, whole = getattr(self, name), self.states.get(state, 0)
            if (parts or name != "splits") and sum(parts.values()) != whole:
                raise ValueError(f"{name} add up to {sum(parts.values())}, but {whole} are {state}")
        return self


class Manifest(JsonRecord):
    """Everything about a built dataset that a reader needs. It holds no time of day, so the same build gives the same bytes."""

    format: Literal["hearscape-dataset"] = FORMAT
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(min_length=1)
    recipe: dict[str, Any]
    """The resolved recipe, without secrets."""
    versions: dict[str, str]
    """Version of this program and of each tool that determines the bytes."""
    encoder_id: str | None = None
    """The encoder pair that made the embeddings. None: there are none."""
    agreement_rule: AgreementRule | None = None
    """The thresholds of agreement that every kept clip reaches, and their origin. None: agreement was not measured, or not enforced."""
    calibration: Calibration | None = None
    """How well agreement separates true pairs from wrong ones on this dataset's own clips. None: too few clips, or no encoders."""
    members: tuple[str, ...] = Field(min_length=1, strict=False)
    """The files of every sample, sorted: ``flac``, ``json``, ``mp4``, ``picture.npy``, ``sound.npy``."""
    renditions: tuple[Rendition, ...] = Field(min_length=1, strict=False)
    splits: tuple[str, ...] = Field(strict=False)
    shards: tuple[ShardRecord, ...] = Field(strict=False)
    """Sorted by rendition, then path."""
    files: tuple[FileRecord, ...] = Field(strict=False)
    sources: Counts
    clips: Counts

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        paths = [shard.path for shard in self.shards] + [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a path is listed twice")
        names = [rendition.name for rendition in self.renditions]
        for shard in self.shards:
            if shard.rendition not in names or shard.split not in self.splits:
                raise ValueError(
                    f"{shard.path} has rendition {shard.rendition} and split {shard.split}, which are not both listed"
                )
        kept = self.clips.states.get("kept", 0)
        for name in names:
            num_samples = sum(shard.num_samples for shard in self.shards if shard.rendition == name)
            if num_samples != kept:
                raise ValueError(
                    f"the shards of rendition {name} hold {num_samples} samples, but {kept} clips are kept"
                )
        return self

    def shards_of(self, rendition: str, split: str) -> tuple[ShardRecord, ...]:
        """The tars of one rendition and split, by path."""
        shards = [shard for shard in self.shards if (shard.rendition, shard.split) == (rendition, split)]
        return tuple(sorted(shards, key=lambda shard: shard.path))


def canonical_json(value: Any, indent: int | None = None) -> bytes:
    """JSON with the same bytes for the same value: sorted keys, shortest floats, one newline at the end.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    # File names may hold bytes that are not UTF-8: Python's \udcxx for them is escaped, which is valid JSON.
    return (text + "\n").encode("utf-8", "backslashreplace")


def write_manifest(manifest: Manifest, folder: Folder) -> str:
    """Writes ``manifest.json`` into the dataset's folder atomically; returns its location."""
    folder.write_bytes(FILE_NAME, canonical_json(manifest.model_dump(mode="json"), indent=1))
    return join(folder.url, FILE_NAME)


def read_manifest(location: str | os.PathLike[str], retries: Retries | None = None) -> Manifest:
    """The manifest at ``location``: its own path or URL, or that of its folder. Raises ManifestError, which lists all problems.

    ``retries``: how often requests to a URL are tried again. None: the defaults.
    """
    path = manifest_path(location)
    return parse_manifest(_read(path, retries), path)


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Parses the bytes of the manifest at ``path``. Raises ManifestError, which lists all problems."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is damaged: it is not JSON ({error}); build the dataset again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ManifestError(f"{path} is not the manifest of a dataset: its format is not {FORMAT!r}")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"{path} has schema version {version!r}, this program reads {SCHEMA_VERSION}: "
            "use the version of this program that built it, or build the dataset again"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors()]
        raise ManifestError("\n  ".join([f"{path} cannot be read:", *problems])) from error


def manifest_path(location: str | os.PathLike[str]) -> str:
    """Location of the manifest: ``location`` itself if it names a JSON file, else ``manifest.json`` in that folder."""
    text = os.fspath(location)
    return text if text.endswith(".json") else join(text, FILE_NAME)


def dataset_root(location: str | os.PathLike[str]) -> str:
    """The folder that the paths in a manifest are relative to; join them with :func:`join`."""
    head, _, _ = manifest_path(location).rpartition("/")
    return head or ("." if "/" not in manifest_path(location) else "/")


def join(root: str, path: str) -> str:
    """A relative path below a folder or URL."""
    return f"{root.rstrip('/')}/{path}" if root.strip("/") else posixpath.join(root, path)


def find_manifests(folder: str | os.PathLike[str], retries: Retries | None = None) -> list[str]:
    """Locations of the manifests of all datasets below a folder or URL, sorted; a location that names a manifest gives itself.

    Other files of that name, hidden folders and the shards are skipped. ``retries``: as in :func:`read_manifest`.
    Raises ManifestError if there is no such folder, or if it cannot be listed.
    """
    root = os.fspath(folder)
    if root.endswith(".json"):
        return [root] if _is_manifest(root, retries) else []
    if "://" in root:
        paths = _manifests_at_url(root, retries)
    else:
        if not Path(root).is_dir():
            raise ManifestError(f"{root} is not a folder")
        paths = _manifests_on_disk(root)
    return sorted(path for path in paths if _is_manifest(path, retries))


def _manifests_on_disk(root: str) -> list[str]:
    paths = []
    for place, folders, files in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if _is_entered(name)]
        if FILE_NAME in files:
            paths.append(join(place, FILE_NAME))
    return paths


def _manifests_at_url(root: str, retries: Retries | None) -> list[str]:
    """Lists the folders itself: fsspec's walk skips folders that cannot be listed, without an error."""
    import fsspec  # noqa: PLC0415

    from pipeline.runtime.remote import Retries, retried  # noqa: PLC0415

    paths = []
    failures: tuple[type[Exception], ...] = (ValueError, ImportError, *reading_failures())
    try:
        fs, top = fsspec.core.url_to_fs(root)
        waiting = [top.rstrip("/")]
        while waiting:
            place = waiting.pop()
            listing = f"{place}/"
            for entry in retried(functools.partial(fs.ls, listing, detail=True), listing, retries or Retries()):
                path = entry["name"].rstrip("/")
                name = path.rpartition("/")[2]
                is_folder = entry["type"] == "directory"
                if path == place:  # some servers and file systems list the folder itself, too
                    if not is_folder:
                        raise NotADirectoryError(place)
                elif is_folder and _is_entered(name):
                    waiting.append(path)
                elif not is_folder and name == FILE_NAME:
                    paths.append(fs.unstrip_protocol(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ManifestError(f"{root} is not a folder") from error
    except failures as error:
        raise ManifestError(
            f"{root} cannot be listed: {error}; check the address, or name one dataset's manifest.json"
        ) from error
    return paths


def _is_entered(name: str) -> bool:
    return not name.startswith(".") and name != "shards"


def _is_manifest(path: str, retries: Retries | None) -> bool:
    """Whether the file is a dataset's manifest. One that is no JSON counts: reading it reports the damage."""
    try:
        values = json.loads(_read(path, retries))
    except (ValueError, RecursionError):
        return True
    return isinstance(values, Mapping) and values.get("format") == FORMAT


def _read(path: str, retries: Retries | None) -> bytes:
    if "://" in path:
        return _fetched(path, retries)
    try:
        with Path(path).open("rb") as file:
            return read_bounded(file, MAX_BYTES)
    except FileNotFoundError as error:
        raise ManifestError(f"{path} {_NOT_BUILT}") from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error


def _fetched(path: str, retries: Retries | None) -> bytes:
    from pipeline.runtime.remote import Remote, Retries  # noqa: PLC0415 - most datasets are on this machine

    folder, _, name = path.rpartition("/")
    try:
        return Remote(folder, retries or Retries()).read(name)
    except ShardError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ManifestError(f"{path} {_NOT_BUILT}") from error
        raise ManifestError(f"{path}: {error}") from error
