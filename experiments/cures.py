"""Which cure of reward hacking works best, at equal KL and with equal comparisons?

    python -m experiments.cures [--quick] [--tables]

Every cure trains a policy on the zoo from the same start model, twice: without a KL penalty, where
held-out gold is read at equal KL along the run, and with the default penalty.  All reward models
learn from the same 10 000 annotated pairs unless the cure's name says otherwise.  The judge of the
loop is the gold rating, so its verdicts have no noise, as those of the additional pairs.
"""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import lab, zoo_runs
from rlhf_min.data.files import read_json, read_jsonl

ROUNDS, JUDGED = 3, 1900  # of the loop: rounds, comparisons of each
MEMBERS = 3  # of an ensemble
MORE = "5 700 more pairs"  # as many as the loop judges, also ordered by the gold rating
AT = (1.0, 2.0, 4.0, 8.0)  # nats at which gold is read
# name → (kind of reward model, settings of the reward model, settings of the policy)
CURES = {
    "none": ("one", {}, {}),
    "ensemble, mean": ("ensemble", {}, {"ensemble": "mean"}),
    "ensemble, min": ("ensemble", {}, {"ensemble": "min"}),
    "ensemble, uncertainty": ("ensemble", {}, {"ensemble": "uncertainty"}),
    "ensemble of own start models, min": ("own starts", {}, {"ensemble": "min"}),
    "averaged weights (WARM)": ("average", {}, {}),
    "batch sum instead of centring": ("one", {"centring": 0.0, "batch_sum": 0.01}, {}),
    "ratings head, mean": ("one", {"head": "ratings"}, {}),
    "ratings head, entropic b = 2": ("one", {"head": "ratings"}, {"reading": "entropic"}),
    "ratings head, win probability": ("one", {"head": "ratings"}, {"reading": "win"}),
    "ratings head, inverse variance": ("one", {"head": "ratings"}, {"weight": "inverse-variance"}),
    MORE: ("more pairs", {}, {}),
}
PENALTIES = (0.0, 0.1)  # the second is the default of train_policy.py
LOOP, FINER = (f"judging and retraining, {n}" for n in ("3 × 1900", "5 × 1140"))
LOOPS = {LOOP: (ROUNDS, JUDGED), FINER: (5, 1140)}  # rounds, comparisons of each
LOOP_STEPS, LOOP_KL, LOOP_RATE = 60, 0.2, 5e-4  # of recipes/loop.py
QUICK = {"start": {"steps": 30, "examples": 960}, "rm": {"max_steps": 3, "eval_limit": 20}}
QUICK["policy"] = {"steps": 2, "eval_prompts": 8, "ruler_prompts": 16, "eval_every": 1}
QUICK["policy"] |= {"batch_size": 16}


def settings(quick: bool) -> list[dict]:
    """Every cure with and without a KL penalty, the penalty alone, and the loop."""
    runs = []
    for seed in range(1 if quick else 5):
        common = {"seed": seed, "quick": quick}
        names = ["none", "ensemble, min", "averaged weights (WARM)"] if quick else CURES
        for kl in PENALTIES:
            runs += [{"cure": name, "kl": kl, **common} for name in names]
        if not quick:
            runs += [{"cure": "none", "kl": kl, **common} for kl in (0.05, 0.2, 0.4)]
            # As many steps and comparisons as the loop has, but all comparisons at the start.
            runs.append({"cure": MORE, "kl": LOOP_KL, "like": LOOP, **common})
            runs += [{"cure": name, "kl": LOOP_KL, **common} for name in LOOPS]
    return runs


def reward_models(kind: str, start: Path, seed: int, quick: bool, own: dict) -> list[Path]:
    """The folders of the reward models of a cure (one, or the members of an ensemble)."""
    flags = {"seed": seed, **(QUICK["rm"] if quick else {}), **own}
    if kind == "more pairs":  # beside the zoo's own 10 000
        more = str(zoo_runs.gold_pairs(ROUNDS * JUDGED, seed))
        flags |= {"data": ["zoo", more], "eval_data": ["zoo:held-out"]}
    if kind in ("one", "more pairs"):
        return [zoo_runs.reward_model(start, **flags)]
    starts, build = [start] * MEMBERS, QUICK["start"] if quick else {}
    if kind == "own starts":
        others = range(100 * (seed + 1), 100 * (seed + 1) + MEMBERS - 1)
        starts = [start, *(zoo_runs.start_model(other, **build) for other in others)]
    seeds = [seed, *range(100 * (seed + 1), 100 * (seed + 1) + MEMBERS - 1)]
    members = [
        zoo_runs.reward_model(base, **{**flags, "seed": number})
        for base, number in zip(starts, seeds, strict=True)
    ]
    if kind != "average":
        return members

    def average(folder: Path) -> None:
        command = [sys.executable, "-m", "rlhf_min.average", *map(str, members)]
        subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)

    return [zoo_runs.built("average", {"members": [m.name for m in members]}, average)]


