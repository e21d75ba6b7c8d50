"""The section and figure of experiments/algorithms.py, written from its rows."""

import itertools
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import HEADER, claim_row, paired, plain
from experiments.lab import folded, mean_interval, shown, table

NAMES = {
    "reinforce": "REINFORCE, moving average",
    "rloo-2": "leave-one-out, K = 2",
    "rloo-4": "leave-one-out, K = 4",
    "ppo": "PPO, ratio per answer",
    "ppo-token": "PPO, ratio per token",
    "gspo": "GSPO, ratio of mean token",
    "dpo": "DPO",
    "best-of-n": "best-of-n",
}
PANELS = [("reinforce", "rloo-2", "rloo-4", "best-of-n"), ("reinforce", "ppo", "ppo-token", "gspo")]
PANELS += [("reinforce", "dpo", "best-of-n")]
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = dict(
    zip(
        NAMES,
        ["#000000", "#56b4e9", "#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#7f7f7f"],
        strict=True,
    )
)
KL_WEIGHT = 0.1  # of the comparison at equal samples
COMPARED_KL = (1, 2)  # nats, of the comparison at equal KL


CLAIMS_OF = (
    "The claims are those of Ahmadian et al. 2024, measured there by win rates of language models "
    "of 7 B parameters, and with a PPO that has a value network. PPO here has the moving-average "
    "baseline of REINFORCE, so only ratio, clip and second update differ."
)


def report(rows: list[dict], out: Path) -> str:
    """The Markdown section from rows (some may be missing); writes algorithms.png to `out`."""
    points = curves(rows)
    figure(points, out / "algorithms.png")
    told = table(HEADER, claims(rows, points))
    parts = [
        "![Gold against KL by method](figures/algorithms.png)",
        kl_table(points),
        "Gold at equal KL is read from straight lines (in √KL) between a seed's runs (its KL "
        "weights, its β, or its n), from the start model at KL 0 on; a dash means that no run "
        "went that far, and fewer seeds than elsewhere that some did not. The KL of best-of-n is "
        "the formula log n − (n−1)/n, which holds while equal answers are rare; those of the "
        "others are means over held-out answers.",
        sample_table(rows),
        "ε is 0.2 for PPO and 0.01 for GSPO; the share is of the second updates. Equal samples "
        "means 64 answers a step for every policy method; those with a ratio update "
        "twice on each rollout, so they make twice the optimiser steps with the same learning "
        "rate. DPO samples nothing: it sees the labelled pairs from which the reward model of the "
        "others was trained. Best-of-n samples n answers for every answer that it gives, forever.",
        folded("Every claim", f"{told}\n\n{CLAIMS_OF}"),
    ]
    return "\n\n".join(parts)


def curves(rows: list[dict]) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """method → seed → points (KL, gold) by rising KL, from the start model's on."""
    found: dict[str, dict[int, list]] = {}
    starts = {}
    for row in rows:
        seed, result = row["settings"]["seed"], row["result"]
        own = found.setdefault(row["settings"]["method"], {}).setdefault(seed, [])
        if "points" in result:
            starts[seed] = tuple(result["points"]["1"])
            own += map(tuple, result["points"].values())
        else:
            own.append((result["kl"], result["gold"]))
    for method, seeds in found.items():
        for seed, own in seeds.items():
            if method != "best-of-n" and seed in starts:
                own.append(starts[seed])
            own.sort()
    return found


def gold_at(points: dict, method: str, kl: float) -> dict[int, float]:
    """seed → gold at this KL in nats, of the seeds whose runs reach it; linear in √KL."""
    reached = {s: own for s, own in points.get(method, {}).items() if own[0][0] <= kl <= own[-1][0]}
    found = {}
    for seed, own in reached.items():
        kls, golds = zip(*own, strict=True)
        found[seed] = float(np.interp(kl**0.5, np.sqrt(np.maximum(kls, 0)), golds))
    return found


def of_method(rows: list[dict], method: str, value: str, weight: float | None) -> dict[int, float]:
    """seed → a value of a method's run with this KL weight (None: the mean over all weights)."""
    found: dict[int, list[float]] = {}
    for row in rows:
        one, result = row["settings"], row["result"]
        if one["method"] == method and value in result and weight in (None, one.get("kl")):
            found.setdefault(one["seed"], []).append(result[value])
    return {seed: fmean(values) for seed, values in found.items()}


