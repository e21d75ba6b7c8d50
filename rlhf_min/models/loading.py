"""Loading, checking and saving models and tokenizers."""

import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_min import InputError
from rlhf_min.hardware import disk, ranks
from rlhf_min.hardware.attention import use_products
from rlhf_min.hardware.device import keep_freed_memory, main_device
from rlhf_min.models import adapter_folder, lora
from rlhf_min.models.tokens import check_vocabulary, same_vocabulary

HEADS = ("score.", "classifier.")  # names of the weights of a reward head

logging.disable_progress_bar()
logging.set_verbosity_error()  # our own errors say what is missing from a checkpoint


def load_tokenizer(path: str, needs_end: bool = True, model=None):
    """A tokenizer.  Raises InputError when it has no end token and needs one to end answers.

    model: must have an embedding for each of its tokens.
    """
    adapter = adapter_folder.read_adapter(path)
    own = not adapter or (Path(path) / "tokenizer_config.json").exists()
    tokenizer = from_hub(AutoTokenizer, path if own else adapter[0], "tokenizer")
    if needs_end and tokenizer.eos_token_id is None:
        raise InputError(f"{path} has no end token: set eos_token in its tokenizer_config.json")
    if model is not None:
        check_vocabulary(tokenizer, model)
    return tokenizer


def load_causal_lm(path: str, dtype: torch.dtype):
    """A causal language model.  Raises InputError for a reward model, and as `load_model`."""
    model, info = load_model(AutoModelForCausalLM, path, dtype)
    if any(name.startswith("score.") for name in info["unexpected_keys"]):
        raise InputError(f"{path} is a reward model (it has a head `score`): give a language model")
    return model


def load_policy(config, dtype: torch.dtype, tokenizer) -> tuple:
    """The policy and the reference model that KL is measured to.

    With adapters the reference shares the policy's frozen weights, unless --reference names another
    model.  config: settings of train_policy.py; tokenizer: the policy's.
    """
    policy = load_causal_lm(config.model, dtype)
    if config.lora_rank and config.reference in ("", config.model):
        reference = lora.sharing_copy(policy)  # before it gets its adapters
    else:
        reference = load_reference(config.reference or config.model, policy, tokenizer)
    prepare_training(policy, config)
    return policy, reference


def prepare_training(model, config) -> None:
    """Add adapters and gradient checkpointing where the settings of a training script ask for them.

    Raises InputError for a model that adapters cannot be added to.
    """
    if config.lora_rank:
        if adapter_folder.read_adapter(config.model):
            raise InputError(
                f"--lora-rank: {config.model} holds adapters only, which cannot be the base of "
                "others: give a folder in which they are merged, such as the one above it"
            )
        lora.add_adapters(model, config.lora_rank, config.lora_alpha, config.seed)
    if config.gradient_checkpointing:
        checkpoint_layers(model)


def checkpoint_layers(model) -> None:
    """Gradient checkpointing: the backward pass computes each layer's activations again.

    Raises InputError for a model that does not support it.
    """
    newer = getattr(model, "activation_checkpointing_enable", None)  # its name in transformers 6
    try:
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        name = type(model).__name__
        raise InputError(
            f"--gradient-checkpointing: {name} does not support it: leave it out"
        ) from error
    for module in model.modules():
        # It works in training mode only; other modules stay in evaluation mode: PhiMoE would draw
        # its experts at random.
        module.training = getattr(module, "gradient_checkpointing", False)


def load_reference(path: str, policy, tokenizer):
    """The frozen model that KL is measured to.  Raises InputError if it has other tokens.

    path: of --reference, or where that is empty of the policy; tokenizer: the policy's.
    """
    reference = load_causal_lm(path, policy.dtype)
    if not same_vocabulary(tokenizer, load_tokenizer(path)):
        raise InputError(
            f"--reference {path} has another tokenizer than --model: both must give the same text "
            "the same token ids, so take a model of the same family"
        )
    rows, needed = (m.get_input_embeddings().num_embeddings for m in (reference, policy))
    if rows < needed:
        raise InputError(
            f"--reference {path} has {rows} embeddings, but --model has {needed} and can sample "
            "them all: take a model of the same family"
        )
    return reference


