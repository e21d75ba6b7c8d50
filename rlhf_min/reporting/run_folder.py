"""A run's folder: its settings, one line of numbers per step, its summary."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_min import InputError
from rlhf_min.data.files import replace_text


def check_folder(out: str, config, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse, before anything is computed, a folder that holds another run.  Writes nothing.

    With `resume` the folder must hold this very run (same settings) or nothing.
    """
    folder = Path(out)
    if folder.is_file():
        raise InputError(f"--out {out} is a file: give a folder")
    if not folder.exists() or not any(folder.iterdir()) or overwrite:
        return
    run = folder / "run.json"
    if not resume:
        what = "another run" if run.exists() else "files that no run wrote"
        raise InputError(
            f"--out {out} already holds {what}: give another folder"
            + (", --resume to go on, or --overwrite to replace it" if run.exists() else "")
        )
    if not run.exists():
        raise InputError(f"--resume finds no run in {out} (no run.json): give the run's own folder")
    try:
        before = json.loads(run.read_text())["config"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{run} is damaged, so --resume cannot trust it: start again") from None
    now = json.loads(json.dumps(asdict(config)))
    for name in now:
        if name not in ("resume", "overwrite") and now[name] != before.get(name):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"--resume continues the run in {out}, which had {flag} {before.get(name)}, "
                f"not {now[name]}: give the same settings"
            )


def check_unfinished(out: str, resume: bool) -> None:
    """Refuse to resume a training run that has ended: it would be trained once more."""
    if resume and (Path(out) / "summary.json").exists():
        raise InputError(
            f"the run in {out} is finished, --resume has nothing to do: give new --out"
        )


def is_unfinished(folder: str) -> bool:
    """Whether a training run began here and has saved no model yet."""
    return (Path(folder) / "run.json").exists() and not (Path(folder) / "config.json").exists()


def environment() -> dict:
    """What a reader needs to run it again: versions, commit, device."""
    source = Path(__file__).parent
    git = ["git", "-C", str(source)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    gpu = torch.cuda.is_available()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
        "commit": (commit.stdout.strip() or "unknown") + ("+changes" if dirty.stdout else ""),
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        return f"{names[0].split(':')[1].strip()}, {os.cpu_count()} cores"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


class RunLog:
    """Writes run.json, metrics.jsonl and summary.json.  Open it when the input is known good."""

    def __init__(self, out: str, script: str, config, data: dict, step: int = 0, overwrite=False):
        """step > 0 goes on after that step: later lines of an interrupted run are dropped."""
        self.out = Path(out)
        self.begin = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        if overwrite and not step:
            results = ("samples.jsonl", "held_out_scores.jsonl", "report.html")
            for name in ("metrics.jsonl", "summary.json", "checkpoint.pt", *results):
                (self.out / name).unlink(missing_ok=True)
        self.path = self.out / "metrics.jsonl"
        old = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in old if step and _step(line) <= step]
        replace_text(self.path, "".join(line + "\n" for line in kept))
        run = {"script": script, "config": asdict(config), "data": data, **environment()}
        self.write("run.json", run)
        self.file = self.path.open("a")
        self.track = _tracker(getattr(config, "track", "none"), self.out, run)

    def log(self, step: int, metrics: dict) -> None:
        """One line for this 1-based step; a number that is not finite becomes null."""
        row = {"step": step} | {k: _finite(v) for k, v in metrics.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.track(step, {k: v for k, v in row.items() if isinstance(v, (int, float))})

    def write(self, name: str, value: dict) -> None:
        """A JSON file of the run, whole or not at all."""
        replace_text(self.out / name, json.dumps(value, indent=1) + "\n")

    def write_rows(self, name: str, rows: list[dict]) -> None:
        """A .jsonl file of the run, whole or not at all."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        replace_text(self.out / name, "".join(lines))

    def finish(self, summary: dict) -> None:
        """Write the summary, with the seconds since this process began the run."""
        self.file.close()
        self.write("summary.json", {**summary, "seconds": time.perf_counter() - self.begin})


class Clock:
    """Seconds spent in each named part of a step: call it with the name when the part ends."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        key = f"time/{part}"
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self.last
        self.last = now


def _tracker(name: str, out: Path, run: dict) -> Callable[[int, dict], None]:
    """Live tracking beside the files; wandb follows WANDB_MODE=offline and its other variables."""
    if name == "none":
        return lambda step, row: None
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(out / "tensorboard"))

            def write(step: int, row: dict) -> None:
                for key, value in row.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return write
        import wandb
    except ImportError as error:
        raise InputError(
            f"--track {name} needs a package that is missing ({error.name}): pip install "
            '-e ".[tracking]"'
        ) from error
    tracked = wandb.init(project="rlhf_min", name=out.name, dir=str(out), config=run)
    return lambda step, row: tracked.log(row, step=step)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # cut off by a power cut
        return math.inf


def _finite(value):
    value = value.item() if isinstance(value, torch.Tensor) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
