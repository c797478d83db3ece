"""``samples.parquet``, one row for every measured clip, and ``embeddings.parquet``.

Rows are sorted by key, and the bytes depend on the rows only. Rows are sorted in runs that are stored in temporary files, so only
the memory for the keys grows with the number of rows.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.manifest import FileRecord
from pipeline.errors import ManifestError
from pipeline.runtime.bounded import reading_failures
from pipeline.runtime.folder import Folder
from pipeline.runtime.hashing import HashingWriter
from pipeline.schema import (
    AgreementMeasures,
    PictureMeasures,
    Reason,
    SoundMeasures,
    State,
    TimeMeasures,
    source_of_key,
)

SAMPLES_NAME = "samples.parquet"
EMBEDDINGS_NAME = "embeddings.parquet"

BUILD_AGAIN = "build the dataset again, which writes it anew"

_VECTORS = ("picture", "sound")
_EMBEDDINGS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("key", "encoder_id")),
        *(pa.field(name, pa.list_(pa.float16()), nullable=False) for name in _VECTORS),
    ]
)
"""Columns of ``embeddings.parquet``. The length of the vectors depends on the encoders."""
_RUN_ROWS = 20_000
"""Rows that are sorted in memory at once."""
_GROUP_ROWS = 10_000
"""Rows of a row group of the file."""
T = TypeVar("T")

_ARROW_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}  # a bool is an int


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip. In the table the fields of its measures are columns beside the others, null where they were not measured."""

    key: str
    source_id: str
    url: str
    labels: tuple[str, ...]
    caption: str | None
    licence: str | None
    split: str | None
    """Null: not kept."""
    state: State
    reason: Reason | None
    """Why it was rejected. Null: it was not."""
    detail: str
    """Of a rejected clip the measured value and the limit; of a failed clip the error."""
    video_sha256: str | None
    scene_index: int | None
    start_ms: int
    end_ms: int
    shard: str | None
    """File name of its tar, the same in every rendition: ``train-000000.tar``. Null: not kept."""
    source_width_px: int | None
    source_height_px: int | None
    source_fps: float | None
    picture: PictureMeasures | None = None
    sound: SoundMeasures | None = None
    in_time: TimeMeasures | None = None
    agreement: AgreementMeasures | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingRow:
    """The embeddings of one clip, shape (D,), stored as float16."""

    key: str
    encoder_id: str
    picture: NDArray[Any]
    sound: NDArray[Any]


_MEASURES = {
    "picture": PictureMeasures,
    "sound": SoundMeasures,
    "in_time": TimeMeasures,
    "agreement": AgreementMeasures,
}


def samples_schema() -> pa.Schema:
    """Columns of ``samples.parquet``: the fields of :class:`ClipRow` that are no measures, then the fields of the measures."""
    columns = [_column(ClipRow, f.name, f.name in ("key", "state")) for f in fields(ClipRow) if f.name not in _MEASURES]
    columns += [_column(kind, f.name, False) for kind in _MEASURES.values() for f in fields(kind)]
    names = [column.name for column in columns]
    assert len(set(names)) == len(names), f"two columns have one name: {sorted(names)}"
    return pa.schema(columns)


def _column(kind: type, name: str, required: bool) -> pa.Field:
    """The column for the field ``name`` of a dataclass."""
    annotation = typing.get_type_hints(kind)[name]
    if typing.get_origin(annotation) is types.UnionType:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return pa.field(name, pa.list_(_ARROW_TYPES[typing.get_args(annotation)[0]]), nullable=False)
    base = next(arrow for plain, arrow in _ARROW_TYPES.items() if annotation is plain or issubclass(annotation, plain))
    return pa.field(name, base, nullable=not required)


def write_samples(rows: Iterable[ClipRow], folder: Folder, scratch: Path | None = None) -> FileRecord:
    """Writes ``samples.parquet``. The rows may come in any order. Raises ValueError if a key occurs twice.

    ``scratch``: a folder for temporary files. None: the system's.
    """
    schema = samples_schema()
    batches = (pa.RecordBatch.from_pylist([_values(row) for row in chunk], schema=schema) for chunk in _chunks(rows))
    return _write_sorted(batches, schema, folder, SAMPLES_NAME, scratch)


