"""Decoding one token at a time with a KV cache that is never copied, and with packed weights."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_min.hardware.packing import can_pack, packed_forwards

PACK_FROM = 16  # new tokens from which packing pays: it costs what about ten of them save


class GrowingLayer(DynamicLayer):
    """A cache layer with room allocated in advance for new tokens.

    Keys are stored transposed, [B, heads, size, tokens], because a product with one query reads
    them in that order.  `update` returns views in the usual order.
    """

    def __init__(self, layer: DynamicLayer, samples: int, room: int):
        """layer: filled by the prompts; every row is repeated `samples` times."""
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length = layer.keys.shape[-2]
        self.key_store = F.pad(layer.keys.mT, (0, room)).repeat_interleave(samples, 0)
        self.value_store = F.pad(layer.values, (0, 0, 0, room)).repeat_interleave(samples, 0)
        self._set_views()

    def _set_views(self) -> None:
        self.keys = self.key_store[..., : self.length].mT
        self.values = self.value_store[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append the states of new tokens [B, heads, new, size]; returns all keys and values."""
        begin, self.length = self.length, self.length + key_states.shape[-2]
        self.key_store[..., begin : self.length] = key_states.mT
        self.value_store[:, :, begin : self.length] = value_states
        self._set_views()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_store, self.value_store = self.key_store[indices], self.value_store[indices]
        self._set_views()


class Decoder:
    """B rows that are being decoded; `logits` [B, V]: what follows the prompts."""

    compact_below = 0.75  # share of running rows: compacting the cache for fewer rows costs time

    def __init__(self, model, cache: DynamicCache, logits: Tensor, mask, position, width: int):
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
    was_training = model.training
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
        model.train(was_training)
        for layer in layers:
            vars(layer).pop("forward", None)


def is_bfloat16(layer: nn.Module) -> bool:
    """Whether the layer is an nn.Linear (of no derived class) with a bfloat16 weight."""
    return type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16
