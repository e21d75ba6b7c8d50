"""A run's folder, and going on after an interruption as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train_policy import config_of as policy_config
from test_train_policy import world as policy_world
from test_train_rm import rows_of
from test_train_rm import world as rm_world

import train_policy
import train_rm
from rlhf_min import InputError, command_line
from rlhf_min.hardware.device import Clock
from rlhf_min.reporting import report
from rlhf_min.reporting.run_folder import RunLog, check_folder, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
__all__ = ["policy_world", "rm_world"]  # fixtures


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    data: tuple = ("zoo",)
    out: str = "here"
    resume: bool = False
    overwrite: bool = False
    save_every: int = 10


# The folder.


def test_an_absent_or_empty_folder_is_free_and_stays_untouched(tmp_path):
    check_folder(Settings(out=str(tmp_path)))
    check_folder(Settings(out=str(tmp_path / "new"), resume=True))
    assert not (tmp_path / "new").exists() and not any(tmp_path.iterdir())


def test_a_folder_with_another_run_is_refused_unless_told(tmp_path):
    RunLog("x.py", Settings(out=str(tmp_path)), {})
    with pytest.raises(InputError, match="another run"):
        check_folder(Settings(out=str(tmp_path)))
    check_folder(Settings(out=str(tmp_path), overwrite=True))
    check_folder(Settings(out=str(tmp_path), resume=True))
    with pytest.raises(InputError, match=r"--lr 0\.1, not 0\.2"):
        check_folder(Settings(0.2, out=str(tmp_path), resume=True))


def test_a_folder_with_foreign_files_or_a_file_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(InputError, match="no run wrote"):
        check_folder(Settings(out=str(tmp_path)))
    with pytest.raises(InputError, match="no run"):
        check_folder(Settings(out=str(tmp_path), resume=True))
    with pytest.raises(InputError, match="is a file"):
        check_folder(Settings(out=str(tmp_path / "photo.jpg")))


def test_metrics_go_on_after_the_step_that_was_saved(tmp_path):
    log = RunLog("x.py", Settings(out=str(tmp_path)), {"rows": 3})
    for step in (1, 2, 3):
        log.log(step, {"a": step / 2, "bad": float("nan"), "tensor": torch.tensor(1.5)})
    RunLog("x.py", Settings(out=str(tmp_path)), {}, step=2).log(3, {"a": 9.0})
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["a"]) for r in rows] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert rows[0]["bad"] is None and rows[0]["tensor"] == 1.5
    RunLog("x.py", Settings(out=str(tmp_path)), {}).finish({"done": True})
    assert rows_of(tmp_path / "metrics.jsonl") == []
    assert json.loads((tmp_path / "summary.json").read_text())["done"]


def test_a_line_cut_off_by_a_power_cut_does_not_prevent_going_on(tmp_path):
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    log.log(1, {"a": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a"')
    RunLog("x.py", Settings(out=str(tmp_path)), {}, step=1).log(2, {"a": 2})
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_run_json_cut_off_is_told_in_words(tmp_path):
    (tmp_path / "run.json").write_text('{"config"')
    with pytest.raises(InputError, match=r"run\.json"):
        check_folder(Settings(out=str(tmp_path), resume=True))


def test_overwriting_forgets_the_old_run(tmp_path):
    for name in ("metrics.jsonl", "summary.json", "checkpoint.pt", "samples.jsonl"):
        (tmp_path / name).write_text('{"step": 1}\n')
    RunLog("x.py", Settings(out=str(tmp_path), overwrite=True), {})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["metrics.jsonl", "run.json"]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_checkpoint_comes_back_or_is_absent(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, {"step": 3, "w": torch.ones(2), "rows": [{"a": "b"}]})
    state = load_checkpoint(tmp_path)
    assert state["step"] == 3 and state["rows"] == [{"a": "b"}] and (state["w"] == 1).all()
    assert [f.name for f in tmp_path.iterdir()] == ["checkpoint.pt"]
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    for _ in range(2):
        log.finish({})
        assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_in_progress_ends_before_the_run_stops(number, tmp_path):
    before = signal.getsignal(number)
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    with log.stop_between_steps():
        assert not log.checkpoint_due(1)
        os.kill(os.getpid(), number)
        assert log.checkpoint_due(1)
        with pytest.raises(KeyboardInterrupt):
            log.checkpoint(1, {})
        assert load_checkpoint(tmp_path) == {"step": 1}
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
    assert signal.getsignal(number) is before


def test_the_clock_adds_up_its_parts():
    clock = Clock()
    for part in ("a", "b", "a"):
        time.sleep(0.01)
        clock(part)
    assert clock.seconds.keys() == {"time/a", "time/b"}
    assert clock.seconds["time/a"] > clock.seconds["time/b"] >= 0.009


# Going on.  An interruption anywhere must leave no trace in weights and metrics.


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda out: None)


def rm_config(world: dict, out: Path, **settings) -> train_rm.Config:
    world = {**world, "batch_size": 3, "max_steps": 6, "eval_every": 2}  # 3 + 3 + 2 of 8 pairs
    return train_rm.Config(**{**world, "out": str(out), **settings})


SCRIPTS = {
    "reward model": (train_rm, "rm_world", rm_config, {"head": "ratings"}),
    "moving average": (train_policy, "policy_world", policy_config, {"steps": 6}),
    "ema": (train_policy, "policy_world", policy_config, {"steps": 6, "baseline": "ema"}),
    "ppo": (
        train_policy, "policy_world", policy_config,
        {"steps": 6, "objective": "ppo-clip", "updates": 2, "reading": "win"},
    ),
    "checkpointing": (
        train_policy, "policy_world", policy_config, {"steps": 6, "gradient_checkpointing": True},
    ),
    "bfloat16": (train_policy, "policy_world", policy_config, {"steps": 6, "dtype": "bfloat16"}),
}  # fmt: skip


def result(out: Path) -> tuple[dict, list[dict], dict]:
    """Weights, metrics and summary of a run, without its times."""
    metrics = [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in rows_of(out / "metrics.jsonl")
    ]
    summary = json.loads((out / "summary.json").read_text())
    summary.pop("seconds")
    return load_file(out / "model.safetensors"), metrics, summary


def same(one: Path, other: Path) -> None:
    weights, *numbers = result(one)
    others, *other_numbers = result(other)
    assert numbers == other_numbers
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def interrupt_at(monkeypatch, step: int) -> None:
    """A real SIGINT when this step writes its numbers."""
    log = RunLog.log

    def interrupted(self, number, *rest):
        log(self, number, *rest)
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLog, "log", interrupted)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_resumed_run_ends_exactly_as_an_uninterrupted_one(tmp_path, request, monkeypatch, name):
    script, world, config, settings = SCRIPTS[name]
    world = request.getfixturevalue(world)
    script.main(config(world, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(world, tmp_path / "parts", **settings))
    out = tmp_path / "parts"
    assert (out / "checkpoint.pt").exists() and not (out / "summary.json").exists()
    assert len(rows_of(out / "metrics.jsonl")) == 4
    script.main(config(world, out, resume=True, **settings))
    assert not (out / "checkpoint.pt").exists()
    same(out, tmp_path / "whole")


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_an_interruption_at_the_last_step_is_resumed_too(tmp_path, request, monkeypatch, name):
    script, world, config, settings = SCRIPTS[name]
    world = request.getfixturevalue(world)
    script.main(config(world, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(world, tmp_path / "parts", **settings))
    script.main(config(world, tmp_path / "parts", resume=True, **settings))
    same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, request, monkeypatch, name):
    """Saved after 2 and 4, killed in 5: step 5 is done again, its line written once."""
    script, world, config, settings = SCRIPTS[name]
    world, settings = request.getfixturevalue(world), {**settings, "save_every": 2}
    script.main(config(world, tmp_path / "whole", **settings))
    log = RunLog.log

    def killed(self, number, *rest):
        log(self, number, *rest)
        if number == 5:
            raise SystemError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "log", killed)
        with pytest.raises(SystemError):
            script.main(config(world, tmp_path / "parts", **settings))
    assert load_checkpoint(tmp_path / "parts")["step"] == 4
    script.main(config(world, tmp_path / "parts", resume=True, **settings))
    same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_resuming_a_finished_run_does_not_train_it_again(tmp_path, request, name):
    script, world, config, settings = SCRIPTS[name]
    world = request.getfixturevalue(world)
    script.main(config(world, tmp_path / "run", **settings))
    stamp = (tmp_path / "run" / "metrics.jsonl").read_text()
    try:
        script.main(config(world, tmp_path / "run", resume=True, **settings))
    except InputError as error:
        assert "finished" in str(error)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == stamp


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_resuming_with_other_settings_is_refused(tmp_path, request, monkeypatch, name):
    script, world, config, settings = SCRIPTS[name]
    world = request.getfixturevalue(world)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(world, tmp_path / "run", **settings))
    with pytest.raises(InputError, match="--lr"):
        script.main(config(world, tmp_path / "run", **{**settings, "lr": 0.5}, resume=True))
    assert load_checkpoint(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_overwriting_a_run_gives_what_a_fresh_folder_gives(tmp_path, request, name):
    script, world, config, settings = SCRIPTS[name]
    world = request.getfixturevalue(world)
    script.main(config(world, tmp_path / "fresh", **settings))
    script.main(config(world, tmp_path / "used", **{**settings, "seed": 7}))
    script.main(config(world, tmp_path / "used", overwrite=True, **settings))
    same(tmp_path / "used", tmp_path / "fresh")


def test_control_c_through_the_shell_then_resume(tmp_path, policy_world):
    """Exit code 130, one word, no traceback; then the very weights of an undisturbed run."""
    world = policy_world
    out, settings = tmp_path / "parts", {"steps": 60, "save_every": 1000, "lr": 1e-4}
    line = f"train_policy.py --model {world['model']} --reward-model {world['scalar']}"
    line += f" --data {world['data'][0]} --eval-data {world['eval_data'][0]} --samples 2 --steps 60"
    line += (
        f" --batch-size 8 --max-new-tokens 8 --lr 1e-4 --warm-up 2 --save-every 1000 --out {out}"
    )
    process = subprocess.Popen(
        [sys.executable, *line.split()], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    metrics, deadline = out / "metrics.jsonl", time.time() + 100
    while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in errors and errors.rstrip().endswith("interrupted: --resume goes on")
    done = load_checkpoint(out)["step"]
    assert 3 <= done < 60 and len(rows_of(metrics)) == done
    train_policy.main(policy_config(world, out, **settings, resume=True))
    train_policy.main(policy_config(world, tmp_path / "whole", **settings))
    same(out, tmp_path / "whole")


def test_a_gradient_that_is_not_finite_is_told_in_words(tmp_path, policy_world, capsys):
    """A learning rate far too high: one sentence and exit code 2, not a traceback."""
    config = policy_config(policy_world, tmp_path / "run", lr=1e30, steps=3, max_grad_norm=1e30)
    line = [f"--{k}={v}" for k, v in vars(config).items() if isinstance(v, (int, float, str)) and v]
    line = [word for word in line if "=True" not in word and "=False" not in word]
    line += ["--data", *config.data, "--eval-data", *config.eval_data]
    with pytest.raises(SystemExit) as stop:
        command_line.run(train_policy.main, train_policy.Config, line)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_nothing_to_resume_is_said(tmp_path, capsys):
    assert load_checkpoint(tmp_path) is None
    assert f"nothing to resume in {tmp_path}" in capsys.readouterr().out
