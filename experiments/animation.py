"""The moving picture of the README: a reward model is hacked; judging and retraining cure it.

    python -m experiments.animation       # draws docs/figures/animation.gif from the recorded run
    rm experiments/rows/animation.jsonl   # before it: train and record again, 5 minutes

One run: a policy learns without a KL penalty and finds the reward model's errors; the gold judge
compares the start model's answers with its answers; the reward model is retrained on the verdicts,
and a new policy is trained from the start model.  The row keeps held-out metrics and a few answers,
at every few steps.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import judge
import train_policy
import train_rm
from experiments import animation_picture, lab, zoo_runs
from rlhf_min.data.files import read_json, read_jsonl
from rlhf_min.maths.reward_shaping import standardise
from rlhf_min.reporting import evaluation

QUESTION = 2  # of those kept: the one shown, because its answers go the way of the mean
ANSWERS = 8  # questions whose answers are kept: evenly spaced among those evaluated
FULL = {
    "seed": 0,
    "start": {},
    "reward_model": {},
    "hack": {"kl": 0.0, "steps": 100, "eval_every": 5, "eval_prompts": 128},
    "rounds": 1,
    "comparisons": 1900,
    "old": 2000,
    "retrain": {"lr": 1e-3, "epochs": 2.0},
    "cure": {"kl": 0.2, "lr": 5e-4, "steps": 60, "eval_every": 5, "eval_prompts": 128},
}
TINY = {
    "start": {"steps": 30, "examples": 600},
    "reward_model": {"limit": 64, "max_steps": 2, "eval_limit": 20},
    "hack": {"kl": 0.0, "steps": 2, "eval_every": 1, "eval_prompts": 8, "ruler_prompts": 8},
    "rounds": 1,
    "comparisons": 30,
    "old": 40,
    "retrain": {"max_steps": 2, "eval_limit": 20},
    "cure": {"kl": 0.2, "steps": 2, "eval_every": 1, "eval_prompts": 8, "ruler_prompts": 8},
}


def settings(quick: bool) -> list[dict]:
    """One run."""
    return [FULL | (TINY if quick else {})]


@contextmanager
def recorded() -> Iterator[list[tuple[dict, dict]]]:
    """Context manager: a list that gets (metrics, table of answers) of every evaluation inside.

    train_policy.py keeps the answers before and after training only.
    """
    original, evaluations = evaluation.evaluate_policy, []

    def evaluate(*args, **named):
        evaluations.append(original(*args, **named))
        return evaluations[-1]

    evaluation.evaluate_policy = evaluate
    try:
        yield evaluations
    finally:
        evaluation.evaluate_policy = original


def trained(start: Path, model: Path, reward: Path, seed: int, **more) -> tuple[Path, list[dict]]:
    """A policy trained from `model` against `reward`, and one frame for each of its evaluations.

    start: the reference model; more: settings of train_policy.py.
    """
    folders = {"model": str(model), "reference": str(start), "reward_model": str(reward)}

    def build(folder: Path) -> None:
        with recorded() as evaluations:
            train_policy.main(train_policy.Config(out=str(folder), seed=seed, **folders, **more))
        evaluations = evaluations[: 1 + more["steps"] // more["eval_every"]]  # not the last twice
        frames = frames_of(evaluations, more["eval_every"], read_json(folder / "run.json"))
        text = "".join(json.dumps(frame, ensure_ascii=False) + "\n" for frame in frames)
        (folder / "frames.jsonl").write_text(text, "utf-8")

    name = {"model": model.name, "reward": reward.name, "seed": seed, **more}
    folder = zoo_runs.built("recorded-policy", name, build)
    return folder, read_jsonl(folder / "frames.jsonl")


def frames_of(evaluations: list[tuple[dict, dict]], every: int, run: dict) -> list[dict]:
    """Frames: step, mean gold rating, mean learned reward (standardised), KL, and answers.

    An answer is [text, gold rating, learned reward].  run: run.json with the reward's scale.
    """
    scale, frames = run["data"]["reward_scale"], []
    for number, (metrics, table) in enumerate(evaluations):
        kept = range(0, len(table["prompt"]), max(1, len(table["prompt"]) // ANSWERS))
        rewards = [standardise(table["reward"][i], **scale) for i in kept]
        golds = [table["gold"][i] for i in kept]
        answers = zip([table["answer"][i] for i in kept], golds, rewards, strict=True)
        frames.append(
            {
                "step": number * every,
                "gold": round(metrics["reward/gold"], 3),
                "reward": round(standardise(metrics["reward/mean"], **scale), 3),
                "kl": round(metrics["kl/mean"], 2),
                "prompts": [table["prompt"][i] for i in kept] if number == 0 else [],
                "answers": [[text, round(g, 1), round(r, 2)] for text, g, r in answers],
            }
        )
    return frames


def judged(a: Path, b: Path, count: int, seed: int) -> Path:
    """The folder of a run of judge.py: the gold judge on answers of two policies."""

    def build(folder: Path) -> None:
        judge.main(judge.Config(a=str(a), b=str(b), limit=count, seed=seed, out=str(folder)))

    return zoo_runs.built("judged", {"a": a.name, "b": b.name, "count": count, "seed": seed}, build)


def run(settings: dict) -> dict:
    """The frames of all phases, and of each round an example of the judge's verdicts."""
    seed = settings["seed"]
    start = zoo_runs.start_model(seed, **settings["start"])
    reward = zoo_runs.reward_model(start, seed=seed, **settings["reward_model"])
    policy, frames = trained(start, start, reward, seed, **settings["hack"])
    result, files = {"hack": frames, "rounds": []}, []
    for number in range(1, settings["rounds"] + 1):
        # First against the start model: a hacked policy's own answers are all equally bad.
        rival = start if number == 1 else policy
        folder = judged(rival, policy, settings["comparisons"], 100 * seed + number)
        files.append(str(folder / "comparisons.jsonl"))
        reward = retrained(reward, files, settings, 100 * seed + number)
        # A hacked policy hardly finds back (docs/LOG.md): the first round trains a new one.
        model = start if number == 1 else policy
        policy, frames = trained(start, model, reward, 100 * seed + number, **settings["cure"])
        pairs = read_jsonl(folder / "comparisons.jsonl")
        pair = {name: pairs[0][name] for name in ("prompt", "chosen", "rejected")}
        result["rounds"].append({"comparisons": len(pairs), "example": pair, "frames": frames})
    return result


