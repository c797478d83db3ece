"""Trains the packaged small pair, and measures it on pictures and sounds that it has not learned from.

    python -m trainer.small_pair --material FOLDER --out pipeline/encoders/small --report

``FOLDER`` is described in :mod:`trainer.small_pair.material`. One thread, some minutes; the same run gives the same bytes again on
the same kind of machine. With ``--report``, the calibration and the model card are written too.
"""

from __future__ import annotations

from pipeline.runtime.interrupts import end_quietly

if __name__ == "__main__":
    end_quietly()  # of Ctrl-C, also while what follows is imported

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
    RATE_HZ,
    SHORTEST_SECONDS,
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
"""Seeds of the painted scenes that are learned from; the sample catalogue uses seeds below 100."""
NUM_FOLDS = 5


def folds_of(items: Sequence[Item]) -> dict[str, int]:
    """A fold for each source, 0..NUM_FOLDS-1: those of a class, and of each side of the split, are dealt out evenly."""
    groups: dict[tuple[bool, str, bool], set[str]] = defaultdict(set)
    for item in items:
        groups[item.kind == "sound", item.label, item.held_out].add(item.source)
    folds: dict[str, int] = {}
    for (is_sound, label, held_out), sources in sorted(groups.items()):
        first = int(NUM_FOLDS * unit_interval("o", label, str(is_sound), str(held_out)))
        for place, source in enumerate(sorted(sources, key=lambda name: unit_interval("fold", name))):
            folds.setdefault(source, (place + first) % NUM_FOLDS)
    return folds


def tables(
    items: Sequence[Item], settings: SmallFitSettings, seed: int, folds: Mapping[str, int]
) -> tuple[Table, Table]:
    """The pictures and the sounds of these files, and painted ones. No row mixes sounds of two folds, nor one that
    is held out with one that is not."""
    rng = np.random.default_rng(seed)
    recordings = [
        LabelledSpan(item.label, item.source, sound=read_sound(item.path)) for item in items if item.kind == "sound"
    ]
    photos = [LabelledSpan(item.label, item.source, (read_photo(item.path),)) for item in items if item.kind == "photo"]
    videos = [clip for item in items if item.kind == "landscape" for clip in read_video_clips(item)]
    held_out = {item.source for item in items if item.held_out}
    make = SoundRows(recordings, {source: fold + NUM_FOLDS * (source in held_out) for source, fold in folds.items()})
    pictures = [picture_rows(clip, settings.num_changed_pictures, rng) for clip in (*photos, *videos)]
    sounds = [make(clip, settings.num_changed_sounds, rng) for clip in recordings]
    with_sound = [clip for clip in videos if len(clip.sound) >= SHORTEST_SECONDS * RATE_HZ]
    sounds += [make(clip, settings.num_changed_sounds // 2, rng) for clip in with_sound]
    logger.info("read %d photographs, %d videos' clips and %d recordings", len(photos), len(videos), len(recordings))
    for clip in painted_clips(PAINTED_SEEDS):
        pictures.append(picture_rows(clip, settings.num_changed_painted_pictures, rng, settings.painted_weight))
        sounds.append(make(clip, settings.num_changed_painted_sounds, rng, settings.painted_weight, painted=True))
    logger.info(
        "made features of %d pictures and %d sounds", *(sum(len(r.features) for r in s) for s in (pictures, sounds))
    )
    return table_of(pictures), table_of(sounds)


def fit_pair(pictures: Table, sounds: Table, settings: SmallFitSettings, seed: int, out: Path) -> Towers:
    """Fits both towers and writes them into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {side: out / PACKAGED[side].name for side in PACKAGED}
    config = SmallConfig(side="picture", classes=CLASSES)
    save_tower(paths["picture"], fit_tower(pictures, settings, seed, settings.picture_temperature), config)
    partner = file_sha256(paths["picture"])
    config = SmallConfig(side="sound", classes=CLASSES, trained_with=partner)
    save_tower(paths["sound"], fit_tower(sounds, settings, seed), config)
    return Towers(
        SmallPictureEncoder(paths["picture"], partner), SmallSoundEncoder(paths["sound"], file_sha256(paths["sound"]))
    )


def fit_folds(
    pictures: Table, sounds: Table, settings: SmallFitSettings, seed: int, folds: Mapping[str, int]
) -> list[Towers]:
    """A pair for each fold, which has learned from all the others."""
    fitted = []
    for fold in range(NUM_FOLDS):
        own = [source for source, place in folds.items() if place == fold]
        with tempfile.TemporaryDirectory() as folder:
            fitted.append(fit_pair(pictures.without(own), sounds.without(own), settings, seed, Path(folder)))
        logger.info("fold %d of %d fitted", fold + 1, NUM_FOLDS)
    return fitted


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.small_pair", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--material", type=Path, required=True, help="folder with index.csv, and pairs.csv if there are"
    )
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

            by_fold = fit_folds(pictures, sounds, settings, options.seed, folds)
            write_report(options.out, material, towers, {source: by_fold[fold] for source, fold in folds.items()})
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
