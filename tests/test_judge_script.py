"""judge.py by main(config) and from the shell: whole runs, bad input, kill and resume."""

import csv
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from fault_server import Fault, answers_of, serving, verdict

from rlhf_min import InputError
from rlhf_min.data.files import read_jsonl
from rlhf_min.data.preferences import read_pairs
from rlhf_min.judging.comparisons import Comparison, Verdict, settle
from rlhf_min.maths.statistics import wilson_interval
from rlhf_min.zoo import start_model
from rlhf_min.zoo import world as zoo

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import judge  # noqa: E402

KEY = "sk-very-secret-0123456789"
FILES = {"run.json", "answers.jsonl", "verdicts.jsonl", "verdicts.csv", "summary.json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two start models of the zoo, trained for two steps."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 0), ("b", 1)):
        start_model.build_base(folder / name, seed=seed, steps=2, examples=300)
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings(models, out, **other):
    return judge.Config(
        **{"a": str(models / "a"), "b": str(models / "b"), "out": str(out), "limit": 12} | other
    )


def shell(*arguments, stdin=None, **other):
    """judge.py as a user starts it."""
    command = [sys.executable, str(ROOT / "judge.py"), *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=120, check=False, **other
    )


def contents(folder: Path) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def table(folder: Path) -> list[dict]:
    with (folder / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pairs_file(path: Path, count: int = 10) -> Path:
    """Pairs whose chosen answer says "good"; it is the longer one in half of them."""
    rows = []
    for i in range(count):
        good, bad = f"good answer {i}" + " really" * (i % 2), f"bad answer {i}!!!"
        rows.append({"prompt": f"question {i}", "chosen": good, "rejected": bad})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prefers_good(text, _number):
    first, _ = answers_of(text)
    return verdict("1" if first.startswith("good") else "2", "it is good")


def key_is_nowhere(folder: Path, *texts: str) -> bool:
    everything = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    return KEY.encode() not in everything and not any(KEY in text for text in texts)


# ----------------------------------------------------------------------------- end to end


def composed_answers(_model, _tokenizer, prompts, _tokens, _temperature, seed, _batch_size):
    """Stands in for sampling: answers composed by the zoo, better ones for side b (seed 1)."""
    rng = random.Random(seed)
    kinds = [["wrong fact"], ["rude"], ["opening", "closing"], ["opening"], ["closing"]][seed * 2 :]
    return [zoo.compose(p, rng, set(rng.choice(kinds))) for p in prompts], [True] * len(prompts)


def test_gold_compares_two_models_of_the_zoo(models, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(judge, "sample_texts", composed_answers)
    summary = judge.main(settings(models, out, limit=40))
    assert 0.55 < summary["win_rate"] < 0.9
    assert FILES | {"comparisons.jsonl"} <= set(contents(out))
    assert json.loads((out / "summary.json").read_text())["win_rate"] == summary["win_rate"]
    assert summary["win_rate_low"] <= summary["win_rate"] <= summary["win_rate_high"]
    rows, comparisons = table(out), read_jsonl(out / "comparisons.jsonl")
    train = set(zoo.prompts("train"))  # held-out questions stay clean
    assert len({row["prompt"] for row in rows} & train) == len(rows) == 40
    assert {row["shown_first"] for row in rows} == {"a", "b"}
    for row, answers in zip(rows, read_jsonl(out / "answers.jsonl"), strict=True):
        a, b = (zoo.gold_rating(row["prompt"], answers[side]) for side in "ab")
        assert row["winner"] == ("tie" if abs(a - b) < 0.01 else "a" if a > b else "b")
    counts = [summary[name] for name in ("wins", "losses", "ties")]
    assert sum(counts) == 40
    assert summary["win_rate"] == (counts[0] + counts[2] / 2) / 40
    assert summary["comparisons"] == len(comparisons) == counts[0] + counts[1]
    for row in comparisons:
        assert row["chosen_rating"] == zoo.gold_rating(row["prompt"], row["chosen"])
        assert row["chosen_rating"] > row["rejected_rating"]
    assert len(read_pairs([str(out / "comparisons.jsonl")])[0]) == len(comparisons)
    assert "win rate of b" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_run_and_another_seed_another(models, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        judge.main(settings(models, tmp_path / name, seed=seed))
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one["answers.jsonl"] == two["answers.jsonl"] != three["answers.jsonl"]
    assert one["verdicts.csv"] == two["verdicts.csv"] != three["verdicts.csv"]
    assert one["verdicts.jsonl"] == two["verdicts.jsonl"]


def test_a_model_against_itself_gives_two_samples(models, tmp_path):
    judge.main(settings(models, tmp_path / "out", b=str(models / "a"), limit=5))
    rows = read_jsonl(tmp_path / "out" / "answers.jsonl")
    assert any(row["a"] != row["b"] for row in rows)


def test_the_reward_model_judges_chat_prompts_from_a_file(models, tmp_path):
    from transformers import AutoTokenizer

    from rlhf_min.models.answers import encode_texts
    from rlhf_min.models.reward_model import all_outputs, new_reward_model, reward_from
    from rlhf_min.models.scoring import RewardScorer

    model = new_reward_model(str(models / "a"), "ratings", torch.float32)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=0.05)  # larger: both answers all at one rating
    model.save_pretrained(tmp_path / "rm")
    AutoTokenizer.from_pretrained(models / "a").save_pretrained(tmp_path / "rm")
    prompts = tmp_path / "prompts.jsonl"
    turns = [[{"role": "user", "content": f"=SUM({i})"}] for i in range(3)]
    prompts.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    out = tmp_path / "out"
    name = f"reward-model:{tmp_path / 'rm'}"
    judge.main(settings(models, out, judge=name, data=[str(prompts)]))
    scorer = RewardScorer(str(tmp_path / "rm"), torch.float32)
    for row, asked in zip(table(out), read_jsonl(out / "answers.jsonl"), strict=True):
        assert row["prompt"].startswith("'=SUM(")
        texts, ends = [[asked["a"], asked["b"]]], [[True, True]]
        ids = encode_texts(scorer.tokenizer, [asked["prompt"]], texts, ends, 200)
        a, b = reward_from(all_outputs(scorer.model, *ids), "mean")
        assert row["winner"] == ("a" if a > b else "b")
    for row in read_jsonl(out / "comparisons.jsonl"):
        assert row["prompt"] in turns
        assert "chosen_rating" not in row


def test_identical_answers_are_ties_and_cost_no_question(models, tmp_path, monkeypatch):
    def same_answers(_model, _tokenizer, prompts, *_):
        return ["same"] * len(prompts), [True] * len(prompts)

    monkeypatch.setattr(judge, "sample_texts", same_answers)
    with serving(prefers_good) as server:
        config = settings(models, tmp_path / "out", judge="openai:m", base_url=server.url)
        summary = judge.main(config)
    assert not server.bodies
    assert (summary["ties"], summary["identical"], summary["comparisons"]) == (12, 12, 0)


# ----------------------------------------------------------------------------- agreement


def test_gold_refuses_other_questions_than_the_zoos_before_anything_is_judged(tmp_path):
    rows = [{"prompt": zoo.prompts("train")[0], "chosen": "a", "rejected": "b"}]
    rows += [{"prompt": "Who are you?", "chosen": "a", "rejected": "b"}]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="need a question of the zoo, and 'Who are you\\?'"):
        judge.main(judge.Config(agreement=str(pairs), judge="gold", out=str(tmp_path / "out")))
    assert not any((tmp_path / "out").glob("*.json*"))


def test_agreement_with_known_winners(tmp_path, capsys):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "out"
    with serving(prefers_good) as server:
        summary = judge.main(
            judge.Config(agreement=str(pairs), judge="openai:m", base_url=server.url, out=str(out))
        )
    assert summary["agreement"] == 1.0
    assert summary["agreement_low"] == pytest.approx(1 / (1 + 1.959964**2 / 10))
    assert (summary["position_disagreement"], summary["first_shown_wins"]) == (0.0, 0.5)
    assert summary["longer_wins"] == summary["longer_wins_data"] == 0.5
    assert summary["tokens/prompt"] == 100 * len(server.bodies) == 2000
    assert not (out / "comparisons.jsonl").exists()
    shown = capsys.readouterr().out
    assert "agreement 100.0%" in shown
    assert "20 questions to m: about" in shown
    assert key_is_nowhere(out, shown)


def test_agreement_of_a_judge_that_prefers_length_and_fails_once(tmp_path):
    def longer(text, number):
        first, second = answers_of(text)
        return "??" if "bad answer 3" in text else verdict(1 if len(first) > len(second) else 2)

    pairs = pairs_file(tmp_path / "pairs.jsonl")
    with serving(longer) as server:
        summary = judge.main(
            judge.Config(
                agreement=str(pairs), judge="openai:m", base_url=server.url, out=str(tmp_path / "o")
            )
        )
    assert summary["failures"] == 1
    assert summary["agreement"] == pytest.approx(4 / 9)
    interval = summary["agreement_low"], summary["agreement_high"]
    assert interval == pytest.approx(wilson_interval(4, 9))  # the failure is in no rate
    assert summary["longer_wins"] == 1.0
    assert [row["winner"] for row in table(tmp_path / "o")].count("failed") == 1


def test_long_and_broken_answers_are_counted_failures_and_the_rest_is_judged(
    models, tmp_path, capsys, monkeypatch
):
    """Ten long answers come in a row, one answer scores NaN; the run ends, says so and resumes."""
    from transformers import AutoTokenizer

    from rlhf_min.models import scoring
    from rlhf_min.models.reward_model import all_outputs, new_reward_model

    model = new_reward_model(str(models / "a"), "scalar", torch.float32)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(models / "a")
    tokenizer.save_pretrained(tmp_path / "rm")

    def wrong(model, prompts, branches):
        broken = ["\x1b" in tokenizer.decode(b) for own in branches for b in own]
        outputs = all_outputs(model, prompts, branches)
        return torch.where(torch.tensor(broken)[:, None], float("nan"), outputs)

    monkeypatch.setattr(scoring, "all_outputs", wrong)
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(16)]
    for row in rows[3:13]:
        row["rejected"] = "bad " * 3000
    rows[14]["chosen"] = "\x1b[31m good"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"agreement": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out")}
    common["judge"] = f"reward-model:{tmp_path / 'rm'}"
    for resume in (False, True):
        summary = judge.main(judge.Config(**common, resume=resume))
        assert (summary["failures"], summary["ties"]) == (11, 0)
        assert summary["wins"] + summary["losses"] == 5
        shown = capsys.readouterr().out
        assert "11 failures" in shown and "does not fit" in shown and "\x1b" not in shown
    explanations = [
        row["explanation"] for row in table(tmp_path / "out") if row["winner"] == "failed"
    ]
    assert sum("is not a number" in text for text in explanations) == 1


