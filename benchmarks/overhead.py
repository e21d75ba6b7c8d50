"""Seconds of a run outside its steps: evaluation, checkpoints, report, reading data and models.

    python -m benchmarks.overhead train_rm.py
    python -m benchmarks.overhead train_policy.py --eval-every 15

Runs the script in this process with these flags, and prints each part and its share of the run.
The imports are over before the time starts; --out is a temporary folder.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from unittest import mock

import train_policy
import train_rm
from rlhf_min.command_line import parse
from rlhf_min.data.files import read_jsonl
from rlhf_min.reporting import evaluation, report, run_folder

SCRIPTS = {"train_rm.py": train_rm, "train_policy.py": train_policy}
PARTS = {  # part → (where it is looked up, name of the function) of each call that belongs to it
    "evaluation": [
        (evaluation, "evaluate_reward_model"),
        (evaluation, "evaluate_policy"),
        (evaluation, "reference_scales"),
    ],
    "checkpoints": [(run_folder.RunLog, "checkpoint")],
    "report and plots": [(report, "write_report")],
    "reading the data": [
        (train_rm, "read_pairs"),
        (train_rm.preferences, "encode_pairs"),
        (train_policy, "split_prompts"),
        (train_policy, "encode_prompts"),
    ],
    "loading the models": [
        (train_rm, "new_reward_model"),
        (train_policy.loading, "load_policy"),
        (train_policy, "make_scorer"),
    ],
    "saving the model": [(train_rm.loading, "save_model")],
}


def timed(function, seconds: Counter, part: str):
    """The function; its seconds are added to seconds[part]."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - begin

    return wrapper


def measure(script, flags: list[str]) -> tuple[Counter, int]:
    """Seconds of each part, "steps" and "rest" among them, and the number of steps."""
    seconds: Counter = Counter()
    with tempfile.TemporaryDirectory() as out, ExitStack() as patches:
        for part, places in PARTS.items():
            for owner, name in places:
                function = timed(getattr(owner, name), seconds, part)
                patches.enter_context(mock.patch.object(owner, name, function))
        config = parse(script.Config, [*flags, "--out", str(Path(out) / "run")])
        begin = time.perf_counter()
        script.main(config)
        whole = time.perf_counter() - begin
        rows = read_jsonl(Path(out) / "run/metrics.jsonl")
    steps = [value for row in rows for key, value in row.items() if key.startswith("time/")]
    seconds["steps"] = sum(steps)
    seconds["rest"] = whole - seconds.total()
    return seconds, len(rows)


def main() -> None:
    if not sys.argv[1:] or sys.argv[1] not in SCRIPTS:
        raise SystemExit(f"usage: python -m benchmarks.overhead {'|'.join(SCRIPTS)} [its flags]")
    seconds, steps = measure(SCRIPTS[sys.argv[1]], sys.argv[2:])
    whole = seconds.total()
    print(f"\n| {' '.join(sys.argv[1:])}: {steps} steps | seconds | share |\n|---|---|---|")
    for part, own in seconds.most_common():
        print(f"| {part} | {own:.2f} | {own / whole:.0%} |")
    print(f"| whole | {whole:.2f} | |")


if __name__ == "__main__":
    main()
