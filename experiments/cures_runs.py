"""Runs of the study of cures: which policies are trained, and on which reward models."""

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev

from experiments import lab, zoo_runs
from rlhf_min.data.files import read_json, read_jsonl
from rlhf_min.judging.judges import reward_model_judge

ROUNDS, JUDGED = 3, 1900  # of the loop: rounds, comparisons of each
MEMBERS = 3  # of an ensemble
MORE = "5 700 more pairs"  # as many as the loop judges, also ordered by the gold rating
# name → (kind of reward model, settings of the reward model, settings of the policy)
CURES = {
    "none": ("one", {}, {}),
    "ensemble, mean": ("ensemble", {}, {"ensemble": "mean"}),
    "ensemble, min": ("ensemble", {}, {"ensemble": "min"}),
    "ensemble, uncertainty": ("ensemble", {}, {"ensemble": "uncertainty"}),
    "ensemble of own start models, min": ("own starts", {}, {"ensemble": "min"}),
    "averaged weights (WARM)": ("average", {}, {}),
    "batch sum instead of centring": ("one", {"centring": 0.0, "batch_sum": 0.01}, {}),
    "ratings head, mean": ("one", {"head": "ratings"}, {}),
    "ratings head, entropic b = 2": ("one", {"head": "ratings"}, {"reading": "entropic"}),
    "ratings head, win probability": ("one", {"head": "ratings"}, {"reading": "win"}),
    "ratings head, inverse variance": ("one", {"head": "ratings"}, {"weight": "inverse-variance"}),
    MORE: ("more pairs", {}, {}),
}
PENALTIES = (0.0, 0.1)  # the second is the default of train_policy.py
SIX_EPOCHS = {"epochs": 6.0, "lr": 1e-3}  # settings of train_rm.py
LOOP, FINER, LONGER = (
    f"judging and retraining, {n}"
    for n in ("3 × 1900", "5 × 1140", "3 × 1900, first reward model of 6 epochs")
)
# name → rounds, comparisons of each, settings of the first reward model
LOOPS = {LOOP: (ROUNDS, JUDGED, {}), FINER: (5, 1140, {}), LONGER: (ROUNDS, JUDGED, SIX_EPOCHS)}
LOOP_STEPS, LOOP_KL, LOOP_RATE = 60, 0.2, 5e-4  # of recipes/loop.py
QUICK = {"start": {"steps": 30, "examples": 960}, "rm": {"max_steps": 3, "eval_limit": 20}}
QUICK["policy"] = {"steps": 2, "eval_prompts": 8, "ruler_prompts": 16, "eval_every": 1}
QUICK["policy"] |= {"batch_size": 16}


def settings(quick: bool) -> list[dict]:
    """Every cure with and without a KL penalty, the penalty alone, and the loop."""
    runs = []
    for seed in range(1 if quick else 5):
        common = {"seed": seed, "quick": quick}
        names = ["none", "ensemble, min", "averaged weights (WARM)"] if quick else CURES
        for kl in PENALTIES:
            runs += [{"cure": name, "kl": kl, **common} for name in names]
        if not quick:
            runs += [{"cure": "none", "kl": kl, **common} for kl in (0.05, 0.2, 0.4)]
            # As many steps and comparisons as a loop has, but all comparisons at the start.
            for like in (LOOP, LONGER):
                runs.append({"cure": MORE, "kl": LOOP_KL, "like": like, **common})
            runs += [{"cure": name, "kl": LOOP_KL, **common} for name in LOOPS]
    return runs


def reward_models(kind: str, start: Path, seed: int, quick: bool, own: dict) -> list[Path]:
    """The folders of the reward models of a cure (one, or the members of an ensemble)."""
    flags = {"seed": seed, **(QUICK["rm"] if quick else {}), **own}
    if kind == "more pairs":  # beside the zoo's own 10 000
        more = str(zoo_runs.gold_pairs(ROUNDS * JUDGED, seed))
        flags |= {"data": ["zoo", more], "eval_data": ["zoo:held-out"]}
    if kind in ("one", "more pairs"):
        return [zoo_runs.reward_model(start, **flags)]
    starts, build = [start] * MEMBERS, QUICK["start"] if quick else {}
    if kind == "own starts":
        others = range(100 * (seed + 1), 100 * (seed + 1) + MEMBERS - 1)
        starts = [start, *(zoo_runs.start_model(other, **build) for other in others)]
    seeds = [seed, *range(100 * (seed + 1), 100 * (seed + 1) + MEMBERS - 1)]
    members = [
        zoo_runs.reward_model(base, **{**flags, "seed": number})
        for base, number in zip(starts, seeds, strict=True)
    ]
    if kind != "average":
        return members

    def average(folder: Path) -> None:
        command = [sys.executable, "-m", "rlhf_min.average", *map(str, members)]
        subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)

    return [zoo_runs.built("average", {"members": [m.name for m in members]}, average)]


