"""What a test may need of the machine. A test that misses it is skipped, also where nothing else may be skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LACKS = "this machine lacks "
"""How the reason of such a skip begins."""

proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason=f"{LACKS}/proc")
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason=f"{LACKS}a second core")
