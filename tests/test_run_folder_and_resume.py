"""The folder of a run; and --resume, which gives the numbers of an uninterrupted run."""

import json
import os
import platform
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
from test_train_policy import tiny_run as tiny_policy_run
from test_train_rm import rows_of
from test_train_rm import tiny_run as tiny_rm_run

import train_policy
import train_rm
from rlhf_min import InputError
from rlhf_min.hardware.device import Clock
from rlhf_min.reporting import folder_files, report
from rlhf_min.reporting.checkpoints import load_checkpoint
from rlhf_min.reporting.environment import cpu_name
from rlhf_min.reporting.run_folder import RunLog, check_folder

ROOT = Path(__file__).parents[1]
__all__ = ["tiny_policy_run", "tiny_rm_run"]  # fixtures


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    data: tuple = ("zoo",)
    out: str = "here"
    resume: bool = False
    overwrite: bool = False
    save_every: int = 10


# The folder.


def test_an_absent_or_empty_folder_is_accepted_and_nothing_is_written(tmp_path):
    check_folder(Settings(out=str(tmp_path)))
    check_folder(Settings(out=str(tmp_path / "new"), resume=True))
    assert not (tmp_path / "new").exists() and not any(tmp_path.iterdir())


def test_overwrite_deletes_nothing_that_the_run_reads(tmp_path):
    """The next reward model learns from runs/judge/comparisons.jsonl, a result of that folder."""
    RunLog("x.py", Settings(out=str(tmp_path)), {})
    for name in ("comparisons.jsonl", "mine.jsonl", "adapter/adapter_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    inside, link = tmp_path / "comparisons.jsonl", tmp_path.parent / f"{tmp_path.name}.jsonl"
    link.symlink_to(inside)
    adapter = tmp_path / "adapter"
    relative = tmp_path / ".." / tmp_path.name / inside.name
    for path in (inside, relative, link, adapter, f"reward-model:{adapter}"):
        with pytest.raises(InputError, match=r"--data .* lies in --out"):
            check_folder(Settings(data=["zoo", str(path)], out=str(tmp_path), overwrite=True))
    for name in ("mine.jsonl", "absent.jsonl"):
        check_folder(Settings(data=[str(tmp_path / name)], out=str(tmp_path), overwrite=True))


def test_an_empty_name_of_a_folder_is_refused():
    with pytest.raises(InputError, match="--out is empty"), folder_files.locked(""):
        pass


def test_a_folder_with_another_run_needs_resume_or_overwrite(tmp_path):
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
    with pytest.raises(InputError, match="no run"):
        check_folder(Settings(out=str(tmp_path), overwrite=True))


def resumed(out: Path) -> RunLog:
    """The log of a run that goes on from its checkpoint."""
    return RunLog("x.py", Settings(out=str(out), resume=True), {}, load_checkpoint(out))


def test_resuming_replaces_the_metrics_after_the_saved_step(tmp_path):
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    for step in (1, 2, 3):
        log.log(step, {"a": step / 2, "bad": float("nan"), "tensor": torch.tensor(1.5)})
        if step == 2:
            log.checkpoint(2, {})
    resumed(tmp_path).log(3, {"a": 9.0})
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["a"]) for r in rows] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert rows[0]["bad"] is None and rows[0]["tensor"] == 1.5
    RunLog("x.py", Settings(out=str(tmp_path)), {}).finish({"done": True})
    assert rows_of(tmp_path / "metrics.jsonl") == []
    assert json.loads((tmp_path / "summary.json").read_text())["done"]


@pytest.mark.parametrize("damage", ['{"step": 2, "a"', '{"step": 1, "a": 7}\n', "\n\n", None])
def test_resumed_metrics_are_those_of_the_checkpoint_whatever_the_file_holds(tmp_path, damage):
    """A torn last line, a row written twice, empty lines, or no file at all."""
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    log.log(1, {"a": 0.1})
    log.checkpoint(1, {})
    metrics = tmp_path / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + damage) if damage else metrics.unlink()
    resumed(tmp_path).log(2, {"a": 2})
    assert metrics.read_text() == whole + '{"step": 2, "a": 2}\n'


