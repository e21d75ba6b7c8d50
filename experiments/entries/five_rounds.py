"""recipes/loop.py with five rounds of 1140 comparisons: as many asked for as in three of 1900."""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import sys
from pathlib import Path

from rlhf_min.defaults import run_script
from rlhf_min.zoo.start_model import build_base

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))  # loop.py imports its neighbour
seed, out = sys.argv[1], Path(sys.argv[2])

start, reward = str(out / "start"), str(out / "rm")
build_base(start, seed=int(seed))
run_script(ROOT / "train_rm.py", "--model", start, "--out", reward, "--seed", seed)
models = ["--start", start, "--reward-model", reward]
rounds = ["--rounds", "5", "--comparisons", "1140"]
run_script(ROOT / "recipes/loop.py", *models, *rounds, "--out", str(out / "loop"), "--seed", seed)
(out / "loop/policy-5").rename(out / "policy")
