"""Linear layers in the layout of oneDNN, for the inference of transformers on a CPU, in float32.

PyTorch computes plain matrix products with MKL, which on AMD takes 2.8 times as long as oneDNN (measured: 73 and 206 GFLOPS
on a core with AVX-512). Results differ only by the order of sums: by at most 1e-6 in an embedding of length 1.

Shape suffixes: B pictures, L places, D width, H heads, E width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_mkldnn_linear = getattr(torch._C._nn, "mkldnn_linear", None)
"""Not a public name of torch: in a version without it, no layers are packed."""


class PackedLinear(nn.Module):
    """A linear layer without gradients. Its weights are in oneDNN's layout, and not in a state dict."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight = weight.detach().to_mkldnn()
        self._bias = (torch.zeros(len(weight)) if bias is None else bias.detach()).to_mkldnn()
        self._num_out = len(weight)

    def forward(self, rows: Tensor) -> Tensor:
        assert _mkldnn_linear is not None
        flat = rows.reshape(-1, rows.shape[-1]).contiguous().to_mkldnn()
        result: Tensor = _mkldnn_linear(flat, self._weight, self._bias).to_dense()
        return result.view(*rows.shape[:-1], self._num_out)


class PackedSelfAttention(nn.Module):
    """Replaces an ``nn.MultiheadAttention`` (batch first) whose query, key and value are the same tensor."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        self._in = PackedLinear(attention.in_proj_weight, attention.in_proj_bias)
        self._out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias)
        self._num_heads = attention.num_heads

    def forward(
        self,
        query_BLD: Tensor,
        key_BLD: Tensor,
        value_BLD: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if need_weights or key_BLD is not query_BLD or value_BLD is not query_BLD:
            raise ValueError("packed attention needs one tensor as query, key and value, and returns no weights")
        batch, length, width = query_BLD.shape
        parts_BL3HE = self._in(query_BLD).view(batch, length, 3, self._num_heads, width // self._num_heads)
        query, key, value = parts_BL3HE.permute(2, 0, 3, 1, 4)
        attended_BHLE = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self._out(attended_BHLE.transpose(1, 2).reshape(batch, length, width)), None


def pack_linears(network: nn.Module) -> int:
    """Replaces the linear layers of the network's transformer blocks by packed ones, in place; returns their number.

    Replaced are ``nn.Linear`` and self-attention in float32 on the CPU inside ``transformer.resblocks``, as in open_clip's
    vision transformers. Other networks are not changed.
    """
    blocks = getattr(getattr(network, "transformer", None), "resblocks", None)
    is_there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if _mkldnn_linear is None or not is_there or not isinstance(blocks, nn.ModuleList):
        return 0
    num_packed = 0
    for parent in list(blocks.modules()):
        if type(parent) is nn.MultiheadAttention:
            continue  # its output layer is packed together with it
        for name, child in list(parent.named_children()):
            packed = _packed(child)
            if packed is not None:
                setattr(parent, name, packed)
                num_packed += 1
    return num_packed


def _packed(layer: nn.Module) -> nn.Module | None:
    if type(layer) is nn.Linear and _fits(layer.weight):
        return PackedLinear(layer.weight, layer.bias)
    if (
        type(layer) is nn.MultiheadAttention
        and layer.in_proj_weight is not None
        and _fits(layer.in_proj_weight)
        and layer.batch_first
        and layer.bias_k is None
        and not layer.add_zero_attn
    ):
        return PackedSelfAttention(layer)
    return None


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"
