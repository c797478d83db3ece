"""Builds on a disk that is too small and grows: ``unshare -rm python -m tests.faults.full_disk FOLDER KB GROWTH``.

Mounts a disk of KB kilobytes in memory. Whenever the build fails because the disk is full, the disk is made GROWTH times larger, and the
same build continues. The sources are those of :func:`tests.faults.kill.write_videos` in ``FOLDER/videos``. Writes the disk's size and the
message of each try to ``FOLDER/messages.json``, and copies the finished dataset to ``FOLDER/killed``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import OutputError
from tests.faults.kill import RECIPE, build

MAX_TRIES = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 the build failed at least once and then succeeded, 1 it did not."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    folder, size_kb, growth = Path(words[0]), int(words[1]), float(words[2])
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(disk)], check=True)
    recipe = folder / "killed.toml"
    recipe.write_text(RECIPE.format(output=disk / "killed", sources=folder / "videos" / "list.jsonl"))
    messages: list[tuple[int, str]] = []
    for _ in range(MAX_TRIES):
        try:
            build(str(recipe))
            messages.append((size_kb, ""))
            break
        except OutputError as error:
            messages.append((size_kb, str(error)))
        size_kb = round(size_kb * growth)
        subprocess.run(["mount", "-o", f"remount,size={size_kb}k", str(disk)], check=True)
    shutil.copytree(disk / "killed", folder / "killed")
    (folder / "messages.json").write_text(json.dumps(messages))
    has_succeeded = not messages[-1][1]
    return 0 if has_succeeded and len(messages) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
