"""Laws of over-optimisation fitted to a curve: reward against d = √KL, with intervals over seeds.

All laws are linear in their two coefficients, so least squares has one solution.
"""

import numpy as np


def _log(d: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(d, 1e-9))


# name → (text, the two columns whose coefficients are α and −β); d > 0
LAWS = {
    "best of n": ("d(α − β·d)", lambda d: (d, d**2)),
    "RL": ("d(α − β·log d)", lambda d: (d, d * _log(d))),
    "cubic": ("d(α − β·d²)", lambda d: (d, d**3)),
    "root": ("√d(α − β·√d)", lambda d: (np.sqrt(d), d)),
}


def fit(law: str, d: np.ndarray, reward: np.ndarray) -> tuple[float, float]:
    """(α, β) of a law by least squares: d, reward [N], d > 0."""
    columns = np.stack(LAWS[law][1](d), 1)
    alpha, minus_beta = np.linalg.lstsq(columns, reward, rcond=None)[0]
    return float(alpha), float(-minus_beta)


def predict(law: str, d: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The law's reward at d [N]."""
    first, second = LAWS[law][1](d)
    return alpha * first - beta * second


def aic(d: np.ndarray, reward: np.ndarray, law: str) -> float:
    """Akaike's criterion N·log(RSS/N) + 2·3 of a fitted law (α, β, noise); lower is better."""
    left = reward - predict(law, d, *fit(law, d, reward))
    return float(len(d) * np.log(max((left**2).mean(), 1e-12)) + 6)


def extrapolation_error(d: np.ndarray, reward: np.ndarray, law: str) -> float:
    """Root mean squared error on the last third of the curve of a law fitted to the first two."""
    order = np.argsort(d)
    cut = len(d) * 2 // 3
    first, last = order[:cut], order[cut:]
    guess = predict(law, d[last], *fit(law, d[first], reward[first]))
    return float(np.sqrt(((guess - reward[last]) ** 2).mean()))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the least-squares line through (x, y), both [N]."""
    return float(np.polyfit(x, y, 1)[0])


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """Share of y's variance that the line through (x, y) explains: R²; 1 if y is constant."""
    if y.std() < 1e-12:
        return 1.0
    return float(np.corrcoef(x, y)[0, 1] ** 2)
