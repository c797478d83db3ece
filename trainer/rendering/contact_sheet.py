"""A contact sheet: one row for each sound, with its name, frames of its video over time, and the spectrogram below them.

Shape suffixes: M mel bands, T mel frames, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import OutputError

NUM_SHOWN = 8
"""Frames in a row."""
MAX_ROWS = 200
"""Rows of one sheet."""
TILE_PX, STRIP_PX, LABEL_PX, GAP_PX = 128, 56, 190, 10
TITLE_SIZE, NOTE_SIZE = 17, 13
PAPER, INK, PALE = (250, 250, 248), (28, 30, 34), (110, 114, 120)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One sound and its video."""

    name: str
    note: str
    """A second line, smaller."""
    frames: Sequence[NDArray[np.uint8]]
    """RGB (H, W, 3) of any size, from first to last; :func:`tile` makes small ones."""
    mel_MT: NDArray[np.float32]
    """0..1, lowest band first. It covers the share ``sound_share`` of the video."""
    sound_share: float = 1.0
    """Share of the video that has sound, 0..1; the rest is silence."""


def shown_frames(num_frames: int) -> list[int]:
    """The indices of the frames that a row shows: the middles of ``NUM_SHOWN`` equal parts; all frames of a shorter video."""
    number = min(NUM_SHOWN, num_frames)
    return [int((part + 0.5) * num_frames / number) for part in range(number)]


def tile(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame (H, W, 3), scaled to the size in the sheet, so that the whole frame need not stay in memory."""
    side = TILE_PX - 2  # a gap between neighbours
    larger = max(frame.shape[:2]) > side
    scaled = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA if larger else cv2.INTER_CUBIC)
    return np.asarray(scaled, np.uint8)


def draw_sheet(rows: Sequence[SheetRow]) -> NDArray[np.uint8]:
    """The sheet, (H, W, 3) RGB. Frames are scaled to ``TILE_PX``. The spectrogram has the time axis of the frames above it."""
    width = LABEL_PX + NUM_SHOWN * TILE_PX + 2 * GAP_PX
    row_px = TILE_PX + STRIP_PX + GAP_PX
    sheet = Image.new("RGB", (width, GAP_PX + row_px * len(rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(NOTE_SIZE)
    for index, row in enumerate(rows):
        top = GAP_PX + index * row_px
        lines = wrapped(row.name, title, LABEL_PX - 2 * GAP_PX)
        for line, text in enumerate(lines):
            pen.text((GAP_PX, top + line * 22), text, fill=INK, font=title)
        for line, text in enumerate(row.note.split("\n")):
            pen.text((GAP_PX, top + 6 + len(lines) * 22 + line * 17), text, fill=PALE, font=small)
        if not row.frames:
            continue
        tile_width = NUM_SHOWN * TILE_PX // len(row.frames)
        for place, frame in enumerate(row.frames):
            left = LABEL_PX + place * tile_width + (tile_width - TILE_PX) // 2
            sheet.paste(Image.fromarray(tile(frame)), (left, top))
        sheet.paste(Image.fromarray(strip(row.mel_MT, row.sound_share)), (LABEL_PX, top + TILE_PX))
    return np.asarray(sheet)


def strip(
    mel_MT: NDArray[np.float32], sound_share: float, width_px: int = NUM_SHOWN * TILE_PX, height_px: int = STRIP_PX
) -> NDArray[np.uint8]:
    """The spectrogram, (height_px, width_px, 3) RGB, high frequencies on top; black after the share of the width that has sound."""
    drawn = np.zeros((height_px, width_px, 3), np.uint8)
    sound_px = max(1, min(width_px, round(width_px * sound_share)))
    grey = (np.flipud(mel_MT).clip(0, 1) * 255).astype(np.uint8)
    scaled = cv2.resize(grey, (sound_px, height_px), interpolation=cv2.INTER_AREA)
    drawn[:, :sound_px] = cv2.applyColorMap(scaled, cv2.COLORMAP_MAGMA)[:, :, ::-1]
    return drawn


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: float) -> list[str]:
    """The text in at most three lines, none wider than ``width_px``. A longer text is cut and ends in an ellipsis."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < 3:
        count = len(rest)
        while count > 1 and font.getlength(rest[:count]) > width_px:
            count -= 1
        cut = max(rest.rfind(sign, 0, count) + 1 for sign in " _-.") if count < len(rest) else count
        count = cut or count
        lines.append(rest[:count].rstrip())
        rest = rest[count:]
    if rest:
        lines[-1] = f"{lines[-1][:-1]}…"
    return lines


def write_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Writes the PNG ``path`` through a temporary name. Raises OutputError if it cannot be written."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(draw_sheet(rows)[:, :, ::-1]))
    if not done:
        raise OutputError(f"{path}: a sheet of {len(rows)} rows cannot be written as PNG; take fewer sounds")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
