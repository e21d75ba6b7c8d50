"""The claim table of the over-optimisation study; verdicts come from the intervals."""

import numpy as np

from experiments import lab
from experiments import overopt_tables as tables


def claims(cells: tables.Cells, grid: tables.Cells) -> str:
    """The claim table; every verdict is computed from the intervals."""
    rows = []

    def add(claim: str, holds: str, numbers: str) -> None:
        rows.append([claim, holds, numbers])

    falls = [np.mean(f) for f in zip(*map(tables.falls, grid.values()), strict=False)]
    text = "gold falls under REINFORCE while the learned reward is optimised"
    add(text, tables.verdict(falls, above=False), f"end minus best step {lab.shown(falls)}")
    for method, other in (("best of n", "RL"), ("RL", "best of n")):
        gaps = tables.by_seed(grid, tables.error_gap(method, method, other))
        text = f"{method} follows its own law better than that of {other}"
        holds = tables.verdict(gaps, above=False)
        add(text, holds, f"difference of errors on the last third {lab.shown(gaps, 3)}")
    for method, index, claim in (("RL", 0, "α of RL does not depend on the size"),):
        kept = tables.slopes(grid, method)
        if kept is None or len(kept) < 2:
            add(claim, "not shown", "too few seeds")
        else:
            values = kept[:, index, 0].tolist()
            _, low, high = lab.mean_interval(values)
            holds = "not refuted" if low <= 0 <= high else "**refuted**"
            add(claim, holds, f"slope in ln parameters {lab.shown(values, 3)}")
    if len({name[0] for name in grid}) > 2:
        fitted = {m: tables.log_linear(grid, m) for m in tables.METHODS}
        wanted = [fitted["best of n"]["α"], fitted["best of n"]["β"], fitted["RL"]["β"]]
        holds = "yes" if min(wanted) > 0.9 else "**refuted** (R² below 0.9)"
        numbers = "R² of α and β, best of n, and β, RL: " + ", ".join(f"{r:.2f}" for r in wanted)
        add("coefficients are straight lines in log parameters", holds, numbers)
    gaps = tables.by_seed(
        grid, lambda r: tables.misfit("RL", "score")(r) - tables.misfit("RL", "gold")(r)
    )
    text = "the learned reward under RL has no law that fits as well as gold's"
    numbers = f"misfit in the curve's std, learned reward minus gold, {lab.shown(gaps, 3)}"
    add(text, tables.verdict(gaps), numbers)
    learned, not_learned = [], []
    for pairs in sorted({name[1] for name in grid}):
        own = {name: cell for name, cell in grid.items() if name[1] == pairs}
        gold = tables.by_seed(own, lambda r: tables.at_kl(r, "best of n", 2.0))
        kind = learned if tables.verdict(gold) == "yes" else not_learned
        kind.append(f"{pairs}: {lab.shown(gold)}")
    holds = "yes" if not_learned else "not seen down to the fewest pairs"
    numbers = "; ".join(not_learned + learned)
    add("below some number of pairs nothing is learned", holds, f"best of n at 2 nats, {numbers}")
    for kl, gaps in tables.penalty_gaps(cells).items():
        text = f"a KL penalty of {kl:g} gains no gold over stopping early at the same KL"
        shown = tables.verdict(gaps)
        holds = "**refuted**" if shown == "yes" else "not refuted"
        holds = holds if len(gaps) > 1 else shown
        add(text, holds, f"gold minus that of the unpenalised curve {lab.shown(gaps)}")
    gaps = tables.by_seed(grid, gap_at_two)
    text = "at 2 nats best of n has more gold than REINFORCE"
    add(text, tables.verdict(gaps), f"difference {lab.shown(gaps)}; other held-out questions")
    return lab.table(["claim", "holds?", "numbers"], rows)


def gap_at_two(result: dict) -> float | None:
    """Gold of best of n minus gold of REINFORCE, both at a KL of 2 nats."""
    both = [tables.at_kl(result, method, 2.0) for method in ("best of n", "RL")]
    return None if None in both else both[0] - both[1]
