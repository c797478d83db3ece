"""The catalogue of synthetic sources: what it covers, and what a spec refuses."""

from dataclasses import replace

import pytest

from pipeline.schema import Bars, Reason
from pipeline.synthetic.catalogue import Encoding, SceneSpec, SoundSpec, catalogue
from pipeline.synthetic.render import spec_frames
from pipeline.synthetic.sounds import NATURE_KINDS

SPECS = {spec.name: spec for spec in catalogue()}


def test_the_catalogue_covers_every_class_and_names_are_used_once():
    specs = catalogue()
    assert {spec.label for spec in specs if spec.expected == "kept"} == set(NATURE_KINDS)
    assert len({spec.name for spec in specs}) == len({spec.file_name for spec in specs}) == len(specs)
    reasons = {spec.expected for spec in specs} - {"kept", "failed:truncated", "failed:not_media", "failed:empty"}
    assert reasons <= set(Reason)
    assert {spec.duplicate_of for spec in specs} - {None} <= set(SPECS)
    assert sum(spec.picture_seconds for spec in specs) < 400


def test_specs_refuse_kinds_that_there_are_not():
    with pytest.raises(ValueError, match="no scene of kind 'snow'"):
        SceneSpec("snow", 1.0, 1)
    with pytest.raises(ValueError, match="no sound of kind 'snow'"):
        SoundSpec("snow", 1.0, 1)
    with pytest.raises(ValueError, match="above 0 s, got 0"):
        SceneSpec("rain", 0, 1)


def test_scaling_a_spec_keeps_even_sizes_and_its_bars():
    small = SPECS["ocean_letterboxed"].scaled(0.5)
    assert (small.width, small.height, small.bars) == (320, 180, Bars(top=22, bottom=22))
    assert next(spec_frames(replace(small, fps=10.0))).shape == (180, 320, 3)
    assert SPECS["fire_camp"].scaled(0.3).width == 256
    assert small.encoding == Encoding()


def test_every_class_is_learned_from_and_held_out():
    kept = [spec for spec in catalogue() if spec.expected == "kept"]
    by_split = {split: {spec.label for spec in kept if spec.split == split} for split in ("train", "validation")}
    assert by_split["train"] == by_split["validation"] == {spec.label for spec in kept}
    assert {spec.split for spec in catalogue() if spec.expected != "kept"} == {""}
