"""Answers as text: of rollouts, sampled for a judge, and encoded for another model."""

import torch

from rlhf_min import InputError
from rlhf_min.hardware.finite import naming
from rlhf_min.models.batches import length_batches
from rlhf_min.models.layout import context_length
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.tokens import decode_answer, encode_answer, encode_prompt, end_token_ids


class AnswerTooLongError(InputError):
    """An answer alone fills the context of the model that should read it."""


def answer_texts(tokenizer, rollout: Rollout) -> list[list[str]]:
    """The answers of a rollout as text, [P][K]."""
    return [[decode_answer(tokenizer, a) for a in answers] for answers in rollout.answers]


def encode_texts(
    tokenizer, prompts: list, texts: list[list[str]], ends: list[list[bool]], max_tokens: int
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of prompts [P] (text or messages) and answer texts [P][K], for a reward model.

    ends [P][K]: whether the end token follows.  Prompts are cut on the left, answers never:
    AnswerTooLongError.
    """
    ids, branches = [], []
    for prompt, own, own_ends in zip(prompts, texts, ends, strict=True):
        encoded = [
            encode_answer(tokenizer, prompt, text, end) or [tokenizer.eos_token_id]
            for text, end in zip(own, own_ends, strict=True)
        ]
        longest = max(map(len, encoded))
        if longest >= max_tokens:
            raise AnswerTooLongError(
                f"an answer of {longest} tokens does not fit the reward model's context of "
                f"{max_tokens}: answers are never cut, give shorter ones"
            )
        ids.append(encode_prompt(tokenizer, prompt, max_tokens - longest))
        branches.append(encoded)
    return ids, branches


def sample_texts(
    model, tokenizer, prompts: list, max_new_tokens: int, temperature=1.0, seed=0, batch_size=64
) -> tuple[list[str], list[bool]]:
    """One answer to each prompt (text or chat messages): texts, and whether each one ended."""
    room = context_length(model) - max_new_tokens
    ids = [encode_prompt(tokenizer, prompt, room) for prompt in prompts]
    generator = torch.Generator(model.device).manual_seed(seed)
    settings = max_new_tokens, end_token_ids(model, tokenizer), temperature, generator
    texts, finished = [""] * len(ids), [False] * len(ids)
    for group in length_batches(list(map(len, ids)), batch_size, max_positions=2**16):
        with naming({"place": "sampling", "prompts": [prompts[i] for i in group]}):
            rollout = sample(model, [ids[i] for i in group], 1, *settings)
        for i, (answer,), (done,) in zip(group, rollout.answers, rollout.finished, strict=True):
            texts[i], finished[i] = decode_answer(tokenizer, answer), bool(done)
    return texts, finished
