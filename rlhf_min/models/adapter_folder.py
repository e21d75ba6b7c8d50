"""Adapters in the folder format of the PEFT library: adapter_config.json and its weights."""

import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rlhf_min import InputError
from rlhf_min.models import lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of all weights
OTHER_SCALES = ("use_rslora", "rank_pattern", "alpha_pattern")  # settings that are not supported


def save_adapter(model, folder: Path) -> None:
    """Save a model's adapters, and its reward head, in a new folder.

    `PeftModel.from_pretrained(base, folder)` loads it; base: the model that training started from.
    """
    layers = lora.adapted_layers(model)
    first, weights = next(iter(layers.values())), {}
    for name, layer in layers.items():
        weights |= {f"{name}.lora_A.weight": layer.A, f"{name}.lora_B.weight": layer.B}
    if head := hasattr(model, "score"):
        weights |= {f"score.{name}": weight for name, weight in model.score.named_parameters()}
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
    weights = {PREFIX + name: w.detach().cpu().contiguous() for name, w in weights.items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def read_adapter(path: str) -> tuple[str, float, dict[str, Tensor]] | None:
    """Base model, scale α/R and weights by name of an adapter folder; None for another folder.

    Raises InputError for a damaged folder, and for an adapter of another kind than LoRA.
    """
    folder = Path(path)
    if not os.path.isfile(folder / CONFIG) or os.path.exists(folder / "config.json"):
        return None
    try:
        config = json.loads((folder / CONFIG).read_text())
        base, scale = config["base_model_name_or_path"], config["lora_alpha"] / config["r"]
        plain = config["peft_type"] == "LORA" and not any(map(config.get, OTHER_SCALES))
        weights = load_file(folder / WEIGHTS)
    except Exception as error:  # damaged files raise errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read the adapter {path} ({reason}): it needs a whole {CONFIG} and {WEIGHTS}"
        ) from error
    if not plain or not isinstance(base, str):
        raise InputError(
            f"{path} is no plain LoRA adapter: merge it with the PEFT library (merge_and_unload)"
        )
    return base, scale, {name.removeprefix(PREFIX): weight for name, weight in weights.items()}


def merge_adapter(model, path: str, scale: float, weights: dict[str, Tensor]) -> None:
    """Add the adapter in folder `path` to its base model and merge it.

    Raises InputError where a weight does not fit the model.
    """
    layers, own, new = lora.linear_layers(model), model.state_dict(), {}
    for name, weight in weights.items():
        layer_name, _, letter = name.removesuffix(".weight").rpartition(".lora_")
        if letter in ("A", "B") and layer_name in layers:
            rank = weight.shape[0 if letter == "A" else -1]
            layer = layers[layer_name]
            adapted = new.setdefault(layer, lora.LoraLinear(layer, rank, scale * rank))
            target = getattr(adapted, letter)
        else:
            target = own.get(name) if name.startswith("score.") else None
        if target is None or target.shape != weight.shape:
            raise InputError(
                f"{path} is an adapter for another model than {model.name_or_path}, or of another "
                f"kind than LoRA on linear layers: its weight {name} {list(weight.shape)} does not "
                "fit: give the model it was trained on as base_model_name_or_path"
            )
        target.data.copy_(weight)
    lora.replace_layers(model, new)
    lora.merge(model)
    model.requires_grad_(True)
    model.name_or_path = path
