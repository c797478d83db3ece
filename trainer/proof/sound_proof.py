"""The proof that sound matters: for held-out clips, what is generated from the right sound against other sounds and silence.

For each clip four videos are drawn, with the same latent and the same noise: from its own sound, from a sound of another class, from
silence, and from a sound that changes class half-way. An encoder pair looks at the frames and says how well they agree with sounds.
The clips' real frames give the upper reference. All intervals are 95 %, by bootstrap over the sources.

Shape suffixes: N clips, D width of the space, T frames, S segments, K samples of sound, C classes, R resamples.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.encoders.mel import resampled
from pipeline.encoders.pair import EncoderPair
from pipeline.encoders.vectors import mean_embedding
from pipeline.errors import DataError, EncoderError
from pipeline.schema import stable_hash, unit_interval
from pipeline.settings import Settings
from trainer.align.prompts import words
from trainer.align.retrieval import mismatched
from trainer.model.sound_video import SoundVideoModel
from trainer.proof.bootstrap import Bootstrap
from trainer.proof.videos import Frames, Samples, draw_videos, spliced
from trainer.streaming.batches import Batch

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

SOUND_HZ = 44_100
SHARES = ("retrieval_at_1", "retrieval_at_5", "retrieval_class", "class_accuracy")
TIE = 1e-6
"""Cosines that differ by less are equal."""


class EvaluateSettings(Settings):
    """How the proof is taken."""

    num_seeds: int = Field(default=1, ge=1, le=1000)
    """Latents that each clip is generated with; its measures are their means."""
    seed: int = Field(default=0, ge=0)
    """Decides latents, noise, which other sounds are taken, and the bootstrap."""
    truncation: float | None = Field(default=None, ge=0, le=2)
    """psi of the latents. None: the model's own."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures that are drawn at once."""
    num_resamples: int = Field(default=2000, ge=100)
    """Resamples of the bootstrap."""
    prompt: str = Field(default="a photo of {}", pattern=r"^[^{}]*\{\}[^{}]*$")
    """The words that stand for a class, with {} for its name."""
    use_blocks: bool = True
    """Whether the recurrent blocks carry the styles on. False for a model of the invert stage."""


@dataclass(frozen=True, slots=True)
class HeldOutClip:
    """A clip that the model never learned from."""

    key: str
    source_id: str
    labels: tuple[str, ...]
    sound_N: Samples
    """Mono, at 44.1 kHz."""
    frames_THWC: Frames
    """Real frames, RGB."""


def held_out_clips(batches: Iterable[Batch], limit: int | None = None) -> list[HeldOutClip]:
    """The first ``limit`` clips of a reader that have a label; silence that only fills a window up is left out."""
    clips: list[HeldOutClip] = []
    num_unlabelled = 0
    for batch in batches:
        for row in range(len(batch)):
            if not batch.labels[row]:
                num_unlabelled += 1
                continue
            length = max(1, round(float(batch.seconds_B[row]) * SOUND_HZ))
            clips.append(
                HeldOutClip(
                    batch.keys[row],
                    f"{batch.datasets[row]}/{batch.source_ids[row]}",
                    batch.labels[row],
                    batch.sounds_BN[row, :length].numpy().copy(),
                    batch.frames_BTCHW[row].permute(0, 2, 3, 1).contiguous().numpy(),
                )
            )
        if limit is not None and len(clips) >= limit:
            break
    if num_unlabelled:
        logger.warning(
            "%d clips have no label and were left out: no sound is of another class than theirs", num_unlabelled
        )
    return clips[:limit]


