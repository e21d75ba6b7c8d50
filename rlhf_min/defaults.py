"""What train_policy.py builds first when its default inputs are missing."""

from pathlib import Path

from rlhf_min import InputError
from rlhf_min.command_line import run_script
from rlhf_min.reporting.run_folder import is_unfinished
from rlhf_min.zoo import start_model

REWARD_MODEL = "runs/rm"
SCRIPTS = Path(__file__).resolve().parents[1]


def build_missing(config) -> None:
    """Train the zoo's start model and reward model where a default place is empty.

    config: settings of train_policy.py.  Raises InputError when the reward model would have to be
    trained here, with a scalar head, but the settings need a ratings head.
    """
    path, unfinished = config.reward_model, is_unfinished(config.reward_model)
    missing = path == REWARD_MODEL and (unfinished or not Path(path).exists())
    if missing and (config.reading == "entropic" or config.weight != "none"):
        raise InputError(
            "--reading entropic and --weight need a ratings head: train one with "
            "`python train_rm.py --head ratings --out DIR` and give it as --reward-model DIR"
        )
    start_model.build_if_missing(config.model)
    if missing:
        print(f"{path} is missing or unfinished: training a reward model on the zoo first")
        flags = ["--model", config.model, "--out", path, *(["--resume"] if unfinished else [])]
        run_script(SCRIPTS / "train_rm.py", *flags)