def kl_table(points: dict) -> str:
    """Gold at 1, 2 and 4 nats by method."""
    lines = []
    for method, name in NAMES.items():
        at = [[*gold_at(points, method, kl).values()] for kl in (1, 2, 4)]
        if method in points:
            seeds = [f"{len(v)} seed" if len(v) == 1 else f"{len(v)} seeds" for v in at]
            both = zip(at, seeds, strict=True)
            cells = [f"{plain(v, 2)}, {count}" if v else "–" for v, count in both]
            lines.append([name, *cells])
    return table(["method", *(f"gold at KL = {kl}" for kl in (1, 2, 4))], lines)


def sample_table(rows: list[dict]) -> str:
    """Gold, KL, learned reward and share outside the clip range at one KL weight; samples."""
    lines = []
    for method in [*NAMES][:6]:
        values = [
            [*of_method(rows, method, name, KL_WEIGHT).values()]
            for name in ("gold", "kl", "reward", "outside", "samples")
        ]
        if values[0]:
            shares = shown([100 * v for v in values[3]], 1) if values[3] else "–"
            cells = [*map(shown, values[:3]), shares, f"{values[4][0]:.0f}"]
            lines.append([NAMES[method], *cells])
    titles = ["held-out gold", "KL, nats", "learned reward", "ratios outside 1 ± ε, %"]
    return table([f"KL weight {KL_WEIGHT}", *titles, "answers sampled"], lines)


def claims(rows: list[dict], points: dict) -> list[list[str]]:
    """The claim table's rows."""
    lines = []
    for method in ("ppo", "ppo-token", "gspo"):
        shares = of_method(rows, method, "outside", None).values()
        for text, factor in (("of the second updates", 1), ("of all updates", 0.5)):
            name = f"{NAMES[method]}: less than 5 % of ratios lie outside 1 ± ε, {text}"
            left = [0.05 - factor * share for share in shares]
            lines.append(claim_row(name, left, "0.05 minus the share"))
    order = ["rloo-4", "rloo-2", "reinforce", "ppo"]
    pairs = [*itertools.pairwise(order), ("ppo-token", "ppo"), ("gspo", "ppo")]
    pairs += [("ppo-token", "reinforce"), ("gspo", "reinforce")]
    at_kl = [*pairs, ("reinforce", "best-of-n"), ("reinforce", "dpo"), ("dpo", "best-of-n")]
    for first, second in at_kl:
        name, what = f"{NAMES[first]} above {NAMES[second]}", "difference of gold"
        if (first, second) in pairs:
            gold = [of_method(rows, method, "gold", KL_WEIGHT) for method in (first, second)]
            lines.append(claim_row(f"{name}, equal samples", paired(*gold), what, 2))
        for kl in COMPARED_KL:
            gold = [gold_at(points, method, kl) for method in (first, second)]
            lines.append(claim_row(f"{name}, at KL = {kl}", paired(*gold), what, 2))
    return lines


def figure(points: dict, file: Path) -> None:
    """Gold against KL: three panels with some of the methods each, REINFORCE in all."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 4), sharey=True, layout="constrained")
    for axes, methods in zip(panels, PANELS, strict=True):
        for method in methods:
            if method in points:
                draw(axes, points[method], COLOURS[method], NAMES[method])
        axes.set(xlabel="KL to the start model, nats per answer", xlim=(0, 6))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, loc="lower right")
    panels[0].set(ylabel="gold (true rating, 1 to 10)")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw(axes, seeds: dict, colour: str, label: str) -> None:
    """Each run as a dot; mean and 95 % interval where all seeds of the method have a value."""
    for own in seeds.values():
        axes.plot(*zip(*own, strict=True), ".", color=colour, markersize=4, alpha=0.5)
    end = min(own[-1][0] for own in seeds.values())
    grid = np.linspace(max(own[0][0] for own in seeds.values()), end, 60)
    values = []
    for own in seeds.values():
        kls, golds = zip(*own, strict=True)
        values.append(np.interp(np.sqrt(np.maximum(grid, 0)), np.sqrt(np.maximum(kls, 0)), golds))
    columns = [[float(v) for v in column] for column in zip(*values, strict=True)]
    axes.plot(grid, [fmean(column) for column in columns], color=colour, label=label)
    if len(values) > 1:
        _, low, high = zip(*map(mean_interval, columns), strict=True)
        axes.fill_between(grid, low, high, color=colour, alpha=0.13, linewidth=0)
