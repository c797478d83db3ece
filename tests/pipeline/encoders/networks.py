"""Networks of random weights, and sounds and frames for them: there is no other way to get weights."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torchvision

from pipeline.encoders.device import ComputeOptions

RATE = 44_100
ON_CPU = ComputeOptions(torch.device("cpu"))
TINY = "tiny-for-tests"
TINY_CONFIG = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Also what a new network leaves at 0 and 1, so that a mistake in any part shows."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.ndim < 2:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if "running_var" in name or name.endswith("weight") else 0.1 * noise)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor[0].numel() ** 0.5)
    network.load_state_dict(state)
    return network.eval()


def resnet18(prefix: str, width: int, channels: int, seed: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """torchvision's, which shares no code with ours, and its state dict under the published names."""
    network = torchvision.models.resnet18(weights=None, num_classes=width)
    network.conv1 = torch.nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    randomised(network, seed)
    return network, {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def rain(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


def hum(seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * 120 * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def frames(num: int, height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