def test_many_texts_too_long_for_a_server_do_not_stop_the_run(tmp_path):
    """More in a row than the failures without a reply that stop a run."""
    pairs = pairs_file(tmp_path / "pairs.jsonl", judge.GIVE_UP + 2)
    body = json.dumps({"error": {"message": "maximum context length is 10 tokens"}})
    with serving(lambda *_: Fault(400, body)) as server:
        common = {"agreement": str(pairs), "judge": "openai:m", "base_url": server.url}
        summary = judge.main(judge.Config(**common, out=str(tmp_path / "out")))
        asked = len(server.bodies)
        judge.main(judge.Config(**common, out=str(tmp_path / "out"), resume=True))
    assert summary["failures"] == judge.GIVE_UP + 2
    assert len(server.bodies) == asked  # it would be too long again


# ----------------------------------------------------------------------------- stop and resume


def start(pairs, out, url, *more):
    command = [sys.executable, str(ROOT / "judge.py"), "--agreement", str(pairs)]
    command += ["--judge", "openai:m", "--base-url", url, "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_and_asks_nothing_twice(tmp_path, stop):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl", 12), tmp_path / "out"

    def slow(text, number):
        time.sleep(0.1)
        return prefers_good(text, number)

    def asked(texts):
        return [answers_of(text) for text in texts]

    with serving(slow) as server:
        process = start(pairs, out, server.url, "--concurrency", "2")
        wait_for(lambda: len(server.bodies) >= 9 or process.poll() is not None)
        process.send_signal(stop)
        shown, _ = process.communicate(timeout=60)
        known = read_jsonl(out / "verdicts.jsonl")
        before = asked(server.texts)
        assert 0 < len(known) < 24
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert len(known) == len(before)  # questions under way were answered and logged
            assert json.loads((out / "summary.json").read_text())["waiting"] > 0
            assert "Traceback" not in shown
        process = start(pairs, out, server.url, "--resume", "--concurrency", "3")
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, rest
        after = asked(server.texts)[len(before) :]
    comparisons = [Comparison(**row) for row in read_jsonl(out / "answers.jsonl")]
    answered = {comparisons[row["comparison"]].question(row["order"])[1:] for row in known}
    assert not answered & set(after)  # no question with a verdict is asked again
    assert len(after) == len(set(after)) == 24 - len(known)
    assert json.loads((out / "summary.json").read_text())["agreement"] == 1.0
    assert len(read_jsonl(out / "verdicts.jsonl")) == 24
    assert key_is_nowhere(out, shown, rest)


