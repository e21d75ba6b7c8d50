"""Live tracking with the real TensorBoard and Weights & Biases packages, without network."""

import sys
from dataclasses import dataclass

import pytest

from rlhf_min import InputError
from rlhf_min.reporting.run_folder import RunLog


@dataclass(frozen=True)
class Settings:
    track: str
    out: str
    resume: bool = False
    overwrite: bool = False


def test_tensorboard_gets_every_number_with_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog("x.py", Settings("tensorboard", str(tmp_path)), {})
    for step in (1, 2):
        log.log(step, {"reward/mean": step / 2, "text": "left out", "bad": float("nan")})
    log.finish({})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.5), (2, 1.0)]
    assert set(events.Tags()["scalars"]) == {"step", "reward/mean"}


def test_wandb_offline_writes_a_run_to_disk(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = RunLog("x.py", Settings("wandb", str(tmp_path)), {})
    log.log(1, {"reward/mean": 0.5})
    log.finish({})
    wandb.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_without_tracking_only_the_usual_files_are_written(tmp_path):
    RunLog("x.py", Settings("none", str(tmp_path)), {}).log(1, {"a": 1})
    assert {f.name for f in tmp_path.iterdir()} == {"run.json", "metrics.jsonl"}


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_told_before_anything_is_written_or_deleted(
    package, tmp_path, monkeypatch
):
    (tmp_path / "old").mkdir()
    RunLog("x.py", Settings("none", str(tmp_path / "old")), {}).log(1, {"a": 1})
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    for out, overwrite in (("old", True), ("new", False)):
        settings = Settings(package, str(tmp_path / out), overwrite=overwrite)
        with pytest.raises(InputError, match=f"--track {package} needs {package}: pip install -e"):
            RunLog("x.py", settings, {})
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert not list((tmp_path / "new").iterdir())


def test_wandb_that_cannot_start_is_told_before_anything_is_deleted(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**settings):
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    RunLog("x.py", Settings("none", str(tmp_path)), {}).log(1, {"a": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"cannot start .no API key.: log in"):
        RunLog("x.py", Settings("wandb", str(tmp_path), overwrite=True), {})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
