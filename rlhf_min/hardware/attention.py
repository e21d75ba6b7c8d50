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
    for trees, the lengths of prompt and branches of each tree of each row; then blocks that the
    mask hides are not computed.  Without spans, several queries go to `sdpa`, which is faster
    there, if they are float32 or have more than LONGEST keys; so does everything without a mask.
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
    """`products` for one row of trees, separately for each prompt and branch: [1, H, L, E]."""
    parts, begin = [], 0
    for lengths in spans:
        prompt = slice(begin, begin + lengths[0])
        for k, length in enumerate(lengths):
            for start in range(begin, begin + length, QUERIES):
                stop = min(start + QUERIES, begin + length)
                # A branch also sees the prompt.
                seen = [prompt, slice(begin, stop)] if k else [slice(begin, stop)]
                keys, values = (torch.cat([x[:, :, s] for s in seen], 2) for x in (key, value))
                block_mask = torch.cat([mask[:, :, start:stop, s] for s in seen], -1)
                parts.append(products(query[:, :, start:stop], keys, values, block_mask))
            begin += length
    padding = query.shape[2] - begin
    parts.append(parts[0].new_zeros(1, query.shape[1], padding, value.shape[-1]))
    return torch.cat(parts, 2)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
