"""The study of readings: a tiny policy per head, and verdicts from rows."""

from experiments import ratings, readings


def test_settings_use_the_reward_models_of_the_ratings_study():
    wanted = readings.settings(quick=False)
    assert len(wanted) == 3 * len(readings.JOBS)
    assert [one["seed"] for one in wanted] == sorted(one["seed"] for one in wanted)
    trained = {(one["seed"], one["variant"]): one for one in ratings.settings(quick=False)[1:]}
    for one in wanted:
        assert one["train"] == trained[one["seed"], one["reward"]]["train"]


def test_the_report_compares_each_reading_with_the_mean_of_its_own_reward_model(tmp_path):
    rows = []
    for one in readings.settings(quick=False):
        gold = 8.0 + one["seed"] / 10 + (one["reading"] == "win") - (one["reward"] == "half")
        result = {"gold_before": 5.0, "gold": gold, "kl": 1.0, "tokens": 20.0, "finished": 1.0}
        rows.append({"settings": one, "result": result})
    text = readings.report(rows, tmp_path)
    claims = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "| yes |" in claims["half: win ends above the mean rating"]
    assert "1.00 [1.00, 1.00]" in claims["half: win ends above the mean rating"]
    assert "| open |" in claims["half: entropic b = 2 ends above the mean rating"]
    assert "| **refuted** |" in claims["half, mean rating, ends above scalar"]
    assert readings.report(rows[:3], tmp_path) and readings.report([], tmp_path)


def test_a_tiny_policy_with_the_entropic_reading(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    one = readings.settings(quick=True)[1]
    result = readings.run(one)
    assert one["policy"]["reading"] == "entropic"
    assert 1 <= result["gold"] <= 10 and 0 <= result["finished"] <= 1
