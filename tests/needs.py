"""What a test may need of the machine. A test that misses it is skipped, also where nothing else may be skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

LACKS = "this machine lacks "
"""How the reason of such a skip begins."""

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason=f"{LACKS}/proc, where Linux lists processes"
)
