"""Live tracking of a run by TensorBoard or Weights & Biases, besides its files."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from rlhf_min import InputError


def tracker(name: str, out: Path, run: dict) -> Callable[[int, dict], None]:
    """A function (step, metrics) for live tracking; wandb obeys its own WANDB_… variables.

    Raises InputError if the package is missing or wandb cannot start.
    """
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            open_writer = cache(lambda: SummaryWriter(str(out / "tensorboard")))

            def write(step: int, row: dict) -> None:
                writer = open_writer()
                for key, value in row.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return write
        if name == "wandb":
            import wandb

            try:
                tracked = wandb.init(project="rlhf_min", name=out.name, dir=str(out), config=run)
            except wandb.Error as error:  # no API key, no network
                advice = "log in (`wandb login`), or set WANDB_MODE=offline"
                raise InputError(f"--track wandb cannot start ({error}): {advice}") from error
            return lambda step, row: tracked.log(row, step=step)
    except ImportError as error:
        advice = "pip install -e '.[tracking]'"
        raise InputError(f"--track {name} needs {error.name}: {advice}") from error
    return lambda step, row: None
