"""LoRA: small trainable adapters beside frozen linear layers (Hu et al. 2021, arXiv 2106.09685).

A layer's update has rank R: W' = W + (α/R)·BA.  Gradients, master weights and moments exist for A
and B only.  Since W never changes, a second model that shares it is the reference of the KL.
"""

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_min import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # names of the PEFT library
PREFIX = "base_model.model."  # of every weight in WEIGHTS


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

    @torch.no_grad()
    def merged_layer(self) -> nn.Module:
        """A layer without adapter that computes the same: a copy with W + (α/R)·BA."""
        weight, bias = self.layer.weight, self.layer.bias
        exact = torch.promote_types(weight.dtype, torch.float32)
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
    layers = [m for m in model.base_model.modules() if isinstance(m, (nn.Linear, Conv1D))]
    if not layers:
        raise InputError(
            f"--lora-rank: {model.name_or_path} has no linear layers below its head: "
            "train all its weights (--lora-rank 0)"
        )
    _replace(model, {layer: LoraLinear(layer, rank, alpha, generator) for layer in layers})


def merge(model) -> None:
    """Replace every adapted layer by its merged layer; weights shared with others are unchanged."""
    _replace(model, {layer: layer.merged_layer() for layer in adapted_layers(model).values()})


def adapted_layers(model) -> dict[str, LoraLinear]:
    """Adapted layers by their names, such as model.layers.0.self_attn.q_proj."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def _replace(model, new: dict) -> None:
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


def save_adapter(model, folder: Path) -> None:
    """Save the adapters, and a trained reward head, in the folder format of the PEFT library.

    `PeftModel.from_pretrained(base, folder)` loads it; base: the model that training started from.
    """
    layers = adapted_layers(model)
    first, weights = next(iter(layers.values())), {}
    for name, layer in layers.items():
        for letter, weight in (("A", layer.A), ("B", layer.B)):
            weights[f"{PREFIX}{name}.lora_{letter}.weight"] = weight
    if head := hasattr(model, "score"):
        weights |= {f"{PREFIX}score.{name}": w for name, w in model.score.state_dict().items()}
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": model.name_or_path,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": isinstance(first.layer, Conv1D),
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "modules_to_save": ["score"] if head else None,
        "inference_mode": True,
    }
    folder.mkdir()
    weights = {name: weight.detach().contiguous() for name, weight in weights.items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
