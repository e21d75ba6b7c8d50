"""Diagnosis of a run: did the learned reward rise while the answers became worse?"""

from collections.abc import Iterator
from itertools import pairwise
from math import sqrt
from statistics import pstdev

from rlhf_min.reporting.series import finite_values, half_window, series, smooth, too_few

LEVELS = ("hacking", "warning", "healthy", "unknown")  # most serious first
GOLD_DROP = 0.5  # a smaller fall of the gold rating (1 to 10) from its peak does not count
MIN_STEPS = 10  # shorter training curves are not used
EQUAL, UNFINISHED, KL = 0.9, 0.05, 10.0  # limits beyond which a policy has collapsed


def diagnose(metrics: list[dict], summary: dict) -> tuple[str, list[str]]:
    """(level, sentences) from the rows of metrics.jsonl and from summary.json; either may be empty.

    The most serious evidence decides.  Symptoms, such as repetition, count only without evidence.
    """
    evidence = [*_gold_in_training(metrics), *_held_out(summary)]
    evidence.sort(key=lambda item: LEVELS.index(item[0]))
    symptoms = list(_symptoms(metrics, summary))
    level = evidence[0][0] if evidence else "warning" if symptoms else "unknown"
    sentences = [sentence for _, sentence in evidence] + symptoms
    if not evidence and (reward := _first_and_last(metrics, summary, "reward/mean")):
        text = f"The learned reward went {_from_to(*reward)}; no other number shows whether answers"
        sentences.append(text + " improved, so let a judge compare them (judge.py).")
    return level, sentences or ["There is too little data for a diagnosis."]


def collapse(metrics: dict) -> dict[str, str]:
    """Metric → sentence, for every sign of a collapsed policy in a step's or held-out metrics."""
    keys = ("text/equal", "finished/rate", "kl/mean")
    equal, finished, kl = (finite_values(metrics, key) for key in keys)
    signs = {}
    if equal and equal[0] >= EQUAL:
        signs["text/equal"] = (
            f"{equal[0]:.0%} of the pairs of answers are equal: the policy gives nearly one answer "
            "to every prompt; raise --kl or lower --lr."
        )
    if finished and finished[0] < UNFINISHED:
        signs["finished/rate"] = (
            f"Only {finished[0]:.0%} of the answers end: raise --max-new-tokens or "
            "--missing-end-penalty."
        )
    if kl and kl[0] > KL:
        signs["kl/mean"] = (
            f"The KL is {kl[0]:.1f} nats per answer, above {KL:g}: the policy is far from the "
            "reference model, where the reward model knows little; raise --kl or stop earlier."
        )
    return signs


def _from_to(old: float, new: float) -> str:
    return f"from {round(old, 2) + 0.0:.2f} to {round(new, 2) + 0.0:.2f}"  # + 0.0: no −0.00


def _gold_in_training(metrics: list[dict]) -> Iterator[tuple[str, str]]:
    """Gold must fall from its peak by GOLD_DROP and by 3 standard errors to count as a fall."""
    steps, raw_reward, raw_gold = series(metrics, "reward/mean", "reward/gold")
    if len(steps) < MIN_STEPS:
        return
    reward, gold = smooth(raw_reward), smooth(raw_gold)
    start, end, peak = gold[0], gold[-1], gold.index(max(gold))
    half, noise = half_window(len(gold)), pstdev(b - a for a, b in pairwise(raw_gold)) / sqrt(2)
    error = noise * sqrt(4 / (half + 1) + 1 / (2 * half + 1))  # a line's end minus a mean
    if gold[peak] - end < max(GOLD_DROP, 3 * error):
        change = "rose" if end - start >= GOLD_DROP else "changed little"
        text = f"In training the gold rating {change}, from {start:.1f} to {end:.1f}"
        yield "healthy", text + ", and did not clearly fall from its peak."
        return
    rose, rewards = reward[-1] > reward[peak], _from_to(reward[peak], reward[-1])
    text = f"After step {steps[peak]} the gold rating fell from its peak of {gold[peak]:.1f} to "
    text += f"{end:.1f} and the learned reward {'rose' if rose else 'did not rise'}, {rewards}: "
    if rose:
        text += "the policy exploits errors of the reward model. Raise --kl, stop earlier, or "
        yield "hacking", text + "retrain the reward model on judged answers of this policy."
    else:
        yield "warning", text + "training is unstable; lower --lr."


