"""Mutation tests: small errors are written into the code, and the tests must notice each of them.

    python tests/mutants.py                    # 200 random mutants of maths, models and trainings
    python tests/mutants.py --sample 0         # all of them: hours
    python tests/mutants.py rlhf_min/maths     # of these files or folders only
    python tests/mutants.py --again            # those that survived, by more tests
    python tests/mutants.py --measure tests/test_kl.py    # after a change of this test file

First all tests run once, with their coverage.  Then each mutant is tried by the tests that run its
line, the quickest first.  A run goes on where the last one stopped: delete runs/mutants after a
change of the code.  docs/mutants.md explains the mutants that survive.
"""

import argparse
import ast
import bisect
import contextlib
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import coverage
import pytest
import torch  # imported once here, so that the processes of the mutants need not do it
import transformers  # noqa: F401
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ["rlhf_min/maths", "rlhf_min/models", "train_policy.py", "train_rm.py"]
BUDGET = 6  # seconds of tests for one mutant: the quickest of those that run its line
BUDGET_AGAIN = 60  # the same for --again
WARM_UP = ["tests", "-k", "tree or log_probs"]  # for what they import
SURVIVED = "passed", "no test"  # results
KILLS: Counter = Counter()  # test, and test file → mutants killed so far; these are tried first
KILLS["tests/test_structure.py::test_records_cannot_be_changed"] = 1
for script in ("train_policy", "train_rm"):
    KILLS[f"tests/test_ranges.py::test_each_bound_is_where_the_table_says[{script}]"] = 1
PATIENCE = 5, 60  # a mutant dies also when its tests take 5 times as long as before, and 60 s more

OPERATORS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: (" is ", " is not "),
    ast.IsNot: ("is not", "is"), ast.In: (" in ", " not in "), ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"), ast.And: (" and ", " or "), ast.Or: (" or ", " and "),
}  # fmt: skip
NAMES = {"min": "max", "sum": "mean", "all": "any", "minimum": "maximum", "floor": "ceil"}
NAMES |= {"log_softmax": "softmax", "logsigmoid": "sigmoid", "clamp_min": "clamp_max"}
NAMES |= {new: old for old, new in NAMES.items()}
REMOVED = {"detach", "clone", "float", "double", "clamp", "clamp_min", "clamp_max", "abs", "exp"}