def retrained(reward: Path, files: list[str], settings: dict, seed: int) -> Path:
    """The reward model trained on: original pairs and the verdicts of all rounds so far."""
    more = {"data": ["zoo", *files], "limit": settings["old"], "seed": seed, **settings["retrain"]}

    def build(folder: Path) -> None:
        train_rm.main(train_rm.Config(model=str(reward), out=str(folder), **more))

    name = {"model": reward.name, **more, "data": [Path(file).parent.name for file in files]}
    return zoo_runs.built("retrained", name, build)


def report(rows: list[dict], out: Path) -> str:
    """The GIF, and what it shows as a table: for readers who cannot see it, and for checks."""
    if not rows:
        return "No run yet."
    row = rows[0]
    result, data = row["result"], animation_picture.curves(row["result"])
    path = out / "animation.gif"
    animation_picture.save(result, QUESTION, path)
    text = [f"Seed {row['settings']['seed']}, commit {row['commit']}."]
    text.append(f"Question: {result['hack'][0]['prompts'][QUESTION]}")
    moments = [(result["hack"], 0, "start model"), (result["hack"], data.peak, "1. best gold")]
    moments.append((result["hack"], -1, "2. reward hacked"))
    for number, part in enumerate(result["rounds"], 1):
        name = f"3. judged and retrained, round {number}: {part['comparisons']} verdicts"
        moments.append((part["frames"], -1, name))
    lines = []
    for frames, index, name in moments:
        frame = frames[index]
        answer, gold, _ = frame["answers"][QUESTION]
        numbers = [str(frame["step"]), f"{frame['gold']:.2f}", f"{frame['reward']:.2f}"]
        lines.append([name, *numbers, answer.replace("|", "\\|").replace("\n", " "), f"{gold:.1f}"])
    header = ["moment", "step of the run", "gold (mean of held-out questions)", "learned reward"]
    text.append(lab.table([*header, "answer to the question", "its gold"], lines))
    return "\n\n".join(text)


if __name__ == "__main__":
    lab.main("animation", settings, run, report)
