"""Measure an entry of docs/leaderboard.md: its time, preference labels and gold, over three seeds.

    python -m experiments.leaderboard experiments/entries/default.py --name "make demo"
    python -m experiments.leaderboard --tables        # the page's tables from the rows at hand

An entry is a program that is called with SEED and OUT, starts from nothing, and leaves a policy in
OUT/policy.  Seeds 0, 1, 2 on a machine that does nothing else; each run gets two cores.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import torch

from experiments import lab
from experiments.entry_audit import audit
from rlhf_min import InputError
from rlhf_min.data.files import read_jsonl
from rlhf_min.models.answers import sample_texts
from rlhf_min.models.loading import load_causal_lm, load_tokenizer
from rlhf_min.reporting.environment import environment
from rlhf_min.zoo import world

PAGE, ROWS = lab.ROOT / "docs/leaderboard.md", lab.ROWS / "leaderboard.jsonl"
DRAWS, TOKENS, CORES = 3, 64, 2  # answers to each held-out prompt; longest answer
SEEDS = [0, 1, 2]
LABELS_GOLD, SECONDS_GOLD = 9.2, 8.5  # the mean gold rating that each race asks for


def held_out_gold(policy: Path, draws: int = DRAWS) -> float:
    """Mean gold rating of `draws` answers to each of the zoo's held-out prompts, temperature 1."""
    tokenizer = load_tokenizer(str(policy))
    model = load_causal_lm(str(policy), torch.float32)
    prompts, golds = world.prompts("held-out"), []
    for seed in range(draws):
        answers, _ = sample_texts(model, tokenizer, prompts, TOKENS, seed=seed, batch_size=256)
        golds += map(world.gold_rating, prompts, answers)
    return fmean(golds)


def command_of(entry: Path, seed: int, out: Path) -> list[str]:
    """The words that run an entry: Python for .py, bash for .sh."""
    programs = {".py": sys.executable, ".sh": "bash"}
    if not entry.is_file() or entry.suffix not in programs:
        raise InputError(f"{entry} is no entry: give a .py or .sh file that exists")
    return [programs[entry.suffix], str(entry), str(seed), str(out)]


@contextmanager
def two_cores() -> Iterator[None]:
    """Context manager: this process and its children may use two cores only (where Linux runs)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def run_entry(entry: Path, seed: int, out: Path) -> float:
    """Run an entry in the new folder `out`; returns its seconds.

    Raises InputError when the folder is not new, or the entry fails or leaves no policy.
    """
    if out.exists():
        raise InputError(f"{out} exists: an entry starts from nothing, so remove it first")
    out.mkdir(parents=True)
    command = command_of(entry, seed, out.resolve())
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "OMP_NUM_THREADS")
    own = {name: os.environ[name] for name in kept if name in os.environ}
    own |= {"PYTHONPATH": str(lab.ROOT), "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    with two_cores():
        begin = time.perf_counter()
        code = subprocess.run(command, cwd=lab.ROOT, env=own).returncode
        seconds = time.perf_counter() - begin
    if code:
        raise InputError(f"{' '.join(command)} ended with exit code {code}")
    if not (out / "policy/config.json").exists():
        raise InputError(f"{entry} left no policy in {out}/policy")
    return seconds


def measure(entry: Path, seeds: list[int], folder: Path, draws: int = DRAWS) -> dict:
    """Gold, seconds, labels and judged labels, each a list over seeds.

    Raises InputError when an entry cheats, as far as `audit` can see.
    """
    result = {"gold": [], "seconds": [], "labels": [], "judged": []}
    for seed in seeds:
        out = folder / f"seed-{seed}"
        seconds = run_entry(entry, seed, out)
        found = audit(out)
        if found.problems:
            raise InputError(f"{entry} is refused: {'; '.join(found.problems)}")
        gold = held_out_gold(out / "policy", draws)
        new = {"gold": round(gold, 3), "seconds": round(seconds, 1)}
        for name, value in (new | {"labels": found.labels, "judged": found.judged}).items():
            result[name].append(value)
        print(f"{entry.name} seed {seed}: {new}, {found.labels} labels, {found.judged} judged")
    return result


def means(row: dict) -> dict[str, float]:
    """The mean over seeds of each measured number."""
    return {name: fmean(values) for name, values in row["result"].items()}


def cells(row: dict) -> list[str]:
    """An entry's cells of both tables: name, file, gold, labels, seconds, commit, hardware."""
    mean, entry, result = means(row), row["settings"]["entry"], row["result"]
    return [
        row["settings"]["name"],
        f"[{Path(entry).name}](../{entry})",
        f"{mean['gold']:.2f} ({', '.join(f'{gold:.2f}' for gold in result['gold'])})",
        f"{mean['labels']:,.0f} ({mean['judged']:,.0f})".replace(",", " "),
        f"{mean['seconds']:.0f}",
        row["commit"],
        row["hardware"],
    ]


