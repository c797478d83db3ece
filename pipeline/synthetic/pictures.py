"""The painter of each kind of scene, and the frames of a scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from pipeline.synthetic.fresh import Rain, River, Waterfall
from pipeline.synthetic.land import Fire, Wind
from pipeline.synthetic.sea import Ocean, Underwater
from pipeline.synthetic.storm import Thunder
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
"""For each kind of scene, a function that takes (seed, height, width, seconds) and returns the painter of that scene."""

_PAINTED_HEIGHT_PX = 270
"""Every scene is painted at this height and then resized: larger is slower, and the grain adds the fine detail."""
_GRAIN_LEVELS = 2.6
"""Standard deviation of the camera grain, in levels of 0..255."""


def scene_frames(
    kind: str, seed: int, times: Sequence[float], *, width: int, height: int, seconds: float, still: bool = False
) -> Iterator[Image]:
    """The frames of a scene at ``times`` (seconds from its start), (height, width, 3) uint8 RGB.

    A ``still`` scene repeats its first frame. A black scene has no grain.
    """
    painter = PAINTERS[kind](seed, _PAINTED_HEIGHT_PX, round(_PAINTED_HEIGHT_PX * width / height), seconds)
    grain = Grain(generator(seed, "grain"), height, width, 0.0 if kind == "black" else _GRAIN_LEVELS)
    interpolation = cv2.INTER_AREA if height < _PAINTED_HEIGHT_PX else cv2.INTER_CUBIC
    frame: Image | None = None
    for number, t in enumerate(times):
        if frame is None or not still:
            resized = cv2.resize(painter(t), (width, height), interpolation=interpolation)
            frame = grain.on(np.asarray(resized, dtype=np.uint8), number)
        yield frame
