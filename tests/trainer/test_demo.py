"""The demo of the whole model: which of the samples it makes videos of, and what it says where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SourceListError
from trainer.demo import held_out_sounds, main
from trainer.result_page.videos import PageSound

HEADER = "url,split,label\n"


def test_the_held_out_samples_are_those_of_the_source_list(tmp_path: Path) -> None:
    rows = [
        "file:///somewhere/else/rain%20one.mp4,validation,rain|thunder",
        "file:///somewhere/else/rain-2.mp4,train,rain",
        "samples/ocean.mp4,validation,ocean",
        "samples/fire.mp4,,fire",
    ]
    (tmp_path / "sources.csv").write_text(HEADER + "\n".join(rows) + "\n")
    assert held_out_sounds(tmp_path) == [
        PageSound(tmp_path / "rain one.mp4", ("rain", "thunder")),
        PageSound(tmp_path / "ocean.mp4", ("ocean",)),
    ]


def test_without_held_out_samples_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceListError, match=f"{tmp_path / 'sources.csv'}: No such file.*python -m flows.demo"):
        held_out_sounds(tmp_path)
    (tmp_path / "sources.csv").write_text(HEADER + "a.mp4,train,rain\n")
    with pytest.raises(SourceListError, match="none of its sources is of the split validation"):
        held_out_sounds(tmp_path)


def test_the_command_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["--sources", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "build the demo's dataset first: python -m flows.demo" in capsys.readouterr().err
    assert not out.exists()