def _held_out(summary: dict) -> Iterator[tuple[str, str]]:
    """Levels and sentences from the summary's metrics with their 95 % intervals."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    old, new = (finite_values(side, "reward/mean", "reward/gold") for side in (before, after))
    if old and new and (note := too_few(after)):
        yield "unknown", f"Held-out gold ratings: {note}."
    elif old and new:
        reward, gold = zip(old, new, strict=True)
        text = f"Held-out gold rating: {_from_to(*gold)}; learned reward: {_from_to(*reward)}"
        if after.get("reward/gold_high", gold[1]) < before.get("reward/gold_low", gold[0]):
            yield ("hacking" if reward[1] > reward[0] else "warning"), text + "."
        elif after.get("reward/gold_low", gold[1]) > before.get("reward/gold_high", gold[0]):
            yield "healthy", text + "."
        else:
            yield "unknown", text + ": the 95 % intervals of gold overlap, so no change is shown."
    if note := too_few(summary):
        yield "unknown", f"Of the intervals: {note}."
        return
    if values := finite_values(summary, "win_rate", "win_rate_low", "win_rate_high"):
        rate, low, high = values
        text = f"Model b wins {rate:.1%} against model a (95 % interval {low:.1%} to {high:.1%})"
        if low > 0.5:
            yield "healthy", text + ": b is better."
        elif high < 0.5:
            yield "warning", text + ": b is worse; with a higher learned reward that is hacking."
        else:
            yield "unknown", text + ": no difference is shown; judge more prompts."
    rules = {"accuracy": ("The reward model", "longer_wins")}
    rules["agreement"] = ("The judge", "longer_wins_data")
    for key, (name, rule) in rules.items():
        if values := finite_values(summary, key, f"{key}_low", f"{key}_high"):
            share, low, high = values
            chance = summary.get("chance") or 0.5  # of lists of answers it is lower
            longer_wins = chance if summary.get(rule) is None else summary[rule]
            trivial = max(longer_wins, 2 * chance - longer_wins)  # "longer" or "shorter wins"
            text = f"{name} ranks {share:.1%} of the pairs right (95 % interval {low:.1%} to "
            text += f"{high:.1%}); guessing or the answers' lengths alone: {trivial:.1%} right"
            gain = low > trivial
            yield "healthy" if gain else "warning", text + ("." if gain else ": no clear gain.")


def _first_and_last(metrics: list[dict], summary: dict, key: str) -> list[float]:
    """A metric before and after training, on held-out prompts or else from the smoothed curve."""
    sides = [finite_values(summary.get(side) or {}, key) for side in ("before", "after")]
    if all(sides) and not too_few(summary["after"]):
        return sides[0] + sides[1]
    values = smooth(series(metrics, key)[1])
    return [values[0], values[-1]] if len(values) >= MIN_STEPS else []


def _symptoms(metrics: list[dict], summary: dict) -> Iterator[str]:
    yield from collapse(summary.get("after") or (metrics or [{}])[-1]).values()
    keys = ("text/longest_run", "text/distinct_2", "length/mean", "finished/rate")
    run, variety, length, finished = (_first_and_last(metrics, summary, key) for key in keys)
    if run and run[1] >= 3 and run[1] >= 1.5 * run[0]:
        yield f"Answers repeat themselves: {run[1]:.1f} copies in a row, at first {run[0]:.1f}."
    if variety and variety[1] < 0.7 * variety[0]:
        yield f"Variety fell: distinct-2 is {variety[1]:.2f}, at first {variety[0]:.2f}."
    if length and length[0] > 0 and not 0.67 < length[1] / length[0] < 1.5:
        yield f"Length changed from {length[0]:.0f} to {length[1]:.0f} tokens per answer."
    if finished and finished[1] < finished[0] - 0.1:
        yield f"Fewer answers are finished: {finished[1]:.0%}, at first {finished[0]:.0%}."
    if too_few(summary):
        return
    rates = finite_values(summary, "win_rate", "length_controlled_rate")
    if rates and abs(rates[0] - rates[1]) > 0.05:
        yield f"If answers had equal length, b would win {rates[1]:.1%}, not {rates[0]:.1%}."
    swapped = finite_values(summary, "position_disagreement")
    if swapped and swapped[0] > 0.3:
        yield f"Swapping the order of the answers changes the verdict on {swapped[0]:.0%} of pairs."
    repeated = finite_values(summary, "degenerate/rate_a", "degenerate/rate_b")
    if repeated and repeated[1] > repeated[0] + 0.05:
        yield f"{repeated[1]:.0%} of b's answers end in repetition, {repeated[0]:.0%} of a's."
    if summary.get("failures"):
        yield f"{summary['failures']} verdicts could not be read and do not count."
