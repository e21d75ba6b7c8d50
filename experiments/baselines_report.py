"""The section and figure of experiments/baselines.py, written from its rows."""

from math import exp, log
from pathlib import Path
from statistics import fmean, geometric_mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.claims import HEADER, claim_row, paired
from experiments.lab import folded, mean_interval, shown, table

NAMES = {
    "none": "none",
    "converged": "moving average, converged (b = E[R])",
    "cumulative": "moving average, as it is (all earlier steps)",
    "exponential": "exponential average",
    "leave-one-out": "leave-one-out",
    "best constant": "best constant (for comparison)",
}
POLICIES = {"start": "start model", "early": "after 30 steps"}
CURVE_NAMES = {"none": "none", "moving-average": "moving average", "ema": "exponential average"}
# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ["#000000", "#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73"]


def report(rows: list[dict], out: Path) -> str:
    """The Markdown section from rows (some may be missing); writes baselines.png to `out`."""
    variances = by_seed(rows, "variance", lambda s: s["policy"])
    curves = by_seed(rows, "curve", lambda s: curve_name(s["baseline"], s["samples"]))
    figure(variances, curves, out / "baselines.png")
    variance = (
        "Variance of the gradient of one step (64 answers), summed over all weights and divided by "
        "the squared norm of the true gradient: at 1, noise and signal have the same size. It is "
        "estimated from independent batches of a policy that is held fixed; means are geometric. "
        "It says how noisy one step is, not how good the trained policy becomes; AdamW averages "
        "the noise of about ten steps. Rewards are standardised by the start model's mean, so at "
        "the start *none* is already a baseline near E[R], and the moving averages begin there."
    )
    gold = (
        "Gold is the true rating of answers to held-out questions after equal numbers of samples; "
        "the curve's mean is over all training steps, so it rewards fast learning. Seeds differ in "
        "start model, reward model, and sampling. Moving average: the mean of all earlier rewards "
        "(`--baseline moving-average`; cumulative mean in the claims); exponential average: "
        "`--baseline ema`; E[R]: the exact expected reward, which a moving average approaches."
    )
    told = table(HEADER, claims(variances, curves))
    parts = [
        "![Variance and learning curves by baseline](figures/baselines.png)",
        curve_table(curves),
        gold,
        folded("Variance of the gradient", f"{variance_table(variances)}\n\n{variance}"),
        folded("Every claim", told),
    ]
    return "\n\n".join(parts)


def by_seed(rows: list[dict], kind: str, name_of) -> dict[str, dict[int, dict]]:
    """name → seed → result, of the rows of one kind."""
    found: dict[str, dict[int, dict]] = {}
    for row in rows:
        if row["settings"]["kind"] == kind:
            own = found.setdefault(name_of(row["settings"]), {})
            own[row["settings"]["seed"]] = row["result"]
    return found


def curve_name(baseline: str, samples: int) -> str:
    """The name of a learning curve in tables."""
    return CURVE_NAMES.get(baseline) or f"leave-one-out, K = {samples}"


def relative(variances: dict, policy: str, samples: int, name: str) -> dict[int, float]:
    """seed → variance divided by the squared norm of the true gradient, where there is one."""
    results, found = variances.get(policy, {}), variance_of(variances, policy, samples, name)
    # Estimated from very few batches, the squared norm can come out negative: no ratio then.
    return {s: v / results[s]["square"] for s, v in found.items() if results[s]["square"] > 0}


def variance_of(variances: dict, policy: str, samples: int, name: str) -> dict[int, float]:
    """seed → variance of the gradient, where there is one."""
    results = {s: one[str(samples)]["variance"] for s, one in variances.get(policy, {}).items()}
    return {seed: one[name] for seed, one in results.items() if name in one}


def variance_table(variances: dict) -> str:
    """Relative variances: a row per policy and baseline, a column per K."""
    lines = []
    for policy, title in POLICIES.items():
        for name, text in NAMES.items():
            values = [[*relative(variances, policy, k, name).values()] for k in (2, 4, 8)]
            if variance_of(variances, policy, 4, name):
                lines.append([title, text, *map(geometric, values)])
    header = ["policy", "baseline", *(f"K = {k} answers per prompt" for k in (2, 4, 8))]
    return table(header, lines)


def geometric(values: list[float]) -> str:
    """The geometric mean of ratios, with the 95 % interval of their logarithms."""
    if len(values) < 2:
        return shown(values, 1)
    mean, low, high = (exp(value) for value in mean_interval([log(value) for value in values]))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def curve_table(curves: dict) -> str:
    """Held-out gold, mean gold, and the mean advantage over steps, by baseline."""
    lines = []
    for name, own in curves.items():
        ends = [one["held_out"]["after"] for one in own.values()]
        means = [fmean(one["gold"]) for one in own.values()]
        advantages = [fmean(one["advantage"]) for one in own.values()]
        kl = [one["held_out_kl"] for one in own.values()]
        cells = [shown(ends), shown(means), shown(kl), shown(advantages, 3)]
        lines.append([name, *cells, str(len(own))])
    titles = ["held-out gold at the end", "gold, mean over training", "KL at the end, nats"]
    return table(["baseline", *titles, "advantage, mean over steps", "seeds"], lines)


