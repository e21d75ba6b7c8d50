"""benchmarks/overhead.py: the parts of a run, in seconds."""

import sys
from pathlib import Path

import pytest
from tiny_models import tiny_folder, tiny_pairs, write_rows

import train_rm

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import overhead


def test_the_parts_of_a_run_add_up_and_each_call_is_counted(tmp_path, monkeypatch):
    tiny_folder(tmp_path / "base", "smol")
    pairs = tiny_pairs(12)
    write_rows(tmp_path / "pairs.jsonl", pairs)
    write_rows(tmp_path / "held.jsonl", [row | {"prompt": row["prompt"] + "?"} for row in pairs])
    now = [0.0]  # a clock that only the parts below move
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: now[0])

    def takes(owner, name, seconds):
        function = getattr(owner, name)

        def slow(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    takes(overhead.evaluation, "evaluate_reward_model", 10)
    takes(overhead.run_folder.RunLog, "checkpoint", 1)
    takes(overhead.report, "write_report", 100)
    flags = ["--model", str(tmp_path / "base"), "--data", str(tmp_path / "pairs.jsonl")]
    flags += ["--eval-data", str(tmp_path / "held.jsonl"), "--max-steps", "4", "--batch-size", "4"]
    seconds, steps = overhead.measure(train_rm, [*flags, "--eval-every", "2", "--save-every", "2"])
    assert steps == 4
    parts = {part: seconds[part] for part in ("evaluation", "checkpoints", "report and plots")}
    assert parts == {"evaluation": 20, "checkpoints": 2, "report and plots": 100}
    assert seconds["reading the data"] == 0
    assert seconds.total() == pytest.approx(122)
