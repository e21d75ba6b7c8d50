"""Attention on a CPU by plain matrix products: softmax(QKᵀ/√D + mask)·V.

PyTorch's fused CPU kernel computes in float32 even for bfloat16, and computes the scores that the
mask hides.  In bfloat16 two plain products are two to four times faster while the scores fit in the
cache.  Axes: B rows, H query heads, G key heads (G divides H), L queries, M keys, D numbers per
query and key, E per value (D = E in most models).
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "products"
QUERIES = 256  # queries per block of a long row: the block's scores fit in the cache
LONGEST = 1024  # keys up to which a whole row is computed at once


def use_products(model):
    """Let a CPU model that would use `sdpa` use `attention` below instead; returns the model."""
    config = model.config.get_text_config()
    takes_functions = model.is_backend_compatible()  # Falcon has its own attention for each name
    if model.device.type == "cpu" and config._attn_implementation == "sdpa" and takes_functions:
        config._attn_implementation = NAME
    return model


def attention(module, query, key, value, attention_mask, scaling=None, spans=None, **kwargs):
    """The attention function that transformers calls in every layer → ([B, L, H, E], None).

    query [B, H, L, D]; key [B, G, M, D]; value [B, G, M, E]; additive mask [B, 1, L, M].  spans:
    for trees, the lengths of prompt, branches and padding (0 if none) of each row; then blocks that
    the mask hides are not computed.  Without spans, float32 rows and rows of more than LONGEST keys
    go to `sdpa`, which is faster there.
    """
    small = key.shape[2] <= LONGEST and query.dtype == torch.bfloat16
    if attention_mask is None or (spans is None and not small and query.shape[2] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if spans is None:
        return products(query, key, value, attention_mask).transpose(1, 2).contiguous(), None
    by_row = (x.split(1) for x in (query, key, value, attention_mask))
    rows = [branch_by_branch(*row) for row in zip(*by_row, spans, strict=True)]
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(query·keyᵀ + mask)·value for scaled queries: [B, H, L, E]."""
    b, h, n, d = query.shape
    # The H/G query heads that share a key head are stacked, so that keys are not repeated.
    grouped = query.reshape(b, key.shape[1], -1, d)
    scores = (grouped @ key.mT).view(b, h, n, -1).add_(mask)
    return (scores.softmax(-1).view(*grouped.shape[:3], -1) @ value).view(b, h, n, -1)


def branch_by_branch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, spans) -> Tensor:
    """`products` for one row of a tree, separately for the prompt and each branch: [1, H, L, E]."""
    queries, keys, values = (x.split(spans, 2) for x in (query, key, value))
    parts, begin = [], 0
    for n, length in enumerate(spans[:-1]):
        for start in range(0, length, QUERIES):
            stop = min(start + QUERIES, length)
            q, k, v = queries[n][:, :, start:stop], keys[n][:, :, :stop], values[n][:, :, :stop]
            rows = mask[:, :, begin + start : begin + stop]
            block_mask = rows[..., begin : begin + stop]
            if n:  # a branch also sees the prompt
                k, v = torch.cat([keys[0], k], 2), torch.cat([values[0], v], 2)
                block_mask = torch.cat([rows[..., : spans[0]], block_mask], -1)
            parts.append(products(q, k, v, block_mask))
        begin += length
    parts.append(parts[0].new_zeros(1, query.shape[1], spans[-1], value.shape[-1]))  # padding
    return torch.cat(parts, 2)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
