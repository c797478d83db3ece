"""Tables of the columns and keys of a dataset's files, made of the schemas and records that write them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping

import pyarrow as pa
from pydantic import BaseModel
from settings_tables import Table, markdown_of, settings_text, tables_of

from pipeline.build.shard_contents import sample_json
from pipeline.dataset.ledger import ledger_line
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.shards import member_names
from pipeline.dataset.tables import ClipRow, samples_schema
from pipeline.dataset.withdrawn import Withdrawn
from pipeline.report.advice import FAILURES, REASONS
from pipeline.schema import AgreementMeasures, PictureMeasures, Reason, SoundMeasures, TimeMeasures

MEASURES = (PictureMeasures, SoundMeasures, TimeMeasures, AgreementMeasures)

PLAIN_COLUMNS = {
    "key": "The clip's key: id of the source, start and end in milliseconds.",
    "source_id": "Id of the source.",
    "url": "Its link or path, without passwords and signatures.",
    "labels": "Its classes, as listed.",
    "caption": "Its caption, as listed. Null: none.",
    "licence": "Its licence, as listed. Null: none.",
    "state": "`kept`, `rejected` or `failed`.",
    "video_sha256": "SHA-256 of the source's file.",
    "scene_index": "Which scene of the source the clip lies in, from 0.",
    "start_ms": "Start in the source's timeline, milliseconds.",
    "end_ms": "End, not included, milliseconds.",
    "source_width_px": "Width of the source's picture as displayed, pixels.",
    "source_height_px": "Its height, pixels.",
    "source_fps": "Its frame rate, frames a second.",
    "num_frames": "Frames that were measured.",
    "bar_left_px": "Black bar at the left, pixels of the displayed frame.",
    "bar_top_px": "At the top.",
    "bar_right_px": "At the right.",
    "bar_bottom_px": "At the bottom.",
    "encoder_id": "Names the encoders by what is in their files.",
    "motion_lag_seconds": "How much later the sound rises than motion, seconds.",
    "light_lag_seconds": "How much later the sound rises than brightness, seconds.",
}
"""Columns that the code says nothing of, since their names do."""

LEDGER_KEYS = {
    "source_id": "Id of the source.",
    "url": "Its link or path, without passwords and signatures.",
    "state": "`kept`, `rejected`, `failed` or `pending`.",
    "reason": "Why it was rejected.",
    "detail": "By how much, with both numbers.",
    "failure": "What failed: `stage`, `code`, `message`, and `transient`, which says whether every run tries again.",
    "listed_at": "`FILE:LINE` of its row.",
    "content_sha256": "SHA-256 of its file.",
    "num_scenes": "Scenes that were found in it.",
    "clips": "Its clips, each with `key`, `state`, `reason`, `detail` and `failure`.",
}

SAMPLE_KEYS = {
    "key": "The sample's key.",
    "source_id": "Id of the source.",
    "url": "Its link or path, without passwords and signatures.",
    "start_ms": "Start in the source's timeline, milliseconds.",
    "end_ms": "End, not included, milliseconds.",
    "scene_index": "Which scene of the source, from 0.",
    "split": "`train`, `validation` or `test`.",
    "labels": "Classes, as listed.",
    "caption": "Caption, as listed.",
    "licence": "Licence, as listed.",
    "provenance": "What the site said: title, uploader, licence, date, page; where it said anything.",
    "video_sha256": "SHA-256 of the source's file.",
    "source_video": "The source's tracks, size, frame rate and codecs; which track was taken, of how many, and why.",
    "picture": "Measures of the picture, named as in `samples.parquet`.",
    "sound": "Measures of the sound.",
    "in_time": "Whether both have their events together. Null: not measured.",
    "agreement": "Agreement and what goes with it. Null: the build had no encoders.",
    "cut": "Of `KEY.flac`: `num_samples`, `sample_rate_hz`, `num_channels`.",
    "renditions": "Of `KEY.mp4` in each rendition: `width`, `height`, `num_frames`.",
}


def field_docs(kind: type) -> dict[str, str]:
    """The string under each field of a class, by the field's name."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[field.target.id] = str(text.value.value)
    return docs