def claims(variances: dict, curves: dict) -> list[list[str]]:
    """The claim table's rows; differences of variances are of their logarithms."""

    def less(policy: str, first: tuple, second: tuple) -> list[float]:
        logs = [
            {seed: log(value) for seed, value in variance_of(variances, policy, *one).items()}
            for one in (first, second)
        ]
        return paired(logs[1], logs[0])

    def variance_claim(text: str, policy: str, first: tuple, second: tuple) -> list[str]:
        differences = less(policy, first, second)
        row = claim_row(text, differences, "log of the second variance minus log of the first", 2)
        if differences:
            row[2] += f" (the second is {exp(fmean(differences)):.2f} × the first)"
        return row

    def curve_claim(text: str, first: str, second: str, value) -> list[str]:
        both = [{s: value(one) for s, one in curves.get(n, {}).items()} for n in (first, second)]
        return claim_row(text, paired(*both), "difference", 2)

    end, mean = (lambda one: one["held_out"]["after"]), (lambda one: fmean(one["gold"]))
    lag = lambda one: abs(fmean(one["advantage"]))  # noqa: E731
    average, ema, loo = "moving average", "exponential average", "leave-one-out, K = {}".format
    rows = [
        variance_claim(f"{title}: {text}", policy, first, second)
        for policy, title in POLICIES.items()
        for text, first, second in (
            ("E[R] as baseline has less variance than none", (4, "converged"), (4, "none")),
            (
                "leave-one-out (K = 4) has less than E[R]",
                (4, "leave-one-out"), (4, "converged"),
            ),
            ("leave-one-out: K = 4 less than K = 2", (4, "leave-one-out"), (2, "leave-one-out")),
            ("leave-one-out: K = 8 less than K = 4", (8, "leave-one-out"), (4, "leave-one-out")),
        )
    ]  # fmt: skip
    rows += [
        variance_claim(
            "after 30 steps: the lag of the cumulative mean costs variance (against E[R])",
            "early", (4, "converged"), (4, "cumulative"),
        ),
        curve_claim("a moving average gives more gold than none", average, "none", end),
        curve_claim("leave-one-out (K = 4) gives more than a moving average", loo(4), average, end),
        curve_claim("the same, mean over training", loo(4), average, mean),
        curve_claim("leave-one-out: K = 4 gives more than K = 2", loo(4), loo(2), end),
        curve_claim("leave-one-out: K = 8 gives more than K = 4", loo(8), loo(4), end),
        curve_claim("the cumulative mean's advantage is further from 0 than the exponential's",
                    average, ema, lag),
        curve_claim("the lag costs gold: exponential above cumulative", ema, average, end),
        curve_claim("the same, mean over training", ema, average, mean),
    ]  # fmt: skip
    return rows


def figure(variances: dict, curves: dict, file: Path) -> None:
    """Left: relative variances after 30 steps by K; right: gold by answers sampled."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for n, name in enumerate(NAMES):
        values = {k: [*relative(variances, "early", k, name).values()] for k in (2, 4, 8)}
        values = {k: v for k, v in values.items() if v}
        if values:
            x = [k * 1.04 ** (n - 2.5) for k in values]
            draw(left, x, [*values.values()], COLOURS[n], NAMES[name].split(" (")[0], "o-")
    left.set(xscale="log", yscale="log", xlabel="K, answers per prompt (64 answers in all)")
    left.set(
        ylabel="variance / squared gradient norm", title="gradient after 30 steps (bars: range)"
    )
    left.set_xticks([2, 4, 8], ["2", "4", "8"])
    left.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    left.minorticks_off()
    for (name, own), colour in zip(curves.items(), COLOURS, strict=False):
        columns = [*zip(*(one["gold"] for one in own.values()), strict=True)]
        x = [(i + 0.5) * 5 * 64 for i in range(len(columns))]
        draw(right, x, columns, colour, name, "-", band=True)
    right.set(xlabel="answers sampled", ylabel="gold (true rating, 1 to 10)", title="training")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7.5)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw(axes, x: list, values: list, colour: str, label: str, style: str, band=False) -> None:
    """Means of lists of values with their 95 % intervals (a band), or geometric with the range."""
    mean = fmean if band else geometric_mean
    axes.plot(x, [mean(one) for one in values], style, color=colour, label=label, markersize=4)
    if all(len(one) > 1 for one in values):
        if band:
            _, low, high = zip(*(mean_interval(list(one)) for one in values), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        else:
            axes.vlines(x, [*map(min, values)], [*map(max, values)], color=colour, linewidth=1)