def load_model(auto_class, path: str, dtype: torch.dtype, labels: int | None = None):
    """A pretrained model on the GPU or else the CPU, and transformers' report of missing weights.

    Dropout is off: with it sampling and training would use different functions.  Raises InputError
    when path (folder or hub id) cannot be read, has another head, lacks a weight below the head, or
    holds a weight that is not finite.  An adapter's folder gives its base model, merged with it.
    """
    keep_freed_memory()
    folder, adapter = path, adapter_folder.read_adapter(path)
    if adapter:
        path, scale, weights = adapter
        labels = labels or len(weights.get("score.weight", ())) or None
    config = from_hub(AutoConfig, path, "config")
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
    settings = {"config": config, "dtype": dtype, "use_safetensors": True}
    model, info = from_hub(auto_class, path, "model", output_loading_info=True, **settings)
    embedding = _embedding_name(model)
    if embedding in info["missing_keys"] and config.tie_word_embeddings:
        # The tied weight is stored under the name of the output layer, which a classifier lacks.
        tied, full = from_hub(
            AutoModelForCausalLM, path, "model", output_loading_info=True, **settings
        )
        if not full["missing_keys"]:
            model.set_input_embeddings(tied.get_input_embeddings())
            info["missing_keys"].remove(embedding)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(HEADS))
    if missing:
        raise InputError(
            f"{path} lacks the weight {missing[0]}, which would be left random: "
            "give a decoder language model saved with save_pretrained"
        )
    if adapter:
        adapter_folder.merge_adapter(model, folder, scale, weights)
        info["missing_keys"] -= weights.keys()
    # Else the pad token's embedding is never trained, and with pad = end every answer has it.
    model.get_input_embeddings().padding_idx = None
    _check_finite(model, folder)
    return use_products(model.to(main_device()).eval()), info


def _embedding_name(model) -> str:
    """The full name of the weight of a model's input embeddings."""
    weight = model.get_input_embeddings().weight
    return next(name for name, parameter in model.named_parameters() if parameter is weight)


def _check_finite(model, path: str) -> None:
    """Raise InputError for weights that are NaN or infinite."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.numel()}
    # The smallest and the largest number are NaN where one number is: no copy of the weight.
    extremes = {name: torch.stack(weight.detach().aminmax()) for name, weight in weights.items()}
    bad = [name for name, extreme in extremes.items() if not extreme.isfinite().all()]
    if bad:
        raise InputError(
            f"{path} has weights that are not finite numbers, {len(bad)} of {len(weights)} tensors "
            f"(first: {bad[0]}): its file is damaged or its training diverged, give another model"
        )


def from_hub(auto_class, path: str, what: str, **settings):
    """`auto_class.from_pretrained`, which runs no code of the folder; InputError if it fails."""
    folder = Path(path)
    # A hub id is "name" or "owner/name"; what lies in a folder that exists here is meant locally.
    local = folder.is_absolute() or (folder.parent != Path(".") and folder.parent.is_dir())
    if local and not folder.exists():
        raise InputError(f"cannot load a {what} from {path!r}: there is no such folder, check it")
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **settings)
    except Exception as error:  # transformers and the hub raise many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = "give a Hugging Face folder or hub id"
        if "trust_remote_code" in str(error):
            reason = "it asks for its own code (auto_map), which is never run"
            advice = "give a model of an architecture that transformers has"
        elif "Unrecognized configuration class" in reason:
            kind = settings["config"].model_type
            reason = f"transformers has no {auto_class.__name__} for the type {kind}"
            advice = "take a model of another family"
        elif any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            reason = "its weights are pickled (.bin), which can hold code and is never loaded"
            advice = (
                "if you trust it, convert it to safetensors: "
                f'AutoModelForCausalLM.from_pretrained("{path}").save_pretrained("{path}")'
            )
        raise InputError(f"cannot load a {what} from {path!r} ({reason}): {advice}") from error


def save_model(model, tokenizer, out: str | Path) -> None:
    """Save model and tokenizer as an ordinary Hugging Face folder; each file is replaced whole.

    Of several processes only the first writes.  Adapters are saved in the folder `adapter`, and
    then merged, in this model too.  config.json is the last: where it is, the model is whole.
    Raises InputError when the disk is full or the folder is gone.
    """
    if not ranks.is_first():
        return lora.merge(model)
    out, umask = Path(out), os.umask(0)
    os.umask(umask)  # Python can read it only by setting it
    with disk.writing(out), tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as draft:
        if lora.adapted_layers(model):
            adapter_folder.save_adapter(model, Path(draft) / "adapter")
            lora.merge(model)
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        files = [path for path in Path(draft).rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path.name == "config.json"):
            target = out / file.relative_to(draft)
            target.parent.mkdir(exist_ok=True)
            file.chmod(0o666 & ~umask)  # safetensors lets only the owner read it
            disk.move(file, target)
