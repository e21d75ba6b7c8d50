"""--reward-function: the user's own reward, alone or beside a reward model; every mistake named."""

import json
from pathlib import Path

import pytest
import torch
from test_reward_model import trained_folder
from tiny_models import tiny_folder, write_rows
from transformers import AutoTokenizer

import train_policy
from rlhf_min import InputError
from rlhf_min.models.answers import answer_texts
from rlhf_min.models.reward_function import FunctionScorer
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.reporting import report

ROOT = Path(__file__).parents[1]
PROMPTS = ["what does the bear like?", [{"role": "user", "content": "the frog?"}], "why?", "who?"]
OWN = """
import math
calls = []
def length(prompts, answers):
    calls.append((prompts, answers))
    return [len(answer) for answer in answers]
def one_less(prompts, answers):
    return [1.0] * (len(answers) - 1)
def broken(prompts, answers):
    raise KeyError("gone")
def words(prompts, answers):
    return ["good"] * len(answers)
def nan(prompts, answers):
    return [math.nan if i == 5 else 0 for i in range(len(answers))]
def leaves(prompts, answers):
    import sys
    sys.exit(0)
def nothing(prompts, answers):
    pass
def parses(prompts, answers):
    compile("1 +", "<answer>", "eval")
def constant(prompts, answers):
    return [3] * len(answers)
number = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("own")
    base = tiny_folder(place / "base", "smol")
    trained_folder(base, place / "rm", "scalar")
    write_rows(place / "prompts.jsonl", [{"prompt": p} for p in PROMPTS])
    write_rows(place / "held.jsonl", [{"prompt": f"{p} now?"} for p in ("a", "b", "c", "d", "e")])
    (place / "own.py").write_text(OWN)
    (place.parent / "own").symlink_to(place)
    (place / "syntax.py").write_text("def f(:\n")
    (place / "raises.py").write_text("def f():\n    1 / 0\nf()\n")
    (place / "exits.py").write_text("raise SystemExit(0)\n")
    return place


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Write no report, which takes longer than these runs."""
    monkeypatch.setattr(report, "write_report", lambda out: None)


def run(place: Path, out: Path, function: str, **settings) -> list[dict]:
    """Train two steps; returns the rows of metrics.jsonl."""
    config = train_policy.Config(
        model=str(place / "base"), data=[str(place / "prompts.jsonl")], out=str(out), steps=2,
        eval_data=[str(place / "held.jsonl")], batch_size=6, samples=3, max_new_tokens=8,
        reward_function=f"{place / function}", **{"reward_model": "nowhere", **settings},
    )  # fmt: skip
    train_policy.main(config)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def rollout_of(place: Path) -> tuple[Rollout, object]:
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    texts = [["honey", "the bear likes"], ["flies and honey", ""]]
    answers = [[tokenizer(t).input_ids or [2] for t in own] for own in texts]
    return Rollout([[5], [6]], answers, torch.ones(2, 2).bool(), torch.zeros(2, 2)), tokenizer


def test_the_scores_are_what_the_function_returns_in_order(place):
    rollout, tokenizer = rollout_of(place)
    scorer = FunctionScorer(f"{place}/own.py:length", tokenizer, None, 0.0)
    scores, weights = scorer.score(rollout, PROMPTS[:2])
    texts = answer_texts(tokenizer, rollout)
    assert scores.tolist() == [[len(t) for t in own] for own in texts]
    assert weights.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    ((prompts, answers),) = scorer.function.__globals__["calls"]  # one call
    assert prompts == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert answers == [t for own in texts for t in own]


def test_beside_a_reward_model_its_weighted_reward_is_added(place):
    rollout, tokenizer = rollout_of(place)
    model = RewardScorer(str(place / "rm"), torch.float32, tokenizer)
    both = FunctionScorer(f"{place}/own.py:length", tokenizer, model, 0.5)
    lengths = [[len(t) for t in own] for own in answer_texts(tokenizer, rollout)]
    expected = model.score(rollout, PROMPTS[:2])[0] + 0.5 * torch.tensor(lengths)
    torch.testing.assert_close(both.score(rollout, PROMPTS[:2])[0], expected)


def test_a_policy_is_trained_without_any_reward_model(place, tmp_path, capsys):
    rows = run(place, tmp_path / "out", "own.py:length")
    assert len(rows) == 2 and all(row["reward/mean"] > 0 for row in rows)
    assert (
        "own.py:length alone (--function-weight adds a reward model's)" in capsys.readouterr().out
    )


