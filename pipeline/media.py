"""The only file that runs ffmpeg (through ffmpeg-python) or opens PyAV."""

from __future__ import annotations

import functools

import imageio_ffmpeg


@functools.cache
def ffmpeg_path() -> str:
    """Path of the ffmpeg program: ``$IMAGEIO_FFMPEG_EXE``, else the one in the package."""
    return str(imageio_ffmpeg.get_ffmpeg_exe())