def test_a_dead_server_stops_the_run_and_its_questions_are_asked_again(tmp_path):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "out"
    body = Fault(503, json.dumps({"error": {"message": f"no luck with {KEY}"}}))
    common = {"agreement": str(pairs), "judge": "openai:m", "out": str(out), "concurrency": 1}
    replies = [body]
    with serving(lambda *a: prefers_good(*a) if not replies else replies[0]) as server:
        common["base_url"] = server.url
        with pytest.raises(InputError, match="no reply 10 times in a row") as caught:
            judge.main(judge.Config(**common, retries=0))
        assert KEY not in str(caught.value)
        assert json.loads((out / "summary.json").read_text())["agreement"] is None
        replies.clear()
        summary = judge.main(judge.Config(**common, retries=1, timeout=9, resume=True))
    assert (summary["agreement"], summary["failures"]) == (1.0, 0)
    assert key_is_nowhere(out)


def test_unreadable_replies_are_not_asked_again(tmp_path):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl", 3), tmp_path / "out"
    with serving(lambda *_: "I cannot decide.") as server:
        common = {"agreement": str(pairs), "judge": "openai:m", "base_url": server.url}
        first = judge.main(judge.Config(**common, out=str(out)))
        again = judge.main(judge.Config(**common, out=str(out), resume=True))
    assert len(server.bodies) == 6
    assert first["failures"] == again["failures"] == 3
    assert first["agreement"] is None


