"""Layers of the KV cache that append a token without copying the tokens before it."""

import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


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
        prompts, heads, _, size = layer.keys.shape
        room += self.length
        self.key_store = layer.keys.new_zeros(prompts * samples, heads, size, room)
        self.value_store = layer.values.new_zeros(prompts * samples, heads, room, size)
        self.key_store[..., : self.length] = layer.keys.mT.repeat_interleave(samples, 0)
        self.value_store[:, :, : self.length] = layer.values.repeat_interleave(samples, 0)
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
        """Keep these rows only."""
        self.key_store, self.value_store = self.key_store[indices], self.value_store[indices]
        self._set_views()


class StaticLayer(DynamicLayer):
    """A cache layer of fixed size that writes at the position held by the tensor `position` [1].

    Keys are stored in the usual order: PyTorch's fused kernels on a GPU accept no other.
    """

    def __init__(self, layer: DynamicLayer, samples: int, room: int, position: Tensor):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.position = position
        self.keys, self.values = (
            F.pad(x, (0, 0, 0, room)).repeat_interleave(samples, 0)
            for x in (layer.keys, layer.values)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Write the states of one new token [B, heads, 1, size]; returns the whole cache."""
        self.keys.index_copy_(2, self.position, key_states)
        self.values.index_copy_(2, self.position, value_states)
        return self.keys, self.values


def next_logits(model, cache: DynamicCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Append tokens ids [B, n] to the cache; the logits after the last of them: [B, V]."""
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]
