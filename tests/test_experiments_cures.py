"""The study of cures: gold at equal KL by hand, and a tiny run."""

import pytest

from experiments import cures, cures_runs, zoo_runs


def test_gold_at_a_kl_is_where_the_curve_first_reaches_it():
    curve = [[0.0, 5.0], [4.0, 7.0], [1.0, 3.0], [9.0, 1.0]]
    assert cures.gold_at(curve, 1.0) == pytest.approx(6.0)  # half-way in √KL, on the way up
    assert cures.gold_at(curve, 4.0) == 7.0
    assert cures.gold_at(curve, 6.25) == pytest.approx(1.5)  # √6.25 is 3/4 of the way from 1 to 3
    assert cures.gold_at(curve, 10.0) is None


def test_a_tiny_run_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    wanted = [one for one in cures_runs.settings(quick=True) if one["cure"] == "ensemble, min"]
    with zoo_runs.without_reports():
        rows = [{"settings": one, "result": cures_runs.run(one)} for one in wanted[:1]]
    result = rows[0]["result"]
    assert len(result["curve"]) > 1 and 1 <= result["gold"] <= 10 and 0 <= result["accuracy"] <= 1
    text = cures.report(rows, tmp_path)
    assert "| ensemble, min |" in text and (tmp_path / "cures.png").exists()
