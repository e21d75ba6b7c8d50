"""Tables, figure and texts of docs/museum.md, from the rows of museum.py alone."""

from collections import defaultdict
from pathlib import Path
from statistics import fmean, pstdev

from experiments.lab import ROOT, mean_interval, shown, table
from experiments.museum_exhibits import EXHIBITS, source
from rlhf_min.reporting.series import smooth

PAGE = ROOT / "docs/museum.md"
SMALL = 0.3  # ratings: a smaller mean difference counts as none
MOVED = 3  # metrics named per exhibit
MISTAKES = [name for name, shown_ in EXHIBITS.items() if shown_.beside != name]


def by_exhibit(rows: list[dict]) -> dict[str, dict[int, dict]]:
    """Exhibit → seed → result."""
    results = defaultdict(dict)
    for row in rows:
        results[row["settings"]["exhibit"]][row["settings"]["seed"]] = row["result"]
    return results


def pairs(results: dict, name: str) -> list[tuple[dict, dict]]:
    """(mistake, right code) of every seed that has both."""
    beside = results.get(EXHIBITS[name].beside, {})
    return [(own, beside[seed]) for seed, own in results.get(name, {}).items() if seed in beside]


def verdict(both: list[tuple[dict, dict]]) -> str:
    """What the final gold ratings show, by 95 % intervals over seeds."""
    if len(both) < 2:
        return "too few seeds"
    after = [own["gold_after"] for own, _ in both]
    change = mean_interval(
        [a - own["gold_before"] for a, (own, _) in zip(after, both, strict=True)]
    )
    effect = mean_interval([own["gold_after"] - right["gold_after"] for own, right in both])
    if change[2] < 0:
        text = "falls"
    elif effect[2] < 0:
        text = "worse, by little" if effect[0] > -SMALL else "worse than the right code"
    elif effect[1] > 0:
        text = "better than the right code, here"
    else:
        text = "no harm seen here" if effect[0] > -SMALL else "differs between seeds"
    if all(own["guard"] for own, _ in both):
        return f"stopped by a guard; without it: {text}"
    return text


def moved(both: list[tuple[dict, dict]]) -> list[str]:
    """The metrics that differ most from the right code's, beyond the range of all its seeds."""
    found = []
    for name in both[0][0]["last"]:
        own, right = ([result["last"][name] for result in side] for side in zip(*both, strict=True))
        apart = min(own) > max(right) or max(own) < min(right)
        scale = pstdev(own) + pstdev(right) + 0.05 * abs(fmean(right)) + 1e-6
        if apart and (size := abs(fmean(own) - fmean(right)) / scale) > 1:
            found.append((size, f"`{name}` {fmean(own):.3g} (right: {fmean(right):.3g})"))
    return [text for _, text in sorted(found, reverse=True)[:MOVED]]


def overview(results: dict) -> str:
    """The table of all exhibits."""
    rows = []
    for name in MISTAKES:
        both = pairs(results, name)
        if not both:
            continue
        caught = sum(bool(own["guard"]) for own, _ in both)
        levels = [own["diagnosis"][0] for own, _ in both]
        rows.append(
            [
                f"[{EXHIBITS[name].title}](#{name})",
                EXHIBITS[name].trap or "–",
                shown([own["gold_after"] for own, _ in both]),
                shown([right["gold_after"] for _, right in both]),
                f"{caught} of {len(both)}",
                ", ".join(f"{level} {levels.count(level)}" for level in dict.fromkeys(levels)),
                verdict(both),
            ]
        )
    header = ["mistake", "trap", "final gold", "right code", "alignment check stops it"]
    return table([*header, "the report's diagnosis", "verdict"], rows)


def counts(results: dict) -> str:
    """How many mistakes one would notice: a sentence."""
    found = {name: both for name in MISTAKES if (both := pairs(results, name))}
    caught = {n for n, both in found.items() if all(own["guard"] for own, _ in both)}
    losses = {
        name: fmean(right["gold_after"] - own["gold_after"] for own, right in both)
        for name, both in found.items()
    }
    silent = {
        name
        for name, both in found.items()
        if all(own["diagnosis"][0] == "healthy" for own, _ in both)
    }
    return (
        f"Of {len(found)} mistakes the alignment check stops {len(caught)} in the first step. "
        f"Without it, {sum(loss < 1 for loss in losses.values())} of the {len(found)} would end "
        f"less than one rating below the right code, and the report would call {len(silent)} "
        f"healthy in every seed; {len(silent - caught)} of those pass the alignment check too."
    )


