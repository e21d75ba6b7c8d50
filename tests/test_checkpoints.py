"""Checkpoints, the lock, full disks and kills: nothing is lost, nothing is silently accepted."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_run_folder_and_resume import (
    SCRIPTS,
    Settings,
    assert_same_run,
    interrupt_at,
    no_report,
    resumed,
)
from test_train_policy import tiny_run as tiny_policy_run
from test_train_rm import rows_of
from test_train_rm import tiny_run as tiny_rm_run
from tiny_models import tiny_folder, tiny_model, tiny_tokenizer, write_rows

import judge
from rlhf_min import InputError, command_line
from rlhf_min.data.files import replace_text
from rlhf_min.models.loading import save_model
from rlhf_min.reporting import folder_files, report
from rlhf_min.reporting.checkpoints import load_checkpoint
from rlhf_min.reporting.run_folder import RunLog, check_folder, is_unfinished

ROOT = Path(__file__).parents[1]
NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
TRAININGS = ["reward model", "moving average"]
__all__ = ["no_report", "tiny_policy_run", "tiny_rm_run"]  # fixtures


def log_with_checkpoints(out: Path, steps: int) -> RunLog:
    """A run that has saved a checkpoint after each of its steps."""
    log = RunLog("x.py", Settings(out=str(out)), {})
    for step in range(1, steps + 1):
        log.log(step, {"a": step})
        log.checkpoint(step, {"w": torch.full((50,), float(step)), "rows": [{"a": "b"}]})
    return log


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def full_disk(size: int):
    """Context manager: a file can hold this number of bytes; further writes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def exit_of(script, config, capfd) -> str:
    """Run main(config) as the command line does; asserts exit code 2, returns its one sentence."""
    flags = [f"--{k}={v}" for k, v in asdict(config).items() if isinstance(v, (int, float, str))]
    flags = [flag for flag in flags if not flag.endswith(("=", "=False", "=True"))]
    flags += [f"--{k}" for k, v in asdict(config).items() if v is True]
    flags += ["--data", *config.data, "--eval-data", *config.eval_data]
    with pytest.raises(SystemExit) as stop:
        command_line.run(script.main, script.Config, flags)
    lines = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2 and not any("Traceback" in line for line in lines)
    assert [line.startswith("error: ") for line in lines[-2:]] in ([False, True], [True])
    return lines[-1]


# Checkpoints: the last two are kept, damaged ones are recognised.


def test_the_last_two_checkpoints_are_kept(tmp_path):
    log = log_with_checkpoints(tmp_path, 3)
    assert names(tmp_path) == {NEWEST, PREVIOUS, "run.json", "metrics.jsonl"}
    steps = [torch.load(tmp_path / name, weights_only=True)["step"] for name in (NEWEST, PREVIOUS)]
    assert steps == [3, 2]
    log.finish({})
    assert names(tmp_path) == {"run.json", "metrics.jsonl", "summary.json"}


def test_killed_between_the_two_renames_the_previous_checkpoint_is_used(tmp_path):
    log_with_checkpoints(tmp_path, 2)
    (tmp_path / NEWEST).rename(tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path)["step"] == 2


def same(one, other) -> bool:
    """Equal values, tensors bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_no_flipped_bit_changes_what_is_loaded(tmp_path):
    """200 random bits, and 100 in the directory at the end of the archive."""
    log_with_checkpoints(tmp_path, 2)
    whole, path = load_checkpoint(tmp_path), tmp_path / NEWEST
    (tmp_path / PREVIOUS).unlink()
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    bits = [rng.randrange(8 * len(content)) for _ in range(200)]
    bits += [rng.randrange(8 * len(content) - 8 * 800, 8 * len(content)) for _ in range(100)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert same(load_checkpoint(tmp_path), whole), bit
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


class Code:
    """An object whose unpickling deletes a file."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.remove, (str(self.victim),)