def run(one: dict) -> dict:
    """Train one policy; held-out gold and KL along the run and at its end."""
    seed, quick = one["seed"], one["quick"]
    start = zoo_runs.start_model(seed, **(QUICK["start"] if quick else {}))
    if one["cure"] in LOOPS:
        return run_loop(start, seed, *LOOPS[one["cure"]])
    kind, reward, policy = CURES[one["cure"]]
    models = reward_models(kind, start, seed, quick, reward)
    flags = {"seed": seed, "kl": one["kl"], **policy}
    flags |= QUICK["policy"] if quick else {"eval_every": 8 if one["kl"] == 0 else 0}
    if "like" in one:
        flags |= {"steps": (ROUNDS + 1) * LOOP_STEPS, "lr": LOOP_RATE, "eval_every": LOOP_STEPS}
    folder = zoo_runs.policy(start, models, **flags)
    held_out = [m for m in zoo_runs.metrics(folder) if "held_out/reward/gold" in m]
    summary = zoo_runs.summary(folder)
    ends = [summary["before"], summary["after"]]
    points = [[0.0, ends[0]["reward/gold"]]]
    points += [[m["held_out/kl/mean"], m["held_out/reward/gold"]] for m in held_out]
    result = {"gold": ends[1]["reward/gold"], "kl": ends[1]["kl/mean"]}
    if accuracies := [zoo_runs.summary(m)["accuracy"] for m in models if _trained(m)]:
        result["accuracy"] = fmean(accuracies)
    shutil.rmtree(folder)  # the row is all that is kept of it
    return _rounded(result | {"curve": points})


def _trained(folder: Path) -> bool:
    """Whether a folder holds a training run, not averaged weights."""
    return (folder / "summary.json").exists()


def run_loop(start: Path, seed: int, rounds: int, comparisons: int) -> dict:
    """recipes/loop.py with its other settings, on the first reward model of this seed."""
    reward = zoo_runs.reward_model(start, seed=seed)
    out = zoo_runs.lab() / f"loop-{rounds}-{seed}"
    command = [sys.executable, str(lab.ROOT / "recipes/loop.py"), "--out", out, "--start", start]
    command += ["--reward-model", reward, "--seed", seed, "--rounds", rounds]
    command += ["--comparisons", comparisons]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    ends = [read_json(out / f"policy-{n}/summary.json")["after"] for n in range(rounds + 1)]
    points = [[end["kl/mean"], end["reward/gold"]] for end in ends]
    judged = [read_json(out / f"judge-{n}/summary.json") for n in range(1, rounds + 1)]
    begins = [read_json(out / f"policy-{n}/summary.json")["before"] for n in range(rounds + 1)]
    golds = [row["before_gold"] for row in read_jsonl(out / "policy-0/samples.jsonl")]
    # In ratings: learned rewards are in standard deviations of the start model's answers.
    gains = [
        (end["reward/mean"] - begin["reward/mean"]) * pstdev(golds)
        for begin, end in zip(begins, ends, strict=True)
    ]
    last = ends[-1]
    result = {"gold": last["reward/gold"], "kl": last["kl/mean"], "curve": points}
    result |= {"comparisons": [j["comparisons"] for j in judged], "predicted": gains}
    return _rounded(result)


def _rounded(result: dict) -> dict:
    """The same numbers with four decimals; lists of pairs too."""
    short = lambda x: [short(y) for y in x] if isinstance(x, list) else round(x, 4)  # noqa: E731
    return {name: short(value) for name, value in result.items()}


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


def difference(own: dict[int, float], base: dict[int, float]) -> str:
    """Mean paired difference over the seeds that both have, with its 95 % interval."""
    return lab.shown([own[s] - base[s] for s in own if s in base])


def report(rows: list[dict], out: Path) -> str:
    """Tables of gold at equal KL, at the end of the runs, and of the loop against more pairs."""
    names = [name for name in CURES if select(rows, name, 0.0)]
    base = select(rows, "none", 0.0)
    header = ["no KL penalty; gold at a KL of", *(f"{kl:g} nats" for kl in AT)]
    header += ["against none at 4 nats", "highest of all points", "last"]
    table = []
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
        table.append([name, *cells])
    parts = []
    if any(select(rows, name, LOOP_KL) for name in LOOPS):
        parts.append(loop_table(rows))
    if loop := select(rows, LOOP, LOOP_KL):
        ends = {s: r["gold"] for s, r in loop.items()}
        same = {s: r["gold"] for s, r in select(rows, MORE, LOOP_KL, LOOP).items()}
        text = "After as many policy steps, judging and retraining has more gold than the same "
        text += (
            f"number of additional pairs of random answers, by {difference(ends, same)} ratings."
        )
        parts += [text, gain_table(loop)]
    header_penalty = [
        "KL penalty 0.1",
        "gold",
        "against none",
        "KL",
        "accuracy of the reward models",
    ]
    parts.append(lab.table(header_penalty, penalty_rows(rows)))
    parts.append(lab.table(["the penalty alone", "gold", "KL"], alone_rows(rows)))
    draw(rows, names, out / "cures.png")
    parts.append("![Gold against KL, by cure](figures/cures.png)")
    parts.append(lab.folded("Without a KL penalty, at equal KL", lab.table(header, table)))
    parts.append(f"({len(base)} seeds.)" if len(base) != 1 else "(1 seed.)")
    return "\n\n".join(parts)


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
    same = {s: r["curve"][1:] for s, r in select(rows, MORE, LOOP_KL, LOOP).items()}
    curves = {name: {s: r["curve"] for s, r in loop.items()} for name, loop in loops.items()}
    curves["5 700 more pairs of random answers at once"] = same
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
    """What the reward model of each round promises its policy, and what gold gains."""
    rows = []
    for n in range(1, ROUNDS + 1):
        promised = [result["predicted"][n] for result in loop.values()]
        gained = [result["curve"][n][1] - result["curve"][n - 1][1] for result in loop.values()]
        rows.append([str(n), lab.shown(promised), lab.shown(gained)])
    text = "Predicted: the rise of the learned reward on held-out questions in this round, in "
    text += "standard deviations of the start model's answers, times the standard deviation of "
    text += "their gold ratings."
    header = ["round of the loop, 3 × 1900", "predicted gain, ratings", "gain in gold, ratings"]
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
