"""The section "Scalar or ratings head" of docs/RESULTS.md: tables and claims from the rows."""

from pathlib import Path

from experiments import ratings_figures as figures
from experiments.claims import (
    HEADER,
    REFUTED,
    by_variant,
    claim_row,
    paired,
    pairs_of,
    plain,
    values,
    verdict,
)
from experiments.lab import folded, table
from experiments.ratings_figures import CALIBRATION_AIM, DISTANCE_AIM, best_of


def main_table(found: dict) -> str:
    """Accuracy, calibration, distance and correctness of sigma, one line per variant."""
    columns = {
        "accuracy": 3,
        "calibration_error": 3,
        "calibration_error_untied": 3,
        "earth_mover": 2,
        "mean_error": 2,
        "sigma": 2,
        "sigma_rank": 2,
        "sigma_error_rank": 2,
    }
    header = ["loss", "seeds", "accuracy", "calibration error", "the same without ties"]
    header += [
        "distance to the truth",
        "error of the mean",
        "σ (mean)",
        "rank correlation of σ with the true σ",
    ]
    header += ["rank correlation of σ with the error"]
    lines = []
    for name, own in found.items():
        cells = [plain(values(own, column), digits) for column, digits in columns.items()]
        lines.append([name, str(len(own)) if name != "truth" else "–", *cells])
    return table(header, lines)


def small_talk_table(found: dict) -> str:
    """Whether a head sees that annotators disagree about small talk."""
    columns = ("sigma_small_talk", "sigma_others", "dip_small_talk", "dip_others")
    header = ["loss", "σ, small talk", "σ, others", "two peaks, small talk", "two peaks, others"]
    lines = [
        [name, *(plain(values(own, column), 2) for column in columns)]
        for name, own in found.items()
        if values(own, "earth_mover")
    ]
    return table(header, lines)


def aim_rows(found: dict) -> list[list[str]]:
    """For each ratings variant: does it reach the aim?  Both parts, verdicts from intervals."""
    lines = []
    for name, own in found.items():
        if name in ("truth", "strict") or not values(own, "earth_mover"):
            continue
        error = values(own, "calibration_error")
        share = paired(own, found.get("strict", {}), "earth_mover", ratio=True)
        accuracy = paired(own, found.get("half", {}), "accuracy")
        parts = verdict([CALIBRATION_AIM - e for e in error])
        parts = [parts, verdict([DISTANCE_AIM - s for s in share])]
        both = "no" if REFUTED in parts else "yes" if parts == ["yes", "yes"] else "open"
        cells = [plain(error, 3), plain(share, 2), plain(accuracy, 3)]
        lines.append([name, both, f"{cells[0]}: {parts[0]}", f"{cells[1]}: {parts[1]}", cells[2]])
    return lines


def aim_table(found: dict) -> str:
    """The aim of the study, variant by variant."""
    header = ["loss", "aim reached?", f"calibration error ≤ {CALIBRATION_AIM}"]
    header += [f"distance ≤ {DISTANCE_AIM} × strict's", "accuracy minus half's"]
    text = "Distance: the loss's divided by that of *strict* with the same seed."
    return table(header, aim_rows(found)) + "\n\n" + text


