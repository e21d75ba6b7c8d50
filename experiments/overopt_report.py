"""The section of docs/RESULTS.md of the over-optimisation study, written from its rows alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments import fits, lab
from experiments import overopt_tables as tables
from experiments.overopt_claims import claims
from experiments.overopt_figures import draw
from experiments.overopt_runs import KL_GRID, UNSEEN


def report(rows: list[dict], out: Path) -> str:
    """The Markdown text; figures go to the folder `out`."""
    cells = tables.cells_of(rows)
    grid = tables.grid_of(cells)
    if not grid:
        return "No run yet."
    seeds = sorted({row["settings"]["seed"] for row in rows})
    minutes = sum(row["seconds"] for row in rows) / 60
    head = f"{len(rows)} runs of {len(seeds)} seeds, {minutes:.0f} core-minutes. Rewards are "
    head += "recentred to 0 and in standard deviations of the start model's answers; d = √KL."
    names = draw(cells, out)
    figures = "\n\n".join(f"![{text}](figures/{name})" for name, text in names.items())
    parts = [head, claims(cells, grid), figures, cause_table(cells), stop_table(cells)]
    parts.append(
        lab.folded("The highest gold at each KL, and what is reached", frontier_table(cells))
    )
    parts.append(lab.folded("Which law fits better", law_table(grid)))
    parts.append(lab.folded("α and β of every cell", coefficient_table(cells)))
    parts.append(lab.folded("Every cell", grid_table(cells)))
    return "\n\n".join(parts)


def label(name: tuple) -> list[str]:
    """The first columns of a row about a cell: size, pairs, labels, KL weight."""
    return [str(name[0]), str(name[1]), name[2], f"{name[3]:g}"]


CELL = ["hidden", "pairs", "labels", "KL weight"]


def grid_table(cells: tables.Cells) -> str:
    """Accuracy, gold of best of 100, and gold, learned reward and KL at the end of REINFORCE."""
    rows = []
    for name, own in sorted(cells.items(), key=lambda item: (item[0][2:], item[0][:2])):
        results = list(own.values())
        accuracy = [r["bon"]["accuracy"] for r in results if "bon" in r]
        best = [tables.at_kl(r, "best of n", 2.0) for r in results if "bon" in r]
        ends = {k: [r["rl"][k][-1] for r in results] for k in ("gold", "kl")}
        ends["score"] = [tables.learned_reward(r["rl"])[-1] for r in results]
        fall = tables.falls(own)
        cellwise = [accuracy, [b for b in best if b is not None], ends["gold"], fall]
        cellwise += [ends["score"], ends["kl"]]
        rows.append(label(name) + [lab.shown(values) for values in cellwise])
    head = ["accuracy", "best of n at 2 nats", "RL end: gold", "fall", "reward", "KL"]
    text = "Accuracy: share of pairs of the start model's answers that the reward model orders as "
    text += "the gold rating does. Fall: gold at the best step of the other seeds minus gold at "
    text += (
        "the end. Reward: the learned one at the end, less the missing-end penalty only. Labels: "
    )
    text += "gold, pairs ordered by the true rating; noisy, by the zoo's annotators."
    return lab.table(CELL + head, rows) + "\n\n" + text


def coefficient_table(cells: tables.Cells) -> str:
    """α and β of the paper's two laws by cell, and their slopes over the grid."""
    rows = []
    for name, own in sorted(tables.grid_of(cells).items()):
        line = [str(name[0]), str(next(iter(own.values()))["parameters"]), str(name[1])]
        for method in tables.METHODS:
            both = tables.coefficients(own, method)
            line += [lab.shown(both[:, i].tolist()) for i in (0, 1)]
        rows.append(line)
    for axis, text in enumerate(("slope in ln parameters", "slope in ln pairs")):
        line = [text, "", ""]
        for method in tables.METHODS:
            kept = tables.slopes(tables.grid_of(cells), method)
            line += ["–"] * 2 if kept is None else [
                lab.shown(kept[:, i, axis].tolist(), 3) for i in (0, 1)
            ]  # fmt: skip
        rows.append(line)
    head = ["hidden", "parameters", "pairs", "α, best of n", "β, best of n", "α, RL", "β, RL"]
    text = "Best of n: d(α − β·d); RL: d(α − β·log d). Brackets: Student's t over the seeds' "
    text += "own fits; a bootstrap of so few seeds would be too narrow."
    return lab.table(head, rows) + "\n\n" + text


