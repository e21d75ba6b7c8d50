"""Builds the default inputs of train_policy.py if they are missing."""

import runpy
import sys
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.hardware import ranks
from rlhf_min.models.ensemble import member_paths
from rlhf_min.models.reward_function import load_function
from rlhf_min.reporting.run_folder import is_unfinished
from rlhf_min.zoo import start_model

REWARD_MODEL = "runs/rm"


def build_missing(config) -> None:
    """Train the zoo's start model and reward model where a default place is empty.

    Raises InputError if the settings (of train_policy.py) need a ratings head: this one is scalar.
    """
    if config.reward_function:
        load_function(config.reward_function)  # raises its errors before anything is built
    unfinished, exists = is_unfinished(REWARD_MODEL), Path(REWARD_MODEL).exists()
    missing = REWARD_MODEL in member_paths(config.reward_model) and (unfinished or not exists)
    missing = missing and not (config.reward_function and not config.function_weight)
    made_up = {"--data is zoo": config.data == ["zoo"], "there is no --reward-model": missing}
    if config.model != start_model.START_MODEL and any(made_up.values()):
        why = " and ".join(reason for reason, holds in made_up.items() if holds)
        print(f"note: {why}: {config.model} learns the questions of a made-up world")
    if missing and (config.reading == "entropic" or config.weight != "none"):
        raise InputError(
            "--reading entropic and --weight need a ratings head: train one with "
            "`python train_rm.py --head ratings --out DIR` and give it as --reward-model DIR"
        )
    ranks.from_first(_build, config, missing, unfinished, patient=True)


def _build(config, reward_model: bool, unfinished: bool) -> None:
    """Train the start model if it is missing, and, if asked for, the reward model."""
    start_model.build_if_missing(config.model)
    if reward_model:
        print(f"{REWARD_MODEL} is missing or unfinished: training a reward model on the zoo first")
        flags = ["--model", config.model, "--out", REWARD_MODEL]
        flags += ["--resume"] if unfinished else []
        run_script(Path(__file__).resolve().parents[1] / "train_rm.py", *flags)


def run_script(path: Path, *argv: str) -> None:
    """Run another script with these arguments in this process, which saves seconds of imports."""
    before, sys.argv = sys.argv, [str(path), *argv]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
