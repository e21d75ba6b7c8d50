"""From scores of a reward model to rewards of the policy gradient; and estimators of the KL.

Rewards and log-probs are per answer, [P, K] or any other shape; log-probs are sums over tokens.
"""

import torch
from torch import Tensor


def reward_scale(scores: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the reference model's scores [...]; of equal scores 1."""
    scores = scores.double()
    std = scores.std().item() if scores.numel() > 1 else 0.0
    return {"mean": scores.mean().item(), "std": std if std > 1e-6 else 1.0}


def standardise(scores: Tensor, mean: float, std: float) -> Tensor:
    """(score − mean)/std, [...]: β and the learning rate mean the same for every reward model."""
    return (scores - mean) / max(std, 1e-6)


def penalise_missing_end(rewards: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """Rewards [...], minus `penalty` where the answer has no end token: finished [...] bool."""
    return torch.where(finished.to(rewards.device), rewards, rewards - penalty)


def with_kl(rewards: Tensor, log_probs: Tensor, ref_log_probs: Tensor, beta: float) -> Tensor:
    """R = r − β·log[π(y|x)/π_ref(y|x)] (Ahmadian et al. 2024, eq. 3).

    rewards r, log_probs, ref_log_probs [...]; beta in reward units per nat → [...], no gradient.
    """
    return (rewards - beta * (log_probs - ref_log_probs)).detach()


# Estimators of KL(π ‖ π_ref) on answers sampled from π (Schulman 2020, "Approximating KL
# Divergence"), with u = log π_ref − log π: log-probs [...] ×2 → [...], nats per answer.
# As a loss k1 has a gradient of mean zero, so it cannot limit the KL, k2 has the right one, and k3
# minimises KL(π_ref ‖ π), the other direction.  In a detached reward (`with_kl`) k1 is right.


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """−u: unbiased."""
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """u²/2: biased, low variance, never negative."""
    return (ref_log_probs - log_probs).square() / 2


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """eᵘ − 1 − u: unbiased, never negative."""
    u = ref_log_probs - log_probs
    return u.expm1() - u
