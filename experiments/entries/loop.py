"""recipes/loop.py with its default settings: three rounds of 1900 comparisons and retraining."""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import sys
from pathlib import Path

from rlhf_min.defaults import run_script
from rlhf_min.zoo.start_model import build_base

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))  # loop.py imports its neighbour
seed, out = sys.argv[1], Path(sys.argv[2])

start = str(out / "start")
build_base(start, seed=int(seed))
flags = ["--start", start, "--out", str(out / "loop"), "--seed", seed]
run_script(ROOT / "recipes/loop.py", *flags)
(out / "loop/policy-3").rename(out / "policy")
