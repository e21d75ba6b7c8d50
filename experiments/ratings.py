"""Scalar or ratings head?  Accuracy, calibration, and distance to the zoo's true distributions.

    python -m experiments.ratings             # 18 variants, 5 seeds: about 38 minutes of one core

In the zoo the true distribution of an answer's ratings is known (`world.gold_distribution`), so it
can be measured which loss teaches a ratings head true distributions.
"""

from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch

import train_rm
from experiments import lab, zoo_runs
from experiments.rating_measures import measures, win_probabilities
from experiments.ratings_report import report
from rlhf_min.maths.statistics import expected_calibration_error
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.zoo import world

HELD_OUT = 2000  # pairs
HALF = {"head": "ratings"}
SOFT = partial(dict, head="ratings", soft_labels=1.0)
VARIANTS = {  # name → settings of train_rm.py
    "scalar": {"head": "scalar"},
    "half": HALF,
    "strict": HALF | {"tie": "strict"},
    "entropy +0.1": HALF | {"answer_entropy": 0.1},
    "entropy +0.5": HALF | {"answer_entropy": 0.5},
    "entropy −0.1": HALF | {"answer_entropy": -0.1},
    "marginal entropy 0.1": HALF | {"marginal_entropy": 0.1},
    "roughness 0.01": HALF | {"roughness": 0.01},
    "roughness 0.1": HALF | {"roughness": 0.1},
    "soft 0.1, width 0.5": SOFT(soft_labels=0.1, label_width=0.5),
    "soft 0.5, width 0.5": SOFT(soft_labels=0.5, label_width=0.5),
    "soft 1, width 0.5": SOFT(label_width=0.5),
    "soft 3, width 0.5": SOFT(soft_labels=3.0, label_width=0.5),
    "soft 1, width 1": SOFT(label_width=1.0),
    "soft 1, width 1.4": SOFT(label_width=1.4),
    "earth mover 0.1": HALF | {"earth_mover": 0.1, "label_width": 0.5},
    "earth mover 1": HALF | {"earth_mover": 1.0, "label_width": 0.5},
    "soft 1 + earth mover 1": SOFT(earth_mover=1.0, label_width=0.5),
}
QUICK = ("scalar", "half", "strict", "marginal entropy 0.1", "earth mover 1")
BEST = "earth mover 1"  # the variant that other studies use
SIDES = ("chosen", "rejected")
# Four kinds of answers to one held-out question, for the figure.
TYPICAL = {
    "correct": set(),
    "rude": {"rude"},
    "small talk, one fact missing": {"small talk", "incomplete"},
    "filler": {"filler"},
}


def settings(quick: bool) -> list[dict]:
    """Every variant for every seed (quick: QUICK, one seed), and the truth itself once."""
    start = {"steps": 20, "examples": 500} if quick else {}
    train = {"eval_limit": 16, "max_steps": 2, "limit": 64} if quick else {"eval_limit": HELD_OUT}
    train |= {"eval_every": 1000}  # one evaluation, at the end
    rows = [{"variant": "truth", "pairs": train["eval_limit"]}]
    variants = {name: VARIANTS[name] for name in (QUICK if quick else VARIANTS)}
    for seed in range(1 if quick else 5):
        for name, own in variants.items():
            rows.append({"seed": seed, "variant": name, "start": start, "train": train | own})
    return rows


def run(settings: dict) -> dict:
    """Measures of a trained variant, or of the truth as if it were a reward model."""
    if settings["variant"] == "truth":
        return truth(settings["pairs"])
    folder = trained(settings)
    summary = zoo_runs.summary(folder)
    result = {name: summary[name] for name in ("accuracy", "calibration_error", "loss")}
    if summary["head"] == "ratings":
        rows = zoo_runs.held_out_scores(folder)
        learned = [np.array([row[f"{side}_ratings"] for row in rows]) for side in SIDES]
        result |= compared(rows, learned) | {"typical": typical(folder)}
    return rounded(result)


def trained(settings: dict) -> Path:
    """The folder of the reward model of these settings."""
    start = zoo_runs.start_model(settings["seed"], **settings["start"])
    return zoo_runs.reward_model(start, seed=settings["seed"], **settings["train"])


def true_distributions(rows: list[dict]) -> list[np.ndarray]:
    """True distributions of the chosen answers [N, 10] and of the rejected ones [N, 10]."""
    gold = world.gold_distribution
    return [np.array([gold(row["prompt"], row[side]) for row in rows]) for side in SIDES]


def compared(rows: list[dict], learned: list[np.ndarray]) -> dict:
    """`measures` of learned distributions (chosen [N, 10], rejected [N, 10]) of held-out pairs.

    With the calibration error of P(win) given that the two ratings differ, as they do in the data.
    """
    talk = [world.quality(row["prompt"], row[side])[1] for side in SIDES for row in rows]
    true = np.concatenate(true_distributions(rows))
    result = measures(np.concatenate(learned), true, np.array(talk))
    return result | {"calibration_error_untied": calibration(win_probabilities(*learned)[1])}


def calibration(p_win: np.ndarray) -> float:
    """Expected calibration error of P(chosen wins) [N], both orders of each pair."""
    p_win, count = p_win.tolist(), len(p_win)
    both_orders = [*p_win, *(1 - p for p in p_win)]
    return expected_calibration_error(both_orders, [1] * count + [0] * count)


def truth(count: int) -> dict:
    """What a reward model would get that knows the true distributions, and one that knows nothing.

    `earth_mover_uniform` is the strict loss's chance level: all ratings equally likely for every
    answer; `earth_mover_marginal`: the mean of all true distributions for every answer.
    """
    pairs = train_rm.read_pairs(train_rm.Config(eval_limit=count))[1]
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    both = true_distributions(rows)
    half, _ = win_probabilities(*both)
    result = {"accuracy": float((half > 0.5).mean() + (half == 0.5).mean() / 2)}
    result |= {"calibration_error": calibration(half)} | compared(rows, both)
    all_answers = np.concatenate(both)
    guesses = {"uniform": np.full(10, 0.1), "marginal": all_answers.mean(0)}
    for name, guess in guesses.items():
        distances = np.abs(guess.cumsum() - all_answers.cumsum(-1)).sum(-1)
        result[f"earth_mover_{name}"] = float(distances.mean())
    question, answers = typical_answers()
    distributions = [world.gold_distribution(question, answer) for answer in answers]
    return rounded(
        result
        | {"typical": distributions, "question": question}
        | {"answers": answers, "kinds": [*TYPICAL]}
    )


def typical_answers() -> tuple[str, list[str]]:
    """A held-out question with two attributes, and the answers of TYPICAL to it."""
    question = next(q for q in world.prompts("held-out") if len(world.QUESTIONS[q][1]) == 2)
    return question, [world.compose(question, Random(0), kind) for kind in TYPICAL.values()]


def typical(folder: Path) -> list[list[float]]:
    """The head's distributions [4][10] of the typical answers."""
    question, answers = typical_answers()
    scorer = RewardScorer(str(folder), torch.float32)
    outputs = scorer.text_outputs([question], [answers], [[True] * len(answers)])
    return outputs.softmax(-1).tolist()


def rounded(value):
    """Numbers of nested lists and dictionaries to four digits after the point."""
    if isinstance(value, dict):
        return {name: rounded(own) for name, own in value.items()}
    if isinstance(value, list):
        return [rounded(own) for own in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    lab.main("ratings", settings, run, report)
