"""``samples.parquet``, one row for every clip that was ever measured, and ``embeddings.parquet``.

Rows are sorted by key and the bytes depend on the rows alone. Memory does not grow with the number of rows, but for
their keys: sorted runs wait in temporary files.
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
"""Columns of ``embeddings.parquet``; how long its vectors are, the encoders say."""
_RUN_ROWS = 20_000
_GROUP_ROWS = 10_000
T = TypeVar("T")

_ARROW_TYPES = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}  # a bool is an int


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip. The fields of its measures stand beside the others; where they were not measured, they are null."""

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
    """Why it was rejected."""
    detail: str
    """By how much it was rejected; of a failed one, the error."""
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
    """Columns of ``samples.parquet``: the plain fields of :class:`ClipRow`, then those of the measures."""
    columns = [_column(ClipRow, f.name, f.name in ("key", "state")) for f in fields(ClipRow) if f.name not in _MEASURES]
    columns += [_column(kind, f.name, False) for kind in _MEASURES.values() for f in fields(kind)]
    names = [column.name for column in columns]
    assert len(set(names)) == len(names), f"two columns have one name: {sorted(names)}"
    return pa.schema(columns)


def _column(kind: type, name: str, required: bool) -> pa.Field:
    annotation = typing.get_type_hints(kind)[name]
    if typing.get_origin(annotation) is types.UnionType:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        return pa.field(name, pa.list_(_ARROW_TYPES[typing.get_args(annotation)[0]]), nullable=False)
    base = next(arrow for plain, arrow in _ARROW_TYPES.items() if annotation is plain or issubclass(annotation, plain))
    return pa.field(name, base, nullable=not required)


def write_samples(rows: Iterable[ClipRow], folder: Folder, scratch: Path | None = None) -> FileRecord:
    """Writes ``samples.parquet``; the rows may come in any order. Raises ValueError where a key comes twice.

    ``scratch`` is a folder for temporary files; None: the system's.
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
    """Text that UTF-8 can hold (file names may hold bytes that are no text); anything else as it is."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_embeddings(rows: Iterable[EmbeddingRow], folder: Folder, scratch: Path | None = None) -> FileRecord | None:
    """Writes ``embeddings.parquet``; the rows may come in any order. None, and no file, where there are no rows.
    ``scratch`` is as of :func:`write_samples`.

    Raises ValueError where a key comes twice, or an embedding has another width than the first one or is not finite.
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
    """Writes a table anew without the clips of some sources: the bytes that it would have had without them.

    Raises what :func:`read_table` raises.
    """
    with folder.open(name) as file, pq.ParquetFile(file) as table:
        schema = _as_written(table.schema_arrow)
    return _write_sorted(_without(read_table(folder, name), source_ids, schema), schema, folder, name, scratch)


def _as_written(schema: pa.Schema) -> pa.Schema:
    """The schema that a table was written with: Parquet has its own name for what is in a list."""
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
    """Sorts by ``key`` through temporary runs, then writes row groups of a fixed size."""
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
    """Row groups in the order of the keys. The rows of a group that come from one run lie side by side in it."""
    if not runs:
        return
    keys = pa.chunked_array([chunk for run in runs for chunk in run["key"].chunks], pa.string())
    owners = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    order = pc.sort_indices(keys).to_numpy()
    taken = np.zeros(len(runs), np.int64)
    last = None
    for start in range(0, len(order), _GROUP_ROWS):
        counts = np.bincount(owners[order[start : start + _GROUP_ROWS]], minlength=len(runs))
        parts = [runs[i].slice(taken[i], counts[i]) for i in np.flatnonzero(counts).tolist()]
        taken += counts
        table = pa.concat_tables(parts).combine_chunks()
        table = table.take(pc.sort_indices(table["key"])).cast(schema)
        for key in table["key"].to_pylist():
            if key == last:
                raise ValueError(f"clip {key} comes twice")
            last = key
        yield table


def read_table(
    folder: Folder, name: str = SAMPLES_NAME, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of the table, in the order of the keys; all columns, or those named.

    Raises FileNotFoundError where there is no table, ManifestError for one that is damaged or has other columns.
    """
    where = f"{folder}/{name}"
    try:
        # pre_buffer: all that was read would stay in memory
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
    """Raises ManifestError where one of the columns is not there, or holds something else."""
    kinds = {field.name: field.type for field in (_EMBEDDINGS if name == EMBEDDINGS_NAME else samples_schema())}
    here = {field.name: field.type for field in _as_written(schema)}
    needed = (
        columns if columns is not None else [*_EMBEDDINGS.names] if name == EMBEDDINGS_NAME else ["key", "source_id"]
    )
    for column in needed:
        if column not in here:
            raise ManifestError(f"{where} has no column {column}: it is not the table of a build; {BUILD_AGAIN}")
        kind, wanted = here[column], kinds.get(column, here[column])
        is_vector = pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float16()
        if not (is_vector if column in _VECTORS and name == EMBEDDINGS_NAME else kind == wanted):
            raise ManifestError(f"{where}: its column {column} holds {kind}, not {wanted}; {BUILD_AGAIN}")
