"""Which cure of reward hacking works best, at equal KL and with equal comparisons?

    python -m experiments.cures [--quick] [--tables]

Every cure trains a policy on the zoo from the same start model, twice: without a KL penalty, where
held-out gold is read at equal KL along the run, and with the default penalty.  All reward models
learn from the same 10 000 annotated pairs unless the cure's name says otherwise.  The judge of the
loop is the gold rating, so its verdicts have no noise, as those of the additional pairs.
"""

import itertools
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import lab
from experiments.cures_runs import (
    CURES,
    LONGER,
    LOOP,
    LOOP_KL,
    LOOP_STEPS,
    LOOPS,
    MORE,
    PENALTIES,
    ROUNDS,
    run,
    settings,
)

AT = (1.0, 2.0, 4.0, 8.0)  # nats at which gold is read


def gold_at(curve: list[list[float]], kl: float) -> float | None:
    """Gold where the curve of (KL, gold) first reaches this KL, linear in √KL; None if never."""
    for (k0, g0), (k1, g1) in itertools.pairwise(curve):
        if k0 <= kl <= k1:
            low, high = max(k0, 0) ** 0.5, k1**0.5
            share = (kl**0.5 - low) / (high - low) if high > low else 1.0
            return g0 + share * (g1 - g0)
    return None


def select(rows: list[dict], cure: str, kl: float, like: str | None = None) -> dict[int, dict]:
    """Results of a cure with a KL weight, by seed."""
    wanted = cure, kl, like
    found = [r for r in rows if _setting(r) == wanted]
    return {r["settings"]["seed"]: r["result"] for r in found}


def _setting(row: dict) -> tuple:
    own = row["settings"]
    return own["cure"], own["kl"], own.get("like")


def minus(own: dict[int, float], base: dict[int, float]) -> dict[int, float]:
    """The difference of each seed that both have."""
    return {s: own[s] - base[s] for s in own if s in base}


def difference(own: dict[int, float], base: dict[int, float]) -> str:
    """Mean paired difference over the seeds that both have, with its 95 % interval."""
    return lab.shown([*minus(own, base).values()])


CURES_EXPLAINED = (
    "None: one reward model with a scalar head. Ensembles: three reward models, their scores "
    "combined by mean, minimum, or mean minus variance (uncertainty); own start models: each "
    "trained from another start model. WARM: one model with the mean weights of three. Batch sum: "
    "`--batch-sum 0.01` instead of `--centring 0.01`. Ratings head: the reward is its mean rating, "
    "a pessimistic rating (`--reading entropic`) or the probability of winning against the "
    "start model's answer (`--reading win`); inverse variance: `--weight inverse-variance`. More "
    "pairs: of random answers, for the reward model. Against none: difference of gold on the same "
    "seeds."
)


def report(rows: list[dict], out: Path) -> str:
    """Tables of gold at equal KL, at the end of the runs, and of the loop against more pairs."""
    names = [name for name in CURES if select(rows, name, 0.0)]
    base = select(rows, "none", 0.0)
    parts = []
    if any(select(rows, name, LOOP_KL) for name in LOOPS):
        parts.append(loop_table(rows))
    if differences := loop_differences(rows):
        parts.append(differences)
    if loop := select(rows, LONGER, LOOP_KL):
        parts.append(gain_table(loop))
    header = ["KL penalty 0.1", "gold", "against none", "KL", "accuracy of the reward models"]
    parts += [lab.table(header, penalty_rows(rows)), CURES_EXPLAINED]
    parts.append(lab.table(["the penalty alone", "gold", "KL"], alone_rows(rows)))
    draw(rows, names, out / "cures.png")
    parts.append("![Gold against KL, by cure](figures/cures.png)")
    parts.append(lab.folded("Without a KL penalty, at equal KL", equal_kl_table(rows, names)))
    parts.append(f"({len(base)} seeds.)" if len(base) != 1 else "(1 seed.)")
    return "\n\n".join(parts)


def loop_differences(rows: list[dict]) -> str:
    """Table of differences of gold: the loop against as many pairs at once, six epochs against one.

    After 240 policy steps each, on the same seeds; "" if no two of them were run.
    """
    one, six = "1 epoch", "6 epochs"
    results = {
        ("loop", one): select(rows, LOOP, LOOP_KL),
        ("loop", six): select(rows, LONGER, LOOP_KL),
        ("pairs", one): select(rows, MORE, LOOP_KL, LOOP),
        ("pairs", six): select(rows, MORE, LOOP_KL, LONGER),
    }
    gold = {key: {s: r["gold"] for s, r in found.items()} for key, found in results.items()}
    first = {key: {s: r["curve"][0][1] for s, r in results[key].items()} for key in results}
    above = {n: minus(gold["loop", n], gold["pairs", n]) for n in (one, six)}
    compared = {f"loop minus more pairs, both with {n}": above[n] for n in (one, six)} | {
        "the first of these differences minus the second": minus(above[one], above[six]),
        "loop, 6 epochs minus 1": minus(gold["loop", six], gold["loop", one]),
        "more pairs, 6 epochs minus 1": minus(gold["pairs", six], gold["pairs", one]),
        "loop before any judging, 6 epochs minus 1": minus(first["loop", six], first["loop", one]),
    }
    lines = [[name, lab.shown([*found.values()])] for name, found in compared.items() if found]
    header = ["gold (epochs: of the first reward model)", "difference, ratings"]
    return lab.table(header, lines) if lines else ""


