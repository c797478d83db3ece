"""Measures whether a model's videos follow the sound: compares, for held-out clips, videos of the right sound, other sounds and silence.

For each clip four videos are generated with the same latent and noise: from its own sound, from a sound of another class, from silence,
and from a sound that changes class half-way. The judge, an encoder pair, measures the agreement of the frames with sounds. The clips'
real frames show what values real videos reach. All intervals are 95 %, by bootstrap over the sources.

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
"""Ends of the names of measures that are shares, 0..1."""
TIE = 1e-6
"""Cosines that differ by less count as equal."""


class EvaluateSettings(Settings):
    """How the measures are computed."""

    num_seeds: int = Field(default=1, ge=1, le=1000)
    """Latents for each clip; a clip's measures are the means over them."""
    seed: int = Field(default=0, ge=0)
    """Seed of latents, noise, the choice of other sounds, and the bootstrap."""
    truncation: float | None = Field(default=None, ge=0, le=2)
    """psi of the latents. None: the model's own."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures that are generated at once."""
    num_resamples: int = Field(default=2000, ge=100)
    """Resamples of the bootstrap."""
    prompt: str = Field(default="a photo of {}", pattern=r"^[^{}]*\{\}[^{}]*$")
    """Text of a class for the judge, with {} for the class name."""
    use_blocks: bool = True
    """Whether the recurrent blocks compute the styles. False for a model of the invert stage."""


@dataclass(frozen=True, slots=True)
class HeldOutClip:
    """A clip that was not in training."""

    key: str
    source_id: str
    labels: tuple[str, ...]
    sound_K: Samples
    """Mono, at 44.1 kHz."""
    frames_THWC: Frames
    """Real frames, RGB."""


def held_out_clips(batches: Iterable[Batch], limit: int | None = None) -> list[HeldOutClip]:
    """The first ``limit`` labelled clips of a reader (None: all). The silence that fills up their windows is cut off."""
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
            "%d clips have no label and were left out: no sound of another class can be chosen for them", num_unlabelled
        )
    return clips[:limit]


