"""Divergence of the policy from the start model, estimated on the policy's own samples.

With u = log π_ref(y) − log π(y) for y ~ π (Schulman, "Approximating KL Divergence", 2020):
k1 = −u is unbiased, k2 = u²/2 is biased with low variance, k3 = eᵘ − 1 − u is unbiased and ≥ 0.
As *loss terms* they differ: k1 has zero expected gradient and controls nothing; k2 has the right
gradient on-policy; k3 has the gradient of the forward KL(π_ref ‖ π).  Inside the detached reward
(`rewards.with_kl`) k1 is right, and that is what the scripts do.
"""

from torch import Tensor


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
