"""As few_labels.py, but the loop retrains on the judged pairs alone: 3 000 pairs in all."""

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
few = ["--limit", "3000", "--epochs", "16", "--lr", "1e-3"]
run_script(ROOT / "train_rm.py", "--model", start, "--out", reward, "--seed", seed, *few)
flags = ["--start", start, "--reward-model", reward, "--comparisons", "1000", "--old", "0"]
flags += ["--out", str(out / "loop"), "--seed", seed]
run_script(ROOT / "recipes/loop.py", *flags)
(out / "loop/policy-3").rename(out / "policy")
