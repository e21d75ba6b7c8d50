"""The study of blind spots: minimal pairs have one mistake, and a tiny run with its report."""

import math
import zlib

import pytest

from experiments import blind_spots
from rlhf_min.zoo import world

PROMPTS = world.prompts("held-out")


@pytest.mark.parametrize("defect", blind_spots.DEFECTS)
def test_a_minimal_pair_is_the_best_answer_and_one_that_only_this_mistake_makes_worse(defect):
    causes = {
        "wrong fact": {"wrong fact", "missing fact", "no manners"},  # a wrong fact answers nothing
        "wrong animal": {"wrong animal", "missing fact", "no manners"},
        "missing fact": {"missing fact", "no manners"},  # opening and closing count less
        "unfinished": {"unfinished", "no manners"},
        "no opening": {"no manners"},
        "no closing": {"no manners"},
    }
    for prompt, best, spoiled in blind_spots.minimal_pairs(defect, PROMPTS):
        assert math.isclose(sum(world.losses(prompt, best).values()), 0.0, abs_tol=1e-9)
        lost = {cause for cause, points in world.losses(prompt, spoiled).items() if points > 1e-9}
        assert lost == causes.get(defect, {defect}), (best, spoiled)
        assert world.gold_rating(prompt, spoiled) < world.gold_rating(prompt, best)


def judge_of(score):
    """A stand-in for `reward_model_judge`: the score of an answer is score(text)."""

    class Judge:
        def scores(self, prompt, texts):
            return [float(score(text)) for text in texts]

    return lambda path: Judge()


def test_a_judge_that_counts_words_sees_what_is_missing_or_added_but_not_what_is_wrong(
    monkeypatch, tmp_path
):
    words = judge_of(lambda text: len(text.split()))
    monkeypatch.setattr(blind_spots, "reward_model_judge", words)
    found = blind_spots.accuracies(tmp_path)
    assert found["missing fact"] == found["no opening"] == found["unfinished"] == 1.0
    assert found["extra fact"] == found["rude"] == found["repeated"] == 0.0
    assert found["wrong fact"] == found["wrong animal"] == 0.5  # as many words: a tie is ½


def test_a_judge_that_knows_nothing_is_right_half_the_time(monkeypatch, tmp_path):
    noise = judge_of(lambda text: zlib.crc32(text.encode()))
    monkeypatch.setattr(blind_spots, "reward_model_judge", noise)
    shares = blind_spots.accuracies(tmp_path).values()
    # 480 pairs: a standard deviation of 0.023 each
    assert all(0.35 < share < 0.65 for share in shares) and len(set(shares)) > 1


def test_the_report_compares_six_epochs_with_one_by_seed(tmp_path):
    rows = []
    for one in blind_spots.settings(quick=False):
        known = one["variant"] == blind_spots.SIX
        share = (0.8 if known else 0.5) + 0.01 * one["seed"] - 0.02
        result = {"defects": dict.fromkeys(blind_spots.DEFECTS, share)}
        if one["variant"] in blind_spots.VARIANTS:
            result |= {"accuracy": 0.8, "gold": 8.0 + one["seed"] - known, "kl": 1.0}
        rows.append({"settings": one, "result": result})
    claims = [line for line in blind_spots.report(rows, tmp_path).splitlines() if "six" in line]
    assert all("| yes | six minus one epoch: 0.30 [" in line for line in claims[:2])
    assert "| **refuted** | six minus one epoch: -1.00 [" in claims[2] and len(claims) == 3
    lines = blind_spots.report(rows, tmp_path).splitlines()
    loops = [line for line in lines if "rounds of the loop" in line]
    assert all(line.split(" | ")[1:4] == ["–"] * 3 for line in loops) and len(loops) == 2


def test_a_tiny_run_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    wanted = blind_spots.settings(quick=True)
    rows = [{"settings": one, "result": blind_spots.run(one)} for one in wanted]
    assert [row["settings"]["variant"] for row in rows] == [blind_spots.DEFAULT, blind_spots.SIX]
    text = blind_spots.report(rows, tmp_path)
    assert f"| {blind_spots.SIX} |" in text and (tmp_path / "blind_spots.png").exists()
