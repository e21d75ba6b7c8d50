"""The folder of a run: who may write in it, its settings, metrics, checkpoint and summary."""

import json
import math
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_min import InputError
from rlhf_min.data.files import replace_text

CHECKPOINT = "checkpoint.pt"
IN_BAR = {"loss": "loss/train", "accuracy": "accuracy/train", "reward": "reward/mean"}
IN_BAR |= {"gold": "reward/gold", "kl": "kl/mean"}  # name in the progress bar → metric
RESULTS = ("metrics.jsonl", "summary.json", CHECKPOINT, "samples.jsonl", "held_out_scores.jsonl")


def check_folder(config, may_differ: Collection[str] = ()) -> None:
    """Raise InputError when a run with these settings must not write in its folder, --out.

    With --resume the folder must hold this very run or nothing; settings named in `may_differ` may
    have changed since.
    """
    out, folder = config.out, Path(config.out)
    if folder.is_file():
        raise InputError(f"--out {out} is a file: give a folder")
    if not folder.exists() or not any(folder.iterdir()) or config.overwrite:
        return
    run = folder / "run.json"
    if not config.resume:
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
        if name not in ("resume", "overwrite", *may_differ) and now[name] != before.get(name):
            raise InputError(
                f"--resume continues the run in {out}, which had --{name.replace('_', '-')} "
                f"{before.get(name)}, not {now[name]}: give the same settings"
            )


def check_training(config, may_be_unfinished: str = "") -> None:
    """`check_folder` for a training run; its models must not be runs that were interrupted.

    may_be_unfinished: a model's folder that the script goes on training by itself.
    """
    for name in ("model", "reward_model", "reference"):
        path = getattr(config, name, "")
        if path != may_be_unfinished and is_unfinished(path):
            raise InputError(
                f"--{name.replace('_', '-')} {path} is a run that was interrupted: "
                "go on with it first, by the same command with --resume"
            )
    check_folder(config)
    if config.resume and (Path(config.out) / "summary.json").exists():
        raise InputError(
            f"the run in {config.out} is finished, --resume has nothing to do: give new --out"
        )


def is_unfinished(folder: str) -> bool:
    """Whether a training run began in this folder and has saved no model yet."""
    return (Path(folder) / "run.json").exists() and not (Path(folder) / "config.json").exists()


def environment() -> dict:
    """Versions, git commit, device, threads and time: what run.json says beside the settings."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit, changes = (
        subprocess.run([*git, *command], capture_output=True, text=True).stdout.strip()
        for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
    )
    gpu = torch.cuda.is_available()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
        "commit": (commit or "unknown") + ("+changes" if changes else ""),
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


class RunLog:
    """Writes run.json, metrics.jsonl, checkpoints and summary.json of one run.

    Open it only when the input is known to be good: from then on the folder belongs to the run.
    """

    def __init__(self, script: str, config, data: dict, step: int = 0):
        """data: facts about the data for run.json; step > 0: resume after that step.

        The metrics of later steps are dropped, because these steps are computed again.
        """
        self.out, self.begin = Path(config.out), time.perf_counter()
        self.save_every = getattr(config, "save_every", 1)
        self.stop_requested = False
        self.out.mkdir(parents=True, exist_ok=True)
        if config.overwrite and not step:
            for name in (*RESULTS, "report.html"):
                (self.out / name).unlink(missing_ok=True)
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if step and path.exists() else []
        replace_text(path, "".join(f"{line}\n" for line in lines if _step(line) <= step))
        run = {"script": script, "config": asdict(config), "data": data, **environment()}
        self.write("run.json", run)
        self.file = path.open("a")
        self.track = _tracker(getattr(config, "track", "none"), self.out, run)

    def log(self, step: int, metrics: dict, bar=None) -> None:
        """Write the metrics of a step, counted from 1, and show some of them in a progress bar.

        A number that is not finite becomes null.
        """
        row = {"step": step} | {name: _finite(value) for name, value in metrics.items()}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.track(step, {k: v for k, v in row.items() if isinstance(v, (int, float))})
        if bar is not None:
            shown = {name: metrics[key] for name, key in IN_BAR.items() if key in metrics}
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})

    @contextmanager
    def stop_between_steps(self):
        """Context manager: Ctrl-C and SIGTERM stop after the next checkpoint, twice at once."""

        def request(number, frame):
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True

        try:
            before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # Python allows signal handlers in the main thread only
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def checkpoint_due(self, step: int) -> bool:
        """Whether to save now: every `save_every` steps, and when asked to stop."""
        return self.stop_requested or step % self.save_every == 0

    def checkpoint(self, step: int, state: dict) -> None:
        """Save the state after this step; then raise KeyboardInterrupt if asked to stop."""
        save_checkpoint(self.out, {**state, "step": step})
        if self.stop_requested:
            raise KeyboardInterrupt

    def write(self, name: str, value: dict) -> None:
        """Write a JSON file of the run, whole or not at all."""
        replace_text(self.out / name, json.dumps(value, indent=1) + "\n")

    def write_rows(self, name: str, rows: list[dict]) -> None:
        """Write a .jsonl file of the run, whole or not at all."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        replace_text(self.out / name, "".join(lines))

    def finish(self, summary: dict) -> None:
        """Write the summary, with the seconds since the start, and delete the checkpoint."""
        self.file.close()
        self.write("summary.json", {**summary, "seconds": time.perf_counter() - self.begin})
        (self.out / CHECKPOINT).unlink(missing_ok=True)


def save_checkpoint(out: str | Path, state: dict) -> None:
    """Write the state of an unfinished run, whole or not at all."""
    draft = Path(out) / f"{CHECKPOINT}.part"
    torch.save(state, draft)
    os.replace(draft, Path(out) / CHECKPOINT)


def load_checkpoint(out: str | Path) -> dict | None:
    """The state that save_checkpoint wrote; None, and a line that says so, where there is none."""
    path = Path(out) / CHECKPOINT
    if path.exists():
        return torch.load(path, weights_only=True, map_location="cpu")
    print(f"nothing to resume in {out}: starting from the beginning")
    return None


def _tracker(name: str, out: Path, run: dict) -> Callable[[int, dict], None]:
    """A function (step, metrics) for live tracking; wandb obeys its own WANDB_… variables."""
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
