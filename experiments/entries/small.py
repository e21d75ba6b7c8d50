"""The default trainings of a model 64 numbers wide instead of 96, with short evaluations."""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import sys
from pathlib import Path

from rlhf_min.defaults import run_script
from rlhf_min.zoo.start_model import build_base

ROOT = Path(__file__).resolve().parents[2]
seed, out = sys.argv[1], Path(sys.argv[2])

start, reward = str(out / "start"), str(out / "rm")
build_base(start, seed=int(seed), hidden=64)
short = ["--eval-every", "10000", "--eval-limit", "50", "--save-every", "10000"]
run_script(ROOT / "train_rm.py", "--model", start, "--out", reward, "--seed", seed, *short)
models = ["--model", start, "--reward-model", reward]
short = ["--eval-prompts", "64", "--save-every", "10000"]  # the leaderboard evaluates by itself
run_script(ROOT / "train_policy.py", *models, *short, "--out", str(out / "policy"), "--seed", seed)