def test_a_policy_is_trained_with_both(place, tmp_path):
    rows = run(
        place, tmp_path / "out", "own.py:length", reward_model=str(place / "rm"),
        function_weight=0.1, reading="win",
    )  # fmt: skip
    assert len(rows) == 2


def test_a_reward_for_length_makes_answers_longer(place, tmp_path):
    settings = {"steps": 25, "lr": 3e-3, "kl": 0.0, "missing_end_penalty": 0.0, "batch_size": 24}
    config = {"model": str(place / "base"), "data": [str(place / "prompts.jsonl")]}
    config |= {"eval_data": [str(place / "held.jsonl")], "samples": 12, "max_new_tokens": 8}
    config |= {"reward_function": f"{place}/own.py:length", "out": str(tmp_path / "out")}
    summary = train_policy.main(train_policy.Config(**config, **settings))
    rows = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    first, last = (sum(r["reward/mean"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 1 and summary["steps"] == 25


@pytest.mark.parametrize(
    ("function", "causes"),
    [
        ("own.py:one_less", ["own.py:one_less", "returned", "first prompt"]),
        ("own.py:broken", ["own.py:broken, line 10", "KeyError", "gone", "first prompt"]),
        ("own.py:leaves", ["own.py:leaves, line 17", "SystemExit", "first prompt"]),
        ("own.py:parses", ["own.py:parses, line 21 failed", "SyntaxError"]),
        ("../own/own.py:broken", ["own.py:broken, line 10"]),
        ("own.py:words", ["own.py:words", "could not convert", "first prompt"]),
        ("own.py:nothing", ["own.py:nothing", "NoneType", "first prompt"]),
        ("own.py:missing", ["own.py", "no function missing"]),
        ("own.py:number", ["own.py", "no function number"]),
        ("own.py", ["must be FILE.py:NAME"]),
        ("nowhere.py:length", ["nowhere.py", "does not exist"]),
        ("syntax.py:f", ["syntax.py, line 1", "SyntaxError"]),
        ("raises.py:f", ["raises.py, line 2", "ZeroDivisionError"]),
        ("exits.py:f", ["exits.py, line 1", "SystemExit"]),
    ],
)
def test_a_wrong_function_is_named_and_nothing_is_written(place, tmp_path, function, causes):
    with pytest.raises(InputError) as error:
        run(place, tmp_path / "out", function)
    assert all(cause in str(error.value) for cause in causes), error.value
    assert not (tmp_path / "out").exists()


def test_equal_rewards_of_all_answers_give_a_warning(place, tmp_path, capsys):
    run(place, tmp_path / "out", "own.py:constant")
    assert "answers of the reference have the reward 3, and from equal" in capsys.readouterr().out
    run(place, tmp_path / "out2", "own.py:length")
    assert "equal rewards" not in capsys.readouterr().out


def test_a_reward_that_is_no_number_is_named_with_its_answer(place, tmp_path):
    with pytest.raises(FloatingPointError, match=r"own.py:nan is nan for the answer .*prompt"):
        run(place, tmp_path / "out", "own.py:nan")


def test_settings_of_a_reward_model_are_refused_without_one(place, tmp_path):
    for settings in ({"reading": "win"}, {"weight": "inverse-sigma"}):
        with pytest.raises(InputError, match="--function-weight"):
            run(place, tmp_path / "out", "own.py:length", **settings)


def test_the_recipe_prefers_ten_to_fifteen_words_and_an_end(tmp_path):
    from rlhf_min.models.reward_function import load_function

    reward = load_function(f"{ROOT}/recipes/own_reward.py:reward")
    text = lambda n, end: " ".join(["word"] * n) + end  # noqa: E731
    answers = [text(12, "."), text(12, ""), text(9, "."), text(30, "."), ""]
    good, endless, short, long, empty = reward(["q"] * 5, answers)
    assert good == 1 and endless == 0 and long < short < good and empty == -2


def test_a_rollout_without_its_prompts_is_refused(place):
    """The function would get fewer answers than there are."""
    scorer = FunctionScorer(f"{place / 'own.py'}:length", None, None, 0.0)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        scorer._call(["why?"], [["one"], ["two"]])