def tables(rows: list[dict]) -> str:
    """Both races as Markdown: the entries that reach the gold of a race, the best one first."""
    header = ["entry", "program", "gold: mean (seeds 0, 1, 2)", "labels (of them judged)"]
    header += ["seconds", "commit", "hardware"]
    parts = []
    for measure, gold in (("labels", LABELS_GOLD), ("seconds", SECONDS_GOLD)):
        inside = sorted(
            (r for r in rows if means(r)["gold"] >= gold), key=lambda r: means(r)[measure]
        )
        below = sorted((-means(row)["gold"], row["settings"]["name"]) for row in rows)
        below = [f"{name} ({-minus:.2f})" for minus, name in below if -minus < gold]
        ranked = [[str(place), *cells(row)] for place, row in enumerate(inside, 1)]
        parts.append(f"### {measure.capitalize()} to gold {gold}")
        parts.append(lab.table(["", *header], ranked) if ranked else "No entry yet.")
        if below:
            parts.append(f"Measured, but below {gold}: {'; '.join(below)}.")
    return "\n\n".join(parts)


def published(file: Path = ROWS, page: Path = PAGE) -> None:
    """Write the tables of the page from the rows; the newest row of a program counts."""
    newest = {row["settings"]["entry"]: row for row in read_jsonl(file)}
    lab.publish("leaderboard", tables(list(newest.values())), page)


def hardware() -> str:
    """The processor, the cores used and the version of PyTorch."""
    about = environment()
    processor = about["device"].rpartition(",")[0]
    return f"{CORES} cores of {processor}, torch {about['versions']['torch']}"


def main(argv: list[str] | None = None, rows: Path = ROWS, page: Path = PAGE) -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m experiments.leaderboard", allow_abbrev=False)
    parser.add_argument("entry", nargs="?", type=Path, help="program: .py or .sh, SEED OUT")
    parser.add_argument("--name", help="of the entry in the table (default: the file's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    parser.add_argument("--draws", type=int, default=DRAWS, help="answers per prompt (3)")
    parser.add_argument("--out", type=Path, help="folder of the runs (runs/leaderboard/NAME)")
    parser.add_argument("--tables", action="store_true", help="from the rows at hand, no new runs")
    args = parser.parse_args(argv)
    if args.tables:
        return published(rows, page)
    if not args.entry:
        parser.error("give an entry, or --tables")
    entry = Path(os.path.relpath(args.entry.resolve(), lab.ROOT))
    settings = {"entry": str(entry), "name": args.name or entry.stem, "seeds": args.seeds}
    before = {"commit": lab.commit(), "hardware": hardware()}
    try:
        os.chdir(lab.ROOT)
        folder = args.out or Path("runs/leaderboard") / entry.stem
        row = {"settings": settings, "result": measure(entry, args.seeds, folder, args.draws)}
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    row |= before
    print(f"| {' | '.join(cells(row))} |")
    if (args.seeds, args.draws) != (SEEDS, DRAWS):
        return print("not entered in the table: that takes seeds 0 1 2 and 3 draws")
    rows.parent.mkdir(parents=True, exist_ok=True)
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    published(rows, page)


if __name__ == "__main__":
    main()
