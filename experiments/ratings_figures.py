"""Figures of the study of ratings heads: learned and true distributions, and the aim."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import values
from experiments.lab import mean_interval

CALIBRATION_AIM, DISTANCE_AIM = 0.03, 0.5  # at most; the second as a share of strict's distance
COLOURS = {"strict": "#D55E00", "half": "#0072B2"}  # Okabe and Ito (2008)
BEST = "#009E73"
FAMILIES = {"entropy": "#CC79A7", "marginal": "#CC79A7", "rough": "#56B4E9", "soft": BEST}
FAMILIES |= {"earth": "#E69F00"}


def best_of(found: dict) -> str | None:
    """The variant of smallest mean distance to the true distributions."""
    distances = {name: values(own, "earth_mover") for name, own in found.items() if name != "truth"}
    means = {name: np.mean(own) for name, own in distances.items() if own}
    return min(means, key=means.get) if means else None


def draw_typical(found: dict, out: Path) -> bool:
    """Figure: true and learned distributions of four typical answers; False without rows."""
    best = best_of(found)
    if "truth" not in found or best is None:
        return False
    truth, ratings = found["truth"][0], np.arange(1, 11)
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2), sharex=True, sharey=True)
    curves = dict.fromkeys(("strict", "half", best))  # without a second time the same
    for number, (axis, true) in enumerate(zip(axes.flat, truth["typical"], strict=True)):
        axis.bar(ratings, true, color="#BBBBBB", width=0.9, label="truth")
        for name in curves:
            results = [own["typical"][number] for own in found.get(name, {}).values()]
            if not results:
                continue
            colour = COLOURS.get(name, BEST)
            mean = np.mean(results, 0)
            axis.plot(ratings, mean, "o-", color=colour, markersize=4, label=name)
            for one in results:  # one thin line per seed
                axis.plot(ratings, one, color=colour, alpha=0.35, linewidth=0.8)
        axis.set_title(list(truth["kinds"])[number], fontsize=11)
        axis.set_xticks(ratings)
    for axis in axes[-1]:
        axis.set_xlabel("rating (1 to 10)")
    for axis in axes[:, 0]:
        axis.set_ylabel("probability")
    axes[0, 0].legend(fontsize=9)
    save(figure, out / "ratings_distributions.png")
    return True


def interval(found: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval, or one value three times."""
    return mean_interval(found) if len(found) > 1 else (found[0],) * 3


def draw_aim(found: dict, out: Path) -> bool:
    """Figure: calibration error against distance to the truth, the aim as a rectangle."""
    shown_names = [n for n, own in found.items() if n != "truth" and values(own, "earth_mover")]
    if "strict" not in shown_names:
        return False
    figure, axis = plt.subplots(figsize=(9, 5))
    limit = DISTANCE_AIM * np.mean(values(found["strict"], "earth_mover"))
    axis.fill_between([0, limit], 0, CALIBRATION_AIM, color=BEST, alpha=0.15, label="aim")
    markers = "osD^v<>PXhp*d8H+x"
    for number, name in enumerate(shown_names):
        x, low, high = interval(values(found[name], "earth_mover"))
        y, bottom, top = interval(values(found[name], "calibration_error"))
        family = next((c for start, c in FAMILIES.items() if name.startswith(start)), "black")
        colour = COLOURS.get(name, family)
        errors = {"xerr": [[x - low], [high - x]], "yerr": [[y - bottom], [top - y]]}
        axis.errorbar(x, y, **errors, fmt=markers[number % 17], color=colour, label=name)
    if "truth" in found:
        y = found["truth"][0]["calibration_error"]
        axis.plot(0, y, "k*", markersize=13, label="the truth itself", clip_on=False)
    axis.set_xlabel("distance to the true distributions (ratings)")
    axis.set_ylabel("calibration error of P(win)")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, out / "ratings_aim.png")
    return True


def save(figure, file: Path) -> None:
    """Write a figure and close it."""
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
