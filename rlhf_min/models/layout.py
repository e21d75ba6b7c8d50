"""Properties of a model: input layout, attention mask, context length, logits."""

import inspect
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Layout:
    """Input layout of one model."""

    tree: bool  # False: it cannot take a prompt tree and gets one row per answer
    max_row: int  # tokens
    dtype: torch.dtype  # of the additive mask, the model's own
    device: torch.device
    spans_from: float = float("inf")  # row length from which attention goes branch by branch
    cache: bool = True  # False: it cannot decode with a KV cache and padding on the left
    ends_only: bool = False  # its last layer can be computed at the ends of answers alone
    small: bool = False  # a model of few weights: each position needs little memory

    @property
    def max_positions(self) -> int:
        """Positions (rows × longest row) of one pass, at most: larger ones need more memory.

        On a CPU they are also slower, except for a small model (docs/LOG.md).
        """
        return (2**12 if self.small else 2**11) if self.device.type == "cpu" else 2**13

    @property
    def forward_positions(self) -> int:
        """`max_positions` of a pass without gradients, of which more fit in the same memory.

        Eager attention keeps rows × heads × length² scores (docs/LOG.md).
        """
        return 2**12 if self.device.type == "cpu" else 2**15


def tree_mask(segments: Tensor, roots: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask: a token sees itself and what is before it in its branch and prompt.

    segments [R, L] number the prompts and branches, roots [R, L] give the segment of the token's
    prompt → [R, 1, L, L], 0 where the query (third axis) sees the key.  It is additive because
    `eager` attention is wrong, without an error, with a boolean 4-D mask.  Padding (both −1) sees
    padding, so that no row of the softmax is empty.
    """
    keys = segments[:, None, :]
    sees = ((segments[:, :, None] == keys) | (roots[:, :, None] == keys)).tril()
    mask = torch.zeros(sees.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def context_length(model) -> int:
    """Longest row of a model in tokens, prompt and answer together."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or 0
    return length if length > 0 else sys.maxsize  # XLNet: -1


def slides(model, length: int) -> bool:
    """Whether the model attends to a sliding window shorter than rows of `length` tokens.

    False if the config sets a window but no layer uses it (Qwen2-MoE sets 0).
    """
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    layers = DynamicCache(config=model.config).layers
    used = any(type(layer) is not DynamicLayer for layer in layers)
    return window is not None and window < length and used


def needs_plain_rows(model) -> str:
    """Why a model cannot take a tree, nor rows padded on the left; "" if it can take them.

    Comparing hidden states is not enough: a small model's recurrence or ALiBi may change them
    too little.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return "it takes no position ids"
    layers = DynamicCache(config=model.config).layers
    if not all(isinstance(layer, DynamicLayer) for layer in layers):
        return "it keeps a recurrent state"
    return "it uses ALiBi" if getattr(model.config, "alibi", False) else ""


def head_logits(model, hidden: Tensor) -> Tensor:
    """The model's logits from its last hidden states: [N, H] → [N, V] float32, or float64.

    Some models scale or cap their logits (Granite, Cohere; Gemma 2).  A model that changes them in
    another way is stopped by `check_alignment`, because sampling uses the model's own forward.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    z = head(hidden.to(head.weight.dtype))  # Mamba's hidden states are always float32
    z = z if z.dtype == torch.float64 else z.float()
    scale = (getattr(config, "logit_scale", None) or 1.0) / getattr(config, "logits_scaling", 1.0)
    z = z if scale == 1 else z * scale
    softcap = getattr(config, "final_logit_softcapping", None)
    return softcap * (z / softcap).tanh() if softcap else z
