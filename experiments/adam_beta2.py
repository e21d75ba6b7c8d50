"""Study: Adam's second beta, 0.95 (the default here) or 0.999 (PyTorch's and TRL's default)?

    RLHF_MIN_REAL=FOLDER python -m experiments.adam_beta2     # 5 tasks, 2 values, 3 to 5 seeds

Adam divides by the root of the mean squared gradient.  0.95 averages over about 20 steps, 0.999
over about 1 000, in a shorter training over all steps so far.
FOLDER: as in experiments/ratings_real.py.
"""

from pathlib import Path

from experiments import lab
from experiments.reward_head import report_of, run, settings_of

BETAS = (0.95, 0.999)


def settings(quick: bool) -> list[dict]:
    """Every task of experiments/reward_head.py with both betas (quick: tiny runs in the zoo)."""
    return settings_of("adam_beta2", BETAS, quick)


def report(rows: list[dict], out: Path) -> str:
    """The section of the study: one line per task and beta, and claims."""
    return report_of(rows, "adam_beta2", "beta2", BETAS[0])


if __name__ == "__main__":
    lab.main("adam_beta2", settings, run, report)