def run(one: dict) -> dict:
    """Train one policy; held-out gold and KL along the run and at its end."""
    seed, quick = one["seed"], one["quick"]
    start = zoo_runs.start_model(seed, **(QUICK["start"] if quick else {}))
    if one["cure"] in LOOPS:
        return run_loop(start, seed, one["cure"])
    kind, reward, policy = CURES[one["cure"]]
    if "like" in one:
        reward = reward | LOOPS[one["like"]][2]
    models = reward_models(kind, start, seed, quick, reward)
    flags = {"seed": seed, "kl": one["kl"], **policy}
    flags |= QUICK["policy"] if quick else {"eval_every": 8 if one["kl"] == 0 else 0}
    if "like" in one:
        flags |= {"steps": (ROUNDS + 1) * LOOP_STEPS, "lr": LOOP_RATE, "eval_every": LOOP_STEPS}
    folder = zoo_runs.policy(start, models, **flags)
    held_out = [m for m in zoo_runs.metrics(folder) if "held_out/reward/gold" in m]
    summary = zoo_runs.summary(folder)
    ends = [summary["before"], summary["after"]]
    points = [[0.0, ends[0]["reward/gold"]]]
    points += [[m["held_out/kl/mean"], m["held_out/reward/gold"]] for m in held_out]
    result = {"gold": ends[1]["reward/gold"], "kl": ends[1]["kl/mean"]}
    if accuracies := [zoo_runs.summary(m)["accuracy"] for m in models if _trained(m)]:
        result["accuracy"] = fmean(accuracies)
    shutil.rmtree(folder)  # the row is all that is kept of it
    return _rounded(result | {"curve": points})


def _trained(folder: Path) -> bool:
    """Whether a folder holds a training run, not averaged weights."""
    return (folder / "summary.json").exists()


def loop_folder(start: Path, seed: int, name: str) -> Path:
    """The folder of one of `LOOPS`: recipes/loop.py with its other settings, run if need be."""
    rounds, comparisons, first = LOOPS[name]
    reward = zoo_runs.reward_model(start, seed=seed, **first)
    flags = {"seed": seed, "rounds": rounds, "comparisons": comparisons}

    def loop(folder: Path) -> None:
        command = [sys.executable, lab.ROOT / "recipes/loop.py", "--out", folder]
        command += ["--start", start, "--reward-model", reward]
        command += [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)

    return zoo_runs.built("loop", {"start": start.name, "reward": reward.name, **flags}, loop)


def run_loop(start: Path, seed: int, name: str) -> dict:
    """Gold and KL of each policy of one of `LOOPS`, its comparisons and its predicted gains."""
    rounds, out = LOOPS[name][0], loop_folder(start, seed, name)
    reward = Path(read_json(out / "loop.json")["reward_model"])
    ends = [read_json(out / f"policy-{n}/summary.json")["after"] for n in range(rounds + 1)]
    points = [[end["kl/mean"], end["reward/gold"]] for end in ends]
    judged = [read_json(out / f"judge-{n}/summary.json") for n in range(1, rounds + 1)]
    begins = [read_json(out / f"policy-{n}/summary.json")["before"] for n in range(rounds + 1)]
    models = [reward, *(out / f"rm-{n}" for n in range(1, rounds + 1))]
    answers = read_jsonl(out / "policy-0/samples.jsonl")
    gains = [
        (end["reward/mean"] - begin["reward/mean"]) * ratings_per_reward(model, answers)
        for begin, end, model in zip(begins, ends, models, strict=True)
    ]
    last = ends[-1]
    result = {"gold": last["reward/gold"], "kl": last["kl/mean"], "curve": points}
    result |= {"comparisons": [j["comparisons"] for j in judged], "predicted": gains}
    return _rounded(result)


def ratings_per_reward(model: Path, answers: list[dict]) -> float:
    """Standard deviation of the gold ratings of the start model's answers over that of the rewards.

    model: folder of a reward model; answers: rows of samples.jsonl of the first policy.
    """
    scores = reward_model_judge(str(model)).scores
    rewards = [scores(row["prompt"], [row["before"]])[0] for row in answers]
    return pstdev(row["before_gold"] for row in answers) / pstdev(rewards)


def _rounded(result: dict) -> dict:
    """The same numbers with four decimals; lists of pairs too."""
    short = lambda x: [short(y) for y in x] if isinstance(x, list) else round(x, 4)  # noqa: E731
    return {name: short(value) for name, value in result.items()}
