"""The study on real pairs: which pairs fit, a tiny run of this project's side, and the report."""

import gzip
import json
import shutil

import pytest

from experiments import lab, real_pairs, zoo_runs
from rlhf_min.data.preferences import read_pairs
from rlhf_min.models.loading import load_tokenizer


def shared_folder(folder):
    """A folder as ../shared is: pairs and a chat model, here of the zoo; two pairs are too long."""
    start = zoo_runs.start_model(0, steps=1, examples=64)
    shutil.copytree(start, folder / "models/tinystories-chat-3m")
    for split, spec in (("train", "zoo"), ("test", "zoo:held-out")):
        pairs, _ = read_pairs([spec], limit=40)
        rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
        rows[1]["rejected"] += " It is big." * 300
        rows[2]["prompt"] = "really " * 101 + rows[2]["prompt"]  # over 700 characters
        path = folder / f"data/hh_helpful/{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def test_only_whole_pairs_are_used_and_a_tiny_run_learns_from_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("RLHF_MIN_SHARED", str(tmp_path / "shared"))
    rows = shared_folder(tmp_path / "shared")
    tokenizer = load_tokenizer(str(tmp_path / "shared/models/tinystories-chat-3m"))
    assert [real_pairs.fits(tokenizer, row) for row in rows[:4]] == [True, False, False, True]
    (settings,) = real_pairs.settings(quick=True)
    result = real_pairs.run(settings)
    assert (result["train"], result["test"]) == (32, 32)
    assert 0 <= result["accuracy"] <= 1
    used = (
        (real_pairs.fitting_pairs(32, real_pairs.shared()) / "test.jsonl")
        .read_text("utf-8")
        .splitlines()
    )
    assert [json.loads(line) for line in used] == [rows[0], *rows[3:34]]


def test_the_report_compares_the_seeds_that_both_sides_have(tmp_path):
    rows = []
    for seed, (ours, trl) in enumerate([(0.70, 0.66), (0.68, 0.65), (0.69, None)]):
        for side, accuracy in (("ours", ours), ("trl", trl)):
            result = {"accuracy": accuracy, "train": 100, "test": 50}
            if accuracy is not None:
                rows.append({"settings": {"side": side, "seed": seed}, "result": result})
    text = real_pairs.report(rows, tmp_path)
    assert f"| ours above TRL | open | ours minus TRL: {lab.shown([0.04, 0.03], 3)} |" in text
    assert "| train_rm.py | 0.690 [0.665, 0.715] | 100, 50 | 3 |" in text
    assert real_pairs.report([], tmp_path)


def test_trl_without_its_environment_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("RLHF_MIN_SHARED", str(tmp_path / "shared"))
    monkeypatch.delenv("RLHF_MIN_PEER_PYTHON", raising=False)
    shared_folder(tmp_path / "shared")
    settings = {"seed": 0, "side": "trl", "pairs": 32}
    with pytest.raises(SystemExit, match="need --peer-python"):
        real_pairs.run(settings)
