"""Kill training runs with SIGKILL at random moments, resume them, and compare with unkilled runs.

    python tests/kill_runs.py                       # 60 kills of both scripts
    python tests/kill_runs.py --kills 6 --chain 2   # as in tests/test_checkpoints.py

Half of the kills come while a checkpoint is written, a quarter while any file is (model, report,
…), a quarter at a uniformly random time.  A chain of killed and resumed processes must end with the
same files as one process that was never killed, bit for bit except times: weights, metrics, summary
and answers.  The moments differ between two calls with one seed, because the machine's speed does.
The scripts run in forked processes, so that a kill does not cost the seconds of the imports.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import tiny_folder, tiny_pairs, write_rows

import train_policy
import train_rm
from rlhf_min import command_line

SHARED = "--model base --save-every 2 --eval-every 3 --lr 1e-3"
RUNS = {
    "reward model": (
        train_rm,
        f"{SHARED} --data pairs.jsonl --eval-data held.jsonl --max-steps 12 --batch-size 5",
    ),
    "policy": (
        train_policy,
        f"{SHARED} --reward-model rm --data pairs.jsonl --eval-data held.jsonl --steps 12 "
        "--batch-size 8 --samples 2 --max-new-tokens 8",
    ),
    "reward model, bfloat16": (
        train_rm,
        f"{SHARED} --data pairs.jsonl --eval-data held.jsonl --max-steps 12 --batch-size 5 "
        "--head ratings --dtype bfloat16",
    ),
    "policy, bfloat16": (
        train_policy,
        f"{SHARED} --reward-model rm --data pairs.jsonl --eval-data held.jsonl --steps 12 "
        "--batch-size 8 --samples 2 --max-new-tokens 8 --dtype bfloat16 --baseline ema "
        "--objective ppo-clip --updates 2",
    ),
}
COMPARED = ("model.safetensors", "samples.jsonl", "held_out_scores.jsonl")  # byte for byte


def run_script(script, line: str) -> None:
    """What a forked process does: the script with these arguments; its output goes to a file."""
    torch.set_num_threads(1)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    command_line.run(script.main, script.Config, line.split())


def start(script, line: str):
    """A process that runs the script."""
    process = multiprocessing.get_context("fork").Process(target=run_script, args=(script, line))
    process.start()
    return process


def drafts(out: Path, pattern: str = "*") -> set[tuple]:
    """The drafts in a run's folder: a file or folder that is being written, or was at a kill."""
    found = set()
    for path in (*out.glob(f"{pattern}.part"), *out.glob(f".saving-{pattern}")):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
    return found


def kill_at_random(process, out: Path, rng: random.Random, seconds: float) -> str | None:
    """Kill a process at a random time or in a random draft; returns the drafts left.

    None: the process ended before.  seconds: what a whole run takes.
    """
    pattern, before = rng.choice([None, "checkpoint.pt", "checkpoint.pt", "*"]), drafts(out)
    end = time.perf_counter() + (rng.uniform(0, seconds) if pattern != "checkpoint.pt" else 0)
    while process.is_alive() and time.perf_counter() < end:
        time.sleep(1e-3)
    for _ in range(rng.randint(1, 3) if pattern else 0):  # the first, second or third draft
        before |= drafts(out, pattern)
        while process.is_alive() and drafts(out, pattern) <= before:
            time.sleep(1e-4)
    time.sleep(rng.uniform(0, 5e-4))
    process.kill()
    process.join()
    left = " ".join(sorted(name for name, *_ in drafts(out) - before))
    return left if process.exitcode == -signal.SIGKILL else None


def result(out: Path) -> dict:
    """The files of a finished run, without its times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    summary = json.loads((out / "summary.json").read_text())
    del summary["seconds"]
    files = {name: (out / name).read_bytes() for name in COMPARED if (out / name).exists()}
    # A kill between the report and the end leaves the lock's file, which nobody holds.
    left = {path.name for path in out.iterdir()} - {".lock"}
    return {"metrics": rows, "summary": summary, "names": left, **files}


def kill_chain(name: str, number: int, rng: random.Random, seconds: float, kills: int) -> tuple:
    """Kill and resume one run up to `kills` times, then let it end; folder, drafts at the kills."""
    script, line = RUNS[name]
    out, left = folder_of(name, number), []
    while not (out / "report.html").exists():
        process = start(script, f"{line} --out {out}" + (" --resume" if out.exists() else ""))
        killed = kill_at_random(process, out, rng, seconds) if len(left) < kills else None
        process.join()
        if killed is not None:
            left.append(killed)
        elif process.exitcode != 0:
            raise SystemExit(f"{out}: {Path('output.txt').read_text()[-2000:]}")
    return out, left


def folder_of(name: str, number: int | str) -> Path:
    """The folder of a run."""
    return Path(f"{name} {number}".replace(",", "").replace(" ", "-"))


def make_inputs() -> None:
    """A tiny start model, a reward model and data in the current folder."""
    tiny_folder(Path("base"), "smol")
    rows = tiny_pairs(16)
    write_rows(Path("pairs.jsonl"), rows)
    write_rows(Path("held.jsonl"), [row | {"prompt": row["prompt"] + "?"} for row in rows[:5]])
    line = "--model base --data pairs.jsonl --eval-data held.jsonl --max-steps 1 --out rm"
    process = start(train_rm, line)
    process.join()
    assert process.exitcode == 0, Path("output.txt").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="SIGKILLs in all, at least")
    parser.add_argument("--chain", type=int, default=5, help="kills of one run, at most")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, left, number = random.Random(given.seed), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        make_inputs()
        whole, seconds = {}, {}
        while len(left) < given.kills:
            name = list(RUNS)[number % len(RUNS)]
            if name not in whole:
                begin = time.perf_counter()
                out, _ = kill_chain(name, "whole", rng, 0, 0)
                whole[name], seconds[name] = result(out), time.perf_counter() - begin
            kills = min(given.chain, given.kills - len(left))
            out, drafts_left = kill_chain(name, number, rng, seconds[name], kills)
            ours = result(out)
            different = [key for key in whole[name] if ours.get(key) != whole[name][key]]
            if different:
                raise SystemExit(f"seed {given.seed}, {out}: {different} differ")
            print(f"{out}: {len(drafts_left)} kills, drafts: {drafts_left}", flush=True)
            left += drafts_left
            number += 1
        os.chdir("/")
    inside = sum("checkpoint.pt" in names for names in left), sum(map(bool, left))
    print(
        f"{len(left)} kills of {number} runs, {inside[0]} while a checkpoint was written, "
        f"{inside[1]} while any file was: all ended as if never killed (seed {given.seed})"
    )


if __name__ == "__main__":
    main()
