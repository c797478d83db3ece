"""Generators out of files of every form, and files that are damaged or of something else."""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import pickle
import random
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import EncoderError, GeneratorError
from tests.trainer.model.networks import TINY, TINY2, TINY3R, TINY3T, tiny, tiny_judge
from tests.trainer.model.official_form import official_pickle, rosinality_discriminator_state, rosinality_state
from trainer.model.convert import main as convert_main
from trainer.model.features import FeatureSettings
from trainer.model.formats.symbolic_pickle import read_pickle
from trainer.model.formats.torch_files import plain_number, storage_in_pickle, tensor_of
from trainer.model.frame_encoder import FrameCodes, FrameEncoderConfig
from trainer.model.generator import Generator, GeneratorConfig, build_generator, estimate_w_avg, latents, widths_of
from trainer.model.generator_file import DiscriminatorConfig
from trainer.model.load import load_generator, read_generator_file, save_generator
from trainer.model.pictures import grid, pictures
from trainer.model.sample import main as sample_main
from trainer.model.sample import seeds_of

KINDS = sorted(TINY)


def _same(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert set(a.state_dict()) == set(theirs)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def _same_picture(a: Generator, b: Generator, **mode: str) -> None:
    """Equal weights lie elsewhere in memory, and in another order of strides: the last bits of a convolution may differ."""
    with torch.no_grad():
        pictures = [generator(latents([4], generator.z_dim), **mode) for generator in (a, b)]
    torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_official_pickles(kind: str, protocol: int, tmp_path: Path) -> None:
    generator, judge = tiny(TINY[kind]), tiny_judge(TINY[kind])
    path = tmp_path / "network.pkl"
    path.write_bytes(official_pickle(TINY[kind], generator, judge, protocol=protocol))
    loaded = load_generator(path)
    _same(loaded, generator)
    _same_picture(loaded, generator)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    _same(read_generator_file(path).discriminator(), judge)


def test_settings_come_from_the_official_file(tmp_path: Path) -> None:
    config = TINY3R.model_copy(
        update={"num_half": 2, "conv_clamp": 200.0, "magnitude_beta": 0.99, "mapping_layers": 3, "margin": 12}
    )
    path = tmp_path / "network.pkl"
    path.write_bytes(official_pickle(config, tiny(config)))
    assert read_generator_file(path).config == config
    config = TINY2.model_copy(update={"num_half": 2, "conv_clamp": 256.0, "c_dim": 3, "widths": (8, 4, 6)})
    path.write_bytes(official_pickle(config, tiny(config), tiny_judge(config)))
    held = read_generator_file(path)
    named = held.config.model_dump(exclude={"channel_base", "channel_max"})
    assert named == config.model_dump(exclude={"channel_base", "channel_max"})
    assert held.discriminator_config == DiscriminatorConfig(
        resolution=16, widths=(8, 4, 6), c_dim=3, num_half=2, conv_clamp=256.0, mapping_width=8
    )
    judge = held.discriminator()
    assert judge(torch.zeros(1, 3, 16, 16), torch.eye(3)[:1]).shape == (1, 1)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("synthesis.b8", {"architecture": "orig"}, "synthesis.b8.architecture is 'orig'"),
        ("synthesis.b8", {"architecture": "resnet"}, "synthesis.b8 is not of the skip architecture"),
        ("mapping.fc0", {"activation": "relu"}, "mapping.fc0.activation is 'relu'"),
        ("mapping.fc0", {"bias_gain": 1.0}, "learning rate is not 0.01"),
        ("synthesis.b8.conv0", {"use_noise": False}, "has no noise"),
        ("", {"img_resolution": 32}, "widths"),
        ("", {"z_dim": 9}, r"mapping.fc0.weight has shape \(8, 8\), wanted \(8, 9\)"),
        ("", {"img_resolution": "large"}, "resolution: Input should be a valid integer"),
        ("", {"_modules": {}}, "mapping is missing"),
        ("mapping", {"_parameters": {"more": torch.zeros(3)}}, "mapping.more is not part of it"),
        ("mapping", {"_buffers": {"w_avg": torch.full((8,), torch.nan)}}, "mapping.w_avg holds NaN"),
        ("synthesis.b8", {"_buffers": {"resample_filter": torch.eye(4)}}, "uses another filter"),
    ],
)
def test_official_files_that_are_not_supported(name: str, change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(official_pickle(TINY2, tiny(TINY2), changes={name: change}))
    with pytest.raises(GeneratorError, match=problem):
        load_generator(path)


def test_another_filter_of_stylegan3_is_noticed(tmp_path: Path) -> None:
    generator = tiny(TINY3T)
    generator.synthesis.get_submodule("L3_36_8").get_buffer("up_filter")[2] += 0.01
    path = tmp_path / "network.pkl"
    path.write_bytes(official_pickle(TINY3T, generator))
    with pytest.raises(
        GeneratorError, match=r"another filter than its settings define \(synthesis.L3_36_8.up_filter\)"
    ):
        load_generator(path)
    config = TINY3T.model_copy(update={"channel_max": 4})
    path.write_bytes(official_pickle(config, tiny(TINY3T)))
    with pytest.raises(GeneratorError, match=r"channel_max 4.*do not define"):
        load_generator(path)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"weights": [1, 2]}))
    with pytest.raises(GeneratorError, match=r"holds no generator \(G_ema\) but a dict of weights"):
        load_generator(path)
    path.write_bytes(b"cdnnlib.tflib.network\nNetwork\n.")
    with pytest.raises(GeneratorError, match="TensorFlow network: convert it"):
        load_generator(path)
    path.write_bytes(b"")
    with pytest.raises(GeneratorError, match="is empty"):
        load_generator(path)
    with pytest.raises(EncoderError, match="there is no file"):
        load_generator(tmp_path / "missing.pkl")


