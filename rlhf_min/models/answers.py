"""Answers as text: of rollouts, sampled for a judge, and encoded for another model."""

import torch

from rlhf_min import InputError
from rlhf_min.models.batches import length_batches
from rlhf_min.models.layout import context_length
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.tokens import decode_answer, encode_answer, encode_prompt, end_token_ids


def answer_texts(tokenizer, rollout: Rollout) -> list[list[str]]:
    """The answers of a rollout as text, [P][K]."""
    return [[decode_answer(tokenizer, a) for a in answers] for answers in rollout.answers]


def encode_texts(
    tokenizer, prompts: list, texts: list[list[str]], ends: list[list[bool]], max_tokens: int
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of prompts [P] (text or messages) and answer texts [P][K], for a reward model.

    ends [P][K]: whether the end token follows the answer.  A prompt is cut on the left to leave
    room for its longest answer.  Raises InputError when an answer alone exceeds max_tokens.
    """
    ids, branches = [], []
    for prompt, own, own_ends in zip(prompts, texts, ends, strict=True):
        encoded = [
            encode_answer(tokenizer, prompt, text, end) or [tokenizer.eos_token_id]
            for text, end in zip(own, own_ends, strict=True)
        ]
        longest = max(map(len, encoded))
        if longest >= max_tokens:
            raise InputError(
                f"an answer of {longest} tokens does not fit the reward model's context "
                f"of {max_tokens}: answers are never cut, give shorter ones"
            )
        ids.append(encode_prompt(tokenizer, prompt, max_tokens - longest))
        branches.append(encoded)
    return ids, branches


def score_texts(scorer, prompts: list, answers: list[str]) -> list[float]:
    """Rewards of one answer text per prompt: the scalar, or the expected rating.

    scorer: RewardScorer.  Raises InputError when an answer does not fit its model's context.
    """
    texts, ends = [[answer] for answer in answers], [[True]] * len(answers)
    tokens = encode_texts(scorer.tokenizer, prompts, texts, ends, context_length(scorer.model))
    return reward_from(scorer.outputs(*tokens), "mean").tolist()


def sample_texts(
    model,
    tokenizer,
    prompts: list,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[list[str], list[bool]]:
    """One answer to each prompt (text or chat messages): texts, and whether each one ended.

    Raises InputError when max_new_tokens leaves no room for a prompt.
    """
    room = context_length(model) - max_new_tokens
    if room < 1:
        raise InputError("--max-new-tokens leaves no room for the prompt in the context: lower it")
    ids = [encode_prompt(tokenizer, prompt, room) for prompt in prompts]
    generator = torch.Generator(model.device).manual_seed(seed)
    ends = end_token_ids(model, tokenizer)
    texts, finished = [""] * len(ids), [False] * len(ids)
    for group in length_batches([len(i) for i in ids], batch_size, max_positions=2**16):
        batch = [ids[i] for i in group]
        rollout = sample(model, batch, 1, max_new_tokens, ends, temperature, generator)
        for i, own, done in zip(group, rollout.answers, rollout.finished, strict=True):
            texts[i], finished[i] = decode_answer(tokenizer, own[0]), bool(done[0])
    return texts, finished
