"""The study of Adam's second beta: its tasks, its verdicts, and that the flag is used."""

from experiments import adam_beta2, reward_head


def test_every_task_has_both_betas_at_every_seed():
    found = adam_beta2.settings(quick=False)
    keys = {(one["task"], one["seed"], one["train"]["adam_beta2"]) for one in found}
    assert len(keys) == len(found) == 2 * sum(count for count, _ in reward_head.TASKS.values())


def test_the_report_compares_with_the_default_beta_by_seed(tmp_path):
    rows = []
    for one in adam_beta2.settings(quick=False):
        level = 0.6 + 0.05 * one["seed"]  # seeds differ by far more than the effect
        gain = (0.01 + 0.001 * one["seed"]) if one["train"]["adam_beta2"] == 0.999 else 0.0
        result = {"accuracy": level + gain, "loss": level + gain, "calibration_error": 0.05}
        rows.append({"settings": one, "result": result | {"train": 100, "held_out": 50}})
    text = adam_beta2.report(rows, tmp_path)
    verdicts = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    for task in reward_head.TASKS:
        better = f"{task}: beta2 0.999 is better than 0.95 in"
        assert "| yes | 0.999 minus 0.95: 0.01" in verdicts[f"{better} accuracy"]
        assert "| **refuted** | 0.95 minus 0.999: -0.01" in verdicts[f"{better} loss"]


def test_quick_runs_differ_by_the_beta_only(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path))
    low, high = adam_beta2.settings(quick=True)
    assert low | {"train": 0} == high | {"train": 0}
    more = {"limit": 256, "max_steps": 8}  # the first step is the same with every beta
    results = [adam_beta2.run(one | {"train": one["train"] | more}) for one in (low, high)]
    assert 0 < abs(results[0]["loss"] - results[1]["loss"]) < 0.05
