"""Baselines b of the policy gradient E[(R − b)·∇log π]: they change its variance, not its mean.

A baseline may not depend on the sample it is subtracted from: the running ones average *earlier*
batches only, leave-one-out averages the *other* samples of the prompt.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MovingAverage:
    """b = (1/S)·Σ_s R_s over all earlier rewards, KL included (Ahmadian et al. 2024, eq. 8).

    `start` (the start model's mean reward) stands in until the first update and is then forgotten.
    """

    start: float = 0.0
    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else self.start

    def updated(self, rewards: Tensor) -> "MovingAverage":
        """After a step: rewards [...] of the whole batch, in reward units."""
        total = self.total + rewards.double().sum().item()
        return replace(self, total=total, count=self.count + rewards.numel())


@dataclass(frozen=True)
class ExponentialAverage:
    """b ← ρ·b + (1 − ρ)·mean(R), started at the start model's mean reward.

    Started at 0 on a 1..10 scale it would push *every* sample up for about 1/(1 − ρ) steps.
    """

    value: float = 0.0
    decay: float = 0.9

    def updated(self, rewards: Tensor) -> "ExponentialAverage":
        """After a step: rewards [...] of the whole batch, in reward units."""
        mean = rewards.double().mean().item()
        return replace(self, value=self.decay * self.value + (1 - self.decay) * mean)


@dataclass(frozen=True)
class NoBaseline:
    """b = 0: unbiased as well, and noisier."""

    value: float = 0.0

    def updated(self, rewards: Tensor) -> "NoBaseline":
        """Nothing to remember."""
        return self


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of its K−1 siblings (RLOO; Ahmadian et al. 2024, eq. 9).

    rewards [P, K], any unit → advantages [P, K], same unit.  Raises ValueError when K < 2.
    """
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError(
            f"leave-one-out needs at least 2 samples per prompt, got {k}: raise --samples"
        )
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (k - 1)


def advantages(
    rewards: Tensor, baseline: MovingAverage | ExponentialAverage | NoBaseline
) -> Tensor:
    """R − b with the running baseline as it stood *before* this batch: [P, K] → [P, K]."""
    return rewards - torch.as_tensor(baseline.value, dtype=rewards.dtype, device=rewards.device)
