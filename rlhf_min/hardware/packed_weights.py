"""Packed bfloat16 weights: decoding on a CPU without repacking every weight for every token."""

from contextlib import contextmanager

import torch
from torch import nn

PACK_FROM = 16  # new tokens from which packing pays: it costs what about ten of them save


@contextmanager
def packed_weights(model, new_tokens: int):
    """Context manager: bfloat16 linear layers multiply by packed copies of their weights.

    oneDNN multiplies by weights in its own memory order.  Without packing it reorders the whole
    weight for every product of a few rows.  Costs a copy of the weights until it exits.  Does
    nothing on other devices than a CPU, nor for fewer than PACK_FROM tokens.
    """
    layers = []
    if model.device.type == "cpu" and new_tokens >= PACK_FROM and can_pack():
        layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
        layers = [m for m in layers if m.weight.dtype == torch.bfloat16]
    try:
        for layer in layers:
            layer.forward = packed_forward(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def can_pack() -> bool:
    """Whether this PyTorch and this CPU multiply packed bfloat16 weights."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and mkldnn.enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_forward(layer: nn.Linear):
    """The layer's forward with a packed copy of its weight (operators that torch.compile uses)."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = layer.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward
