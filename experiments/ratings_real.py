"""Scalar or ratings head on real ratings: ultrafeedback (GPT-4, 1 to 10), a chat model of 3.4 M.

    RLHF_MIN_REAL=FOLDER python -m experiments.ratings_real      # 5 variants, 3 seeds

The project does not hold data and model.  FOLDER (without the variable: ../shared) has
data/ultrafeedback/{train,test}.jsonl.gz and models/tinystories-chat-3m; docs/real_input.md says
what they are.  Only the pairs whose answers fit the model's 256 positions are used.
"""

import gzip
import json
import os
from pathlib import Path
from statistics import fmean

import numpy as np

import train_rm
from experiments import lab, zoo_runs
from experiments.claims import HEADER, by_variant, claim_row, paired, plain, values
from experiments.rating_measures import earth_mover, mean_and_sigma
from experiments.ratings import SIDES, rounded
from rlhf_min.data.preferences import encode_pairs
from rlhf_min.models.loading import load_tokenizer

VARIANTS = {
    "scalar": {"head": "scalar"},
    "half": {"head": "ratings"},
    "strict": {"head": "ratings", "tie": "strict"},
    "soft 1, width 0.5": {"head": "ratings", "soft_labels": 1.0, "label_width": 0.5},
    "earth mover 1": {"head": "ratings", "earth_mover": 1.0, "label_width": 0.5},
}
TRAIN = {"max_length": 256, "epochs": 2.0, "lr": 1e-4, "batch_size": 8, "micro_batch": 4}
TRAIN |= {"eval_fraction": 0.4, "eval_every": 1000}
FILES = ("train", "test")


def folder() -> Path:
    """The folder of data and model.  Raises SystemExit, in one sentence, if they are not there."""
    found = Path(os.environ.get("RLHF_MIN_REAL", "../shared"))
    if not (found / "data/ultrafeedback/train.jsonl.gz").exists():
        raise SystemExit(
            f"{found} has no data/ultrafeedback/train.jsonl.gz: give the folder of data and models "
            "by RLHF_MIN_REAL=FOLDER (docs/real_input.md says what they are)"
        )
    return found


def settings(quick: bool) -> list[dict]:
    """Every variant for every seed."""
    train = TRAIN | {"limit": 60, "max_steps": 1} if quick else TRAIN
    return [
        {"seed": seed, "variant": name, "train": train | own}
        for seed in range(1 if quick else 3)
        for name, own in VARIANTS.items()
    ]


def run(settings: dict) -> dict:
    """Accuracy and calibration of a variant, and distance to the held-out ratings."""
    real = folder()
    data = [str(real / f"data/ultrafeedback/{name}.jsonl.gz") for name in FILES]
    train = settings["train"] | {"data": data, "seed": settings["seed"]}
    trained = zoo_runs.reward_model(real / "models/tinystories-chat-3m", **train)
    summary = zoo_runs.summary(trained)
    names = ("accuracy", "calibration_error", "longer_wins", "pairs/train", "pairs/held_out")
    result = {name: summary[name] for name in names}
    if summary["head"] == "ratings":
        scores, known = zoo_runs.held_out_scores(trained), known_ratings(data)
        result |= compared(scores, known, training_ratings(train, trained))
    return rounded(result)


def training_ratings(train: dict, model: Path) -> list[float]:
    """The ratings of both answers of every training pair that fits the model's positions.

    train: settings of train_rm.py; model: a folder with the tokenizer.
    """
    pairs, *_ = train_rm.read_pairs(train_rm.Config(**train))
    pairs, _ = encode_pairs(load_tokenizer(model), pairs, train["max_length"], "--data")
    return [rating for pair in pairs for rating in pair.ratings]


def known_ratings(files: list[str]) -> dict[tuple[str, str], list[float]]:
    """The ratings [chosen, rejected] of each pair of answers in the files."""
    found = {}
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                ratings = [row[f"{side}_rating"] for side in SIDES]
                found[row["chosen"], row["rejected"]] = ratings
    return found


def two_neighbours(ratings: np.ndarray) -> np.ndarray:
    """Each rating in 1..10 as probabilities of the two next whole ratings, mean kept: [A, 10]."""
    return np.maximum(0, 1 - np.abs(ratings[:, None] - np.arange(1, 11)))


