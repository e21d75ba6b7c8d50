"""Live tracking of a run by TensorBoard or Weights & Biases, besides its files."""

from collections.abc import Callable
from pathlib import Path

from rlhf_min import InputError


def tracker(name: str, out: Path, run: dict) -> Callable[[int, dict], None]:
    """A function (step, metrics) for live tracking; wandb obeys its own WANDB_… variables."""
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(out / "tensorboard"))

            def write(step: int, row: dict) -> None:
                for key, value in row.items():
                    writer.add_scalar(key, value, step)
                writer.flush()

            return write
        if name == "wandb":
            import wandb

            tracked = wandb.init(project="rlhf_min", name=out.name, dir=str(out), config=run)
            return lambda step, row: tracked.log(row, step=step)
    except ImportError as error:
        raise InputError(f"--track {name} needs {error.name}: pip install '.[tracking]'") from error
    return lambda step, row: None
