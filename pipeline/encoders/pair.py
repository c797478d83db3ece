"""The pair of a picture encoder and a sound encoder with a shared space: settings, files, and embedding of clips."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, model_validator

from pipeline.encoders.vectors import mean_embedding
from pipeline.encoders.weights import file_sha256, is_url, resolve_weights
from pipeline.errors import EncoderError
from pipeline.schema import stable_hash
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.encoders.device import ComputeOptions
    from pipeline.encoders.picture import PictureEncoder
    from pipeline.encoders.small.towers import SmallPictureEncoder
    from pipeline.encoders.sound import SoundEncoder

_PACKAGED_FOLDER = Path(__file__).parent / "small"
T = TypeVar("T")
logger = logging.getLogger(__name__)

NUMBERS_VERSION = 2
"""Increased whenever the code gives other embeddings for the same weights, so that stored ones are not mixed. 2: one thread per clip."""
SMALL_NUMBERS_VERSION = 2
"""The same for the packaged pair; its features have their own version. 2: one network in torch."""

SMALL_MODEL = "hearscape-small"
"""The picture model of the packaged pair."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]


class EncoderPairSettings(Settings):
    """The networks that put picture and sound into the shared space: the packaged small pair unless others are named.

    Without a pair, agreement is not measured.
    """

    picture_model: str = SMALL_MODEL
    """Name of an open_clip model, or hearscape-small: the packaged pair's. For a file of weights that OpenAI published, one
    that ends in -quickgelu."""
    picture_weights: str | None = None
    """The model's weights: a pretrained tag of open_clip, a path, or a URL with its SHA-256. None: those in the package."""
    picture_sha256: Sha256 | None = None
    """SHA-256 of the picture weights' file. None: not checked; a URL needs one."""
    sound_kind: Literal["small", "soundclip", "wav2clip", "align"] = "small"
    """The packaged pair's network, SoundCLIP's or Wav2CLIP's as published (for OpenAI's ViT-B/32), or a checkpoint of the
    align stage."""
    sound_weights: str | None = None
    """The sound network's weights: a path, or a URL with its SHA-256. None: those in the package."""
    sound_sha256: Sha256 | None = None
    """SHA-256 of the sound weights' file. None: not checked; a URL needs one."""
    frames_per_clip: int = Field(default=8, ge=1, le=256)
    """Frames of a clip that are embedded, spread evenly over it."""
    batch_size: int = Field(default=32, ge=1)
    """Frames or sounds that a GPU embeds at once. A CPU embeds every clip alone."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, or cuda:1 and so on."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format inside the networks. fp16 needs a GPU. On a CPU with bf16 instructions bf16 takes half of fp32's time or less;
    its cosines differ from the fourth digit on."""
    num_threads: int | None = Field(default=None, ge=1)
    """Clips that a CPU embeds side by side, each on one thread: another number gives the same embeddings. None: one for each core."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        small_picture = self.picture_model == SMALL_MODEL
        if small_picture != (self.sound_kind == "small") and not (small_picture and self.sound_kind == "align"):
            raise ValueError(
                f"picture_model {self.picture_model} and sound_kind {self.sound_kind} share no space: the packaged pair is "
                f"{SMALL_MODEL} with small (leave both out) or with align; others need both named, as ViT-B-32-quickgelu with "
                "soundclip"
            )
        for side in ("picture", "sound"):
            weights = getattr(self, f"{side}_weights")
            if weights is None and not (small_picture if side == "picture" else self.is_small):
                raise ValueError(f"{side}_weights is missing: only the packaged pair comes with its own")
            if weights is not None and is_url(weights) and getattr(self, f"{side}_sha256") is None:
                raise ValueError(
                    f"{side}_weights is a URL: give {side}_sha256, so that the weights cannot change unseen"
                )
        if self.is_small and (self.picture_weights is None) != (self.sound_weights is None):
            raise ValueError(
                "picture_weights and sound_weights of the small pair belong together: name both, or neither for those in "
                "the package"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
        return self

    @property
    def is_small(self) -> bool:
        """Whether the networks are those of the packaged pair, with its weights or others."""
        return self.sound_kind == "small"


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The local files of a pair's settings, and its id. Known without loading weights."""

    picture_path: Path
    picture_sha256: str
    sound_path: Path
    sound_sha256: str
    encoder_id: str


