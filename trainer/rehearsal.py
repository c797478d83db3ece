"""Rehearses a recipe: runs all its stages in minutes, with small networks.

    kept       stages, precision, batch and micro-batch sizes, losses and their weights, R1, augmentation, kinds of networks
    shrunk     widths and depths of networks, picture sides, seconds of sound, numbers of steps, reader processes

Each stage makes two steps in two runs: the first run ends with a checkpoint, the second resumes from it. At the end a video is generated
from a sound. A rehearsal shows that a recipe runs. It does not show how well the recipe learns, or how much memory it takes at full size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from pipeline.dataset.manifest import Counts, Manifest, Rendition, write_manifest
from pipeline.dataset.shards import Sample, SampleContent, ShardPlan, member_names, write_shard
from pipeline.encoders.sound import read_align_config
from pipeline.errors import FitError
from pipeline.runtime.folder import Folder
from pipeline.synthetic.video import write_video
from trainer.align.frozen_encoders import PartnerSettings
from trainer.engine.checkpoint import read_values
from trainer.engine.learner import BEST, CHECKPOINT
from trainer.invert.settings import CodeSettings, GuideSettings
from trainer.model.features import FeatureSettings
from trainer.model.frame_encoder import FrameCodes, FrameEncoderConfig
from trainer.model.generator import GeneratorConfig, build_generator
from trainer.model.load import read_generator_file, save_generator
from trainer.model.pictures import grid, pictures, write_png
from trainer.model.sound_video_file import find_model, load_model
from trainer.prior.networks import generator_config
from trainer.recipe import FitRecipe
from trainer.rendering.sound_file import sound_of_array
from trainer.rendering.sound_to_video import GenerateSettings, generate
from trainer.rendering.video_writer import write_mp4
from trainer.stages import chosen_stages

SIDE_PX, SECONDS, FPS, SOUND_HZ = 16, 1.0, 8.0, 44_100
WINDOW_SECONDS = 0.5
CLASSES = ("ocean", "fire", "rain", "wind")
"""Classes that the packaged encoder knows."""
NUM_TRAINED, NUM_VALIDATED = 20, 4
"""Clips of the painted dataset. Batches of more than 20 clips become smaller."""
STEPS = 2
"""Steps of each stage."""
MODEL = "hearscape-rehearsal"
"""Name of the small open_clip model with random weights that replaces a large one."""
MODEL_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
BACKBONE = "test_resnet"


def paint_dataset(folder: Path) -> None:
    """Writes a dataset of clips that last one second: each class has a colour and a tone."""
    target = Folder(str(folder))
    rng = np.random.default_rng(0)
    contents: dict[str, SampleContent] = {}
    plans = []
    for split, num_clips in (("train", NUM_TRAINED), ("validation", NUM_VALIDATED)):
        keys = []
        for index in range(num_clips):
            class_index = index % len(CLASSES)
            key = f"{split}-{index:03d}_00000000_00001000"
            colour = np.array([[220, 70, 20], [20, 60, 200], [120, 120, 120], [30, 160, 40]])[class_index]
            blocks = np.clip(colour * rng.uniform(0.6, 1.2, (4, 4, 1)), 0, 255).astype(np.uint8)
            path = folder / "clip.mp4"
            folder.mkdir(parents=True, exist_ok=True)
            write_video(
                path, [np.kron(blocks, np.ones((8, 8, 1), np.uint8))] * round(SECONDS * FPS), None, fps=FPS, gop=4
            )
            record = {"source_id": f"{split}-{index:03d}", "labels": [CLASSES[class_index]], "caption": None}
            contents[key] = SampleContent(mp4=path.read_bytes(), flac=_flac(_tone(class_index, rng)), record=record)
            path.unlink()
            keys.append(key)
        plans.append(ShardPlan(split, 0, tuple(Sample(key, split, 1, "x") for key in keys)))
    counts = Counts(states={"kept": len(contents)}, splits={"train": NUM_TRAINED, "validation": NUM_VALIDATED})
    write_manifest(
        Manifest(
            name="rehearsal",
            recipe={},
            versions={},
            members=member_names(has_embeddings=False),
            renditions=(Rendition(name="32", short_side_px=32, video_codec="h264", sound_codec="aac"),),
            splits=("train", "validation"),
            shards=tuple(write_shard(plan, "32", target, contents.__getitem__) for plan in plans),
            files=(),
            sources=counts,
            clips=counts.model_copy(update={"classes": dict.fromkeys(CLASSES, len(contents) // len(CLASSES))}),
        ),
        target,
    )


def _tone(class_index: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A second of a sine at about 300 Hz times 3 to the power of ``class_index``, with a little noise."""
    times = np.arange(round(SECONDS * SOUND_HZ)) / SOUND_HZ
    tone = 0.3 * np.sin(2 * np.pi * 300 * 3.0**class_index * rng.uniform(0.97, 1.03) * times)
    sound: NDArray[np.float32] = (tone + rng.normal(0, 0.02, len(times))).astype(np.float32)
    return sound


