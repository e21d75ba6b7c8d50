"""The shape of the code: imports point down, loops fit on a screen, an installed copy is whole."""

import ast
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("train_rm", "train_policy", "judge")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "rlhf_min").rglob("*.py"))
}
FLOORS = ("reporting", "judging", "data", "zoo", "models", "hardware", "maths")  # top to bottom
# What a reader needs to follow one policy step; the README's reading order names the rest.
POLICY_STEP = (
    "train_policy.py",
    "rlhf_min/maths/policy_losses.py",
    "rlhf_min/maths/baselines.py",
    "rlhf_min/maths/reward_shaping.py",
    "rlhf_min/models/log_probs.py",
    "rlhf_min/models/sampling.py",
    "rlhf_min/models/prompt_tree.py",
    "rlhf_min/models/scoring.py",
)


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide which floor they point to"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def floor(module: str) -> int:
    """0 is the lowest floor; the modules beside the folders are above all of them."""
    parts = module.split(".")
    return len(FLOORS) - FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else 99


def ours(path: Path) -> set[str]:
    """The modules of rlhf_min that a file imports; the package itself holds only InputError."""
    return {name for name in imported_modules(path) if name in MODULES and name != "rlhf_min"}


@pytest.mark.parametrize("module", [m for m in MODULES if floor(m) < 99])
def test_imports_point_down(module):
    upward = {name for name in ours(MODULES[module]) if floor(name) > floor(module)}
    assert not upward


def test_no_import_cycle():
    below = {module: ours(path) for module, path in MODULES.items()}
    done: set[str] = set()
    while left := below.keys() - done:
        free = {module for module in left if below[module] <= done}
        assert free, f"import cycle among {sorted(left)}"
        done |= free


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_a_script(script):
    assert not imported_modules(ROOT / f"{script}.py") & set(SCRIPTS)
    assert not any(imported_modules(path) & set(SCRIPTS) for path in MODULES.values())


def test_the_mathematics_imports_only_torch_and_python():
    allowed = {"torch", "math", "random", "statistics", "collections", "dataclasses", "rlhf_min"}
    for module, path in MODULES.items():
        if module.startswith("rlhf_min.maths"):
            names = {name.split(".")[0] for name in imported_modules(path)}
            assert names <= allowed, module
            assert all(floor(name) == floor(module) for name in ours(path)), module


def loop_lines(script: str) -> int:
    """Lines of the training loop, `for step in …` and its body."""
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.For) and getattr(node.target, "id", "") == "step":
            return node.end_lineno - node.lineno + 1
    raise AssertionError(f"{script} has no loop over steps")


@pytest.mark.parametrize("script", ["train_policy.py", "train_rm.py"])
def test_a_training_loop_fits_on_a_screen(script):
    assert loop_lines(script) <= 60
    loop = (ROOT / script).read_text()
    for verb in (".backward()", "optimiser.step(", "log.log(", "log.checkpoint("):
        assert verb in loop


def test_sizes_that_keep_the_code_readable():
    for script in SCRIPTS:
        assert (ROOT / f"{script}.py").read_text().count("\n") <= 240
    for path in [*MODULES.values(), *(ROOT / f"{script}.py" for script in SCRIPTS)]:
        text = path.read_text()
        assert text.count("\n") <= 250, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 60, f"{path}: {node.name}"
    assert sum((ROOT / name).read_text().count("\n") for name in POLICY_STEP) <= 720


def test_every_folder_says_what_lives_there():
    for folder in FLOORS:
        text = (ROOT / "rlhf_min" / folder / "__init__.py").read_text()
        assert len(ast.get_docstring(ast.parse(text))) > 20


CHECK = """
import importlib, pathlib, pkgutil, sys
import rlhf_min
assert sys.argv[1] in rlhf_min.__file__, rlhf_min.__file__
names = sorted(m.name for m in pkgutil.walk_packages(rlhf_min.__path__, "rlhf_min."))
for name in names:
    importlib.import_module(name)
run = pathlib.Path("run")
run.mkdir()
(run / "run.json").write_text("{}")
importlib.import_module("rlhf_min.reporting.report").write_report(run)
print(*names)
"""


@pytest.mark.slow
def test_an_installed_copy_has_every_module_and_template(tmp_path):
    """`pip install .` of the tracked files; then every module is imported and a page rendered."""
    files = subprocess.run(
        ["git", "ls-files", "rlhf_min", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in files:
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation"]  # without network
    install += ["--target", str(tmp_path / "site"), str(tmp_path / "source")]
    subprocess.run(install, check=True, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path / "site")],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tracked = {m for m in MODULES if str(MODULES[m].relative_to(ROOT)) in files}
    assert set(done.stdout.split()) == tracked - {"rlhf_min"}


def test_records_cannot_be_changed():
    """A rollout, a tree or a setting that one function changes would change it for all others."""
    for module in (*MODULES, "train_policy", "train_rm"):
        for kind in vars(importlib.import_module(module)).values():
            if dataclasses.is_dataclass(kind) and kind.__module__ == module:
                # The parts of an optimiser hold its state.
                assert kind.__dataclass_params__.frozen or kind.__name__ in ("Part", "Bucket"), kind
