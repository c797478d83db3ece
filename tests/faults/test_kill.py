"""Builds that are killed at any moment end as if nothing had happened. Many more rounds: ``python -m tests.faults.kill``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.runtime.folder import Folder
from pipeline.runtime.output_lock import OutputLock
from tests.faults.kill import Findings, Trial, finished_files, names_of, play_round, run_rounds, write_videos


def test_killed_builds_end_like_one_that_was_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("k")
    found = run_rounds(folder, rounds=2, seed=3)
    assert found.problems == []
    temporary = folder / "clean" / "tmp"
    own = f"hearscape-{os.getuid()}"
    assert {str(path.relative_to(temporary)) for path in temporary.rglob("*")} <= {own, f"{own}/lock"}
    assert found.num_kills >= 2
    assert found.num_finished > found.num_made_again == 0


def test_the_harness_notices_work_that_was_done_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("k")
    trial = Trial(tmp_path / "trial", write_videos(tmp_path / "videos"), encoders=False, command=False)
    assert trial.finish() == ""
    before = finished_files(trial.output)
    forgotten = min(name for name in before if name.startswith("state/measured/"))
    (trial.output / forgotten).rename(tmp_path / "elsewhere")  # so that its inode is not given away
    for record in (trial.output / "state" / "done").rglob("*.jsonl"):
        record.unlink()
    assert trial.finish() == ""
    findings = Findings()
    play_round(trial, [], trial, findings)
    assert findings.problems == []
    after = finished_files(trial.output)
    again = {name for name, inode in after.items() if before.get(name) != inode}
    key = Path(forgotten).stem
    assert forgotten in again
    assert again <= {forgotten, *(f"state/previews/{key[:2]}/{key}{suffix}" for suffix in (".flac", ".frames.npz"))}


def test_a_killed_command_leaves_nothing_in_the_making(tmp_path: Path) -> None:
    output = Folder(tmp_path / "set")
    code = (
        "import os, signal, sys\n"
        "from pipeline.runtime.output_lock import OutputLock\n"
        "from pipeline.runtime.folder import Folder\n"
        "output = Folder(sys.argv[1])\n"
        "lock = OutputLock(output)\n"
        "lock.take()\n"
        "os.makedirs(sys.argv[1] + '/state/tmp/1-x')\n"
        "with output.writing('shards/96/train-000000.tar') as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, output.url], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = names_of(tmp_path / "set") - {"state/lock"}
    assert re.fullmatch(r"shards/96/\.train-000000\.tar\.[0-9a-f]{8}\.part", left)
    (tmp_path / "set" / ".mine.part").write_bytes(b"of the user")
    with OutputLock(output):
        assert names_of(tmp_path / "set") == {"state/lock", ".mine.part"}
        assert not (tmp_path / "set" / "state" / "tmp").exists()
    assert (tmp_path / "set" / "state" / "lock").read_bytes() == b""


def test_two_commands_do_not_share_an_output(tmp_path: Path) -> None:
    output = Folder(tmp_path / "set")
    with OutputLock(output):
        other = OutputLock(output)
        with pytest.raises(OutputError, match="another build is running there"):
            other.take()
        other.release()
        assert (tmp_path / "set" / "state" / "lock").read_bytes() == b"at work\n"
    with OutputLock(output):
        pass
