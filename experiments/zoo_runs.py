"""Start models, reward models and policies of the zoo, built once by their settings and kept.

They lie in runs/lab (or in the folder that the environment variable RLHF_MIN_LAB names), in folders
named by a digest of their settings.  Several processes may ask for the same one at once.
"""

import fcntl
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import train_policy
import train_rm
from rlhf_min.data.files import read_json
from rlhf_min.reporting import report
from rlhf_min.zoo import start_model as zoo_start_model
from rlhf_min.zoo import world


def lab() -> Path:
    """The folder of everything that studies build."""
    return Path(os.environ.get("RLHF_MIN_LAB", "runs/lab"))


def built(kind: str, settings: dict, build: Callable[[Path], None]) -> Path:
    """The folder KIND-DIGEST of these settings; `build(folder)` makes it if it is not there yet."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    folder = lab() / f"{kind}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building it: wait for it
        done = folder / "settings.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            build(folder)
            done.write_text(json.dumps(settings, sort_keys=True, indent=1) + "\n", "utf-8")
    return folder


@contextmanager
def without_reports():
    """Context manager: runs write no report.html and no pictures, which take seconds each."""
    with patch.object(report, "write_report", lambda folder: None):
        yield


def start_model(seed: int, **settings) -> Path:
    """The start model of a seed; settings: of `build_base` (steps, examples)."""
    build = lambda folder: zoo_start_model.build_base(folder, seed=seed, **settings)  # noqa: E731
    return built("start", {"seed": seed, **settings}, build)


def reward_model(start: Path, **settings) -> Path:
    """A reward model trained from `start`; settings: of train_rm.py, by the names of its Config."""

    config = train_rm.Config(**settings)

    def build(folder: Path) -> None:
        with without_reports():
            train_rm.main(replace(config, model=str(start), out=str(folder)))

    # With the defaults: a folder is not used again if one of them has changed.
    return built("rm", {**asdict(config), "model": start.name}, build)


def policy(start: Path, reward: Path | list[Path], **settings) -> Path:
    """A policy trained from `start` against `reward`, one folder or the members of an ensemble.

    settings: of train_policy.py, by the names of its Config.
    """
    members = reward if isinstance(reward, list) else [reward]
    paths = [str(member) for member in members]
    folders = {"model": str(start), "reward_model": paths if len(paths) > 1 else paths[0]}
    config = train_policy.Config(**settings)

    def build(folder: Path) -> None:
        with without_reports():
            train_policy.main(replace(config, out=str(folder), **folders))

    names = [member.name for member in members]
    own = {**asdict(config), "model": start.name, "reward_model": names}
    return built("policy", own, build)


def summary(folder: Path) -> dict:
    """summary.json of a finished run."""
    return read_json(folder / "summary.json")


def held_out_scores(folder: Path) -> list[dict]:
    """The rows of held_out_scores.jsonl of a reward model, one per held-out pair."""
    lines = (folder / "held_out_scores.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def metrics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl of a run, one per step."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def gold_pairs(count: int, seed: int) -> Path:
    """A file of `count` pairs of random answers that the gold rating itself orders, without noise.

    The answers are drawn as those of the zoo's annotated pairs; pairs of equal rating are left out.
    """

    def build(folder: Path) -> None:
        rng, rows = random.Random(f"gold pairs {seed}"), []
        questions = world.prompts("train")
        while len(rows) < count:
            prompt = rng.choice(questions)
            answers = [world.random_answer(prompt, rng) for _ in range(2)]
            rated = sorted((world.gold_rating(prompt, answer), answer) for answer in answers)
            if rated[0][0] < rated[1][0]:
                rows.append({"prompt": prompt, "chosen": rated[1][1], "rejected": rated[0][1]})
        folder.mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "pairs.jsonl").write_text(text, "utf-8")

    return built("gold-pairs", {"count": count, "seed": seed}, build) / "pairs.jsonl"


def binned(rows: list[dict], name: str, width: int, digits: int = 4) -> list[float]:
    """The means of `width` consecutive steps of a metric in `metrics`, rounded."""
    values = [row[name] for row in rows]
    groups = [values[i : i + width] for i in range(0, len(values), width)]
    return [round(sum(group) / len(group), digits) for group in groups]