def section(results: dict, name: str) -> str:
    """One exhibit: its source, and its numbers."""
    code = f"```python\n{source(name)}\n```"
    both = pairs(results, name)
    if not both:
        return f"{code}\n\nNo run yet."
    own = [result for result, _ in both]
    lines = [
        f"**Final gold** {shown([result['gold_after'] for result in own])}, the right code "
        f"{shown([right['gold_after'] for _, right in both])}, the start model "
        f"{fmean(result['gold_before'] for result in own):.2f}. **Verdict:** {verdict(both)}.",
        f"**In the logs** (last 10 steps, mean): {'; '.join(moved(both)) or 'nothing stands out'}.",
    ]
    if EXHIBITS[name].stage == "reward":
        told = [result["reward_model"] for result in own]
        mean = {key: fmean(one[key] for one in told) for key in told[0]}
        lines.append(
            f"**The reward model's summary**: accuracy {mean['accuracy']:.3f}; mean reward of "
            f"chosen answers {mean['reward/chosen']:.2f}, of rejected ones "
            f"{mean['reward/rejected']:.2f}."
        )
    caught = [result["guard"] for result in own if result["guard"]]
    if caught:
        lines.append(f"**Alignment check**, in the first step: “{caught[0]}”")
    else:
        lines.append("**Alignment check**: it finds nothing.")
    level, sentence = own[0]["diagnosis"]
    lines.append(f"**The report says** (seed 0): {level}. {sentence}")
    return code + "\n\n" + "\n\n".join(lines)


def draw(results: dict, file: Path) -> None:
    """Gold in training, one panel per mistake beside the right code: mean and range of seeds."""
    from matplotlib import pyplot as plt

    names = [name for name in MISTAKES if pairs(results, name)]
    height = -(-len(names) // 3)
    figure, grid = plt.subplots(height, 3, figsize=(7, 1.45 * height + 0.6), squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names, strict=False):
        for side, colour, label in ((1, "#777777", "right code"), (0, "#d55e00", "mistake")):
            curves = [smooth(both[side]["curves"]["gold"]) for both in pairs(results, name)]
            columns = list(zip(*curves, strict=True))
            steps = range(1, len(columns) + 1)
            axes.fill_between(steps, *zip(*((min(c), max(c)) for c in columns), strict=True),
                              color=colour, alpha=0.2, linewidth=0)  # fmt: skip
            axes.plot(steps, [fmean(c) for c in columns], color=colour, label=label)
        axes.set_title(EXHIBITS[name].title, fontsize=7)
        axes.set_ylim(0.8, 9.8)
        axes.tick_params(labelsize=7)
    for axes in grid[:, 0]:
        axes.set_ylabel("gold (1 to 10)", fontsize=7)
    for axes in grid.flat[max(0, len(names) - 3) : len(names)]:
        axes.set_xlabel("step", fontsize=7)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="upper center", ncol=2, fontsize=8,
                  frameon=False)  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def report(rows: list[dict], out: Path) -> dict[str, str]:
    """Sections of docs/museum.md by name; writes museum.png to the folder `out`."""
    results = by_exhibit(rows)
    if any(pairs(results, name) for name in MISTAKES):
        draw(results, out / "museum.png")
    seeds = len({row["settings"]["seed"] for row in rows})
    commits = sorted({row["commit"] for row in rows if "commit" in row})
    measured = "mean [95 % interval] of held-out gold, measured by the right code"
    text = f"{seeds} seeds; {measured}; commit {', '.join(map(str, commits))}."
    text = f"{text}\n\n{counts(results)}\n\n{overview(results)}" if rows else "No run yet."
    return {"museum": text} | {f"museum {name}": section(results, name) for name in MISTAKES}
