"""Best of n and exponential tilting: policies in closed form from samples of the start model.

Arrays are NumPy; N samples of one prompt, P prompts.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln


def best_of_n(scores: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Mean value of the best-scored of n of the N samples, over all subsets of n: [P].

    scores, values [P, N].  The unbiased estimator of Nakano et al. 2021, which Gao et al. 2022 use:
    the i-th worst is the best of C(i−1, n−1) of the C(N, n) subsets.  Samples of equal score share
    their chance.
    """
    count = scores.shape[1]
    i = np.arange(n, count + 1)
    choose = lambda a, b: gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)  # noqa: E731
    chance = np.zeros(count)
    chance[n - 1 :] = np.exp(choose(i - 1, n - 1) - choose(count, n))
    means = []
    for own, value in zip(scores, values, strict=True):
        _, group, size = np.unique(own, return_inverse=True, return_counts=True)
        mean = np.bincount(group, value) / size  # of the samples of equal score
        means.append(np.add.reduceat(chance, np.cumsum(size) - size) @ mean)
    return np.array(means)


def formula_kl(n: float) -> float:
    """KL of best of n from its start model, if no two samples are equal: log n − (n − 1)/n."""
    return float(np.log(n) - (n - 1) / n)


def counted_kl(scores: np.ndarray, labels: np.ndarray, n: int) -> float:
    """KL of best of n, mean over prompts, where equal answers are one: below `formula_kl`.

    scores [P, N]; labels [P, N]: equal numbers for equal answers.  The start model is taken to be
    the N samples themselves, so it is only right for n far below N; different answers of one score
    are taken in any order.
    """
    total = 0.0
    for own, label in zip(scores, labels, strict=True):
        _, first, size = np.unique(label, return_index=True, return_counts=True)
        order = np.argsort(own[first], kind="stable")
        share = size[order] / size.sum()
        below = np.concatenate([[0.0], np.cumsum(share)])
        best = np.diff(below**n)
        some = best > 0
        total += (best[some] * np.log(best[some] / share[some])).sum()
    return total / len(scores)


def tilted(rewards: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    """Weights [P, N] ∝ exp(reward/beta) and their KL from equal weights, mean over prompts, nats.

    rewards [P, N].  Of all policies on these samples with this KL it has the highest mean reward.
    """
    z = rewards / beta
    z = z - z.max(1, keepdims=True)
    log_w = z - np.log(np.exp(z).sum(1, keepdims=True))
    weights = np.exp(log_w)
    return weights, float((weights * (log_w + np.log(rewards.shape[1]))).sum(1).mean())


def frontier(rewards: np.ndarray, values: np.ndarray, kl: float) -> float | None:
    """Mean value under `tilted` weights with this KL; None where the samples cannot reach it.

    rewards, values [P, N]: with values = rewards it is the highest reward at this KL.
    """
    spread = float(rewards.std()) or 1.0
    gap = lambda log_beta: tilted(rewards, spread * np.exp(log_beta))[1] - kl  # noqa: E731
    if gap(-7.0) < 0 or gap(9.0) > 0:
        return None
    weights, _ = tilted(rewards, spread * np.exp(brentq(gap, -7.0, 9.0, xtol=1e-4)))
    return float((weights * values).sum(1).mean())
