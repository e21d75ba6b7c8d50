"""Statistics of verdicts, probabilities and texts: pure functions of numbers, lists and strings."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import fmean, pstdev

import torch

Numbers = Sequence[float]


def wilson_interval(wins: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a proportion `wins / n` (Wilson 1927); 95 % for z = 1.96; a tie may be ½ win."""
    if not 0 <= wins <= n or n < 1:
        raise ValueError(f"a proportion needs 0 <= wins <= n and n >= 1, got {wins} of {n}")
    p, shrink = wins / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))  # despite rounding


def bootstrap_interval(
    values: Numbers, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean (Efron 1979).  values: one per prompt."""
    if not values:
        raise ValueError("a bootstrap needs at least one value")
    data, count = torch.tensor(values, dtype=torch.float64), (len(values),)
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randint(len(values), count, generator=generator) for _ in range(resamples))
    means = sorted(data[drawn].mean().item() for drawn in draws)
    cut = round(0.025 * (resamples - 1))
    return means[cut], means[-1 - cut]


def win_rate(verdicts: Numbers) -> float:
    """Wins plus half the ties, as a share; verdicts are 1 (win), ½ (tie) or 0 (loss)."""
    if not verdicts or any(verdict not in (0, 0.5, 1) for verdict in verdicts):
        raise ValueError("a win rate needs at least one verdict, each of them 0, 0.5 or 1")
    return fmean(verdicts)


def length_controlled_rate(verdicts: Numbers, differences: Numbers, ridge: float = 0.01) -> float:
    """The win rate if both answers were equally long (AlpacaEval 2; Dubois et al. 2024).

    P(win) = σ(α + γ·tanh(d / std(d))) is fitted to the verdicts 1, ½, 0 by Newton's method and read
    at d = 0; `differences` d: length(this side) − length(other side), in any unit.  The ridge keeps
    α, γ finite where the data are separable.  Their term for each prompt's difficulty is left out.
    """
    win_rate(verdicts)  # the same demands on verdicts
    spread = pstdev(differences) or math.inf  # equal differences tell nothing about length
    xs = [math.tanh(d / spread) for d in differences]
    alpha = gamma = 0.0
    for _ in range(100):  # gradient g and Hessian h of the summed loss
        g0, g1, h00, h01, h11 = ridge * alpha, ridge * gamma, ridge, 0.0, ridge
        for x, y in zip(xs, verdicts, strict=True):
            p = 1 / (1 + math.exp(-alpha - gamma * x))
            g0, g1 = g0 + p - y, g1 + (p - y) * x
            w = p * (1 - p)
            h00, h01, h11 = h00 + w, h01 + w * x, h11 + w * x * x
        determinant = h00 * h11 - h01 * h01
        step0, step1 = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # a full Newton step overshoots where σ is flat, hence at most 1 in the logit
        scale = 1 / max(1.0, abs(step0) + abs(step1))
        alpha, gamma = alpha - scale * step0, gamma - scale * step1
        if abs(step0) + abs(step1) < 1e-12:
            break
    return 1 / (1 + math.exp(-alpha))


def reliability(probabilities: Numbers, outcomes: Numbers, bins: int = 10) -> list[tuple]:
    """(mean probability, mean outcome, count) of every non-empty bin of equal width, in order.

    Give each pair in both orders, (p, 1) and (1 − p, 0): outcomes that are all 1 tell nothing.
    """
    if not outcomes or not all(0 <= p <= 1 for p in probabilities):  # NaN is caught too
        raise ValueError("reliability needs at least one probability, all between 0 and 1")
    pairs = list(zip(probabilities, outcomes, strict=True))
    rows = [[(p, y) for p, y in pairs if min(int(p * bins), bins - 1) == b] for b in range(bins)]
    return [(fmean(p for p, _ in row), fmean(y for _, y in row), len(row)) for row in rows if row]


def expected_calibration_error(probabilities: Numbers, outcomes: Numbers, bins: int = 10) -> float:
    """Σ_bins count/n · |mean outcome − mean probability| (Naeini et al. 2015); give both orders."""
    rows = reliability(probabilities, outcomes, bins)
    return sum(count * abs(y - p) for p, y, count in rows) / len(outcomes)


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int = 2) -> float:
    """Different n-grams over all n-grams (Li et al. 2016), 0 if none; more texts lower it."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def share_equal(items: Sequence[Hashable]) -> float:
    """Share of the pairs of items that are equal (Simpson's index); 0 for fewer than two items."""
    n = len(items)
    return sum(c * (c - 1) for c in Counter(items).values()) / (n * (n - 1)) if n > 1 else 0.0


def longest_run(tokens: Sequence[Hashable], longest_unit: int = 8) -> int:
    """Most copies in a row of one n-gram, n = 1 … longest_unit; 1 when nothing is repeated."""
    best = min(len(tokens), 1)
    for n in range(1, longest_unit + 1):
        same = 0  # how long tokens have now been equal to those n places before
        for i in range(n, len(tokens)):
            same = same + 1 if tokens[i] == tokens[i - n] else 0
            best = max(best, 1 + same // n)
    return best


def degenerate(text: str, repeats: int = 4, characters: int = 20) -> bool:
    """Is a character or n-gram repeated to the end: `repeats` copies or more, `characters` or more?

    The last copy may be cut, and white space after it does not count.
    """
    for end in {text, text.rstrip()}:
        for period in range(1, len(end) // repeats + 1):
            tail = end[-max(characters, repeats * period) :]
            if len(tail) >= characters and tail[period:] == tail[:-period]:
                return True
    return False
