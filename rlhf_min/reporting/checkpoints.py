"""What survives: the trained model as a Hugging Face folder, and the state of an unfinished run."""

import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch


def save_model(model, tokenizer, out: str | Path) -> None:
    """Model and tokenizer as an ordinary Hugging Face folder; each file replaced whole."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        for file in Path(draft).iterdir():
            os.replace(file, Path(out) / file.name)


def save_checkpoint(out: str | Path, state: dict) -> None:
    """State of an unfinished run → out/checkpoint.pt, whole or not at all."""
    draft = Path(out) / "checkpoint.pt.part"
    torch.save(state, draft)
    os.replace(draft, Path(out) / "checkpoint.pt")


def load_checkpoint(out: str | Path) -> dict | None:
    """The state that save_checkpoint wrote, or None where there is none."""
    path = Path(out) / "checkpoint.pt"
    if not path.exists():
        print(f"nothing to resume in {out}: starting from the beginning")
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None


def drop_checkpoint(out: str | Path) -> None:
    """The run is finished: its state is no longer needed."""
    (Path(out) / "checkpoint.pt").unlink(missing_ok=True)


@contextmanager
def interruptible():
    """Let the step in progress end before Ctrl-C or SIGTERM stops the run.

    Yields a function that tells whether to stop.  A second Ctrl-C stops at once.
    """
    asked = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: nobody can interrupt us
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
