"""The picture of the README: reward hacking and two cures, drawn from three finished runs.

python benchmarks/hacking_picture.py runs/hacked runs/policy runs/loop docs/hacking.png
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import timing  # noqa: F401 (puts rlhf_min on the path)

from rlhf_min.data.files import read_json, read_jsonl
from rlhf_min.reporting.series import series, smooth

GOLD, LEARNED, WITH_KL, RETRAINED = "#D55E00", "#0072B2", "#009E73", "#CC79A7"


def curve(axes, runs: list[Path], key: str, color: str, label: str, **style) -> None:
    """Plot one metric over consecutive runs; learned rewards are standardised as in training."""
    values = []
    for run in runs:
        scale = read_json(run / "run.json")["data"]["reward_scale"]
        series_values = series(read_jsonl(run / "metrics.jsonl"), key)[1]
        if key == "reward/mean":
            series_values = [(v - scale["mean"]) / scale["std"] for v in series_values]
        values += series_values
    axes.plot(range(1, len(values) + 1), values, color=color, alpha=0.2, lw=1)
    axes.plot(range(1, len(values) + 1), smooth(values), color=color, lw=2, label=label, **style)


def main() -> None:
    hacked, policy, loop, out = map(Path, sys.argv[1:])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    curve(left, [hacked], "reward/gold", GOLD, "gold rating (the truth, 1 to 10)")
    right_axis = left.twinx()
    curve(right_axis, [hacked], "reward/mean", LEARNED, "learned reward (right axis)")
    left.set(
        title="No KL: the learned reward is hacked",
        xlabel="step (training prompts)",
        ylabel="gold rating",
    )
    left.set_ylim(0.5, 10.2)
    right_axis.set_ylabel("learned reward (standard deviations)")
    lines = left.get_lines()[1:] + right_axis.get_lines()[1:]
    left.legend(lines, [line.get_label() for line in lines], loc="center right", fontsize=8)
    rounds = sorted(loop.glob("policy-*"), key=lambda p: int(p.name.split("-")[1]))
    curve(right, [hacked], "reward/gold", GOLD, "no KL")
    curve(right, [policy], "reward/gold", WITH_KL, "KL penalty 0.1")
    curve(right, rounds, "reward/gold", RETRAINED, "KL, judging, retraining")
    right.set(title="Two cures", xlabel="step", ylabel="gold rating", ylim=(0.5, 10.2))
    right.legend(loc="center right", fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
