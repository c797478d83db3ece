"""Datasets for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.tables import ClipRow
from pipeline.runtime.folder import Folder
from tests.reported import make_rows, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., tuple[Folder, list[ClipRow]]]:
    """Writes a dataset of so many clips below ``tmp_path``."""

    def make(num: int = 120, name: str = "synthetic", seed: int = 0, **options: Any) -> tuple[Folder, list[ClipRow]]:
        folder = Folder(tmp_path / name)
        rows = make_rows(num, seed=seed, rule=options.get("rule"))
        write_dataset(folder, rows, name=name, **options)
        return folder, rows

    return make