def law_table(grid: tables.Cells) -> str:
    """AIC and extrapolation error of four laws, means over the grid, by seed."""
    rows = []
    for method in tables.METHODS:
        for what in ("gold", "score"):
            for law, (formula, _) in fits.LAWS.items():
                value = lambda r, m=method, w=what, k=law: fits.aic(*tables.points(r, m, w), k)  # noqa: E731
                error = lambda r, m=method, w=what, k=law: fits.extrapolation_error(  # noqa: E731
                    *tables.points(r, m, w), k
                )
                shown = [lab.shown(tables.by_seed(grid, f)) for f in (value, error)]
                name = "learned reward" if what == "score" else "gold"
                rows.append([method, name, formula, *shown])
    head = ["curve", "of", "law", "AIC", "error on the last third"]
    text = (
        "Lower is better in both columns. AIC is Akaike's information criterion: how well a law "
        "fits all points of a curve. Error on the last third: a law is fitted to the two thirds of "
        "the points with the smaller KL and predicts the others (root mean squared error). "
        "d(α − β·d) is also α·√KL − β·KL."
    )
    return lab.table(head, rows) + "\n\n" + text


def frontier_table(cells: tables.Cells) -> str:
    """The highest gold at each KL, and what tilting by the reward model, best of n and RL reach."""
    grid, rows = tables.grid_of(cells), []
    for pairs in sorted({name[1] for name in grid}):
        own = {name: cell for name, cell in grid.items() if name[1] == pairs}
        for i, kl in enumerate(KL_GRID):
            if kl not in (0.5, 1.0, 2.0, 4.0):
                continue
            best = tables.by_seed(own, lambda r, i=i: r["bon"]["best_gold"][i])
            tilt = tables.by_seed(own, lambda r, i=i: r["bon"]["tilt_gold"][i])
            regret = tables.by_seed(own, lambda r, i=i: regret_at(r, i))
            reached = [
                tables.by_seed(own, lambda r, m=m, k=kl: tables.at_kl(r, m, k))
                for m in tables.METHODS
            ]
            values = [best, tilt, regret, *reached]
            rows.append([str(pairs), f"{kl:g}", *map(lab.shown, values)])
    head = ["pairs", "KL", "best gold", "best for the learned reward", "regret", "best of n", "RL"]
    text = """\
Best gold: of the policy π ∝ π_ref·exp(gold/β) on the start model's samples, the highest possible at
this KL. Best for the learned reward: gold of the policy π ∝ π_ref·exp(learned reward/β). Regret:
the first minus the second. Best of n is placed at the KL counted from its samples; it has other
held-out prompts than RL. Means over all sizes."""
    return lab.table(head, rows) + "\n\n" + text


def regret_at(result: dict, i: int) -> float | None:
    """Highest gold minus gold of the policy tilted by the learned reward, at KL_GRID[i]."""
    both = result["bon"]["best_gold"][i], result["bon"]["tilt_gold"][i]
    return None if None in both else both[0] - both[1]


