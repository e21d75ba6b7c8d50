"""Plain sampling from π: no gradient, no top-k or top-p, no repetition penalty."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_min.hardware.decoding import decoding_mode
from rlhf_min.hardware.finite import check_finite
from rlhf_min.models.decoding import make_decoder


@dataclass(frozen=True)
class Rollout:
    """K sampled answers to each of P prompts, as token ids."""

    prompts: list[list[int]]  # [P] token ids
    answers: list[list[list[int]]]  # [P][K] token ids, the end token included
    finished: Tensor  # [P, K] bool: the answer ended with an end token
    log_probs: Tensor  # [P, K] log π(y|x) as the sampler saw it, float32


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
    """Draw `samples` answers to each prompt from softmax(logits/temperature).

    prompts [P] token ids; an answer ends with one of end_ids or after max_new_tokens.  The model's
    generation_config (greedy decoding, top-k, penalties) is never used.  Raises NonFiniteError.
    """
    device, total = model.device, len(prompts) * samples
    tokens = torch.full((total, max_new_tokens), -1, device=device)
    log_probs = torch.zeros(total, device=device)
    answer_of = torch.arange(total, device=device)  # the answer that each decoded row belongs to
    running = torch.ones(total, dtype=torch.bool, device=device)
    ends = torch.tensor(end_ids, device=device)
    with decoding_mode(model, max_new_tokens):
        decoder = make_decoder(model, prompts, samples, max_new_tokens)
        logits = decoder.logits  # [rows, V]; decoder(token [rows]) gives the next ones
        for t in range(max_new_tokens):
            z = logits if temperature == 1 else logits.float() / temperature
            probabilities = z.softmax(-1, dtype=torch.float32)
            token = draw(probabilities, generator)
            tokens[answer_of, t] = torch.where(running, token, -1)
            drawn = probabilities.gather(1, token[:, None])[:, 0]
            check_finite("a sampled token's probability", drawn, rows=answer_of // samples)
            log_probs[answer_of] += drawn.log() * running
            running = running & ~torch.isin(token, ends)
            count = int(running.sum())
            if t + 1 == max_new_tokens or not count:
                break
            if count <= decoder.compact_below * len(running):  # drop finished rows: it costs time
                keep = running.nonzero()[:, 0]
                decoder.keep(keep)
                answer_of, token, running = answer_of[keep], token[keep], running[keep]
            logits = decoder(token)

    answers = [[i for i in row if i >= 0] for row in tokens.tolist()]
    return Rollout(
        prompts=prompts,
        answers=[answers[p * samples : (p + 1) * samples] for p in range(len(prompts))],
        finished=torch.isin(tokens, ends).any(1).view(-1, samples).cpu(),
        log_probs=log_probs.view(-1, samples).cpu(),
    )


def draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token per row by inverse transform sampling: probabilities [B, V] → [B]."""
    # One random number per row; torch.multinomial draws one per token of the vocabulary.
    cdf = probabilities.cumsum(-1)
    u = torch.rand(len(cdf), 1, generator=generator, device=cdf.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp_max(cdf.shape[1] - 1)
