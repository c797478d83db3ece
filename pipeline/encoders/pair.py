"""A picture encoder and a sound encoder that share one space: their settings, and both run on clips."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, model_validator

from pipeline.agreement import mean_embedding
from pipeline.encoders.weights import file_sha256, is_url, resolve_weights
from pipeline.errors import EncoderError
from pipeline.schema import stable_hash
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.encoders.picture import PictureEncoder
    from pipeline.encoders.sound import SoundEncoder

T = TypeVar("T")
logger = logging.getLogger(__name__)

NUMBERS_VERSION = 1
"""Raised whenever the same weights come to give other numbers, so that stored embeddings are not mixed."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]


class EncoderPairSettings(Settings):
    """The networks that put picture and sound into the shared space. Without a pair, agreement is not measured."""

    picture_model: str = "ViT-B-32-quickgelu"
    """Name of an open_clip model. For a file of weights that OpenAI published, one that ends in -quickgelu."""
    picture_weights: str
    """The model's weights: a pretrained tag of open_clip, a path, or a URL with its SHA-256."""
    picture_sha256: Sha256 | None = None
    """SHA-256 of the picture weights' file. None: not checked; a URL needs one."""
    sound_kind: Literal["soundclip", "wav2clip", "align"]
    """SoundCLIP's or Wav2CLIP's network as published (for OpenAI's ViT-B/32), or a checkpoint of the align stage."""
    sound_weights: str
    """The sound network's weights: a path, or a URL with its SHA-256."""
    sound_sha256: Sha256 | None = None
    """SHA-256 of the sound weights' file. None: not checked; a URL needs one."""
    frames_per_clip: int = Field(default=8, ge=1, le=256)
    """Frames of a clip that are embedded, spread evenly over it."""
    batch_size: int = Field(default=32, ge=1)
    """Frames or sounds that a GPU embeds at once. A CPU takes one clip at a time, at most this many frames of it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, or cuda:1 and so on."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format inside the networks. fp16 needs a GPU."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads of one process for the networks. None: as torch chooses, all cores."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for side in ("picture", "sound"):
            if is_url(getattr(self, f"{side}_weights")) and getattr(self, f"{side}_sha256") is None:
                raise ValueError(
                    f"{side}_weights is a URL: give {side}_sha256, so that the weights cannot change unseen"
                )
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
        return self


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The files on this machine that a pair's settings stand for, and its id. No weights are loaded to know them."""

    picture_path: Path
    picture_sha256: str
    sound_path: Path
    sound_sha256: str
    encoder_id: str


@dataclass(frozen=True, slots=True)
class ClipEmbeddings:
    """Embeddings of N clips; every row has length 1."""

    picture_frames: list[NDArray[np.float32]]
    """(T, D) for each clip."""
    picture: NDArray[np.float32]
    """(N, D): the direction of the mean of a clip's frame embeddings."""
    sound: NDArray[np.float32]
    """(N, D)."""


def check_settings(settings: EncoderPairSettings, field: str = "encoders") -> None:
    """Raises EncoderError, all problems at once, for what shows without weights: names, files, device, widths."""
    from pipeline.encoders.device import pick_device  # noqa: PLC0415 (torch takes seconds to import)
    from pipeline.encoders.picture import check_model, check_weights  # noqa: PLC0415

    problems: list[str] = []

    def attempt(check: Callable[..., T], *arguments: object) -> T | None:
        try:
            return check(*arguments)
        except EncoderError as error:
            problems.append(str(error))
            return None

    picture_width = attempt(check_model, settings.picture_model, f"{field}.picture_model")
    if picture_width is not None:
        attempt(check_weights, settings.picture_model, settings.picture_weights, f"{field}.picture_weights")
    sound_width = attempt(_sound_width, settings, f"{field}.sound_weights")
    if picture_width and sound_width and picture_width != sound_width:
        problems.append(_widths(settings, picture_width, sound_width))
    attempt(pick_device, settings.device, f"{field}.device")
    if problems:
        raise EncoderError(
            "\n  ".join(["the encoders cannot be used:", *problems]) if len(problems) > 1 else problems[0]
        )


def _sound_width(settings: EncoderPairSettings, field: str) -> int | None:
    """None: a checkpoint whose width is not known before it is fetched."""
    from pipeline.encoders.sound import PUBLISHED_WIDTH, read_align_config  # noqa: PLC0415

    if not is_url(settings.sound_weights):
        path = resolve_weights(settings.sound_weights, field=field)
        if settings.sound_kind == "align":
            return read_align_config(path).width
    return None if settings.sound_kind == "align" else PUBLISHED_WIDTH


def _widths(settings: EncoderPairSettings, picture_width: int, sound_width: int) -> str:
    return (
        f"{settings.picture_model} has width {picture_width}, the {settings.sound_kind} network "
        f"{settings.sound_weights} has {sound_width}: they share no space; "
        f"name the picture model that the sound network was trained with"
    )


