"""The decoder of a batch of prompts: each prompt is prefilled once for all its answers."""

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from rlhf_min.hardware.decoding import (
    BLOCK,
    Decoder,
    GrowingLayer,
    RecomputingDecoder,
    allows_unwritten_places,
    next_logits,
)
from rlhf_min.hardware.static_decoding import StaticDecoder, StaticLayer, use_static
from rlhf_min.models.batches import layout_of
from rlhf_min.models.layout import slides, tree_mask


def make_decoder(model, prompts: list[list[int]], samples: int, room: int, static=None):
    """A decoder for `samples` answers to each prompt: row p·samples + k is the k-th of prompt p.

    prompts [P] token ids; room: new tokens at most; static: a KV cache of fixed size (True) or one
    that grows (False); by default what the model allows, fixed on a GPU.
    """
    if static is None:
        if not layout_of(model).cache:
            return RecomputingDecoder(model, prompts, samples, room)
        static = use_static(model)
    width = max(map(len, prompts))
    room += -(width + room) % BLOCK  # whole blocks; fused kernels of a GPU need aligned masks too
    # Padded on the left, so that the last token is in place.
    rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    segments = [[-1] * (width - len(prompt)) + [0] * len(prompt) for prompt in prompts]
    ids, segments = (torch.tensor(x, device=model.device) for x in (rows, segments))
    positions = ((segments == 0).cumsum(-1) - 1).clamp_min(0)
    # A model with a sliding window makes its own mask from a 2-D one; a 4-D one would replace it.
    two_dimensional = slides(model, width + room)
    static = static and not two_dimensional
    mask = (segments == 0).long()
    mask = mask if two_dimensional else tree_mask(segments, segments, model.dtype)
    cache = DynamicCache(config=model.config)
    logits = next_logits(model, cache, ids, mask, positions).repeat_interleave(samples, 0)
    write_at = torch.full((1,), width, device=model.device)
    blocks = not two_dimensional and allows_unwritten_places(model)
    for i, layer in enumerate(cache.layers):
        if static:
            cache.layers[i] = StaticLayer(layer, samples, room, write_at)
        elif blocks:
            cache.layers[i] = GrowingLayer(layer, samples)
        else:
            layer.batch_repeat_interleave(samples)
    # A new token sees what the last token of its prompt sees, the new tokens before it, and itself.
    # An additive mask hides the places of new tokens until the decoder writes them.
    if two_dimensional:
        mask = F.pad(mask, (0, room), value=1)
    else:
        mask = F.pad(mask[:, :, -1:], (0, room), value=torch.finfo(mask.dtype).min)
    mask, position = (x.repeat_interleave(samples, 0) for x in (mask, positions[:, -1:]))
    state = model, cache, logits, mask, position, width, BLOCK if blocks else 1
    return StaticDecoder(*state, write_at=write_at) if static else Decoder(*state)
