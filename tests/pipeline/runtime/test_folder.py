"""Folders by path or URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.runtime.folder import Folder


def test_a_path_that_would_be_taken_apart_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a folder with '::' in its path cannot be used"):
        Folder(tmp_path / "a::b")
    assert list(tmp_path.iterdir()) == []
