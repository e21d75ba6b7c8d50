"""Computes a model's last layer only where its output is used.

A reward model reads one position per answer.  In the last layer, all positions are needed as keys
and values of attention, but queries and the MLP (the feed-forward network) only at those that are
read.  In a model of two layers such as the zoo's, the last layer is half of the work.
"""

from contextlib import contextmanager, suppress

import torch
from torch import Tensor


class _KeysAreKnown(Exception):  # noqa: N818  not an error
    """Ends the layer's pass over all positions as soon as their keys and values are computed."""


class _KeysAndValues:
    """Replaces the layer's KV cache: stores the first keys and values, and returns them later."""

    def __init__(self):
        self.states: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        """The first keys and values [R, G, L, D]; the first call stores them and raises."""
        if self.states is None:
            self.states = keys, values
            raise _KeysAreKnown
        return self.states


@contextmanager
def last_layer_at(model, places: Tensor, size: torch.Size):
    """Context manager: the last layer is computed at these places, and its output is 0 elsewhere.

    places [B], one per answer: row·L + column of hidden states [R, L, H]; size: (R, L).  Only for
    models that call their layers as Llama does, with a 4-D mask: with others, the output may be
    wrong, or an error of any type is raised; `choose_layout` finds that out.  With gradient
    checkpointing the whole layer is computed, because the backward pass computes it again after
    this context.
    """
    layer = model.base_model.layers[-1]
    if getattr(layer, "gradient_checkpointing", False):
        yield
        return
    rows = places // size[1]
    slots = (rows[:, None] == rows).tril(-1).sum(1)  # number of earlier places in the same row
    # Where a row has fewer places than another, the rest stay 0: computed, but not used.
    columns = rows.new_zeros(size[0], 1 + int(slots.max()), 1)  # [R, most places of a row, 1]
    columns[rows, slots, 0] = places % size[1]

    def at_columns(layer, args: tuple, kwargs: dict) -> tuple:
        hidden, mask = args[0], kwargs["attention_mask"]  # [R, L, H], [R, 1, L, L]
        cache = _KeysAndValues()
        with suppress(_KeysAreKnown):
            layer.forward(*args, **kwargs | {"past_key_values": cache})
        changed = {"attention_mask": mask.take_along_dim(columns[:, None], 2)}
        angles = kwargs["position_embeddings"]  # cosines and sines, [R or 1, L, D] each
        changed["position_embeddings"] = tuple(x.take_along_dim(columns, 1) for x in angles)
        changed |= {"past_key_values": cache, "spans": None}
        return (hidden.take_along_dim(columns, 1), *args[1:]), kwargs | changed

    def to_places(layer, args: tuple, output: Tensor) -> Tensor:
        states = output[rows, slots]  # [B, H]
        whole = states.new_zeros(size.numel(), states.shape[-1]).index_copy(0, places, states)
        return whole.view(*size, -1)

    hooks = [layer.register_forward_pre_hook(at_columns, with_kwargs=True)]
    hooks.append(layer.register_forward_hook(to_places))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
