"""The painters by name, and the frames of a scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from pipeline.synthetic.fresh import Rain, River, Waterfall
from pipeline.synthetic.land import Fire, Thunder, Wind
from pipeline.synthetic.sea import Ocean, Underwater
from pipeline.synthetic.textures import Grain, Image, Painter, generator, uniform_image

PAINTERS: dict[str, Callable[[int, int, int, float], Painter]] = {
    "rain": Rain,
    "ocean": Ocean,
    "fire": Fire,
    "thunder": Thunder,
    "wind": Wind,
    "river": River,
    "waterfall": Waterfall,
    "underwater": Underwater,
    "black": lambda seed, height, width, seconds: lambda t: uniform_image(height, width, (0, 0, 0)),
}
"""Kind of scene -> (seed, height, width, seconds) -> its painter."""

_LINES = 270
"""Scenes are painted this high and then brought to size: detail costs time, and the grain sharpens."""
_GRAIN = 2.6


def scene_frames(
    kind: str, seed: int, times: Sequence[float], *, width: int, height: int, seconds: float, still: bool = False
) -> Iterator[Image]:
    """The frames of a scene at ``times`` (seconds from its start), (height, width, 3) uint8 RGB.

    A ``still`` scene is one frame, again and again. A black one has no grain.
    """
    painter = PAINTERS[kind](seed, _LINES, round(_LINES * width / height), seconds)
    grain = Grain(generator(seed, "grain"), height, width, 0.0 if kind == "black" else _GRAIN)
    smaller = height < _LINES
    shown: Image | None = None
    for number, t in enumerate(times):
        if shown is None or not still:
            picture = cv2.resize(
                painter(t), (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
            )
            shown = grain.on(np.asarray(picture, dtype=np.uint8), number)
        yield shown
