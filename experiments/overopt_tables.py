"""Numbers of the over-optimisation study from its rows: curves, coefficients, claims' intervals."""

from collections.abc import Callable

import numpy as np

from experiments import fits

# Standard deviations that a missing end token costs: train_policy.py --missing-end-penalty.
PENALTY = 1.0
METHODS = {"best of n": "bon", "RL": "rl"}  # law of the paper → curve in the rows
MOST = 300  # n of best of n, of 1 000 samples
Cells = dict[tuple, dict[int, dict]]  # (hidden, pairs, labels, kl) → seed → result


def cells_of(rows: list[dict]) -> Cells:
    """The results by cell and seed."""
    cells: Cells = {}
    for row in rows:
        own = row["settings"]
        name = own["hidden"], own["pairs"], own["labels"], own["kl"]
        cells.setdefault(name, {})[own["seed"]] = row["result"]
    return cells


def grid_of(cells: Cells) -> Cells:
    """The cells of the grid: labels by the gold rating, no KL penalty."""
    return {name: own for name, own in cells.items() if name[2:] == ("gold", 0.0)}


def learned_reward(curve: dict) -> np.ndarray:
    """Learned reward with the missing-end penalty, without a KL penalty; 0 at the start.

    Best-of-n curves already contain the penalty.  REINFORCE curves do not: it is computed from
    `finished`, the share of answers with an end token.
    """
    score = np.array(curve["score"], float)
    if "finished" not in curve:
        return score
    finished = np.array(curve["finished"], float)
    return score - PENALTY * (finished[0] - finished)


def points(result: dict, method: str, what: str = "gold") -> tuple[np.ndarray, np.ndarray]:
    """d = √KL and the rewards `what` of one run's curve, without the start; sorted by d.

    The KL of best of n is the counted one: below log n − (n − 1)/n, because answers repeat.  It is
    too low for n near the number of samples, so larger n than MOST are left out.
    """
    curve = result[METHODS[method]]
    reward = learned_reward(curve) if what == "score" else np.array(curve[what], float)
    d = np.sqrt(np.maximum(curve["kl"], 0.0))
    keep = d > 1e-4
    if "n" in curve:
        keep &= np.array(curve["n"]) <= MOST
    order = np.argsort(d[keep], kind="stable")
    return d[keep][order], reward[keep][order]


def at_kl(result: dict, method: str, kl: float, what: str = "gold") -> float | None:
    """The reward of a curve at this KL, between its points; None beyond its last point."""
    d, reward = points(result, method, what)
    if kl > d[-1] ** 2:
        return None
    return float(np.interp(np.sqrt(kl), np.append(0.0, d), np.append(0.0, reward)))


def pooled(results: list[dict], method: str, what: str = "gold") -> tuple[np.ndarray, np.ndarray]:
    """The points of several seeds together."""
    both = [points(result, method, what) for result in results]
    return np.concatenate([d for d, _ in both]), np.concatenate([r for _, r in both])


def coefficients(own: dict[int, dict], method: str) -> np.ndarray:
    """(α, β) of the paper's law for each seed's curve of a cell: [S, 2]."""
    return np.array([fits.fit(method, *points(own[seed], method)) for seed in sorted(own)])


def slopes(grid: Cells, method: str) -> np.ndarray | None:
    """Least-squares slopes of α and β in ln parameters and ln pairs: [S, 2 coefficients, 2].

    S: the seeds that all cells have.  None without any, or with fewer than 2 sizes or numbers.
    """
    seeds = sorted(set.intersection(*(set(own) for own in grid.values()))) if grid else []
    if not seeds or any(len({name[axis] for name in grid}) < 2 for axis in (0, 1)):
        return None
    columns = []
    for name, own in grid.items():
        columns.append([1.0, np.log(own[seeds[0]]["parameters"]), np.log(name[1])])
    kept = []
    for seed in seeds:
        fitted = [fits.fit(method, *points(own[seed], method)) for own in grid.values()]
        kept.append(np.linalg.lstsq(np.array(columns), np.array(fitted), rcond=None)[0][1:].T)
    return np.array(kept)


def log_linear(grid: Cells, method: str) -> dict[str, float]:
    """R² of α and of β as a straight line in ln parameters, each a mean over numbers of pairs."""
    sizes = sorted({name[0] for name in grid})
    x, y = [], []
    for size in sizes:
        own = [own for name, own in grid.items() if name[0] == size]
        x.append(np.log(next(iter(own[0].values()))["parameters"]))
        y.append(np.mean([coefficients_once(one, method) for one in own], 0))
    y = np.array(y)
    return {"α": fits.explained(np.array(x), y[:, 0]), "β": fits.explained(np.array(x), y[:, 1])}


def coefficients_once(own: dict[int, dict], method: str) -> tuple[float, float]:
    """(α, β) of the pooled points of all seeds of a cell."""
    return fits.fit(method, *pooled(list(own.values()), method))


def by_seed(cells: Cells, value: Callable[[dict], float | None]) -> list[float]:
    """The mean over cells of value(result), one number per seed; None values are left out."""
    kept: dict[int, list[float]] = {}
    for own in cells.values():
        for seed, result in own.items():
            if (one := value(result)) is not None and np.isfinite(one):
                kept.setdefault(seed, []).append(one)
    return [float(np.mean(kept[seed])) for seed in sorted(kept)]


def error_gap(method: str, law: str, other: str) -> Callable[[dict], float]:
    """Value for `by_seed`: extrapolation error of `law` minus that of `other` on a gold curve."""

    def value(result: dict) -> float:
        curve = points(result, method)
        return fits.extrapolation_error(*curve, law) - fits.extrapolation_error(*curve, other)

    return value


def misfit(method: str, what: str) -> Callable[[dict], float]:
    """Value for `by_seed`: root mean squared residual of the best of the LAWS, in the curve's std.

    So that rewards of other units, or a curve twice as high, have the same misfit.
    """

    def value(result: dict) -> float:
        d, reward = points(result, method, what)
        kinds = [reward - fits.predict(law, d, *fits.fit(law, d, reward)) for law in fits.LAWS]
        return float(min(np.sqrt((left**2).mean()) for left in kinds) / (reward.std() or 1.0))

    return value


def falls(own: dict[int, dict]) -> list[float]:
    """Gold of REINFORCE at the best step minus gold at the end, one per seed.

    The best step is that of the other seeds' mean, because the highest of noisy points of the same
    seed would be too high.
    """
    return [best - own[seed]["rl"]["gold"][-1] for seed, best in best_golds(own).items()]


def best_golds(own: dict[int, dict]) -> dict[int, float]:
    """Seed → gold of REINFORCE at the best step of the other seeds' mean; {} with one seed."""
    curves = {seed: np.array(result["rl"]["gold"]) for seed, result in own.items()}
    kept = {}
    for seed, curve in curves.items():
        others = [other for name, other in curves.items() if name != seed]
        if others:
            kept[seed] = float(curve[np.mean(others, 0).argmax()])
    return kept


def penalty_gaps(cells: Cells) -> dict[float, list[float]]:
    """KL weight → gold at the end minus gold of the unpenalised curve at the same KL, per seed."""
    kept: dict[float, list[float]] = {}
    for (hidden, pairs, labels, kl), own in sorted(cells.items()):
        plain = cells.get((hidden, pairs, labels, 0.0), {})
        for seed, result in own.items() if kl else ():
            end = result["rl"]
            if seed in plain:
                gold = at_kl(plain[seed], "RL", end["kl"][-1])
                if gold is not None:
                    kept.setdefault(kl, []).append(end["gold"][-1] - gold)
    return kept