def cause_table(cells: tables.Cells) -> str:
    """Which defects cost quality at the start, at the best gold and at the end of REINFORCE."""
    grid = tables.grid_of(cells)
    marks = ("start", "best", "end")
    kinds = sorted({kind for o in grid.values() for r in o.values() for m in marks
                    for kind in r["rl"]["marked"][m]["losses"]})  # fmt: skip
    rows = []
    for kind in kinds:
        kept = [
            tables.by_seed(grid, lambda r, m=m, k=kind: r["rl"]["marked"][m]["losses"].get(k, 0.0))
            for m in marks
        ]
        change = [end - best for best, end in zip(kept[1], kept[2], strict=True)]
        seen = "no" if kind in UNSEEN else "yes"
        rows.append([kind, seen, *map(lab.shown, kept), lab.shown(change)])
    shares = {}
    for name in ("short_unseen", "short_seen"):
        shares[name] = tables.by_seed(
            grid,
            lambda r, n=name: r["rl"]["marked"]["end"][n] - r["rl"]["marked"]["best"][n],
        )
    head = ["cause", "in the training data", *marks, "end minus best"]
    text = f"""\
Points of quality lost per answer, mean over the grid; the start, the best and the last point of
each run. Of the fall of gold from the best point to the end, answers with a kind of text that the
training data never had ({", ".join(UNSEEN)}) add {lab.shown(shares["short_unseen"])} rating points,
other answers {lab.shown(shares["short_seen"])}. The first is extremal Goodhart; the second,
regressional: a reward model that is wrong about texts it knows. The best point is the highest of
noisy ones, so the fall is somewhat too large. An answer with both kinds of text counts as the
first. Ratings end at 1, so many points of quality can be lost for few rating points. Unknown: a
sentence that the zoo does not have; repeated: a fact or sentence again; misplaced: an opening or
closing in a wrong place, or small talk again; no manners: no opening or closing; unfinished: cut
inside a sentence."""
    return lab.table(head, rows) + "\n\n" + text


def stop_table(cells: tables.Cells) -> str:
    """Where the diagnosis and the limit on KL would stop REINFORCE, and the gold lost by it."""
    grid, rows = tables.grid_of(cells), []
    for pairs in sorted({name[1] for name in grid}):
        own = {name: cell for name, cell in grid.items() if name[1] == pairs}
        for rule, name in (("diagnosis", "diagnosis"), ("limit", "signs of collapse")):
            stopped = tables.by_seed(own, lambda r, k=rule: float(r["stop"][k] is not None))
            step = tables.by_seed(own, lambda r, k=rule: r["stop"][k])
            lost = gold_lost(own, lambda r, k=rule: gold_at_stop(r, k))
            never = gold_lost(own, lambda r: r["rl"]["gold"][-1])
            shown = [lab.shown(stopped), lab.shown(step, 0), lab.shown(lost), lab.shown(never)]
            rows.append([str(pairs), name, *shown])
    head = ["pairs", "rule", "share stopped", "step", "gold lost", "gold lost by the full run"]
    text = """\
Diagnosis: stop at the first step where the report says *hacking*, which needs gold. Signs of
collapse: stop at the first step where 90 % of the pairs of answers in a step are equal, less than
5 % of answers end, or KL is above 10 nats, which needs no gold. Share stopped: of the runs; step:
where these stopped, of 50, on average. Gold lost: gold at the best step of the other seeds minus
gold at the stop, or at the end."""
    return lab.table(head, rows) + "\n\n" + text


def gold_lost(cells: tables.Cells, gold: Callable[[dict], float]) -> list[float]:
    """Gold at the best step of the other seeds minus gold(result), mean over cells, by seed."""
    kept: dict[int, list[float]] = {}
    for own in cells.values():
        for seed, best in tables.best_golds(own).items():
            kept.setdefault(seed, []).append(best - gold(own[seed]))
    return [float(np.mean(kept[seed])) for seed in sorted(kept)]


def gold_at_stop(result: dict, rule: str) -> float:
    """Gold at the step at which a rule stops, between evaluated points; at the end if never."""
    curve, stop = result["rl"], result["stop"][rule]
    if stop is None:
        return curve["gold"][-1]
    return float(np.interp(stop, curve["step"], curve["gold"]))