def prove(
    model: SoundVideoModel,
    clips: Sequence[HeldOutClip],
    judge: EncoderPair,
    settings: EvaluateSettings | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Every measure by name; one that cannot be taken is not there. A measure with an interval has ``_low`` and ``_high`` beside it.

    - ``agreement_right``, ``_wrong``, ``_silent``: mean cosine of a clip's sound with the video made of it, of a sound of another
      class, of silence; ``right_minus_wrong``, ``right_minus_silent``: the differences, clip by clip.
    - ``retrieval_at_1``, ``_at_5``: share of videos whose sound is the nearest, or among the five nearest, of all clips' sounds;
      ``retrieval_class``: share whose nearest sound is of the same class.
    - ``class_accuracy``: share of videos nearest to the prompt of their sound's class. The chance of both class measures is what
      the same answers would get if they were shuffled over the clips.
    - ``change_in_time``: the sound is of class A in the first half and of B in the second; by how much each half agrees better with
      its own class's sound than with the other's, mean of ``change_first_half`` and ``change_second_half``. 0: nothing changes.
      ``half_distance_changed``, ``_unchanged``: 1 - cosine between the halves' frames, with and without the change.
    - ``real_...``: the same of the clips' real frames.

    ``classes``: None, or those that a picture may be taken for; else those of the clips. Without gradient; the model stays as it is.
    Raises DataError where there are too few clips, sources or classes to compare (:func:`comparable`).
    """
    chosen = settings or EvaluateSettings()
    compared = comparable(clips)
    was_training = model.training
    model.eval()
    try:
        return _Proof(model, compared, judge, chosen, classes).measures()
    finally:
        model.train(was_training)


def comparable(clips: Sequence[HeldOutClip]) -> list[HeldOutClip]:
    """Those clips that another one can be compared with: of another source, and without a label in common.

    Raises DataError where there are none.
    """
    apart_NN = mismatched([clip.source_id for clip in clips], [clip.labels for clip in clips])
    has_others = [bool(apart_N.any()) for apart_N in apart_NN]
    kept = [clip for clip, has_other in zip(clips, has_others, strict=True) if has_other]
    if not kept:
        labels = sorted({label for clip in clips for label in clip.labels})
        raise DataError(
            f"too little to compare: {len(clips)} labelled clips of {len({clip.source_id for clip in clips})} sources and "
            f"{len(labels)} classes ({', '.join(labels) or 'none'}); clips of two classes from two sources are the least"
        )
    if len(kept) < len(clips):
        alone = next(clip.key for clip, has_other in zip(clips, has_others, strict=True) if not has_other)
        logger.warning(
            "%d clips share a source or a label with every other and were left out, such as %s",
            len(clips) - len(kept),
            alone,
        )
    return kept


@dataclass(slots=True)
class _Seen:
    """What a judge saw in the videos of one seed, or in the real frames: rows of length 1."""

    right_ND: Floats
    wrong_ND: Floats | None = None
    silent_ND: Floats | None = None
    halves: Mapping[str, Floats] = field(default_factory=dict)
    """first, second: of the changing sound; first_same, second_same: of the clip's own. NaN where a video has too few frames."""


class _Proof:
    def __init__(
        self,
        model: SoundVideoModel,
        clips: Sequence[HeldOutClip],
        judge: EncoderPair,
        settings: EvaluateSettings,
        classes: Sequence[str] | None,
    ) -> None:
        self.model, self.clips, self.judge, self.settings = model, clips, judge, settings
        self.labels = [clip.labels for clip in clips]
        sources = [clip.source_id for clip in clips]
        self.apart_NN = mismatched(sources, self.labels)
        self.bootstrap = Bootstrap(sources, settings.num_resamples, settings.seed)
        self.sounds_ND = judge.sound.embed_sounds([clip.sound_N for clip in clips], SOUND_HZ).astype(np.float64)
        self.classes, self.prompts_CD = self._prompts(classes)
        self.found: dict[str, float] = {
            "num_clips": float(len(clips)),
            "num_sources": float(len(set(sources))),
            "num_classes": float(len({label for own in self.labels for label in own})),
            "num_seeds": float(settings.num_seeds),
        }

    def _prompts(self, classes: Sequence[str] | None) -> tuple[list[str], Floats | None]:
        """Classes that the judge has words for; fewer than two say nothing."""
        names, rows = [], []
        for name in sorted({label for own in self.labels for label in own} if classes is None else set(classes)):
            try:
                rows.append(self.judge.embed_texts([self.settings.prompt.format(words(name))])[0].astype(np.float64))
                names.append(name)
            except EncoderError as error:
                logger.warning("class %s is left out of the class accuracy: %s", name, error)
        return names, np.stack(rows) if len(rows) > 1 else None

    def measures(self) -> dict[str, float]:
        per_clip: dict[str, list[Floats]] = defaultdict(list)
        chances: dict[str, list[float]] = defaultdict(list)
        for number in range(self.settings.num_seeds):
            partners = self._partners(number)
            self._measure(self._generated(number, partners), partners, "", per_clip, chances)
        self._measure(self._real(), self._partners(0), "real_", per_clip, chances)
        for name, values in per_clip.items():
            self._tell(name, np.mean(values, axis=0))
        count = len(self.clips)
        self.found |= {name: float(np.mean(values)) for name, values in chances.items()}
        self.found |= {"retrieval_chance": 1 / count, "retrieval_at_5_chance": min(5, count) / count}
        return self.found

    def _tell(self, name: str, values_N: Floats) -> None:
        if not np.isfinite(values_N).any():
            return
        self.found[name] = float(np.nanmean(values_N))
        tell = self.bootstrap.interval_of_share if name.endswith(SHARES) else self.bootstrap.interval
        self.found[f"{name}_low"], self.found[f"{name}_high"] = tell(values_N)

    def _partners(self, number: int) -> NDArray[np.intp]:
        """(N,): for each clip one of another source and class."""
        chosen = []
        for clip, apart_N in zip(self.clips, self.apart_NN, strict=True):
            candidates = np.flatnonzero(apart_N)
            place = unit_interval("wrong sound", self.settings.seed, number, clip.key)
            chosen.append(candidates[int(place * len(candidates))])
        return np.asarray(chosen)

    # what is drawn, and what the judge sees in it

    def _generated(self, number: int, partners: NDArray[np.intp]) -> _Seen:
        sounds = [clip.sound_N for clip in self.clips]
        wrong = [sounds[partner] for partner in partners]
        seeds = [int(stable_hash("latent", self.settings.seed, number, clip.key, length=15), 16) for clip in self.clips]
        right = self._embedded(sounds, seeds)
        changed = self._embedded([spliced(*pair) for pair in zip(sounds, wrong, strict=True)], seeds)
        halves = {
            "first": _halves(changed, 0),
            "second": _halves(changed, 1),
            "first_same": _halves(right, 0),
            "second_same": _halves(right, 1),
        }
        return _Seen(
            _means(right),
            _means(self._embedded(wrong, seeds)),
            _means(self._embedded([np.zeros_like(sound) for sound in sounds], seeds)),
            halves,
        )

    def _real(self) -> _Seen:
        return _Seen(_means(self.judge.picture.embed_groups([clip.frames_THWC for clip in self.clips])))

    def _embedded(self, sounds: Sequence[Samples], seeds: Sequence[int]) -> list[NDArray[np.float32]]:
        """(T, D) of the frames that each sound becomes, one for each of its segments."""
        return self.judge.picture.embed_groups(
            draw_videos(
                self.model,
                [resampled(sound, SOUND_HZ, self.model.config.mel.sample_rate_hz) for sound in sounds],
                seeds,
                truncation=self.settings.truncation,
                batch_size=self.settings.batch_size,
                use_blocks=self.settings.use_blocks,
            )
        )

    # what follows from it

    def _measure(
        self,
        seen: _Seen,
        partners: NDArray[np.intp],
        prefix: str,
        per_clip: dict[str, list[Floats]],
        chances: dict[str, list[float]],
    ) -> None:
        """Adds the values of every clip to ``per_clip``, and what chance would give to ``chances``."""
        sounds_ND = self.sounds_ND
        cosines_NN = seen.right_ND @ sounds_ND.T
        right_N = np.diagonal(cosines_NN).copy()
        # real frames have no video of another sound: they are held against that sound itself
        pair = (seen.right_ND, sounds_ND[partners]) if seen.wrong_ND is None else (seen.wrong_ND, sounds_ND)
        wrong_N = _cosines(*pair)
        told: dict[str, Floats] = {
            "agreement_right": right_N,
            "agreement_wrong": wrong_N,
            "right_minus_wrong": right_N - wrong_N,
        }
        if seen.silent_ND is not None:
            silent_N = _cosines(seen.silent_ND, sounds_ND)
            told |= {"agreement_silent": silent_N, "right_minus_silent": right_N - silent_N}
        before_N = (cosines_NN >= right_N[:, None] - TIE).sum(1) - 1
        told |= {"retrieval_at_1": (before_N < 1) * 1.0, "retrieval_at_5": (before_N < 5) * 1.0}
        shared_NN = np.asarray([[bool(set(a) & set(b)) for b in self.labels] for a in self.labels])
        nearest_NN = _shares_of_nearest(cosines_NN)
        told["retrieval_class"] = (nearest_NN * shared_NN).sum(1)
        chances[f"{prefix}retrieval_class_chance"].append(float((nearest_NN @ shared_NN).mean()))
        if self.prompts_CD is not None:
            is_of_NC = np.asarray([[name in own for name in self.classes] for own in self.labels])
            named_N = is_of_NC.any(1)
            nearest_NC = _shares_of_nearest(seen.right_ND @ self.prompts_CD.T)
            told["class_accuracy"] = np.where(named_N, (nearest_NC * is_of_NC).sum(1), np.nan)
            if named_N.any():
                chances[f"{prefix}class_chance"].append(float((nearest_NC[named_N] @ is_of_NC[named_N].T).mean()))
        if seen.halves:
            told |= self._change(seen.halves, partners)
        for name, values in told.items():
            per_clip[prefix + name].append(values)

    def _change(self, halves: Mapping[str, Floats], partners: NDArray[np.intp]) -> dict[str, Floats]:
        lean_ND = self.sounds_ND - self.sounds_ND[partners]
        first_N, second_N = _cosines(halves["first"], lean_ND), -_cosines(halves["second"], lean_ND)
        changed_N = 1 - _cosines(halves["first"], halves["second"])
        unchanged_N = 1 - _cosines(halves["first_same"], halves["second_same"])
        return {
            "change_first_half": first_N,
            "change_second_half": second_N,
            "change_in_time": (first_N + second_N) / 2,
            "half_distance_changed": changed_N,
            "half_distance_unchanged": unchanged_N,
            "half_distance_difference": changed_N - unchanged_N,
        }


def _cosines(rows_ND: Floats, others_ND: Floats) -> Floats:
    """(N,): row by row."""
    products: Floats = (rows_ND * others_ND).sum(1)
    return products


def _means(frames: Sequence[NDArray[np.float32]]) -> Floats:
    return np.stack([mean_embedding(rows_TD) for rows_TD in frames]).astype(np.float64)


def _halves(frames: Sequence[NDArray[np.float32]], half: int) -> Floats:
    """(N, D): the frames of one half; one in the middle belongs to none."""
    rows = []
    for rows_TD in frames:
        count = len(rows_TD) // 2
        part_TD = rows_TD[len(rows_TD) - count :] if half else rows_TD[:count]
        rows.append(mean_embedding(part_TD) if count else np.full(rows_TD.shape[1], np.nan))
    return np.stack(rows).astype(np.float64)


def _shares_of_nearest(cosines: Floats) -> Floats:
    """Rows of sum 1: all on the nearest column; equally on those that tie for it."""
    nearest = cosines >= cosines.max(1, keepdims=True) - TIE
    shares: Floats = nearest / nearest.sum(1, keepdims=True)
    return shares
