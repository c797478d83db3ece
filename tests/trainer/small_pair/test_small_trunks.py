"""How published networks become the packaged pair's trunks: read, folded, packed, and the same numbers as before within 8 bits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.encoders.small.trunks import TAGS, Layer, Trunk
from pipeline.errors import EncoderError
from trainer.small_pair.trunks import efficientnet_convolutions, main, packed, tag_rows, yamnet_convolutions

PLAIN = float("inf")


def trained_block() -> nn.Sequential:
    """Two convolutions with their normalisations, which have seen something."""
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=0, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU6(),
        nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8, eps=1e-3),
    )  # fmt: skip
    for _ in range(20):
        block(torch.randn(8, 3, 9, 9) * 2 + 1)
    return block.eval()


def test_a_state_dict_becomes_convolutions_with_their_normalisation(tmp_path):
    block = trained_block()
    path = tmp_path / "network.pth"
    torch.save(block.state_dict() | {"classes.weight": torch.ones(5, 8), "classes.bias": torch.ones(5)}, path)
    convolutions = list(efficientnet_convolutions(path))
    assert [tuple(weight.shape) for weight, _ in convolutions] == [(8, 3, 3, 3), (8, 8, 1, 1)]
    layers = (Layer(2, 6.0), Layer(is_read=True))
    tensors = packed(convolutions, layers)
    assert tensors["00.weight"].dtype == torch.int8
    assert int(tensors["00.weight"].abs().amax()) == 127
    x = torch.randn(2, 3, 8, 8)
    expected = block(nn.functional.pad(x, (0, 1, 0, 1)))
    (found,) = Trunk(layers, tensors)(x)
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert not torch.equal(found, expected)


def test_an_onnx_file_gives_its_convolutions_and_its_classes(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        "w0": rng.normal(size=(4, 1, 3, 3)), "b0": rng.normal(size=4), "w1": rng.normal(size=(6, 4, 1, 1)),
        "b1": rng.normal(size=6), "last": rng.normal(size=(9, 6)), "shift": rng.normal(size=9),
    }  # fmt: skip
    values = {name: value.astype(np.float32) for name, value in values.items()}
    scale = {"scale": np.float32(0.1), "zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["w1", "scale", "zero"], ["w1_q"]),
        helper.make_node("DequantizeLinear", ["w1_q", "scale", "zero"], ["w1_again"]),
        helper.make_node("Conv", ["x", "w0", "b0"], ["h0"]),
        helper.make_node("Conv", ["h0", "w1_again", "b1"], ["h1"]),
        helper.make_node("GlobalAveragePool", ["h1"], ["mean"]),
        helper.make_node("Gemm", ["mean", "last", "shift"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in (values | scale).items()]
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "small", ends[:1], ends[1:], kept)), str(path))
    convolutions, weight, bias = yamnet_convolutions(path)
    for (found_weight, found_bias), number in zip(convolutions, (0, 1), strict=True):
        assert np.array_equal(found_weight.numpy(), values[f"w{number}"])
        assert np.array_equal(found_bias.numpy(), values[f"b{number}"])
    assert np.array_equal(weight.numpy(), values["last"])
    assert np.array_equal(bias.numpy(), values["shift"])
    with pytest.raises(EncoderError, match="the network has 2 convolutions, and 3 or more are needed"):
        packed(convolutions, (Layer(), Layer(), Layer(1, PLAIN)))


def test_tags_are_found_by_name(tmp_path):
    path = tmp_path / "classes.csv"
    names = ["Speech", *reversed(TAGS)]
    path.write_text("index,mid,display_name\n" + "".join(f'{n},/m/{n},"{name}"\n' for n, name in enumerate(names)))
    assert tag_rows(path) == list(range(len(TAGS), 0, -1))
    path.write_text("index,mid,display_name\n0,/m/0,Speech\n")
    with pytest.raises(EncoderError, match=r"classes\.csv does not name \['Rain', "):
        tag_rows(path)


def test_files_of_other_kinds_are_named(tmp_path, capsys):
    path = tmp_path / "network.pth"
    torch.save({f"layer{n}": torch.ones(3, 2) for n in range(10)}, path)
    with pytest.raises(EncoderError, match=r"network\.pth is no state dict of EfficientNet: tensor 0 is not a conv"):
        list(efficientnet_convolutions(path))
    given = ["--efficientnet", path, "--yamnet", path, "--yamnet-classes", path, "--out", tmp_path / "out"]
    with pytest.raises(SystemExit):
        main([str(each) for each in given])
    assert "is no state dict of EfficientNet" in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()
