"""log π(y|x): log-probs of sampled answers, computed by a forward pass over prompt and answer.

In plain PyTorch, for one prompt x and one answer y of T tokens:

    logits = model(torch.tensor([x + y])).logits[0, len(x) - 1 : -1]    # [T, V]: t predicts t + 1
    log_p = (logits / temperature).log_softmax(-1)                      # [T, V]
    log_prob = log_p[range(T), y].sum()                                 # log π(y|x), a sum

Everywhere π means the distribution that is sampled from: softmax(logits / temperature).
`answer_log_probs` computes the same for a tree: prompts and their answers as one batch
(prompt_tree.py; not needed on a first reading).  `tree_batches` yields such batches.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import precise
from rlhf_min.hardware.finite import check_finite
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.layout import head_logits
from rlhf_min.models.prompt_tree import Tree, hidden_states
from rlhf_min.models.sampling import Rollout

MAX_LOGITS = 2**22  # numbers in one chunk of logits, 16 MiB of float32; or MIN_TOKENS rows
MIN_TOKENS = 128  # in one chunk: with fewer, most time goes into loading the output weights


def answer_log_probs(model, tree: Tree, temperature: float = 1.0) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t) of each answer, end token included: [B] float32."""
    per_token = token_log_probs(model, tree, temperature)
    return per_token.new_zeros(len(tree.ends)).index_add(0, tree.owners, per_token)


@torch.no_grad()
def rollout_log_probs(
    model, rollout: Rollout, temperature: float, max_prompts: int, forward: bool = False
) -> Tensor:
    """log π(y|x) of all answers, no gradient: [P, K]; max_prompts, forward: see `tree_batches`."""
    settings = {"device": model.device, "dtype": precise(model.dtype)}
    log_probs = torch.zeros(rollout.finished.shape, **settings)
    for p, tree in tree_batches(model, rollout.prompts, rollout.answers, max_prompts, forward):
        log_probs[p] = answer_log_probs(model, tree, temperature).view(len(p), -1)
    ranks.complete(log_probs)
    check_finite("an answer's log-prob", log_probs)
    return log_probs


def token_log_probs(model, tree: Tree, temperature: float = 1.0) -> Tensor:
    """log π(y_t | x, y_<t) of every answer token: [N] float32 (float64 of a float64 model).

    Logits are computed for answer tokens only, in chunks, and once more in the backward pass, so
    that the logits of all tokens [N, V] are never in memory together.
    """
    hidden = hidden_states(model, tree)[tree.predictors]
    size = max(MIN_TOKENS, MAX_LOGITS // model.get_output_embeddings().weight.shape[0])

    def chunk(h: Tensor, targets: Tensor) -> Tensor:
        z = head_logits(model, h)
        z = z if temperature == 1 else z / temperature
        return -F.cross_entropy(z, targets, reduction="none")

    if torch.is_grad_enabled():
        chunk = partial(checkpoint, chunk, use_reentrant=False)
    parts = zip(hidden.split(size), tree.targets.split(size), strict=True)
    return torch.cat([chunk(h, targets) for h, targets in parts])
