"""The dataset card: Markdown with the front matter that Hugging Face reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pipeline.dataset.manifest import Manifest
from pipeline.dataset.shards import FOLDER

NAME = "README.md"
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_LICENCES = {
    "cc0-1.0": "cc0-1.0",
    "cc0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-2.0": "cc-by-2.0",
    "cc-by-2.5": "cc-by-2.5",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-sa-3.0": "cc-by-sa-3.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-3.0": "cc-by-nc-3.0",
    "cc-by-nc-2.0": "cc-by-nc-2.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0": "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0": "cc-by-nc-nd-4.0",
    "mit": "mit",
    "apache-2.0": "apache-2.0",
}
"""Hugging Face's licence ids by those of source lists; any other licence is ``other``."""


def dataset_card(facts: Mapping[str, Any], manifest: Manifest | None) -> str:
    """The card of a dataset. Texts from source lists are escaped, so that they cannot add front matter or markup."""
    head = facts["headline"]
    lines = ["---", *_front_matter(facts, manifest), "---", "", f"# {_plain(facts['name'])}", ""]
    lines.append(
        f"{head['num_kept']:,} clips of landscape video with sound, {_length(head['kept_hours'])}, "
        f"{head['num_classes']} classes, from {head['num_kept_sources']:,} sources. Built with Hearscape."
    )
    lines += [f"\n> {_plain(note)}" for note in facts["notes"]]
    lines += [
        "",
        "## What is in it",
        "",
        *_table(
            ("split", "clips", "length", "sources"),
            [(s["split"], f"{s['clips']:,}", _length(s["hours"]), f"{s['sources']:,}") for s in facts["splits"]],
        ),
    ]
    lines += [
        "",
        *_table(
            ("class", "clips kept", "length", "sources"),
            [
                (c["label"] or "(no label)", f"{c['kept']:,}", _length(c["hours"]), f"{c['sources']:,}")
                for c in facts["classes"]["listed"][:30]
                if c["kept"]
            ],
        ),
    ]
    lines += [
        "",
        *_table(
            ("rendition", "short side", "picture", "sound", "shards", "size"),
            [
                (
                    r["name"],
                    f"{r['short_side_px']} px" if r["short_side_px"] else "as the source",
                    r["video_codec"],
                    f"{r['sound_codec']}, and FLAC beside it",
                    r["num_shards"],
                    _bytes(r["num_bytes"]),
                )
                for r in head["renditions"]
            ],
        ),
    ]
    if manifest is not None:
        members = ", ".join(f"`KEY.{member}`" for member in manifest.members)
        lines += ["", f"WebDataset tars; every sample has {members}. `manifest.json` has the checksum of every file."]
    lines += [
        "",
        "## What was left out",
        "",
        *_table(
            ("of", "reason", "how many", "meaning"),
            [(r["what"], r["reason"], f"{r['count']:,}", r["meaning"]) for r in facts["rejections"]],
        ),
    ]
    lines += [
        "",
        *_table(
            ("failed", "stage", "how many"), [(f["code"], f["stage"], f"{f['count']:,}") for f in facts["failures"]]
        ),
    ]
    lines += ["", *_agreement(facts.get("agreement")), "## Licences", ""]
    lines += _table(
        ("licence of the source, as listed", "clips"),
        [(x["licence"] or "not stated", f"{x['clips']:,}") for x in head["licences"]],
    )
    lines += [
        "",
        "Each sample's JSON names its source, its licence, and where it was found. `report.html` shows all of this, and the clips.",
        "",
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _front_matter(facts: Mapping[str, Any], manifest: Manifest | None) -> list[str]:
    head = facts["headline"]
    licences = sorted(
        {_LICENCES.get((x["licence"] or "").lower().replace(" ", "-"), "other") for x in head["licences"]}
    ) or ["other"]
    values: dict[str, Any] = {
        "pretty_name": facts["name"],
        "license": licences[0] if len(licences) == 1 else licences,
        "tags": ["webdataset", "audio-visual", "landscape", "hearscape"],
        "task_categories": ["text-to-video", "audio-classification", "video-classification"],
        "size_categories": [next((name for limit, name in _SIZES if head["num_kept"] < limit), "10M<n<100M")],
    }
    if "other" in licences:
        values["license_name"] = "mixed"
    if manifest is not None and manifest.shards:
        values["configs"] = [
            {
                "config_name": rendition.name,
                **({"default": True} if index == 0 else {}),
                "data_files": [
                    {"split": split, "path": f"{FOLDER}/{rendition.name}/{split}-*.tar"}
                    for split in sorted(manifest.splits, key=lambda s: (s != "train", s))
                ],
            }
            for index, rendition in enumerate(manifest.renditions)
        ]
    # JSON is valid YAML, and escapes any character in a name
    return [f"{name}: {json.dumps(value, ensure_ascii=True)}" for name, value in values.items()]


def _agreement(agreement: Mapping[str, Any] | None) -> list[str]:
    if agreement is None or not agreement.get("pairs"):
        return []
    pairs, min_cosine = agreement["pairs"], agreement["threshold"]
    threshold = f" Every clip has a cosine of at least {min_cosine:.4g}." if min_cosine is not None else ""
    return [
        "## Agreement of sound and picture",
        "",
        f"A picture with its own sound scores higher than with another's in {100 * pairs['auc']:.1f} % of pairs "
        f"(area under the curve).{threshold}",
        "",
    ]


def _table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    return lines + [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows]


def _plain(value: Any) -> str:
    """The text of a value on one line, with the special characters of Markdown and HTML escaped."""
    text = " ".join(str(value).split())
    return (
        re.sub(r"([\\`*_\[\]|<>#!~$])", r"\\\1", text)
        .replace("&", "&amp;")
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
    )


def _length(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{hours:,.1f} h"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