@dataclass(frozen=True, slots=True)
class ClipEmbeddings:
    """Embeddings of N clips in a space of width D; every row has length 1."""

    picture_frames: list[NDArray[np.float32]]
    """For each clip (T, D): one row per frame."""
    picture: NDArray[np.float32]
    """(N, D): the direction of the mean of a clip's frame embeddings."""
    sound: NDArray[np.float32]
    """(N, D)."""


def packaged_calibration() -> Path | None:
    """The calibration of the packaged pair, measured on clips outside of its training set. None: not in this package."""
    path = _PACKAGED_FOLDER / "calibration.json"
    return path if path.is_file() else None


def _weights(settings: EncoderPairSettings, side: str) -> str:
    """The path, URL or tag of a side's weights: as in the settings, else the packaged file."""
    named: str | None = getattr(settings, f"{side}_weights")
    return str(_PACKAGED_FOLDER / f"{side}.safetensors") if named is None else named


def check_settings(settings: EncoderPairSettings, field: str = "encoders") -> None:
    """Raises EncoderError with all problems that can be found without loading weights: names, files, device, widths."""
    from pipeline.encoders.device import pick_device  # noqa: PLC0415 (torch takes seconds to import)

    problems: list[str] = []

    def attempt(check: Callable[..., T], *arguments: object) -> T | None:
        try:
            return check(*arguments)
        except EncoderError as error:
            problems.append(str(error))
            return None

    if settings.picture_model == SMALL_MODEL:
        picture_width = attempt(_check_tower, settings, "picture", f"{field}.picture_weights")
    else:
        from pipeline.encoders.picture import check_model, check_weights  # noqa: PLC0415

        picture_width = attempt(check_model, settings.picture_model, f"{field}.picture_model")
        if picture_width is not None:
            attempt(check_weights, settings.picture_model, settings.picture_weights, f"{field}.picture_weights")
    if settings.is_small:
        attempt(_check_tower, settings, "sound", f"{field}.sound_weights")
    else:
        sound_width = attempt(_sound_width, settings, f"{field}.sound_weights")
        if picture_width and sound_width and picture_width != sound_width:
            problems.append(_widths(settings, picture_width, sound_width))
    attempt(pick_device, settings.device, f"{field}.device")
    if problems:
        raise EncoderError(
            "\n  ".join(["the encoders cannot be used:", *problems]) if len(problems) > 1 else problems[0]
        )


def _check_tower(settings: EncoderPairSettings, side: str, field: str) -> int | None:
    """The tower's width. None: not known before the file is fetched."""
    from pipeline.encoders.small.towers import read_config  # noqa: PLC0415

    weights = _weights(settings, side)
    if is_url(weights):
        return None
    path = _packaged_or(resolve_weights, settings, side, None, field)
    with _naming(settings, side, field):
        return read_config(path, side).width


@contextmanager
def _naming(settings: EncoderPairSettings, side: str, field: str) -> Iterator[None]:
    """Puts ``field`` before the message of an EncoderError about weights that the recipe names."""
    try:
        yield
    except EncoderError as error:
        if getattr(settings, f"{side}_weights") is None or field in str(error):
            raise
        raise EncoderError(f"{field}: {error}") from error


