"""LoRA: small trainable adapters beside frozen linear layers (Hu et al. 2021, arXiv 2106.09685).

A layer's update has rank R: W' = W + (α/R)·BA.  Gradients, master weights and moments exist for A
and B only.  W never changes, so a second model can share it: the reference of the KL.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_min import InputError
from rlhf_min.hardware.device import precise


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter: y = Wx + b + (α/R)·B(Ax), x [..., in] → [..., out].

    A [R, in] is random and B [out, R] zero: at the start y is the frozen layer's own output.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, generator=None):
        super().__init__()
        self.layer, self.rank, self.alpha, self.scale = layer, rank, alpha, alpha / rank
        weight = layer.weight.detach()
        outs, ins = weight.mT.shape if isinstance(layer, Conv1D) else weight.shape
        a = nn.init.kaiming_uniform_(torch.empty(rank, ins), math.sqrt(5), generator=generator)
        self.A = nn.Parameter(a.to(weight))
        self.B = nn.Parameter(weight.new_zeros(outs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @property
    def weight(self) -> Tensor:
        """The frozen weight; Mamba reads that of one layer, whose adapter then stays zero."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, which Mamba reads too."""
        return self.layer.bias

    @torch.no_grad()
    def merged_layer(self) -> nn.Module:
        """A layer without adapter that computes the same: a copy with W + (α/R)·BA."""
        weight, bias = self.layer.weight, self.layer.bias
        exact = precise(weight.dtype)
        change = self.B.to(exact) @ self.A.to(exact)
        change = change.mT if isinstance(self.layer, Conv1D) else change  # its weight is [in, out]
        merged = torch.add(weight.to(exact), change, alpha=self.scale).to(weight.dtype)
        merged = nn.Parameter(merged.contiguous(), requires_grad=False)
        return copy.deepcopy(self.layer, {id(weight): merged, id(bias): bias})


def add_adapters(model, rank: int, alpha: float, seed: int = 0) -> None:
    """Freeze a model, and add adapters to all linear layers below its head.

    A reward head stays trainable.  Raises InputError for a model without such layers.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    layers = linear_layers(model).values()
    if not layers:
        raise InputError(
            f"--lora-rank: {model.name_or_path} has no linear layers below its head: "
            "train all its weights (--lora-rank 0)"
        )
    replace_layers(model, {m: LoraLinear(m, rank, alpha, generator) for m in layers})


def merge(model) -> None:
    """Replace every adapted layer by its merged layer; weights shared with others are unchanged."""
    replace_layers(model, {m: m.merged_layer() for m in adapted_layers(model).values()})


def linear_layers(model) -> dict[str, nn.Module]:
    """Linear layers below the head by their names, such as model.layers.0.self_attn.q_proj."""
    below = set(model.base_model.modules())
    named = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    return {name: layer for name, layer in named.items() if layer in below}


def adapted_layers(model) -> dict[str, LoraLinear]:
    """Adapted layers by their names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def replace_layers(model, new: dict[nn.Module, nn.Module]) -> None:
    """Replace layers of a model: old layer → new layer."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in new:
                setattr(parent, name, new[child])


def sharing_copy(model):
    """A copy of a model, in evaluation mode, that shares its weights: none are copied.

    Adapters that one of the two gets later do not change the other.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
