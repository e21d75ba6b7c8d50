"""From scores of a reward model to rewards of the policy gradient; and estimators of the KL.

Rewards and log-probs are per answer, [P, K] or any other shape; log-probs are sums over tokens.
"""

import torch
from torch import Tensor


def reward_scale(scores: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the reference's scores [...]; std is 1 if all are equal."""
    scores = scores.double()
    std = scores.std().item() if scores.numel() > 1 else 1.0
    return {"mean": scores.mean().item(), "std": std if std > 1e-6 else 1.0}


def standardise(scores: Tensor, mean: float, std: float) -> Tensor:
    """(score − mean)/std, [...]: so β weighs the same against every reward model."""
    return (scores - mean) / std


def penalise_missing_end(rewards: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """Rewards [...], minus `penalty` where the answer has no end token: finished [...] bool."""
    return torch.where(finished.to(rewards.device), rewards, rewards - penalty)


def with_kl(rewards: Tensor, log_probs: Tensor, ref_log_probs: Tensor, beta: float) -> Tensor:
    """R = r' − β·log[π(y|x)/π_ref(y|x)] (Ahmadian et al. 2024, eq. 3).

    rewards r', standardised; log_probs, ref_log_probs; all [...]; beta in reward units per nat
    → [...], detached: the gradient of the penalty's log π has mean zero (E[∇log π] = 0).
    """
    return (rewards - beta * (log_probs - ref_log_probs)).detach()


# Estimators of KL(π ‖ π_ref) on answers sampled from π (Schulman 2020, "Approximating KL
# Divergence"), with u = log π_ref − log π: both log-probs [...] → [...], nats per answer.
# In a detached reward (`with_kl`) k1 is right.  Used as losses they differ: the gradient of k1 has
# mean zero, so k1 limits nothing; k2 has the gradient of this KL; k3 that of KL(π_ref ‖ π).


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