def _packaged_or(
    resolve: Callable[[str, str | None, Path | None, str], Path],
    settings: EncoderPairSettings,
    side: str,
    cache_dir: Path | None,
    field: str,
) -> Path:
    """The file of a side. Raises EncoderError; where a packaged file is missing, it advises to install the package again."""
    path = _PACKAGED_FOLDER / f"{side}.safetensors"
    if getattr(settings, f"{side}_weights") is None and not path.is_file():
        raise EncoderError(f"{path} is missing; it is part of the package: install hearscape again")
    return resolve(_weights(settings, side), getattr(settings, f"{side}_sha256"), cache_dir, field)


def _sound_width(settings: EncoderPairSettings, field: str) -> int | None:
    """The width of the sound network. None: not known before the checkpoint is fetched."""
    from pipeline.encoders.sound import PUBLISHED_WIDTH, read_align_config  # noqa: PLC0415

    weights = _weights(settings, "sound")
    if not is_url(weights):
        path = resolve_weights(weights, field=field)
        if settings.sound_kind == "align":
            with _naming(settings, "sound", field):
                return read_align_config(path).width
    return None if settings.sound_kind == "align" else PUBLISHED_WIDTH


def _widths(settings: EncoderPairSettings, picture_width: int, sound_width: int) -> str:
    return (
        f"{settings.picture_model} has width {picture_width}, the {settings.sound_kind} network "
        f"{settings.sound_weights} has {sound_width}: they share no space; "
        f"name the picture model that the sound network was trained with"
    )


def find_files(settings: EncoderPairSettings, cache_dir: Path | None = None, field: str = "encoders") -> PairFiles:
    """The pair's local files and its id. Files named by URL or tag are fetched if needed; weights are not loaded.

    Raises EncoderError as :func:`check_settings` does, and when a file cannot be fetched or has another SHA-256.
    """
    check_settings(settings, field)
    if settings.is_small:
        return _find_small(settings, cache_dir, field)
    from pipeline.encoders.sound import sound_id  # noqa: PLC0415

    model = settings.picture_model
    picture_path = _picture_path(settings, cache_dir, f"{field}.picture_weights")
    sound_path = resolve_weights(
        _weights(settings, "sound"), settings.sound_sha256, cache_dir, f"{field}.sound_weights"
    )
    picture_sum, sound_sum = file_sha256(picture_path), file_sha256(sound_path)
    picture, sound = _picture_id(settings, picture_sum), sound_id(settings.sound_kind, sound_sum)
    digest = stable_hash("pair", NUMBERS_VERSION, picture, sound, settings.frames_per_clip, settings.precision)
    encoder_id = f"{model.removesuffix('-quickgelu')}+{settings.sound_kind}-{digest}"
    return PairFiles(picture_path, picture_sum, sound_path, sound_sum, encoder_id)


def _picture_path(settings: EncoderPairSettings, cache_dir: Path | None, field: str) -> Path:
    if settings.picture_model == SMALL_MODEL:
        return _packaged_or(resolve_weights, settings, "picture", cache_dir, field)
    from pipeline.encoders.picture import find_weights  # noqa: PLC0415

    weights = _weights(settings, "picture")
    return find_weights(settings.picture_model, weights, settings.picture_sha256, cache_dir, field)


def _picture_id(settings: EncoderPairSettings, sha256: str) -> str:
    if settings.picture_model == SMALL_MODEL:
        from pipeline.encoders.small.towers import small_id  # noqa: PLC0415

        return small_id("picture", sha256)
    from pipeline.encoders.picture import picture_id  # noqa: PLC0415

    return picture_id(settings.picture_model, _weights(settings, "picture"), sha256)


def _find_small(settings: EncoderPairSettings, cache_dir: Path | None, field: str) -> PairFiles:
    from pipeline.encoders.small.towers import small_id  # noqa: PLC0415

    picture_path, sound_path = (
        _packaged_or(resolve_weights, settings, side, cache_dir, f"{field}.{side}_weights")
        for side in ("picture", "sound")
    )
    picture_sum, sound_sum = file_sha256(picture_path), file_sha256(sound_path)
    picture, sound = small_id("picture", picture_sum), small_id("sound", sound_sum)
    digest = stable_hash("pair", SMALL_NUMBERS_VERSION, picture, sound, settings.frames_per_clip)
    return PairFiles(picture_path, picture_sum, sound_path, sound_sum, f"{SMALL_MODEL}-{digest}")


