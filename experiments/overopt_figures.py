"""Figures of the over-optimisation study."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import fits, lab
from experiments import overopt_tables as tables
from experiments.overopt_runs import KL_GRID


def draw(cells: tables.Cells, out: Path) -> dict[str, str]:
    """Draw all figures in the folder `out`: file name → its alternative text."""
    grid = tables.grid_of(cells)
    kept = {"overoptimisation.png": "Gold and learned reward against the square root of the KL"}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    sizes, numbers = (sorted({name[axis] for name in grid}) for axis in (0, 1))
    size, pairs = (96 if 96 in sizes else sizes[-1]), (3000 if 3000 in numbers else numbers[-1])
    for row, method in zip(axes, ("RL", "best of n"), strict=True):
        by_size = {f"hidden {n[0]}": own for n, own in sorted(grid.items()) if n[1] == pairs}
        by_pairs = {f"{n[1]} pairs": own for n, own in sorted(grid.items()) if n[0] == size}
        for ax, chosen in zip(row, (by_size, by_pairs), strict=True):
            curves(ax, chosen, method)
        row[0].set_title(f"{method}, {pairs} pairs")
        row[1].set_title(f"{method}, hidden {size}")
    save(figure, out / "overoptimisation.png")
    if (size, pairs) in {name[:2] for name in grid}:
        own = grid[size, pairs, "gold", 0.0]
        kept["overoptimisation-frontier.png"] = "Gold against the KL: the highest, and as reached"
        figure, ax = plt.subplots(figsize=(7.5, 4.5), constrained_layout=True)
        frontier(ax, cells, own, (size, pairs))
        save(figure, out / "overoptimisation-frontier.png")
    return kept


def save(figure, file: Path) -> None:
    """Save and close a figure; 64 colours make the file a third as large."""
    figure.savefig(file, dpi=90)
    plt.close(figure)
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


def curves(ax, chosen: dict[str, dict], method: str) -> None:
    """Gold (solid, with its fitted law dotted) and learned reward (dashed), means over seeds."""
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, max(2, len(chosen))))
    for colour, (text, own) in zip(colours, chosen.items(), strict=False):
        d, gold, low, high = mean_curve(own, method, "gold")
        ax.plot(d, gold, color=colour, label=text)
        ax.fill_between(d, low, high, color=colour, alpha=0.15)
        ax.plot(*mean_curve(own, method, "score")[:2], "--", color=colour, lw=0.9)
        fitted = fits.predict(method, d, *tables.coefficients_once(own, method))
        ax.plot(d, fitted, ":", color=colour, lw=1.2)
    ax.axhline(0, color="grey", lw=0.6)
    ax.set_xlabel("d = √KL (√nats)")
    ax.set_ylabel("reward (standard deviations)")
    title = "— gold\n- - learned\n··· law"
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # beside the axes, over no curve
    ax.legend(fontsize=7, title=title, title_fontsize=7, frameon=False, **place)


def mean_curve(own: dict[int, dict], method: str, what: str) -> tuple[np.ndarray, ...]:
    """Point by point over seeds: mean d, mean reward, and its 95 % interval."""
    both = [tables.points(result, method, what) for result in own.values()]
    count = min(len(d) for d, _ in both)
    d, reward = (np.array([pair[i][:count] for pair in both]) for i in (0, 1))
    mean = reward.mean(0)
    if len(both) < 2:
        return d.mean(0), mean, mean, mean
    _, low, high = zip(*(lab.mean_interval(column.tolist()) for column in reward.T), strict=True)
    return d.mean(0), mean, np.array(low), np.array(high)


def frontier(ax, cells: tables.Cells, own: dict[int, dict], cell: tuple[int, int]) -> None:
    """The frontier, the tilted policy, best of n, REINFORCE, and REINFORCE with KL penalties."""
    for name, text, colour in (
        ("best_gold", "highest gold of any policy", "black"),
        ("tilt_gold", "tilted by the learned reward", "#0072B2"),
    ):
        columns = zip(*(result["bon"][name] for result in own.values()), strict=True)
        values = [np.nan if None in column else np.mean(column) for column in columns]
        ax.plot(KL_GRID, values, "-o", ms=3, color=colour, label=text)
    for method, colour in (("best of n", "#009E73"), ("RL", "#D55E00")):
        d, gold, low, high = mean_curve(own, method, "gold")
        ax.plot(d**2, gold, color=colour, label=f"{method}, {cell[0]} wide, {cell[1]} pairs")
        ax.fill_between(d**2, low, high, color=colour, alpha=0.15)
    for mark, (name, penalised) in zip(
        "^sD", sorted(c for c in cells.items() if c[0][3]), strict=False
    ):
        ends = [(r["rl"]["kl"][-1], r["rl"]["gold"][-1]) for r in penalised.values()]
        ax.plot(
            *zip(*ends, strict=True), mark, ms=5, color="#CC79A7", label=f"RL, KL × {name[3]:g}"
        )
    ax.axhline(0, color="grey", lw=0.6)
    ax.set_xlabel("KL from the start model (nats per answer)")
    ax.set_ylabel("gold (standard deviations)")
    ax.legend(fontsize=8)
