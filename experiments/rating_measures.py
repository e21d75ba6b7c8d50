"""How far learned rating distributions are from the true ones, and what their width tells.

All arrays are float64; the ratings 1..R are the last axis.  A is the number of answers.
"""

import numpy as np
from scipy.stats import spearmanr


def earth_mover(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Earth mover's distance Σ_k |P_k − Q_k| of both CDFs: [..., R] twice → [...], in ratings.

    It is the mass to be moved times the way in rating points (Wasserstein-1; Rubner et al. 2000).
    """
    return np.abs(first.cumsum(-1) - second.cumsum(-1)).sum(-1)


def mean_and_sigma(distributions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each distribution: [..., R] → [...], [...], in ratings."""
    ratings = np.arange(1, distributions.shape[-1] + 1)
    mean = distributions @ ratings
    variance = (distributions * (ratings - mean[..., None]) ** 2).sum(-1)
    return mean, np.sqrt(variance)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation of two lists of numbers; None if one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def has_dip(distribution: np.ndarray, depth: float = 0.1) -> bool:
    """Is a rating at least `depth` (a share) less likely than a rating below and one above it?

    So a distribution with two clear peaks has a dip; ripples smaller than `depth` do not count.
    """
    left = np.maximum.accumulate(distribution)
    right = np.maximum.accumulate(distribution[::-1])[::-1]
    return bool((distribution < (1 - depth) * np.minimum(left, right)).any())


def win_probabilities(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(first > second) with a tie counted ½, and given that there is no tie: [N, R] twice → [N].

    The two ratings are independent.  If a tie is certain, the second is ½ too.
    """
    below = first.cumsum(-1) - first  # P(first < k)
    win = (second * (1 - below - first)).sum(-1).clip(0, 1)
    loss = (second * below).sum(-1).clip(0, 1)
    decided = win + loss
    untied = np.where(decided > 0, win / np.where(decided > 0, decided, 1), 0.5)
    return (win + 1 - loss) / 2, untied


def measures(learned: np.ndarray, true: np.ndarray, small_talk: np.ndarray) -> dict:
    """Distance of learned to true distributions [A, R], and whether the learned sigma is real.

    small_talk [A]: whether annotators disagree about the answer (two tastes).  The comparison of
    sigma between small talk and others uses answers of true mean 4 to 7, where the scale's ends
    do not cut the distributions.  Units: ratings.
    """
    (mean, sigma), (true_mean, true_sigma) = mean_and_sigma(learned), mean_and_sigma(true)
    inner = (true_mean >= 4) & (true_mean <= 7)
    talk, others = inner & small_talk, inner & ~small_talk
    dips = np.array([has_dip(p) for p in learned])
    return {
        "earth_mover": float(earth_mover(learned, true).mean()),
        "mean_error": float(np.abs(mean - true_mean).mean()),
        "bias": float((mean - true_mean).mean()),
        "sigma": float(sigma.mean()),
        "sigma_true": float(true_sigma.mean()),
        "sigma_rank": rank_correlation(sigma, true_sigma),
        "sigma_error_rank": rank_correlation(sigma, np.abs(mean - true_mean)),
        "sigma_small_talk": float(sigma[talk].mean()) if talk.any() else None,
        "sigma_others": float(sigma[others].mean()) if others.any() else None,
        "dip_small_talk": float(dips[talk].mean()) if talk.any() else None,
        "dip_others": float(dips[others].mean()) if others.any() else None,
    }
