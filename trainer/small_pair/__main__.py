"""Trains the packaged small pair, and measures it on pictures and sounds that it was not trained on.

    python -m trainer.small_pair --material FOLDER --out pipeline/encoders/small --report

``FOLDER`` is described in :mod:`trainer.small_pair.material`. A run takes some minutes on one thread. A second run on the same kind of
machine gives the same bytes. With ``--report``, the calibration and the model card are written too.
"""

from __future__ import annotations

from pipeline.runtime.interrupts import end_quietly

if __name__ == "__main__":
    end_quietly()  # on Ctrl-C, also during the imports below

import argparse
import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.encoders.small.towers import PACKAGED, SmallConfig, SmallPictureEncoder, SmallSoundEncoder, save_tower
from pipeline.encoders.weights import file_sha256
from pipeline.errors import UserError
from pipeline.schema import unit_interval
from trainer.small_pair.fit import (
    CLASSES,
    SmallFitSettings,
    SoundRows,
    Table,
    fit_tower,
    picture_rows,
    single_threaded,
    table_of,
)
from trainer.small_pair.material import (
    MIN_SECONDS,
    RATE_HZ,
    Item,
    LabelledSpan,
    painted_clips,
    read_material,
    read_photo,
    read_sound,
    read_video_clips,
)
from trainer.small_pair.report import Towers

logger = logging.getLogger(__name__)

PAINTED_SEEDS = range(1000, 1012)
"""Seeds of the painted scenes to train on; the sample catalogue uses seeds below 100."""
NUM_FOLDS = 5


def folds_of(items: Sequence[Item]) -> dict[str, int]:
    """Source -> fold, 0..NUM_FOLDS-1. The sources of each class are distributed evenly, held-out ones and others apart."""
    groups: dict[tuple[bool, str, bool], set[str]] = defaultdict(set)
    for item in items:
        groups[item.kind == "sound", item.label, item.held_out].add(item.source)
    folds: dict[str, int] = {}
    for (is_sound, label, held_out), sources in sorted(groups.items()):
        first_fold = int(NUM_FOLDS * unit_interval("o", label, str(is_sound), str(held_out)))
        for index, source in enumerate(sorted(sources, key=lambda name: unit_interval("fold", name))):
            folds.setdefault(source, (first_fold + index) % NUM_FOLDS)
    return folds


def tables(
    items: Sequence[Item], settings: SmallFitSettings, seed: int, folds: Mapping[str, int]
) -> tuple[Table, Table]:
    """The pictures and the sounds of these files and of painted scenes. No row mixes sounds of two folds, or a held-out sound with
    another."""
    rng = np.random.default_rng(seed)
    recordings = [
        LabelledSpan(item.label, item.source, sound=read_sound(item.path)) for item in items if item.kind == "sound"
    ]
    photos = [LabelledSpan(item.label, item.source, (read_photo(item.path),)) for item in items if item.kind == "photo"]
    videos = [clip for item in items if item.kind == "landscape" for clip in read_video_clips(item)]
    held_out = {item.source for item in items if item.held_out}
    mixing_groups = {source: fold + NUM_FOLDS * (source in held_out) for source, fold in folds.items()}
    sound_rows = SoundRows(recordings, mixing_groups)
    pictures = [picture_rows(clip, settings.num_changed_pictures, rng) for clip in (*photos, *videos)]
    sounds = [sound_rows(clip, settings.num_changed_sounds, rng) for clip in recordings]
    with_sound = [clip for clip in videos if len(clip.sound) >= MIN_SECONDS * RATE_HZ]
    sounds += [sound_rows(clip, settings.num_changed_sounds // 2, rng) for clip in with_sound]
    logger.info("read %d photographs, %d clips of videos and %d recordings", len(photos), len(videos), len(recordings))
    for clip in painted_clips(PAINTED_SEEDS):
        pictures.append(picture_rows(clip, settings.num_changed_painted_pictures, rng, settings.painted_weight))
        sounds.append(sound_rows(clip, settings.num_changed_painted_sounds, rng, settings.painted_weight, painted=True))
    num_pictures, num_sounds = (sum(len(rows.features) for rows in side) for side in (pictures, sounds))
    logger.info("made features of %d pictures and %d sounds", num_pictures, num_sounds)
    return table_of(pictures), table_of(sounds)


def fit_pair(pictures: Table, sounds: Table, settings: SmallFitSettings, seed: int, out: Path) -> Towers:
    """Fits both towers and writes them into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {side: out / PACKAGED[side].name for side in PACKAGED}
    config = SmallConfig(side="picture", classes=CLASSES)
    save_tower(paths["picture"], fit_tower(pictures, settings, seed, settings.picture_temperature), config)
    picture_sha256 = file_sha256(paths["picture"])
    config = SmallConfig(side="sound", classes=CLASSES, trained_with=picture_sha256)
    save_tower(paths["sound"], fit_tower(sounds, settings, seed), config)
    return Towers(
        SmallPictureEncoder(paths["picture"], picture_sha256),
        SmallSoundEncoder(paths["sound"], file_sha256(paths["sound"])),
    )


def fit_folds(
    pictures: Table, sounds: Table, settings: SmallFitSettings, seed: int, folds: Mapping[str, int]
) -> list[Towers]:
    """A pair for each fold, trained on all other folds."""
    pairs = []
    for fold in range(NUM_FOLDS):
        left_out = [source for source, source_fold in folds.items() if source_fold == fold]
        with tempfile.TemporaryDirectory() as folder:
            pairs.append(fit_pair(pictures.without(left_out), sounds.without(left_out), settings, seed, Path(folder)))
        logger.info("fold %d of %d fitted", fold + 1, NUM_FOLDS)
    return pairs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.small_pair", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--material", type=Path, required=True, help="folder with index.csv, and optionally pairs.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder for picture.safetensors and sound.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="also write calibration.json and MODEL_CARD.md")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    single_threaded()
    try:
        material = read_material(options.material)
        settings, folds = SmallFitSettings(), folds_of(material.items)
        pictures, sounds = tables(material.items, settings, options.seed, folds)
        held_out = [item.source for item in material.items if item.held_out]
        towers = fit_pair(pictures.without(held_out), sounds.without(held_out), settings, options.seed, options.out)
        if options.report:
            from trainer.small_pair.card import write_report  # noqa: PLC0415

            fold_pairs = fit_folds(pictures, sounds, settings, options.seed, folds)
            write_report(options.out, material, towers, {source: fold_pairs[fold] for source, fold in folds.items()})
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
