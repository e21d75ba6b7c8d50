"""Decoding one token at a time with a KV cache that is rarely copied, and with packed weights."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_min.hardware.packing import can_pack, packed_forwards

BLOCK = 32  # tokens by which a cache grows
PACK_FROM = 16  # new tokens from which packing pays: it costs what about ten of them save


def allows_unwritten_places(model) -> bool:
    """Whether the model's cache may hold places without a token, if the mask hides them.

    Not if a layer has a sliding window, because a window is counted from the end of the cache.
    """
    gpt_neo_window = getattr(model.config.get_text_config(), "window_size", None)
    layers = DynamicCache(config=model.config).layers
    return gpt_neo_window is None and all(type(layer) is DynamicLayer for layer in layers)


class GrowingLayer(DynamicLayer):
    """A cache layer that grows by BLOCK tokens at a time, so that few steps copy it.

    `update` returns whole blocks, because oneDNN would copy a slice before every product.  Places
    that are not written yet hold zeros, and the mask hides them.
    """

    def __init__(self, layer: DynamicLayer, samples: int):
        """layer: filled by the prompts; every row is repeated `samples` times."""
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length = layer.keys.shape[-2]
        self.keys = with_room(layer.keys, self.length + 1).repeat_interleave(samples, 0)
        self.values = with_room(layer.values, self.length + 1).repeat_interleave(samples, 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append the states of new tokens [B, heads, new, size]; returns the whole cache."""
        begin, self.length = self.length, self.length + key_states.shape[-2]
        self.keys, self.values = (with_room(x, self.length) for x in (self.keys, self.values))
        self.keys[:, :, begin : self.length] = key_states
        self.values[:, :, begin : self.length] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        return self.length


def with_room(states: Tensor, tokens: int) -> Tensor:
    """States [B, heads, places, size] padded with zeros to whole blocks that hold `tokens`."""
    more = rounded_up(tokens, BLOCK) - states.shape[-2]
    return F.pad(states, (0, 0, 0, more)) if more > 0 else states


def rounded_up(tokens: int, block: int) -> int:
    """The smallest multiple of `block` that is not below `tokens`."""
    return tokens + -tokens % block


class Decoder:
    """B rows that are being decoded; `logits` [B, V]: what follows the prompts."""

    compact_below = 0.75  # share of rows still running; compacting the cache costs time

    def __init__(self, model, cache, logits: Tensor, mask, position, width: int, block: int):
        """mask [B, 1, 1, room] additive or [B, room]; position [B, 1]; width: prompt tokens.

        An additive mask hides all new places at first; each step shows one more.  block: the number
        of places that the cache returns is a multiple of this.
        """
        self.model, self.cache, self.logits = model, cache, logits
        self.mask, self.position, self.width, self.block = mask, position, width, block

    def __call__(self, token: Tensor) -> Tensor:
        """The next token of each row [B] → the logits after it [B, V]."""
        self.width += 1
        self.position = self.position + 1
        if self.mask.dim() == 4:
            self.mask[..., self.width - 1] = 0
        mask = self.mask[..., : rounded_up(self.width, self.block)]
        return next_logits(self.model, self.cache, token[:, None], mask, self.position)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self.cache.batch_select_indices(rows)
        self.position, self.mask = self.position[rows], self.mask[rows]


class RecomputingDecoder:
    """A decoder without a cache: each step computes the B rows again, padded on the right.

    For models that keep another state than keys and values, or that take no position ids: padding
    on the left would change their numbers.
    """

    compact_below = 0.99  # share of running rows: there is no cache to compact

    def __init__(self, model, prompts: list[list[int]], samples: int, room: int):
        """prompts [P] token ids; room: new tokens at most."""
        rows = [prompt for prompt in prompts for _ in range(samples)]
        self.model, self.lengths = model, torch.tensor(list(map(len, rows)), device=model.device)
        width = max(map(len, prompts)) + room
        padded = [row + [0] * (width - len(row)) for row in rows]
        self.ids = torch.tensor(padded, device=model.device)
        self.logits = self._next_logits()

    def _next_logits(self) -> Tensor:
        ids = self.ids[:, : self.lengths.max()]
        mask = (torch.arange(ids.shape[1], device=ids.device) < self.lengths[:, None]).long()
        parts = []
        for i, m, n in zip(*(x.split(8) for x in (ids, mask, self.lengths)), strict=True):
            logits = self.model(input_ids=i, attention_mask=m, use_cache=False).logits
            parts.append(logits[torch.arange(len(n), device=n.device), n - 1])
        return torch.cat(parts)

    def __call__(self, token: Tensor) -> Tensor:
        """The next token of each row [B] → the logits after it [B, V]."""
        self.ids.scatter_(1, self.lengths[:, None], token[:, None])
        self.lengths = self.lengths + 1
        return self._next_logits()

    def keep(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]


def next_logits(model, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Append tokens ids [B, n] to the cache; the logits after the last of them: [B, V]."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1]


@contextmanager
def decoding_mode(model, new_tokens: int):
    """Context manager: evaluation mode, merged and packed weights; restored on exit.

    In training mode gradient checkpointing would switch the KV cache off.  Adapters are merged
    (models/lora.py): fewer products.  On a CPU bfloat16 weights are packed: oneDNN would reorder a
    whole weight for every product of a few rows.  Both cost a copy of the weights meanwhile.
    """
    training = [module for module in model.modules() if module.training]
    packs = model.device.type == "cpu" and new_tokens >= PACK_FROM and can_pack()
    modules = [m for m in model.modules() if "forward" not in vars(m)]
    adapted = {m for m in modules if hasattr(m, "merged_layer")}
    layers = adapted | ({m for m in modules if type(m) is nn.Linear} - {m.layer for m in adapted})
    packed = {m for m in layers if packs and is_bfloat16(m.layer if m in adapted else m)}
    model.eval()
    try:
        for layer in adapted - packed:
            layer.forward = layer.merged_layer().forward
        for layer, forward in packed_forwards(model, packed):
            layer.forward = forward
        yield
    finally:
        for module in training:
            module.training = True
        for layer in layers:
            vars(layer).pop("forward", None)


def is_bfloat16(layer: nn.Module) -> bool:
    """Whether the layer is an nn.Linear (of no derived class) with a bfloat16 weight."""
    return type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16
