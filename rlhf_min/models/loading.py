"""Loading, checking and saving models and tokenizers."""

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_min import InputError
from rlhf_min.hardware.attention import use_products
from rlhf_min.hardware.device import choose_device, keep_freed_memory

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
    """A causal language model with dropout off.

    Raises InputError when the folder or hub id cannot be read or lacks a weight.
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
    """A pretrained model without dropout, and transformers' report of missing weights.

    With dropout, sampling and training would use different functions.
    """
    keep_freed_memory()
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


def save_model(model, tokenizer, out: str | Path) -> None:
    """Save model and tokenizer as an ordinary Hugging Face folder; each file is replaced whole."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        for file in Path(draft).iterdir():
            os.replace(file, Path(out) / file.name)


def checkpoint_activations(model) -> None:
    """Gradient checkpointing: recompute activations in the backward pass instead of keeping them.

    It works in training mode only; the model's dropout is 0, so nothing else changes.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
