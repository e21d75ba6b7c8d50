"""Shared by the benchmarks: flags (those of the TRL scripts), timing, one JSON line of results."""

import argparse
import json
import random
import resource
import statistics
import string
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # train_policy.py and rlhf_min

from rlhf_min.hardware.device import keep_freed_memory

FACTORS = (1, 2, 4, 8)
CURVES = ("median_seconds", "peak_gb", "gpu_peak_gb", "step_gb", "step_seconds")


def arguments(docstring: str, **defaults: int) -> argparse.Namespace:
    """Parse `model`, --dtype, --threads, --steps, --grow and one flag for each of the defaults."""
    parser = argparse.ArgumentParser(description=docstring.split("\n")[0], allow_abbrev=False)
    parser.add_argument("model")
    for name, value in ({"steps": 6} | defaults).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grow", choices=[k for k, v in defaults.items() if type(v) is int])
    args = parser.parse_args()
    keep_freed_memory()  # as in every script
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def curve(args: argparse.Namespace) -> dict[str, list]:
    """The results of the running script for 1×, 2×, 4×, 8× `args.grow`, each in its own process."""
    results = []
    for factor in FACTORS:
        settings = vars(args) | {args.grow: factor * vars(args)[args.grow], "grow": None}
        model = settings.pop("model")
        flags = [
            word
            for name, value in settings.items()
            if value is not None
            for word in ("--" + name.replace("_", "-"), str(value))
        ]
        done = subprocess.run([sys.executable, sys.argv[0], model, *flags], capture_output=True)
        if done.returncode:
            raise SystemExit(done.stderr.decode())
        results.append(json.loads(done.stdout))
    return {k: [result[k] for result in results] for k in results[0] if k in CURVES}


def report_curve(args: argparse.Namespace) -> None:
    """Print one JSON line: the settings and the results of `curve`."""
    print(json.dumps(vars(args) | {"factors": FACTORS} | curve(args)))


def random_texts(count: int, letters: int) -> list[str]:
    """Texts of random letters: a byte-level tokenizer gives one token per letter."""
    rng = random.Random(0)
    return ["".join(rng.choices(string.ascii_lowercase, k=letters)) for _ in range(count)]


def now() -> float:
    """Time in seconds, after waiting for the GPU to finish its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(step, count: int) -> list[float]:
    """Seconds of each of `count` calls of step(number)."""
    seconds = []
    for number in range(count):
        begin = now()
        step(number)
        seconds.append(now() - begin)
    return seconds


def peak_gb() -> float:
    """Peak memory so far in GB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def report(args: argparse.Namespace, seconds: list[float], **more) -> None:
    """Print one JSON line: settings, seconds, their median without the first two, peak memory."""
    steady = seconds[2:] or seconds
    numbers = {
        "seconds": [round(s, 3) for s in seconds],
        "median_seconds": round(statistics.median(steady), 3),
        # of the process even on a GPU, as in TRL's scripts
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    if torch.cuda.is_available():
        numbers["gpu_peak_gb"] = round(peak_gb(), 2)
    print(json.dumps({**vars(args), **numbers, **more}))
