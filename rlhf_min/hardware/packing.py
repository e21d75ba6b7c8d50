"""Linear layers with packed bfloat16 weights on a CPU; one product for queries, keys and values.

oneDNN reorders a whole weight for every product of a few rows; a packed weight is already in its
memory order.  The operators are those that torch.compile uses.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# Layers of one module that read the same input in Llama, Qwen, Gemma, Mistral and their relatives.
# Not gate_proj and up_proj: joined, they need 0.4 GB more and save no time (docs/LOG.md).
SIBLINGS = ("q_proj", "k_proj", "v_proj")


def can_pack() -> bool:
    """Whether this PyTorch and this CPU multiply packed bfloat16 weights."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and mkldnn.enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_forwards(model, layers: set[nn.Module]) -> Iterator[tuple[nn.Module, Callable]]:
    """Yield each of these layers of the model with its forward: a product with packed weights.

    layers: nn.Linear, or adapted layers around one, whose merged weights are packed.
    """
    left = set(layers)
    for parent in model.modules():
        children = dict(parent.named_children())
        group = [children.get(name) for name in SIBLINGS]
        if left.issuperset(group) and can_share(group):
            left.difference_update(group)
            yield from zip(group, SharedProduct(group).forwards, strict=True)
    for layer in left:
        yield layer, packed_product([layer])


def can_share(layers: list[nn.Module]) -> bool:
    """Whether the layers have one input size, and all have a bias or none has one."""
    return len({(layer.weight.shape[1], layer.bias is None) for layer in layers}) == 1


def packed_product(layers: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The function from an input [..., in] to the outputs of all layers side by side."""
    linear = [m.merged_layer() if hasattr(m, "merged_layer") else m for m in layers]
    weight, bias = linear[0].weight.detach(), linear[0].bias
    if len(linear) > 1:
        weight = torch.cat([layer.weight.detach() for layer in linear])
        bias = None if bias is None else torch.cat([layer.bias.detach() for layer in linear])
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class SharedProduct:
    """One product for layers that read the same input; each layer's forward returns its part.

    The first forward computes all parts.  The others take theirs if their input is the same tensor,
    not changed in place since; otherwise all parts are computed again.  In inference mode a
    change in place is not detected; Llama and its relatives make none.
    """

    def __init__(self, layers: list[nn.Module]):
        self.product, self.sizes = packed_product(layers), [m.weight.shape[0] for m in layers]
        self.input, self.version, self.parts = None, None, {}
        self.forwards = [lambda x, i=i: self.part(x, i) for i in range(len(layers))]

    def part(self, x: Tensor, index: int) -> Tensor:
        """The output of layer `index` for x [..., in]: [..., out]."""
        version = None if x.is_inference() else x._version  # counts changes in place
        if x is not self.input or version != self.version or index not in self.parts:
            self.input, self.version = x, version
            self.parts = dict(enumerate(self.product(x).split(self.sizes, -1)))
        part = self.parts.pop(index).contiguous()  # models may `view` a linear layer's output
        if not self.parts:
            self.input = None
        return part
