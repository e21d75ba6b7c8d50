"""A ratings head that learns the annotators' ratings too, from 5 000 pairs."""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import sys
from pathlib import Path

from rlhf_min.defaults import run_script
from rlhf_min.zoo.start_model import build_base

ROOT = Path(__file__).resolve().parents[2]
seed, out = sys.argv[1], Path(sys.argv[2])

start, reward = str(out / "start"), str(out / "rm")
build_base(start, seed=int(seed))
few = ["--limit", "5000", "--head", "ratings", "--earth-mover", "1", "--label-width", "0.5"]
run_script(ROOT / "train_rm.py", "--model", start, "--out", reward, "--seed", seed, *few)
models = ["--model", start, "--reward-model", reward]
run_script(ROOT / "train_policy.py", *models, "--out", str(out / "policy"), "--seed", seed)
