"""A reward model is a language model whose last hidden state of an answer becomes a score.

Scalar head: one number.  Ratings head: logits of a distribution over the ratings 1..10.
Both are ordinary `AutoModelForSequenceClassification` folders with 1 or 10 labels.
"""

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf_min import InputError
from rlhf_min.hardware.attention import use_products
from rlhf_min.hardware.device import choose_device, choose_dtype
from rlhf_min.maths.ratings import (
    confidence_weight,
    entropic_rating,
    mean_rating,
    win_log_probability,
)
from rlhf_min.models.loading import choose_layout, context_length, load_tokenizer, load_weights
from rlhf_min.models.prompt_tree import Layout, Tree, build_tree, hidden_states, length_batches
from rlhf_min.models.tokens import encode_answer, encode_prompt

LABELS = {"scalar": 1, "ratings": 10}


def new_reward_model(path: str, head: str, dtype: torch.dtype, device: torch.device | None = None):
    """A language model (folder or hub id) with a fresh head that scores everything alike.

    head: "scalar" or "ratings".  A reward model with that head already goes on from its own.
    Raises InputError when any weight but the head's would be left random.
    """
    model, info = load_weights(
        AutoModelForSequenceClassification, path, dtype, num_labels=LABELS[head]
    )
    missing = sorted(set(info["missing_keys"]) - {"score.weight"})
    if missing or not hasattr(model, "score"):
        name = missing[0] if missing else "score.weight"
        raise InputError(
            f"{path} lacks the weight {name}, which would be left random: "
            "start from a decoder language model saved with save_pretrained"
        )
    if info["missing_keys"]:
        torch.nn.init.zeros_(model.score.weight)  # the first loss is exactly the chance level
    return use_products(model.to(device or choose_device()).eval())


def load_reward_model(path: str, dtype: torch.dtype, device: torch.device | None = None):
    """A trained reward model.  Raises InputError for a folder without a head, or another head."""
    model, info = load_weights(AutoModelForSequenceClassification, path, dtype)
    missing = sorted(info["missing_keys"])
    if missing or not hasattr(model, "score") or model.config.num_labels not in LABELS.values():
        raise InputError(
            f"{path} has no reward head (1 or 10 labels) with trained weights: "
            f"train one with `python train_rm.py --model {path} --out runs/rm`"
        )
    return use_products(model.to(device or choose_device()).eval())


def separate_pad(model, tokenizer) -> None:
    """Give a tokenizer whose pad is its end token another pad, and tell both model and tokenizer.

    transformers reads the score at the last token that is not pad: with pad = end (as in
    SmolLM2-Instruct) that is the token *before* the end.  Ours is found by length; this
    makes the saved folder agree.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        others = [tokenizer.unk_token, tokenizer.bos_token]
        spare = [t for t in others if t is not None and t != tokenizer.eos_token]
        if spare:
            tokenizer.pad_token = spare[0]
        else:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id


def branch_outputs(model, tree: Tree) -> Tensor:
    """The head's output at each branch's last token: [B, labels] float32 (float64 likewise)."""
    output = model.score(hidden_states(model, tree)[tree.ends])
    return output if output.dtype == torch.float64 else output.float()


def win_probability(first: Tensor, second: Tensor) -> Tensor:
    """P(first ≻ second) from head outputs [B, 1] or [B, 10]: [B].

    Scalar: σ(r − r') (Bradley-Terry); ratings: with half ties.  The same scale for both heads.
    """
    if first.shape[-1] == 1:
        return (first - second)[..., 0].sigmoid()
    return win_log_probability(first, second, tie=0.5).exp()


def wins(first: Tensor, second: Tensor) -> Tensor:
    """1 where the first answer is the likelier winner, 0 where the second is, ½ for a tie.

    Head outputs [B, labels] ×2 → [B].  Both orders are compared with each other, not with ½,
    where rounding would decide a tie.
    """
    return (win_probability(first, second) - win_probability(second, first)).sign() / 2 + 0.5


def read_reward(outputs: Tensor, reading: str, b: float = 2.0, start: Tensor | None = None):
    """One number per answer from head outputs [B, labels]: [B].

    reading: "mean" (the scalar itself, or the expected rating), "entropic" (pessimistic, ratings
    only), "win" (P(answer ≻ the start model's answer), whose outputs are `start` [B, labels]).
    """
    if reading == "win":
        return win_probability(outputs, start)
    if outputs.shape[-1] == 1:
        return outputs[..., 0]
    return entropic_rating(outputs, b) if reading == "entropic" else mean_rating(outputs)


def read_weight(outputs: Tensor, kind: str) -> Tensor:
    """Factor of the advantage from the ratings' spread: [B, labels] → [B]; 1 for a scalar head."""
    if outputs.shape[-1] == 1:
        return torch.ones_like(outputs[..., 0])
    return confidence_weight(outputs, kind)


class Scorer:
    """A trained reward model with its tokenizer, for scoring without gradient."""

    def __init__(self, path: str, dtype: torch.dtype | str = "float32"):
        dtype = choose_dtype(dtype) if isinstance(dtype, str) else dtype
        self.model = load_reward_model(path, dtype)
        self.tokenizer = load_tokenizer(path)
        self.layout: Layout = choose_layout(self.model)
        self.head = "scalar" if self.model.config.num_labels == 1 else "ratings"

    def encode(self, prompt, answer: str, end: bool = True) -> tuple[list[int], list[int]]:
        """Prompt and answer ids that fit the context, the prompt cut from the left."""
        answer_ids = encode_answer(self.tokenizer, prompt, answer, end)
        answer_ids = answer_ids or [self.tokenizer.eos_token_id]
        room = context_length(self.model) - len(answer_ids)
        if room < 1:
            raise InputError(
                f"an answer of {len(answer_ids)} tokens does not fit the reward model's context "
                f"of {context_length(self.model)}: answers are never cut, give shorter ones"
            )
        return encode_prompt(self.tokenizer, prompt, room), answer_ids

    @torch.no_grad()
    def outputs(self, prompts: list[list[int]], branches: list[list[list[int]]]) -> Tensor:
        """Head outputs of each prompt's branches, all in token ids: [B, labels] float32."""
        counts = [len(answers) for answers in branches]
        firsts = [sum(counts[:p]) for p in range(len(counts))]
        lengths = [
            len(prompt) + sum(map(len, answers))
            for prompt, answers in zip(prompts, branches, strict=True)
        ]
        result = torch.zeros(sum(counts), self.model.config.num_labels, device=self.layout.device)
        for rows in length_batches(lengths, max_rows=64, max_tokens=2**14):
            tree = build_tree([prompts[p] for p in rows], [branches[p] for p in rows], self.layout)
            where = [firsts[p] + k for p in rows for k in range(counts[p])]
            result[where] = branch_outputs(self.model, tree)
        return result

    def rewards(self, prompts: list, answers: list[str]) -> list[float]:
        """One answer text per prompt (text or messages) → rewards (scalar, or expected rating)."""
        pairs = [self.encode(p, a) for p, a in zip(prompts, answers, strict=True)]
        outputs = self.outputs([p for p, _ in pairs], [[a] for _, a in pairs])
        return read_reward(outputs, "mean").tolist()