@pytest.mark.parametrize("zipped", [True, False])
def test_rosinalitys_checkpoints(zipped: bool, tmp_path: Path) -> None:
    generator, judge = tiny(TINY2), tiny_judge(TINY2)
    path = tmp_path / "landscape.pt"
    data = {
        "g": {},
        "g_ema": rosinality_state(generator),
        "d": rosinality_discriminator_state(judge),
        "g_optim": torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict(),
        "args": argparse.Namespace(size=16, latent=8),
        "ada_aug_p": 0.2,
    }
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    held = read_generator_file(path)
    assert held.config == GeneratorConfig(
        kind="stylegan2", resolution=16, z_dim=8, w_dim=8, mapping_layers=2, widths=widths_of(TINY2)
    )
    assert held.notes == ("it has no average style: the mean of 10,000 styles was taken",)
    loaded = held.generator()
    torch.testing.assert_close(loaded.w_avg, estimate_w_avg(generator.mapping))
    loaded.mapping.w_avg.copy_(generator.w_avg)
    _same(loaded, generator)
    _same_picture(loaded, generator)
    _same(read_generator_file(path).discriminator(), judge)


def test_rosinalitys_converted_files_have_the_average_and_old_ones_no_noise(tmp_path: Path) -> None:
    generator = tiny(TINY2)
    state = {f"module.{name}": one for name, one in rosinality_state(generator).items() if "noises" not in name}
    path = tmp_path / "converted.pt"
    torch.save({"g_ema": state, "latent_avg": generator.w_avg}, path)
    held = read_generator_file(path)
    assert held.notes == ("it has no noise pictures: 5 were drawn (seed 0)",)
    loaded = held.generator()
    assert torch.equal(loaded.w_avg, generator.w_avg)
    _same_picture(loaded, generator, noise_mode="none")


