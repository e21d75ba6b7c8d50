"""The study on real pairs: which pairs fit, a tiny run of this project's side, and the report."""

import gzip
import json
import shutil

import pytest

from experiments import lab, real_pairs, zoo_runs
from rlhf_min.data.preferences import encode_pairs, read_pairs
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
    accuracies = {  # by learning rate: one number per seed
        1e-4: {"ours": [0.66, 0.65, 0.69], "trl": [0.70, 0.68]},
        1e-5: {"ours": [0.70, 0.60], "trl": [0.63, 0.64, 0.62]},
    }
    accuracies[1e-5] |= {side: [0.63, 0.64, 0.62] for side in ("matched", "trl_message")}
    rows = [
        {
            "settings": {"side": side, "seed": seed, "lr": lr},
            "result": {"accuracy": accuracy, "train": 100, "test": 50},
        }
        for lr, by_side in accuracies.items()
        for side, seeds in by_side.items()
        for seed, accuracy in enumerate(seeds)
    ]
    text = real_pairs.report(rows, tmp_path)
    both = lab.shown([0.04, 0.03], 3)
    claim = "TRL on text is more accurate than train_rm.py"
    assert f"| 1e-4 | {claim} | open | difference: {both} |" in text
    assert f"| 1e-5 | {claim} | open |" in text
    same = "open | difference: 0.000 [0.000, 0.000] |"
    assert f"| 1e-5 | … than train_rm.py with TRL's other settings | {same}" in text
    assert "| 1e-4 | train_rm.py | one message | 0.667 [0.615, 0.718] | 100, 50 | 3 |" in text
    assert real_pairs.report([], tmp_path)


def test_the_prompt_becomes_one_message_or_one_per_turn():
    dialogue = "Human: a, b?\n\nAssistant: c.\n\nHuman: d\n\ne\n\nAssistant:"
    row = {"prompt": dialogue, "chosen": "x", "rejected": "y"}
    answers = {
        name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")
    }
    one = {"prompt": [{"role": "user", "content": dialogue}], **answers}
    assert real_pairs.messages(row, per_turn=False) == one
    turns = [("user", "a, b?"), ("assistant", "c."), ("user", "d\n\ne")]
    prompt = [{"role": role, "content": text} for role, text in turns]
    assert real_pairs.messages(row, per_turn=True) == {"prompt": prompt, **answers}


def test_one_message_gives_train_rm_the_same_tokens_as_the_text(tmp_path, monkeypatch):
    """So that TRL on one message reads what train_rm.py reads."""
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("RLHF_MIN_SHARED", str(tmp_path / "shared"))
    shared_folder(tmp_path / "shared")
    data = real_pairs.fitting_pairs(32, real_pairs.shared())
    tokenizer = load_tokenizer(str(tmp_path / "shared/models/tinystories-chat-3m"))
    encoded = []
    for folder in (data, real_pairs.in_form(data, "message")):
        pairs, _ = read_pairs([str(folder / "train.jsonl")])
        encoded.append(encode_pairs(tokenizer, pairs, 256, "--data", "--max-length")[0])
    ids = [[(pair.prompt, pair.answers) for pair in pairs] for pairs in encoded]
    assert len(ids[0]) == 32 and ids[0] == ids[1]


def test_the_matched_side_has_the_defaults_of_trl(tmp_path, monkeypatch):
    """The settings reach train_rm.py; our side keeps its own."""
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("RLHF_MIN_SHARED", str(tmp_path / "shared"))
    shared_folder(tmp_path / "shared")
    (settings,) = real_pairs.settings(quick=True)
    seen = []

    def main(config):
        seen.append(config)
        return {"accuracy": 0.5, "pairs/train": 1, "pairs/held_out": 1}

    monkeypatch.setattr(real_pairs.train_rm, "main", main)
    for side in ("ours", "matched"):
        real_pairs.run(settings | {"side": side})
    ours, matched = (
        (c.adam_beta2, c.head_std, c.weight_decay, c.centring, c.warm_up) for c in seen
    )
    assert ours == (0.95, 0.0, 0.01, 0.01, 0.05) and matched == (0.999, 0.02, 0.0, 0.0, 0.0)


def test_trl_without_its_environment_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("RLHF_MIN_SHARED", str(tmp_path / "shared"))
    monkeypatch.delenv("RLHF_MIN_PEER_PYTHON", raising=False)
    shared_folder(tmp_path / "shared")
    settings = {"seed": 0, "side": "trl", "pairs": 32}
    with pytest.raises(SystemExit, match="need --peer-python"):
        real_pairs.run(settings)