def damage(kind: str, folder: Path, foreign: Path) -> None:
    """Damage the newest checkpoint in a folder."""
    path = folder / NEWEST
    content = bytearray(path.read_bytes())
    if kind == "flipped bit":
        content[len(content) // 2] ^= 16
    if kind == "truncated":
        content = content[: len(content) // 2]
    if kind == "empty":
        content = b""
    if kind == "text":
        content = b"not a checkpoint"
    path.write_bytes(content)
    if kind == "other tensors":
        torch.save({"weight": torch.ones(3)}, path)
    if kind == "pickled code":
        torch.save({"step": 4, "run": "", "metrics": Code(folder / "run.json")}, path)
    if kind == "of another run":
        shutil.copy(foreign / NEWEST, path)


KINDS = ["flipped bit", "truncated", "empty", "text", "other tensors", "pickled code"]
KINDS += ["of another run"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, kind):
    for folder in ("run", "foreign"):
        log_with_checkpoints(tmp_path / folder, 3)
    out = tmp_path / "run"
    damage(kind, out, tmp_path / "foreign")
    state = load_checkpoint(out)
    shown = capsys.readouterr().out
    assert state["step"] == 2 and (state["w"] == 2).all()
    assert shown.count("\n") == 1 and str(out / NEWEST) in shown and "step 2" in shown
    assert load_checkpoint(out)["step"] == 2  # the damaged one is gone, for the good one's sake
    assert not capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path, kind):
    for folder in ("run", "foreign"):
        log_with_checkpoints(tmp_path / folder, 2)
    out = tmp_path / "run"
    damage(kind, out, tmp_path / "foreign")
    shutil.copy(out / NEWEST, out / PREVIOUS)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=r"checkpoint\.pt.*checkpoint-previous\.pt.*--overwrite"):
        load_checkpoint(out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_with_a_damaged_checkpoint_ends_as_an_uninterrupted_one(
    tmp_path, request, monkeypatch, name
):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run, out = request.getfixturevalue(fixture), tmp_path / "parts"
    settings = {**settings, "save_every": 2}
    script.main(config(tiny_run, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, out, **settings))
    damage("flipped bit", out, tmp_path)
    script.main(config(tiny_run, out, resume=True, **settings))
    assert_same_run(out, tmp_path / "whole")


def test_a_resumed_run_continues_all_random_numbers(tmp_path):
    log = log_with_checkpoints(tmp_path, 1)
    log.checkpoint(2, {})
    numbers = random.random(), torch.rand(3).tolist()
    random.seed(9), torch.manual_seed(9)
    resumed(tmp_path)
    assert (random.random(), torch.rand(3).tolist()) == numbers


# A full disk, a missing folder: one sentence, and what was saved before is whole.


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "summary.json"
    replace_text(file, "old")
    with full_disk(100), pytest.raises(InputError, match=r"cannot write .*summary\.json"):
        replace_text(file, "new" * 1000)
    assert file.read_text() == "old" and names(tmp_path) == {"summary.json"}


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones(tmp_path):
    log = log_with_checkpoints(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(6000), pytest.raises(InputError, match=r"cannot write .*checkpoint\.pt \(File"):
        log.checkpoint(3, {"w": torch.ones(5000)})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path):
    tokenizer = tiny_tokenizer("chatml")
    save_model(tiny_model("llama", seed=1), tokenizer, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(5000), pytest.raises(InputError, match="cannot write"):
        save_model(tiny_model("llama", seed=2), tokenizer, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_that_cannot_be_written_stop_the_run(tmp_path):
    log = log_with_checkpoints(tmp_path, 1)
    with full_disk(100), pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl"):
        for step in range(2, 50):
            log.log(step, {"a": step})
    resumed(tmp_path)
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_disk_that_fills_up_ends_in_one_sentence_and_the_run_can_be_resumed(
    tmp_path, request, monkeypatch, capfd, name
):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run, out = request.getfixturevalue(fixture), tmp_path / "parts"
    settings = {**settings, "save_every": 2}
    script.main(config(tiny_run, tmp_path / "whole", **settings))
    checkpoint = RunLog.checkpoint

    def on_a_full_disk(self, step, state):
        with full_disk(resource.RLIM_INFINITY if step < 4 else 20_000):
            checkpoint(self, step, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "checkpoint", on_a_full_disk)
        message = exit_of(script, config(tiny_run, out, **settings), capfd)
    assert "checkpoint.pt" in message and "--resume" in message
    assert load_checkpoint(out)["step"] == 2
    script.main(config(tiny_run, out, resume=True, **settings))
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("step", [1, 6], ids=["before a checkpoint", "before the model"])
def test_a_folder_that_vanishes_gives_one_sentence(
    tmp_path, request, monkeypatch, capfd, name, step
):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run, out, log = request.getfixturevalue(fixture), tmp_path / "run", RunLog.log

    def deleted(self, number, *rest):
        log(self, number, *rest)
        if number == step:
            shutil.rmtree(out)

    monkeypatch.setattr(RunLog, "log", deleted)
    save_every = 1 if step == 1 else 100
    message = exit_of(script, config(tiny_run, out, **settings, save_every=save_every), capfd)
    assert f"cannot write {out}" in message and "No such file" in message


@pytest.mark.parametrize(
    ("out", "causes"),
    [
        ("a\0b", ["--out 'a\\x00b'", "null"]),
        ("file.txt", ["--out 'file.txt'", "it is a file"]),
        ("file.txt/run", ["--out 'file.txt/run'", "Not a directory"]),
        ("/proc/run", ["--out '/proc/run'", "No such file"]),
        ("new/" + "x" * 300, ["--out", "File name too long"]),
    ],
    ids=["NUL", "file", "file as parent", "unwritable", "too long"],
)
@pytest.mark.parametrize("name", TRAININGS)
def test_a_folder_that_cannot_be_made_gives_one_sentence(
    tmp_path, request, monkeypatch, capfd, name, out, causes
):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    message = exit_of(script, config(tiny_run, out, **settings), capfd)
    assert all(cause in message for cause in causes), message
    assert names(tmp_path) == {"file.txt"} and (tmp_path / "file.txt").read_text() == "x"


# One run at a time in a folder.

HOLD = """
import sys
from rlhf_min.reporting.folder_files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def judge_run(tiny_policy_run):
    """Settings of judge.py: two tiny models and its prompts."""
    data = tiny_policy_run["data"]
    models = dict.fromkeys("ab", tiny_policy_run["model"])
    reward_model = f"reward-model:{tiny_policy_run['scalar']}"
    return {**models, "data": data, "judge": reward_model, "max_new_tokens": 4}


def judge_config(settings: dict, out: Path, **more) -> judge.Config:
    return judge.Config(**{**settings, "out": str(out), **more})


ALL = {
    **{name: SCRIPTS[name] for name in TRAININGS},
    "judge": (judge, "judge_run", judge_config, {}),
}


@pytest.mark.parametrize("name", ALL)
def test_a_folder_in_use_is_refused_and_a_killed_process_leaves_it_free(tmp_path, request, name):
    script, fixture, config, settings = ALL[name]
    settings = config(request.getfixturevalue(fixture), tmp_path / "run", **settings)
    out, pipe = Path(settings.out), subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stdin=pipe, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"^--out {out} is in use .* process {holder.pid}:"):
            script.main(settings)
        assert names(out) == {".lock"}
        holder.kill()
    script.main(settings)
    assert ".lock" not in names(out) and "summary.json" in names(out)


def test_two_runs_that_start_at_once_do_not_share_a_folder(tmp_path):
    """Four processes try to lock one folder again and again; never do two hold it together."""
    code = (
        "import os, sys, time\n"
        "from rlhf_min.reporting.folder_files import locked\n"
        "from rlhf_min import InputError\n"
        "end, held = time.time() + 1, 0\n"
        "while time.time() < end:\n"
        "    try:\n"
        "        with locked('run'):\n"
        "            os.close(os.open('alone', os.O_CREAT | os.O_EXCL))\n"
        "            os.unlink('alone')\n"
        "            held += 1\n"
        "    except InputError as error:\n"
        "        assert 'in use' in str(error), error\n"
        "print(held)\n"
    )
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    held = 0
    for process in processes:
        output, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        held += int(output)
    assert held > 10 and names(tmp_path) == {"run"}


# --overwrite, --resume and --out.


@pytest.fixture
def pictures(monkeypatch):
    """A test that uses this fixture gets the real report."""
    monkeypatch.undo()


@pytest.mark.parametrize("name", ALL)
def test_all_files_that_a_run_writes_are_known_and_no_others_are_deleted(
    tmp_path, request, pictures, name
):
    script, fixture, config, settings = ALL[name]
    script.main(config(request.getfixturevalue(fixture), tmp_path, **settings))
    written = names(tmp_path)
    assert {"summary.json", "report.html"} < written
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "photo.png").write_text("mine")
    folder_files.remove_results(tmp_path)
    assert names(tmp_path) == {"run.json", "notes.txt", "photo.png"}


@pytest.mark.parametrize("name", TRAININGS)
def test_an_interrupted_overwrite_leaves_an_unfinished_run(
    tmp_path, request, monkeypatch, tiny_policy_run, name
):
    """Not the old model beside the new settings, which another run would use without a word."""
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run, out = request.getfixturevalue(fixture), tmp_path / "run"
    script.main(config(tiny_run, out, **{**settings, "seed": 1}))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, out, overwrite=True, **settings))
    assert names(out) == {"run.json", "metrics.jsonl", NEWEST}
    assert is_unfinished(str(out))
    policy = SCRIPTS["moving average"]
    with pytest.raises(InputError, match=r"--reward-model .* interrupted"):
        policy[0].main(policy[2]({**tiny_policy_run, "scalar": str(out)}, tmp_path / "next"))
    script.main(config(tiny_run, out, resume=True, **settings))
    script.main(config(tiny_run, tmp_path / "fresh", **settings))
    assert_same_run(out, tmp_path / "fresh")


@pytest.mark.parametrize("name", ALL)
def test_resume_and_overwrite_together_are_refused(tmp_path, request, name):
    script, fixture, config, settings = ALL[name]
    tiny_run = request.getfixturevalue(fixture)
    with pytest.raises(InputError, match=r"--resume .* --overwrite .* give one of them"):
        script.main(config(tiny_run, tmp_path, resume=True, overwrite=True, **settings))
    assert not names(tmp_path)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_killed_before_its_report_gets_it_by_resume(
    tmp_path, request, monkeypatch, capsys, name
):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run, calls = request.getfixturevalue(fixture), []

    def killed(out):
        raise SystemError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", killed)
        with pytest.raises(SystemError):
            script.main(config(tiny_run, tmp_path, **settings))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(report, "write_report", calls.append)
    script.main(config(tiny_run, tmp_path, resume=True, **settings))
    assert calls == [tmp_path] and "report" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "report.html").write_text("the report")
    with pytest.raises(InputError, match="is finished"):
        script.main(config(tiny_run, tmp_path, resume=True, **settings))


@pytest.mark.parametrize("name", TRAININGS)
def test_a_moved_folder_is_resumed_under_any_spelling_of_its_path(
    tmp_path, request, monkeypatch, name
):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "before", **settings))
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path)
    check_folder(config(tiny_run, "./after/", resume=True, **settings))
    script.main(config(tiny_run, "after/../after", resume=True, **settings))
    script.main(config(tiny_run, tmp_path / "whole", **settings))
    assert_same_run(tmp_path / "after", tmp_path / "whole")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_whose_model_changed_is_not_resumed(tmp_path, request, monkeypatch, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    model = str(shutil.copytree(tiny_run["model"], tmp_path / "model"))
    tiny_run = {**tiny_run, "model": model}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "run", **settings))
    tiny_folder(model, "smol", intermediate_size=32)
    before = (tmp_path / "run" / NEWEST).read_bytes()
    with pytest.raises(InputError, match=f"does not fit {model}, which changed"):
        script.main(config(tiny_run, tmp_path / "run", resume=True, **settings))
    assert (tmp_path / "run" / NEWEST).read_bytes() == before


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("entry", ["optimiser", "model", "generator", "before", "random"])
def test_a_checkpoint_without_an_entry_is_not_used(tmp_path, request, monkeypatch, name, entry):
    """As another version might have written it."""
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "run", **settings))
    path = tmp_path / "run" / NEWEST
    state = torch.load(path, weights_only=True)
    if state.pop(entry, None) is None:
        pytest.skip("of the other script")
    torch.save(state, path)
    with pytest.raises(InputError, match="is not a checkpoint of this version"):
        script.main(config(tiny_run, tmp_path / "run", resume=True, **settings))


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_whose_run_json_is_damaged_is_not_resumed(tmp_path, request, monkeypatch, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "run", **settings))
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": 3}))
    with pytest.raises(InputError, match=r"run/run\.json is damaged"):
        script.main(config(tiny_run, tmp_path / "run", resume=True, **settings))


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_whose_data_changed_is_not_resumed(tmp_path, request, monkeypatch, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    rows = rows_of(Path(tiny_run["data"][0]))
    tiny_run = {**tiny_run, "data": [write_rows(tmp_path / "data.jsonl", rows)]}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "run", **settings))
    write_rows(tmp_path / "data.jsonl", [{**row, "prompt": row["prompt"] + "!"} for row in rows])
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="data changed"):
        script.main(config(tiny_run, tmp_path / "run", resume=True, **settings))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_never_replaces_its_own_model(tmp_path, request, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    out = Path(tiny_run["model"])
    before = names(out)
    with pytest.raises(InputError, match="--model and --out are both"):
        script.main(config(tiny_run, f"{out}/../{out.name}", overwrite=True, **settings))
    assert names(out) == before


def test_the_drafts_of_a_killed_run_are_deleted_at_the_next_start(tmp_path):
    log_with_checkpoints(tmp_path, 1)
    whole = names(tmp_path)
    (tmp_path / ".saving-x1").mkdir()
    (tmp_path / ".saving-x1" / "model.safetensors").write_text("half")
    for name in ("checkpoint.pt", "run.json", "summary.json", "report.html"):
        (tmp_path / f"{name}.part").write_text("half")
    (tmp_path / "film.part").write_text("mine")
    resumed(tmp_path)
    assert names(tmp_path) == whole | {"film.part"}


# Signals and kills.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_the_loop_ends_in_one_line(number, capsys):
    def main(config):
        os.kill(os.getpid(), number)
        time.sleep(10)

    with pytest.raises(SystemExit) as stop:
        command_line.run(main, judge.Config, [])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted: the same command with --resume goes on\n"


def catches(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal (Linux)."""
    status = Path(f"/proc/{process}/status").read_text().split()
    return bool(int(status[status.index("SigCgt:") + 1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("script", ["train_rm", "train_policy", "judge"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_ends_in_one_line(tmp_path, script, number):
    process = subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", "--out", tmp_path / "run"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not catches(process.pid, signal.SIGTERM):  # the first import installs the handlers
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "interrupted\n")
    assert not names(tmp_path)


def test_killed_runs_end_as_if_never_killed():
    """The short form of tests/kill_runs.py; docs/LOG.md has a result of the long form."""
    command = [sys.executable, ROOT / "tests" / "kill_runs.py", "--kills", "6", "--chain", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kills of" in done.stdout
