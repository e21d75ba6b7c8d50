"""The claim table of the over-optimisation study; verdicts come from the intervals."""

import numpy as np

from experiments import lab
from experiments import overopt_tables as tables
from experiments.claims import HEADER, REFUTED, claim_row, verdict

NOTHING = 0.2  # standard deviations of gold: less counts as nothing learned
ERRORS = "error on the curve's last third, the other law minus this one"


def claims(cells: tables.Cells, grid: tables.Cells) -> str:
    """The claim table.

    cells: all runs; grid: those of all sizes and numbers of pairs, without a KL penalty.
    """
    fall = [float(np.mean(fall)) for fall in zip(*map(tables.falls, grid.values()), strict=False)]
    text = "gold falls under REINFORCE without KL penalty"
    rows = [claim_row(text, fall, "gold at the best step minus at the end", 2), *laws(grid)]
    rows += [constant_coefficient(grid), *straight_lines(grid), fewest_pairs(grid)]
    for kl, gains in tables.penalty_gaps(cells).items():
        text = f"a KL penalty of {kl:g} gives more gold than stopping early at the same KL"
        rows.append(claim_row(text, gains, "gold minus that of the unpenalised curve", 2))
    gains = tables.by_seed(grid, gap_at_two)
    text = "at 2 nats best of n has more gold than REINFORCE without KL penalty"
    rows.append(claim_row(text, gains, "difference, on other held-out questions", 2))
    return lab.table(HEADER, rows)


def laws(grid: tables.Cells) -> list[list[str]]:
    """Gao's laws against others: claims on errors of extrapolation and on the learned reward."""
    rows = []
    for method, other, text in (
        ("best of n", "RL", "best of n follows its own law better than that of RL"),
        ("RL", "best of n", "RL follows its own law better than that of best of n"),
        ("best of n", "cubic", "best of n follows its own law better than d(α − β·d²)"),
    ):
        better = tables.by_seed(grid, tables.error_gap(method, other, method))
        rows.append(claim_row(text, better, ERRORS))
    score, gold = tables.misfit("RL", "score"), tables.misfit("RL", "gold")
    worse = tables.by_seed(grid, lambda result: score(result) - gold(result))
    text = "under RL no law fits the learned reward as well as gold"
    rows.append(claim_row(text, worse, "misfit in the curve's std, learned reward minus gold"))
    return rows


def constant_coefficient(grid: tables.Cells) -> list[str]:
    """Does α of RL change with the size?  "open" where the interval of its slope holds 0."""
    kept, text = tables.slopes(grid, "RL"), "α of RL changes with the size (Gao: it does not)"
    values = [] if kept is None else kept[:, 0, 0].tolist()
    holds = verdict(values)
    return [
        text,
        "yes" if holds == REFUTED else holds,  # a falling α changes too
        f"slope in ln parameters: {lab.shown(values, 3)}",
    ]


def straight_lines(grid: tables.Cells) -> list[list[str]]:
    """Are the coefficients straight lines in log parameters?  No row with fewer than 3 sizes."""
    if len({name[0] for name in grid}) < 3:
        return []
    fitted = {method: tables.log_linear(grid, method) for method in tables.METHODS}
    explained = {
        "α (best of n)": fitted["best of n"]["α"],
        "β (best of n)": fitted["best of n"]["β"],
        "β (RL)": fitted["RL"]["β"],
    }
    holds = "yes" if min(explained.values()) > 0.9 else "open"
    shown = "; ".join(f"{name} {r:.2f}" for name, r in explained.items())
    numbers = f"R²: {shown}; one that does not depend on the size would have 0.25 on average"
    return [["coefficients are straight lines in log parameters", holds, numbers]]


def fewest_pairs(grid: tables.Cells) -> list[str]:
    """Is there a number of pairs below which nothing is learned?

    "yes" if best of n at 2 nats gains less than NOTHING with some number; "**refuted**", as far
    down as was tried, if it gains more than that with every number.
    """
    found, numbers = [], []
    for pairs in sorted({name[1] for name in grid}):
        own = {name: cell for name, cell in grid.items() if name[1] == pairs}
        gold = tables.by_seed(own, lambda result: tables.at_kl(result, "best of n", 2.0))
        found.append(verdict([NOTHING - one for one in gold]))
        numbers.append(f"{pairs}: {lab.shown(gold)}")
    holds = "yes" if "yes" in found else "open"
    if set(found) == {REFUTED}:
        holds = f"{REFUTED} down to the fewest pairs tried"
    text = f"below some number of pairs nothing is learned (less than {NOTHING})"
    return [text, holds, f"gold of best of n at 2 nats by number of pairs, {'; '.join(numbers)}"]


def gap_at_two(result: dict) -> float | None:
    """Gold of best of n minus gold of REINFORCE, both at a KL of 2 nats."""
    both = [tables.at_kl(result, method, 2.0) for method in ("best of n", "RL")]
    return None if None in both else both[0] - both[1]
