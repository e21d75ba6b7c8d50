"""One reward from the scores of several reward models (Coste et al. 2023).

Scores are [M, P, K]: M members, each on the scale of its own scores of the reference's answers
(`reward_shaping.standardise`).  Otherwise the member with the largest numbers would decide.
Everything is computed in float64, so that M equal float32 scores give exactly that score.
"""

from torch import Tensor


def mean(scores: Tensor) -> Tensor:
    """(1/M)·Σ_m r_m: [M, P, K] → [P, K].  An answer that one member overrates still gains."""
    return scores.double().mean(0).to(scores.dtype)


def minimum(scores: Tensor) -> Tensor:
    """min_m r_m, the worst case: [M, P, K] → [P, K].  An answer must please every member."""
    return scores.amin(0)


def uncertainty_weighted(scores: Tensor, weight: float) -> Tensor:
    """mean_m r_m − λ·Var_m r_m, Var = (1/M)·Σ(r_m − mean)²: [M, P, K] → [P, K].

    weight λ ≥ 0, per standardised unit: disagreement costs reward.  λ = 0 is `mean`.
    """
    wide = scores.double()
    return (wide.mean(0) - weight * wide.var(0, correction=0)).to(scores.dtype)


def spread(scores: Tensor) -> Tensor:
    """Standard deviation of the members' scores, √Var as above: [M, P, K] → [P, K]."""
    return scores.double().std(0, correction=0).to(scores.dtype)