@pytest.mark.parametrize("text", ['{"config"', '{"config": []}', "[]"])
def test_a_damaged_run_json_is_named_in_the_error(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        check_folder(Settings(out=str(tmp_path), resume=True))


def test_a_checkpoint_is_loaded_as_saved_and_deleted_at_the_end(tmp_path):
    assert load_checkpoint(tmp_path) is None
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    log.checkpoint(3, {"w": torch.ones(2), "rows": [{"a": "b"}]})
    state = load_checkpoint(tmp_path)
    assert state["step"] == 3 and state["rows"] == [{"a": "b"}] and (state["w"] == 1).all()
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"checkpoint.pt", "metrics.jsonl", "run.json"}
    for _ in range(2):
        log.finish({})
        assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_finishes_its_step(number, tmp_path):
    before = signal.getsignal(number)
    log = RunLog("x.py", Settings(out=str(tmp_path)), {})
    with log.stop_between_steps():
        assert not log.checkpoint_due(1)
        os.kill(os.getpid(), number)
        assert log.checkpoint_due(1)
        with pytest.raises(KeyboardInterrupt):
            log.checkpoint(1, {})
        assert load_checkpoint(tmp_path)["step"] == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
    assert signal.getsignal(number) is before


def test_the_clock_adds_the_times_of_a_part():
    clock = Clock()
    for part in ("a", "b", "a"):
        time.sleep(0.01)
        clock(part)
    assert clock.seconds.keys() == {"time/a", "time/b"}
    assert clock.seconds["time/a"] > clock.seconds["time/b"] >= 0.009


# Resuming: an interruption must not change weights or metrics.


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda out: None)


def rm_config(tiny_run: dict, out: Path, **settings) -> train_rm.Config:
    # An epoch of 8 pairs has batches of 3, 3 and 2.
    tiny_run = {**tiny_run, "batch_size": 3, "max_steps": 6, "eval_every": 2}
    return train_rm.Config(**{**tiny_run, "out": str(out), **settings})


