"""The folder of a run: who may write in it, its settings, metrics, checkpoint and summary."""

import json
import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Collection
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm import tqdm

from rlhf_min import InputError
from rlhf_min.data.files import read_json, replace_text
from rlhf_min.hardware import disk, ranks
from rlhf_min.hardware.finite import naming
from rlhf_min.models.ensemble import member_paths
from rlhf_min.reporting import checkpoints, folder_files, report
from rlhf_min.reporting.diagnosis import collapse
from rlhf_min.reporting.environment import environment
from rlhf_min.reporting.series import too_few
from rlhf_min.reporting.tracking import tracker

IN_BAR = {"loss": "loss/train", "accuracy": "accuracy/train", "reward": "reward/mean"}
IN_BAR |= {"gold": "reward/gold", "kl": "kl/mean"}  # name in the progress bar → metric


def check_folder(config, may_differ: Collection[str] = ()) -> None:
    """Raise InputError when a run with these settings must not write in its folder, --out.

    With --resume it must hold this very run or nothing; settings in `may_differ` may have changed.
    """
    out, folder = config.out, Path(config.out)
    if config.resume and config.overwrite:
        raise InputError("--resume goes on with a run, --overwrite replaces it: give one of them")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if not names - {folder_files.LOCK, "run.json.part"}:
        return
    if "run.json" not in names:
        raise InputError(f"--out {out} holds files that no run wrote: give another folder")
    if config.overwrite:
        return folder_files.check_inputs_stay(config)
    if not config.resume:
        raise InputError(
            f"--out {out} already holds another run: give another folder, --resume to go on, "
            "or --overwrite to replace it"
        )
    run, now = read_json(folder / "run.json"), json.loads(json.dumps(vars(config)))
    before = run.get("config")
    if not isinstance(before, dict) or not isinstance(run.get("data", {}), dict):
        raise InputError(f"{folder}/run.json is damaged, so --resume cannot trust it: start again")
    # A setting added after the run began has its default, which keeps the old behaviour.
    defaults = {field.name: field.default for field in fields(config)}
    for name in now:  # not out: the folder may have moved, or be spelled in another way
        had = before.get(name, defaults[name])
        if now[name] != had and name not in ("out", "resume", "overwrite", *may_differ):
            raise InputError(
                f"--resume continues the run in {out}, which had --{name.replace('_', '-')} "
                f"{had}, not {now[name]}: give the same settings"
            )


def check_training(config, may_be_unfinished: str = "") -> None:
    """`check_folder` for a training run; its models must not be runs that were interrupted.

    may_be_unfinished: a model's folder that the script goes on training by itself.
    """
    items, folder = config.batch_size // getattr(config, "samples", 1), Path(config.out)
    if items < (size := ranks.size()):
        what = f"a step of {items} prompts (--batch-size) cannot be shared by {size} processes"
        raise InputError(f"{what}: take at least {size}, or fewer processes (--nproc-per-node)")
    models = [("--model", config.model), ("--reference", getattr(config, "reference", ""))]
    rewards = member_paths(getattr(config, "reward_model", ""))
    models += [("--reward-model", path) for path in rewards]
    check_not_replaced(config.out, models)
    for flag, path in models:
        if path != may_be_unfinished and is_unfinished(path):
            raise InputError(
                f"{flag} {path} is a run that was interrupted: "
                "go on with it first, by the same command with --resume"
            )
    check_folder(config, may_differ=("micro_batch",))
    finished = (folder / "summary.json").exists() and (folder / "report.html").exists()
    if config.resume and finished:
        raise InputError(f"--resume: the run in {config.out} is finished, give a new --out")


def check_not_replaced(out: str, models: list[tuple[str, str | None]]) -> None:
    """Raise InputError when a model, given as (flag, its folder), is the run's own folder."""
    for flag, path in models:
        if path and Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
            same = f"{flag} and --out are both {path}"
            raise InputError(f"{same}: the run would replace this model, so give another --out")


def is_unfinished(folder: str) -> bool:
    """Whether a training run began in this folder and has not saved its whole model yet."""
    return (Path(folder) / "run.json").exists() and not (Path(folder) / "config.json").exists()


def write_missing_report(config) -> dict | None:
    """If a run was killed before its report: writes it and returns the summary; else None."""
    out = Path(config.out)
    if not config.resume or not (out / "summary.json").exists():
        return None
    print(f"the run in {out} is finished but for its report: writing it now")
    ranks.barrier()  # all have seen that the report is missing
    if ranks.is_first():
        checkpoints.delete_checkpoints(out)
        report.write_report(out)
    return read_json(out / "summary.json")


