"""Losses on preference pairs: what a reward model is trained to minimise."""

import torch.nn.functional as F
from torch import Tensor

from rlhf_min.maths.ratings import win_log_probability


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """−log σ(r_w − r_l − m), mean over pairs (Bradley & Terry 1952; margin: Llama 2, eq. 2).

    chosen, rejected [B] rewards; margin [B] or a number, ≥ 0 → scalar in nats.
    Invariant to a constant added to both rewards.
    """
    return -F.logsigmoid(chosen - rejected - margin).mean()


def centring_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """mean((r_w + r_l)²): fixes the rewards' additive constant (Eisenstein et al. 2023).

    chosen, rejected [B] rewards → scalar in squared reward units.
    """
    return (chosen + rejected).square().mean()


def batch_sum_penalty(chosen: Tensor, rejected: Tensor, step_mean: float) -> Tensor:
    """M², with M = mean(r_w + r_l) over all pairs of a step (BSR: Hong et al. 2025).

    chosen, rejected [B] rewards of a micro-batch; step_mean: M, a constant → scalar in squared
    reward units.  It is 2·M·m − M², the tangent of m² at m = M, with m the micro-batch's mean.
    Averaged over the step's micro-batches, weighted by their pairs, it has the value and gradient
    of M².  Unlike `centring_penalty` (M² plus the variance of r_w + r_l) it limits the mean over
    pairs, not each pair.  The authors' code has λ·B·(M/2)², with B the pairs on one device.
    """
    return 2 * step_mean * (chosen + rejected).mean() - step_mean**2


def rating_margin(chosen_rating: Tensor, rejected_rating: Tensor, scale: float) -> Tensor:
    """m = scale·max(0, rating_w − rating_l): [B] ratings → [B] reward units (idea: Llama 2, eq. 2).

    scale is in reward units per rating point.  A pair whose ratings contradict its labels gets 0.
    """
    return scale * (chosen_rating - rejected_rating).clamp_min(0)


def ratings_win_loss(chosen: Tensor, rejected: Tensor, tie: float = 0.5) -> Tensor:
    """−log P(w ≻ l) under two rating distributions, mean over pairs.

    chosen, rejected: logits [B, R]; tie τ: ½ is DPL (Siththaranjan et al. 2023), 0 strict wins only
    → scalar in nats.  Chance level: ratings.chance_loss.
    """
    return -win_log_probability(chosen, rejected, tie).mean()
