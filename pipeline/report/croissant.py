"""The dataset's description in Croissant 1.0 (JSON-LD), which mlcroissant and dataset search engines read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.dataset.manifest import FileRecord, Manifest, ShardRecord
from pipeline.dataset.tables import SAMPLES_NAME

if TYPE_CHECKING:
    import mlcroissant

NAME = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
_TYPES = {"VARCHAR": "TEXT", "DOUBLE": "FLOAT", "BIGINT": "INTEGER", "BOOLEAN": "BOOL", "VARCHAR[]": "TEXT"}
"""Names in mlcroissant.DataType, by DuckDB's types."""
_MEDIA = {"mp4": "video/mp4", "flac": "audio/flac", "json": "application/json"}


def croissant(facts: Mapping[str, Any], manifest: Manifest, columns: Mapping[str, str]) -> str:
    """The description as JSON. Its paths are relative to the dataset's folder, into which it must be written.

    ``columns`` are those of ``samples.parquet`` with DuckDB's types.
    """
    croissants = _library()
    head = facts["headline"]
    licences = [each["licence"] for each in head["licences"] if each["licence"]]
    classes = [c["label"] for c in facts["classes"]["listed"][:20] if c["label"] and c["kept"]]
    description = croissants.Metadata(
        name=manifest.name,
        description=f"{head['num_kept']} clips of landscape video with sound, {head['kept_hours']:.2f} hours, "
        f"{head['num_classes']} classes. Built with Hearscape; the tars are WebDatasets.",
        conforms_to=CONFORMS_TO,
        version="1.0.0",
        license=licences or ["unknown"],
        keywords=["landscape", "video", "sound", *classes],
        distribution=[
            *_files(croissants, manifest),
            *_shards(croissants, manifest),
            *_members(croissants, manifest),
        ],
        record_sets=[_clips(croissants, columns)],
    ).to_json()
    return json.dumps(description, ensure_ascii=False, indent=1) + "\n"


def _library() -> Any:
    """mlcroissant, which takes a second to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies warn of deprecations while they are imported
        import mlcroissant  # noqa: PLC0415
    return mlcroissant


def _files(croissants: Any, manifest: Manifest) -> list[mlcroissant.FileObject]:
    return [_file_object(croissants, file, "application/x-parquet") for file in manifest.files]


def _shards(croissants: Any, manifest: Manifest) -> list[mlcroissant.FileObject]:
    return [
        _file_object(
            croissants, shard, "application/x-tar", description=f"{shard.num_samples} samples of {shard.split}"
        )
        for shard in manifest.shards
    ]


def _file_object(croissants: Any, file: FileRecord | ShardRecord, kind: str, **more: str) -> mlcroissant.FileObject:
    return croissants.FileObject(
        id=file.path,
        name=file.path,
        content_url=file.path,
        content_size=f"{file.num_bytes} B",
        encoding_formats=[kind],
        sha256=file.sha256,
        **more,
    )


def _members(croissants: Any, manifest: Manifest) -> list[mlcroissant.FileSet]:
    """The files inside the tars, one set for each rendition and kind."""
    sets = []
    for rendition in manifest.renditions:
        tars = [shard.path for shard in manifest.shards if shard.rendition == rendition.name]
        for member in manifest.members:
            if tars and member in _MEDIA:
                name = f"{rendition.name}-{member}"
                sets.append(
                    croissants.FileSet(
                        id=name,
                        name=name,
                        contained_in=tars,
                        encoding_formats=[_MEDIA[member]],
                        includes=[f"*.{member}"],
                    )
                )
    return sets


def _clips(croissants: Any, columns: Mapping[str, str]) -> mlcroissant.RecordSet:
    fields = [
        croissants.Field(
            id=f"clips/{name}",
            name=name,
            data_types=getattr(croissants.DataType, _TYPES.get(kind, "TEXT")),
            repeated=True if kind.endswith("[]") else None,
            source=croissants.Source(file_object=SAMPLES_NAME, extract=croissants.Extract(column=name)),
        )
        for name, kind in columns.items()
    ]
    return croissants.RecordSet(
        id="clips",
        name="clips",
        key="clips/key",
        description="One row for every clip that was measured, kept or not, with every measure.",
        fields=fields,
    )
