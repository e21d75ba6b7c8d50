"""The study of ratings heads: its measures against loops, its report, and a tiny run of it."""

import itertools
import math
import random

import numpy as np
import pytest

from experiments import lab, rating_measures, ratings, ratings_report
from experiments.claims import paired, verdict


def random_distributions(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(10, 0.5), size=count)


def test_earth_mover_is_the_cheapest_transport():
    # Oracle: pour the mass from left to right, each grain to the first place that lacks some.
    first, second = random_distributions(20, 0), random_distributions(20, 1)
    for p, q, distance in zip(
        first, second, rating_measures.earth_mover(first, second), strict=True
    ):
        have, want, cost, i, j = [*p], [*q], 0.0, 0, 0
        while i < 10 and j < 10:
            moved = min(have[i], want[j])
            cost += moved * abs(i - j)
            have[i] -= moved
            want[j] -= moved
            i, j = (i + 1, j) if have[i] <= want[j] else (i, j + 1)
        assert distance == pytest.approx(cost, abs=1e-9)


def test_mean_sigma_and_win_probabilities_by_enumeration():
    first, second = random_distributions(5, 2), random_distributions(5, 3)
    mean, sigma = rating_measures.mean_and_sigma(first)
    half, untied = rating_measures.win_probabilities(first, second)
    for row, (p, q) in enumerate(zip(first, second, strict=True)):
        expected = sum(k * x for k, x in enumerate(p, 1))
        square = sum(k * k * x for k, x in enumerate(p, 1))
        assert mean[row] == pytest.approx(expected)
        assert sigma[row] == pytest.approx(math.sqrt(square - expected**2))
        win = tie = 0.0
        for i, j in itertools.product(range(10), range(10)):
            win += p[i] * q[j] * (i > j)
            tie += p[i] * q[j] * (i == j)
        assert half[row] == pytest.approx(win + tie / 2)
        assert untied[row] == pytest.approx(win / (1 - tie))
    point = np.eye(10)[[3]]
    assert rating_measures.win_probabilities(point, point)[1] == [0.5]  # a certain tie


def test_a_dip_needs_a_peak_on_both_sides():
    assert rating_measures.has_dip(np.array([0.3, 0.1, 0.1, 0.3, 0.2]))
    assert not rating_measures.has_dip(np.array([0.1, 0.2, 0.4, 0.2, 0.1]))
    assert not rating_measures.has_dip(np.array([0.5, 0.3, 0.1, 0.06, 0.04]))
    assert not rating_measures.has_dip(np.array([0.25, 0.24, 0.26, 0.25]))  # less than 10 %


def test_the_truth_is_at_no_distance_and_small_talk_has_two_peaks():
    truth = ratings.truth(16)
    assert truth["earth_mover"] == 0 and truth["sigma_rank"] == 1
    assert truth["earth_mover_uniform"] > 1
    two_peaks = [rating_measures.has_dip(np.array(p)) for p in truth["typical"]]
    assert two_peaks == [False, False, True, False]


def made_up_rows() -> list[dict]:
    """Rows as after a whole study: strict far from the truth, the soft label near to it."""
    rng, rows = random.Random(0), []
    for settings in ratings.settings(quick=False):
        name = settings["variant"]
        near, noise = name.startswith(("soft", "truth")), rng.gauss(0, 0.001)
        result = {"accuracy": 0.78 + noise, "calibration_error": 0.02 + noise}
        if name != "scalar":
            measures = rating_measures.measures(*np.full((2, 9, 10), 0.1), np.arange(9) % 2 == 0)
            result |= measures | {"calibration_error_untied": 0.02, "typical": [[0.1] * 10] * 4}
            result["earth_mover"] = (0.4 if near else 1.8) + noise
            result |= {"sigma_rank": 0.3 + noise, "sigma_error_rank": -0.2 + noise}
        if name == "truth":
            result |= {"earth_mover_uniform": 2.6, "earth_mover_marginal": 2.6}
            result |= {"question": "?", "kinds": [*ratings.TYPICAL], "answers": ["."] * 4}
        rows.append({"settings": settings, "result": result})
    return rows


def test_the_report_computes_its_verdicts_from_rows(tmp_path):
    rows = made_up_rows()
    text = ratings_report.report(rows, tmp_path)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()[::-1]}
    aim = ratings_report.aim_rows(ratings_report.by_variant(rows))
    reached = {name: verdict for name, verdict, *_ in aim}
    assert reached["soft 1, width 0.5"] == "yes" and reached["half"] == "no"
    assert "| yes |" in lines["strict's σ is uncertainty: it is larger where the truth is wider"]
    wrong = "strict's σ is uncertainty: it is larger where its mean is wrong"
    assert "| **refuted** |" in lines[wrong]
    assert all(name in lines for name in ratings.VARIANTS)
    assert {file.name for file in tmp_path.iterdir()} == {
        "ratings_aim.png",
        "ratings_distributions.png",
    }
    for some in (rows[:1], rows[1:3], rows[:4], []):  # a study that was stopped
        assert ratings_report.report(some, tmp_path)


def test_verdicts_need_an_interval_that_excludes_the_bound():
    assert verdict([0.1, 0.11, 0.12]) == "yes" and verdict([-0.1, -0.11]) == "**refuted**"
    assert verdict([0.1, 0.11, 0.12], bound=0.2) == "**refuted**" and verdict([]) == "–"
    assert verdict([0.1, -0.1, 0.05]) == "open" and verdict([0.1]) == "open (1 seed)"
    assert paired({0: {"a": 3.0}, 1: {"a": 4.0}}, {1: {"a": 1.0}, 2: {}}, "a") == [3.0]
    assert paired({0: 3.0, 1: 5.0}, {1: 4.0, 2: 0.0}) == [1.0]
    assert paired({0: 3.0, 1: 5.0}, {1: 4.0, 2: 0.0}, ratio=True) == [1.25]


def test_a_tiny_study_has_every_row(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    settings = [one for one in ratings.settings(quick=True) if one["variant"] != "scalar"][:2]
    rows = [{"settings": one, "result": ratings.run(one)} for one in settings]
    assert [row["settings"]["variant"] for row in rows] == ["truth", "half"]
    half = rows[1]["result"]
    assert np.allclose(np.sum(half["typical"], -1), 1, atol=1e-3)
    # After two steps the head is still near to uniform: chance level, and its distance is known.
    assert half["earth_mover"] == pytest.approx(rows[0]["result"]["earth_mover_uniform"], abs=0.3)
    assert len(lab.key(half)) < 1500
    assert "| half | 1 |" in ratings_report.report(rows, tmp_path)
