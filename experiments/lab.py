"""Runs of a study: cached by their settings, several at once, and published in docs/RESULTS.md.

A study is a module with three functions:

    settings(quick)   list of dictionaries, one per run (JSON values; the seed among them)
    run(settings)     the result of one run: a dictionary of numbers, lists and short texts
    report(rows, out) the Markdown text of its section, or {name of a section: its text};
                      writes figures to the folder `out`

A row is {"settings", "result", "seconds", "commit"}.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t as student_t
from tqdm import tqdm

from rlhf_min.reporting.environment import environment

ROOT = Path(__file__).resolve().parents[1]
ROWS, FIGURES, PAGE = ROOT / "experiments/rows", ROOT / "docs/figures", ROOT / "docs/RESULTS.md"
QUICK = Path("runs/lab-quick")  # rows and figures of --quick


def key(settings: dict) -> str:
    """The text that a run is found by: its settings as JSON with sorted names."""
    return json.dumps(settings, sort_keys=True)


def read_rows(file: Path) -> dict[str, dict]:
    """The rows of a study by `key`.  A line that a killed process left unfinished is dropped."""
    rows = {}
    for number, line in enumerate(
        file.read_text("utf-8", "replace").splitlines() if file.exists() else [], 1
    ):
        try:
            row = json.loads(line)
        except ValueError:
            print(f"{file.name}: line {number} is not whole and is computed again", file=sys.stderr)
            continue
        rows[key(row["settings"])] = row
    return rows


def rows_of(settings: list[dict], file: Path) -> list[dict]:
    """The rows in a file with one of these settings, in the order of the settings."""
    found = read_rows(file)
    return [found[key(one)] for one in settings if key(one) in found]


def run_all(study: str, run: Callable, settings: list[dict], file: Path, jobs: int) -> list[dict]:
    """The rows of all settings, in their order; those missing in the file are computed first.

    Each worker process has one thread.  Rows are appended as soon as they are ready.  An error in
    a run is raised after the other runs have ended, with the settings.
    """
    rows, wanted = read_rows(file), {key(one): one for one in settings}
    missing = [one for name, one in wanted.items() if name not in rows]
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.read_bytes().endswith(b"\n"):
            with file.open("a", encoding="utf-8") as text:
                text.write("\n")  # ends a line that was not finished
        # For the workers, before they import anything: one thread, no progress bars of the scripts.
        one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ |= one_thread | {"TQDM_DISABLE": "1"}
        workers = {"max_workers": jobs, "mp_context": multiprocessing.get_context("spawn")}
        with ProcessPoolExecutor(**workers, initializer=_prepare) as pool:
            futures = {pool.submit(_timed, run, one): one for one in missing}
            failed = []
            for future in tqdm(as_completed(futures), study, len(futures)):
                one = futures[future]
                if error := future.exception():
                    failed.append((one, error))
                    tqdm.write(f"{study}: {key(one)} failed: {error}", file=sys.stderr)
                    continue
                row = {"settings": one} | future.result()
                rows[key(one)] = row
                with file.open("a", encoding="utf-8") as text:
                    text.write(json.dumps(row, ensure_ascii=False) + "\n")
        if failed:
            raise RuntimeError(f"{len(failed)} runs failed, first {failed[0][0]}") from failed[0][1]
    return [rows[name] for name in wanted]


def _prepare() -> None:
    """In a worker process: what the scripts print is not shown."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open as long as the process


@lru_cache  # once per process, before its first run: that is the code which it has imported
def commit() -> str:
    """The commit; "+changes" where something else than rows and pages has changed since."""
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", "."]
    own = [":!experiments/rows", ":!docs"]  # what the studies write themselves
    changes = subprocess.run([*git, *own], capture_output=True, text=True).stdout
    name = environment()["commit"].removesuffix("+changes")
    return name + ("+changes" if changes else "")


def _timed(run: Callable, settings: dict) -> dict:
    """The result of a run, its seconds, and the commit."""
    at, begin = commit(), time.perf_counter()
    result = run(settings)
    return {
        "result": result,
        "seconds": round(time.perf_counter() - begin, 1),
        "commit": at,
    }


def main(study: str, settings: Callable, run: Callable, report: Callable, page=PAGE) -> None:
    """The command line of a study: run what is missing, then write its section and figures.

    page: the Markdown file with the study's section.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{study}", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that it works")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--tables", action="store_true", help="from the rows at hand, no new runs")
    parser.add_argument("--seeds", type=int, default=99, help="only runs of seeds below this")
    args = parser.parse_args()
    wanted = [one for one in settings(args.quick) if one.get("seed", 0) < args.seeds]
    file = (QUICK if args.quick else ROWS) / f"{study}.jsonl"
    figures = QUICK if args.quick else FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    if args.tables:
        rows = rows_of(wanted, file)
        if len(rows) < len(wanted):
            print(f"{study}: {len(wanted) - len(rows)} of {len(wanted)} runs have no row yet")
    else:
        rows = run_all(study, run, wanted, file, args.jobs)
    text = report(rows, figures)
    sections = text if isinstance(text, dict) else {study: text}
    if args.quick:
        print(*sections.values(), sep="\n\n")
    else:
        for name, part in sections.items():
            publish(name, part, page)
        print(f"{study}: {len(rows)} rows, section written to {page.relative_to(ROOT)}")


def publish(study: str, text: str, page: Path = PAGE) -> None:
    """Replace a section of a page, which stands between two HTML comments; study: its name."""
    begin, end = f"<!-- begin: python -m experiments.{study} -->", f"<!-- end: {study} -->"
    section, whole = f"{begin}\n{text.strip()}\n{end}", page.read_text("utf-8")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(whole):
        raise SystemExit(f"{page.name} has no section {begin} … {end}: add the two lines first")
    page.write_text(pattern.sub(lambda _: section, whole), "utf-8")


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t over seeds; needs two values or more."""
    mean = fmean(values)
    half = student_t.ppf(0.975, len(values) - 1) * stdev(values) / sqrt(len(values))
    return mean, mean - half, mean + half


def shown(values: list[float], digits: int = 2) -> str:
    """ "mean [low, high]" of `mean_interval`, for a table; of two values their range instead."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f} (1 seed)" if values else "–"
    if len(values) == 2:  # Student's t of two is 13 times as wide as their range
        low, high = sorted(values)
        return f"{fmean(values):.{digits}f} ({low:.{digits}f}, {high:.{digits}f})"
    mean, low, high = mean_interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def folded(title: str, text: str) -> str:
    """Markdown text that a page shows after a click on its title."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
