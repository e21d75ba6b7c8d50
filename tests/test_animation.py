"""The README's animated picture, drawn from a small recorded run that is written here."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageChops

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments import animation, animation_picture, lab  # noqa: E402

LONG = "The bear is brown. It It It It It It It It It It It It It It It It costs 5$ and 6$. " * 8


def frame(step: int, gold: float, reward: float, answer: str) -> dict:
    prompts = ["Which one?", "Tell me the colour of the bear."] if step == 0 else []
    answers = [["no", 1.0, 0.0], [answer, gold, reward]]
    numbers = {"step": step, "gold": gold, "reward": reward, "kl": 0.1}
    return numbers | {"prompts": prompts, "answers": answers}


@pytest.fixture
def recorded() -> dict:
    """Gold 5, 8, 6, 2 while the learned reward rises; then two rounds of two evaluations."""
    hack = [frame(0, 5.0, 0.0, "It is brown."), frame(5, 8.0, 0.9, "The bear is brown.")]
    hack += [frame(10, 6.0, 1.2, LONG), frame(15, 2.0, 1.5, "")]
    example = {"prompt": "How?", "chosen": "So.", "rejected": "It It It"}
    more = [[frame(0, 2.0, -1.0, "It It"), frame(5, 9.0, 1.1, "Sure! The bear is brown.")]]
    more += [[frame(0, 9.0, 0.5, "Sure!"), frame(5, 9.5, 0.8, "Sure! It is brown. Bye!")]]
    rounds = [{"comparisons": 1234, "example": example, "frames": frames} for frames in more]
    return {"hack": hack, "rounds": rounds}


def test_scenes_tell_the_story_in_three_phases(recorded):
    scenes = animation_picture.scenes(recorded, question=1)
    assert [scene.phase for scene in scenes] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [scene.points for scene in scenes] == [1, 2, 3, 4, 4, 5, 6, 6, 7, 8]
    texts = ["\n".join(text for _, text in scene.texts) for scene in scenes]
    assert "Tell me the colour of the bear." in texts[1] and "The bear is brown." in texts[1]
    assert "8.0 of 10" in texts[1] and "+0.9" in texts[1] and "5 training steps" in texts[1]
    assert "1,234 such verdicts" in texts[4] and "Worse: It It It" in texts[4]
    assert "Sure! It is brown. Bye!" in texts[-1] and "(nothing)" in texts[3]
    assert [dict(scene.texts).keys() >= {"bad"} for scene in scenes[:4]] == [
        True,
        False,
        False,
        True,
    ]
    pauses = [scene.milliseconds for scene in scenes]
    assert min(pauses[0], pauses[1], pauses[3], pauses[4], pauses[-1]) > 4 * pauses[2]


def test_long_answers_are_cut_and_dollar_signs_are_no_formulas():
    lines = animation_picture.wrapped(LONG).split("\n")
    assert len(lines) == animation_picture.LINES and lines[-1].endswith("…")
    assert all(len(line.replace("\\", "")) <= animation_picture.LINE for line in lines)
    assert "5\\$" in "".join(lines) and animation_picture.wrapped("short") == "short"


def test_curves_go_on_from_phase_to_phase_and_know_the_peak(recorded):
    data = animation_picture.curves(recorded)
    assert data.steps == [0, 5, 10, 15, 15, 20, 20, 25] and data.breaks == [4, 6]
    assert (data.peak, data.gold[data.peak], data.learned[4]) == (1, 8.0, -1.0)


def test_the_gif_has_every_scene_its_size_and_its_pauses(recorded, tmp_path):
    settings = {"seed": 3}
    rows = [{"settings": settings, "result": recorded, "seconds": 9.0, "commit": "abc"}]
    old, animation.QUESTION = animation.QUESTION, 1
    try:
        text = animation.report(rows, tmp_path)
    finally:
        animation.QUESTION = old
    assert "Seed 3, commit abc" in text and "| 2. reward hacked | 15 | 2.00 | 1.50 |" in text
    file = tmp_path / "animation.gif"
    scenes = animation_picture.scenes(recorded, question=1)
    with Image.open(file) as gif:
        assert gif.size == (animation_picture.WIDTH, animation_picture.HEIGHT)
        assert gif.n_frames == len(scenes) and gif.info["loop"] == 0
        frames, times = [], []
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(gif.convert("RGB"))
            times.append(gif.info["duration"])
    assert times == [scene.milliseconds for scene in scenes]
    # Text is there: in the title's, the explanation's and the answer's place are dark pixels.
    for image in frames:
        for box in ((0, 0, 800, 40), (0, 40, 800, 70), (0, 370, 800, 560)):
            histogram = image.convert("L").crop(box).histogram()
            assert sum(histogram[:100]) > 200
    title = (0, 0, 800, 40)
    differs = [bool(ImageChops.difference(a.crop(title), b.crop(title)).getbbox())
               for a, b in pairwise(frames)]  # fmt: skip
    assert [number for number, new in enumerate(differs) if new] == [1, 3]
    assert file.stat().st_size < 1_000_000


def test_the_published_picture_is_small_and_of_the_recorded_run():
    (row,) = lab.read_rows(lab.ROWS / "animation.jsonl").values()
    assert row["settings"] == animation.settings(quick=False)[0]
    file = lab.FIGURES / "animation.gif"
    scenes = animation_picture.scenes(row["result"], animation.QUESTION)
    with Image.open(file) as gif:
        assert gif.n_frames == len(scenes)
        assert 12_000 <= sum(scene.milliseconds for scene in scenes) <= 22_000
    assert file.stat().st_size < 1_000_000


def test_a_tiny_run_is_recorded_with_its_answers(tmp_path, monkeypatch):
    """Start model, reward model, policy without KL, judge, retraining, policy: all of them."""
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    result = animation.run(animation.settings(quick=True)[0])
    json.dumps(result)
    (part,) = result["rounds"]
    assert [frame["step"] for frame in result["hack"] + part["frames"]] == [0, 1, 2, 0, 1, 2]
    folders = (tmp_path / "lab").glob("recorded-policy-*")
    (folder,) = (p for p in folders if '"kl": 0.0' in (p / "settings.json").read_text())
    # The recorded answers and means are those of the run's own files.
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    first, last = result["hack"][0], result["hack"][-1]
    assert [answer[0] for answer in first["answers"]] == [row["before"] for row in samples]
    assert [answer[0] for answer in last["answers"]] == [row["after"] for row in samples]
    assert first["prompts"] == [row["prompt"] for row in samples]
    summary = json.loads((folder / "summary.json").read_text())
    assert last["gold"] == pytest.approx(summary["after"]["reward/gold"], abs=1e-3)
    verdicts = next((tmp_path / "lab").glob("judged-*")) / "comparisons.jsonl"
    assert len(verdicts.read_text().splitlines()) == part["comparisons"] > 0
    shutil.rmtree(tmp_path / "lab")
