"""python -m rlhf_min.try: answers, their rewards, questions from a pipe, and bad input."""

import importlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_reward_model import trained_folder
from tiny_models import tiny_folder, tiny_tokenizer

from rlhf_min import InputError
from rlhf_min.command_line import parse, run
from rlhf_min.models.answers import sample_texts
from rlhf_min.models.loading import load_causal_lm, load_tokenizer
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.sampling import sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.zoo import start_model, world

talk = importlib.import_module("rlhf_min.try")  # `try` is a keyword
ROOT = Path(__file__).parents[1]
QUESTION = world.prompts("train")[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A start model of the zoo, tiny models of other families, and reward models."""
    place = tmp_path_factory.mktemp("models")
    start_model.build_base(place / "base", steps=2, examples=300)
    trained_folder(place / "base", place / "rm", "scalar")
    trained_folder(place / "base", place / "rm10", "ratings")
    for family in ("llama", "gemma3", "mamba"):
        tiny_folder(place / family, "smol", family)
    (place / "unfinished").mkdir()
    (place / "unfinished" / "run.json").write_text("{}")
    (place / "plain").mkdir()
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def ask(*models, **settings) -> list[dict]:
    settings = {"prompt": QUESTION, "max_new_tokens": 12} | settings
    return talk.main(talk.Config(models=list(models), **settings))


# Answers


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])  # cache, sliding window, no cache
def test_streamed_tokens_are_those_of_sample(family, temperature):
    for seed in range(3):
        config = talk.Config(max_new_tokens=12, temperature=temperature, seed=seed)
        answerer = talk.Answerer(family, config)
        ids = answerer.encode("what does the bear like?")
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):  # the second answer goes on with the same random numbers
            rollout = sample(answerer.model, [ids], 1, 12, answerer.ends, temperature, generator)
            assert list(answerer.stream(ids)) == rollout.answers[0][0]


def test_the_answer_is_that_of_sample_texts_and_every_model_starts_with_the_seed(capsys):
    results = ask("base", "llama", "base", seed=7)
    for result in results:
        model, tokenizer = (
            f(result["model"], *x)
            for f, x in ((load_causal_lm, (torch.float32,)), (load_tokenizer, ()))
        )
        texts, finished = sample_texts(model, tokenizer, [QUESTION], 12, 1.0, 7)
        assert (result["answer"], result["finished"]) == (texts[0], finished[0])
    assert results[0] == results[2]
    assert capsys.readouterr().out.count("── base") == 2
    assert ask("base", seed=7)[0] == results[0] != ask("base", seed=8)[0]


def test_the_reward_is_the_scorers_and_gold_is_the_worlds(capsys):
    told = []
    for path in ("rm", "rm10"):
        for result in ask("base", "llama", reward_model=path):
            outputs = RewardScorer(path, torch.float32).text_outputs(
                [QUESTION], [[result["answer"]]], [[result["finished"]]]
            )
            assert result["reward"] == pytest.approx(reward_from(outputs, "mean").item(), abs=1e-6)
            assert result["gold"] == world.gold_rating(QUESTION, result["answer"])
            told.append(f"reward {result['reward']:.2f}; gold {result['gold']:.2f}")
    shown = capsys.readouterr().out
    assert all(text in shown for text in told) and len(told) == 4
    assert "no gold rating" not in shown


def test_other_questions_have_no_gold_rating_and_one_of_the_zoo_is_shown(capsys):
    (result,) = ask("base", prompt="Who are you?")
    assert "gold" not in result and "reward" not in result
    assert world.prompts("held-out")[0] in capsys.readouterr().out
    ask("llama", prompt="Who are you?")
    assert "gold" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["the bear likes honey", "é🦓 und 漢字\nnew line", "\x1b[31mred \u202e", "", "🦓", " a "],
)
def test_the_printed_pieces_make_up_the_answer(text, capsys, monkeypatch):
    """Tokens of a few bytes: a character appears when its last token comes."""
    from rlhf_min.data.visible import visible

    answerer = talk.Answerer("llama", talk.Config())
    ids = tiny_tokenizer("smol")(text, add_special_tokens=False).input_ids
    monkeypatch.setattr(answerer, "stream", lambda prompt: iter([*ids, answerer.ends[0]]))
    assert answerer.answer("?") == (text.strip(), [*ids, answerer.ends[0]])
    assert capsys.readouterr().out == (visible(text.strip()) or "(empty)") + "\n"


def test_an_answer_is_printed_token_by_token(monkeypatch):
    writes = []

    class Screen(io.StringIO):
        def write(self, text):
            writes.append(text)

    answerer = talk.Answerer("llama", talk.Config())
    ids = tiny_tokenizer("smol")("the bear likes honey", add_special_tokens=False).input_ids
    monkeypatch.setattr(answerer, "stream", lambda prompt: iter([*ids, answerer.ends[0]]))
    monkeypatch.setattr(sys, "stdout", Screen())
    answerer.answer("?")
    assert len([text for text in writes if text.strip()]) > 3


def test_without_models_those_of_the_default_places_answer(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(InputError, match=r"neither runs/zoo-base nor runs/policy.*train_policy"):
        talk.main(talk.Config(prompt=QUESTION))
    Path("runs/policy").symlink_to(place / "llama")
    settings = talk.Config(prompt=QUESTION, max_new_tokens=3)
    assert [r["model"] for r in talk.main(settings)] == ["runs/policy"]
    Path("runs/zoo-base").symlink_to(place / "base")
    Path("runs/rm").symlink_to(place / "rm")
    results = talk.main(settings)
    assert [r["model"] for r in results] == ["runs/zoo-base", "runs/policy"]
    assert all("reward" in result for result in results)
    (first, _) = talk.main(talk.Config(prompt=QUESTION, max_new_tokens=3, reward_model="none"))
    assert "reward" not in first


# The command line


@pytest.mark.parametrize(
    ("line", "models", "prompt"),
    [
        ([], None, None),
        (["base"], ["base"], None),  # an existing folder
        (["Hello"], None, "Hello"),
        (["base", "llama"], ["base", "llama"], None),
        (["base", "llama", "Who are you?"], ["base", "llama"], "Who are you?"),
        (["owner/name"], ["owner/name"], None),
        (["owner/name", "and / or?"], ["owner/name"], "and / or?"),
        (["no/such"], ["no/such"], None),
        (["gpt2", "Hi"], ["gpt2"], "Hi"),
        (["--seed", "3", "base", "--temperature=1", "Hi"], ["base"], "Hi"),
        (["base", "--prompt", "and/or"], ["base"], "and/or"),
        (["gpt2", "--prompt=-5 degrees"], ["gpt2"], "-5 degrees"),
        (["--models", "base", "llama", "--prompt", "base"], ["base", "llama"], "base"),
        (["base", ""], ["base"], ""),
        (["x" * 5000], None, "x" * 5000),
    ],
)
def test_the_last_word_is_the_prompt_unless_it_names_a_model(line, models, prompt):
    config = parse(talk.Config, line)
    assert (config.models, config.prompt) == (models, prompt)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["no/such/folder", "Hi"], ["no/such/folder", "folder or hub id"]),
        (["rm", "Hi"], ["rm is a reward model", "give a language model"]),
        (["base", "Hi", "--reward-model", "llama"], ["llama has no reward head"]),
        (["base", "Hi", "--reward-model", "no/such/rm"], ["no/such/rm"]),
        (["unfinished", "Hi"], ["unfinished holds no finished model"]),
        (["plain", "Hi"], ["plain holds no finished model"]),
        (["base", ""], ["the prompt is empty"]),
        (["base", "  "], ["the prompt is empty"]),
        (["base", "--prompt", "the bear " * 300], ["tokens", "context of base (256)", "shorten"]),
        (["base", "Hi", "--max-new-tokens", "256"], ["--max-new-tokens 256", "(256)"]),
        (["base", "Hi", "--max-new-tokens", "0"], ["--max-new-tokens must be at least 1"]),
        (["base", "Hi", "--temperature", "0"], ["--temperature must be at least 0.01"]),
        (["base", "Hi", "--temperature", "nan"], ["--temperature", "finite"]),
        (["base", "Hi", "--seed", "-1"], ["--seed must be at least 0"]),
        (["base", "Hi", "--temprature", "1"], ["unknown flag --temprature", "--temperature"]),
        (["base", "a\x1b[31m"], ["--prompt holds characters that cannot be printed"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(line, says, capsys):
    with pytest.raises(SystemExit) as stop:
        run(talk.main, talk.Config, line)
    assert stop.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    for part in says:
        assert part in message


def test_a_prompt_too_long_for_one_of_the_models_is_refused_before_any_answer(capsys):
    prompt = "the bear " * 20  # the zoo's context is 256 tokens, the tiny model's 128
    with pytest.raises(InputError, match=r"context of llama \(128\)"):
        ask("base", "llama", prompt=prompt, max_new_tokens=64)
    assert "── base" not in capsys.readouterr().out


# The interactive loop


def start(*words, **settings):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf_min.try", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def test_questions_through_a_pipe_until_an_empty_line():
    words = ["base", "--reward-model", "rm", "--max-new-tokens", "12", "--seed", "4"]
    questions = [QUESTION, "the bear " * 300, "caf\xe9", QUESTION]
    lines = "\n".join([*questions, "", "never asked"]).encode("latin-1")  # é is not UTF-8 here
    process = start(*words)
    out, err = process.communicate(lines, timeout=120)
    assert process.returncode == 0
    (message,) = err.decode().splitlines()  # about one question, the next ones are answered
    assert message.startswith("error: the prompt has ") and "shorten it" in message
    text = out.decode()
    assert text.count("\n> ") == 4 and "caf\ufffd" in text and "never asked" not in text
    assert text.count("── base") == 3 and text.count("reward ") == 4
    first = text.split("── base\n")[1].split("\n   reward")[0]
    (once,) = ask("base", reward_model="rm", seed=4)
    assert first == (talk.visible(once["answer"]) or "(empty)")
    assert f"reward {once['reward']:.2f}; gold {once['gold']:.2f}" in text


def test_the_end_of_the_input_ends_it(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    (result,) = ask("base", prompt=None)
    assert result["gold"] == world.gold_rating(QUESTION, result["answer"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert ask("base", prompt=None) == []


def test_control_c_is_exit_code_130():
    process = start("base")
    assert b"reward model: none" in process.stdout.readline()
    assert b"One question per line" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"interrupted\n"
    assert process.returncode == 130


def test_help_and_wrong_flags_are_answered_before_torch_is_imported():
    for words, code in ((["--help"], 0), (["--sed", "1"], 2)):
        command = [sys.executable, "-X", "importtime", "-m", "rlhf_min.try", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == code and "rlhf_min.command_line" in done.stderr
        assert "torch" not in done.stderr
        assert "unknown flag --sed" in done.stderr or '[MODEL ...] ["PROMPT"]' in done.stdout
