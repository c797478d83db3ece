"""The dataset's table of clips, in DuckDB: the only file that imports it."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.dataset.tables import SAMPLES_NAME
from pipeline.errors import ReportError
from pipeline.report.catalogue import MEASURES
from pipeline.runtime.folder import Folder
from pipeline.runtime.process_folder import temporary_folder
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

REQUIRED = ("key", "source_id", "state", "start_ms", "end_ms")
_TEXT = (
    "key", "source_id", "url", "caption", "licence", "split", "state", "reason", "detail", "video_sha256", "shard",
    "encoder_id", "shown_class", "heard_class",
)  # fmt: skip
_WHOLE = (
    "start_ms", "end_ms", "scene_index", "source_width_px", "source_height_px",
    "bar_left_px", "bar_top_px", "bar_right_px", "bar_bottom_px",
)  # fmt: skip
_MADE_HERE = ("seconds", "cropped_share")
_NUMBERS = tuple(m.name for m in MEASURES if m.name not in (*_MADE_HERE, *_WHOLE))
_HASHES = ("picture_hash", "sound_hash")


class TableSettings(Settings):
    """Cores and memory for the statistics."""

    threads: int = Field(2, ge=1)
    """Cores."""
    memory_bytes: int = Field(1_200_000_000, ge=100_000_000)
    """Memory of the tables; larger ones are moved to temporary files."""


class Tables:
    """``clips``: one row for every clip, every column that the report knows, null where an older build did not measure it.

    Besides the columns of ``samples.parquet`` there are ``seconds`` (length), ``cropped_share`` (as the judge computes
    it), ``picture_id`` and ``sound_id`` (64 bits of the fingerprints).
    """

    def __init__(self, folder: Folder, settings: TableSettings | None = None) -> None:
        """Raises ReportError where ``samples.parquet`` is missing, damaged, or not a table of clips."""
        settings = settings or TableSettings()
        self.stored: Mapping[str, str] = {}
        """The columns of ``samples.parquet`` and their types."""
        self._scratch = Path(tempfile.mkdtemp(prefix="report-", dir=temporary_folder()))
        self._lock = threading.Lock()
        self._db = duckdb.connect(
            ":memory:",
            config={
                "threads": settings.threads,
                "memory_limit": f"{settings.memory_bytes // 1_000_000}MB",
                "temp_directory": str(self._scratch),
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        where = f"{folder}/{SAMPLES_NAME}"
        try:
            self._load(self._local(folder))
        except FileNotFoundError as error:
            self.close()
            raise ReportError(f"{where} does not exist: build the dataset to its end") from error
        except (duckdb.Error, OSError) as error:
            self.close()
            raise ReportError(
                f"{where} cannot be read, it is damaged: {_first_line(error)}; run the build again"
            ) from error
        except ReportError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def absent_measures(self) -> list[str]:
        """Columns of measures that the file does not have."""
        return [name for name in _NUMBERS if name not in self.stored]

    def rows(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """The answer as dicts. Safe from several threads."""
        with self._lock:
            answer = self._db.execute(query, values if values else None)
            names = [column[0] for column in answer.description or ()]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def one(self, query: str, values: Sequence[Any] = ()) -> dict[str, Any]:
        return self.rows(query, values)[0]

    def columns(self, query: str, values: Sequence[Any] = ()) -> dict[str, npt.NDArray[Any]]:
        """The result as columns, (rows,) each; missing numbers are NaN."""
        with self._lock:
            arrays = self._db.execute(query, values if values else None).fetchnumpy()
        return {
            name: column.filled(np.nan)
            if isinstance(column, np.ma.MaskedArray) and column.dtype.kind == "f"
            else np.asarray(column)
            for name, column in arrays.items()
        }

    def attach(self, name: str, table: pa.Table) -> None:
        """Copies an Arrow table into the database under that name, in place of an earlier one."""
        with self._lock:
            self._db.register("arrow_rows", table)
            self._db.execute(f'CREATE OR REPLACE TABLE "{name}" AS SELECT * FROM arrow_rows')
            self._db.unregister("arrow_rows")

    def _local(self, folder: Folder) -> Path:
        if folder.local_path is not None:
            path = folder.local_path / SAMPLES_NAME
            path.stat()
            return path
        copy = self._scratch / SAMPLES_NAME
        with folder.open(SAMPLES_NAME) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        return copy

    def _load(self, path: Path) -> None:
        types = {
            row["column_name"]: row["column_type"]
            for row in self.rows("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)])
        }
        self.stored = types
        missing = [name for name in REQUIRED if name not in types]
        if missing:
            raise ReportError(f"{path} is not the table of a dataset's clips: it has no column {', '.join(missing)}")
        parts = [_column(name, "VARCHAR", types) for name in _TEXT]
        parts += [_column(name, "BIGINT", types) for name in _WHOLE]
        parts += [_number(name, types) for name in _NUMBERS]
        parts.append(
            "coalesce(labels, []::VARCHAR[]) AS labels"
            if types.get("labels", "").endswith("[]")
            else "[]::VARCHAR[] AS labels"
        )
        parts += [
            f"hash({name}) AS {name[:-5]}_id" if name in types else f"NULL::UBIGINT AS {name[:-5]}_id"
            for name in _HASHES
        ]
        parts.append("(end_ms - start_ms) / 1000.0 AS seconds")
        self._db.execute(f"CREATE TABLE loaded AS SELECT {', '.join(parts)} FROM read_parquet(?)", [str(path)])
        self._add_cropped_share()

    def _add_cropped_share(self) -> None:
        """Computed in Python for each distinct size, as the judge does: SQL rounds otherwise."""
        size = ("source_width_px", "source_height_px", "bar_left_px", "bar_top_px", "bar_right_px", "bar_bottom_px")
        named = ", ".join(size)
        sizes = self.rows(f"SELECT DISTINCT {named} FROM loaded WHERE {' AND '.join(f'{n} IS NOT NULL' for n in size)}")
        shares = [{**row, "cropped_share": cropped_share(*row.values())} for row in sizes]
        schema = pa.schema([*((name, pa.int64()) for name in size), ("cropped_share", pa.float64())])
        self.attach("crops", pa.Table.from_pylist(shares, schema=schema))
        self._db.execute(f"CREATE TABLE clips AS SELECT * FROM loaded LEFT JOIN crops USING ({named})")
        self._db.execute("DROP TABLE loaded")


def cropped_share(width: int, height: int, left: int, top: int, right: int, bottom: int) -> float | None:
    """Share of the picture between its black bars, rounded as :func:`pipeline.judge.rules.judge_clip` rounds it."""
    if width * height <= 0:
        return None
    return round((width - left - right) * (height - top - bottom) / (width * height), 4)


def _column(name: str, kind: str, types: Mapping[str, str]) -> str:
    return f'CAST("{name}" AS {kind}) AS "{name}"' if name in types else f'NULL::{kind} AS "{name}"'


def _number(name: str, types: Mapping[str, str]) -> str:
    """SQL for a column of numbers; infinity and NaN become NULL."""
    if name not in types:
        return f'NULL::DOUBLE AS "{name}"'
    return f'CASE WHEN isfinite(CAST("{name}" AS DOUBLE)) THEN CAST("{name}" AS DOUBLE) END AS "{name}"'


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
