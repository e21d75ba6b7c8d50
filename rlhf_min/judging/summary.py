"""What a judge's verdicts give: training pairs, the metrics of summary.json, and a text."""

from collections import Counter
from statistics import fmean

from rlhf_min.data.visible import visible
from rlhf_min.judging.comparisons import Outcome
from rlhf_min.maths import statistics as stats

SCORE_OF_B = {"a": 0.0, "tie": 0.5, "b": 1.0}
COUNTS = {"wins": "b", "losses": "a", "ties": "tie", "failures": "failed"}
COUNTS |= {"skipped": "skipped", "waiting": "waiting"}  # name in summary.json → winner


def training_pairs(outcomes: list[Outcome]) -> list[dict]:
    """Rows for `train_rm.py --data`: comparisons with a winner and without an empty answer."""
    pairs = []
    for outcome in outcomes:
        c = outcome.comparison
        if outcome.winner in ("a", "b") and c.a.strip() and c.b.strip():
            chosen, rejected = (c.a, c.b) if outcome.winner == "a" else (c.b, c.a)
            pair = {"prompt": c.prompt, "chosen": chosen, "rejected": rejected}
            if ratings := outcome.verdicts[0].ratings:  # of the gold judge only
                pair |= {"chosen_rating": max(ratings), "rejected_rating": min(ratings)}
            pairs.append(pair)
    return pairs


def summarise(outcomes: list[Outcome], winners_known: bool, seed: int) -> dict:
    """The metrics of summary.json; a mean or rate of nothing is None.

    winners_known: b is known to be the better answer, so its win rate is the judge's agreement.
    """
    comparisons = [outcome.comparison for outcome in outcomes]
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    positions = [v.winner for v in verdicts if v.winner in ("first", "second")]
    in_both = [o.by_order for o in outcomes if len(o.by_order) == 2]
    in_both = [results for results in in_both if set(results) <= SCORE_OF_B.keys()]
    count = Counter(outcome.winner for outcome in outcomes)
    metrics = {
        "pairs": len(comparisons),
        **{name: count[winner] for name, winner in COUNTS.items()},
        "identical": sum(c.a == c.b for c in comparisons),
        "position_disagreement": _mean(one != other for one, other in in_both),
        "first_shown_wins": _mean(position == "first" for position in positions),
        "tokens/prompt": sum(v.prompt_tokens for v in verdicts),
        "tokens/reply": sum(v.reply_tokens for v in verdicts),
    }
    judged = [o for o in outcomes if o.winner in SCORE_OF_B]
    scores = [SCORE_OF_B[o.winner] for o in judged]
    differences = [len(o.comparison.b) - len(o.comparison.a) for o in judged]  # in characters
    rate = "agreement" if winners_known else "win_rate"
    metrics |= dict.fromkeys([rate, f"{rate}_low", f"{rate}_high", "length_controlled_rate"])
    if judged:
        interval = stats.wilson_interval(sum(scores), len(scores))
        if not winners_known:
            interval = stats.bootstrap_interval(scores, stats.win_rate, seed)
        metrics[rate] = stats.win_rate(scores)
        metrics[f"{rate}_low"], metrics[f"{rate}_high"] = interval
        metrics["length_controlled_rate"] = stats.length_controlled_rate(scores, differences)
    unequal = [(d > 0, s == 1) for d, s in zip(differences, scores, strict=True) if d and s != 0.5]
    metrics["longer_wins"] = _mean(b_is_longer == b_wins for b_is_longer, b_wins in unequal)
    if winners_known:
        longer = [(d > 0) + (d == 0) / 2 for d in differences]  # of all judged, as the agreement
        return metrics | {"longer_wins_data": _mean(longer)}
    for side in ("a", "b"):
        answers = [getattr(c, side) for c in comparisons]
        finished = [getattr(c, f"{side}_finished") for c in comparisons]
        metrics[f"length/mean_{side}"] = _mean(map(len, answers))
        metrics[f"degenerate/rate_{side}"] = _mean(map(stats.degenerate, answers))
        metrics[f"finished/rate_{side}"] = _mean(finished)
    return metrics


def describe(summary: dict, outcomes: list[Outcome]) -> str:
    """The summary in three lines, for the terminal."""
    share = {k: f"{v:.1%}" if isinstance(v, float) else "none" for k, v in summary.items()}
    name, title, in_data = "win_rate", "win rate of b", ""
    if "agreement" in summary:
        name, title = "agreement", "agreement"
        in_data = f" (in the data {share['longer_wins_data']})"
    text = (
        f"{title} {share[name]} [{share[name + '_low']}, {share[name + '_high']}], "
        f"at equal length {share['length_controlled_rate']}; {summary['pairs']} pairs, "
        f"{summary['ties']} ties ({summary['identical']} identical), "
        f"{summary['failures']} failures\n"
        f"  the order changes the verdict on {share['position_disagreement']}; the first wins "
        f"{share['first_shown_wins']}, the longer {share['longer_wins']}{in_data}"
    )
    failed = [outcome.explanation for outcome in outcomes if outcome.winner == "failed"]
    return text + (f"\n  the first failure: {visible(failed[0])}" if failed else "")


def _mean(values) -> float | None:
    """The mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
