"""judge.py --agreement on benchmarks: subsets, lists of answers, tied votes, other columns."""

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_foreign_models import encoder_folder
from test_reward_model import trained_folder
from tiny_models import tiny_folder

from rlhf_min import InputError
from rlhf_min.command_line import parse
from rlhf_min.data.files import read_jsonl
from rlhf_min.data.labelled import Labelled, read_labelled
from rlhf_min.data.preferences import Pair, read_pairs, read_prompts
from rlhf_min.judging.comparisons import labelled_comparisons
from rlhf_min.judging.judges import ScoringJudge, gold, reward_model_judge
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.zoo import world

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import judge  # noqa: E402


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")


def write(rows: list[dict], name="rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def judge_by_table(monkeypatch, scores: dict[str, float]) -> Counter:
    """`--judge reward-model:table` scores answers by this table; returns how often it was asked."""
    asked: Counter = Counter()

    def look_up(prompt, answers):
        asked.update(answers)
        return [scores[answer] for answer in answers]

    table_judge = ScoringJudge("reward", look_up, tie=1e-6)
    monkeypatch.setattr(judge, "reward_model_judge", lambda *_: table_judge)
    return asked


def agree(rows: list[dict], **settings) -> dict:
    settings = {"judge": "reward-model:table", "limit": 0, "out": "out"} | settings
    return judge.main(judge.Config(agreement=write(rows), **settings))


def wilson(wins: float, n: int) -> tuple[float, float]:
    """The roots p of (wins/n − p)² = z² p (1 − p) / n, by bisection."""
    z, ends = 1.959964, []
    for outer in (0.0, 1.0):
        inner = wins / n
        for _ in range(200):
            middle = (outer + inner) / 2
            outside = (wins / n - middle) ** 2 > z * z * middle * (1 - middle) / n
            outer, inner = (middle, inner) if outside else (outer, middle)
        ends.append(inner)
    return ends[0], ends[1]


# ----------------------------------------------------------------------------- subsets and lists


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lists", [False, True])
def test_subsets_macro_average_intervals_and_chance_equal_a_loop(seed, lists, monkeypatch):
    """Scores 1, 2, 3 make many ties; NaN is a failure, counted and in no rate."""
    rng = random.Random(seed)
    rows, scores, wanted = [], {}, {}
    for i in range(rng.randrange(20, 60)):
        chosen, rejected = (
            [f"{side} {i}.{k}" for k in range(rng.randrange(1, 5) if lists else 1)]
            for side in ("good", "bad")
        )
        own = {a: rng.choice([1.0, 2.0, 2.0, 3.0]) for a in chosen + rejected}
        if rng.random() < 0.1:
            own[rng.choice([*own])] = math.nan
        scores |= own
        subset = rng.choice(["chat", "math", "safe/ty", "math"])
        row = {"prompt": f"question {i}", "subset": subset, "id": i}
        answers = (chosen, rejected) if lists else (chosen[0], rejected[0])
        rows.append(row | dict(zip(("chosen", "rejected"), answers, strict=True)))
        judged = wanted.setdefault(subset, [])
        if any(math.isnan(score) for score in own.values()):
            judged.append(None)
            continue
        right = best = 0
        for answer, score in own.items():
            if all(score >= other for other in own.values()):
                best += 1
                right += answer in chosen
        judged.append((right / best, len(chosen) / len(own)))
    asked = judge_by_table(monkeypatch, scores)
    summary = agree(rows)

    everything = [x for judged in wanted.values() for x in judged]
    for found, judged in [(summary, everything)] + [
        (summary["subsets"][name], judged) for name, judged in wanted.items()
    ]:
        known = [x for x in judged if x is not None]
        assert (found["pairs"], found.get("judged", len(known))) == (len(judged), len(known))
        right = sum(share for share, _ in known)
        assert found["agreement"] == pytest.approx(right / len(known))
        interval = found["agreement_low"], found["agreement_high"]
        assert interval == pytest.approx(wilson(right, len(known)), abs=1e-9)
        chance = sum(chance for _, chance in known) / len(known)
        assert found["chance"] == pytest.approx(chance if lists else 0.5)
    assert list(summary["subsets"]) == sorted(wanted)
    macro = [summary["subsets"][name]["agreement"] for name in wanted]
    assert summary["macro_average"] == pytest.approx(sum(macro) / len(macro))
    assert summary["failures"] == everything.count(None)
    saved = json.loads(Path("out/summary.json").read_text())
    assert saved.pop("seconds") > 0 and saved == summary
    if lists:
        assert set(asked.values()) == {1}  # every answer is scored once
        assert summary["first_shown_wins"] is summary["longer_wins"] is None
        assert summary["length_controlled_rate"] is summary["position_disagreement"] is None


def test_the_table_is_printed_and_in_the_report(monkeypatch, capsys):
    rows = [
        {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "easy\x1b[31m"},
        {"prompt": "r", "chosen": ["d"], "rejected": ["e", "f", "g"], "subset": "hard"},
        {"prompt": "s", "chosen": ["h"], "rejected": ["i", "j", "k"], "subset": "hard"},
    ]
    scores = [1, 3, 2, 5, 5, 0, 0, 1, 2, 1, 0]
    judge_by_table(monkeypatch, dict(zip("abcdefghijk", scores, strict=True)))
    agree(rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["easy<U+001B>[31m", "1", "1", "100.0%", "20.7%", "100.0%", "66.7%"] in lines
    low, high = wilson(0.5, 2)  # ½ and 0
    assert ["hard", "2", "2", "25.0%", f"{low:.1%}", f"{high:.1%}", "25.0%"] in lines
    assert ["macro", "average", "62.5%"] in lines
    page = Path("out/report.html").read_text()
    assert "subsets/hard/agreement" in page and "macro_average" in page and "\x1b" not in page
    (row, *_) = read_jsonl(Path("out/answers.jsonl"))
    assert {*row["a"], *row["b"]} in ({"a", "b", "c"}, {*"defg"}, {*"hijk"})


def test_without_subsets_there_is_no_table(monkeypatch):
    judge_by_table(monkeypatch, {"a": 1, "b": 0})
    summary = agree([{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert "subsets" not in summary and "macro_average" not in summary
    assert summary["agreement"] == 1.0


def test_a_row_without_a_subset_among_others_is_counted(monkeypatch):
    judge_by_table(monkeypatch, {"a": 1, "b": 0})
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "subset": s} for i, s in
            enumerate(["x", None, 3])]  # fmt: skip
    assert list(agree(rows)["subsets"]) == ["(none)", "3", "x"]


def test_pairs_and_lists_in_one_file_are_all_best_of_n(monkeypatch):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "r", "chosen": ["c", "d"], "rejected": ["e"]},
    ]
    judge_by_table(monkeypatch, {"a": 1, "b": 1, "c": 0, "d": 2, "e": 1})
    summary = agree(rows)
    assert summary["agreement"] == pytest.approx((0.5 + 1) / 2)
    assert summary["chance"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (summary["wins"], summary["ties"], summary["losses"]) == (1, 1, 0)


def test_scores_that_differ_by_rounding_only_share_the_best_place(monkeypatch):
    judge_by_table(monkeypatch, {"a": 1.0, "b": 1.0 + 1e-9, "c": 1.0 - 1e-9, "d": 0.9})
    summary = agree([{"prompt": "q", "chosen": ["a", "d"], "rejected": ["b", "c"]}])
    assert (summary["agreement"], summary["ties"]) == (pytest.approx(1 / 3), 1)


def test_lists_of_one_answer_are_pairs(monkeypatch):
    """Judged in both orders, as text is, and by every judge."""
    as_text = {"prompt": "q", "chosen": "a", "rejected": "b"}
    as_lists = {"prompt": "q", "chosen": ["a"], "rejected": ["b"]}
    first, second = (read_labelled(write([row]))[0] for row in (as_text, as_lists))
    assert first == second == [Labelled("q", ["a"], ["b"])]
    (comparison,) = labelled_comparisons(first, ["a"])
    assert (comparison.a, comparison.b, comparison.orders) == ("b", "a", (0, 1))


def test_resume_scores_no_row_twice(monkeypatch):
    rows = [{"prompt": f"q{i}", "chosen": [f"a{i}"], "rejected": ["b", "c"]} for i in range(8)]
    scores = {f"a{i}": float(i % 3) for i in range(8)} | {"b": 1.0, "c": 0.5}
    judge_by_table(monkeypatch, scores)
    want = agree(rows, out="whole")
    count = 0

    def stopping(prompt, answers):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return [scores[answer] for answer in answers]

    stops = ScoringJudge("reward", stopping, tie=1e-6)
    monkeypatch.setattr(judge, "reward_model_judge", lambda *_: stops)
    with pytest.raises(KeyboardInterrupt):
        agree(rows)
    done = len(read_jsonl(Path("out/verdicts.jsonl")))
    assert 0 < done < 8
    asked = judge_by_table(monkeypatch, scores)
    assert agree(rows, resume=True) == want
    assert asked["b"] == 8 - done


# ----------------------------------------------------------------------------- judges


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A reward model, one with a ratings head, and an encoder."""
    folder = tmp_path_factory.mktemp("models")
    tiny_folder(folder / "base", "smol")
    trained_folder(folder / "base", folder / "rm", "scalar")
    trained_folder(folder / "base", folder / "rm10", "ratings")
    encoder_folder(folder / "bert", "bert", 1)
    return folder


ANSWERS = ["it likes honey", "flies", "no", "the bear likes flies and honey", "no!!"]


@pytest.mark.parametrize("name", ["rm", "rm10", "bert"])
def test_best_of_n_of_a_reward_model_uses_its_scores_of_single_answers(models, name):
    scorer = RewardScorer(str(models / name), torch.float32)
    score = {}
    for answer in ANSWERS:
        outputs = scorer.text_outputs(["what does the bear like?"], [[answer]], [[True]])
        score[answer] = reward_from(outputs, "mean").item()
    rm = reward_model_judge(str(models / name))
    rng = random.Random(0)
    for _ in range(20):
        answers = rng.sample(ANSWERS, rng.randrange(2, 6))
        cut = rng.randrange(1, len(answers))
        chosen, rejected = answers[:cut], answers[cut:]
        verdict = rm("what does the bear like?", chosen, rejected)
        right = max(score[a] for a in chosen) > max(score[a] for a in rejected)
        assert (verdict.winner, verdict.share) == (("second", 0.0), ("first", 1.0))[right]


@pytest.mark.parametrize("name", ["rm", "bert"])
def test_an_answer_longer_than_the_context_is_a_failure_of_its_row(models, name):
    rows = [{"prompt": "q", "chosen": ["good"], "rejected": ["bad", "honey " * 600]}]
    rows.append({"prompt": "r", "chosen": ["good"], "rejected": ["bad", "no"]})
    summary = agree(rows, judge=f"reward-model:{models / name}")
    assert (summary["failures"], summary["wins"] + summary["losses"]) == (1, 1)
    pair = {"prompt": "q", "chosen": "good", "rejected": "honey " * 600}
    summary = agree([pair], judge=f"reward-model:{models / name}", out="pairs")
    assert summary["failures"] == 1 and summary["agreement"] is None


def test_gold_knows_the_best_of_a_list():
    question, rng = world.prompts("held-out")[0], random.Random(0)
    good = world.compose(question, rng, {"opening", "closing"})
    plain, wrong = (world.compose(question, rng, x) for x in (set(), {"wrong fact"}))
    rows = [{"prompt": question, "chosen": [good], "rejected": [plain, wrong, "xyz"]}]
    rows.append({"prompt": question, "chosen": ["xyz", "zyx"], "rejected": [wrong]})
    summary = agree(rows, judge="gold")
    assert (summary["wins"], summary["losses"]) == (1, 1)
    verdict = gold(question, ["xyz", plain], ["zyx zyx", plain + ""])
    assert (verdict.winner, verdict.share, verdict.ratings) == ("tie", 0.5, None)


@pytest.mark.parametrize("name", ["openai:m", "human"])
def test_judges_that_compare_two_answers_refuse_lists_before_anything_is_written(name):
    pytest.importorskip("openai")
    rows = [{"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}]
    with pytest.raises(InputError, match=f"--judge {name} compares two answers.*rows.jsonl"):
        agree(rows, judge=name)
    assert not Path("out").exists()


# ----------------------------------------------------------------------------- columns of others


def turns(*contents: str) -> list[dict]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": c} for role, c in zip(roles, contents, strict=False)]


JUDGEBENCH = {"pair_id": "x", "original_id": "1", "source": "livebench-math", "question": "2+2?",
              "response_model": "m", "response_A": "four", "response_B": "five"}  # fmt: skip
LLMBAR = {"input": "2+2?", "output_1": "four", "output_2": "five"}
VOTE = {"prompt": "2+2?", "response_a": "four", "response_b": "five"}
ARENA = {"question_id": 81, "model_a": "m", "model_b": "n", "judge": "author", "turn": 1,
         "conversation_a": turns("2+2?", "four"),
         "conversation_b": turns("2+2?", "five")}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "column", "labels"),
    [
        (JUDGEBENCH, "label", ["A>B", "B>A", "A=B"]),
        (LLMBAR, "label", [1, 2, None]),
        (VOTE, "winner", ["a", "b", "tie"]),
        (ARENA, "winner", ["model_a", "model_b", "tie"]),
        (ARENA, "winner", ["model_a", "model_b", "tie (bothbad)"]),
    ],
)
def test_columns_of_other_benchmarks_are_read_as_they_are(row, column, labels):
    prompt = turns("2+2?") if row is ARENA else "2+2?"
    subset = row.get("source")
    for label, answers in zip(labels, [("four", "five"), ("five", "four"), None], strict=True):
        if label is None:
            continue
        name = write([row | {column: label}])
        (found,), _ = read_labelled(name)
        tied = answers is None
        chosen, rejected = answers or ("four", "five")
        assert found.tied == tied and found.prompt == prompt and found.subset == subset
        assert {*found.chosen, *found.rejected} == {"four", "five"}
        assert read_prompts([name])[0] == [prompt]
        if tied:
            with pytest.raises(InputError, match="dropped were 1 tied vote"):
                read_pairs([name])
        else:
            assert (found.chosen, found.rejected) == ([chosen], [rejected])
            assert read_pairs([name])[0] == [Pair(prompt, chosen, rejected)]


def test_two_turns_that_differ_before_the_answer_are_dropped_and_counted():
    second = {"conversation_a": turns("2+2?", "four", "3+3?", "six"), "winner": "tie",
              "conversation_b": turns("2+2?", "five", "3+3?", "seven")}  # fmt: skip
    rows, counts = read_labelled(write([ARENA | second, ARENA | {"winner": "model_b"}]))
    assert len(rows) == 1 and counts["different_dialogues"] == 1


def test_a_tied_vote_is_no_training_pair_and_is_counted():
    rows = [VOTE | {"prompt": f"q{i}", "winner": w} for i, w in enumerate(["a", "tie", "b", "tie"])]
    pairs, counts = read_pairs([write(rows)])
    assert [pair.prompt for pair in pairs] == ["q0", "q2"] and counts["tied_vote"] == 2


def test_tied_votes_are_reported_beside_the_agreement(monkeypatch, capsys):
    votes = ["a", "b", "tie", "tie", "tie", "a"]
    rows = [
        {"prompt": f"q{i}", "response_a": f"x{i}", "response_b": f"y{i}", "winner": vote}
        for i, vote in enumerate(votes)
    ]
    judge_by_table(
        monkeypatch, {f"x{i}": 1.0 for i in range(6)} | {f"y{i}": i / 3 for i in range(6)}
    )
    summary = agree(rows)  # y0 < x0, y1 < x1, y2 < x2, y3 = x3, y4 > x4, y5 > x5
    assert (summary["pairs"], summary["agreement"]) == (3, pytest.approx(1 / 3))
    assert (summary["tied_votes"], summary["tied_votes/agreement"]) == (3, pytest.approx(1 / 3))
    assert "3 tied votes, not in the agreement: of these the judge calls 33.3% a tie" in (
        capsys.readouterr().out
    )


# ----------------------------------------------------------------------------- bad input

GOOD = {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (GOOD | {"chosen": "a"}, "one of chosen and rejected is a list of answers, the other"),
        (GOOD | {"rejected": "b"}, "one of chosen and rejected is a list of answers, the other"),
        (GOOD | {"rejected": None}, "one of chosen and rejected is a list of answers, the other"),
        (GOOD | {"chosen": turns("q", "a")}, "chosen (answer 1) must be text"),
        (GOOD | {"chosen": []}, "chosen is an empty list"),
        (GOOD | {"rejected": []}, "rejected is an empty list"),
        (GOOD | {"chosen": [], "rejected": []}, "chosen is empty"),
        (GOOD | {"rejected": ["b", " "]}, "rejected (answer 2) is empty"),
        (GOOD | {"rejected": ["b", 5]}, "rejected (answer 2) must be text"),
        (GOOD | {"rejected": ["b", None]}, "rejected (answer 2) must be text"),
        (GOOD | {"rejected": ["b", ["c"]]}, "rejected (answer 2) must be text"),
        (GOOD | {"chosen": ["a\0"]}, "chosen (answer 1) holds a NUL"),
        (GOOD | {"prompt": ""}, "prompt is empty"),
        ({k: v for k, v in GOOD.items() if k != "prompt"}, "no prompt column"),
        (JUDGEBENCH | {"label": "A>>B"}, "label must be A>B or B>A or A=B, got 'A>>B'"),
        (JUDGEBENCH | {"label": None}, "label must be A>B or B>A or A=B, got None"),
        (LLMBAR | {"label": 0}, "label must be 1 or 2, got 0"),
        (VOTE | {"winner": "A"}, "winner must be a or b or tie, got 'A'"),
        (ARENA | {"winner": "draw"}, "winner must be model_a or model_b or tie"),
        ({"prompt": "q", "answer": "x"}, "no chosen column: its columns are prompt, answer"),
    ],
)
def test_a_bad_row_is_named_and_can_be_skipped(row, says, monkeypatch, capsys):
    rows = [GOOD, row, GOOD | {"prompt": "r"}]
    judge_by_table(monkeypatch, {"a": 2, "b": 1, "c": 0})
    with pytest.raises(InputError) as error:
        agree(rows)
    message = str(error.value)
    assert f"rows.jsonl row 2: {says}" in message and "(bad rows: 1 of 3)" in message
    assert "\n" not in message and not Path("out").exists()
    summary = agree(rows, skip_bad_rows=True)
    assert (summary["pairs"], summary["agreement"]) == (2, 1.0)
    assert "1 pairs dropped: bad rows" in capsys.readouterr().out


def test_duplicates_and_answers_in_both_lists_are_dropped_and_counted():
    both = {"prompt": "r", "chosen": ["a", "b"], "rejected": ["c", "a"]}
    rows, counts = read_labelled(write([GOOD, GOOD, both]))
    assert len(rows) == 1 and (counts["duplicate"], counts["identical"]) == (1, 1)
    with pytest.raises(InputError, match="no usable pair is left, dropped were 1 identical"):
        read_labelled(write([both]))


def test_training_refuses_lists_of_answers_with_a_reason():
    with pytest.raises(InputError, match=r"row 1: chosen is a list of answers.*--agreement"):
        read_pairs([write([GOOD])])
    assert read_prompts([write([GOOD])])[0] == ["q"]


# ----------------------------------------------------------------------------- the commands


def hub_folder(name: str, split: str, rows: list[dict]) -> None:
    """A data set in the hub's own layout, under its own name in the working folder."""
    datasets = pytest.importorskip("datasets")
    data = Path(name, "data")
    data.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(data / f"{split}-00000-of-00001.parquet")


def test_the_commands_of_your_data_on_local_files_of_the_same_form(models):
    """The hub cannot be reached from the tests: same names, columns and splits, own rows."""
    pair = {"chosen": "honey", "chosen_model": "m", "rejected": "no", "rejected_model": "n"}
    rows = [pair | {"prompt": f"q{i}", "subset": "xy"[i % 2], "id": i} for i in range(4)]
    hub_folder("allenai/reward-bench", "filtered", rows)
    lists = {"chosen": ["honey"], "rejected": ["no", "it", "flies"], "num_correct": 1}
    rows = [lists | {"prompt": f"q{i}", "subset": "xy"[i % 2], "id": str(i)} for i in range(4)]
    hub_folder("allenai/reward-bench-2", "test", rows)
    hub_folder("ScalerLab/JudgeBench", "gpt", [JUDGEBENCH | {"label": "B>A"}])
    Path("LLMBar/Dataset/LLMBar/Natural").mkdir(parents=True)
    rows = [LLMBAR | {"label": 2}, LLMBAR | {"input": "3+3?", "label": 1}]
    Path("LLMBar/Dataset/LLMBar/Natural/dataset.json").write_text(json.dumps(rows, indent=4))
    text = (ROOT / "docs" / "your_data.md").read_text()
    commands = [
        line for line in text.splitlines() if line.startswith("python judge.py --agreement")
    ]
    assert len(commands) == 4
    for number, command in enumerate(commands):
        words = command.replace("reward-model:DIR", f"reward-model:{models / 'rm'}").split()[2:]
        out = f"out{number}"
        judge.main(parse(judge.Config, [*words, "--out", out]))
        summary = json.loads(Path(out, "summary.json").read_text())
        assert summary["failures"] == 0
        assert ("subsets" in summary) == ("LLMBar" not in command)
        assert summary["chance"] == (0.25 if "reward-bench-2" in command else 0.5)