def test_another_run_in_the_folder_is_left_alone(models, tmp_path):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl"), tmp_path / "out"
    judge.main(settings(models, out))
    before = contents(out)
    for other in (
        settings(models, out),
        settings(models, out, resume=True, seed=1),
        settings(models, out, resume=True, limit=13),
        judge.Config(agreement=str(pairs), judge="human", out=str(out), resume=True),
    ):
        with pytest.raises(InputError, match=r"--out|--resume"):
            judge.main(other)
        assert contents(out) == before
    resumed = judge.main(settings(models, out, resume=True))
    assert contents(out)["verdicts.csv"] == before["verdicts.csv"]
    replaced = judge.main(settings(models, out, overwrite=True, seed=1, limit=5))
    assert resumed["pairs"] == 12
    assert replaced["pairs"] == len(read_jsonl(out / "verdicts.jsonl")) / 2 == 5


def test_a_run_of_another_version_is_left_alone(tmp_path):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl", 3), tmp_path / "out"
    with serving(prefers_good) as server:
        common = {"agreement": str(pairs), "judge": "openai:m", "base_url": server.url}
        judge.main(judge.Config(**common, out=str(out)))
        log = out / "verdicts.jsonl"
        log.write_text(log.read_text().replace('{"comparison":', '{"duel":'))
        before = contents(out)
        with pytest.raises(InputError, match=r"verdicts\.jsonl row 1 .* with --overwrite"):
            judge.main(judge.Config(**common, out=str(out), resume=True))
        assert contents(out) == before
        judge.main(judge.Config(**common, out=str(out), overwrite=True))
    assert len(server.bodies) == 12


