"""The claim table of the over-optimisation study; verdicts come from the intervals."""

import numpy as np

from experiments import lab
from experiments import overopt_tables as tables

NOTHING = 0.2  # standard deviations of gold: less counts as nothing learned


def claims(cells: tables.Cells, grid: tables.Cells) -> str:
    """The claim table; every verdict is computed from the intervals."""
    rows = []

    def add(claim: str, holds: str, numbers: str) -> None:
        rows.append([claim, holds, numbers])

    falls = [np.mean(f) for f in zip(*map(tables.falls, grid.values()), strict=False)]
    text = "gold falls under REINFORCE without KL penalty"
    add(text, tables.verdict(falls, above=False), f"end minus best step {lab.shown(falls)}")
    for method, other in (("best of n", "RL"), ("RL", "best of n")):
        gaps = tables.by_seed(grid, tables.error_gap(method, method, other))
        text = f"{method} follows its own law better than that of {other}"
        holds = tables.verdict(gaps, above=False)
        add(text, holds, f"difference of errors on the last third {lab.shown(gaps, 3)}")
    gaps = tables.by_seed(grid, tables.error_gap("best of n", "best of n", "cubic"))
    text = "best of n follows its own law better than d(α − β·d²)"
    numbers = f"difference of errors on the last third {lab.shown(gaps, 3)}"
    add(text, tables.verdict(gaps, above=False), numbers)
    kept, text = tables.slopes(grid, "RL"), "α of RL does not depend on the size"
    if kept is None or len(kept) < 2:
        add(text, "not shown", "too few seeds")
    else:
        values = kept[:, 0, 0].tolist()
        _, low, high = lab.mean_interval(values)
        holds = "not refuted" if low <= 0 <= high else "**refuted**"
        add(text, holds, f"slope in ln parameters {lab.shown(values, 3)}")
    if len({name[0] for name in grid}) > 2:
        fitted = {m: tables.log_linear(grid, m) for m in tables.METHODS}
        wanted = [fitted["best of n"]["α"], fitted["best of n"]["β"], fitted["RL"]["β"]]
        holds = "yes" if min(wanted) > 0.9 else "not shown"
        names = ("α (best of n)", "β (best of n)", "β (RL)")
        shown = "; ".join(f"{name} {r:.2f}" for name, r in zip(names, wanted, strict=True))
        numbers = f"R²: {shown}; a coefficient that does not change has an R² near 0"
        add("coefficients are straight lines in log parameters", holds, numbers)
    gaps = tables.by_seed(
        grid, lambda r: tables.misfit("RL", "score")(r) - tables.misfit("RL", "gold")(r)
    )
    text = "under RL no law fits the learned reward as well as gold"
    numbers = f"misfit in the curve's std, learned reward minus gold, {lab.shown(gaps, 3)}"
    add(text, tables.verdict(gaps), numbers)
    learned, unclear, not_learned = [], [], []
    for pairs in sorted({name[1] for name in grid}):
        own = {name: cell for name, cell in grid.items() if name[1] == pairs}
        gold = tables.by_seed(own, lambda r: tables.at_kl(r, "best of n", 2.0))
        kind = learned if tables.verdict(gold) == "yes" else unclear
        if len(gold) > 1 and lab.mean_interval(gold)[2] < NOTHING:
            kind = not_learned
        kind.append(f"{pairs}: {lab.shown(gold)}")
    holds = "yes" if not_learned else "not shown" if unclear else "not down to the fewest pairs"
    numbers = "; ".join(not_learned + unclear + learned)
    add("below some number of pairs nothing is learned", holds, f"best of n at 2 nats, {numbers}")
    for kl, gaps in tables.penalty_gaps(cells).items():
        text = f"a KL penalty of {kl:g} gives more gold than stopping early at the same KL"
        add(
            text,
            tables.verdict(gaps),
            f"gold minus that of the unpenalised curve {lab.shown(gaps)}",
        )
    gaps = tables.by_seed(grid, gap_at_two)
    text = "at 2 nats best of n has more gold than REINFORCE without KL penalty"
    add(text, tables.verdict(gaps), f"difference {lab.shown(gaps)}; other held-out questions")
    return lab.table(["claim", "holds?", "numbers"], rows)


def gap_at_two(result: dict) -> float | None:
    """Gold of best of n minus gold of REINFORCE, both at a KL of 2 nats."""
    both = [tables.at_kl(result, method, 2.0) for method in ("best of n", "RL")]
    return None if None in both else both[0] - both[1]
