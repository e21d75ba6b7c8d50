"""Incremental decoding with a KV cache: each prompt is prefilled once, then one token at a time."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_min.hardware.kv_cache import GrowingLayer, StaticLayer, next_logits
from rlhf_min.hardware.packed_weights import packed_weights
from rlhf_min.hardware.static_decoding import StaticDecoder, use_static
from rlhf_min.models.layout import slides, tree_mask


class Decoder:
    """The state of B rows that are being decoded.

    `logits` [B, V]: what follows the prompts.  Calling the decoder with one token per row returns
    the logits after it.
    """

    compact_below = 0.75  # share of running rows: compacting the cache for fewer rows costs time

    def __init__(self, model, cache, logits, mask, position, width: int):
        """mask [B, 1, 1, room] additive or [B, room]; position [B, 1]; width: prompt tokens."""
        self.model, self.cache, self.logits = model, cache, logits
        self.mask, self.position, self.width = mask, position, width

    def __call__(self, token: Tensor) -> Tensor:
        """The next token of each row [B] → the logits after it [B, V]."""
        self.width += 1
        self.position = self.position + 1
        mask = self.mask[..., : self.width]
        return next_logits(self.model, self.cache, token[:, None], mask, self.position)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self.cache.batch_select_indices(rows)
        self.position, self.mask = self.position[rows], self.mask[rows]


def make_decoder(model, prompts: list[list[int]], samples: int, room: int, static=None):
    """A decoder for `samples` answers to each prompt: row p·samples + k is the k-th of prompt p.

    prompts [P] token ids; room: new tokens at most; static: use tensors of fixed size (by default
    on a GPU, where the model allows it).
    """
    if static is None:
        static = use_static(model)
    width = max(map(len, prompts))
    if static:
        room += -(width + room) % 16  # fused attention kernels need aligned masks
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    segments = torch.full((len(prompts), width), -1)  # as in the prompt tree: 0 prompt, -1 padding
    for p, prompt in enumerate(prompts):  # padded on the left, so that the last token is in place
        ids[p, width - len(prompt) :] = torch.tensor(prompt)
        segments[p, width - len(prompt) :] = 0
    ids, segments = ids.to(model.device), segments.to(model.device)
    positions = ((segments == 0).cumsum(-1) - 1).clamp_min(0)
    # A model with a sliding window makes its own mask from a 2-D one; a 4-D one would replace it.
    two_dimensional = slides(model, width + room)
    mask = (segments == 0).long() if two_dimensional else tree_mask(segments, model.dtype)
    cache = DynamicCache(config=model.config)
    logits = next_logits(model, cache, ids, mask, positions).repeat_interleave(samples, 0)
    write_at = torch.full((1,), width, device=model.device)
    for i, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:  # sliding windows, recurrent states
            layer.batch_repeat_interleave(samples)
        elif static:
            cache.layers[i] = StaticLayer(layer, samples, room, write_at)
        else:
            cache.layers[i] = GrowingLayer(layer, samples, room)
    mask = F.pad((segments == 0).long(), (0, room), value=1)
    if not two_dimensional:
        additive = torch.zeros_like(mask, dtype=model.dtype)
        mask = additive.masked_fill_(mask == 0, torch.finfo(model.dtype).min)[:, None, None]
    mask, position = (x.repeat_interleave(samples, 0) for x in (mask, positions[:, -1:]))
    if static:
        return StaticDecoder(model, cache, logits, mask, position, width, write_at)
    return Decoder(model, cache, logits, mask, position, width)


@contextmanager
def decoding_mode(model, new_tokens: int):
    """Context manager: evaluation mode and packed weights; restored on exit.

    In training mode gradient checkpointing would switch the KV cache off.
    """
    was_training = model.training
    model.eval()
    try:
        with packed_weights(model, new_tokens):
            yield
    finally:
        model.train(was_training)
