"""KL divergence from the reference, exact at every sampled token: less noise than log-ratios."""

import torch
from torch import Tensor

from rlhf_min.models.batches import tree_batches
from rlhf_min.models.layout import head_logits
from rlhf_min.models.prompt_tree import hidden_states
from rlhf_min.models.sampling import Rollout


def next_token_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v·(log p_v − log q_v): log-probabilities [N, V], twice → [N], nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def rollout_kl(policy, reference, rollout: Rollout, max_prompts: int = 64) -> Tensor:
    """Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) of every answer y: [P, K], nats.

    Its mean over answers sampled from π at temperature 1 is KL(π ‖ π_ref) in expectation, as is the
    mean log-ratio, whose variance it reduces (Rao-Blackwell).
    """
    kl = torch.zeros(rollout.finished.shape)
    for p, tree in tree_batches(
        policy, rollout.prompts, rollout.answers, max_prompts, forward=True
    ):
        log_p, log_q = (
            head_logits(model, hidden_states(model, tree)[tree.predictors]).log_softmax(-1)
            for model in (policy, reference)
        )
        per_answer = torch.zeros(len(tree.ends), dtype=log_p.dtype)
        per_answer.index_add_(0, tree.owners, next_token_kl(log_p, log_q))
        kl[p] = per_answer.view(len(p), -1).to(kl)
    return kl
