"""Models, tokenizers and the one builder of token rows that every script shares."""

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_min import InputError
from rlhf_min.hardware.attention import use_products
from rlhf_min.hardware.device import choose_device
from rlhf_min.models.prompt_tree import Layout, Tree, build_tree, hidden_states

logging.disable_progress_bar()
logging.set_verbosity_error()  # our own errors say what is missing from a checkpoint


def load_tokenizer(path: str):
    """A tokenizer that can end an answer.  Raises InputError when it has no end token."""
    tokenizer = _from_hub(AutoTokenizer.from_pretrained, path, "tokenizer")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {path} has no end token, so an answer could never end: "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def load_causal_lm(path: str, dtype: torch.dtype, device: torch.device | None = None):
    """A causal language model with dropout off, every weight from the checkpoint.

    Raises InputError when the folder or hub id cannot be read or a weight is missing.
    """
    model, info = load_weights(AutoModelForCausalLM, path, dtype)
    if info["missing_keys"]:
        raise InputError(
            f"{path} lacks the weight {sorted(info['missing_keys'])[0]}, so it is no complete "
            "causal language model: save it again with save_pretrained"
        )
    if any(name.startswith("score.") for name in info["unexpected_keys"]):
        raise InputError(f"{path} is a reward model (it has a head `score`): give a language model")
    return use_products(model.to(device or choose_device()).eval())


def load_weights(auto_class, path: str, dtype: torch.dtype, **settings):
    """from_pretrained without dropout (the sampler and the trainer must be the same function).

    Returns the model and transformers' loading report.
    """
    config = _from_hub(AutoConfig.from_pretrained, path, "config")
    labels = settings.get("num_labels", config.num_labels)
    if "ForSequenceClassification" in str(config.architectures) and labels != config.num_labels:
        raise InputError(
            f"{path} has a head with {config.num_labels} labels, not {labels}: choose the other "
            "--head, or start from a language model"
        )
    config.num_labels = labels
    for name, value in config.to_dict().items():
        if ("drop" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return _from_hub(
        auto_class.from_pretrained,
        path,
        "model",
        config=config,
        dtype=dtype,
        output_loading_info=True,
    )


def _from_hub(load, path: str, what: str, **settings):
    folder = Path(path)
    # A hub id is "name" or "owner/name"; what lies in a folder that exists here is meant locally.
    local = folder.is_absolute() or (folder.parent != Path(".") and folder.parent.is_dir())
    if local and not folder.exists():
        raise InputError(f"cannot load a {what} from {path!r}: there is no such folder")
    try:
        return load(path, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot load a {what} from {path!r} ({reason}): give a Hugging Face folder or hub id"
        ) from error


def context_length(model) -> int:
    """Longest row in tokens, prompt and answer together."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or sys.maxsize


def slides(model, length: int) -> bool:
    """Whether the model attends to a sliding window shorter than rows of `length` tokens."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and window < length


@torch.no_grad()
def choose_layout(model, say=print) -> Layout:
    """Whether this model can take a prompt tree, found by comparing it with plain rows.

    Sliding windows shorter than the row, recurrent models and some attention kernels cannot.  Then
    every branch gets a row of its own, and one line says so.
    """
    config = model.config.get_text_config()
    context = context_length(model)
    # GPT-Neo's window counts slots, not positions: a row may not be longer.
    longest = min(context, getattr(config, "window_size", None) or sys.maxsize)
    layouts = [
        Layout(tree, longest if tree else context, model.dtype, model.device)
        for tree in (True, False)
    ]
    if slides(model, context):  # a 4-D mask would switch the model's own window off
        gap, reason = float("inf"), "it attends to a sliding window"
    else:
        try:
            tree, plain = (branch_ends(model, layout) for layout in layouts)
            gap = (tree - plain).abs().max().item() / plain.abs().max().item()
            reason = f"states differ by {gap:.1e}"
        except (RuntimeError, ValueError, TypeError) as error:
            gap, reason = float("inf"), str(error).splitlines()[0]
    if gap < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1):
        return layouts[0]
    say(f"{type(model).__name__} cannot take a prompt tree ({reason}): one row per answer instead")
    return layouts[1]


def branch_ends(model, layout: Layout) -> Tensor:
    """Last hidden states of four short probe branches [4, H], float32."""
    vocabulary = model.config.get_text_config().vocab_size
    probe = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (22,), generator=probe).tolist()
    tree: Tree = build_tree(
        [ids[:5], ids[5:8]], [[ids[8:11], ids[11:16]], [ids[16:20], ids[20:22]]], layout
    )
    return hidden_states(model, tree)[tree.ends].float()
