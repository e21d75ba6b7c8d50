"""Pictures of a run, from the files in its folder.

A figure function takes plain rows and returns a matplotlib Figure, or None when the run has nothing
to show there; `policy_plots` and `reward_model_plots` save them as PNG beside the data.  Noisy
series are drawn faint under their moving average.  Colours: Okabe & Ito (2008), for every eye.
"""

import math
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_min.data.files import read_json, read_jsonl
from rlhf_min.maths.statistics import reliability
from rlhf_min.reporting.diagnosis import GOLD_DROP
from rlhf_min.reporting.series import half_window, is_number, series, smooth

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b"
COLOURS = [BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000"]

CURVES = {  # metrics key → (title, axis label)
    "reward/mean": ("Learned reward", "learned reward"),
    "reward/gold": ("Gold rating", "gold rating (1 to 10)"),
    "kl/mean": ("Distance from the start model", "KL (nats per answer)"),
    "length/mean": ("Length", "tokens per answer"),
    "finished/rate": ("Finished answers", "share of answers"),
    "text/distinct_2": ("Variety: distinct-2", "share of different bigrams"),
    "text/longest_run": ("Repetition: longest run", "copies in a row"),
    "loss/held_out": ("Held-out loss", "nats per pair"),
    "accuracy/held_out": ("Held-out accuracy", "share of pairs ranked right"),
}


def panels(count: int, columns: int = 1, height: float = 2.5, **kwargs):
    """An empty figure and its `count` axes in reading order; height of a row in inches."""
    rows, columns = math.ceil(count / columns), min(count, columns)
    figure = Figure(figsize=(7.2, height * rows + 0.5), dpi=144, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for number, axes in enumerate(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        if number >= count:
            axes.remove()
    return figure, grid[:count]


def finish(axes, title: str, ylabel: str, xlabel: str = "training step", **legend_options) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.set_xlabel(xlabel, fontsize=9)
    if xlabel == "training step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5, edgecolor="none", framealpha=0.85, **legend_options)


def draw(axes, rows: list[dict], key: str, color: str, label=None, style="-", raw=True) -> bool:
    """One metric against steps; False, and nothing drawn, when the run does not have it."""
    steps, values = series(rows, key)
    if raw and half_window(len(steps)):
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    if steps:
        axes.plot(steps, smooth(values), style, color=color, label=label, lw=2)
        if len(steps) < 12:
            axes.plot(steps, smooth(values), "o", color=color, ms=4)
    return bool(steps)


def reward_figure(metrics: list[dict]) -> Figure | None:
    """Learned reward above gold: where they part, the policy exploits the reward model."""
    steps, gold = series(metrics, "reward/gold")
    figure, axes = panels(2 if steps else 1, sharex=True)
    if not draw(axes[0], metrics, "reward/mean", BLUE, "training prompts"):
        return None
    draw(axes[0], metrics, "held_out/reward/mean", "black", "held-out prompts", "o", raw=False)
    title = "What the policy is trained for: learned reward"
    finish(axes[0], title, "learned reward", xlabel="" if steps else "training step")
    if steps:
        draw(axes[1], metrics, "reward/gold", ORANGE, "training prompts")
        draw(axes[1], metrics, "held_out/reward/gold", "black", "held-out prompts", "o", raw=False)
        curve, title = smooth(gold), "What it should become: gold rating"
        peak = max(range(len(curve)), key=curve.__getitem__)
        if curve[peak] - curve[-1] >= GOLD_DROP:
            title += f" (peak {curve[peak]:.1f} at step {steps[peak]}, end {curve[-1]:.1f})"
            for panel in axes:
                panel.axvline(steps[peak], color="0.35", linewidth=1, linestyle=":")
        finish(axes[1], title, CURVES["reward/gold"][1])
    return figure


def kl_figure(metrics: list[dict]) -> Figure | None:
    """KL against steps; beside it gold against √KL, the distance of Gao et al. (2022)."""
    _, kl, gold = series(metrics, "kl/mean", "reward/gold")
    figure, axes = panels(2 if gold else 1, 2, height=2.9)
    if not draw(axes[0], metrics, "kl/mean", PURPLE):
        return None
    finish(axes[0], *CURVES["kl/mean"])
    if gold:
        raw, curve = ([math.sqrt(max(0.0, x)) for x in xs] for xs in (kl, smooth(kl)))
        axes[1].scatter(raw, gold, color=ORANGE, alpha=0.25, s=8)
        axes[1].plot(curve, smooth(gold), color=ORANGE, linewidth=2)
        axes[1].plot(curve[-1], smooth(gold)[-1], "o", color=ORANGE, label="last step")
        label = CURVES["reward/gold"][1]
        finish(axes[1], "Gold against distance", label, xlabel="√KL (√nats)", loc="best")
    return figure


def baseline_figure(metrics: list[dict]) -> Figure | None:
    """The baseline beside the reward that it follows, and what is left: the advantage."""
    figure, axes = panels(2, sharex=True)
    draw(axes[0], metrics, "reward/with_kl", BLUE, "reward, standardised, with KL penalty")
    running = any(series(metrics, "baseline/value")[1])  # leave-one-out has none, nor has none
    if running:
        draw(axes[0], metrics, "baseline/value", ORANGE, "baseline", raw=False)
    finish(axes[0], "Baseline" if running else "Reward, no running baseline", "reward", xlabel="")
    if not draw(axes[1], metrics, "advantage/mean", GREEN, "mean"):
        return None
    steps, mean, deviation = series(metrics, "advantage/mean", "advantage/std")
    pairs = list(zip(smooth(mean), smooth(deviation), strict=True))
    low, high = [m - s for m, s in pairs], [m + s for m, s in pairs]
    axes[1].fill_between(steps, low, high, color=GREEN, alpha=0.15, lw=0, label="± deviation")
    axes[1].axhline(0, color="0.5", linewidth=0.8)
    finish(axes[1], "Advantage: reward − baseline" if running else "Advantage", "reward")
    return figure


def length_figure(metrics: list[dict]) -> Figure | None:
    keys = ("length/mean", "finished/rate", "text/distinct_2", "text/longest_run")
    keys = [key for key in keys if series(metrics, key)[0]]
    if not keys:
        return None
    figure, axes = panels(len(keys), 2, height=2.4)
    for panel, key, color in zip(axes, keys, (BLUE, GREEN, PURPLE, ORANGE), strict=False):
        draw(panel, metrics, key, color)
        finish(panel, *CURVES[key])
        if key in ("finished/rate", "text/distinct_2"):
            panel.set_ylim(-0.03, 1.03)
    return figure


def learning_figure(name: str, metrics: list[dict], lines: list[tuple]) -> Figure | None:
    """`name`/train and `name`/held_out; reference lines are (value or None, style, label)."""
    figure, (axes,) = panels(1, height=3.2)
    train = draw(axes, metrics, f"{name}/train", BLUE, "training pairs")
    if not (draw(axes, metrics, f"{name}/held_out", ORANGE, "held-out pairs", raw=False) or train):
        return None
    steps, low, high = series(metrics, f"{name}/held_out_low", f"{name}/held_out_high")
    if steps:  # bars too, so that a run with one evaluation shows its interval
        axes.vlines(steps, low, high, color=ORANGE, alpha=0.4, linewidth=1.5)
        axes.fill_between(steps, low, high, color=ORANGE, alpha=0.15, lw=0, label="95 % (Wilson)")
    for value, style, text in lines:
        if value is not None:
            axes.axhline(value, color=GREY, linestyle=style, label=f"{text} ({value:.3f})")
    finish(axes, f"Reward model: {name}", CURVES[f"{name}/held_out"][1])
    return figure


def histogram_figure(pairs: list[dict]) -> Figure | None:
    """Rewards of chosen and of rejected held-out answers: how far apart, how much they overlap."""
    _, chosen, rejected = series(pairs, "chosen_reward", "rejected_reward")
    if not chosen:
        return None
    figure, (axes,) = panels(1, height=3)
    reach = (min(chosen + rejected), max(chosen + rejected))
    for values, color, name in ((rejected, ORANGE, "rejected"), (chosen, BLUE, "chosen")):
        mean = sum(values) / len(values)
        label = f"{name} (mean {mean:.2f})"
        axes.hist(values, 30, range=reach, color=color, alpha=0.5, label=label)
        axes.axvline(mean, color=color, linewidth=1.5, linestyle="--")
    finish(axes, "Rewards of held-out answers", "answers", xlabel="learned reward")
    return figure


def reliability_figure(pairs: list[dict]) -> Figure | None:
    """How often an answer won against its P(win), in ten bins; every pair in both orders."""
    p_wins = series(pairs, "p_win")[1]
    if not p_wins:
        return None
    both = p_wins + [1 - p for p in p_wins]
    sure, won, counts = zip(*reliability(both, [1] * len(p_wins) + [0] * len(p_wins)), strict=True)
    figure, (axes,) = panels(1, height=3.2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    axes.plot(sure, won, color=BLUE, linewidth=1)
    sizes = [10 + 400 * count / len(both) for count in counts]
    axes.scatter(sure, won, s=sizes, color=BLUE, alpha=0.7, label="held-out pairs (area: how many)")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    finish(axes, "Calibration", "share that won", "P(win) of the model", markerscale=0.6)
    return figure


def distributions_figure(pairs: list[dict], count: int = 6) -> Figure | None:
    """Predicted ratings of both answers, in pairs from surely wrong to surely right."""
    pairs = [row for row in pairs if row.get("chosen_ratings") and is_number(row.get("p_win"))]
    if not pairs:
        return None
    pairs.sort(key=lambda row: row["p_win"])
    count = min(count, len(pairs))
    picks = [pairs[round(i * (len(pairs) - 1) / max(1, count - 1))] for i in range(count)]
    figure, axes = panels(count, 3, height=2.1, sharex=True, sharey=True)
    for i, (panel, row) in enumerate(zip(axes, picks, strict=False)):
        for shift, name, color in ((-0.2, "chosen", BLUE), (0.2, "rejected", ORANGE)):
            heights = row[f"{name}_ratings"]
            places = [k + shift for k, _ in enumerate(heights, 1)]
            panel.bar(places, heights, 0.4, color=color, label=None if i else name)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        ylabel = "" if i % 3 else "probability"
        finish(panel, f"P(chosen wins) = {row['p_win']:.2f}", ylabel, xlabel="rating")
    return figure


def save(out: Path, figures: dict[str, Figure | None]) -> list[Path]:
    drawn = [name for name, figure in figures.items() if figure is not None]
    for name in drawn:
        figures[name].savefig(out / name)
    return [out / name for name in drawn]


def policy_plots(out: str | Path) -> list[Path]:
    """Save reward, kl, baseline_and_advantage and length .png; what has no data is left out."""
    rows = read_jsonl(Path(out) / "metrics.jsonl")
    names = ("reward.png", "kl.png", "baseline_and_advantage.png", "length.png")
    makers = (reward_figure, kl_figure, baseline_figure, length_figure)
    figures = {name: make(rows) for name, make in zip(names, makers, strict=True)}
    return save(Path(out), figures)


def reward_model_plots(out: str | Path) -> list[Path]:
    """Save loss, accuracy, reward_histogram, reliability and rating_distributions .png."""
    out = Path(out)
    rows, summary = read_jsonl(out / "metrics.jsonl"), read_json(out / "summary.json")
    pairs = read_jsonl(out / "held_out_scores.jsonl")
    baselines = [(summary.get("longer_wins"), "--", "longer answer wins"), (0.5, ":", "coin flip")]
    chance = [(summary.get("chance_loss"), ":", "chance")]
    figures = {
        "loss.png": learning_figure("loss", rows, chance),
        "accuracy.png": learning_figure("accuracy", rows, baselines),
        "reward_histogram.png": histogram_figure(pairs),
        "reliability.png": reliability_figure(pairs),
        "rating_distributions.png": distributions_figure(pairs),
    }
    return save(out, figures)


def overlay_figures(runs: dict[str, list[dict]]) -> dict[str, Figure]:
    """Title → figure with that curve of every run (name → metrics) that has it."""
    figures = {}
    for key, (title, label) in CURVES.items():
        figure, (axes,) = panels(1, height=2.8)
        for (name, rows), color in zip(runs.items(), cycle(COLOURS), strict=False):
            if draw(axes, rows, key, color, name.replace("$", r"\$")):
                figures[title] = figure
        finish(axes, title, label)
    return figures
