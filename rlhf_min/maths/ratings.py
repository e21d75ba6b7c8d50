"""A distribution p = softmax(logits) over the ratings 1..R instead of one number."""

import math

import torch
from torch import Tensor


def rating_values(logits: Tensor) -> Tensor:
    """The ratings 1..R as floats: logits [..., R] → [R]."""
    return torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device)


def win_log_probability(first: Tensor, second: Tensor, tie: float = 0.5) -> Tensor:
    """log P(first ≻ second) = log(Σ_{i>j} p_i q_j + τ·Σ_i p_i q_i) for independent ratings.

    first, second: logits [..., R]; tie τ in [0, 1] → [...] in nats.
    τ = ½ is DPL (Siththaranjan et al. 2023): equal distributions give ½.  τ = 0 counts strict wins
    only; equal distributions then give (1 − Σp²)/2 < ½, and less if they are narrower.
    """
    ratings = first.shape[-1]
    # Row i is the first answer's rating, column j the second's: i > j is *below* the diagonal.
    credit = torch.ones(ratings, ratings, dtype=first.dtype, device=first.device).tril(-1)
    credit.fill_diagonal_(tie)
    pairs = first.log_softmax(-1)[..., :, None] + second.log_softmax(-1)[..., None, :]
    return (pairs + credit.log()).flatten(-2).logsumexp(-1)


def chance_loss(ratings: int, tie: float = 0.5) -> float:
    """−log P(win) between uniform distributions: ln 2 for τ = ½, 0.7985 for R = 10 and τ = 0."""
    return -math.log((ratings - 1) / (2 * ratings) + tie / ratings)


def mean_rating(logits: Tensor) -> Tensor:
    """Expected rating Σ k·p_k: logits [..., R] → [...] in 1..R."""
    return (logits.softmax(-1) * rating_values(logits)).sum(-1)


def rating_variance(logits: Tensor) -> Tensor:
    """Variance Σ p_k (k − μ)²: logits [..., R] → [...] in squared ratings."""
    distance = rating_values(logits) - mean_rating(logits)[..., None]
    return (logits.softmax(-1) * distance.square()).sum(-1)


def entropic_rating(logits: Tensor, b: float = 2.0) -> Tensor:
    """Pessimistic rating −b·log Σ p_k e^{−k/b} ≈ μ − Var/(2b): logits [..., R] → [...] in 1..R.

    b > 0 in ratings: about 1 to 5; b → ∞ is the mean, b → 0 the lowest rating with any mass.
    """
    return -b * (logits.log_softmax(-1) - rating_values(logits) / b).logsumexp(-1)


def confidence_weight(logits: Tensor, kind: str) -> Tensor:
    """A factor for the advantage from the spread σ of the ratings: logits [..., R] → [...].

    σ depends on the answer, so the weight changes the objective: above the baseline it prefers
    confident answers, below it *uncertain* ones.  `entropic_rating` has no such flaw.
    """
    sigma = rating_variance(logits).clamp_min(0.01).sqrt()  # a point mass would weigh infinitely
    weights = {
        "none": torch.ones_like(sigma),
        "inverse-sigma": 1 / sigma,
        "inverse-variance": 1 / sigma.square(),
        "inverse-one-plus-sigma": 1 / (1 + sigma),
    }
    if kind not in weights:
        raise ValueError(f"unknown weight {kind!r}: give one of {', '.join(weights)}")
    return weights[kind]


def answer_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of each answer, [B, R] → nats; subtract it from a loss to *reward* spread."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def marginal_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean distribution of B answers (DPL): logits [B, R] → scalar in nats.

    Subtracting it from a loss rewards a micro-batch, not each answer, for using all ratings.
    """
    marginal = logits.log_softmax(-1).logsumexp(0) - math.log(logits.shape[0])
    return -(marginal.exp() * marginal).sum()


def soft_labels(ratings: Tensor, count: int, width: float) -> Tensor:
    """q_k ∝ mass of N(rating, width²) in [k−½, k+½] (HL-Gauss, Imani & White 2018).

    ratings [...] in 1..count, width > 0 in ratings → [..., count], which sum to 1.
    """
    edges = torch.arange(count + 1, dtype=ratings.dtype, device=ratings.device) + 0.5
    z = (edges - ratings[..., None]) / (width * math.sqrt(2))
    mass = torch.special.erf(z).diff().clamp_min(0)
    return mass / mass.sum(-1, keepdim=True)


def soft_label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−Σ_k q_k log p_k, mean over answers: logits, labels [B, R] → scalar in nats."""
    return -(labels * logits.log_softmax(-1)).sum(-1).mean()


def squared_earth_mover(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ_k (P_k − Q_k)² of both CDFs, mean over answers (Hou et al. 2016): both [B, R] → scalar."""
    return (logits.softmax(-1).cumsum(-1) - labels.cumsum(-1)).square().sum(-1).mean()


def roughness(logits: Tensor) -> Tensor:
    """Σ_k (z_{k+1} − 2 z_k + z_{k−1})², mean over answers: logits [B, R] → scalar."""
    return logits.diff(n=2).square().sum(-1).mean()