SCRIPTS = {
    "reward model": (train_rm, "tiny_rm_run", rm_config, {"head": "ratings"}),
    "moving average": (train_policy, "tiny_policy_run", policy_config, {"steps": 6}),
    "ema": (train_policy, "tiny_policy_run", policy_config, {"steps": 6, "baseline": "ema"}),
    "ppo": (
        train_policy, "tiny_policy_run", policy_config,
        {"steps": 6, "objective": "ppo-clip", "updates": 2, "reading": "win"},
    ),
    "checkpointing": (
        train_policy, "tiny_policy_run", policy_config,
        {"steps": 6, "gradient_checkpointing": True},
    ),
    "bfloat16": (train_policy, "tiny_policy_run", policy_config, {"steps": 6, "dtype": "bfloat16"}),
    "LoRA": (
        train_policy, "tiny_policy_run", policy_config,
        {"steps": 6, "lora_rank": 2, "lr": 0.02, "dtype": "bfloat16"},
    ),
    "LoRA, reward model": (train_rm, "tiny_rm_run", rm_config, {"lora_rank": 2, "lr": 0.02}),
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


def assert_same_run(one: Path, other: Path) -> None:
    """Equal weights, metrics and summary, bit for bit."""
    weights, *numbers = result(one)
    others, *other_numbers = result(other)
    assert numbers == other_numbers
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def interrupt_at(monkeypatch, step: int) -> None:
    """Send SIGINT when this step writes its metrics."""
    log = RunLog.log

    def interrupted(self, number, *rest):
        log(self, number, *rest)
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunLog, "log", interrupted)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, request, monkeypatch, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    script.main(config(tiny_run, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "parts", **settings))
    out = tmp_path / "parts"
    assert (out / "checkpoint.pt").exists() and not (out / "summary.json").exists()
    assert len(rows_of(out / "metrics.jsonl")) == 4
    script.main(config(tiny_run, out, resume=True, **settings))
    assert not (out / "checkpoint.pt").exists()
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_a_run_interrupted_at_its_last_step_can_be_resumed(tmp_path, request, monkeypatch, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    script.main(config(tiny_run, tmp_path / "whole", **settings))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "parts", **settings))
    script.main(config(tiny_run, tmp_path / "parts", resume=True, **settings))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, request, monkeypatch, name):
    """Saved after steps 2 and 4, killed in step 5: step 5 is computed again and logged once."""
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run, settings = request.getfixturevalue(fixture), {**settings, "save_every": 2}
    script.main(config(tiny_run, tmp_path / "whole", **settings))
    log = RunLog.log

    def killed(self, number, *rest):
        log(self, number, *rest)
        if number == 5:
            raise SystemError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "log", killed)
        with pytest.raises(SystemError):
            script.main(config(tiny_run, tmp_path / "parts", **settings))
    assert load_checkpoint(tmp_path / "parts")["step"] == 4
    script.main(config(tiny_run, tmp_path / "parts", resume=True, **settings))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_resuming_a_finished_run_does_not_train_it_again(tmp_path, request, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    script.main(config(tiny_run, tmp_path / "run", **settings))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    try:
        script.main(config(tiny_run, tmp_path / "run", resume=True, **settings))
    except InputError as error:
        assert "finished" in str(error)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_resuming_with_other_settings_is_refused(tmp_path, request, monkeypatch, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config(tiny_run, tmp_path / "run", **settings))
    with pytest.raises(InputError, match="--lr"):
        script.main(config(tiny_run, tmp_path / "run", **{**settings, "lr": 0.5}, resume=True))
    assert load_checkpoint(tmp_path / "run")["step"] == 2


@pytest.mark.parametrize("name", ["reward model", "moving average"])
def test_overwriting_a_run_equals_a_run_in_a_new_folder(tmp_path, request, name):
    script, fixture, config, settings = SCRIPTS[name]
    tiny_run = request.getfixturevalue(fixture)
    script.main(config(tiny_run, tmp_path / "fresh", **settings))
    script.main(config(tiny_run, tmp_path / "used", **{**settings, "seed": 7}))
    script.main(config(tiny_run, tmp_path / "used", overwrite=True, **settings))
    assert_same_run(tmp_path / "used", tmp_path / "fresh")


def test_control_c_through_the_shell_then_resume(tmp_path, tiny_policy_run):
    """Exit code 130, one line, no traceback; resumed, the weights of an uninterrupted run."""
    tiny_run = tiny_policy_run
    out, settings = tmp_path / "parts", {"steps": 60, "save_every": 1000, "lr": 1e-4}
    line = f"train_policy.py --model {tiny_run['model']} --reward-model {tiny_run['scalar']}"
    line += f" --data {tiny_run['data'][0]} --eval-data {tiny_run['eval_data'][0]}"
    line += " --samples 2 --steps 60 --batch-size 8 --max-new-tokens 8 --lr 1e-4 --warm-up 2"
    line += f" --save-every 1000 --out {out}"
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
    assert "Traceback" not in errors and errors.rstrip().endswith("with --resume goes on")
    done = load_checkpoint(out)["step"]
    assert 3 <= done < 60 and len(rows_of(metrics)) == done
    train_policy.main(policy_config(tiny_run, out, **settings, resume=True))
    train_policy.main(policy_config(tiny_run, tmp_path / "whole", **settings))
    assert_same_run(out, tmp_path / "whole")


def test_a_missing_checkpoint_is_reported(tmp_path, capsys):
    assert load_checkpoint(tmp_path) is None
    assert f"nothing to resume in {tmp_path}" in capsys.readouterr().out


def test_the_cpu_is_named_with_its_family_because_a_virtual_machine_hides_the_name(tmp_path):
    info = tmp_path / "cpuinfo"
    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n"
    info.write_text(f"{one}\n{one}")
    assert cpu_name(info) == "AMD EPYC (family 25, model 17)"
    info.write_text("processor : 0\nBogoMIPS : 50\n")  # ARM
    other = platform.processor() or platform.machine()
    assert cpu_name(info) == cpu_name(tmp_path / "missing") == other != ""
