"""The videos of the page: of each sound, beside the one of another class's sound, and of sounds that change class half-way.

Shape suffixes: K samples of sound.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MediaError
from trainer.model.sound_video import SoundVideoModel
from trainer.proof.sound_proof import SOUND_HZ
from trainer.proof.videos import Samples, spliced
from trainer.rendering.contact_sheet import strip
from trainer.rendering.sound_file import Sound, open_sound, sound_of_array
from trainer.rendering.sound_to_video import GenerateSettings, SoundFeatures, encode_sound, video_of
from trainer.rendering.video_writer import write_mp4, write_with_sound

MAX_CHANGES = 4
"""Largest number of videos whose sound changes half-way: each takes as long as a video of a sound."""
STRIP_SIZE_PX = (800, 56)
JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class PageSound:
    """A sound that was not in training."""

    path: Path
    labels: tuple[str, ...]
    """Its classes; empty: unknown."""

    @property
    def shown_class(self) -> str:
        return ", ".join(self.labels) or "unknown class"


@dataclass(frozen=True, slots=True)
class Clip:
    """A video to embed."""

    mp4: bytes
    poster_jpg: bytes
    """The frame in the middle."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What takes the place of a video that could not be made."""

    why: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The videos of a sound and of another class's sound, both with the first sound."""

    sound: PageSound
    other: PageSound | None
    """None: no other sound is of another class."""
    right: Clip | Missing
    wrong: Clip | Missing
    spectrum_png: bytes | None


@dataclass(frozen=True, slots=True)
class Change:
    """A video whose sound changes from one class to another."""

    first: PageSound
    second: PageSound
    clip: Clip | Missing
    seconds: float
    change_seconds: float
    spectrum_png: bytes | None


def partner_of(sounds: Sequence[PageSound], index: int) -> int | None:
    """The index of the sound that a sound is compared with: the one half the list further, or the next after it, that shares no class.

    None: there is none. A sound of unknown class has no partner and is none.
    """
    own = set(sounds[index].labels)
    for step in range(len(sounds)):
        other = (index + len(sounds) // 2 + step) % len(sounds)
        if own and sounds[other].labels and not own & set(sounds[other].labels):
            return other
    return None


def compare(
    model: SoundVideoModel, sounds: Sequence[PageSound], videos: Path, settings: GenerateSettings
) -> list[Comparison]:
    """A comparison for each sound, from the videos that ``trainer.generate`` made of them with ``settings`` in the folder ``videos``.

    All of them start from the same latent and noise, those of the seed. So the picture of another sound is that sound's video; it gets the
    compared sound.
    """
    partners = [partner_of(sounds, index) for index in range(len(sounds))]
    return [
        _compare(model, sound, None if partner is None else sounds[partner], videos, settings)
        for sound, partner in zip(sounds, partners, strict=True)
    ]


def _compare(
    model: SoundVideoModel, sound: PageSound, other: PageSound | None, videos: Path, settings: GenerateSettings
) -> Comparison:
    right = _made(lambda: _clip(_video(videos, sound)))
    wrong: Clip | Missing = Missing("none of the other sounds is known to be of another class")
    if other is not None:
        wrong = _made(lambda: _with_sound_of(sound, _video(videos, other)))
    return Comparison(sound, other, right, wrong, _spectrum(model, sound, settings))


def changes(model: SoundVideoModel, sounds: Sequence[PageSound], settings: GenerateSettings) -> list[Change]:
    """Videos of sounds that change half-way to the partner's, at most ``MAX_CHANGES``; a sound is in one of them at most."""
    pairs: list[tuple[PageSound, PageSound]] = []
    used: set[int] = set()
    for index, sound in enumerate(sounds):
        partner = partner_of(sounds, index)
        if partner is not None and not {index, partner} & used and len(pairs) < MAX_CHANGES:
            used |= {index, partner}
            pairs.append((sound, sounds[partner]))
    return [_change(model, first, second, settings) for first, second in pairs]


def _change(model: SoundVideoModel, first: PageSound, second: PageSound, settings: GenerateSettings) -> Change:
    try:
        samples_K = spliced(*(_mono(open_sound(sound.path), settings.seconds) for sound in (first, second)))
        seconds = len(samples_K) / SOUND_HZ
        sound = sound_of_array(samples_K, SOUND_HZ)
        of_this_length = settings.model_copy(update={"seconds": seconds})
        video = video_of(model, sound, of_this_length)
        clip = _written(lambda path: write_mp4(path, video.frames, settings.fps, sound, crf=settings.crf))
    except MediaError as error:
        return Change(first, second, Missing(str(error)), 0.0, 0.0, None)
    return Change(first, second, clip, seconds, len(samples_K) // 2 / SOUND_HZ, _strip_png(video.encoded, seconds))


def _mono(sound: Sound, seconds: float | None) -> Samples:
    return np.concatenate(list(sound.mono(SOUND_HZ, seconds)))


def _video(videos: Path, sound: PageSound) -> Path:
    return videos / f"{sound.path.stem}.mp4"


def _with_sound_of(sound: PageSound, picture: Path) -> Clip:
    heard = open_sound(sound.path)
    return _written(lambda path: write_with_sound(path, picture, heard))


def _made(make: Callable[[], Clip]) -> Clip | Missing:
    try:
        return make()
    except MediaError as error:
        return Missing(str(error))


def _written(write: Callable[[Path], object]) -> Clip:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write(path)
        return _clip(path)


def _clip(path: Path) -> Clip:
    """Raises MediaError for a file that is no video."""
    try:
        with av.open(path, mode="r") as container:
            middle = container.streams.video[0].frames // 2 if container.streams.video else 0
            for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
                if number == middle:
                    poster = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    return Clip(path.read_bytes(), _encoded(".jpg", poster))
    except av.error.FFmpegError as error:
        raise MediaError("not_media", f"{path}: it is no video that can be read: {error.strerror}") from error
    raise MediaError("no_video", f"{path}: it has no pictures")


def _spectrum(model: SoundVideoModel, sound: PageSound, settings: GenerateSettings) -> bytes | None:
    try:
        encoded = encode_sound(model, open_sound(sound.path), settings.seconds)
    except MediaError:
        return None  # said where its video is missing
    return _strip_png(encoded, settings.seconds or encoded.seconds)


def _strip_png(encoded: SoundFeatures, seconds: float) -> bytes:
    return _encoded(".png", strip(encoded.mel_MT, encoded.seconds / seconds, *STRIP_SIZE_PX))


def _encoded(kind: str, picture_HWC: NDArray[np.uint8]) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == ".jpg" else []
    done, data = cv2.imencode(kind, np.ascontiguousarray(picture_HWC[:, :, ::-1]), options)
    assert done
    return data.tobytes()
