"""Compare time and memory with TRL: the table of docs/RESULTS.md, each run in its own process.

    python benchmarks/compare.py MODEL --peer-python .venv-peers/bin/python --peers ../shared/peers

MODEL is a folder written by make_shape.py of the peers.  TRL runs in its own environment; this
project never depends on it.  With --data FILE and --tokenizer DIR both sides also train a reward
model of MODEL's shape on the first pairs of the file, those that fit in 1024 tokens.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timing  # noqa: F401 (puts rlhf_min on the path)
from transformers import AutoTokenizer

from rlhf_min.data import preferences as data

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
    """Run a benchmark script with this interpreter; returns the JSON object in its last line."""
    command = [str(Path(python).absolute()), script.name, model, *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent)
    if done.returncode:
        raise SystemExit(f"{script} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def real_pairs(folder: Path, model: str, tokenizer: str, file: str, count: int) -> str:
    """Write a reward model with a real tokenizer, and the pairs that both sides train on.

    Returns the title of the table's row.
    """
    shutil.copytree(model + "-rm", folder / "m-rm")
    real_tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    for name in ("m", "m-rm"):
        real_tokenizer.save_pretrained(folder / name)
    length = lambda text: len(real_tokenizer(text).input_ids)  # noqa: E731
    first = data.read_pairs([file])[0][:count]
    fitting = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in first
        if length(pair.prompt) + max(length(pair.chosen), length(pair.rejected)) + 2 <= 1024
    ]
    for name, rows in (("train", fitting), ("test", fitting[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"reward training, first {count} pairs of {Path(file).parent.name} ({len(fitting)} fit)"


def compare_pairs(args) -> None:
    """Print the row for one epoch over real pairs, four per step; times are sums of all steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        title = real_pairs(folder, args.model, args.tokenizer, args.data, args.real_pairs)
        model, train = folder / "m", folder / "train.jsonl"
        both = "--pairs 4 --max-length 1024 --dtype " + args.dtype
        theirs = run(
            args.peer_python, Path(args.peers) / "trl_reward_data.py", f"{model}-rm",
            f"{train} {folder / 'test.jsonl'} --epochs 1 --prompt-characters 1000000 {both}",
        )  # fmt: skip
        ours = run(sys.executable, HERE / "reward_step.py", str(model), f"--data {train} {both}")
    print(row(title, *(
        {"median_seconds": sum(side["seconds"]), "peak_gb": side["peak_gb"]}
        for side in (theirs, ours)
    )), flush=True)  # fmt: skip


def row(title: str, theirs: dict, ours: dict) -> str:
    """A row of the table, with the ratios of times and of memory."""
    seconds, memory = ([side[k] for side in (theirs, ours)] for k in ("median_seconds", "peak_gb"))
    cells = [f"{s:.2f} s, {m:.1f} GB" for s, m in zip(seconds, memory, strict=True)]
    ratios = [f"{seconds[0] / seconds[1]:.1f} ×", f"{memory[1] / memory[0]:.2f} ×"]
    return f"| {' | '.join([title, *cells, *ratios])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, alternating")
    parser.add_argument("--job", type=int, nargs="*", default=list(range(len(JOBS))))
    parser.add_argument("--data", help="pairs with real lengths: ../shared/data/ultrafeedback/…")
    parser.add_argument("--real-pairs", type=int, default=128, help="first pairs of --data")
    parser.add_argument("--tokenizer", help="folder of a real tokenizer, for --data")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    args.model = model = str(Path(args.model).resolve())
    print("| job | TRL | ours | faster | memory |\n|---|---|---|---|---|", flush=True)
    for name, (ours, theirs, flags) in [list(JOBS.items())[i] for i in args.job]:
        flags = f"{flags} --dtype {args.dtype}"
        both = {"ours": [], "theirs": []}
        for _ in range(args.rounds):
            both["theirs"].append(run(args.peer_python, Path(args.peers) / theirs, model, flags))
            both["ours"].append(run(sys.executable, HERE / ours, model, flags))
        medians = {
            side: {k: statistics.median(r[k] for r in runs) for k in ("median_seconds", "peak_gb")}
            for side, runs in both.items()
        }
        print(row(name, **medians), flush=True)
    if args.data:
        compare_pairs(args)


if __name__ == "__main__":
    main()
