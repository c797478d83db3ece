"""Measures whether the videos of a model that was fitted to painted scenes move with their sound.

    python -m benchmarks.generated_motion --checkpoint runs/demo

Videos at 25 frames a second are made of the sounds of painted scenes that nothing has learned from. Motion and loudness are those of
:mod:`benchmarks.painted_motion`. For each class: the correlation of motion with loudness; the mean of the same with the sound moved round
in a circle by a quarter, a half and three quarters of its length, which is what chance gives; how bright the upper half gets with the
sound (thunder); and the mean motion, beside that of the painted scenes. The last line is the lead of the right sound over the moved one,
over all classes whose scenes follow their sound, with a 95 % interval from resampled scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import soxr

from benchmarks.painted_motion import FPS, RATE_HZ, Series, best_correlation, decibels, loudness, picture_series
from pipeline.synthetic.pictures import scene_frames
from pipeline.synthetic.sounds import nature_sound
from trainer.model.sound_video import SoundVideoModel
from trainer.model.sound_video_file import find_model, load_model
from trainer.proof.bootstrap import Bootstrap
from trainer.rendering.sound_to_video import GenerateSettings, generate

FOLLOWING = ("ocean", "rain", "fire", "wind", "thunder")
"""Classes whose painted scenes move, or brighten, with their sound."""
FIRST_SEED = 7000
SECONDS = 8.0
NUM_RESAMPLED = 10_000


def moved_round(series: Series) -> list[Series]:
    """The series moved by a quarter, a half and three quarters of its length."""
    return [np.roll(series, len(series) * quarters // 4) for quarters in (1, 2, 3)]


def row(model: SoundVideoModel, kind: str, seed: int) -> tuple[float, float, float, float]:
    """Of a scene: the correlation with the right sound and with the moved one, and the mean motion of the video and of the painting."""
    num_frames = round(SECONDS * FPS)
    sound = nature_sound(kind, seed, SECONDS, RATE_HZ)
    rate_hz = model.config.mel.sample_rate_hz
    mono = soxr.resample(sound.mean(1), RATE_HZ, rate_hz).astype(np.float32)
    video = picture_series(generate(model, mono, rate_hz, GenerateSettings(fps=FPS, seed=seed)))
    times = [number / FPS for number in range(num_frames)]
    painted = picture_series(scene_frames(kind, seed, times, width=128, height=128, seconds=SECONDS))
    rms = loudness(sound, num_frames)
    picture, level = (video.light, rms) if kind == "thunder" else (video.motion, decibels(rms))
    picture = picture[:num_frames]
    right = best_correlation(picture, level)
    wrong = float(np.mean([best_correlation(picture, other) for other in moved_round(level)]))
    return right, wrong, float(video.motion.mean()), float(painted.motion.mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, generates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="runs/NAME", help="folder of a run, or a model's file")
    parser.add_argument("--seeds", type=int, default=6, help="scenes of each class (%(default)s)")
    options = parser.parse_args(arguments)
    model, _ = load_model(find_model(options.checkpoint))
    print(f"{'class':12}{'follows':>10}{'moved sound':>13}{'motion':>9}{'painted':>9}")
    leads = []
    for kind in FOLLOWING:
        values = np.array([row(model, kind, FIRST_SEED + number) for number in range(options.seeds)])
        leads.append(values[:, 0] - values[:, 1])
        right, wrong, motion, painted = values.mean(0)
        print(f"{kind:12}{right:10.2f}{wrong:13.2f}{motion:9.2f}{painted:9.2f}", flush=True)
    every = np.nan_to_num(np.concatenate(leads))
    low, high = Bootstrap([f"{number:04}" for number in range(len(every))], NUM_RESAMPLED, 0).interval(every)
    print(f"right sound leads by {every.mean():+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {len(every)} scenes)")


if __name__ == "__main__":
    main()
