"""Seconds of a training step by one and by two processes of one thread, and what they exchange.

    python benchmarks/devices.py                    # the zoo: train_rm.py, then train_policy.py
    python benchmarks/devices.py --model SHAPE      # another language model, on random texts

The runs alternate; medians of the seconds in metrics.jsonl, without the first two steps.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timing

ROOT = Path(__file__).parents[1]


def run(script: str, processes: int, out: Path, flags: list[str]) -> tuple[float, str]:
    """Median seconds of a step, and the sentence about what was exchanged ("" for one process)."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launcher, ROOT / script, "--out", out, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][2:]
    seconds = [sum(v for k, v in row.items() if k.startswith("time/")) for row in rows]
    return statistics.median(seconds), "".join(re.findall(r"exchanged .*", done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="runs/zoo-base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        common = ["--model", args.model, "--dtype", args.dtype, "--save-every", "100000"]
        if args.model != "runs/zoo-base":
            texts = timing.random_texts(400, 128)
            rows = zip(texts[::4], texts[1::4], texts[2::4], strict=True)
            names = "prompt", "chosen", "rejected"
            data = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
            (Path(place) / "texts.jsonl").write_text("\n".join(data))
            common += ["--data", f"{place}/texts.jsonl"]
        few = ["--eval-prompts", "8", "--ruler-prompts", "8"]
        jobs = {"train_rm.py": ["--max-steps", str(args.steps), "--eval-limit", "8"]}
        jobs["train_policy.py"] = ["--steps", str(args.steps), *few]
        if args.model != "runs/zoo-base":
            jobs["train_rm.py"] += ["--batch-size", "8", "--micro-batch", "4", "--lr", "1e-6"]
            jobs["train_policy.py"] += ["--batch-size", "8", "--micro-batch", "2", "--lr", "1e-6"]
            jobs["train_policy.py"] += ["--reward-model", f"{place}/train_rm.py-0-1"]
        for script, flags in jobs.items():
            seconds, sent = {1: [], 2: []}, ""
            for number in range(args.rounds):
                for processes in (1, 2):
                    out = Path(place) / f"{script}-{number}-{processes}"
                    time, said = run(script, processes, out, [*common, *flags])
                    seconds[processes].append(round(time, 3))
                    sent = said or sent
            one, two = (statistics.median(seconds[n]) for n in (1, 2))
            print(f"{script}: {one} s and {two} s ({one / two:.2f} times as fast); {sent}", seconds)


if __name__ == "__main__":
    main()
