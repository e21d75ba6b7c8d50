"""Memory that a training will need on each device, before it starts.

    python -m rlhf_min.plan --model HuggingFaceTB/SmolLM2-135M-Instruct --devices 2 --lora-rank 8

Only the model's config.json is read.  docs/scaling.md has the formula and what was measured.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import dataclass
from typing import Literal

from rlhf_min.command_line import check_flags, check_ranges, option, run


@dataclass(frozen=True)
class Config:
    """Settings of the plan."""

    model: str = option("runs/zoo-base", "language model: folder (config.json is enough) or hub id")
    reward_model: str | list[str] = option(
        "", "of train_policy.py (nothing: one of --model's shape)"
    )
    devices: int = option(1, "processes that train together", at_least=1, at_most=10**4)
    lora_rank: int = option(0, "rank of LoRA's adapters (0: all weights are trained)", at_least=0)
    dtype: Literal["float32", "bfloat16"] = option("bfloat16", "of the models")
    prompts: int = option(4, "prompts of a step on each device", at_least=1, at_most=10**5)
    micro_batch: int = option(4, "prompts, or pairs, of one backward pass", at_least=1)
    samples: int = option(4, "answers per prompt", at_least=1, at_most=10**4)
    prompt_tokens: int = option(128, "tokens of a prompt", at_least=1, at_most=10**6)
    answer_tokens: int = option(128, "tokens of an answer", at_least=1, at_most=10**6)
    eval_prompts: int = option(256, "held-out prompts, shared by the devices", at_least=1)
    gradient_checkpointing: bool = option(False, "keep one hidden vector per layer and token")
    memory: float = option(0, "GB of one device, to say what fits (0: unknown)", at_least=0)


if __name__ == "__main__":
    check_flags(Config)

import copy
import math

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_min.models import loading
from rlhf_min.models.ensemble import member_paths
from rlhf_min.models.layout import Layout, context_length
from rlhf_min.models.log_probs import MAX_LOGITS, MIN_TOKENS, answer_log_probs
from rlhf_min.models.lora import add_adapters
from rlhf_min.models.prompt_tree import build_tree

# GB of a process for libraries, and for freed memory that the allocator keeps; fitted to the
# measurements of docs/scaling.md.
OTHERS = {"train_rm.py": 0.5, "train_policy.py": 0.9}


def empty_model(path: str, dtype: torch.dtype):
    """A model without memory for its weights (on PyTorch's meta device)."""
    config = loading.from_hub(AutoConfig, path, "config")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def numbers(tensors) -> int:
    """How many numbers some tensors hold."""
    return sum(tensor.numel() for tensor in tensors)


def kept_for_backward(model, prompts: int, samples: int, settings: Config) -> int:
    """Bytes of activations that one forward pass keeps for the backward pass.

    The pass runs on the meta device: it computes shapes only, and its saved tensors are counted.
    """
    prompt, answer = [1] * settings.prompt_tokens, [1] * settings.answer_tokens
    layout = Layout(True, context_length(model), model.dtype, torch.device("meta"))
    tree = build_tree([prompt] * prompts, [[answer] * samples] * prompts, layout)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer_log_probs(model, tree)
    return sum(storage.nbytes() for storage in saved.values())


def activations(model, prompts: int, samples: int, settings: Config) -> int:
    """Bytes at the peak of a backward pass, without gradients and weights."""
    full = kept_for_backward(model, prompts, samples, settings)
    logits = max(MAX_LOGITS, MIN_TOKENS * model.config.get_text_config().vocab_size) * 4 * 3
    if not settings.gradient_checkpointing:
        return full + logits
    checkpointed = copy.deepcopy(model)  # on the meta device: it takes no memory
    loading.checkpoint_layers(checkpointed)
    kept = kept_for_backward(checkpointed, prompts, samples, settings)
    layers = model.config.get_text_config().num_hidden_layers
    return kept + max((full - kept) // layers, logits)  # one layer, or a chunk of logits, at a time


def memory_plan(settings: Config) -> dict[str, dict[str, float]]:
    """GB on each device by purpose, for train_rm.py and train_policy.py; "peak" is the largest sum.

    Weights, masters and moments are always in memory.  Sampling, backward pass and update happen
    one after another, so only the largest counts.
    """
    dtype = getattr(torch, settings.dtype)
    size, devices = dtype.itemsize, settings.devices
    model = empty_model(settings.model, dtype)
    weights = numbers(model.parameters())
    if settings.lora_rank:
        add_adapters(model, settings.lora_rank, settings.lora_rank)
    trained = numbers(p for p in model.parameters() if p.requires_grad)
    adapters = trained if settings.lora_rank else 0
    paths = member_paths(settings.reward_model or settings.model)  # all are in memory together
    scorers = {path: numbers(empty_model(path, dtype).parameters()) for path in set(paths)}
    stays = {
        "weights": size * (weights + adapters),
        "master weights": 4 * trained / devices if size < 4 else 0,
        "moments": 8 * trained / devices,
    }
    models = {
        "reference": 0 if settings.lora_rank else size * weights,
        "reward model": size * sum(scorers[path] for path in paths),
    }
    plans = {}
    for script, samples in (("train_rm.py", 2), ("train_policy.py", settings.samples)):
        several = settings.prompts > settings.micro_batch
        gradients = trained * (4 if several else size)
        rows = min(settings.prompts, settings.micro_batch)
        kept = activations(model, rows, samples, settings)
        turns = {
            # A backward pass frees activations while it creates gradients.
            "backward pass": kept + gradients if several else max(kept, gradients),
            # Each gradient is freed when it is summed; the owner of a part keeps it in float32.
            "update": max(gradients, 4 * trained / devices if devices > 1 else 0),
        }
        if script == "train_policy.py":
            # Held-out prompts are sampled all at once, with one answer each.
            evaluated = math.ceil(settings.eval_prompts / devices)
            rows = max(settings.prompts * settings.samples, evaluated)
            merged = size * weights if adapters else 0  # adapters are merged while it samples
            turns["sampling"] = rows * cache_bytes(model, settings) + merged
        plan = stays | (models if script == "train_policy.py" else {}) | turns
        plan = {name: value / 1e9 for name, value in plan.items()} | {"libraries": OTHERS[script]}
        largest = max(plan[name] for name in turns)
        plan["peak"] = sum(gb for name, gb in plan.items() if name not in turns) + largest
        plans[script] = plan
    return plans


def cache_bytes(model, settings: Config) -> int:
    """Bytes of the keys and values of one answer and its prompt."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    tokens = settings.prompt_tokens + settings.answer_tokens
    return 2 * config.num_hidden_layers * heads * size * tokens * model.dtype.itemsize


def main(settings: Config) -> dict:
    """Print the plan as a table; returns it."""
    check_ranges(settings)
    plans = memory_plan(settings)
    print(f"{'GB on each device':20}" + "".join(f"{script:>18}" for script in plans))
    for name in plans["train_policy.py"]:
        row = (plan.get(name) for plan in plans.values())
        cells = "".join(f"{'-' if gb is None else format(gb, '.2f'):>18}" for gb in row)
        print(f"{name:20}{cells}")
    if settings.memory:
        for script, plan in plans.items():
            fits = "fits" if plan["peak"] < settings.memory else "does NOT fit"
            print(f"{script} {fits} in {settings.memory:g} GB")
    return plans


if __name__ == "__main__":
    run(main, Config)
