"""Plots of a run, saved as PNG in its folder; those without data are left out."""

import io
from itertools import cycle
from math import ceil, sqrt
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_min.maths.statistics import reliability
from rlhf_min.reporting.diagnosis import GOLD_DROP
from rlhf_min.reporting.series import METRICS, finite_values, key_and_unit, series, smooth

# Okabe & Ito (2008): colours that colour-blind readers can tell apart
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6b6b6b"
COLOURS = [BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000"]


def panels(count: int, columns: int = 1, height: float = 2.5, **kwargs):
    """A figure and its `count` empty axes, left to right, then down; `height` of each in inches."""
    lines, columns = ceil(count / columns), min(count, columns)
    figure = Figure(figsize=(7.2, height * lines + 0.5), dpi=144, layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False, **kwargs).flat)
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, grid[:count]


def annotate(axes, title: str, ylabel: str, xlabel: str = "step", **legend_options) -> None:
    """Add the title, the axis labels (a metric's key gets its unit), and a legend if needed."""
    axes.set_title(title, fontsize=11)
    axes.set_ylabel(key_and_unit(ylabel), fontsize=9)
    axes.set_xlabel(xlabel, fontsize=9)
    if xlabel in ("step", "rating"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5, edgecolor="none", framealpha=0.85, **legend_options)


def draw(axes, rows: list[dict], key: str, color: str, label=None, line="-", raw=True) -> None:
    """Draw a metric's moving average, and faintly its raw values, where there are any."""
    steps, values = series(rows, key)
    if steps and raw:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    if steps:
        marker = "o" if line == "none" or len(steps) < 12 else None
        axes.plot(steps, smooth(values), ls=line, marker=marker, color=color, label=label, lw=2)


def reward_figure(metrics: list[dict]) -> Figure:
    """Learned reward and gold rating; if they part, the policy exploits the reward model."""
    steps, gold = series(metrics, "reward/gold")
    figure, axes = panels(2 if steps else 1, sharex=True)
    titles = ("Learned reward: what the policy is trained for", "Gold rating: the true quality")
    colours = {"reward/mean": BLUE, "reward/gold": ORANGE}
    for panel, key, title in zip(axes, colours, titles, strict=False):
        draw(panel, metrics, key, colours[key], "training prompts")
        draw(panel, metrics, f"held_out/{key}", "black", "held-out prompts", "none", raw=False)
        annotate(panel, title, key)
    curve = smooth(gold)
    if curve and max(curve) - curve[-1] >= GOLD_DROP:
        peak = curve.index(max(curve))
        numbers = f"peak {curve[peak]:.1f} at step {steps[peak]}, end {curve[-1]:.1f}"
        axes[1].set_title(f"{titles[1]} ({numbers})", fontsize=11)
        for panel in axes:
            panel.axvline(steps[peak], color="0.35", linewidth=1, linestyle=":")
    return figure


def kl_figure(metrics: list[dict]) -> Figure:
    """KL against steps, and the gold rating against √KL as in Gao et al. (2022)."""
    _, kl, gold = series(metrics, "kl/mean", "reward/gold")
    figure, axes = panels(2 if gold else 1, 2, height=2.9)
    draw(axes[0], metrics, "kl/mean", PURPLE)
    annotate(axes[0], METRICS["kl/mean"][0], "kl/mean")
    if gold:
        raw, line = ([sqrt(max(0.0, value)) for value in values] for values in (kl, smooth(kl)))
        axes[1].scatter(raw, gold, color=ORANGE, alpha=0.25, s=8)
        axes[1].plot(line, smooth(gold), "-o", markevery=[-1], color=ORANGE, lw=2, label="dot: end")
        annotate(axes[1], "Gold rating against √KL", "reward/gold", "√KL (√nats)")
    return figure


def baseline_figure(metrics: list[dict]) -> Figure:
    """The baseline with the reward that it averages, and the advantage: reward − baseline."""
    figure, (above, below) = panels(2, sharex=True)
    draw(above, metrics, "reward/with_kl", BLUE, "reward/with_kl (standardised)")
    running = any(series(metrics, "baseline/value")[1])  # all 0: leave-one-out, or none
    if running:
        draw(above, metrics, "baseline/value", ORANGE, "baseline/value", raw=False)
    annotate(above, "Baseline" if running else "Reward, no running baseline", "reward")
    draw(below, metrics, "advantage/mean", GREEN, "advantage/mean")
    steps, mean, std = series(metrics, "advantage/mean", "advantage/std")
    if steps:
        mean_and_std = list(zip(smooth(mean), smooth(std), strict=True))
        low, high = [m - s for m, s in mean_and_std], [m + s for m, s in mean_and_std]
        below.fill_between(steps, low, high, color=GREEN, alpha=0.15, lw=0, label="± advantage/std")
        below.axhline(0, color="0.5", linewidth=0.8)
    annotate(below, "Advantage: reward − baseline" if running else "Advantage", "advantage")
    return figure


def length_figure(metrics: list[dict]) -> Figure:
    """Length, finished answers, variety and repetition, in which reward hacking often shows."""
    colours = {"length/mean": BLUE, "finished/rate": GREEN}
    colours |= {"text/distinct_2": PURPLE, "text/longest_run": ORANGE}
    figure, axes = panels(4, 2, height=2.4)
    for panel, key in zip(axes, colours, strict=True):
        draw(panel, metrics, key, colours[key])
        annotate(panel, METRICS[key][0], key)
        if key in ("finished/rate", "text/distinct_2"):
            panel.set_ylim(-0.03, 1.03)
    return figure