def samples_table() -> str:
    """Every column of ``samples.parquet``, with its type."""
    docs = dict(PLAIN_COLUMNS)
    for documented in (ClipRow, *MEASURES):
        docs |= field_docs(documented)
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for column in samples_schema():
        is_list = pa.types.is_list(column.type)
        kind = f"list of {column.type.value_type}" if is_list else str(column.type)
        lines.append(f"| `{column.name}` | {kind}{' or null' * column.nullable} | {markdown_of(docs[column.name])} |")
    return "\n".join(lines)


def manifest_tables() -> str:
    """Every key of ``manifest.json``."""
    return _record_tables(Manifest)


def withdrawn_tables() -> str:
    """Every key of ``withdrawn.json``."""
    return _record_tables(Withdrawn)


def _record_tables(kind: type[BaseModel]) -> str:
    lines: list[str] = []
    seen: set[type[BaseModel]] = set()
    for table in tables_of(kind):
        if table.kind not in seen:
            seen.add(table.kind)
            if table.path:
                lines += ["", f"**`{table.path}`**: {markdown_of(table.kind.__doc__ or '')}"]
            lines += ["", _keys(table)]
    return "\n".join(lines)


def _keys(table: Table) -> str:
    rows = []
    for line in settings_text(table).splitlines()[4:-2]:
        name, kind, _, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
        rows.append(f"| {name.partition('{')[0]} | {kind} | {meaning.partition('Settings: [')[0]} |")
    return "\n".join(["| key | value | meaning |", "|---|---|---|", *rows])


def ledger_table() -> str:
    """Every key of a line of the ledger, in the order in which it is written."""
    return _checked("ledger_line", _keys_written(ledger_line), LEDGER_KEYS)


def sample_table() -> str:
    """Every key of ``KEY.json``."""
    return _checked("sample_json", ["key", *_keys_written(sample_json)], SAMPLE_KEYS)


def members_table() -> str:
    """What a sample is made of."""
    meanings = {
        "flac": "The sound, lossless and sample-accurate.",
        "json": "What is known of the clip: see below.",
        "mp4": "H.264 (or AV1) with AAC sound, playable by itself; key frames every `cut.gop_seconds`.",
        "picture.npy": "Embedding of the picture, float16; with encoders only.",
        "sound.npy": "Embedding of the sound, float16; with encoders only.",
    }
    return _checked("member_names", list(member_names(has_embeddings=True)), meanings, "member", "KEY.")


def reasons_table() -> str:
    """Every reason for which something is rejected."""
    return _advice("reason", [str(reason) for reason in Reason], REASONS)


def failures_table() -> str:
    """The codes of failures that have an advice."""
    rows = [f"| `{code}` | {markdown_of(advice)} |" for code, advice in sorted(FAILURES.items())]
    return "\n".join(["| code | what to do |", "|---|---|", *rows])


def _advice(head: str, names: list[str], texts: Mapping[str, tuple[str, str]]) -> str:
    rows = [f"| `{name}` | {' | '.join(markdown_of(text) for text in texts[name])} |" for name in names]
    return "\n".join([f"| {head} | meaning | what to do |", "|---|---|---|", *rows])


def _checked(what: str, names: list[str], meanings: Mapping[str, str], head: str = "key", prefix: str = "") -> str:
    """A table of the names that the code writes. Raises ValueError where the meanings are of other names."""
    if set(names) != set(meanings):
        raise ValueError(f"{what} writes {sorted(names)}, but the documentation knows {sorted(meanings)}")
    rows = [f"| `{prefix}{name}` | {markdown_of(meanings[name])} |" for name in names]
    return "\n".join([f"| {head} | meaning |", "|---|---|", *rows])


def _keys_written(function: Callable[..., object]) -> list[str]:
    """The keys of the dict that a function returns, in its order."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    returned = next(node.value for node in ast.walk(tree) if isinstance(node, ast.Return))
    assert isinstance(returned, ast.Dict)
    return [str(key.value) for key in returned.keys if isinstance(key, ast.Constant)]


TABLES: dict[str, Callable[[], str]] = {
    "samples": samples_table,
    "manifest": manifest_tables,
    "withdrawn": withdrawn_tables,
    "ledger": ledger_table,
    "sample": sample_table,
    "members": members_table,
    "reasons": reasons_table,
    "failures": failures_table,
}
"""By the name after which a page asks for it: ``<!-- table: samples -->``."""
