"""From a reward model's score to the reward of the policy gradient."""

import torch
from torch import Tensor


def standardise(scores: Tensor, mean: float, std: float) -> Tensor:
    """(score − mean)/std on the ruler of the start model's answers: [...] → [...] in its std.

    So β and the learning rate mean the same for a scalar head and for a 1..10 head, and rewards of
    two reward models are never compared as if on one scale.
    """
    return (scores - mean) / max(std, 1e-6)


def penalise_missing_end(rewards: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """Subtract `penalty` from exactly the answers that were cut off before their end token.

    rewards [...], finished [...] bool → [...], same unit.
    """
    return torch.where(finished, rewards, rewards - penalty)


def with_kl(rewards: Tensor, log_probs: Tensor, ref_log_probs: Tensor, beta: float) -> Tensor:
    """R = r − β·log[π(y|x)/π_ref(y|x)], detached (Ahmadian et al. 2024, eq. 3).

    rewards, log_probs, ref_log_probs [...] (sums over the answer's tokens); beta in reward units
    per nat → [...] without gradient.
    """
    return (rewards - beta * (log_probs - ref_log_probs)).detach()


def k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """log π − log π_ref: [...] sums over each answer's tokens → [...] in nats, unbiased."""
    return log_probs - ref_log_probs


def k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """½(log π_ref − log π)²: [...] → [...], biased, never negative."""
    return (ref_log_probs - log_probs).square() / 2


def k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """eᵘ − 1 − u with u = log π_ref − log π: [...] → [...] in nats, unbiased, never negative."""
    u = ref_log_probs - log_probs
    return u.expm1() - u
