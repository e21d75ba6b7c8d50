"""Objectives of the policy.  The whole answer is one action: log-probs are sums over its tokens."""

import torch
from torch import Tensor


def reinforce(log_probs: Tensor, advantages: Tensor, sequences: int) -> Tensor:
    """−Σ A·log π(y|x) / sequences (Williams 1992; Ahmadian et al. 2024, eq. 6).

    log_probs [B] with gradient, advantages [B] without; sequences: how many the whole *step* has,
    so that micro-batches add up to the same objective → scalar.
    """
    return -(advantages.detach() * log_probs).sum() / sequences


def ppo_clip(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, sequences: int, clip: float = 0.2
) -> Tensor:
    """−Σ min(ρA, clip(ρ, 1−ε, 1+ε)·A) / sequences, ρ = π/π_old of the whole answer (Schulman 2017).

    log_probs [B] with gradient; old_log_probs, advantages [B] without → scalar.  At ρ = 1 its
    gradient is that of `reinforce`.
    """
    # e²⁰ is far beyond any clip; without the bound an infinite ratio makes the gradient NaN.
    ratio = (log_probs - old_log_probs.detach()).clamp_max(20).exp()
    a = advantages.detach()
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).sum() / sequences


def clip_fraction(log_probs: Tensor, old_log_probs: Tensor, clip: float = 0.2) -> Tensor:
    """Share of answers whose ratio lies outside 1 ± ε: [...], [...] → scalar (the paper: < 5 %)."""
    ratio = (log_probs.detach() - old_log_probs).exp()
    return ((ratio - 1).abs() > clip).float().mean()
