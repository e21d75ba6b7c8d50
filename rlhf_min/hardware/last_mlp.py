"""The last layer's MLP (its feed-forward network) only at the positions whose output is used.

A reward model reads one position per answer.  An MLP treats every position by itself, so in the
last layer the other positions change nothing that is read.  In a model of two layers such as the
zoo's, this MLP takes a third of all matrix products.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

GATED = {"gate_proj", "up_proj", "down_proj"}  # Llama, Qwen, Gemma, Mistral and their relatives


def last_layer(model) -> nn.Module | None:
    """The model's last layer if it has a gated MLP, else None."""
    layers = getattr(model.base_model, "layers", None)
    layer = layers[-1] if isinstance(layers, nn.ModuleList) else None
    names = {name for name, _ in getattr(layer, "mlp", nn.Module()).named_children()}
    return layer if names >= GATED else None


@contextmanager
def last_mlp_at(model, places: Tensor):
    """Context manager: the last layer's MLP is computed at these places, and is 0 elsewhere.

    places [N], each one once: row·L + column of hidden states [R, L, H].  Other hidden states of
    the last layer are then wrong and must not be read.  Nothing changes for models without a gated
    MLP, and with gradient checkpointing, which computes layers again after this context has ended.
    """
    layer = last_layer(model)
    if layer is None or (torch.is_grad_enabled() and getattr(layer, "gradient_checkpointing", 0)):
        yield
        return
    shapes: list[torch.Size] = []

    def gather(_, inputs: tuple) -> tuple | None:
        if not inputs:  # called with keywords only: computed as a whole
            return None
        if shapes:
            raise RuntimeError("the last layer was called twice in one forward pass")
        shapes.append(inputs[0].shape)
        return (inputs[0].flatten(0, 1)[places], *inputs[1:])

    def scatter(_, inputs: tuple, output: Tensor) -> Tensor:
        if not shapes:
            return output
        rows, length, width = shapes[0]
        return output.new_zeros(rows * length, width).index_copy(0, places, output).view(shapes[0])

    hooks = [layer.mlp.register_forward_pre_hook(gather)]
    hooks.append(layer.mlp.register_forward_hook(scatter))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
