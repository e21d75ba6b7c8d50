"""log π(answer | prompt) by re-forwarding the sampled tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_min.models.prompt_tree import Tree, hidden_states

LOGITS_AT_ONCE = 2**22  # numbers in one chunk of logits: 16 MiB of float32
ROWS_AT_LEAST = 128  # of them: with fewer, reading the head takes longer than multiplying by it


def answer_log_probs(model, tree: Tree, temperature: float = 1.0) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t) of each branch, end token included: [B] float32."""
    tokens = token_log_probs(model, tree, temperature)
    return torch.zeros(len(tree.ends), device=tokens.device, dtype=tokens.dtype).index_add(
        0, tree.owners, tokens
    )


def token_log_probs(model, tree: Tree, temperature: float = 1.0) -> Tensor:
    """log π(y_t | x, y_<t) of every answer token of the tree: [N] float32 (float64 if so).

    Logits exist for answer tokens only, a chunk at a time, and are computed again in the backward
    pass: memory does not grow with tokens × vocabulary.
    """
    hidden = hidden_states(model, tree)[tree.predictors]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = max(ROWS_AT_LEAST, LOGITS_AT_ONCE // vocabulary)

    def chunk(h: Tensor, targets: Tensor) -> Tensor:
        z = logits(model, h)
        z = z if temperature == 1 else z / temperature
        return -F.cross_entropy(z, targets, reduction="none")

    parts = []
    for h, targets in zip(hidden.split(rows), tree.targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(chunk, h, targets, use_reentrant=False))
        else:
            parts.append(chunk(h, targets))
    return torch.cat(parts)


def logits(model, hidden: Tensor) -> Tensor:
    """The model's own logits from last hidden states: [N, H] → [N, V] float32 (float64 if so).

    Some models scale or cap them (Granite, Cohere; Gemma 2).  One that does yet another thing is
    stopped by the alignment guard of train_policy.py, which samples with the model's own forward.
    """
    config = model.config.get_text_config()
    z = model.get_output_embeddings()(hidden)
    z = z if z.dtype == torch.float64 else z.float()
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    z = z if scale == 1 else z * scale
    softcap = getattr(config, "final_logit_softcapping", None)
    return softcap * (z / softcap).tanh() if softcap else z
