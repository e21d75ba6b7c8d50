"""The files of a run's folder: which ones a run writes, and the lock that keeps other runs out."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.hardware import ranks

LOCK = ".lock"
CHECKPOINTS = ["checkpoint.pt", "checkpoint-previous.pt"]  # the newest first
# All that a run writes besides run.json.  First the files that mark a finished run, a whole model.
RESULTS = [
    "summary.json",
    "config.json",
    *CHECKPOINTS,
    "metrics.jsonl",
    "samples.jsonl",
    "report.html",
]
RESULTS += ["held_out_scores.jsonl", "answers.jsonl", "verdicts.jsonl", "verdicts.csv"]
RESULTS += ["comparisons.jsonl", "tensorboard/events.out.tfevents.*"]
PLOTS = "reward kl baseline_and_advantage length loss accuracy reward_histogram reliability"
PLOTS = [f"{name}.png" for name in [*PLOTS.split(), "rating_distributions"]]
MODEL = ["generation_config.json", "model.safetensors", "model-*-of-*.safetensors"]
MODEL += ["model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "merges.txt"]
MODEL += ["special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "spiece.model"]
MODEL += ["tokenizer.model", "chat_template.jinja", "additional_chat_templates/*.jinja"]
MODEL += ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]


def check_inputs_stay(config) -> None:
    """Raise InputError when a setting names a file or folder that --overwrite would delete."""
    deleted = [path.parent.resolve() / path.name for path in _results(Path(config.out))]
    for name, value in vars(config).items():
        for path in value if isinstance(value, list) else [value]:
            # A judge is "reward-model:DIR".
            inputs = [path, path.partition(":")[2]] if isinstance(path, str) else []
            inputs = [Path(x).resolve() for x in inputs if x and os.path.exists(x)]
            if name != "out" and any(file.is_relative_to(x) for x in inputs for file in deleted):
                raise InputError(
                    f"--{name.replace('_', '-')} {path} lies in --out {config.out}, where "
                    "--overwrite would delete it: move it, or give another --out"
                )


def _results(folder: Path) -> Iterator[Path]:
    """The files in a folder that a run writes, without run.json."""
    return (path for name in (*RESULTS, *PLOTS, *MODEL) for path in folder.glob(name))


def remove_results(folder: Path) -> None:
    """Delete the results of the run in a folder: only files that a run writes, run.json stays."""
    for path in _results(folder):
        path.unlink()
    with suppress(OSError):  # it is absent, or holds other files
        (folder / "adapter").rmdir()


def remove_leftovers(folder: Path) -> None:
    """Delete the drafts that a killed run left in its folder."""
    for name in ("run.json", *RESULTS):
        (folder / f"{name}.part").unlink(missing_ok=True)
    for path in folder.glob(".saving-*"):
        shutil.rmtree(path)


def exclusive(main):
    """Decorator of main(config): while it runs, no other process can run in the folder --out."""

    @wraps(main)
    def alone(config):
        with locked(config.out) if ranks.is_first() else nullcontext():
            return main(config)

    return alone


@contextmanager
def locked(out: str):
    """Context manager: holds the lock of a folder, which is made; if it stays empty, it is removed.

    Raises InputError when another process holds the lock or the folder cannot be written to.  The
    kernel releases the lock of a killed process.
    """
    if not out:
        raise InputError("--out is empty: give the name of a folder")
    folder, made, file = Path(out), [], None
    try:
        try:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            file = _acquire(folder / LOCK)
        except InputError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            reason = "it is a file" if isinstance(error, FileExistsError) else error
            reason = getattr(reason, "strerror", None) or reason
            wrong = f"--out {out!r} cannot hold a run ({reason})"
            raise InputError(f"{wrong}: give another folder") from error
        yield
    finally:
        if file:
            with suppress(OSError):
                (folder / LOCK).unlink()
            file.close()
        for path in made:
            with suppress(OSError, ValueError):  # it holds files now, or was never made
                path.rmdir()


def _acquire(path: Path):
    """The locked file, with this process's id in it; closing it releases the lock."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                other = file.read().strip() or "unknown"
            raise InputError(
                f"--out {path.parent} is in use by another run, process {other}: wait for its end "
                "or give another folder"
            ) from None
        except OSError as error:
            print(f"{path.parent} cannot be locked ({error.strerror}): run only one script in it")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return file
        file.close()  # the process that held this lock has just deleted its file: take a new one
