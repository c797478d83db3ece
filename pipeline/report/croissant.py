"""Croissant: the dataset described in JSON-LD, as mlcroissant and dataset search engines read it (version 1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.tables import SAMPLES_NAME

NAME = "croissant.json"
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
    "equivalentProperty": "cr:equivalentProperty",
    "samplingRate": "cr:samplingRate",
}
_TYPES = {
    "VARCHAR": "sc:Text",
    "DOUBLE": "sc:Float",
    "BIGINT": "sc:Integer",
    "BOOLEAN": "sc:Boolean",
    "VARCHAR[]": "sc:Text",
}
_MEDIA = {"mp4": "video/mp4", "flac": "audio/flac", "json": "application/json"}


def croissant(facts: Mapping[str, Any], manifest: Manifest, columns: Mapping[str, str]) -> dict[str, Any]:
    """The description. Paths are relative to the dataset's folder, where it belongs.

    ``columns`` are those of ``samples.parquet`` with DuckDB's types.
    """
    head = facts["headline"]
    licences = [each["licence"] for each in head["licences"] if each["licence"]]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": f"{head['num_kept']} clips of landscape video with sound, {head['kept_hours']:.2f} hours, "
        f"{head['num_classes']} classes. Built with Hearscape; the tars are WebDatasets.",
        "version": "1.0.0",
        "license": licences or "unknown",
        "keywords": [
            "landscape",
            "video",
            "sound",
            *[c["label"] for c in facts["classes"]["listed"][:20] if c["label"] and c["kept"]],
        ],
        "distribution": [*_files(manifest), *_shards(manifest), *_members(manifest)],
        "recordSet": [_clips(columns)],
    }


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path,
            "contentUrl": file.path,
            "contentSize": f"{file.num_bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": file.sha256,
        }
        for file in manifest.files
    ]


def _shards(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": shard.path,
            "name": shard.path,
            "contentUrl": shard.path,
            "contentSize": f"{shard.num_bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.sha256,
            "description": f"{shard.num_samples} samples of {shard.split}",
        }
        for shard in manifest.shards
    ]


def _members(manifest: Manifest) -> list[dict[str, Any]]:
    """The files inside the tars, one set for each rendition and kind."""
    sets = []
    for rendition in manifest.renditions:
        tars = [{"@id": shard.path} for shard in manifest.shards if shard.rendition == rendition.name]
        for member in manifest.members:
            if tars and member in _MEDIA:
                sets.append(
                    {
                        "@type": "cr:FileSet",
                        "@id": f"{rendition.name}-{member}",
                        "name": f"{rendition.name}-{member}",
                        "containedIn": tars,
                        "encodingFormat": _MEDIA[member],
                        "includes": f"*.{member}",
                    }
                )
    return sets


def _clips(columns: Mapping[str, str]) -> dict[str, Any]:
    fields = []
    for name, kind in columns.items():
        entry: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"clips/{name}",
            "name": name,
            "dataType": _TYPES.get(kind, "sc:Text"),
            "source": {"fileObject": {"@id": SAMPLES_NAME}, "extract": {"column": name}},
        }
        if kind.endswith("[]"):
            entry["repeated"] = True
        fields.append(entry)
    return {
        "@type": "cr:RecordSet",
        "@id": "clips",
        "name": "clips",
        "key": {"@id": "clips/key"},
        "description": "One row for every clip that was measured, kept or not, with every measure.",
        "field": fields,
    }
