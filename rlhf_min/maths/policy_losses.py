"""Losses of the policy gradient.  The whole answer is one action: log π(y|x) sums over its tokens.

The log-derivative trick, ∇E[R] = E[R·∇log π(y|x)] for y ~ π, turns the gradient of an expectation
into an average over samples (Williams 1992).  The gradient of `reinforce` is minus that
average, with A = R − b for R; so is that of `ppo_clip` in the first of several updates (ρ = 1).
"""

import torch
from torch import Tensor


def reinforce(log_probs: Tensor, advantages: Tensor, count: int) -> Tensor:
    """REINFORCE: −Σ A·log π(y|x) / count (Williams 1992; Ahmadian et al. 2024, eq. 6).

    log_probs [p, K] with gradient, advantages [p, K]; count: answers of the whole step (P·K), so
    that the losses of its micro-batches add up → scalar.
    """
    return -(advantages.detach() * log_probs).sum() / count


def ppo_clip(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, count: int, clip: float = 0.2
) -> Tensor:
    """PPO: −Σ min(ρA, clip(ρ, 1−ε, 1+ε)·A) / count, ρ = π(y|x)/π_old(y|x) (Schulman et al. 2017).

    log_probs [p, K] with gradient; old_log_probs, advantages [p, K]; count: answers of the whole
    step; clip: ε → scalar.  Where ρ = 1 its gradient is that of `reinforce`.
    """
    # e²⁰ is far beyond any ε; an infinite ratio would make the gradient NaN instead of 0.
    ratio = (log_probs - old_log_probs.detach()).clamp_max(20).exp()
    a = advantages.detach()
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).sum() / count


def clip_fraction(log_probs: Tensor, old_log_probs: Tensor, clip: float = 0.2) -> Tensor:
    """Share of answers with ρ outside 1 ± ε: both [...] → scalar (Ahmadian et al. 2024: < 0.05)."""
    ratio = (log_probs - old_log_probs).exp()
    return ((ratio - 1).abs() > clip).float().mean()