# Left out: mutants that no test can be asked to see.  The group, or else the whole match, is where
# they lie.
LEFT_OUT = {
    "titles in --help, and the count of the progress bar": (
        r'\bheading="\w+"',
        r"\binitial=first",
    ),
    "the default of a flag is a choice; its bounds are not left out": (
        r"\boption\(\s*(\[.*?\]|[^,\[]+),",
    ),
    "a device, where the tests have one only: the CPU": (
        r"\bdevice=[\w.]+",
        r'return (2\*\*11 if self\.device\.type == "cpu" else 2\*\*13)',
        r'return (2\*\*12 if self\.device\.type == "cpu" else 2\*\*15)',
    ),
    "sizes of chunks and batches and of a cache, for speed and memory only": (
        r"^(?:MAX_LOGITS|MIN_TOKENS|SPANS_FROM) = (.*)",
        r"\(.*, (64, forward=True)\)",
        r"\bmax_positions=2\*\*16",
        r"\bbatch_size=64",
        r"^@lru_cache\((.*)\)",
    ),
    "an arbitrary probe: any few short branches would do": (
        r"probe = torch\.Generator\(\)\.manual_seed\((0)\)",
        r"torch\.randint\(vocabulary, \((22),\)",
        r"^    prompts, branches = (\[ids\[:5\].*)$",
    ),
    "checks of two lists that the same lines make equally long": (
        r"zip\(group, rollout\.answers, rollout\.finished, (strict=True)\)",
        r"zip\(hidden\.split\(size\), tree\.targets\.split\(size\), (strict=True)\)",
        r"zip\(p, branch_outputs\(model, tree\)\.cpu\(\)\.split\(counts\), (strict=True)\)",
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One error: `new` in place of `old` in a file, from byte `begin` on."""

    path: str
    line: int
    begin: int
    old: str
    new: str

    def apply(self, source: bytes) -> bytes:
        """The file's text with the error."""
        end = self.begin + len(self.old.encode())
        return source[: self.begin] + self.new.encode() + source[end:]

    def __str__(self):
        return f"{self.path}:{self.line}: {self.old!r} -> {self.new!r}"


def left_out(source: bytes) -> dict[str, list[tuple[int, int]]]:
    """Reason → where in a file mutants are left out: first byte and the one after the last."""
    return {
        reason: [
            match.span(match.re.groups and 1)
            for pattern in patterns
            for match in re.finditer(pattern.encode(), source, re.MULTILINE)
        ]
        for reason, patterns in LEFT_OUT.items()
    }


def mutant_of(row: dict) -> Mutant:
    """The mutant of a row of mutants.jsonl."""
    return Mutant(**{field.name: row[field.name] for field in fields(Mutant)})


def mutants_of(path: str, omitted: Counter | None = None) -> list[Mutant]:
    """All mutants of a file: operators, constants, names, keywords, conditions, statements.

    omitted: counts those of LEFT_OUT by reason.
    """
    source = (ROOT / path).read_bytes()
    places, omitted = left_out(source), Counter() if omitted is None else omitted
    starts, mutants = [0], []
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def ends(node) -> tuple[int, int]:
        first = starts[node.lineno - 1] + node.col_offset
        return first, starts[node.end_lineno - 1] + node.end_col_offset

    def replace(node, new: str, begin=None, end=None) -> None:
        begin, end = begin or ends(node)[0], end or ends(node)[1]
        mutant = Mutant(path, node.lineno, begin, source[begin:end].decode(), new)
        if "__name__" in mutant.old:
            return
        with contextlib.suppress(SyntaxError):
            compile(mutant.apply(source), path, "exec")
            for reason, spans in places.items():
                if any(
                    first <= begin and begin < last and end <= last + 2 for first, last in spans
                ):
                    omitted[reason] += 1  # a removed keyword takes ", " with it
                    return
            mutants.append(mutant)

    tree = ast.parse(source)
    hints = [getattr(n, name, None) for n in ast.walk(tree) for name in ("annotation", "returns")]
    skipped = {id(n) for hint in hints if isinstance(hint, ast.AST) for n in ast.walk(hint)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        pair = None
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            pair = node.left, node.ops[0], node.comparators[0]
        elif isinstance(node, ast.BinOp):
            pair = node.left, node.op, node.right
        elif isinstance(node, ast.BoolOp):
            pair = node.values[0], node.op, node.values[1]
        if pair and type(pair[1]) in OPERATORS:
            old, new = OPERATORS[type(pair[1])]
            begin, end = ends(pair[0])[1], ends(pair[2])[0]
            if old in (between := source[begin:end].decode()):
                replace(node, between.replace(old, new, 1), begin, end)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
            replace(node, f"({ast.unparse(node.operand)})")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            replace(node, str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            replace(
                node, repr(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
            )
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            replace(node, NAMES[node.attr], ends(node)[1] - len(node.attr))
        elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
            if isinstance(node.test, ast.UnaryOp):  # its `not` is removed already
                continue
            replace(node.test, f"(not ({ast.unparse(node.test)}))")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            replace(node, "None")
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                begin, end = ends(keyword)
                if keyword.arg:
                    replace(
                        keyword,
                        "",
                        begin,
                        end + len(source[end:]) - len(source[end:].lstrip(b", ")),
                    )
            if isinstance(node.func, ast.Attribute) and node.func.attr in REMOVED:
                replace(node, ast.unparse(node.func.value))
    return mutants


class Durations:
    """A pytest plugin that notes the seconds of each test that passes, and the others' names."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def passed(self) -> dict[str, float]:
        return {test: s for test, s in self.seconds.items() if test not in self.failed}


def run_tests(folder: Path, arguments: list[str], limit: float, plugins=()) -> str:
    """Run pytest in a fork of this process; returns "passed", "failed" or "too slow"."""
    if not (child := os.fork()):
        os.setsid()
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        with open(folder / "pytest.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=list(plugins))
        for plugin in plugins:
            (folder / "durations.json").write_text(json.dumps(plugin.passed()))
            print("failed before any mutant, so not used:", *plugin.failed, file=sys.stderr)
        os._exit(int(code))
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return "passed" if status == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too slow"


def copy_repository(folder: Path) -> Path:
    """Copy the tracked and the new files into a folder of their own, beside ../shared if any."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "work" / name)
    subprocess.run(["git", "init", "-q"], cwd=folder / "work", check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder / "work", check=True)
    return folder / "work"


def measure(folder: Path, out: Path, files: tuple = ()) -> tuple[dict, dict]:
    """Run all tests, or these files, once: (file → line → tests that run it, test → seconds)."""
    sources = ["--cov=rlhf_min", "--cov=train_policy", "--cov=train_rm", "--cov-context=test"]
    parallel = ["-n", str(os.cpu_count()), "--dist", "worksteal"]
    run_tests(folder, [*sources, *parallel, "--cov-report=json", *files], 7200, [Durations()])
    for name in ("coverage.json", "pytest.log"):
        shutil.copy(folder / name, out)
    data = coverage.CoverageData(str(folder / ".coverage"))
    data.read()
    tests = {
        str(Path(file).relative_to(folder)): {
            line: sorted({name.split("|")[0] for name in names if name})
            for line, names in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    return tests, json.loads((folder / "durations.json").read_text())


def measure_again(old: tuple[dict, dict], new: tuple[dict, dict], files: list[str]) -> tuple:
    """The results of `measure` for all tests, with those of some files or tests replaced."""
    fresh = lambda name: not name.startswith(tuple(files))  # noqa: E731
    (tests, seconds), (more, times) = old, new
    tests = {f: {n: list(filter(fresh, t)) for n, t in own.items()} for f, own in tests.items()}
    for file, lines in more.items():
        for line, names in lines.items():
            tests.setdefault(file, {}).setdefault(str(line), []).extend(names)
    return tests, {test: s for test, s in seconds.items() if fresh(test)} | times


def tests_of(mutant: Mutant, tests: dict, seconds: dict) -> list[str]:
    """The tests that may kill a mutant: the quickest first, and those that killed others."""
    lines = tests.get(mutant.path, {})
    functions = [
        node for node in ast.walk(ast.parse((ROOT / mutant.path).read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.body[0].lineno <= mutant.line <= node.end_lineno
    ]  # fmt: skip
    chosen = lines.get(mutant.line) if functions else None
    if not chosen:  # runs at import only: all tests of its file, and of test files that name it
        words = ["import_module", Path(mutant.path).stem]
        files = {t.split("::")[0] for t in seconds}
        files = {file for file in files if any(w in (ROOT / file).read_text() for w in words)}
        chosen = {t for t in seconds if t.split("::")[0] in files}.union(*lines.values())

    def cost(test: str) -> float:
        kills = 9 * KILLS[test] + KILLS[test.split("::")[0]]
        return (seconds[test] + 0.05) / (1 + kills)

    return sorted((t for t in chosen if t in seconds), key=lambda test: (cost(test), test))


def try_mutant(mutant: Mutant, tests: dict, seconds: dict, budget: float) -> dict:
    """The mutant with its result: "passed" (it survived), "failed", "too slow" or "no test"."""
    folder = Path(os.environ["MUTANTS_FOLDER"])
    chosen = tests_of(mutant, tests, seconds)
    times = list(itertools.accumulate(seconds[t] for t in chosen))
    chosen = chosen[: max(8, bisect.bisect(times, budget))]
    target = folder / mutant.path
    source = target.read_bytes()
    begin, outcome, killer = time.monotonic(), "no test", ""
    try:
        target.write_bytes(mutant.apply(source))
        # In parts, because to collect many tests takes longer than to run a few.
        for part in filter(None, (chosen[:8], chosen[8:30], chosen[30:])):
            limit = PATIENCE[0] * sum(map(seconds.get, part)) + PATIENCE[1]
            outcome = run_tests(folder, ["-x", *part], limit)
            if outcome != "passed":
                log = (folder / "pytest.log").read_text(errors="replace")
                if failed := re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", log, re.MULTILINE):
                    killer = failed[1]
                    KILLS.update({killer, killer.split("::")[0]})
                break
    finally:
        target.write_bytes(source)
    row = {**asdict(mutant), "result": outcome, "seconds": round(time.monotonic() - begin, 1)}
    return {**row, "killer": killer, "tests": len(chosen)}


class Imports:
    """A pytest plugin that notes the modules of other packages that the tests have imported."""

    def pytest_sessionfinish(self):
        files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
        others = [n for n, f in files.items() if f and "site-packages" in f and n != "__main__"]
        Path("imports.json").write_text(json.dumps(others))

    def passed(self) -> dict[str, float]:
        return {}

    failed = ()


def make_worker(place: str) -> None:
    """Give a worker process a copy of the repository, and what its tests import."""
    folder = copy_repository(Path(tempfile.mkdtemp(dir=place)))
    os.environ["MUTANTS_FOLDER"] = str(folder)
    sys.dont_write_bytecode = False  # for the tests as they are, so that each fork need not compile
    run_tests(folder, ["-x", *WARM_UP], 600, [Imports()])
    sys.dont_write_bytecode = True  # a mutant's bytecode must not outlive it
    for name in json.loads((folder / "imports.json").read_text()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # pytest collects garbage at its end, which must not walk through all of torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("targets", nargs="*", default=TARGETS, help="files or folders")
    parser.add_argument("--sample", type=int, default=200, help="mutants at random (0: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", default="runs/mutants", help="folder of the results")
    parser.add_argument("--again", action="store_true", help="those that survived, by more tests")
    parser.add_argument("--measure", nargs="+", default=[], help="tests, or files, that are new")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    files = [
        f
        for t in given.targets
        for f in ([ROOT / t] if t.endswith(".py") else sorted((ROOT / t).glob("*.py")))
    ]
    omitted: Counter = Counter()
    mutants = [m for file in files for m in mutants_of(str(file.relative_to(ROOT)), omitted)]
    print(f"{len(mutants)} mutants of {len(files)} files; left out:")
    print(*(f"{count:5} {reason}" for reason, count in omitted.most_common()), sep="\n")
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    if given.sample and not given.again:
        mutants = random.Random(given.seed).sample(mutants, min(given.sample, len(mutants)))
    (out / "mutants.jsonl").touch()
    rows = [json.loads(line) for line in (out / "mutants.jsonl").open()]
    tried = {mutant_of(row): row for row in rows if mutant_of(row) in set(mutants)}
    for row in rows:
        KILLS.update({row["killer"], row["killer"].split("::")[0]} - {""})
    todo = [m for m in mutants if m not in tried]
    if given.again:
        todo = [m for m in mutants if m in tried and tried[m]["result"] in SURVIVED]
    with tempfile.TemporaryDirectory() as place:
        if not (out / "tests.json").exists():
            print("all tests run once, with their coverage: some minutes")
            (out / "tests.json").write_text(json.dumps(measure(copy_repository(Path(place)), out)))
        measured = json.loads((out / "tests.json").read_text())
        if given.measure:
            folder = copy_repository(Path(tempfile.mkdtemp(dir=place)))
            more = measure(folder, out, tuple(given.measure))
            measured = measure_again(measured, more, given.measure)
            (out / "tests.json").write_text(json.dumps(measured))
        tests, seconds = measured
        tests = {
            f: {int(n): set(names) for n, names in lines.items()} for f, lines in tests.items()
        }
        with (
            multiprocessing.get_context("fork").Pool(given.workers, make_worker, [place]) as pool,
            (out / "mutants.jsonl").open("a") as file,
        ):
            budget = BUDGET_AGAIN if given.again else BUDGET
            one = partial(try_mutant, tests=tests, seconds=seconds, budget=budget)
            for row in tqdm(pool.imap_unordered(one, todo), "mutants", len(todo)):
                tried[mutant_of(row)] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
    alive = [mutant for mutant, row in tried.items() if row["result"] in SURVIVED]
    print(*alive, sep="\n")
    print(f"{len(tried) - len(alive)} of {len(tried)} mutants died")


if __name__ == "__main__":
    main()