class EncoderPair:
    """Both encoders. ``encoder_id`` is stored with every embedding; it depends on all that changes the embeddings."""

    def __init__(self, picture: PictureEncoder | SmallPictureEncoder, sound: SoundEncoder, encoder_id: str) -> None:
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
        """Embeds clips, given RGB frames (T, H, W, 3) uint8 and mono sound (samples,) of each.

        On a CPU no clip's embedding depends on the other clips. Raises MediaError for a sound without samples or with NaN or
        infinity.
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
    """Loads both networks.

    Raises EncoderError when weights are missing, damaged, of another shape, or not trained for each other.
    """
    files = find_files(settings, cache_dir, field)
    if settings.is_small:
        return _load_small(settings, files, field)
    from pipeline.encoders.device import ComputeOptions, pick_device  # noqa: PLC0415
    from pipeline.encoders.sound import load_sound  # noqa: PLC0415

    device = pick_device(settings.device, f"{field}.device")
    if device.type == "cpu" and settings.precision == "fp16":
        raise EncoderError(f"{field}.precision: fp16 needs a GPU and there is none; use fp32 or bf16")
    running = ComputeOptions(device, settings.batch_size, settings.precision, settings.num_threads)
    with _naming(settings, "sound", f"{field}.sound_weights"):
        sound = load_sound(settings.sound_kind, files.sound_path, files.sound_sha256, running)
    with _naming(settings, "picture", f"{field}.picture_weights"):
        picture = _load_picture(settings, files, running)
    if picture.width != sound.width:
        raise EncoderError(_widths(settings, picture.width, sound.width))
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


def clips_at_once(settings: EncoderPairSettings) -> int:
    """The number of clips that a pair embeds at the same time: the batch size on a GPU, the number of threads on a CPU."""
    import torch  # noqa: PLC0415 (only the process that embeds needs it)

    from pipeline.encoders.device import pick_device  # noqa: PLC0415

    if not settings.is_small and pick_device(settings.device).type == "cuda":
        return settings.batch_size
    return settings.num_threads or torch.get_num_threads()


def _load_picture(
    settings: EncoderPairSettings, files: PairFiles, running: ComputeOptions
) -> PictureEncoder | SmallPictureEncoder:
    if settings.picture_model == SMALL_MODEL:
        from pipeline.encoders.small.towers import SmallPictureEncoder  # noqa: PLC0415

        return SmallPictureEncoder(files.picture_path, files.picture_sha256, settings.num_threads)
    from pipeline.encoders.picture import PictureEncoder  # noqa: PLC0415

    return PictureEncoder(
        settings.picture_model,
        _weights(settings, "picture"),
        files.picture_path,
        files.picture_sha256,
        running=running,
        gradients=False,
    )


def _load_small(settings: EncoderPairSettings, files: PairFiles, field: str) -> EncoderPair:
    from pipeline.encoders.small.towers import SmallPictureEncoder, SmallSoundEncoder  # noqa: PLC0415

    with _naming(settings, "picture", f"{field}.picture_weights"):
        picture = SmallPictureEncoder(files.picture_path, files.picture_sha256, settings.num_threads)
    with _naming(settings, "sound", f"{field}.sound_weights"):
        sound = SmallSoundEncoder(files.sound_path, files.sound_sha256, settings.num_threads)
    if sound.partner_id != picture.encoder_id:
        raise EncoderError(
            f"{field}: {files.sound_path} was trained with another picture tower than {files.picture_path}; "
            f"name two files that one run of python -m trainer.small_pair wrote"
        )
    logger.info("encoders %s", files.encoder_id)
    return EncoderPair(picture, sound, files.encoder_id)