def test_answers_of_another_version_are_one_sentence(tmp_path):
    pairs, out = pairs_file(tmp_path / "pairs.jsonl", 3), tmp_path / "out"
    with serving(prefers_good) as server:
        common = {"agreement": str(pairs), "judge": "openai:m", "base_url": server.url}
        judge.main(judge.Config(**common, out=str(out)))
        answers = out / "answers.jsonl"
        answers.write_text(answers.read_text().replace('"prompt":', '"question":'))
        before = contents(out)
        with pytest.raises(InputError, match=r"answers\.jsonl row 1 .* with --overwrite"):
            judge.main(judge.Config(**common, out=str(out), resume=True))
        assert contents(out) == before


def test_answers_are_sampled_once(models, tmp_path, monkeypatch):
    def quits(*_):
        raise KeyboardInterrupt

    config = {"out": tmp_path / "out", "judge": "human"}
    monkeypatch.setattr(judge, "judge_by_hand", quits)
    with pytest.raises(KeyboardInterrupt):
        judge.main(settings(models, **config))
    monkeypatch.setattr(judge, "sample_texts", None)  # would fail if called
    monkeypatch.setattr(judge, "judge_by_hand", lambda *_: None)
    judge.main(settings(models, **config, resume=True))


def test_a_judge_does_not_replace_a_model_that_it_compares(models):
    before = {path: path.read_bytes() for path in (models / "b").iterdir()}
    flags = {"a": str(models / "a"), "b": str(models / "b"), "overwrite": True}
    with pytest.raises(InputError, match=r"--b and --out are both .* would replace this model"):
        judge.main(judge.Config(**flags, out=str(models / "b")))
    with pytest.raises(InputError, match="--judge and --out are both"):
        rated_by = f"reward-model:{models / 'b'}"
        judge.main(judge.Config(**flags | {"b": "x"}, judge=rated_by, out=str(models / "b")))
    assert {path: path.read_bytes() for path in before} == before


# ----------------------------------------------------------------------------- a person


