"""Baselines b of the policy gradient E[(R − b)·∇log π]: less variance, the same mean.

The mean stays the same only if b does not depend on the answer whose reward it is subtracted from:
the moving averages know earlier steps only, leave-one-out averages the *other* answers.
"""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Baseline:
    """b = 0 (`--baseline none`), unbiased but noisy; the other baselines override its methods."""

    value = 0.0  # b, in units of reward, for the log

    def advantages(self, rewards: Tensor) -> Tensor:
        """R − b for some of the step's prompts: rewards [p, K] → advantages [p, K]."""
        return rewards - self.value

    def updated(self, rewards: Tensor) -> "Baseline":
        """The baseline of the next step, from all rewards of this one [P, K]."""
        return self


@dataclass(frozen=True)
class MovingAverage(Baseline):
    """b = (1/S)·Σ_s R_s, the mean of all rewards of earlier steps (Ahmadian et al. 2024, eq. 8)."""

    start: float = 0.0  # b of the first step
    total: float = 0.0
    count: int = 0

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else self.start

    def updated(self, rewards: Tensor) -> "MovingAverage":
        total = self.total + rewards.double().sum().item()
        return replace(self, total=total, count=self.count + rewards.numel())


@dataclass(frozen=True)
class ExponentialAverage(Baseline):
    """b ← d·b + (1 − d)·mean(R), d = decay.

    `value` must start at the mean reward before training.  From 0, if rewards are far above
    0, all advantages would be positive for about 1/(1 − d) steps.
    """

    value: float = 0.0
    decay: float = 0.9

    def updated(self, rewards: Tensor) -> "ExponentialAverage":
        mean = rewards.double().mean().item()
        return replace(self, value=self.decay * self.value + (1 - self.decay) * mean)


class LeaveOneOut(Baseline):
    """b = the mean reward of the other K − 1 answers to the same prompt."""

    def advantages(self, rewards: Tensor) -> Tensor:
        return leave_one_out(rewards)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of its K − 1 siblings (RLOO; Ahmadian et al. 2024, eq. 9).

    rewards [..., K], any unit → advantages [..., K], same unit.  Raises ValueError when K < 2.
    """
    k = rewards.shape[-1]
    if k < 2:
        raise ValueError(f"leave-one-out needs at least 2 answers per prompt, got {k}")
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / (k - 1)
