"""Answers drawn from a model: plain sampling from π, no truncation, no gradient."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_min import InputError
from rlhf_min.loading import (
    context_length,
    decode_answer,
    encode_prompt,
    end_token_ids,
    slides,
)
from rlhf_min.prompt_tree import length_batches, tree_mask

LEAVE_AT = 0.75  # finished rows leave the batch when at most this share still runs


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
    was_training = model.training
    model.eval()  # under gradient checkpointing a training model would switch its cache off
    device = model.device
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    segments = torch.full((len(prompts), width), -1)  # as in the prompt tree: 0 is the prompt
    for p, prompt in enumerate(prompts):  # padded on the left: the last slot is the last token
        ids[p, width - len(prompt) :] = torch.tensor(prompt)
        segments[p, width - len(prompt) :] = 0
    ids, segments = ids.to(device), segments.to(device)
    positions = ((segments == 0).cumsum(-1) - 1).clamp_min(0)

    # A model with a sliding window makes its own mask from a 2-D one; a 4-D mask would undo it.
    own_mask = (segments == 0).long() if slides(model, width + max_new_tokens) else None
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        attention_mask=own_mask if own_mask is not None else tree_mask(segments, model.dtype),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    make_room(cache, samples, max_new_tokens)
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    unseen = torch.zeros(
        len(prompts), 1, 1, width + max_new_tokens, dtype=model.dtype, device=device
    )
    unseen[:, 0, 0, :width].masked_fill_(segments < 0, torch.finfo(model.dtype).min)
    unseen = unseen.repeat_interleave(samples, 0)
    position = positions[:, -1:].repeat_interleave(samples, 0)

    total = len(prompts) * samples
    tokens = torch.full((total, max_new_tokens), -1, device=device)
    log_probs = torch.zeros(total, device=device)
    rows = torch.arange(total, device=device)  # which answer each row of the batch belongs to
    running = torch.ones(total, dtype=torch.bool, device=device)
    ends = torch.tensor(end_ids, device=device)
    if own_mask is not None:
        own_mask = own_mask.repeat_interleave(samples, 0)
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
        if left <= LEAVE_AT * len(rows):  # moving the cache costs more than a few idle rows
            keep = running.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, token, running = rows[keep], token[keep], running[keep]
            unseen, position = unseen[keep], position[keep]
            own_mask = None if own_mask is None else own_mask[keep]
        position = position + 1
        if own_mask is None:
            mask = unseen[..., : width + t + 1]
        else:
            mask = own_mask = F.pad(own_mask, (0, 1), value=1)
        logits = model(
            input_ids=token[:, None],
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


def draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token per row by the inverse of the CDF: probabilities [B, V] → [B].

    One random number per row instead of one per token of the vocabulary, as multinomial takes.
    """
    cdf = probabilities.cumsum(-1)
    u = torch.rand(len(cdf), 1, generator=generator, device=cdf.device) * cdf[:, -1:]
    return torch.searchsorted(cdf, u, right=True)[:, 0].clamp_max(cdf.shape[1] - 1)


class RoomyLayer(DynamicLayer):
    """A cache layer that writes new tokens into room set aside for them: no copy of the old.

    Keys lie transposed, [B, heads, size, tokens]: a product with one query reads them so, and need
    not copy them first.  What `update` returns is a view in the usual order.
    """

    def __init__(self, layer: DynamicLayer, samples: int, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length = layer.keys.shape[-2]
        prompts, heads, _, size = layer.keys.shape
        room += self.length
        self.key_store = layer.keys.new_zeros(prompts * samples, heads, size, room)
        self.value_store = layer.values.new_zeros(prompts * samples, heads, room, size)
        self.key_store[..., : self.length] = layer.keys.mT.repeat_interleave(samples, 0)
        self.value_store[:, :, : self.length] = layer.values.repeat_interleave(samples, 0)
        self._show()

    def _show(self) -> None:
        self.keys = self.key_store[..., : self.length].mT
        self.values = self.value_store[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append the states of new tokens [B, heads, new, size]; returns all keys and values."""
        begin, self.length = self.length, self.length + key_states.shape[-2]
        self.key_store[..., begin : self.length] = key_states.mT
        self.value_store[:, :, begin : self.length] = value_states
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.key_store, self.value_store = self.key_store[indices], self.value_store[indices]
        self._show()


def make_room(cache: DynamicCache, samples: int, room: int) -> None:
    """Repeat each prompt's cache `samples` times, with room for `room` more tokens."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = RoomyLayer(layer, samples, room)
        else:  # sliding windows, recurrent states: transformers knows how
            layer.batch_repeat_interleave(samples)


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