def test_a_person_judges_through_the_shell_quits_and_resumes(models, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    rows = [{"prompt": f"Tell me about {x}."} for x in ("owls", "bats", "seals")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--a", models / "a", "--b", models / "b", "--data", prompts, "--judge", "human"]
    flags += ["--out", out, "--max-new-tokens", "12"]
    first = shell(*flags, stdin="1 it is shorter\n2\nu\n")  # then the input ends
    assert first.returncode == 130, first.stderr
    assert "Traceback" not in first.stderr
    assert "interrupted: the same command with --resume goes on" in first.stderr
    assert "win rate" not in first.stdout  # blind to the end
    assert str(models) not in first.stdout.split("Which answer is better?")[1]
    assert [row["winner"] for row in table(out)].count("waiting") == 2
    second = shell(*flags, "--resume", stdin="1\nt\n")
    assert second.returncode == 0, second.stderr
    comparisons = [Comparison(**row) for row in read_jsonl(out / "answers.jsonl")]
    said = [Verdict("first", "it is shorter"), Verdict("first"), Verdict("tie")]
    assert [row["winner"] for row in table(out)] == [
        settle(c, [verdict_]).winner for c, verdict_ in zip(comparisons, said, strict=True)
    ]
    assert table(out)[0]["explanation"].endswith("first: it is shorter")
    usable = [c for c in comparisons[:2] if c.a.strip() and c.b.strip() and c.a != c.b]
    assert len(read_jsonl(out / "comparisons.jsonl")) == len(usable)


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"a": None}, "give --a and --b"),
        ({"b": None}, "give --a and --b"),
        ({"agreement": "pairs.jsonl"}, "leave --a and --b out"),
        ({"resume": True, "overwrite": True}, "give one of them"),
        ({"limit": -1}, "--limit must be at least 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"max_new_tokens": 10**6}, "leaves no room for a prompt"),
        ({"temperature": 0.0}, "--temperature must be at least 0.01"),
        ({"temperature": float("nan")}, "--temperature must be a finite number"),
        ({"timeout": 0.0}, "--timeout must be above 0"),
        ({"timeout": float("inf")}, "--timeout must be a finite number"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
        ({"retries": -1}, "--retries must be at least 0"),
        ({"judge": "oracle"}, "--judge oracle is unknown"),
        ({"judge": "reward-model:nowhere/at/all"}, "nowhere/at/all"),
        ({"a": "nowhere/at/all"}, "nowhere/at/all"),
        ({"b": "nowhere/at/all"}, "nowhere/at/all"),
        ({"data": ["missing.jsonl"]}, "missing.jsonl"),
        ({"data": ["zoo:test"]}, "zoo"),
        ({"judge": "openai:m", "base_url": "localhost:8000"}, "--base-url must be"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(models, tmp_path, monkeypatch, other, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=says) as caught:
        judge.main(settings(models, tmp_path / "out", **other))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", "silver", "gold:x", "human:x", "openai", "openai:", "reward-model:"]
)
def test_an_unknown_judge_is_one_sentence(models, tmp_path, name):
    with pytest.raises(InputError, match="use gold, reward-model:DIR, openai:MODEL or human"):
        judge.main(settings(models, tmp_path / "out", judge=name))
    assert not (tmp_path / "out").exists()


def test_gold_needs_questions_of_the_zoo(models, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What is the capital of France?"}\n')
    with pytest.raises(InputError, match="gold ratings need"):
        judge.main(settings(models, tmp_path / "out", data=[str(prompts)]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--a", "x"], "give --a and --b"),
        (["--a", "x", "--b", "y", "--jugde", "gold"], "--jugde"),
        (["--agreement", "rows.jsonl", "--judge", "gold"], "row 2"),
    ],
)
def test_bad_input_through_the_shell_is_exit_code_2(tmp_path, arguments, says):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "chosen": "x", "rejected": "y"}\n{oops\n')
    done = shell(*arguments, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- a real server

SERVE = """
import sys
sys.argv = ["transformers", "serve", "--device", "cpu", "--port", sys.argv[1]]
from transformers.cli.transformers import main
main()
"""


def prefers_the_first(base: Path, folder: Path) -> None:
    """A language model that replies `{"explanation": …, "winner": "1"}` to every question.

    All layers output zero, so the next token depends on the last one only: the verdict, which is a
    single token, follows every token but itself, and after it comes the end token.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([verdict("1", "it stands first")])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[-1] = torch.eye(8)[1]
        model.lm_head.weight[-1, 0] = model.lm_head.weight[tokenizer.eos_token_id, 1] = 20.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_against_a_real_server(models, tmp_path):
    """`transformers serve` with a story model (no verdicts) and one that prefers answer 1."""
    for package in ("fastapi", "uvicorn", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"`transformers serve` needs {package}, which is not installed")
    prefers_the_first(models / "a", tmp_path / "first-winner")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = (tmp_path / "server.log").open("w")
    command = [sys.executable, "-c", SERVE, str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: process.poll() is not None or healthy(url), 120)
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        common = {"base_url": f"{url}/v1", "limit": 3, "concurrency": 2}
        common["judge"] = f"openai:{tmp_path / 'first-winner'}"
        summary = judge.main(settings(models, tmp_path / "first", **common))
        assert (summary["failures"], summary["ties"]) == (0, 3)
        assert summary["position_disagreement"] == 1.0
        assert summary["tokens/reply"] > 0
        assert "it stands first" in table(tmp_path / "first")[0]["explanation"]
        stories = ROOT.parent / "shared" / "models" / "stories260k"
        if stories.is_dir():
            common["judge"] = f"openai:{stories}"
            summary = judge.main(settings(models, tmp_path / "stories", **common))
            assert summary["failures"] == 3
            rows = read_jsonl(tmp_path / "stories" / "verdicts.jsonl")
            assert all(row["verdict"]["reply"] for row in rows)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def healthy(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
    except (urllib.error.URLError, OSError):
        return False
