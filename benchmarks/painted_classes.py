"""Measures which class people would see in the videos of a model: the demo's, or any other that was fitted to painted scenes.

    python -m benchmarks.painted_classes --checkpoint runs/demo --sheet classes.png

A judge that was part of no loss, a small classifier, learns frames of painted scenes. Videos are then made of the sounds of other painted
scenes; the judge says which class each shows. Neither their seeds nor the judge's are used anywhere else, and none of these choose a
setting. Printed: the share of sounds whose class is seen, with its interval, for the videos and for real frames of the same scenes; by how
much more the judge believes in a class when its own sound is heard than when another's is; and a table of the confusions.

Shape suffixes: N pictures, C colours, H W rows and columns, K classes, S frames of a video.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.agreement.roc import wilson_interval
from pipeline.synthetic.frames import SECONDS, painted_frames
from pipeline.synthetic.sounds import NATURE_KINDS, nature_sound
from trainer.model.pictures import grid, write_png
from trainer.model.sound_video_file import find_model, load_model
from trainer.proof.videos import draw_videos

JUDGE_SEEDS = range(6000, 6030)
"""Seeds of the scenes that the judge learns."""
TEST_SEEDS = range(7000, 7100)
"""Seeds of the scenes whose sounds are heard: the first ``--sounds`` of each class."""
SIDE_PX = 64
FRAMES_PER_SCENE = 6
RATE_HZ = 48_000
STEPS, BATCH_SIZE = 800, 64


class Judge(nn.Module):
    """Pictures (N, 3, H, W), -1..1, to logits (N, K)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 24, 48, 96]
        convs = [nn.Conv2d(own, following, 3, 2, 1) for own, following in itertools.pairwise(widths)]
        self.body = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.out = nn.Linear(widths[-1], len(NATURE_KINDS))

    def forward(self, pictures_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(pictures_NCHW).mean((2, 3)))
        return logits


def to_floats(frames_NHWC: NDArray[np.uint8]) -> Tensor:
    """(N, 3, SIDE_PX, SIDE_PX), -1..1, of frames of any size."""
    frames_NCHW = torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
    if frames_NCHW.shape[-1] == SIDE_PX:
        return frames_NCHW
    return functional.interpolate(frames_NCHW, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)


def scene(kind: str, seed: int) -> Tensor:
    """Real frames of a painted scene."""
    return to_floats(np.stack(list(painted_frames(kind, seed, FRAMES_PER_SCENE, SIDE_PX))))


def learn_judge() -> Judge:
    """Learns the classes of painted frames; brightness, colours, mirror images and sharpness vary, so that it looks at more than these."""
    torch.manual_seed(0)
    scenes = [(index, scene(kind, seed)) for index, kind in enumerate(NATURE_KINDS) for seed in JUDGE_SEEDS]
    pictures = torch.cat([frames for _, frames in scenes])
    classes = torch.cat([torch.full((len(frames),), index) for index, frames in scenes])
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3)
    for step in range(STEPS):
        rows = torch.randint(0, len(pictures), (BATCH_SIZE,))
        shown = pictures[rows] * (0.7 + 0.6 * torch.rand(BATCH_SIZE, 1, 1, 1)) + 0.2 * torch.randn(BATCH_SIZE, 3, 1, 1)
        shown = torch.where(torch.rand(BATCH_SIZE)[:, None, None, None] < 0.5, shown.flip(-1), shown)
        if step % 2:
            shown = functional.avg_pool2d(functional.pad(shown, (1, 1, 1, 1), mode="reflect"), 3, 1)
        optimizer.zero_grad()
        functional.cross_entropy(judge(shown), classes[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return judge.eval().requires_grad_(False)


def report(name: str, beliefs_NK: Tensor, classes_N: Tensor) -> None:
    """Prints the share of sounds whose class is seen, and how much the right sound matters, of (N, K) probabilities."""
    right_N = beliefs_NK.argmax(1) == classes_N
    share, count = right_N.double().mean().numpy(), len(right_N)
    low, high = wilson_interval(np.asarray(share), count)
    own_N = beliefs_NK[torch.arange(count), classes_N]
    others_N = torch.stack([beliefs_NK[classes_N != own, own].mean() for own in classes_N])
    lead = float((own_N - others_N).mean())
    print(
        f"{name:12} class seen is class heard {share:.3f} (95 % interval {low:.3f} to {high:.3f}, {count} sounds), lead {lead:+.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, learns the judge, generates, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="runs/NAME", help="folder of a run, or a model's file")
    parser.add_argument("--sounds", type=int, default=5, metavar="N", help="sounds of each class (%(default)s)")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="also write a frame of each video, a row for each class"
    )
    options = parser.parse_args(arguments)
    model, _ = load_model(find_model(options.checkpoint))
    scenes = [(kind, seed) for kind in NATURE_KINDS for seed in TEST_SEEDS[: options.sounds]]
    rate_hz = model.config.mel.sample_rate_hz
    sounds = [nature_sound(kind, seed, SECONDS, RATE_HZ).mean(1) for kind, seed in scenes]
    resampled = [soxr.resample(sound, RATE_HZ, rate_hz).astype(np.float32) for sound in sounds]
    videos = draw_videos(model, resampled, [seed for _, seed in scenes])
    judge, classes_N = learn_judge(), torch.tensor([NATURE_KINDS.index(kind) for kind, _ in scenes])
    videos_NK = torch.stack([judge(to_floats(video)).softmax(1).mean(0) for video in videos])
    real_NK = torch.stack([judge(scene(kind, seed)).softmax(1).mean(0) for kind, seed in scenes])
    report("videos", videos_NK, classes_N)
    report("real frames", real_NK, classes_N)
    print(f"\n{'heard':12}" + "".join(f"{kind[:9]:>10}" for kind in NATURE_KINDS))
    for index, kind in enumerate(NATURE_KINDS):
        counts = torch.bincount(videos_NK[classes_N == index].argmax(1), minlength=len(NATURE_KINDS)).tolist()
        print(f"{kind:12}" + "".join(f"{count:10}" for count in counts))
    if options.sheet is not None:
        middles = torch.from_numpy(np.stack([video[len(video) // 2] for video in videos]))
        write_png(options.sheet, grid(middles, options.sounds))


if __name__ == "__main__":
    main()
