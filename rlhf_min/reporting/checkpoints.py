"""Checkpoints of a run: written whole or not at all, checked when read, the last two kept.

checkpoint.pt is the newest, checkpoint-previous.pt the one before.  Both are files of `torch.save`:
zip archives with a checksum (CRC-32) of every tensor.  They are read with weights_only=True, so no
code in them is ever executed.
"""

import os
import random
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.data.files import read_json
from rlhf_min.hardware import disk, ranks
from rlhf_min.reporting.folder_files import CHECKPOINTS

NEWEST, PREVIOUS = CHECKPOINTS
FROZEN = "frozen weights"  # entry of a checkpoint's weights: a checksum in their place
# What a checkpoint holds, with its types: in every run, and in those of a script.
ENTRIES = {"step": int, "metrics": str, "run": str, "random": dict}
OF_SCRIPT = {
    "train_rm.py": {"model": dict, "optimiser": dict},
    "train_policy.py": {"policy": dict, "optimiser": dict, "baseline": dict, "before": dict},
}
OF_SCRIPT["train_policy.py"] |= {"samples": dict, "reward_scale": dict, "generator": torch.Tensor}


def random_states() -> dict:
    """The states of all global random generators."""
    # Of this process's own GPU: another number of GPUs may go on with the run.
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict) -> None:
    """Set all global random generators to `random_states()`."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state(states["cuda"][0])


def save_checkpoint(out: Path, state: dict) -> None:
    """Write a state, with all random states, as the newest checkpoint; the newest becomes previous.

    Raises InputError when the disk is full or the folder is gone; then the old ones are unharmed.
    """
    newest = out / NEWEST
    with disk.replaced(newest) as draft:
        with draft.open("wb") as file:
            _save({**state, "random": random_states()}, file)
        disk.sync(draft)  # before the checkpoint of that name moves on
        if newest.exists():
            os.replace(newest, out / PREVIOUS)


def _save(state: dict, file) -> None:
    """`torch.save`, which on a full disk may raise a RuntimeError on top of the OSError."""
    try:
        torch.save(state, file)
    except RuntimeError as error:
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else error from None


def load_checkpoint(out: str | Path) -> dict | None:
    """The newest whole checkpoint; None, and a line that says so, where there is none at all.

    A damaged one is named, and the one before is used.  Raises InputError when all are damaged.
    """
    folder, damaged = Path(out), []
    run = read_json(folder / "run.json")
    for name in CHECKPOINTS:
        path = folder / name
        if not path.exists():
            continue
        state, fault = _read(path, run)
        if not fault:
            if damaged:
                print(f"{damaged[0]}: going on from {path}, after step {state['step']}")
                ranks.barrier()  # all processes have read it
                if ranks.is_first():  # never let a damaged one become the previous one
                    disk.move(path, folder / NEWEST)
            return state
        damaged.append(f"{path} {fault}")
    if damaged:
        raise InputError(f"{', '.join(damaged)}: no checkpoint is left, start with --overwrite")
    print(f"nothing to resume in {out}: starting from the beginning")
    return None


def weights_of(model) -> dict[str, Tensor]:
    """All weights of a model; with frozen ones, the trained weights and a checksum of the others.

    Frozen weights are those of --model, which is read again when a run is resumed.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = [p.detach() for p in model.parameters() if not p.requires_grad]
    if not frozen:
        return model.state_dict()
    checksum = 0  # CRC-32 of the weights' bytes
    for weight in frozen:
        numbers = weight.reshape(-1).view(torch.uint8).cpu().numpy()
        checksum = zlib.crc32(numbers, checksum)
    return {**trained, FROZEN: torch.tensor(checksum)}


def restore_weights(model, optimiser, weights: dict, moments: dict) -> None:
    """Set model and optimiser to their states in a checkpoint.

    Raises InputError for another model: its weights have other sizes, or its frozen ones differ.
    """
    try:
        if FROZEN in weights and not torch.equal(weights[FROZEN], weights_of(model)[FROZEN]):
            raise ValueError("its frozen weights are others")
        model.load_state_dict(weights, strict=FROZEN not in weights)
        optimiser.load_state_dict(moments)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            f"the checkpoint does not fit {model.name_or_path}, which changed since the run began "
            f"({reason}): give the same model again, or start with --overwrite"
        ) from error


def delete_checkpoints(out: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for name in CHECKPOINTS:
        (out / name).unlink(missing_ok=True)


def _read(path: Path, run: dict) -> tuple[dict, str]:
    """A checkpoint and what is wrong with it ("" if nothing is); run: the content of run.json."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:
                return {}, f"is damaged (checksum of {part})"
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # damaged bytes raise errors of many kinds in zipfile and torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {}, f"is damaged ({reason[:80]})"
    types = ENTRIES | OF_SCRIPT.get(str(run.get("script")), {})
    if not isinstance(state, dict) or not all(isinstance(state.get(k), types[k]) for k in types):
        return {}, "is not a checkpoint of this version"
    return state, "" if state["run"] == run.get("id") else "is of another run"
