"""The study of a new head's weights: its tasks, and verdicts computed seed by seed."""

import random

from experiments import reward_head


def test_every_task_has_every_std_at_every_seed():
    found = reward_head.settings(quick=False)
    keys = {(one["task"], one["seed"], one["train"]["head_std"]) for one in found}
    seeds = sum(count for count, _ in reward_head.TASKS.values())
    assert len(keys) == len(found) == seeds * len(reward_head.STDS)


def test_the_report_compares_with_zero_by_seed(tmp_path):
    rng, rows = random.Random(0), []
    for one in reward_head.settings(quick=False):
        level = 0.6 + 0.1 * one["seed"]  # seeds differ by far more than the effect
        better = 0.02 if one["train"]["head_std"] == 0.1 else -0.02
        better = 0 if one["train"]["head_std"] == 0 else better
        accuracy = level + better + rng.gauss(0, 0.001)
        result = {"accuracy": accuracy, "loss": level - better, "calibration_error": 0.05}
        result |= {"train": 100, "held_out": 50}
        if one["task"] == "zoo, scalar":
            result["gold"] = 8 + level + better * 10 + rng.gauss(0, 0.01)
        rows.append({"settings": one, "result": result})
    text = reward_head.report(rows, tmp_path)
    verdicts = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    for task in reward_head.TASKS:
        assert "| yes |" in verdicts[f"{task}: std 0.1 is better than 0 in accuracy"]
        assert "| **refuted** |" in verdicts[f"{task}: std 0.02 is better than 0 in accuracy"]
        assert "| yes |" in verdicts[f"{task}: std 0.1 is better than 0 in loss"]
        assert "| **refuted** |" in verdicts[f"{task}: std 0.02 is better than 0 in loss"]
    assert "| yes |" in verdicts["zoo, scalar: std 0.1 is better than 0 in gold of a policy"]
    assert len([line for line in verdicts if "gold" in line and "better" in line]) == 2
    assert reward_head.report(rows[:1], tmp_path) and reward_head.report([], tmp_path)


def test_quick_runs_train_a_model_and_a_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path))
    first, _, last = reward_head.settings(quick=True)
    results = [reward_head.run(one) for one in (first, last)]
    assert 0.68 < results[0]["loss"] < 0.70 and results[1]["loss"] != results[0]["loss"]
    assert all(1 <= one["gold"] <= 10 for one in results)
