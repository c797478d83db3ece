"""The validation of the video stage: strips of frames, short videos, and the measure of whether the sound matters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.encoders.pair import EncoderPair
from pipeline.errors import DataError
from trainer.engine.ranks import from_rank_0
from trainer.engine.run import Run
from trainer.invert.judge import load_judge
from trainer.invert.shared import clip_reader
from trainer.model.pictures import grid, write_png
from trainer.model.sound_video import SoundVideoModel
from trainer.proof.sound_proof import SOUND_HZ, EvaluateSettings, HeldOutClip, held_out_clips, prove
from trainer.rendering.sound_file import sound_of_array
from trainer.rendering.sound_to_video import GenerateSettings, generate
from trainer.rendering.video_writer import write_mp4

if TYPE_CHECKING:
    from trainer.video.settings import VideoRecipe

logger = logging.getLogger(__name__)

STAGE = "video"
BEST_BY = "right_minus_wrong"
"""The measure that decides which model is kept as the best; higher is better."""
SHOWN_FPS = 10.0
"""Frame rate of the short videos."""
STRIP_FRAMES = 8


class VideoValidation:
    """The clips of the validation split, and the judge. Only rank 0 measures; the other ranks wait for it."""

    def __init__(self, recipe: VideoRecipe, run: Run, guide_ids: tuple[str, str]) -> None:
        self._recipe, self._settings, self._run, self._guide_ids = recipe, recipe.video, run, guide_ids
        self._clips: list[HeldOutClip] | None = None
        self._judge: EncoderPair | None = None

    def measure(self, model: SoundVideoModel, samples_seen: int) -> dict[str, float]:
        """Writes ``samples/SEEN.png`` and ``samples/SEEN-KEY.mp4``. Returns the measures; empty if there is nothing to compare."""
        measures: dict[str, float] = {}
        if self._run.fabric.is_global_zero:
            clips = self._held_out(model.generator.resolution)
            if clips:
                self._show(model, clips[:: max(1, len(clips) // self._settings.num_shown)], samples_seen)
                measures = self._prove(model, clips)
        return from_rank_0(measures)

    def _held_out(self, side_px: int) -> list[HeldOutClip]:
        if self._clips is None:
            self._clips = []
            if self._run.mixes("validation"):
                # whole: this rank reads all clips; otherwise it would read only its own share
                size = min(self._settings.batch_size, self._settings.validation_samples)
                reader = clip_reader(self._recipe, self._run, "validation", size, side_px, whole=True)
                try:
                    self._clips = held_out_clips(reader, self._settings.validation_samples)
                finally:
                    reader.close()
        return self._clips

    def _prove(self, model: SoundVideoModel, clips: Sequence[HeldOutClip]) -> dict[str, float]:
        if self._judge is None:
            self._judge = load_judge(self._settings.judge, self._guide_ids, "video.judge")
        settings = EvaluateSettings(seed=self._run.settings.seed)
        try:
            return prove(model, clips, self._judge, settings, self._run.classes)
        except DataError as error:
            logger.warning("whether the sound matters is not measured: %s", error)
            return {}

    def _show(self, model: SoundVideoModel, clips: Sequence[HeldOutClip], samples_seen: int) -> None:
        folder = self._run.stage_folder(STAGE) / "samples"
        folder.mkdir(exist_ok=True)
        strips = []
        chosen = GenerateSettings(fps=SHOWN_FPS, seed=self._run.settings.seed)
        for clip in clips[: self._settings.num_shown]:
            frames = list(generate(model, clip.sound_K, SOUND_HZ, chosen))
            sound = sound_of_array(clip.sound_K, SOUND_HZ, clip.key)
            write_mp4(folder / f"{samples_seen:010d}-{clip.key}.mp4", frames, SHOWN_FPS, sound)
            places = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
            strips += [frames[place] for place in places]
        joined = grid(torch.from_numpy(np.stack(strips)), STRIP_FRAMES)
        write_png(folder / f"{samples_seen:010d}.png", joined)
        self._run.stats.picture(STAGE, "samples", samples_seen, joined)