def _values(row: ClipRow) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for f in fields(row):
        value = getattr(row, f.name)
        if f.name not in _MEASURES:
            values[f.name] = [_text(item) for item in value] if isinstance(value, tuple) else _text(value)
        elif value is not None:
            values |= {g.name: _text(getattr(value, g.name)) for g in fields(value)}
    return values


def _text(value: Any) -> Any:
    """A text with bytes that are not UTF-8, as file names may hold, escaped. Other values are returned unchanged."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_embeddings(rows: Iterable[EmbeddingRow], folder: Folder, scratch: Path | None = None) -> FileRecord | None:
    """Writes ``embeddings.parquet``. The rows may come in any order. Without rows it removes the file and returns None.
    ``scratch``: as in :func:`write_samples`.

    Raises ValueError if a key occurs twice, or if an embedding has another width than the first one or is not finite in float16.
    """
    chunks = _chunks(rows)
    first = next(chunks, None)
    if first is None:
        folder.remove(EMBEDDINGS_NAME)
        return None
    widths = {name: len(getattr(first[0], name)) for name in ("picture", "sound")}
    columns = [pa.field(name, pa.list_(pa.float16(), width), nullable=False) for name, width in widths.items()]
    text = [pa.field(name, pa.string(), nullable=False) for name in ("key", "encoder_id")]
    schema = pa.schema([*text, *columns])
    batches = (_embedding_batch(chunk, widths, schema) for chunk in itertools.chain([first], chunks))
    return _write_sorted(batches, schema, folder, EMBEDDINGS_NAME, scratch)


def drop_sources(folder: Folder, name: str, source_ids: Collection[str], scratch: Path | None = None) -> FileRecord:
    """Writes a table without the clips of some sources, with the bytes that a build without these sources would write.

    Raises what :func:`read_table` raises.
    """
    with folder.open(name) as file, pq.ParquetFile(file) as table:
        schema = _as_written(table.schema_arrow)
    return _write_sorted(_without(read_table(folder, name), source_ids, schema), schema, folder, name, scratch)


def _as_written(schema: pa.Schema) -> pa.Schema:
    """The schema that a table was written with. Parquet renames the field inside a list, which is undone here."""
    fields = []
    for column in schema:
        kind = column.type
        if pa.types.is_fixed_size_list(kind):
            kind = pa.list_(kind.value_type, kind.list_size)
        elif pa.types.is_list(kind):
            kind = pa.list_(kind.value_type)
        fields.append(pa.field(column.name, kind, nullable=column.nullable))
    return pa.schema(fields)


def _without(
    batches: Iterable[pa.RecordBatch], source_ids: Collection[str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        stays = [source_of_key(key) not in source_ids for key in batch["key"].to_pylist()]
        yield batch.filter(pa.array(stays, pa.bool_())).cast(schema)


def _embedding_batch(rows: Sequence[EmbeddingRow], widths: dict[str, int], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([row.key for row in rows]), pa.array([row.encoder_id for row in rows])]
    for name, width in widths.items():
        for row in rows:
            if getattr(row, name).shape != (width,):
                raise ValueError(
                    f"clip {row.key}: its {name} embedding has shape {getattr(row, name).shape}, not ({width},)"
                )
        matrix_ND = np.stack([getattr(row, name) for row in rows]).astype(np.float16)
        finite = np.isfinite(matrix_ND).all(axis=1)
        if not finite.all():
            raise ValueError(f"clip {rows[int(finite.argmin())].key}: its {name} embedding is not finite in float16")
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(matrix_ND.ravel()), width))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _chunks(rows: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _RUN_ROWS)):
        yield chunk


def _write_sorted(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, folder: Folder, name: str, scratch: Path | None
) -> FileRecord:
    """Sorts each batch by ``key`` into a temporary run, then merges the runs and writes row groups of a fixed size."""
    with contextlib.ExitStack() as stack:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hearscape-", dir=scratch)))
        runs: list[pa.Table] = []
        for batch in batches:
            path = own / f"{len(runs)}.arrow"
            with pa.ipc.new_file(path, schema) as run:
                run.write_batch(batch.take(pc.sort_indices(batch["key"])))
            runs.append(pa.ipc.open_file(stack.enter_context(pa.memory_map(str(path)))).read_all())
        with folder.writing(name) as file:
            out = HashingWriter(file)
            with pq.ParquetWriter(out, schema, compression="zstd", write_statistics=True) as writer:
                for group in _merged(runs, schema):
                    writer.write_table(group, row_group_size=_GROUP_ROWS)
    num_rows = sum(len(run) for run in runs)
    return FileRecord(path=name, num_rows=num_rows, num_bytes=out.num_bytes, sha256=out.sha256)


def _merged(runs: Sequence[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Merges sorted runs: row groups in the order of the keys. Each run is sorted, so its rows of a group are contiguous in it."""
    if not runs:
        return
    keys = pa.chunked_array([chunk for run in runs for chunk in run["key"].chunks], pa.string())
    run_of_row = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    order = pc.sort_indices(keys).to_numpy()
    num_taken = np.zeros(len(runs), np.int64)
    last_key = None
    for start in range(0, len(order), _GROUP_ROWS):
        counts = np.bincount(run_of_row[order[start : start + _GROUP_ROWS]], minlength=len(runs))
        parts = [runs[i].slice(num_taken[i], counts[i]) for i in np.flatnonzero(counts).tolist()]
        num_taken += counts
        table = pa.concat_tables(parts).combine_chunks()
        table = table.take(pc.sort_indices(table["key"])).cast(schema)
        for key in table["key"].to_pylist():
            if key == last_key:
                raise ValueError(f"clip {key} comes twice")
            last_key = key
        yield table