def test_torch_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    with pytest.raises(GeneratorError, match=r"wanted 'g_ema'.*found state_dict"):
        load_generator(path)
    torch.save({"g_ema": {"layer.weight": torch.zeros(2)}}, path)
    with pytest.raises(GeneratorError, match=r"'layer.weight' is no part of StyleGAN2"):
        load_generator(path)
    state = rosinality_state(tiny(TINY2))
    torch.save({"g_ema": state | {"convs.0.conv.blur.kernel": torch.eye(4)}}, path)
    with pytest.raises(GeneratorError, match="another filter than 1 3 3 1"):
        load_generator(path)
    del state["conv1.activate.bias"]
    torch.save({"g_ema": state}, path)
    with pytest.raises(GeneratorError, match=r"synthesis.b4.conv1.bias is missing"):
        load_generator(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_of_every_type_and_stride(dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    for tensor in (whole, whole.T, whole[1:, ::2], whole[2, 3], whole[:0]):
        top, _ = read_pickle(pickle.dumps(tensor), "here")
        assert torch.equal(tensor_of(top, storage_in_pickle("here", 10_000), "here"), tensor)


def test_numbers_of_numpy() -> None:
    for protocol in (2, 4):
        for number in (np.float64(0.25), np.float32(-1.5), np.int64(-7), np.bool_(True)):
            top, _ = read_pickle(pickle.dumps(number, protocol=protocol), "here")
            assert plain_number(top, "here") == number


def test_our_own_files(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    generator, judge = tiny(TINY3T), tiny_judge(TINY3T)
    judge_config = DiscriminatorConfig(resolution=16, widths=widths_of(TINY3T), conv_clamp=256)
    save_generator(path, TINY3T, generator, judge_config, judge)
    assert read_generator_file(path).config == TINY3T
    _same(load_generator(path), generator)
    _same(read_generator_file(path).discriminator(), judge)
    save_generator(path, TINY3T, generator)
    with pytest.raises(GeneratorError, match="holds no discriminator"):
        read_generator_file(path).discriminator()


def test_own_files_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_generator(path, TINY2, tiny(TINY2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(GeneratorError, match="damaged or not complete"):
        load_generator(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(GeneratorError, match="not of a generator"):
        load_generator(path)
    huge = '{"version": 1, "generator": {"kind": "stylegan2", "resolution": 4096, "w_dim": 65536, "z_dim": 65536}}'
    save_file({"generator.a": torch.zeros(2)}, path, metadata={"hearscape_generator": huge})
    with pytest.raises(GeneratorError, match=r"mapping.fc0.weight is missing"):  # and no memory was taken for it
        load_generator(path)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A folder ``served`` over loopback."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(_Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_once_and_checked(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARSCAPE_CACHE", str(tmp_path / "cache"))
    data = official_pickle(TINY2, tiny(TINY2))
    (tmp_path / "served/network.pkl").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    _same(load_generator(f"{served}/network.pkl", sha256), tiny(TINY2))
    (tmp_path / "served/network.pkl").unlink()
    _same(load_generator(f"{served}/network.pkl", sha256), tiny(TINY2))
    with pytest.raises(EncoderError, match="needs its SHA-256"):
        load_generator(f"{served}/network.pkl")
    with pytest.raises(EncoderError, match="answered 404"):
        load_generator(f"{served}/network.pkl", "0" * 64)


@pytest.mark.parametrize("kind", KINDS)
def test_converting_keeps_the_network(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "network.pkl", tmp_path / "network.safetensors"
    source.write_bytes(official_pickle(TINY[kind], tiny(TINY[kind]), tiny_judge(TINY[kind])))
    assert convert_main([str(source), str(target)]) == 0
    said = capsys.readouterr().out
    name = {"stylegan2": "StyleGAN2", "stylegan3-t": "StyleGAN3-T", "stylegan3-r": "StyleGAN3-R"}[kind]
    assert f"{name}, 16 x 16, 3 colours" in said
    assert f"written: {target}" in said
    _same(load_generator(target), load_generator(source))
    _same(read_generator_file(target).discriminator(), read_generator_file(source).discriminator())
    assert convert_main([str(source), str(target), "--generator-only"]) == 0
    assert not any(name.startswith("discriminator.") for name in load_file(target))


def test_converting_keeps_the_encoder_of_frames_and_halves_the_file_on_demand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TINY2.model_copy(update={"code_width": 16}).with_codes()
    encoder = FrameEncoderConfig(width=16, features=FeatureSettings(picture_px=32))
    codes = FrameCodes(encoder, config.num_ws, config.w_dim, torch.device("cpu"))
    source, target = tmp_path / "own.safetensors", tmp_path / "half.safetensors"
    save_generator(source, config, build_generator(config), encoder_config=encoder, encoder=codes.encoder)
    assert convert_main([str(source), str(target), "--half"]) == 0
    assert target.stat().st_size < 0.6 * source.stat().st_size
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    kept = read_generator_file(target).frame_codes(torch.device("cpu"))
    torch.testing.assert_close(kept(pictures), codes(pictures), rtol=0, atol=5e-3)
    z = torch.randn(2, config.z_dim)
    torch.testing.assert_close(load_generator(target)(z), load_generator(source)(z), rtol=0, atol=2e-2)


def test_converting_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "network.pkl"
    source.write_bytes(b"not a pickle")
    assert convert_main([str(source), str(tmp_path / "out.safetensors")]) == 2
    assert "is damaged or no pickle" in capsys.readouterr().err
    assert convert_main([str(source), str(tmp_path / "out.bin")]) == 2
    assert "should end in .safetensors" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["network.pkl"]


def test_pictures_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "own.safetensors", tmp_path / "grid.png"
    save_generator(path, TINY2, tiny(TINY2))
    assert sample_main([str(path), "--seeds", "0-3,9", "--truncation", "0.7", "--columns", "3", "--out", str(out)]) == 0
    assert "5 pictures of 16 x 16" in capsys.readouterr().out
    drawn = cv2.imread(str(out))[:, :, ::-1]
    assert drawn.shape == (32, 48, 3)
    assert not drawn[16:, 32:].any()
    z = latents([9], 8)
    with torch.no_grad():
        expected = tiny(TINY2)(z, truncation_psi=0.7)[0].permute(1, 2, 0) * 127.5 + 128
    # drawn in a batch of 5, and alone: where a value lies between two levels, the last bit decides
    apart = drawn[16:, 16:32].astype(int) - expected.clamp(0, 255).to(torch.uint8).numpy()
    assert abs(apart).max() <= 1
    assert np.ptp(drawn[16:, 16:32]) > 20


def test_what_sampling_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seeds_of("0-2, 7") == [0, 1, 2, 7]
    for wrong in ("a", "3-1", "", "0-999999999", "-1"):
        with pytest.raises(GeneratorError, match="--seeds"):
            seeds_of(wrong)
    config = TINY2.model_copy(update={"c_dim": 2})
    with pytest.raises(GeneratorError, match="this generator has classes: give --label, 0 to 1"):
        pictures(tiny(config), [0])
    assert pictures(tiny(config), [0], label=1).shape == (1, 16, 16, 3)
    path = tmp_path / "own.safetensors"
    save_generator(path, TINY2, tiny(TINY2))
    assert sample_main([str(path), "--seeds", "0", "--out", str(tmp_path / "no/grid.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_grid_reads_like_a_page() -> None:
    numbered = torch.arange(3, dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 2, 2, 3)
    page = grid(numbered, 2)
    assert page[::2, ::2, 0].tolist() == [[0, 1], [2, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["official", "zip", "legacy", "safetensors"])
def test_damage_anywhere_is_an_error_with_a_name(form: str, tmp_path: Path) -> None:
    """Bytes changed, cut out or cut off: a generator comes out, or a GeneratorError; nothing else is raised."""
    path = tmp_path / "network"
    if form == "official":
        path.write_bytes(official_pickle(TINY3T, tiny(TINY3T)))
    elif form == "safetensors":
        save_generator(path, TINY2, tiny(TINY2))
    else:
        torch.save({"g_ema": rosinality_state(tiny(TINY2))}, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(120):
        damaged = bytearray(whole)
        at = chance.randrange(len(whole)) if chance.random() < 0.4 else chance.randrange(min(len(whole), 3000))
        match chance.randrange(4):
            case 0:
                damaged[at] = chance.randrange(256)
            case 1:
                del damaged[at : at + chance.randrange(1, 50)]
            case 2:
                damaged[at:at] = struct.pack("<Q", chance.getrandbits(64))
            case _:
                damaged = damaged[:at]
        path.write_bytes(bytes(damaged))
        try:
            load_generator(path)
        except GeneratorError:
            refused += 1
    assert refused > 40
