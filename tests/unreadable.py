"""Files that may not be read or written, for tests that run as root: without root's right to pass over permissions."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_CAPGET, _CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}[platform.machine()]
_VERSION_3 = 0x20080522
_FILE_RIGHTS = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Rights(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def permissions_count() -> Iterator[None]:
    """While the block runs, this thread is held to the permissions of files, also as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, rights = _Header(_VERSION_3, 0), (_Rights * 2)()
    assert libc.syscall(_CAPGET, ctypes.byref(header), rights) == 0
    before = rights[0].effective
    rights[0].effective = before & ~_FILE_RIGHTS
    assert libc.syscall(_CAPSET, ctypes.byref(header), rights) == 0
    try:
        yield
    finally:
        rights[0].effective = before
        assert libc.syscall(_CAPSET, ctypes.byref(header), rights) == 0
