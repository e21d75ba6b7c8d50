"""A table and a picture of the rounds of recipes/loop.py.

python recipes/loop_table.py runs/loop        # prints the table, writes runs/loop/loop.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rlhf_min.data.files import read_json


def rounds(folder: Path) -> list[dict]:
    """One row per policy: held-out metrics, number of comparisons, and win rates."""
    rows = []
    for number in range(len(list(folder.glob("policy-*")))):
        summary = read_json(folder / f"policy-{number}" / "summary.json")
        if not summary:
            break
        row = {"round": number, **summary["after"], "before": summary["before"]}
        for rival in ("last", "start"):
            against = read_json(folder / f"against-{rival}-{number}" / "summary.json")
            row[rival] = against.get("win_rate")
        judge_summary = read_json(folder / f"judge-{number}" / "summary.json")
        row["comparisons"] = judge_summary.get("comparisons", 0)
        rows.append(row)
    return rows


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def show(folder: Path) -> None:
    """Print the table of a loop's folder and draw loop.png there."""
    rows = rounds(folder)
    if not rows:
        error = f"error: {folder} holds no finished policy-0: run recipes/loop.py first"
        print(error, file=sys.stderr)
        raise SystemExit(2)
    columns = (
        "round",
        "comparisons with a winner",
        "gold [95 %]",
        "KL",
        "wins against the last policy",
        "wins against the start model",
    )
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|")
    first = rows[0]["before"]
    print(f"| start | – | {first['reward/gold']:.2f} | 0 | – | – |")
    for row in rows:
        low, high = row["reward/gold_low"], row["reward/gold_high"]
        gold = f"{row['reward/gold']:.2f} [{low:.2f}, {high:.2f}]"
        print(
            f"| {row['round']} | {row['comparisons']} | {gold} | {row['kl/mean']:.1f} "
            f"| {percent(row['last'])} | {percent(row['start'])} |"
        )
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    steps = list(range(-1, len(rows)))
    golds = [first["reward/gold"], *(row["reward/gold"] for row in rows)]
    lows = [first["reward/gold_low"], *(row["reward/gold_low"] for row in rows)]
    highs = [first["reward/gold_high"], *(row["reward/gold_high"] for row in rows)]
    axes.fill_between(steps, lows, highs, alpha=0.2, color="#D55E00", lw=0)
    axes.plot(steps, golds, "o-", color="#D55E00")
    axes.set(xlabel="round of judging and retraining", ylabel="gold rating (1 to 10)")
    axes.set_xticks(steps, ["start", *(str(row["round"]) for row in rows)])
    axes.set_title("Held-out gold, round by round (band: 95 % bootstrap)")
    figure.savefig(folder / "loop.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    show(parser.parse_args().folder)
