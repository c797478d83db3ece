"""What is said of a limit that is none of the disk's."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

WRITE = """
import sys
from pathlib import Path
from pipeline.runtime.disk_errors import disk_error
try:
    with open(sys.argv[1], "wb") as file:
        file.write(bytes(20_000))
except OSError as error:
    print(disk_error(error, {"output": Path(sys.argv[1]).parent}))
"""


def test_a_limit_of_file_size_is_not_called_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path / "file")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("a file exceeded the largest file size of ")
    assert "ulimit -f" in done.stdout


ENCODE = """
import errno, sys
import ffmpeg
from pipeline.media.ffmpeg import run_ffmpeg
try:
    run_ffmpeg(ffmpeg.output(ffmpeg.input("anoisesrc=duration=5", f="lavfi"), sys.argv[1]))
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_a_file_that_ffmpeg_may_not_make_so_large_is_no_fault_of_its_source(tmp_path: Path) -> None:
    """What a limit says is raised as OSError, which ends the build with a word; a MediaError would be kept as the source's."""
    done = subprocess.run(
        [sys.executable, "-c", ENCODE, str(tmp_path / "sound.flac")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "EFBIG\n"