def read_table(
    folder: Folder, name: str = SAMPLES_NAME, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of the table in the order of the keys. ``columns``: the columns to read. None: all.

    Raises FileNotFoundError if there is no table, and ManifestError if it is damaged or has other columns.
    """
    where = f"{folder}/{name}"
    try:
        # pre_buffer=True would keep all that was read in memory
        with folder.open(name) as file, pq.ParquetFile(file, pre_buffer=False) as table:
            _check_columns(table.schema_arrow, name, columns, where)
            for batch in table.iter_batches(_GROUP_ROWS, columns=None if columns is None else list(columns)):
                if "key" in batch.schema.names and batch["key"].null_count:
                    raise ManifestError(f"{where} is damaged: a clip has no key; {BUILD_AGAIN}")
                yield batch
    except FileNotFoundError:
        raise
    except (pa.ArrowException, *reading_failures()) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ManifestError(f"{where} cannot be read ({reason}); {BUILD_AGAIN}") from error


def _check_columns(schema: pa.Schema, name: str, columns: Sequence[str] | None, where: str) -> None:
    """Raises ManifestError if a column is missing or has another type. ``where``: the table's location, for messages."""
    has_vectors = name == EMBEDDINGS_NAME
    expected_types = {field.name: field.type for field in (_EMBEDDINGS if has_vectors else samples_schema())}
    types = {field.name: field.type for field in _as_written(schema)}
    if columns is None:
        columns = _EMBEDDINGS.names if has_vectors else ["key", "source_id"]
    for column in columns:
        if column not in types:
            raise ManifestError(f"{where} has no column {column}: it is not the table of a build; {BUILD_AGAIN}")
        kind, expected = types[column], expected_types.get(column, types[column])
        if has_vectors and column in _VECTORS:  # their length depends on the encoders
            fits = pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16()
        else:
            fits = kind == expected
        if not fits:
            raise ManifestError(f"{where}: its column {column} holds {kind}, not {expected}; {BUILD_AGAIN}")
