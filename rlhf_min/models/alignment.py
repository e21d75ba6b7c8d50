"""A check that sampling and training compute the same distribution."""

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.models.sampling import Rollout


def alignment_gap(rollout: Rollout, log_probs: Tensor) -> float:
    """Mean |Δ log π| per token between the sampler and log_probs [P, K] of the training forward."""
    lengths = torch.tensor([[len(a) for a in answers] for answers in rollout.answers])
    return ((log_probs.cpu() - rollout.log_probs).abs() / lengths).mean().item()


def check_alignment(gap: float, dtype: torch.dtype) -> None:
    """Raise InputError when the gap is more than rounding: 0.001 nats, 0.05 in bfloat16.

    Then sampling and training differ: top-k, a penalty, dropout, a wrong mask or position.
    """
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.001
    if not gap <= tolerance:
        raise InputError(
            f"the log-probs of sampling and training differ by {gap:.3g} nats per token (rounding "
            f"explains {tolerance:g}), so the gradient would be wrong: either "
            "this code was changed, or this model does not compute the same with and without its "
            "cache: then try --dtype float32 or another model"
        )
