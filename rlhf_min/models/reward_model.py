"""A reward model: a language model whose last hidden state of an answer becomes a score.

Scalar head: one number.  Ratings head: logits of a distribution over the ratings 1..10.
Both are ordinary `AutoModelForSequenceClassification` folders with 1 or 10 labels.
"""

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf_min import InputError
from rlhf_min.hardware import ranks
from rlhf_min.maths.ratings import entropic_rating, mean_rating, win_log_probability
from rlhf_min.models.batches import end_states, tree_batches
from rlhf_min.models.encoder import is_encoder
from rlhf_min.models.loading import load_model
from rlhf_min.models.prompt_tree import Tree

LABELS = {"scalar": 1, "ratings": 10}


def new_reward_model(path: str, head: str, dtype: torch.dtype, std: float = 0.0):
    """A language model (folder or hub id) with a new head, to be trained as a reward model.

    head: "scalar" or "ratings"; if path is a reward model, its trained head stays.  std: of the new
    head's normally distributed weights; 0 means that all answers score the same at first.  Raises
    InputError as `load_model`.
    """
    model, info = load_model(AutoModelForSequenceClassification, path, dtype, LABELS[head])
    if is_encoder(model):
        raise InputError(
            f"{path} is an encoder, which train_rm.py does not train: start from a decoder "
            "language model (a trained encoder with 1 label works as --reward-model)"
        )
    if info["missing_keys"]:
        torch.nn.init.normal_(model.score.weight, std=std)  # 0: the first loss is that of chance
    return model


def load_reward_model(path: str, dtype: torch.dtype, needs_ratings: bool = False):
    """A trained reward model.  Raises InputError where there is none, and as `load_model`.

    needs_ratings: whether its head must give a distribution over ratings.
    """
    model, info = load_model(AutoModelForSequenceClassification, path, dtype)
    base = "LANGUAGE_MODEL" if is_encoder(model) else path
    advice = f"train one with `python train_rm.py --model {base} --out DIR` and give DIR instead"
    if info["missing_keys"]:
        raise InputError(f"{path} has no reward head with trained weights: {advice}")
    if model.config.num_labels not in LABELS.values():
        raise InputError(
            f"{path} is a classifier with {model.config.num_labels} labels, but a reward model has "
            "1 (a score) or 10 (the ratings 1 to 10): give one that has, or train one with "
            "`python train_rm.py --model LANGUAGE_MODEL --out DIR`"
        )
    if model.config.is_encoder_decoder:
        raise InputError(f"{path} is an encoder-decoder: give a decoder or an encoder with a head")
    if needs_ratings and model.config.num_labels == LABELS["scalar"]:
        raise InputError(
            f"--reading entropic and --weight need a distribution over ratings, but {path} "
            "gives one number: train a reward model with --head ratings"
        )
    return model


def separate_pad(model, tokenizer) -> None:
    """Give tokenizer and model another pad token if the tokenizer's pad token is its end token.

    transformers reads the score at the last token that is not padding.  With pad = end (as in
    SmolLM2-Instruct) that is the token *before* the end.  This code does not look for
    padding, but others who load the saved folder do.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        others = tokenizer.unk_token, tokenizer.bos_token
        if spare := [t for t in others if t not in (None, tokenizer.eos_token)]:
            tokenizer.pad_token = spare[0]
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id


def branch_outputs(model, tree: Tree) -> Tensor:
    """The head's output at each branch's last token: [B, labels] float32, or float64."""
    output = model.score(end_states(model, tree))
    return output if output.dtype == torch.float64 else output.float()


@torch.no_grad()
def all_outputs(model, prompts: list[list[int]], branches: list[list[list[int]]]) -> Tensor:
    """Head outputs of each prompt's branches, all in token ids: [B, labels] float32."""
    results = {}  # by prompt, of this process
    for p, tree in tree_batches(model, prompts, branches, 64, forward=True):
        counts = [len(branches[i]) for i in p]
        results |= zip(p, branch_outputs(model, tree).cpu().split(counts), strict=True)
    outputs = ranks.gather([results[i] for i in ranks.own(len(prompts))])
    return torch.cat(outputs).to(model.device)


def win_probability(first: Tensor, second: Tensor) -> Tensor:
    """P(first ≻ second), Bradley-Terry or with ties ½: head outputs, both [..., labels] → [...]."""
    if first.shape[-1] == 1:
        return (first - second)[..., 0].sigmoid()
    return win_log_probability(first, second, tie=0.5).exp().clamp_max(1)  # rounding: 1.0000001


def wins(first: Tensor, second: Tensor) -> Tensor:
    """1 where the first answer is likelier to win, 0 where the second is, ½ for a tie: [B]."""
    # P may be 0.5000001 for equal outputs; the difference of both orders is then exactly 0.
    return (win_probability(first, second) - win_probability(second, first)).sign() / 2 + 0.5


def reward_from(outputs: Tensor, reading: str, b: float = 2.0, reference: Tensor | None = None):
    """Rewards from head outputs: [..., labels] → [...].

    reading: "mean" (the scalar, or the expected rating), "entropic" (the pessimistic rating with
    scale b) or "win" (against the reference's answer with outputs `reference` [..., labels]).
    """
    if reading == "win":
        return win_probability(outputs, reference)
    if outputs.shape[-1] == 1:
        return outputs[..., 0]
    return entropic_rating(outputs, b) if reading == "entropic" else mean_rating(outputs)