def claim_table(found: dict) -> str:
    """Claims with verdicts computed from the rows."""
    of = lambda name: found.get(name, {})  # noqa: E731
    half, strict = of("half"), of("strict")
    over = lambda a, b, name: paired(of(a), of(b), name)  # noqa: E731
    lines = [
        claim_row(
            "half is better calibrated than strict",
            paired(strict, half, "calibration_error"),
            "error of strict minus half",
        ),
        claim_row(
            "half is nearer to the true distributions than strict",
            paired(strict, half, "earth_mover"),
            "distance, strict minus half",
        ),
        claim_row(
            "strict's σ is larger than the true σ",
            [a - b for a, b in pairs_of(strict, "sigma", "sigma_true")],
            "σ minus true σ",
        ),
        claim_row(
            "strict's σ is uncertainty: it is larger where the truth is wider",
            values(strict, "sigma_rank"),
            "rank correlation with the true σ",
        ),
        claim_row(
            "strict's σ is uncertainty: it is larger where its mean is wrong",
            values(strict, "sigma_error_rank"),
            "rank correlation with the error of the mean",
        ),
        claim_row(
            "the ratings head (half) is less accurate than the scalar head",
            over("scalar", "half", "accuracy"),
            "accuracy of scalar minus half",
        ),
    ]
    for name in found:
        if name.startswith(("entropy", "marginal", "roughness")):
            what = "distance of half minus this"
            claim = f"{name} brings the distributions nearer to the truth"
            lines.append(claim_row(claim, over("half", name, "earth_mover"), what))
    best = best_of(found)
    if best and best not in ("half", "strict"):
        talk = [a - b for a, b in pairs_of(of(best), "sigma_small_talk", "sigma_others")]
        own = over(best, "half", "accuracy")
        lines += [
            claim_row(f"{best} is at least as accurate as half", own, "minus half", bound=-0.005),
            claim_row(f"{best} sees the disagreement about small talk", talk, "σ minus others' σ"),
        ]
    return table(HEADER, lines)


def report(rows: list[dict], out: Path) -> str:
    """The section of the study; it leaves out what the rows at hand cannot tell yet."""
    found = by_variant(rows)
    parts = [claim_table(found)]
    if figures.draw_aim(found, out):
        parts.append("![Calibration error against distance](figures/ratings_aim.png)")
    if figures.draw_typical(found, out):
        parts.append("![True and learned distributions](figures/ratings_distributions.png)")
        truth = found["truth"][0]
        answers = zip(truth["kinds"], truth["answers"], strict=True)
        shown = "; ".join(f"{kind}: “{answer}”" for kind, answer in answers)
        text = f"The question is “{truth['question']}”; the answers: {shown} Thick: mean of the "
        parts.append(text + "seeds; thin: each seed.")
    every = [main_table(found), COLUMNS]
    if "truth" in found:
        every.append(levels(found["truth"][0]))
    parts.append(folded("The aim: small calibration error and distance", aim_table(found)))
    parts.append(folded("Every loss", "\n\n".join(every)))
    talk = f"{small_talk_table(found)}\n\n{PEAKS}"
    parts.append(folded("Does a head see that annotators disagree?", talk))
    return "\n\n".join(parts)


def levels(truth: dict) -> str:
    """A paragraph with what a perfect and an ignorant ratings head would get."""
    return (
        "Levels to compare with: equal probabilities for all ratings, which is where every loss "
        f"begins, are {truth['earth_mover_uniform']:.2f} ratings from the truth, and the mean of "
        f"all true distributions {truth['earth_mover_marginal']:.2f}. A head that knows the true "
        f"distributions has an accuracy of {truth['accuracy']:.3f} and still a calibration error "
        f"of {truth['calibration_error']:.3f}, because P(win) counts a tie as half a win, but a "
        "pair of equal ratings never comes into the data. Read without ties, its error is "
        f"{truth['calibration_error_untied']:.3f}."
    )


COLUMNS = (
    "Distance to the truth: the earth mover's distance between the head's distribution and the "
    "true one, in ratings, mean over held-out answers. Without ties: of P(win) given that the two "
    "ratings differ. Error of the mean: mean absolute difference of the two means, in ratings. "
    "σ: the standard deviation of the head's distribution; its rank correlations (Spearman) are "
    "with the true σ, and with the absolute error of the head's own mean. Uncertainty would make "
    "the first or the second clearly positive. Half, strict: what a tie counts; soft: "
    "`--soft-labels` and `--label-width`; earth mover: `--earth-mover` with `--label-width 0.5`; "
    "the others are the flags of their names."
)
PEAKS = (
    "Half of the annotators like small talk and half do not, so the true distribution of an answer "
    "with small talk has two peaks, four ratings apart. The table is of held-out answers with a "
    "true mean of 4 to 7: σ with and without small talk, and the share of learned distributions "
    "with two peaks and a dip of 10 % or more between them."
)
