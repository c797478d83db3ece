"""A build on a disk that is full, and grows: ``unshare -rm python -m tests.faults.full_disk FOLDER KB GROWTH``.

Mounts a disk in memory of so many KB; whenever the build says that it is full, the disk is made so many times larger, and the same
build goes on. The sources are those of :func:`tests.faults.kill.write_videos` in ``FOLDER/videos``. Writes what each try said to
``FOLDER/said.json``, and copies the dataset to ``FOLDER/killed`` when it is done.
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
    """0: the build came to its end. 1: it did not, or not before it was told of a full disk."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    folder, size_kb, growth = Path(words[0]), int(words[1]), float(words[2])
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", str(disk)], check=True)
    recipe = folder / "killed.toml"
    recipe.write_text(RECIPE.format(output=disk / "killed", sources=folder / "videos" / "list.jsonl"))
    said: list[tuple[int, str]] = []
    for _ in range(MAX_TRIES):
        try:
            build(str(recipe))
            said.append((size_kb, ""))
            break
        except OutputError as error:
            said.append((size_kb, str(error)))
        size_kb = round(size_kb * growth)
        subprocess.run(["mount", "-o", f"remount,size={size_kb}k", str(disk)], check=True)
    shutil.copytree(disk / "killed", folder / "killed")
    (folder / "said.json").write_text(json.dumps(said))
    return 0 if not said[-1][1] and len(said) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
