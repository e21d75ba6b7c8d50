"""Study: does a small world with known truth follow the laws of over-optimisation?

After Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization".  One run is one
reward model (size, number of pairs, kind of labels, seed) with its REINFORCE and best-of-n curves.
Learned reward and gold are recentred to 0 and in units of the start model's standard deviation.
"""

import numpy as np
import torch

from experiments import lab, overopt_runs, zoo_runs
from experiments.overopt_report import report
from rlhf_min.models import loading
from rlhf_min.models.scoring import RewardScorer

SIZES, OWN = (16, 32, 64, 96, 160), 96  # hidden size of the reward model; the zoo's own
PAIRS, MIDDLE = (100, 300, 1000, 3000, 10_000), 3000
PENALTIES = (0.05, 0.1, 0.2)  # KL weights of the frontier test, on the middle cell
FULL = {"steps": 50, "batch_size": 64, "eval_prompts": 128, "prompts": 32, "samples": 1000}
QUICK = {"steps": 4, "batch_size": 8, "eval_prompts": 4, "prompts": 2, "samples": 8}
TINY = {"steps": 8, "examples": 160}  # start models of --quick
MIN_STEPS = 100  # of a reward model; else one epoch


def cell(seed: int, hidden=OWN, pairs=MIDDLE, labels="gold", kl=0.0, quick=False) -> dict:
    """The settings of one run."""
    names = {"seed": seed, "hidden": hidden, "pairs": pairs, "labels": labels, "kl": kl}
    return names | (QUICK | {"quick": True} if quick else FULL)


def settings(quick: bool) -> list[dict]:
    """The grid, the noisy annotators and the KL penalties; the seed is the outermost loop."""
    if quick:
        grid = [cell(0, hidden, 64, quick=True) for hidden in (16, OWN)]
        noisy = cell(0, pairs=64, labels="noisy", quick=True)
        return [*grid, noisy, cell(0, pairs=64, kl=0.2, quick=True)]
    cells = []
    for seed in range(5):
        cells += [cell(seed, hidden, pairs) for hidden in SIZES for pairs in PAIRS]
        cells += [cell(seed, pairs=pairs, labels="noisy") for pairs in PAIRS]
        cells += [cell(seed, kl=kl) for kl in PENALTIES]
    return cells


def rounded(value):
    """Numbers with 4 significant digits, in lists and dictionaries too."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(own) for own in value]
    return float(f"{value:.4g}") if isinstance(value, (float, np.floating)) else value


def run(one: dict) -> dict:
    """Train the reward model of a cell, then its REINFORCE and best-of-n curves."""
    seed, quick = one["seed"], one.get("quick", False)
    tiny = TINY if quick else {}
    start = zoo_runs.start_model(seed, **tiny)
    shape = {} if one["hidden"] == OWN else {"hidden": one["hidden"]}
    base = zoo_runs.start_model(seed, **tiny, **shape)
    draw = zoo_runs.gold_pairs if one["labels"] == "gold" else overopt_runs.noisy_pairs
    steps = 2 if quick else max(MIN_STEPS, -(-one["pairs"] // 32))
    every = {"eval_limit": 100, "eval_every": 10**6, "save_every": 10**6}
    data = {"data": [str(draw(one["pairs"], seed))], "eval_data": ["zoo:held-out"]}
    folder = zoo_runs.reward_model(base, seed=seed, max_steps=steps, **data, **every)
    scorer = RewardScorer(str(folder), torch.float32, loading.load_tokenizer(str(start)))
    config = {key: one[key] for key in ("steps", "batch_size", "eval_prompts", "kl", "seed")}
    times = [0, *range(2, 13, 2), *range(15, one["steps"] + 1, 5)]
    points, metrics = overopt_runs.reinforce_curve(start, scorer, config, times)
    result = {
        "parameters": sum(p.numel() for p in scorer.model.parameters()),
        "rl": curve(points),
        "stop": overopt_runs.stopped_at(metrics),
    }
    if not one["kl"]:  # with a penalty it would be the same reward model again
        kept = overopt_runs.start_samples(start, one["prompts"], one["samples"])
        result["bon"] = overopt_runs.best_of_n_curves(scorer, kept)
    return rounded(result)


def curve(points: list[dict]) -> dict:
    """Columns of the points; gold and score recentred, in the start's standard deviations.

    The score is the reward model's own; `overopt_tables.points` subtracts the missing-end penalty.
    Losses by cause (rating points) are kept of three points: the start, the best gold, the end.
    """
    first = points[0]
    best = max(points, key=lambda p: p["gold"])
    marked = dict(zip(("start", "best", "end"), (first, best, points[-1]), strict=True))
    names = ("gold", "losses", "unseen", "short_unseen", "short_seen")
    columns = {name: [p[name] for p in points] for name in ("step", "kl", "finished")}
    for name in ("gold", "score"):
        scale = first[f"{name}_std"]
        columns[name] = [(p[name] - first[name]) / scale for p in points]
    columns["gold_std"] = first["gold_std"]
    return columns | {"marked": {k: {name: p[name] for name in names} for k, p in marked.items()}}


if __name__ == "__main__":
    lab.main("overoptimisation", settings, run, report)
