"""Answers drawn from a model: plain sampling from π, no truncation, no gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_min.loading import context_length, decode_answer, encode_prompt, end_token_ids
from rlhf_min.prompt_tree import length_batches


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
    run through the model once, their cache is shared by the samples, finished rows leave the batch.
    """
    was_training = model.training
    model.eval()  # under gradient checkpointing a training model would switch its cache off
    device = model.device
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for p, prompt in enumerate(prompts):  # padded on the left: the last slot is the last token
        ids[p, width - len(prompt) :] = torch.tensor(prompt)
        mask[p, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)

    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_repeat_interleave(samples)
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    mask = mask.repeat_interleave(samples, 0)
    position = positions[:, -1:].repeat_interleave(samples, 0)

    total = len(prompts) * samples
    tokens = torch.full((total, max_new_tokens), -1, device=device)
    log_probs = torch.zeros(total, device=device)
    rows = torch.arange(total, device=device)  # which answer each row of the batch still belongs to
    ends = torch.tensor(end_ids, device=device)
    for t in range(max_new_tokens):
        log_p = (logits.float() / temperature).log_softmax(-1)
        token = torch.multinomial(log_p.exp(), 1, generator=generator)
        tokens[rows, t] = token[:, 0]
        log_probs[rows] += log_p.gather(1, token)[:, 0]
        alive = ~torch.isin(token[:, 0], ends)
        if t + 1 == max_new_tokens or not alive.any():
            break
        if not alive.all():
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, token, mask, position = rows[keep], token[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        logits = model(
            input_ids=token,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]

    model.train(was_training)
    finished = torch.isin(tokens, ends).any(1)
    answers = [[i for i in row if i >= 0] for row in tokens.tolist()]
    return Rollout(
        prompts=prompts,
        answers=[answers[p * samples : (p + 1) * samples] for p in range(len(prompts))],
        finished=finished.view(-1, samples).cpu(),
        log_probs=log_probs.view(-1, samples).cpu(),
    )


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
