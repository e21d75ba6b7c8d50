"""The study of cures: gold at equal KL by hand, and a tiny run."""

from types import SimpleNamespace

import pytest

from experiments import cures, cures_runs, zoo_runs


def test_gold_at_a_kl_is_where_the_curve_first_reaches_it():
    curve = [[0.0, 5.0], [4.0, 7.0], [1.0, 3.0], [9.0, 1.0]]
    assert cures.gold_at(curve, 1.0) == pytest.approx(6.0)  # half-way in √KL, on the way up
    assert cures.gold_at(curve, 4.0) == 7.0
    assert cures.gold_at(curve, 6.25) == pytest.approx(1.5)  # √6.25 is 3/4 of the way from 1 to 3
    assert cures.gold_at(curve, 10.0) is None


def test_a_reward_of_one_is_worth_the_ratio_of_the_standard_deviations(tmp_path, monkeypatch):
    """A predicted gain must not change with the unit of the learned reward."""
    answers = [{"prompt": "p", "before": "a" * n, "before_gold": 2.0 * n} for n in range(1, 6)]
    for unit in (1.0, 10.0):
        judge = SimpleNamespace(scores=lambda prompt, texts, u=unit: [u * len(t) for t in texts])
        monkeypatch.setattr(cures_runs, "reward_model_judge", lambda path, j=judge: j)
        ratio = cures_runs.ratings_per_reward(tmp_path, answers)
        assert ratio * unit == pytest.approx(2.0)


def test_a_tiny_run_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    wanted = [one for one in cures_runs.settings(quick=True) if one["cure"] == "ensemble, min"]
    with zoo_runs.without_reports():
        rows = [{"settings": one, "result": cures_runs.run(one)} for one in wanted[:1]]
    result = rows[0]["result"]
    assert len(result["curve"]) > 1 and 1 <= result["gold"] <= 10 and 0 <= result["accuracy"] <= 1
    text = cures.report(rows, tmp_path)
    assert "| ensemble, min |" in text and (tmp_path / "cures.png").exists()
