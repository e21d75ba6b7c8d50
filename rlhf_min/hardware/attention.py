"""Attention on a CPU by matrix products: softmax(QKᵀ/√D + mask)·V.

torch's fused kernel multiplies in float32 whatever it is given, and computes what the mask hides.
In bfloat16 two plain products are two to four times faster while the scores fit in the cache.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

NAME = "products"
QUERIES = 256  # in one block of a long row: its scores stay in the cache

LONGEST = 1024  # keys of a row as a whole: its weights are kept for the backward pass


def use_products(model):
    """Let a model on the CPU that would use `sdpa` take `attention` below; returns the model."""
    config = model.config.get_text_config()
    if model.device.type == "cpu" and config._attn_implementation == "sdpa":
        config._attn_implementation = NAME
    return model


def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """What transformers calls in each layer → [B, L, H, D] (and no weights).

    query [B, H, L, D]; key, value [B, G, M, D], G dividing H; additive mask [B, 1, L, M].  Where
    the mask carries `spans` (prompt_tree.build_tree), hidden blocks are not computed.  Without them
    float32 rows, and rows of more than LONGEST keys, go to `sdpa`.
    """
    spans = getattr(attention_mask, "spans", None)
    few = key.shape[2] <= LONGEST and query.dtype == torch.bfloat16
    if attention_mask is None or (spans is None and not few and query.shape[2] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if spans is None:
        return products(query, key, value, attention_mask).transpose(1, 2), None
    by_row = (x.split(1) for x in (query, key, value, attention_mask))
    rows = [branch_by_branch(*row) for row in zip(*by_row, spans, strict=True)]
    return torch.cat(rows).transpose(1, 2), None


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(query·keyᵀ + mask)·value, scaled queries: [B, H, L, D].

    The query heads that share a key head lie beside each other, so no key is repeated.
    """
    b, h, n, d = query.shape
    grouped = query.reshape(b, key.shape[1], -1, d)
    scores = (grouped @ key.mT).view(b, h, n, -1).add_(mask)
    return (scores.softmax(-1).view(*grouped.shape[:3], -1) @ value).view(b, h, n, d)


def branch_by_branch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, spans) -> Tensor:
    """`products` for one row of a tree, its prompt and each of its branches in turn: [1, H, L, D].

    spans: lengths of prompt, branches, and padding at the end (0 where none), whose states nobody
    reads: zeros.
    """
    lengths = spans[:-1]
    queries, keys, values = (x.split(spans, 2) for x in (query, key, value))
    parts, begin = [], 0
    for n, length in enumerate(lengths):
        for start in range(0, length, QUERIES):
            stop = min(start + QUERIES, length)
            q, k, v = queries[n][:, :, start:stop], keys[n][:, :, :stop], values[n][:, :, :stop]
            seen = mask[:, :, begin + start : begin + stop, begin : begin + stop]
            if n:
                k, v = torch.cat([keys[0], k], 2), torch.cat([values[0], v], 2)
                shared = mask[:, :, begin + start : begin + stop, : lengths[0]]
                seen = torch.cat([shared, seen], -1)
            parts.append(products(q, k, v, seen))
        begin += length
    return torch.cat([*parts, torch.zeros_like(queries[-1])], 2)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)
