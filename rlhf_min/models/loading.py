"""Loading, checking and saving models and tokenizers."""

import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_min import InputError
from rlhf_min.hardware import disk
from rlhf_min.hardware.attention import use_products
from rlhf_min.hardware.device import keep_freed_memory

logging.disable_progress_bar()
logging.set_verbosity_error()  # our own errors say what is missing from a checkpoint


def load_tokenizer(path: str):
    """A tokenizer that can end an answer.  Raises InputError when it has no end token."""
    tokenizer = _from_hub(AutoTokenizer, path, "tokenizer")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{path} has no end token: set eos_token in its tokenizer_config.json")
    return tokenizer


def load_causal_lm(path: str, dtype: torch.dtype):
    """A causal language model.  Raises InputError for a reward model, and as `load_model`."""
    model, info = load_model(AutoModelForCausalLM, path, dtype)
    if any(name.startswith("score.") for name in info["unexpected_keys"]):
        raise InputError(f"{path} is a reward model (it has a head `score`): give a language model")
    return model


def load_model(auto_class, path: str, dtype: torch.dtype, labels: int | None = None):
    """A pretrained model on the GPU or else the CPU, and transformers' report of missing weights.

    Dropout is off: with it sampling and training would use different functions.  Raises InputError
    when path (folder or hub id) cannot be read, has another head or lacks a weight below the head.
    """
    keep_freed_memory()
    config = _from_hub(AutoConfig, path, "config")
    labels = labels or config.num_labels
    if "ForSequenceClassification" in str(config.architectures) and labels != config.num_labels:
        raise InputError(
            f"{path} has a head with {config.num_labels} labels, not {labels}: choose the other "
            "--head, or start from a language model"
        )
    config.num_labels = labels
    for name, value in config.to_dict().items():
        if ("drop" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    settings = {"config": config, "dtype": dtype, "output_loading_info": True}
    model, info = _from_hub(auto_class, path, "model", **settings)
    missing = sorted(set(info["missing_keys"]) - {"score.weight"})
    if missing:
        raise InputError(
            f"{path} lacks the weight {missing[0]}, which would be left random: "
            "give a decoder language model saved with save_pretrained"
        )
    # Else the pad token's embedding is never trained, and with pad = end every answer has it.
    model.get_input_embeddings().padding_idx = None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return use_products(model.to(device).eval()), info


def _from_hub(auto_class, path: str, what: str, **settings):
    folder = Path(path)
    # A hub id is "name" or "owner/name"; what lies in a folder that exists here is meant locally.
    local = folder.is_absolute() or (folder.parent != Path(".") and folder.parent.is_dir())
    if local and not folder.exists():
        raise InputError(f"cannot load a {what} from {path!r}: there is no such folder")
    try:
        return auto_class.from_pretrained(path, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot load a {what} from {path!r} ({reason}): give a Hugging Face folder or hub id"
        ) from error


def save_model(model, tokenizer, out: str | Path) -> None:
    """Save model and tokenizer as an ordinary Hugging Face folder; each file is replaced whole.

    config.json is the last: where it is, the model is whole.  Raises InputError when the disk is
    full or the folder is gone.
    """
    out = Path(out)
    with disk.writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        files = [path for path in Path(draft).rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path.name == "config.json"):
            target = out / file.relative_to(draft)
            target.parent.mkdir(exist_ok=True)
            disk.move(file, target)


def checkpoint_activations(model) -> None:
    """Gradient checkpointing: recompute activations in the backward pass, do not keep them."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # it works in this mode only; dropout is 0, so nothing else changes