def prove(
    model: SoundVideoModel,
    clips: Sequence[HeldOutClip],
    judge: EncoderPair,
    settings: EvaluateSettings | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """All measures by name; those that cannot be computed are left out. The interval of a measure is in ``NAME_low`` and ``NAME_high``.

    - ``agreement_right``, ``_wrong``, ``_silent``: mean cosine of a clip's sound with the video generated from it, from a sound of
      another class, from silence; ``right_minus_wrong``, ``right_minus_silent``: the mean differences over clips.
    - ``retrieval_at_1``, ``_at_5``: share of videos whose sound is the nearest, or among the five nearest, of all clips' sounds;
      ``retrieval_class``: share whose nearest sound is of the same class.
    - ``class_accuracy``: share of videos that are nearest to the prompt of their sound's class.
    - ``..._chance``: the score of guessing; for ``retrieval_class`` and ``class``, of the same answers shuffled over the clips.
    - ``change_in_time``: the sound is of class A in the first half and of class B in the second. The measure is how much better each
      half agrees with its own sound than with the other: the mean of ``change_first_half`` and ``change_second_half``. 0: no change.
      ``half_distance_changed``, ``_unchanged``: 1 - cosine between the frames of the halves, with and without the change.
    - ``real_...``: the same for the clips' real frames.

    ``classes``: the classes of ``class_accuracy``; None: those of the clips. The model computes in evaluation mode without gradients, and
    is left in its former mode. Raises DataError if there are too few clips, sources or classes to compare (:func:`comparable`).
    """
    comparable_clips = comparable(clips)
    was_training = model.training
    model.eval()
    try:
        return _Proof(model, comparable_clips, judge, settings or EvaluateSettings(), classes).measures()
    finally:
        model.train(was_training)


def comparable(clips: Sequence[HeldOutClip]) -> list[HeldOutClip]:
    """The clips for which there is a clip of another source that shares no label. Raises DataError if there are none."""
    apart_NN = mismatched([clip.source_id for clip in clips], [clip.labels for clip in clips])
    has_partners = [bool(apart_N.any()) for apart_N in apart_NN]
    with_partner = [clip for clip, has_partner in zip(clips, has_partners, strict=True) if has_partner]
    if not with_partner:
        labels = sorted({label for clip in clips for label in clip.labels})
        raise DataError(
            f"too little to compare: {len(clips)} labelled clips of {len({clip.source_id for clip in clips})} sources and "
            f"{len(labels)} classes ({', '.join(labels) or 'none'}); clips of two classes from two sources are needed at least"
        )
    if len(with_partner) < len(clips):
        example = next(clip.key for clip, has_partner in zip(clips, has_partners, strict=True) if not has_partner)
        logger.warning(
            "%d clips share a source or a label with every other and were left out, such as %s",
            len(clips) - len(with_partner),
            example,
        )
    return with_partner


@dataclass(slots=True)
class _VideoEmbeddings:
    """The judge's mean embeddings of the videos of one seed, or of the real frames: unit rows. None: not for real frames."""

    right_ND: Floats
    wrong_ND: Floats | None = None
    silent_ND: Floats | None = None
    halves: Mapping[str, Floats] = field(default_factory=dict)
    """first, second: (N, D), the halves of the video of the changing sound. first_same, second_same: of the video of the clip's own
    sound. Rows are NaN where a video has fewer than two frames."""


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
        self.apart_NN = mismatched(sources, self.labels)  # pairs of another source and class
        self.bootstrap = Bootstrap(sources, settings.num_resamples, settings.seed)
        self.sounds_ND = judge.sound.embed_sounds([clip.sound_K for clip in clips], SOUND_HZ).astype(np.float64)
        self.classes, self.prompts_CD = self._prompts(classes)
        self.results: dict[str, float] = {
            "num_clips": float(len(clips)),
            "num_sources": float(len(set(sources))),
            "num_classes": float(len({label for labels in self.labels for label in labels})),
            "num_seeds": float(settings.num_seeds),
        }

    def _prompts(self, classes: Sequence[str] | None) -> tuple[list[str], Floats | None]:
        """The classes that the judge can embed, and their embeddings; None with fewer than two."""
        names, rows = [], []
        for name in sorted({label for labels in self.labels for label in labels} if classes is None else set(classes)):
            try:
                rows.append(self.judge.embed_texts([self.settings.prompt.format(words(name))])[0].astype(np.float64))
                names.append(name)
            except EncoderError as error:
                logger.warning("class %s is left out of the class accuracy: %s", name, error)
        return names, np.stack(rows) if len(rows) > 1 else None

    def measures(self) -> dict[str, float]:
        per_clip: dict[str, list[Floats]] = defaultdict(list)
        chances: dict[str, list[float]] = defaultdict(list)
        for seed_index in range(self.settings.num_seeds):
            partners_N = self._partners(seed_index)
            self._measure(self._embed_generated(seed_index, partners_N), partners_N, "", per_clip, chances)
        self._measure(self._embed_real(), self._partners(0), "real_", per_clip, chances)
        for name, values in per_clip.items():
            self._add_mean(name, np.mean(values, axis=0))
        num_clips = len(self.clips)
        self.results |= {name: float(np.mean(values)) for name, values in chances.items()}
        self.results |= {"retrieval_chance": 1 / num_clips, "retrieval_at_5_chance": min(5, num_clips) / num_clips}
        return self.results

    def _add_mean(self, name: str, values_N: Floats) -> None:
        """Adds the mean over clips and its interval to the results, unless no clip has a value."""
        if not np.isfinite(values_N).any():
            return
        self.results[name] = float(np.nanmean(values_N))
        interval_of = self.bootstrap.interval_of_share if name.endswith(SHARES) else self.bootstrap.interval
        self.results[f"{name}_low"], self.results[f"{name}_high"] = interval_of(values_N)

    def _partners(self, seed_index: int) -> NDArray[np.intp]:
        """(N,): for each clip the index of a clip of another source and class, chosen at random."""
        partners = []
        for clip, apart_N in zip(self.clips, self.apart_NN, strict=True):
            candidates = np.flatnonzero(apart_N)
            fraction = unit_interval("wrong sound", self.settings.seed, seed_index, clip.key)
            partners.append(candidates[int(fraction * len(candidates))])
        return np.asarray(partners)

    # embeddings of generated and real frames

    def _embed_generated(self, seed_index: int, partners_N: NDArray[np.intp]) -> _VideoEmbeddings:
        sounds = [clip.sound_K for clip in self.clips]
        wrong_sounds = [sounds[partner] for partner in partners_N]
        seeds = [
            int(stable_hash("latent", self.settings.seed, seed_index, clip.key, length=15), 16) for clip in self.clips
        ]
        right = self._embed(sounds, seeds)
        changed = self._embed([spliced(*pair) for pair in zip(sounds, wrong_sounds, strict=True)], seeds)
        halves = {
            "first": _halves(changed, 0),
            "second": _halves(changed, 1),
            "first_same": _halves(right, 0),
            "second_same": _halves(right, 1),
        }
        return _VideoEmbeddings(
            _means(right),
            _means(self._embed(wrong_sounds, seeds)),
            _means(self._embed([np.zeros_like(sound) for sound in sounds], seeds)),
            halves,
        )

    def _embed_real(self) -> _VideoEmbeddings:
        return _VideoEmbeddings(_means(self.judge.picture.embed_groups([clip.frames_THWC for clip in self.clips])))

    def _embed(self, sounds: Sequence[Samples], seeds: Sequence[int]) -> list[NDArray[np.float32]]:
        """For each sound the embeddings (T, D) of its generated frames, one for each segment of the sound."""
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

    # measures

    def _measure(
        self,
        videos: _VideoEmbeddings,
        partners_N: NDArray[np.intp],
        prefix: str,
        per_clip: dict[str, list[Floats]],
        chances: dict[str, list[float]],
    ) -> None:
        """Adds the measures of every clip to ``per_clip``, and the scores of guessing to ``chances``, under names with ``prefix``."""
        sounds_ND = self.sounds_ND
        cosines_NN = videos.right_ND @ sounds_ND.T
        right_N = np.diagonal(cosines_NN).copy()
        # real frames have no video of another sound: they are compared with the other sound itself
        wrong_N = (
            _cosines(videos.right_ND, sounds_ND[partners_N])
            if videos.wrong_ND is None
            else _cosines(videos.wrong_ND, sounds_ND)
        )
        measures: dict[str, Floats] = {
            "agreement_right": right_N,
            "agreement_wrong": wrong_N,
            "right_minus_wrong": right_N - wrong_N,
        }
        if videos.silent_ND is not None:
            silent_N = _cosines(videos.silent_ND, sounds_ND)
            measures |= {"agreement_silent": silent_N, "right_minus_silent": right_N - silent_N}
        num_nearer_N = (cosines_NN >= right_N[:, None] - TIE).sum(1) - 1  # other sounds that are as near, or nearer
        measures |= {"retrieval_at_1": (num_nearer_N < 1) * 1.0, "retrieval_at_5": (num_nearer_N < 5) * 1.0}
        share_label_NN = np.asarray([[bool(set(a) & set(b)) for b in self.labels] for a in self.labels])
        nearest_NN = _shares_of_nearest(cosines_NN)
        measures["retrieval_class"] = (nearest_NN * share_label_NN).sum(1)
        chances[f"{prefix}retrieval_class_chance"].append(float((nearest_NN @ share_label_NN).mean()))
        if self.prompts_CD is not None:
            has_label_NC = np.asarray([[name in labels for name in self.classes] for labels in self.labels])
            has_class_N = has_label_NC.any(1)
            nearest_NC = _shares_of_nearest(videos.right_ND @ self.prompts_CD.T)
            measures["class_accuracy"] = np.where(has_class_N, (nearest_NC * has_label_NC).sum(1), np.nan)
            if has_class_N.any():
                shuffled = nearest_NC[has_class_N] @ has_label_NC[has_class_N].T
                chances[f"{prefix}class_chance"].append(float(shuffled.mean()))
        if videos.halves:
            measures |= self._change(videos.halves, partners_N)
        for name, values in measures.items():
            per_clip[prefix + name].append(values)

    def _change(self, halves: Mapping[str, Floats], partners_N: NDArray[np.intp]) -> dict[str, Floats]:
        """The measures of videos whose sound changes to the partner's half-way, (N,) each."""
        own_minus_other_ND = self.sounds_ND - self.sounds_ND[partners_N]
        first_N = _cosines(halves["first"], own_minus_other_ND)
        second_N = -_cosines(halves["second"], own_minus_other_ND)
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
    """(N,): the cosine of each row with the row of the same index."""
    products: Floats = (rows_ND * others_ND).sum(1)
    return products


def _means(frames: Sequence[NDArray[np.float32]]) -> Floats:
    """(N, D): the mean embedding of each video's frames (T, D), of length 1."""
    return np.stack([mean_embedding(rows_TD) for rows_TD in frames]).astype(np.float64)


def _halves(frames: Sequence[NDArray[np.float32]], half: int) -> Floats:
    """(N, D): the mean embedding of the frames of one half, 0 or 1. A middle frame belongs to neither. NaN: fewer than two frames."""
    means = []
    for rows_TD in frames:
        num_frames = len(rows_TD) // 2
        half_TD = rows_TD[len(rows_TD) - num_frames :] if half else rows_TD[:num_frames]
        means.append(mean_embedding(half_TD) if num_frames else np.full(rows_TD.shape[1], np.nan))
    return np.stack(means).astype(np.float64)


def _shares_of_nearest(cosines: Floats) -> Floats:
    """Rows with sum 1: 1 in the column with the highest cosine, divided equally between columns that tie."""
    nearest = cosines >= cosines.max(1, keepdims=True) - TIE
    shares: Floats = nearest / nearest.sum(1, keepdims=True)
    return shares
