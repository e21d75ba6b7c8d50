"""The last layer's MLP (its feed-forward network) only at the positions whose output is used.

A reward model reads one position per answer.  An MLP treats every position by itself, so in the
last layer the other positions change nothing that is read.  In a model of two layers such as the
zoo's, this MLP takes a third of all matrix products.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

GATED = {"gate_proj", "up_proj", "down_proj"}  # Llama, Qwen, Gemma, Mistral and their relatives
OTHERS = {"act_fn", "dropout", "ffn_sub_norm"}  # what such an MLP may also hold; no router


def last_layer(model) -> nn.Module | None:
    """The model's last layer if it has a gated MLP, else None."""
    layers = getattr(model.base_model, "layers", None)
    layer = layers[-1] if isinstance(layers, nn.ModuleList) else None
    names = {name for name, _ in getattr(layer, "mlp", nn.Module()).named_children()}
    return layer if names - OTHERS == GATED else None


@contextmanager
def last_mlp_at(model, places: Tensor, size: torch.Size):
    """Context manager: the last layer's MLP is computed at these places, and is 0 elsewhere.

    places [N], each one once: row·L + column of hidden states [R, L, H]; size: (R, L).  Other
    hidden states of the last layer are then wrong and must not be read.  The whole MLP is computed
    for models without a gated one, and under gradient checkpointing: there the backward pass
    computes the layer again, after the hooks are removed.
    """
    layer = last_layer(model)
    if layer is None or (torch.is_grad_enabled() and getattr(layer, "gradient_checkpointing", 0)):
        yield
        return
    shapes: list[torch.Size] = []

    def gather(_, inputs: tuple) -> tuple | None:
        if not inputs or inputs[0].shape[:2] != size or inputs[0].dim() != 3:
            return None  # another order of axes, or keywords only: computed as a whole
        if shapes:
            raise RuntimeError(
                "the model calls its last layer twice in one pass: last_mlp.py cannot take that"
            )
        shapes.append(inputs[0].shape)
        return (inputs[0].flatten(0, 1)[places], *inputs[1:])

    def scatter(_, inputs: tuple, output: Tensor) -> Tensor:
        if not shapes:
            return output
        zeros = output.new_zeros(size.numel(), output.shape[-1])
        return zeros.index_copy(0, places, output).view(shapes[0])

    hooks = [layer.mlp.register_forward_pre_hook(gather)]
    hooks.append(layer.mlp.register_forward_hook(scatter))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
