"""The study of blind spots: minimal pairs have one mistake, and a tiny run with its report."""

import math

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


def test_a_judge_without_knowledge_of_the_world_is_half_right_on_wrong_facts(monkeypatch, tmp_path):
    """It reads the length only: it sees what is missing or added, not what is wrong."""

    class Length:
        def scores(self, prompt, texts):
            return [float(len(text.split())) for text in texts]

    monkeypatch.setattr(blind_spots, "reward_model_judge", lambda path: Length())
    found = blind_spots.accuracies(tmp_path, len(PROMPTS))
    assert found["missing fact"] == found["no opening"] == 1.0
    assert found["extra fact"] == found["rude"] == found["repeated"] == 0.0
    assert abs(found["wrong fact"] - 0.5) < 0.1 and abs(found["wrong animal"] - 0.5) < 0.1


def test_a_tiny_run_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    wanted = blind_spots.settings(quick=True)
    rows = [{"settings": one, "result": blind_spots.run(one)} for one in wanted]
    assert [row["settings"]["variant"] for row in rows] == [blind_spots.DEFAULT, blind_spots.SIX]
    for row in rows:
        assert set(row["result"]["defects"]) == set(blind_spots.DEFECTS)
        assert all(0 <= share <= 1 for share in row["result"]["defects"].values())
    text = blind_spots.report(rows, tmp_path)
    assert f"| {blind_spots.SIX} |" in text and (tmp_path / "blind_spots.png").exists()
