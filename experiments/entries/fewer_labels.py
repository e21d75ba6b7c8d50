"""As few_labels.py, but each round draws its old pairs from the same 3 000."""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rlhf_min.data.preferences import read_pairs
from rlhf_min.defaults import run_script
from rlhf_min.zoo.start_model import build_base

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))  # loop.py imports its neighbour
seed, out = sys.argv[1], Path(sys.argv[2])

start, reward, file = (str(out / name) for name in ("start", "rm", "pairs.jsonl"))
build_base(start, seed=int(seed))
pairs, _ = read_pairs(["zoo"], limit=3000, seed=int(seed))
Path(file).write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
few = ["--data", file, "--eval-data", "zoo:held-out", "--epochs", "16", "--lr", "1e-3"]
run_script(ROOT / "train_rm.py", "--model", start, "--out", reward, "--seed", seed, *few)
flags = ["--start", start, "--reward-model", reward, "--comparisons", "1000", "--pairs", file]
flags += ["--out", str(out / "loop"), "--seed", seed]
run_script(ROOT / "recipes/loop.py", *flags)
(out / "loop/policy-3").rename(out / "policy")