def compared(rows: list[dict], known: dict, training: list[float]) -> dict:
    """Learned distributions against the ratings of held-out answers.

    `marginal`: earth mover's distance between the mean distribution of all answers and that of the
    data.  `score`: Σ_k (P_k − Q_k)² of both CDFs, mean over answers, which is smallest for the true
    distribution (ranked probability score; Epstein 1969).  `score_constant`: the same score if
    every answer gets one fixed distribution, the mean of the ratings `training`.
    """
    learned = np.array([row[f"{side}_ratings"] for row in rows for side in SIDES])
    ratings = np.array([known[row["chosen"], row["rejected"]] for row in rows]).flatten()
    data = two_neighbours(ratings)
    score = lambda guess: float(((guess - data).cumsum(-1) ** 2).sum(-1).mean())  # noqa: E731
    mean, sigma = mean_and_sigma(learned)
    return {
        "marginal": float(earth_mover(learned.mean(0), data.mean(0))),
        "score": score(learned),
        "score_constant": score(two_neighbours(np.array(training)).mean(0)),
        "mean_error": float(np.abs(mean - ratings).mean()),
        "sigma": float(sigma.mean()),
    }


def report(rows: list[dict], out: Path) -> str:
    """The section of the study: one line per variant, and claims."""
    found = by_variant(rows)
    columns = {"accuracy": 3, "calibration_error": 3, "marginal": 2, "score": 2}
    columns |= {"mean_error": 2, "sigma": 2}
    lines = [
        [name, str(len(own)), *(plain(values(own, c), digits) for c, digits in columns.items())]
        for name, own in found.items()
    ]
    header = ["loss", "seeds", "accuracy", "calibration error", "distance of the marginal"]
    header += ["ranked probability score", "error of the mean", "σ (mean)"]
    parts = [lab.table(header, lines)]
    if results := [row["result"] for row in rows]:
        parts.append(levels(results))
    return "\n\n".join([*parts, lab.table(HEADER, claims(found))])


def levels(results: list[dict]) -> str:
    """A paragraph: how many pairs, and the levels to compare with."""
    known = [one["score_constant"] for one in results if "score_constant" in one]
    first = results[0]
    text = f"{first['pairs/train']} pairs to learn from and {first['pairs/held_out']} held out: "
    text += "few, because the model has 256 positions, so only large differences can be seen. "
    text += f"“The longer answer wins” has an accuracy of {first['longer_wins']:.3f}. "
    if known:
        score = fmean(known)
        text += "The mean distribution of the training ratings, for every held-out answer, has a "
        text += f"score of {score:.2f}. "
    return text + (
        "Distance of the marginal: the earth mover's distance, in ratings, between the mean "
        "distribution of all held-out answers and that of their ratings. The ranked probability "
        "score is smaller for better distributions of single answers."
    )


def claims(found: dict) -> list[list[str]]:
    """Rows of the claim table."""
    of = lambda name: found.get(name, {})  # noqa: E731
    soft, what = "soft 1, width 0.5", "of strict minus half"
    return [
        claim_row(
            "half is better calibrated than strict",
            paired(of("strict"), of("half"), "calibration_error"),
            f"calibration error {what}",
        ),
        claim_row(
            "soft labels bring the marginal nearer to the data's than half alone",
            paired(of("half"), of(soft), "marginal"),
            "distance of half minus soft",
        ),
        claim_row(
            "soft labels bring single distributions nearer to the ratings than half alone",
            paired(of("half"), of(soft), "score"),
            "score of half minus soft",
        ),
        claim_row(
            "soft labels tell more than the same distribution for every answer",
            [own["score_constant"] - own["score"] for own in of(soft).values()],
            "score of the constant minus soft",
        ),
        claim_row(
            "the scalar head is more accurate than half",
            paired(of("scalar"), of("half"), "accuracy"),
            "accuracy of scalar minus half",
        ),
    ]


if __name__ == "__main__":
    folder()  # an answer before any process is started
    lab.main("ratings_real", settings, run, report)
