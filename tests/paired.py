"""A small built dataset in which sound tells what the picture shows, and a small open_clip model that sees the difference.

Each class has a colour and a tone. The model's weights are random; it is made to tell the colours apart by taking the mean of
what it makes of them away.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from pipeline.dataset.manifest import Counts, Manifest, Rendition, write_manifest
from pipeline.dataset.shards import Sample, SampleContent, ShardPlan, member_names, write_shard
from pipeline.runtime.folder import Folder
from pipeline.synthetic.video import write_video
from tests.datasets import SOUND_HZ, as_flac

COLOURS = {"fire": (220, 70, 20), "ocean": (20, 60, 200), "rain": (120, 120, 120), "wood_pigeon": (30, 160, 40)}
TONES_HZ = {"fire": 300.0, "ocean": 900.0, "rain": 2700.0, "wood_pigeon": 8000.0}
CLASSES = tuple(COLOURS)
SECONDS, FPS, SIDE_PX = 1.0, 8.0, 48
MODEL, WIDTH = "tiny-for-trainer-tests", 32
MODEL_CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def class_frame(label: str, seed: int) -> np.ndarray:
    """(48, 64, 3) uint8: the class's colour in blocks of different brightness."""
    light = np.random.default_rng(seed).uniform(0.7, 1.1, (6, 8, 1))
    blocks = np.clip(np.array(COLOURS[label]) * light, 0, 255).astype(np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def class_sound(label: str, seed: int) -> np.ndarray:
    """(samples, 1): the class's tone, a few per cent off, in noise."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(SECONDS * SOUND_HZ)) / SOUND_HZ
    tone = 0.3 * np.sin(2 * np.pi * TONES_HZ[label] * rng.uniform(0.97, 1.03) * times)
    return (tone + rng.normal(0, 0.02, len(times)))[:, None].astype(np.float32)


def build_paired(
    folder: Path,
    splits: Mapping[str, int],
    *,
    name: str = "paired",
    spoilt: Collection[int] = (),
    without_pictures: Collection[int] = (),
) -> Manifest:
    """``splits``: samples of each class, by split. ``spoilt``: numbers of samples, in each split, whose sound cannot be read;
    ``without_pictures``: those whose pictures cannot.

    Every second sample has a caption.
    """
    movies = {}
    folder.mkdir(parents=True, exist_ok=True)
    for label in CLASSES:
        for variant in range(2):
            path = folder / "movie.mp4"
            write_video(path, [class_frame(label, variant)] * round(SECONDS * FPS), None, fps=FPS, gop=4)
            movies[label, variant] = path.read_bytes()
            path.unlink()
    contents: dict[str, SampleContent] = {}
    plans: list[ShardPlan] = []
    for split, number in sorted(splits.items()):
        keys = []
        for index in range(number * len(CLASSES)):
            label = CLASSES[index % len(CLASSES)]
            source = f"{split}-{label}-{index:03d}"
            key = f"{source}_00000000_00001000"
            record = {"source_id": source, "labels": [label], "caption": f"near the {label}" if index % 2 else None}
            sound = as_flac(class_sound(label, sum(source.encode()) * 1000 + index))
            sound = b"no sound at all" if index in spoilt else sound
            movie = b"no movie at all" if index in without_pictures else movies[label, index // len(CLASSES) % 2]
            contents[key] = SampleContent(mp4=movie, flac=sound, record=record)
            keys.append(key)
        plans += [
            ShardPlan(split, place, tuple(Sample(key, split, 1, "x") for key in keys[start : start + 10]))
            for place, start in enumerate(range(0, len(keys), 10))
        ]
    target = Folder(str(folder))
    shards = [write_shard(plan, "48", target, contents.__getitem__) for plan in plans]
    kept = {split: number * len(CLASSES) for split, number in splits.items()}
    counts = Counts(states={"kept": len(contents)}, splits=kept)
    manifest = Manifest(
        name=name,
        recipe={},
        versions={"hearscape": "test"},
        members=member_names(has_embeddings=False),
        renditions=(Rendition(name="48", short_side_px=SIDE_PX, video_codec="h264", sound_codec="aac"),),
        splits=tuple(sorted(splits)),
        shards=tuple(shards),
        files=(),
        sources=counts,
        clips=counts.model_copy(update={"classes": dict.fromkeys(CLASSES, sum(splits.values()))}),
    )
    write_manifest(manifest, target)
    return manifest


def know_model(folder: Path) -> None:
    """Tells open_clip of the small model that :func:`save_model` left there: in every process that names it."""
    open_clip.add_model_config(folder / f"{MODEL}.json")


def save_model(folder: Path) -> Path:
    """Random weights of the small model that tell the colours and the classes' names apart."""
    (folder / f"{MODEL}.json").write_text(json.dumps(MODEL_CONFIG))
    know_model(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(MODEL).eval()
    tokens = open_clip.get_tokenizer(MODEL)([f"the sound of {label.replace('_', ' ')}" for label in CLASSES])
    frames = np.stack([class_frame(label, 0)[:32, :32] for label in CLASSES])
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    ends = tokens.argmax(1)
    with torch.no_grad():
        for norm, run, chosen in (
            (model.visual.ln_post, lambda: model.encode_image((pictures - 0.45) / 0.27), None),
            (model.ln_final, lambda: model.encode_text(tokens), ends),
        ):
            seen: list[torch.Tensor] = []
            hook = norm.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
            run()
            hook.remove()
            rows = seen[0] if chosen is None else seen[0][torch.arange(len(chosen)), chosen]
            norm.bias -= rows.reshape(-1, rows.shape[-1]).mean(0)
    path = folder / "tiny.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return path


def recipe_text(weights: Path, extra: Sequence[str] = ()) -> str:
    """A recipe that fits a very small network to the dataset in seconds."""
    return "\n".join(
        [
            "stages = ['align']",
            "run.device = 'cpu'",
            "run.num_threads = 1",
            "run.tick_seconds = 3600",
            "reader.picture_px = 48",
            "reader.num_frames = 2",
            f"reader.window_seconds = {SECONDS}",
            "reader.batch_size = 8",
            "reader.num_workers = 0",
            "align.backbone = 'test_resnet'",
            f"align.partner.picture_model = '{MODEL}'",
            f"align.partner.picture_weights = '{weights}'",
            "align.num_samples = 32",
            "align.warmup_share = 0.0",
            *extra,
            "",
        ]
    )
