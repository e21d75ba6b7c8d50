"""Study: what a baseline does to the gradient's variance and to the learning curve.

    python -m experiments.baselines

At a fixed policy (the start model; the policy after 30 steps) the gradient is estimated from 30
independent batches of 64 answers.  The learning curves use 64 answers a step too.
"""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

import train_policy
from experiments import baselines_report, lab, zoo_runs
from experiments.gradient_variance import (
    best_constant,
    sampled_parts,
    squared_mean_norm,
    total_variance,
)
from rlhf_min.data.files import read_json
from rlhf_min.data.preferences import split_prompts
from rlhf_min.maths.baselines import ExponentialAverage
from rlhf_min.models import loading
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import encode_prompts, end_token_ids

SEEDS, STEPS, EARLY, BATCH = range(5), 60, 30, 64
CURVES = [
    ("none", 4),
    ("moving-average", 4),
    ("ema", 4),
    *(("leave-one-out", k) for k in (2, 4, 8)),
]
QUICK_START = {"steps": 30, "examples": 960}
QUICK_RM = {"max_steps": 4, "eval_limit": 32, "limit": 128}


def settings(quick: bool) -> list[dict]:
    """One run per fixed policy and per learning curve, whole seeds after one another."""
    size = {"steps": 2, "early": 2, "batches": 3, "prompts": 8, "batch": 16, "quick": True}
    if not quick:
        size = {
            "steps": STEPS,
            "early": EARLY,
            "batches": 30,
            "prompts": 256,
            "batch": BATCH,
            "quick": False,
        }
    runs = []
    for seed in range(1) if quick else SEEDS:
        common = {"seed": seed, **size}
        runs += [common | {"kind": "variance", "policy": name} for name in ("start", "early")]
        runs += [common | {"kind": "curve", "baseline": b, "samples": k} for b, k in CURVES]
    return runs


def run(settings: dict) -> dict:
    """The variances at a fixed policy, or a learning curve."""
    return (variances if settings["kind"] == "variance" else curve)(settings)


def models(settings: dict) -> tuple[Path, Path]:
    """Folders of the start model and the reward model of a seed."""
    seed, quick = settings["seed"], settings["quick"]
    start = zoo_runs.start_model(seed, **(QUICK_START if quick else {}))
    return start, zoo_runs.reward_model(start, seed=seed, **(QUICK_RM if quick else {}))


def policy_settings(settings: dict) -> dict:
    """What all policies of this study and of experiments/algorithms.py have in common."""
    prompts = settings["prompts"]
    own = {"seed": settings["seed"], "eval_prompts": prompts, "ruler_prompts": prompts}
    return own | {"steps": settings["steps"], "batch_size": settings["batch"], "save_every": 10**6}


def curve(settings: dict) -> dict:
    """Curves in bins of 5 steps, and held-out metrics before and after."""
    own = policy_settings(settings) | {name: settings[name] for name in ("baseline", "samples")}
    folder = zoo_runs.policy(*models(settings), **own)
    rows, summary = zoo_runs.metrics(folder), zoo_runs.summary(folder)
    names = {"gold": "reward/gold", "advantage": "advantage/mean", "value": "baseline/value"}
    names |= {"kl": "kl/mean", "grad_norm": "grad/norm"}
    curves = {name: zoo_runs.binned(rows, long, 5) for name, long in names.items()}
    held_out = {end: round(summary[end]["reward/gold"], 4) for end in ("before", "after")}
    return {"held_out": held_out, "held_out_kl": round(summary["after"]["kl/mean"], 4), **curves}


def variances(settings: dict) -> dict:
    """By samples K: relative variances, and the values of the constant baselines."""
    start, reward = models(settings)
    early = policy_settings(settings) | {"steps": settings["early"], "samples": 4}
    folder = zoo_runs.policy(start, reward, **early)
    config = replace(train_policy.Config(str(start), str(reward)), **early)
    tokenizer = loading.load_tokenizer(start)
    policy = loading.load_causal_lm(
        folder if settings["policy"] == "early" else start, torch.float32
    )
    reference = loading.load_causal_lm(start, torch.float32)
    scorer = RewardScorer(reward, torch.float32, tokenizer)
    sampling = {
        "max_new_tokens": config.max_new_tokens,
        "end_ids": end_token_ids(policy, tokenizer),
    }
    prompts, _ = encode_prompts(tokenizer, split_prompts(config)[0], 128)
    scale = read_json(folder / "run.json")["data"]["reward_scale"]
    running = running_values(zoo_runs.metrics(folder)) if settings["policy"] == "early" else {}

    result, squares = {}, []
    for samples in (2, 4, 8):
        parts, rewards = sampled_parts(
            policy, reference, scorer, prompts, sampling, scale, config.kl, samples,
            settings["batch"], settings["batches"], 1000 + settings["seed"],
        )  # fmt: skip
        constants = {"none": 0.0, "converged": rewards.mean().item(), **running}
        constants["best constant"] = best_constant(parts)
        total = {
            name: total_variance(parts[:, 0] - b * parts[:, 1]) for name, b in constants.items()
        }
        total["leave-one-out"] = total_variance(parts[:, 2])
        squares.append(squared_mean_norm(parts[:, 2]))  # the mean is the same for all baselines
        values = {name: round(value, 4) for name, value in constants.items()}
        variance = {name: float(f"{value:.5g}") for name, value in total.items()}
        result[str(samples)] = {"variance": variance, "values": values}
    square = fmean(squares)
    return {"square": round(square, 6), **result}


def running_values(rows: list[dict]) -> dict[str, float]:
    """Baselines after the steps of a moving-average run: cumulative mean, exponential average."""
    rewards = [row["reward/with_kl"] for row in rows]
    average = ExponentialAverage(rows[0]["baseline/value"])
    for reward in rewards:
        average = average.updated(torch.tensor([reward]))
    return {"cumulative": fmean(rewards), "exponential": average.value}


def report(rows: list[dict], out: Path) -> str:
    """The Markdown section; see baselines_report.py."""
    return baselines_report.report(rows, out)


if __name__ == "__main__":
    lab.main("baselines", settings, run, report)