def _flac(sound: NDArray[np.float32]) -> bytes:
    import io  # noqa: PLC0415

    import soundfile  # noqa: PLC0415

    file = io.BytesIO()
    soundfile.write(file, sound, SOUND_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def small_generator(config: GeneratorConfig) -> GeneratorConfig:
    """The same kind of network for pictures of 16 pixels, narrow and shallow."""
    narrow = (
        {"widths": (8, 8, 8)} if config.kind == "stylegan2" else {"channel_base": 64, "channel_max": 8, "num_layers": 6}
    )
    shared = {"resolution": SIDE_PX, "z_dim": 16, "w_dim": 16, "mapping_layers": min(2, config.mapping_layers)}
    plain = GeneratorConfig.model_validate({**config.model_dump(), **shared, **narrow, "styles": "w", "code_width": 16})
    return plain.with_codes() if config.styles == "w_plus" else plain


def small_encoder(config: FrameEncoderConfig) -> FrameEncoderConfig:
    """A narrow encoder of frames, with the packaged features."""
    return config.model_copy(update={"width": 16, "features": FeatureSettings(picture_px=32)})


def shrink(recipe: FitRecipe, out: Path) -> FitRecipe:
    """The recipe with everything shrunk that the module's docstring lists, and with ``out`` as its run's folder.

    Each stage has one sample; ``with_two_steps`` sets the numbers of samples when the batch sizes are known. Writes small random weights
    to ``out`` in place of large published ones.
    """
    stages = chosen_stages(recipe.stages)
    is_guided = bool({"invert", "video"} & set(stages))
    if is_guided and "align" not in stages and recipe.invert.guide.sound_kind != "small":
        stages = ["align", *stages]  # its sound encoder replaces the one that the recipe names
    one_sample = {"num_samples": 1, "validate_every_samples": 1, "save_every_samples": 1}
    reader = recipe.reader.model_copy(
        update={
            "picture_px": SIDE_PX,
            "window_seconds": WINDOW_SECONDS,
            "num_workers": 0,
            "num_frames": min(recipe.reader.num_frames, 3),
        }
    )
    prior, invert, video, align = recipe.prior, recipe.invert, recipe.video, recipe.align
    full_config = generator_config(prior)
    num_measured = min(prior.fidelity.num_pictures, 8)
    reconstruction = prior.reconstruction
    if reconstruction is not None:
        reconstruction = reconstruction.model_copy(update={"encoder": small_encoder(reconstruction.encoder)})
    prior = prior.model_copy(
        update={
            **one_sample,
            "init": None,
            "init_sha256": None,
            "frozen_blocks": 0,
            "pictures": None,
            "generator": small_generator(full_config),
            "reconstruction": reconstruction,
            "blur_px": prior.blur_px * SIDE_PX / full_config.resolution,
            "grid_seeds": 4,
            "path_every": min(prior.path_every, STEPS),
            "r1_every": min(prior.r1_every, STEPS),
            "ada_every": 1,
            # an adaptive p starts at 0, so that two steps would not augment anything
            "ada_fixed_p": 0.5 if prior.ada_fixed_p is None else prior.ada_fixed_p,
            "fidelity": prior.fidelity.model_copy(update={"num_pictures": num_measured, "inception_weights": None}),
        }
    )
    partner = align.partner
    if not partner.is_packaged:
        partner = PartnerSettings(
            picture_model=MODEL, picture_weights=str(_random_partner(out)), batch_size=partner.batch_size
        )
    align = align.model_copy(update={**one_sample, "backbone": BACKBONE, "partner": partner})
    guide = invert.guide
    if guide.sound_kind != "small":
        guide = GuideSettings(num_cutouts=guide.num_cutouts, smallest_cutout=guide.smallest_cutout)
    generator = None
    if is_guided and "prior" not in stages:
        generator = str(_random_generator(recipe, out))
    invert = invert.model_copy(
        update={
            **one_sample,
            "backbone": BACKBONE,
            "codes": _half_alone(invert.codes),
            "generator": generator,
            "generator_sha256": None,
            "guide": guide,
            "validation_samples": NUM_VALIDATED,
        }
    )
    video = video.model_copy(
        update={
            **one_sample,
            "codes": _half_alone(video.codes),
            "hidden_width": 16,
            "noise_width": 4,
            "discriminator_widths": (8, 8, 8),
            "r1_every": min(video.r1_every, STEPS),
            "validation_samples": NUM_VALIDATED,
            "num_shown": 1,
        }
    )
    run = recipe.run.model_copy(
        update={"out": str(out), "tick_seconds": 0.001, "pause_after_samples": 1, "compile": False}
    )
    return recipe.model_copy(
        update={
            "stages": tuple(stages),
            "run": run,
            "reader": reader,
            "prior": prior,
            "align": align,
            "invert": invert,
            "video": video,
        }
    )


def _half_alone(codes: CodeSettings | None) -> CodeSettings | None:
    """Codes that teach alone in the first of two steps, and beside pictures in the second."""
    return None if codes is None else codes.model_copy(update={"alone_share": 0.5})


def with_two_steps(recipe: FitRecipe) -> FitRecipe:
    """The recipe with two steps in each stage. Its batch sizes must be final: the numbers of samples follow from them."""
    samples_per_step = {
        "prior": recipe.prior.batch_size * recipe.prior.frames_per_clip,
        "align": recipe.reader.batch_size,
        "invert": recipe.invert.batch_size,
        "video": recipe.video.batch_size,
    }
    stages = {
        name: getattr(recipe, name).model_copy(
            update={"num_samples": STEPS * size, "validate_every_samples": STEPS * size, "save_every_samples": size}
        )
        for name, size in samples_per_step.items()
    }
    return recipe.model_copy(update=stages)


def _random_partner(out: Path) -> Path:
    """Registers the small model with open_clip, and writes random weights for it. Returns their path."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{MODEL}.json").write_text(json.dumps(MODEL_CONFIG), encoding="utf-8")
    open_clip.add_model_config(out / f"{MODEL}.json")
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    try:
        model = open_clip.create_model(MODEL)
    finally:
        logging.disable(logging.NOTSET)
    path = out / f"{MODEL}.safetensors"
    if not path.exists():
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def _random_generator(recipe: FitRecipe, out: Path) -> Path:
    """Writes a small random generator: of the kind that the recipe's file has, StyleGAN2 where there is no file; with an encoder of frames
    if the recipe learns from codes. Returns its path."""
    location = recipe.invert.generator
    full_config = GeneratorConfig(kind="stylegan2", resolution=SIDE_PX, num_half=4, conv_clamp=256.0)
    if location is not None and Path(location).expanduser().is_file():
        full_config = read_generator_file(Path(location).expanduser()).config
    config = small_generator(full_config)
    path = out / "generator.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return path
    torch.manual_seed(0)
    if recipe.invert.codes is None and recipe.video.codes is None:
        save_generator(path, config, build_generator(config))
        return path
    config, encoder = config.with_codes(), small_encoder(FrameEncoderConfig())
    codes = FrameCodes(encoder, config.num_ws, config.w_dim, torch.device("cpu"))
    save_generator(path, config, build_generator(config), encoder_config=encoder, encoder=codes.encoder)
    return path


def rehearse(
    recipe: FitRecipe,
    out: Path,
    limit_batches: Callable[[FitRecipe], FitRecipe],
    fit: Callable[[FitRecipe], int],
    say: Callable[[str], None],
) -> int:
    """Runs all stages of a recipe with everything small. Returns 0, or the number of the signal that stopped it.

    ``limit_batches`` lowers batch sizes that the datasets cannot fill, ``fit`` runs a recipe until it ends or pauses. Without datasets
    in the recipe, clips are painted. Raises UserError or FitError where the recipe does not run.
    """
    if recipe.shards is None:
        paint_dataset(out / "dataset")
        recipe = recipe.model_copy(update={"shards": str(out / "dataset")})
    small = with_two_steps(limit_batches(shrink(recipe, out)))
    stages = chosen_stages(small.stages)
    say(f"rehearsing {', '.join(stages)} in {recipe.run.precision}, {STEPS} steps each, a checkpoint after every step")
    for _ in range(len(stages) + 1):  # a run makes the second step of a stage and the first of the next, then pauses
        if signal_number := fit(small):
            return signal_number
    unfinished = [name for name in stages if not _is_done(small, name)]
    if unfinished:
        raise FitError(f"the rehearsal did not end: {', '.join(unfinished)} did not make {STEPS} steps")
    say(f"rehearsed: {_make_output(small, out, stages)}")
    return 0


def _is_done(recipe: FitRecipe, stage: str) -> bool:
    path = recipe.folder / stage / CHECKPOINT
    return path.is_file() and read_values(path, stage).get("samples_seen", 0) >= getattr(recipe, stage).num_samples


def _make_output(recipe: FitRecipe, out: Path, stages: Sequence[str]) -> str:
    """Writes a video or a grid of pictures with the last stage's model, and returns a line that names it."""
    if {"invert", "video"} & set(stages):
        model, _ = load_model(find_model(str(out)))
        sound = _tone(1, np.random.default_rng(1))
        frames = list(generate(model, sound, SOUND_HZ, GenerateSettings(fps=FPS)))
        write_mp4(out / "rehearsal.mp4", frames, FPS, sound_of_array(sound, SOUND_HZ, "tone"))
        return f"a video of {len(frames)} frames, {out / 'rehearsal.mp4'}"
    if "prior" in stages:
        generator = read_generator_file(out / "prior" / BEST).generator()
        write_png(out / "rehearsal.png", grid(pictures(generator, range(4))))
        return f"pictures, {out / 'rehearsal.png'}; there is no stage that makes videos"
    config = read_align_config(out / "align" / BEST)
    return f"a sound encoder of {config.width} numbers, {out / 'align' / BEST}; there is no stage that makes videos"
