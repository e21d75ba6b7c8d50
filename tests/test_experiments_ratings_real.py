"""The study of real ratings: its scores by enumeration, its report, its error without data."""

import random

import numpy as np
import pytest

from experiments import ratings_real


def test_scores_of_distributions_by_loops():
    known = {("a", "b"): [7.25, 3.0], ("c", "d"): [10.0, 1.0]}
    learned = np.random.default_rng(0).dirichlet(np.ones(10), size=(2, 2))
    rows = [
        {"chosen": c, "rejected": r, "chosen_ratings": p.tolist(), "rejected_ratings": q.tolist()}
        for (c, r), (p, q) in zip(known, learned, strict=True)
    ]
    result = ratings_real.compared(rows, known, [9.5, 2.0])
    data = {7.25: {7: 0.75, 8: 0.25}, 3.0: {3: 1.0}, 10.0: {10: 1.0}, 1.0: {1: 1.0}}
    constant = {2: 0.5, 9: 0.25, 10: 0.25}  # mean distribution of the training ratings
    score = marginal = error = fixed = 0.0
    answers = [*zip(learned.reshape(4, 10), [7.25, 3.0, 10.0, 1.0], strict=True)]
    for k in range(1, 11):
        gaps = []
        for p, rating in answers:
            below = [sum(q for i, q in x.items() if i <= k) for x in (data[rating], constant)]
            gaps.append(sum(p[:k]) - below[0])
            fixed += (below[1] - below[0]) ** 2 / 4
        score += sum(gap**2 for gap in gaps) / 4
        marginal += abs(sum(gaps) / 4)
    for p, rating in answers:
        error += abs(sum(k * x for k, x in enumerate(p, 1)) - rating) / 4
    assert result["score"] == pytest.approx(score)
    assert result["score_constant"] == pytest.approx(fixed)
    assert result["marginal"] == pytest.approx(marginal)
    assert result["mean_error"] == pytest.approx(error)


def test_the_report_has_every_variant_and_computed_verdicts(tmp_path):
    rng, rows = random.Random(0), []
    for one in ratings_real.settings(quick=False):
        result = {"accuracy": 0.6 + rng.gauss(0, 0.02), "calibration_error": 0.1}
        result |= {"longer_wins": 0.6, "pairs/train": 260, "pairs/held_out": 170}
        if one["variant"] != "scalar":
            score = 1.0 if one["variant"].startswith("soft") else 2.0
            result |= {
                "marginal": score,
                "score": score + rng.gauss(0, 0.01),
                "score_constant": 0.9,
            }
            result |= {"mean_error": 2.0, "sigma": 2.0}
        rows.append({"settings": one, "result": result})
    text = ratings_real.report(rows, tmp_path)
    claims = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert set(ratings_real.VARIANTS) <= set(claims)
    nearer = "soft labels bring single distributions nearer to the ratings than half alone"
    assert "| yes |" in claims[nearer]
    more = "soft labels tell more than the same distribution for every answer"
    assert "| **refuted** |" in claims[more]
    assert ratings_real.report(rows[:1], tmp_path) and ratings_real.report([], tmp_path)


def test_missing_data_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_REAL", str(tmp_path))
    with pytest.raises(SystemExit, match="RLHF_MIN_REAL=FOLDER"):
        ratings_real.folder()


def test_a_tiny_run_on_the_real_pairs(tmp_path, monkeypatch):
    try:
        ratings_real.folder()
    except SystemExit as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    one = next(o for o in ratings_real.settings(quick=True) if o["variant"].startswith("soft"))
    result = ratings_real.run(one)
    assert result["pairs/held_out"] > 5 and 0 < result["score"] < 10
