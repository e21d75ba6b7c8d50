"""Ours and the peer's in turn, each run in a process of its own: the ratio table of the README.

    python benchmarks/compare.py MODEL --peer-python .venv-peers/bin/python --peers ../shared/peers

MODEL is what the peers' make_shape.py wrote.  The peer's environment is separate; this project
never depends on it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
JOBS = {
    "policy step, 2 × 4 samples, 128 + 32 tokens": (
        "policy_step.py", "trl_policy_step.py",
        "--prompts 2 --samples 4 --prompt-tokens 128 --answer-tokens 32",
    ),
    "policy step, 2 × 8 samples, 256 + 64 tokens": (
        "policy_step.py", "trl_policy_step.py",
        "--prompts 2 --samples 8 --prompt-tokens 256 --answer-tokens 64",
    ),
    "reward step, 4 pairs, 128 + 64 tokens": (
        "reward_step.py", "trl_reward_step.py",
        "--pairs 4 --prompt-tokens 128 --answer-tokens 64",
    ),
}  # fmt: skip


def run(python: str, script: Path, model: str, flags: str) -> dict:
    command = [str(Path(python).absolute()), script.name, model, *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent)
    if done.returncode:
        raise SystemExit(f"{script} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side, in turn")
    parser.add_argument("--job", type=int, nargs="+", default=list(range(len(JOBS))))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    model = str(Path(args.model).resolve())
    print("| job | TRL | ours | faster | memory |\n|---|---|---|---|---|", flush=True)
    for name, (ours, theirs, flags) in [list(JOBS.items())[i] for i in args.job]:
        flags = f"{flags} --dtype {args.dtype}"
        both = {"ours": [], "theirs": []}
        for _ in range(args.rounds):
            both["theirs"].append(run(args.peer_python, Path(args.peers) / theirs, model, flags))
            both["ours"].append(run(sys.executable, HERE / ours, model, flags))
        seconds, memory = (
            {side: statistics.median(r[key] for r in runs) for side, runs in both.items()}
            for key in ("median_seconds", "peak_gb")
        )
        print(
            f"| {name} | {seconds['theirs']:.2f} s, {memory['theirs']:.1f} GB "
            f"| {seconds['ours']:.2f} s, {memory['ours']:.1f} GB "
            f"| {seconds['theirs'] / seconds['ours']:.1f} × "
            f"| {memory['ours'] / memory['theirs']:.2f} × |",
            flush=True,
        )


if __name__ == "__main__":
    main()
