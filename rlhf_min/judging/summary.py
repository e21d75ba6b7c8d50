"""From a judge's verdicts: training pairs, the metrics of summary.json, and a text."""

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
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    tied = [outcome for outcome in outcomes if outcome.comparison.tied]
    outcomes = [outcome for outcome in outcomes if not outcome.comparison.tied]
    comparisons = [outcome.comparison for outcome in outcomes]
    lists = any(isinstance(c.a, list) for c in comparisons)  # without order and length
    positions = [v.winner for v in verdicts if v.winner in ("first", "second") and not lists]
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
    pairs = [] if lists else judged
    scores = [SCORE_OF_B[o.winner] for o in pairs]
    differences = [len(o.comparison.b) - len(o.comparison.a) for o in pairs]  # in characters
    if winners_known:
        metrics |= agreement(outcomes) | by_subset(outcomes) | _tied_votes(tied)
    else:
        metrics |= dict.fromkeys(["win_rate", "win_rate_low", "win_rate_high"])
    metrics["length_controlled_rate"] = None
    if scores:
        metrics["length_controlled_rate"] = stats.length_controlled_rate(scores, differences)
    if scores and not winners_known:
        metrics["win_rate"] = stats.win_rate(scores)
        interval = stats.bootstrap_interval(scores, seed=seed)
        metrics["win_rate_low"], metrics["win_rate_high"] = interval
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


def agreement(outcomes: list[Outcome]) -> dict:
    """Share of the judged outcomes won by b, a tie ½ or its share; Wilson interval; chance level.

    Of lists that is best-of-N accuracy: the best-scored answer is one of b's.
    """
    judged = [o for o in outcomes if o.winner in SCORE_OF_B]
    shares = [(o.verdicts[0].share, SCORE_OF_B[o.winner]) for o in judged]
    scores = [score if share is None else share for share, score in shares]
    names = ("agreement", "agreement_low", "agreement_high", "chance")
    if not judged:
        return dict.fromkeys(names)
    interval = stats.wilson_interval(sum(scores), len(scores))
    values = fmean(scores), *interval, fmean(o.comparison.chance for o in judged)
    return dict(zip(names, values, strict=True))


def by_subset(outcomes: list[Outcome]) -> dict:
    """{"subsets": {name: counts and agreement}, "macro_average": their mean}; {} without subsets.

    The macro average is the unweighted mean over subsets with at least one judged row.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.comparison.subset or ""):
        groups.setdefault(outcome.comparison.subset or "(none)", []).append(outcome)
    if not groups.keys() - {"(none)"}:
        return {}
    subsets = {}
    for name, own in groups.items():
        judged = sum(outcome.winner in SCORE_OF_B for outcome in own)
        subsets[name] = {"pairs": len(own), "judged": judged} | agreement(own)
    return {
        "macro_average": _mean(values["agreement"] for values in subsets.values()),
        "subsets": subsets,
    }


def _tied_votes(tied: list[Outcome]) -> dict:
    """How many of the rows that the data call a tie the judge calls a tie; {} without any."""
    calls = [outcome.winner == "tie" for outcome in tied if outcome.winner in SCORE_OF_B]
    return {"tied_votes": len(tied), "tied_votes/agreement": _mean(calls)} if tied else {}


def describe(summary: dict, outcomes: list[Outcome]) -> str:
    """The summary in some lines, for the terminal."""
    share = {k: f"{v:.1%}" if isinstance(v, float) else "none" for k, v in summary.items()}
    name, title, in_data = "win_rate", "win rate of b", ""
    lists = any(isinstance(outcome.comparison.a, list) for outcome in outcomes)
    if "agreement" in summary:
        name, title = "agreement", "best-of-N accuracy" if lists else "agreement"
        in_data = f" (in the data {share['longer_wins_data']})"
    beside = f"chance {share['chance']}" if lists else ""
    beside = beside or f"at equal length {share['length_controlled_rate']}"
    text = (
        f"{title} {share[name]} [{share[name + '_low']}, {share[name + '_high']}], "
        f"{beside}; {summary['pairs']} {'rows' if lists else 'pairs'}, "
        f"{summary['ties']} ties ({summary['identical']} identical), "
        f"{summary['failures']} failures"
    )
    if not lists:
        text += (
            f"\n  the order changes the verdict on {share['position_disagreement']}; the first "
            f"wins {share['first_shown_wins']}, the longer {share['longer_wins']}{in_data}"
        )
    if "tied_votes" in summary:
        calls = f"of these the judge calls {share['tied_votes/agreement']} a tie"
        text += f"\n  and {summary['tied_votes']} tied votes, not in the agreement: {calls}"
    text += _subset_table(summary)
    failed = [outcome.explanation for outcome in outcomes if outcome.winner == "failed"]
    return text + (f"\n  the first failure: {visible(failed[0])}" if failed else "")


def _subset_table(summary: dict) -> str:
    """Lines with the rows, agreement, interval and chance of each subset; "" without any."""
    if "subsets" not in summary:
        return ""
    keys = ("agreement", "agreement_low", "agreement_high", "chance")
    rows = [("subset", "rows", "judged", "agreement", "95 % from", "to", "chance")]
    for name, values in summary["subsets"].items():
        rates = ("none" if values[key] is None else f"{values[key]:.1%}" for key in keys)
        rows.append((visible(name)[:40], str(values["pairs"]), str(values["judged"]), *rates))
    macro = summary["macro_average"]
    rows.append(("macro average", "", "", "none" if macro is None else f"{macro:.1%}", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "".join(f"\n  {line}" for line in lines)


def _mean(values) -> float | None:
    """The mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