def equal_kl_table(rows: list[dict], names: list[str]) -> str:
    """Gold of the policies without a KL penalty, read where their curves reach each KL."""
    base = select(rows, "none", 0.0)
    header = ["no KL penalty; gold at a KL of", *(f"{kl:g} nats" for kl in AT)]
    header += ["against none at 4 nats", "highest of all points", "last"]
    lines = []
    for name in names:
        results = select(rows, name, 0.0)
        cells, at_four = [], {}
        for kl in AT:
            golds = {s: gold_at(r["curve"], kl) for s, r in results.items()}
            reached = {s: gold for s, gold in golds.items() if gold is not None}
            at_four = reached if kl == 4.0 else at_four
            fewer = f" ({len(reached)} of {len(golds)} seeds)" if len(reached) < len(golds) else ""
            cells.append(lab.shown([*reached.values()]) + (fewer if reached else ""))
        none = {s: gold_at(r["curve"], 4.0) for s, r in base.items()}
        none = {s: gold for s, gold in none.items() if gold is not None}
        cells.append("–" if name == "none" else difference(at_four, none))
        cells.append(lab.shown([max(g for _, g in r["curve"]) for r in results.values()]))
        cells.append(lab.shown([r["gold"] for r in results.values()]))
        lines.append([name, *cells])
    text = "Gold at a KL: where a run first reaches it, on straight lines in √KL between its "
    text += "evaluations. Highest of all points: the highest evaluation of a run. Last: at its end."
    return lab.table(header, lines) + "\n\n" + text


def penalty_rows(rows: list[dict]) -> list[list[str]]:
    """One line per cure: its policies with the default KL penalty."""
    base = {s: r["gold"] for s, r in select(rows, "none", PENALTIES[1]).items()}
    lines = []
    for name in CURES:
        if not (results := select(rows, name, PENALTIES[1])):
            continue
        golds = {s: r["gold"] for s, r in results.items()}
        against = "–" if name == "none" else difference(golds, base)
        kl = lab.shown([r["kl"] for r in results.values()])
        accuracies = [r["accuracy"] for r in results.values() if "accuracy" in r]
        lines.append([name, lab.shown([*golds.values()]), against, kl, lab.shown(accuracies, 3)])
    return lines


def alone_rows(rows: list[dict]) -> list[list[str]]:
    """One line per weight of the KL penalty, with one reward model."""
    lines = []
    for kl in sorted({r["settings"]["kl"] for r in rows if _setting(r)[0] == "none"}):
        results = select(rows, "none", kl).values()
        golds, kls = [r["gold"] for r in results], [r["kl"] for r in results]
        lines.append([f"{kl:g}", lab.shown(golds), lab.shown(kls)])
    return lines


def loop_table(rows: list[dict]) -> str:
    """The loops round by round, beside one training on as many comparisons and steps."""
    loops = {name: found for name in LOOPS if (found := select(rows, name, LOOP_KL))}
    curves = {name: {s: r["curve"] for s, r in loop.items()} for name, loop in loops.items()}
    for epochs, like in (("1 epoch", LOOP), ("6 epochs", LONGER)):
        if once := select(rows, MORE, LOOP_KL, like):
            name = f"5 700 more pairs of random answers at once, {epochs}"
            curves[name] = {s: r["curve"][1:] for s, r in once.items()}
    lines = []
    for n in range(max(LOOPS[name][0] for name in loops) + 1):
        cells = [str((n + 1) * LOOP_STEPS)]
        for name, found in curves.items():
            cell = lab.shown([curve[n][1] for curve in found.values() if len(curve) > n])
            if n and name in loops and cell != "–":
                judged = fmean(sum(r["comparisons"][:n]) for r in loops[name].values())
                cell += f"; {judged:.0f}"
            cells.append(cell)
        lines.append(cells)
    return lab.table(["policy steps: gold; comparisons with a winner so far", *curves], lines)


def gain_table(loop: dict[int, dict]) -> str:
    """What the reward model of each round predicts for its policy, and what gold gains."""
    rows = []
    for n in range(1, ROUNDS + 1):
        predicted = [result["predicted"][n] for result in loop.values()]
        gained = [result["curve"][n][1] - result["curve"][n - 1][1] for result in loop.values()]
        rows.append([str(n), lab.shown(predicted), lab.shown(gained)])
    text = "Predicted: the rise of the learned reward on held-out questions in this round, "
    text += "divided by its standard deviation over the start model's answers, times the standard "
    text += "deviation of their gold ratings."
    header = [f"round of the loop, {LONGER.partition(', ')[2]}"]
    header += ["predicted gain, ratings", "gain in gold, ratings"]
    return lab.table(header, rows) + "\n\n" + text


def draw(rows: list[dict], names: list[str], file: Path) -> None:
    """Mean gold against √KL of every cure without a KL penalty, in small multiples."""
    columns = 4
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(9, 2.1 * lines + 0.4), sharex=True, sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axis, name in zip(axes.flat, names, strict=False):
        for result in select(rows, "none", 0.0).values():
            axis.plot(*_line(result), color="0.75", lw=1)
        for result in select(rows, name, 0.0).values():
            axis.plot(*_line(result), color="#0072B2", lw=1.2)
        axis.set_title(name, fontsize=8)
        axis.set_xlim(0, 4.5)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel("distance from the start model, √KL (√nats)", fontsize=9)
    figure.supylabel("held-out gold (1 to 10)", fontsize=9)
    figure.suptitle("Without a KL penalty; grey: no cure, one line per seed", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _line(result: dict) -> tuple[list[float], list[float]]:
    """√KL and gold of a curve."""
    return [max(kl, 0) ** 0.5 for kl, _ in result["curve"]], [gold for _, gold in result["curve"]]


if __name__ == "__main__":
    lab.main("cures", settings, run, report)
