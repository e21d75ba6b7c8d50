"""Which reading of a rating distribution is the best reward for a policy?

    python -m experiments.readings             # 14 settings, 3 seeds: about 20 minutes of one core

The reward models are those of experiments/ratings.py: scalar, plain half ties, and its `BEST`.
"""

from pathlib import Path

from experiments import lab, ratings, zoo_runs
from experiments.claims import HEADER, claim_row, paired, plain

WEIGHTS = ("inverse-sigma", "inverse-variance", "inverse-one-plus-sigma")
READINGS = {  # name → settings of train_policy.py
    "mean": {},
    "entropic b = 1": {"reading": "entropic", "entropic_b": 1.0},
    "entropic b = 2": {"reading": "entropic", "entropic_b": 2.0},
    "entropic b = 5": {"reading": "entropic", "entropic_b": 5.0},
    "win": {"reading": "win"},
    **{f"mean, weight {name}": {"weight": name} for name in WEIGHTS},
}
OF_HALF = ("mean", "entropic b = 2", "win", "mean, weight inverse-variance")
JOBS = [("scalar", name) for name in ("mean", "win")]
JOBS += [("half", name) for name in OF_HALF] + [(ratings.BEST, name) for name in READINGS]
NAMES = {  # column of the result → metric of summary.json
    "gold": "reward/gold",
    "kl": "kl/mean",
    "tokens": "length/mean",
    "finished": "finished/rate",
}


def settings(quick: bool) -> list[dict]:
    """Every reading for every seed (quick: two tiny policies)."""
    policy = {"steps": 2, "eval_prompts": 8, "ruler_prompts": 8} if quick else {}
    wanted = [("scalar", "mean"), (ratings.BEST, "entropic b = 2")] if quick else JOBS
    models = ratings.settings(quick)
    return [
        {"reward": model["variant"], "reading": name, "policy": policy | READINGS[name]}
        | {part: model[part] for part in ("seed", "start", "train")}
        for model in models
        for reward, name in wanted
        if model["variant"] == reward and model["seed"] < 3
    ]


def run(settings: dict) -> dict:
    """Held-out gold, KL, length and share of finished answers, before and after training."""
    seed = settings["seed"]
    start, reward = zoo_runs.start_model(seed, **settings["start"]), ratings.trained(settings)
    own = settings["policy"] | {"seed": seed}
    summary = zoo_runs.summary(zoo_runs.policy(start, reward, **own))
    result = {"gold_before": summary["before"]["reward/gold"]}
    return ratings.rounded(
        result | {name: summary["after"][metric] for name, metric in NAMES.items()}
    )


def by_reading(rows: list[dict]) -> dict[tuple[str, str], dict[int, dict]]:
    """Results by (reward model, reading) and seed, in the order of the rows."""
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for row in rows:
        one = row["settings"]
        found.setdefault((one["reward"], one["reading"]), {})[one["seed"]] = row["result"]
    return found


def gain_over(found: dict, first: tuple, second: tuple) -> list[float]:
    """Gold of the first (reward model, reading) minus that of the second, by seed."""
    return paired(found.get(first, {}), found.get(second, {}), "gold")


def report(rows: list[dict], out: Path) -> str:
    """The section of the study: a table of all settings, and claims."""
    found, lines = by_reading(rows), []
    for (reward, reading), own in found.items():
        columns = {name: [own[seed][name] for seed in sorted(own)] for name in NAMES}
        gain = gain_over(found, (reward, reading), (reward, "mean"))
        cells = [plain(columns["gold"], 2), "" if reading == "mean" else plain(gain, 2)]
        cells += [plain(columns[name], digits) for name, digits in (("kl", 2), ("tokens", 1))]
        lines.append([reward, reading, str(len(own)), *cells, plain(columns["finished"], 2)])
    header = ["reward model", "reading", "seeds", "gold", "gold minus that of mean", "KL (nats)"]
    header += ["tokens", "finished"]
    claims = [claim_row(*claim, digits=2) for claim in claims_of(found)]
    claim_table = lab.table(HEADER, claims)
    return "\n\n".join([lab.table(header, lines), COLUMNS, claim_table])


def claims_of(found: dict) -> list[tuple[str, list[float], str]]:
    """(claim, values that are above 0 if it holds, their name); claims without rows left out."""
    best, what, claims = ratings.BEST, "gold, this minus the other", []
    for reward in ("half", best):
        same = [name for model, name in JOBS if model == reward and name != "mean"]
        for name in same:
            values = gain_over(found, (reward, name), (reward, "mean"))
            claims.append((f"{reward}: {name} ends above the mean rating", values, what))
    for reward in ("half", best):
        values = gain_over(found, (reward, "mean"), ("scalar", "mean"))
        claims.append((f"{reward}, mean rating, ends above scalar", values, what))
    values = gain_over(found, (best, "mean"), ("half", "mean"))
    claims.append((f"{best} ends above half, both read by the mean", values, what))
    return [claim for claim in claims if claim[1]]


COLUMNS = (
    "Gold: mean true rating of answers to 256 held-out questions after 80 steps with a KL weight "
    "of 0.1. All rewards are standardised by the start model's answers, so the KL weight means the "
    "same for every reading; a weight also changes the size of the steps. KL: to the start model. "
    "Reading (`--reading`): how the head's output becomes a reward. Mean: the scalar, or the "
    "expected rating; entropic b: a pessimistic rating, lower for uncertain answers; win: the "
    "probability of winning against the start model's answer. Weight (`--weight`): uncertain "
    "answers count less in the gradient. Tokens: mean length; finished: share of answers with an "
    "end token."
)


if __name__ == "__main__":
    lab.main("readings", settings, run, report)