class RunLog:
    """Writes run.json, metrics.jsonl, checkpoints, summary.json and the report of one run.

    Open it only when the input is known to be good: from then on the folder belongs to the run.
    Every process of the run opens one, but only the first writes.
    """

    def __init__(self, script: str, config, data: dict, state: dict | None = None):
        """data: facts for run.json; state: the checkpoint of a resumed run."""
        self.out, self.begin = Path(config.out), time.perf_counter()
        self.save_every, self.stopping = getattr(config, "save_every", 1), False
        before = read_json(self.out / "run.json") if config.resume else {}
        if before and before.get("data", {}).get("fingerprint") != data.get("fingerprint"):
            raise InputError(f"the data changed since the run in {self.out} began: give the same")
        self.id = before.get("id") or secrets.token_hex(8)
        self.stop_requested, self.logged = False, 0
        self.warned: set[str] = set()  # signs of collapse already printed
        self.under_way: dict = {}  # for error messages (`naming`): a step's place and prompts
        state = state or {}
        if "random" in state:
            checkpoints.restore_random_states(state["random"])
        step = state.get("step", 0)
        # This sum also makes rank 0, which writes below, wait until all have read the folder.
        if ranks.all_sum(step)[0] != step * ranks.size():
            raise InputError(f"the processes see other checkpoints in {self.out}: share one folder")
        if not ranks.is_first():
            return
        self.out.mkdir(parents=True, exist_ok=True)
        run = {"script": script, "id": self.id, "config": asdict(config), "data": data}
        # The tracker first: if it fails, the old run must still exist.
        self.track = tracker(getattr(config, "track", "none"), self.out, run)
        if config.overwrite:
            folder_files.remove_results(self.out)
        folder_files.remove_leftovers(self.out)
        self.write("run.json", run | environment())
        self.begin -= state.get("seconds", 0.0)
        self.metrics = state.get("metrics", "")  # the text of metrics.jsonl
        replace_text(self.out / "metrics.jsonl", self.metrics)
        self.file = (self.out / "metrics.jsonl").open("ab", buffering=0)

    def log(self, step: int, metrics: dict, bar=None) -> None:
        """Write the metrics of a step, from 1 (not finite: null); show some in a progress bar."""
        if not ranks.is_first():
            return
        self.logged += 1
        row = {"step": step}
        for name, value in metrics.items():
            value = value.item() if isinstance(value, torch.Tensor) else value
            row[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        line = json.dumps(row) + "\n"
        self.metrics += line
        with disk.writing(self.out / "metrics.jsonl"):
            self.file.write(line.encode())
        self.track(step, {k: v for k, v in row.items() if isinstance(v, (int, float))})
        for key, sentence in collapse(row).items():
            if key not in self.warned:
                self.warned.add(key)
                tqdm.write(f"warning: step {step}: {sentence}", file=sys.stderr)
        if bar is not None:
            shown = {name: metrics[key] for name, key in IN_BAR.items() if key in metrics}
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})

    @contextmanager
    def stop_between_steps(self):
        """Context manager: Ctrl-C or SIGTERM saves and stops.

        A second signal stops at once, but not under torchrun, which sends one itself.
        Errors about numbers that are not finite name the step and the prompt in `under_way`.
        """

        def request(number, frame):
            # torchrun sends a second signal itself: ignore it unless a rank has failed.
            if ranks.failed_elsewhere() or (self.stop_requested and not ranks.in_group()):
                raise KeyboardInterrupt
            if ranks.is_first() and not self.stop_requested:
                again = "; a second Ctrl-C stops at once" if not ranks.in_group() else ""
                os.write(2, f"\nstopping after this step{again}\n".encode())
            self.stop_requested = True

        try:
            before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # Python allows signal handlers in the main thread only
            before = {}
        try:
            with naming(self.under_way):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def checkpoint_due(self, step: int) -> bool:
        """Whether to save now: every `save_every` steps, and when a process is asked to stop."""
        self.stopping = bool(ranks.all_sum(self.stop_requested)[0])  # decided once, for all
        return self.stopping or step % self.save_every == 0

    def checkpoint(self, step: int, state: dict) -> None:
        """Save the state, whole or not at all; then raise KeyboardInterrupt if asked to stop."""
        if ranks.is_first():
            own = {"step": step, "run": self.id, "metrics": self.metrics}
            own["seconds"] = time.perf_counter() - self.begin
            checkpoints.save_checkpoint(self.out, {**state, **own})
        ranks.barrier()
        if self.stopping:
            raise KeyboardInterrupt

    def write(self, name: str, value: dict) -> None:
        """Write a JSON file of the run, whole or not at all."""
        replace_text(self.out / name, json.dumps(value, indent=1) + "\n")

    def write_rows(self, name: str, rows: list[dict]) -> None:
        """Write a .jsonl file of the run, whole or not at all."""
        if not ranks.is_first():
            return
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        replace_text(self.out / name, "".join(lines))

    def finish(self, summary: dict) -> None:
        """Write the summary, with the seconds since the start, and the report; the run is done."""
        if not ranks.is_first():
            return
        self.file.close()
        replace_text(self.out / "metrics.jsonl", self.metrics)
        if note := too_few(summary.get("after") or summary):
            summary = {**summary, "note": note}
            print(f"{self.out}: {note}")
        self.write("summary.json", {**summary, "seconds": time.perf_counter() - self.begin})
        if ranks.size() > 1:
            moved = ranks.moved() / 1e6 / max(self.logged, 1)
            print(f"{self.out}: each process exchanged {moved:.2f} MB a step with the others")
        checkpoints.delete_checkpoints(self.out)
        report.write_report(self.out)