def find_files(settings: EncoderPairSettings, cache_dir: Path | None = None, field: str = "encoders") -> PairFiles:
    """The pair's files, fetched if they are named by URL or tag and not there yet, and its id. Loads no weights.

    Raises EncoderError as :func:`check_settings` does, and when a file cannot be fetched or is not the one wanted.
    """
    check_settings(settings, field)
    from pipeline.encoders.picture import find_weights, picture_id  # noqa: PLC0415
    from pipeline.encoders.sound import sound_id  # noqa: PLC0415

    model, weights = settings.picture_model, settings.picture_weights
    picture_path = find_weights(model, weights, settings.picture_sha256, cache_dir, f"{field}.picture_weights")
    sound_path = resolve_weights(settings.sound_weights, settings.sound_sha256, cache_dir, f"{field}.sound_weights")
    picture_sum, sound_sum = file_sha256(picture_path), file_sha256(sound_path)
    picture, sound = picture_id(model, weights, picture_sum), sound_id(settings.sound_kind, sound_sum)
    digest = stable_hash("pair", NUMBERS_VERSION, picture, sound, settings.frames_per_clip, settings.precision)
    encoder_id = f"{model.removesuffix('-quickgelu')}+{settings.sound_kind}-{digest}"
    return PairFiles(picture_path, picture_sum, sound_path, sound_sum, encoder_id)


class EncoderPair:
    """Both encoders; ``encoder_id`` is stored with every embedding and changes with whatever changes the numbers."""

    def __init__(self, picture: PictureEncoder, sound: SoundEncoder, encoder_id: str) -> None:
        """Raises EncoderError when the widths differ."""
        if picture.width != sound.width:
            raise EncoderError(
                f"the picture encoder {picture.encoder_id} has width {picture.width}, "
                f"the sound encoder {sound.encoder_id} {sound.width}"
            )
        self.picture = picture
        self.sound = sound
        self.encoder_id = encoder_id
        self.width = picture.width

    def embed_clips(
        self, frames_per_clip: Sequence[NDArray[np.uint8]], sounds: Sequence[NDArray[np.float32]], sample_rate_hz: int
    ) -> ClipEmbeddings:
        """Each clip's RGB frames (T, H, W, 3) uint8 and mono sound. On a CPU no clip's numbers depend on the others.

        Raises MediaError for a sound without samples or with NaN or infinity.
        """
        if len(frames_per_clip) != len(sounds):
            raise ValueError(f"{len(frames_per_clip)} clips have frames, {len(sounds)} have sound")
        sound = self.sound.embed_sounds(sounds, sample_rate_hz)
        frames = self.picture.embed_groups(frames_per_clip)
        means = [mean_embedding(rows) for rows in frames]
        picture = np.stack(means) if means else np.zeros((0, self.width), dtype=np.float32)
        return ClipEmbeddings(picture_frames=frames, picture=picture, sound=sound)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(len(texts), D) float32, rows of length 1, in the same space."""
        return self.picture.embed_texts(texts)


def load_pair(settings: EncoderPairSettings, cache_dir: Path | None = None, field: str = "encoders") -> EncoderPair:
    """Load both networks, once per process. Sets torch's thread count when ``num_threads`` says so.

    Raises EncoderError when weights are missing, damaged, of another shape, or not made for each other.
    """
    import torch  # noqa: PLC0415

    from pipeline.encoders.device import Running, pick_device  # noqa: PLC0415
    from pipeline.encoders.picture import PictureEncoder, check_model  # noqa: PLC0415
    from pipeline.encoders.sound import load_sound  # noqa: PLC0415

    files = find_files(settings, cache_dir, field)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    device = pick_device(settings.device, f"{field}.device")
    if device.type == "cpu" and settings.precision == "fp16":
        raise EncoderError(f"{field}.precision: fp16 needs a GPU and there is none; use fp32 or bf16")
    running = Running(device, settings.batch_size, settings.precision)
    sound = load_sound(settings.sound_kind, files.sound_path, files.sound_sha256, running)
    if (width := check_model(settings.picture_model)) != sound.width:
        raise EncoderError(_widths(settings, width, sound.width))
    picture = PictureEncoder(
        settings.picture_model, settings.picture_weights, files.picture_path, files.picture_sha256, running=running
    )
    if settings.sound_kind != "align" and not settings.picture_model.startswith("ViT-B-32"):
        logger.warning("%s: %s was made for ViT-B/32, not for %s", field, settings.sound_kind, settings.picture_model)
    if sound.partner_id is not None and sound.partner_id != picture.encoder_id:
        raise EncoderError(
            f"{field}: {settings.sound_weights} was trained with the picture encoder {sound.partner_id}, but "
            f"{settings.picture_model} with {settings.picture_weights} is {picture.encoder_id}; "
            f"name the one it was trained with"
        )
    logger.info("encoders %s on %s", files.encoder_id, device)
    return EncoderPair(picture, sound, files.encoder_id)