def learning_figure(name: str, metrics: list[dict], lines: dict) -> Figure:
    """Training and held-out values of "loss" or "accuracy"; `lines`: label → value or None."""
    figure, (axes,) = panels(1, height=3.2)
    draw(axes, metrics, f"{name}/train", BLUE, "training pairs")
    draw(axes, metrics, f"{name}/held_out", ORANGE, "held-out pairs", raw=False)
    steps, low, high = series(metrics, f"{name}/held_out_low", f"{name}/held_out_high")
    if steps:  # vertical lines, because one evaluation alone has no area to fill
        axes.vlines(steps, low, high, color=ORANGE, alpha=0.4, linewidth=1.5)
        axes.fill_between(steps, low, high, color=ORANGE, alpha=0.15, lw=0, label="95 % (Wilson)")
    for (label, value), style in zip(lines.items(), (":", "--"), strict=False):
        if value is not None and axes.has_data():
            axes.axhline(value, color=GREY, linestyle=style, label=f"{label} ({value:.3f})")
    annotate(axes, f"Reward model: {name}", f"{name} ({METRICS[f'{name}/held_out'][1]})")
    return figure


def histogram_figure(pairs: list[dict]) -> Figure:
    """Rewards of chosen and of rejected held-out answers."""
    figure, (axes,) = panels(1, height=3)
    chosen, rejected = ([row[f"{side}_reward"] for row in pairs] for side in ("chosen", "rejected"))
    limits = (min(chosen + rejected), max(chosen + rejected))
    for values, color, name in ((rejected, ORANGE, "rejected"), (chosen, BLUE, "chosen")):
        mean = sum(values) / len(values)
        axes.hist(values, 30, limits, color=color, alpha=0.5, label=f"{name} (mean {mean:.2f})")
        axes.axvline(mean, color=color, linewidth=1.5, linestyle="--")
    annotate(axes, "Rewards of held-out answers", "answers", xlabel="learned reward")
    return figure


def reliability_figure(pairs: list[dict]) -> Figure:
    """Share of wins against predicted P(win), in ten bins; every pair counts in both orders."""
    p_wins = [row["p_win"] for row in pairs]
    both = p_wins + [1 - p for p in p_wins]
    bins = reliability(both, [1] * len(p_wins) + [0] * len(p_wins))
    predicted, won, counts = zip(*bins, strict=True)
    figure, (axes,) = panels(1, height=3.2)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfectly calibrated")
    axes.plot(predicted, won, color=BLUE, linewidth=1)
    areas = [10 + 400 * count / len(both) for count in counts]
    axes.scatter(predicted, won, areas, BLUE, alpha=0.7, label="held-out pairs (area: number)")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    annotate(axes, "Calibration", "share of wins", "predicted P(win)", markerscale=0.6)
    return figure


def distributions_figure(pairs: list[dict]) -> Figure:
    """Predicted ratings of both answers in six pairs, from the lowest P(win) to the highest."""
    pairs = sorted(pairs, key=lambda row: row["p_win"])
    count = min(6, len(pairs))
    figure, axes = panels(count, 3, height=2.1, sharex=True, sharey=True)
    for i, panel in enumerate(axes):
        row = pairs[round(i * (len(pairs) - 1) / max(1, count - 1))]
        for name, color, width in (("chosen", BLUE, -0.4), ("rejected", ORANGE, 0.4)):
            heights, label = row[f"{name}_ratings"], name if i == 0 else None
            ratings = range(1, len(heights) + 1)
            panel.bar(ratings, heights, width, align="edge", color=color, label=label)
        ylabel = "" if i % 3 else "probability"
        annotate(panel, f"P(chosen wins) = {row['p_win']:.2f}", ylabel, "rating")
    return figure


def save_plots(run: dict) -> list[Path]:
    """Save the plots of a run (from `read_run`) for which it has the data; returns their paths."""
    metrics, summary = run["metrics"], run["summary"]
    figures, known = {}, {key for row in metrics for key, value in row.items() if value is not None}
    if known & {"loss/train", "loss/held_out"}:  # a reward model's
        rules = {"chance": 0.5, "the longer answer wins": summary.get("longer_wins")}
        loss = {"chance": summary.get("chance_loss")}
        figures["loss"] = learning_figure("loss", metrics, loss)
        figures["accuracy"] = learning_figure("accuracy", metrics, rules)
    elif known:  # a policy's
        drawn = {"reward": reward_figure, "kl": kl_figure}
        drawn |= {"baseline_and_advantage": baseline_figure, "length": length_figure}
        figures = {name: draw_figure(metrics) for name, draw_figure in drawn.items()}
    keys = ("p_win", "chosen_reward", "rejected_reward")
    if pairs := [row for row in run["held_out_scores"] if finite_values(row, *keys)]:
        figures["reward_histogram"] = histogram_figure(pairs)
        figures["reliability"] = reliability_figure(pairs)
    if rated := [row for row in pairs if row.get("chosen_ratings")]:
        figures["rating_distributions"] = distributions_figure(rated)
    paths = []
    for name, figure in figures.items():
        if any(axes.has_data() for axes in figure.axes):
            paths.append(run["out"] / f"{name}.png")
            figure.savefig(paths[-1])
    return paths


def overlay_plots(runs: dict[str, list[dict]]) -> dict[str, bytes]:
    """Title → PNG with that metric of several runs (name → rows of metrics.jsonl)."""
    pictures = {}
    for key, (title, _) in METRICS.items():
        figure, (axes,) = panels(1, height=2.8)
        for (name, rows), color in zip(runs.items(), cycle(COLOURS), strict=False):
            draw(axes, rows, key, color, name.replace("$", r"\$"))
        annotate(axes, title, key)
        if axes.has_data():
            figure.savefig(png := io.BytesIO())
            pictures[title] = png.getvalue()
    return pictures
