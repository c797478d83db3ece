"""A pair of encoders: its settings, its id, and the embeddings of clips."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.encoders import pair as pairs
from pipeline.encoders.device import pick_device
from pipeline.encoders.pair import EncoderPairSettings, check_settings, find_files, load_pair
from pipeline.encoders.sound import (
    AlignConfig,
    SoundNetwork,
    save_align,
)
from pipeline.errors import EncoderError
from tests.pipeline.encoders.networks import RATE, TINY, frames, hum, rain, randomised, unit

# pairs


def settings(tiny, aligned, **changes) -> EncoderPairSettings:
    values = {
        "picture_model": TINY,
        "picture_weights": str(tiny),
        "sound_kind": "align",
        "sound_weights": str(aligned[0]),
    }
    return EncoderPairSettings(**{**values, **changes})


@pytest.mark.slow
def test_a_pair_embeds_clips_one_by_one(tiny, aligned, picture):
    pair = load_pair(settings(tiny, aligned))
    clips = [frames(4), frames(3, 60, 60, seed=1)]
    sounds = [rain(1), hum(3)]
    both = pair.embed_clips(clips, sounds, RATE)
    assert [rows.shape for rows in both.picture_frames] == [(4, 512), (3, 512)]
    assert np.abs(both.picture_frames[0] - picture.embed_pictures(clips[0])).max() < 1e-6  # its layers are packed
    assert np.abs(both.picture[1] - unit(both.picture_frames[1].mean(axis=0))).max() < 1e-6
    assert (both.picture.dtype, both.sound.dtype, both.sound.shape) == (np.float32, np.float32, (2, 512))
    for index in range(2):
        alone = pair.embed_clips(clips[index : index + 1], sounds[index : index + 1], RATE)
        assert np.array_equal(alone.picture[0], both.picture[index])
        assert np.array_equal(alone.sound[0], both.sound[index])
    assert pair.embed_clips([], [], RATE).picture.shape == (0, 512)
    assert np.abs(pair.embed_texts(["rain"]) - picture.embed_texts(["rain"])).max() < 1e-6
    with pytest.raises(ValueError, match="2 clips have frames, 1 have sound"):
        pair.embed_clips(clips, sounds[:1], RATE)


def test_published_sound_weights_make_pairs_too(tiny, aligned, soundclip, wav2clip, caplog):
    for kind, path in (("soundclip", soundclip[0]), ("wav2clip", wav2clip[0])):
        pair = load_pair(settings(tiny, aligned, sound_kind=kind, sound_weights=str(path)))
        assert pair.sound.embed_sounds([rain(1)], RATE).shape == (1, 512)
        assert f"{kind} was made for ViT-B/32, not for {TINY}" in caplog.text


@pytest.mark.slow
@pytest.mark.slow
def test_the_id_follows_the_numbers_not_the_paths(tiny, aligned, tmp_path):
    base = settings(tiny, aligned)
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(tiny.read_bytes())
    first = find_files(base).encoder_id
    assert first == load_pair(base).encoder_id
    same = [{"picture_weights": str(moved)}, {"batch_size": 3}, {"num_threads": 1}, {"device": "cpu"}]
    assert {find_files(settings(tiny, aligned, **change)).encoder_id for change in same} == {first}
    other = tmp_path / "align.safetensors"
    save_align(other, randomised(SoundNetwork(), 7), aligned[2])
    config = tmp_path / "config.safetensors"
    save_align(config, aligned[1], aligned[2].model_copy(update={"num_frames": 99}))
    changes = [
        {"sound_weights": str(other)},
        {"sound_weights": str(config)},
        {"frames_per_clip": 4},
        {"precision": "bf16"},
    ]
    assert len({first, *(find_files(settings(tiny, aligned, **change)).encoder_id for change in changes)}) == 5


def test_bf16_is_close_to_fp32(tiny, aligned):
    exact, rough = (
        load_pair(settings(tiny, aligned, precision=precision)).embed_clips([frames(3)], [rain(1)], RATE)
        for precision in ("fp32", "bf16")
    )
    assert 0.99 < exact.picture[0] @ rough.picture[0] < 0.9999999
    assert 0.99 < exact.sound[0] @ rough.sound[0] < 0.9999999


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_threads_changes_no_number(tiny, aligned, precision):
    """Neither how many clips are embedded side by side, nor how many threads torch has for everything else."""
    clips, sounds = [frames(3, seed=seed) for seed in range(3)], [rain(1 + seed, seed) for seed in range(3)]
    before = torch.get_num_threads()
    found = []
    try:
        for of_torch, num_threads in ((1, None), (1, 3), (2, None), (2, 1), (3, 2)):
            torch.set_num_threads(of_torch)
            pair = load_pair(settings(tiny, aligned, num_threads=num_threads, precision=precision))
            found.append((pair.embed_clips(clips, sounds, RATE), pair.embed_texts(["rain", "fire", "wind"])))
            assert torch.get_num_threads() == of_torch
    finally:
        torch.set_num_threads(before)
    (first, first_texts), *others = found
    for clip_rows, text_rows in others:
        assert np.array_equal(clip_rows.picture, first.picture)
        assert np.array_equal(clip_rows.sound, first.sound)
        assert np.array_equal(text_rows, first_texts)


def test_the_batch_size_of_gpus_changes_no_number_on_a_cpu(tiny, aligned):
    one, two = (
        load_pair(settings(tiny, aligned, batch_size=size)).embed_clips([frames(11)], [rain(1)], RATE)
        for size in (2, 32)
    )
    assert np.array_equal(one.picture_frames[0], two.picture_frames[0])
    assert np.array_equal(one.sound, two.sound)


def test_a_sound_network_of_another_partner_is_refused(tiny, aligned, tmp_path):
    path = tmp_path / "stranger.safetensors"
    save_align(path, aligned[1], aligned[2].model_copy(update={"picture_id": "ViT-B-32-0123"}))
    with pytest.raises(EncoderError, match="was trained with the picture encoder ViT-B-32-0123"):
        load_pair(settings(tiny, aligned, sound_weights=str(path)))


def test_widths_are_compared_before_anything_is_loaded(tiny, aligned, tmp_path, monkeypatch):
    path = tmp_path / "narrow.safetensors"
    save_align(path, SoundNetwork(width=24), AlignConfig(width=24))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(EncoderError, match=rf"{TINY} has width 512, the align network .*narrow.* has 24"):
        check_settings(settings(tiny, aligned, sound_weights=str(path)))
    with pytest.raises(EncoderError, match=r"RN50 has width 1024, the soundclip network .* has 512"):
        check_settings(settings(tiny, aligned, picture_model="RN50", sound_kind="soundclip"))


def test_all_problems_are_found_at_once_before_any_work(tiny, aligned):
    check_settings(settings(tiny, aligned))
    wrong = settings(tiny, aligned, picture_model="ViT-B-33", sound_weights="nowhere.pt", device="cuda:7")
    with pytest.raises(EncoderError) as caught:
        check_settings(wrong, "agreement.encoders")
    message = str(caught.value)
    assert "agreement.encoders.picture_model: open_clip has no model named 'ViT-B-33'; near names: ViT-B-32" in message
    assert "agreement.encoders.sound_weights: there is no file 'nowhere.pt'" in message
    assert "agreement.encoders.device: 'cuda:7' is not there" in message
    with pytest.raises(EncoderError, match=r"'openay' is no file, and no pretrained tag of ViT-B-32 \(tags: openai, "):
        check_settings(settings(tiny, aligned, picture_model="ViT-B-32", picture_weights="openay"))


def test_settings_refuse_what_cannot_be(tiny, aligned):
    url = "https://127.0.0.1/w.pt"
    assert settings(tiny, aligned, sound_weights=url, sound_sha256="A" * 64).sound_sha256 == "a" * 64
    for changes, message in [
        ({"sound_weights": url}, "sound_weights is a URL: give sound_sha256"),
        ({"picture_weights": url}, "picture_weights is a URL: give picture_sha256"),
        ({"sound_sha256": "abc"}, "sound_sha256"),
        ({"sound_kind": "random"}, "sound_kind"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        ({"frames_per_clip": 0}, "frames_per_clip"),
    ]:
        with pytest.raises(ValidationError, match=message):
            settings(tiny, aligned, **changes)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name, message in [
        ("gpu", "'gpu' is no device"),
        ("meta", "'meta' is not supported"),
        ("cuda:9", "is not there"),
    ]:
        with pytest.raises(EncoderError, match=message):
            pick_device(name, "encoders.device")


def test_nothing_is_logged_as_an_error(tiny, aligned, caplog):
    with caplog.at_level(logging.WARNING):
        load_pair(settings(tiny, aligned))
    assert caplog.records == []


def test_the_settings_are_documented():
    assert all(field.description for field in EncoderPairSettings.model_fields.values())
    assert pairs.NUMBERS_VERSION == 2


@pytest.mark.slow
def test_importing_fetches_nothing():
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import pipeline.encoders.pair, pipeline.encoders.picture, pipeline.encoders.sound\n"
        "pipeline.encoders.sound.SoundNetwork()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
