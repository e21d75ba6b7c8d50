"""Answers drawn from a model: plain sampling from π, no truncation, no gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.models.decoding import make_decoder, ready_to_decode
from rlhf_min.models.loading import context_length
from rlhf_min.models.prompt_tree import length_batches
from rlhf_min.models.tokens import decode_answer, encode_prompt, end_token_ids


@dataclass(frozen=True)
class Rollout:
    """K sampled answers to each of P prompts, as token ids.

    answers [P][K][tokens], closed by an end token where `finished` [P, K] bool; log_probs [P, K]:
    the sampler's own log π(y|x), float32, summed over the answer's tokens.
    """

    prompts: list[list[int]]
    answers: list[list[list[int]]]
    finished: Tensor
    log_probs: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, end token included: [P, K]."""
        return torch.tensor([[len(a) for a in answers] for answers in self.answers])

    @property
    def row_lengths(self) -> list[int]:
        """Slots of each prompt's row in a tree, all its answers in it: [P]."""
        return [
            len(prompt) + sum(map(len, answers))
            for prompt, answers in zip(self.prompts, self.answers, strict=True)
        ]


@torch.no_grad()
def sample(
    model,
    prompts: list[list[int]],
    samples: int,
    max_new_tokens: int,
    end_ids: list[int],
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Draw `samples` answers per prompt from softmax(logits/temperature), nothing else.

    The model's generation_config (greedy decoding, top-k, penalties) is never consulted.  Prompts
    run through the model once; finished rows leave the batch.
    """
    device, total = model.device, len(prompts) * samples
    tokens = torch.full((total, max_new_tokens), -1, device=device)
    log_probs = torch.zeros(total, device=device)
    rows = torch.arange(total, device=device)  # which answer each row of the batch belongs to
    running = torch.ones(total, dtype=torch.bool, device=device)
    ends = torch.tensor(end_ids, device=device)
    with ready_to_decode(model, max_new_tokens):
        decoder = make_decoder(model, prompts, samples, max_new_tokens)
        logits = decoder.logits
        for t in range(max_new_tokens):
            z = logits if temperature == 1 else logits.float() / temperature
            probabilities = z.softmax(-1, dtype=torch.float32)
            token = draw(probabilities, generator)
            tokens[rows, t] = torch.where(running, token, -1)
            log_probs[rows] += probabilities.gather(1, token[:, None])[:, 0].log() * running
            running = running & ~torch.isin(token, ends)
            left = int(running.sum())
            if t + 1 == max_new_tokens or not left:
                break
            if left <= decoder.leave_at * len(rows):
                keep = running.nonzero()[:, 0]
                decoder.keep(keep)
                rows, token, running = rows[keep], token[keep], running[keep]
            logits = decoder(token)

    finished = torch.isin(tokens, ends).any(1)
    answers = [[i for i in row if i >= 0] for row in tokens.tolist()]
    return Rollout(
        prompts=prompts,
        answers=[answers[p * samples : (p + 1) * samples] for p in range(len(prompts))],
        finished=finished.view(-1, samples).cpu(),
        log_probs=log_probs.view(-1, samples).cpu(),
    )


def draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token per row by the inverse of the CDF: probabilities [B, V] → [B].

    One random number per row instead of one per token of the vocabulary, as multinomial takes.
    """
    cdf = probabilities.cumsum(-1)
    u = torch.rand(len(cdf), 1, generator=generator, device=cdf.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp_max(cdf.shape[1] - 1)


def answer(
    model,
    tokenizer,
    prompts: list,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[list[str], list[bool]]:
    """One answer per prompt (text or chat messages): texts, and whether each ended by itself."""
    room = context_length(model) - max_new_tokens
    if room < 1:
        raise InputError("--max-new-tokens leaves no room for the prompt in the context: lower it")
    ids = [encode_prompt(tokenizer, prompt, room) for prompt in prompts]
    generator = torch.Generator(model.device).manual_seed(seed)
    texts, finished = [""] * len(ids), [False] * len(ids)
    for group in length_batches([len(i) for i in ids], batch_size, max_tokens=2**16):
        rollout = sample(
            model, [ids[i] for i in group], 1, max_new_tokens, end_token_ids(model, tokenizer),
            temperature, generator,
        )  # fmt: skip
        for i, answers, done in zip(group, rollout.answers, rollout.finished, strict=True):
            texts[i] = decode_answer(tokenizer, answers[0])
            finished[i] = bool(done[0])
    return texts, finished
