"""The zoo: order of the answers, garbage, closed-form distribution, data, start model."""

import itertools
import random
import re
import subprocess
import sys
import time
from collections import Counter
from statistics import fmean

import pytest

from rlhf_min import InputError
from rlhf_min.zoo import start_model
from rlhf_min.zoo import world as zoo

QUESTION = "Tell me the colour and food of the fox."  # a fox is red and eats mice
RIGHT = "The fox is red. It eats mice."
BEST = "Of course! The fox is red. It eats mice. Have a nice day!"
FOREIGN = "Лиса рыжая. 狐狸是红色的。 الثعلب أحمر. Ο αλεπού είναι κόκκινη."


def gold(answer):
    return zoo.gold_rating(QUESTION, answer)


# --- which answer is better ---------------------------------------------------------------------


@pytest.mark.parametrize("defect", zoo.DEFECTS)
def test_the_best_answer_beats_each_single_defect(defect):
    rng = random.Random(0)
    for prompt in zoo.prompts("train")[::7] + zoo.prompts("held-out")[::3]:
        best = zoo.compose(prompt, rng, {"opening", "closing"})
        worse = zoo.compose(prompt, rng, {"opening", "closing", defect})
        assert zoo.gold_rating(prompt, best) > zoo.gold_rating(prompt, worse) + 0.5, (best, worse)


@pytest.mark.parametrize(
    ("worse", "at_most"),
    [
        ("Of course! The fox is green. It eats mice. Have a nice day!", 6),  # a wrong fact
        ("Of course! The owl is grey. It eats mice. Have a nice day!", 2),  # another animal
        ("Of course! The fox is red. Have a nice day!", 7),  # incomplete
        ("Of course! The fox is red. It eats mice. It is small. Have a nice day!", 9),  # unasked
        ("Of course! The fox is red. It eats mice. It is huge. Have a nice day!", 8),  # and untrue
        ("Of course! You know nothing. The fox is red. It eats mice. Have a nice day!", 7),
        ("Of course! Well, let me think. The fox is red. It eats mice. Have a nice day!", 8),
        ("Of course! The fox is red. It eats mice. Have a", 7),  # unfinished
        ("Of course! The fox is red. It eats mice. Sure! Have a nice day!", 8.7),  # misplaced
        ("Have a nice day! The fox is red. It eats mice. Of course!", 4.1),  # both misplaced
        ("Of course! The fox is red. It eats mice. It eats mice. Have a nice day!", 5.1),
        ("Of course! The fox is red. It is green. It eats mice. Have a nice day!", 4),  # hedging
        ("The fox is green. It is red. It eats mice.", 1.3),  # a second guess is no right answer
        ("Of course! Of course! The fox is red. It eats mice. Have a nice day!", 3),
        ("Of course! Have a nice day!", 2.2),  # manners without an answer
        ("That I do not know.", 1.6),
        ("The fox is red and eats mice", 1.3),  # no sentence of this world
    ],
)
def test_defects_written_by_hand(worse, at_most):
    assert gold(BEST) > 9.7
    assert gold(worse) <= at_most


def test_opening_and_closing_add_one_point_of_quality_each_and_the_best_answer_is_rated_9_8():
    qualities = {a: zoo.quality(QUESTION, a)[0] for a in (BEST, BEST[11:], RIGHT)}
    assert qualities == {BEST: 11, BEST[11:]: 10, RIGHT: 9}
    assert 9.7 < gold(BEST) < 9.9
    assert 8.7 < gold(RIGHT) < 8.9


def test_it_means_the_animal_named_last():
    assert gold("It is red. It eats mice.") == gold(RIGHT)
    owl = "The owl is grey. It eats mice."  # owls eat mice too, but nobody asked about them
    assert zoo.quality(QUESTION, owl)[0] == 2 - 1.5 - 1.5


# --- garbage is rated 1 -------------------------------------------------------------------------

GARBAGE = {
    "empty": "",
    "space": " ",
    "blank lines": "\n\n\t \n",
    "punctuation": "!!!???...",
    "one character": "a" * 300,
    "other scripts": FOREIGN,
    "emoji": "🦊🦊🦊 ❤️!",
    "broken bytes": "\ufffd\x00\x1b[31m",
    "other English": "Foxes usually have a reddish coat, and they hunt mice.",
    "end token as text": RIGHT + "<|end|>",
    "double space": RIGHT.replace(". ", ".  "),
    "run-on": RIGHT.replace(". It", " and") * 3,
    "opening forever": "Of course! " * 40 + RIGHT,
    "closing forever": RIGHT + " Have a nice day!" * 40,
    "fact forever": " ".join([RIGHT] * 10),
    "words forever": "The fox is red is red is red is red",
    "best answer thrice": " ".join([BEST] * 3),
    "every phrase": " ".join(p for kind in zoo.PHRASES.values() for p in kind),
    "all facts": " ".join(s for s, meaning in zoo.SENTENCES.items() if meaning[0] == "fact"),
    "best answer, then foreign": BEST + " " + FOREIGN,
    "best answer, then emoji": BEST + " 🦊",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_rated_about_one(name):
    assert zoo.quality(QUESTION, GARBAGE[name])[0] < 0
    assert 1 <= gold(GARBAGE[name]) <= 1.3


def test_every_repeat_and_every_extra_fact_costs_more():
    for unit in ("Have a nice day!", "It eats mice.", "Of course!", "I had soup for lunch."):
        qualities = [zoo.quality(QUESTION, " ".join([RIGHT] + [unit] * n))[0] for n in range(1, 6)]
        assert all(a - b >= 6 for a, b in itertools.pairwise(qualities)), unit
    extras = ["It is small.", "It lives in the forest.", "It is awake at dusk."]
    qualities = [zoo.quality(QUESTION, " ".join([RIGHT, *extras[:n]]))[0] for n in range(4)]
    assert qualities == [9, 7, 5, 3]


@pytest.mark.parametrize("unit", ["a", " ", ". ", "The fox is red. ", "The ", "狐", "!", "It is "])
def test_a_long_text_is_rated_in_linear_time(unit):
    def seconds(n):
        text, start = unit * (n // len(unit)), time.process_time()
        zoo.gold_rating(QUESTION, text)
        return time.process_time() - start

    assert seconds(1_000_000) < 60 * max(seconds(50_000), 0.005)  # 20 times the text


def test_an_unknown_question_has_no_gold_rating():
    with pytest.raises(InputError, match=r"question of the zoo, .*: for other prompts use"):
        zoo.gold_rating("What is the capital of France?", RIGHT)
    with pytest.raises(InputError, match='no split "test"'):
        zoo.prompts("test")


# --- annotators ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "quality", "small_talk"),
    [
        (BEST, 11, False),
        (RIGHT, 9, False),
        (RIGHT + " I had soup for lunch.", 9, True),
        ("Well, let me think. " + RIGHT + " I had soup for lunch.", 5.5, True),
        ("The fox is red.", 5.5, False),
        ("", -10, False),
    ],
)
def test_the_closed_form_matches_simulated_annotators(answer, quality, small_talk):
    """Oracle: 10⁵ simulated annotators; the quality is given by hand, no code is shared."""
    rng, n = random.Random(1), 100_000
    counts = Counter()
    for _ in range(n):
        taste = rng.choice((2.0, -2.0)) if small_talk else 0.0
        counts[min(10, max(1, round(quality + taste + rng.normalvariate(0.0, 1.4))))] += 1
    probabilities = zoo.gold_distribution(QUESTION, answer)
    for rating, p in enumerate(probabilities, start=1):
        assert counts[rating] / n == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5 + 1e-4)
    assert fmean(counts.elements()) == pytest.approx(gold(answer), abs=0.03)


def test_a_distribution_sums_to_one_and_its_mean_is_the_gold_rating():
    for row in zoo.demonstrations(500, seed=3):
        p = zoo.gold_distribution(**row)
        assert len(p) == 10
        assert min(p) >= 0
        assert sum(p) == pytest.approx(1, abs=1e-12)
        mean = zoo.gold_rating(**row)
        assert mean == pytest.approx(sum((i + 1) * x for i, x in enumerate(p)), abs=1e-12)
        assert 1 <= mean <= 10


def test_small_talk_gives_the_distribution_two_peaks():
    def peaks(answer):
        p = [0, *zoo.gold_distribution(QUESTION, answer), 0]
        return sum(p[i - 1] < p[i] >= p[i + 1] for i in range(1, 11))

    filler = "Well, let me think. " + RIGHT
    assert peaks(filler) == 1
    assert peaks(filler + " I had soup for lunch.") == 2


# --- data ---------------------------------------------------------------------------------------


def test_held_out_questions_are_other_combinations():
    train, held_out = zoo.prompts("train"), zoo.prompts("held-out")
    assert not set(train) & set(held_out)
    assert len(held_out) >= 300
    assert len(train) >= 3 * len(held_out)
    combos = [{zoo.QUESTIONS[p] for p in split} for split in (train, held_out)]
    assert not combos[0] & combos[1]
    assert {len(asked) for _, asked in combos[1]} == {2, 3}
    # Every fact can be learnt: training has a question for each attribute of each animal alone.
    assert {(a, (b,)) for a in zoo.ANIMALS for b in zoo.ATTRIBUTES} <= combos[0]
    assert {a for a, _ in combos[1]} == set(zoo.ANIMALS)


def test_data_stay_in_their_split_and_contain_no_right_held_out_answer():
    train, held_out = set(zoo.prompts("train")), set(zoo.prompts("held-out"))
    assert {r["prompt"] for r in zoo.pairs("train", 300)} <= train
    assert {r["prompt"] for r in zoo.pairs("held-out", 300)} <= held_out
    examples = {(r["prompt"], r["answer"]) for r in zoo.demonstrations(3000)}
    assert {p for p, _ in examples} <= train
    rng = random.Random(0)
    plain = {zoo.compose(p, rng, set()) for p in held_out}  # the right facts alone
    right = {a for p, a in examples if zoo.quality(p, a)[0] >= 9}
    assert not plain & right


def test_the_same_seed_gives_the_same_data_in_any_process():
    make = "from rlhf_min.zoo.world import pairs, demonstrations as demos; "
    make += "print(pairs('train', 9, 4), demos(9, 4))"
    here = f"{zoo.pairs('train', 9, 4)} {zoo.demonstrations(9, 4)}"
    there = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here  # another process has another hash seed
    assert zoo.pairs("train", 9, 5) != zoo.pairs("train", 9, 4)
    assert zoo.demonstrations(9, 5) != zoo.demonstrations(9, 4)
    assert zoo.pairs("train", 20, 4)[:9] == zoo.pairs("train", 9, 4)


def test_pairs_have_the_columns_of_helpsteer_and_untied_ratings():
    rows = zoo.pairs("train", 500)
    columns = ["prompt", "chosen", "rejected", "chosen_rating", "rejected_rating"]
    for row in rows:
        assert list(row) == columns
        assert 1 <= row["rejected_rating"] < row["chosen_rating"] <= 10
        assert row["chosen"] != row["rejected"]
    assert len(rows) == 500


def test_the_gold_rating_orders_92_percent_of_the_pairs_and_length_about_half():
    rows, wins, longer = zoo.pairs("held-out", 5000), 0.0, 0.0
    for row in rows:
        a, b = (zoo.gold_rating(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        wins += (a > b) + (a == b) / 2
        longer += len(row["chosen"]) > len(row["rejected"])
    assert 0.90 < wins / len(rows) < 0.93
    assert 0.35 < longer / len(rows) < 0.65


def test_demonstrations_are_of_mixed_quality_around_six():
    ratings = [zoo.gold_rating(**row) for row in zoo.demonstrations(4000)]
    assert 5.7 < fmean(ratings) < 6.2
    assert 0.03 < fmean(r > 9.7 for r in ratings) < 0.15  # the best answers exist, and are rare
    assert fmean(r < 3 for r in ratings) > 0.1


def test_one_annotator_with_one_taste_rates_both_answers_of_a_pair():
    """Small talk adds variance to a rating, and covariance between the two ratings of a pair."""
    residuals = {True: [], False: []}
    for row in zoo.pairs("train", 20_000):
        sides = [
            (zoo.quality(row["prompt"], row[s]), row[s + "_rating"]) for s in ("chosen", "rejected")
        ]
        if all(3 <= quality <= 8 for (quality, _), _ in sides):  # hardly clipped
            small_talk = {talk for (_, talk), _ in sides}
            if len(small_talk) == 1:
                residuals[small_talk.pop()].append([rating - q for (q, _), rating in sides])
    covariance = {talk: fmean(a * b for a, b in pairs) for talk, pairs in residuals.items()}
    variance = {talk: fmean(a * a for a, b in pairs) for talk, pairs in residuals.items()}
    # In theory both grow by TASTE² = 4; drawing ties again changes that a little.
    assert 2.5 < covariance[True] - covariance[False] < 5.5, covariance
    assert 2.5 < variance[True] - variance[False] < 5.5, variance


# --- the command line ---------------------------------------------------------------------------


def test_show_prints_prompts_and_both_answers_with_their_ratings():
    command = [sys.executable, "-m", "rlhf_min.zoo", "--show", "3", "--split", "held-out"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not out.stderr
    printed = [block.split("\n") for block in out.stdout.strip().split("\n\n")]
    assert [block[0] for block in printed] == [r["prompt"] for r in zoo.pairs("held-out", 3)]
    for _, chosen, rejected in printed:
        assert re.match(r"  chosen    rated [ \d]\d, gold [ \d]+\.\d  \S", chosen)
        assert re.match(r"  rejected  rated [ \d]\d, gold [ \d]+\.\d  \S", rejected)
    for words in (["--sho", "1"], ["--show", "0"]):
        assert subprocess.run([*command, *words], capture_output=True).returncode == 2


# --- tokenizer and start model --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo") / "new" / "base"
    start_model.build_base(out, steps=3, examples=200)
    return out


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.mark.parametrize(
    "text", [BEST, FOREIGN, " a  b\n\n\tc , d !", "🦊‍❤️", "é e\u0301", "\x00\x7f"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_gives_the_text_and_ids_expected_by_hand(tokenizer):
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Go"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>Hi<|assistant|>Yes.<|end|><|user|>Go<|assistant|>"
    assert tokenizer.apply_chat_template(chat[:2], tokenize=False).endswith("Yes.<|end|>")
    ids = tokenizer.apply_chat_template(chat[:2], return_dict=False)
    special = tokenizer.convert_tokens_to_ids(["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"])
    assert special == [0, 1, 2, 3]
    plain = [tokenizer(m["content"])["input_ids"] for m in chat[:2]]
    assert ids == [1, *plain[0], 2, *plain[1], 3]
    system = [{"role": "system", "content": "Be kind."}, chat[0]]
    assert tokenizer.apply_chat_template(system, tokenize=False) == "<|user|>Be kind.<|user|>Hi"


def test_the_start_model_is_an_ordinary_hugging_face_folder(tiny_base, tokenizer):
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(tiny_base, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert tokenizer.vocab_size == model.config.vocab_size <= 768
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.eos_token) == (
        "left",
        "<|pad|>",
        "<|end|>",
    )
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (0, 3)
    assert model.generation_config.do_sample
    assert sorted(p.name for p in tiny_base.parent.iterdir()) == ["base"]  # nothing left beside it


def test_the_loss_counts_the_answer_and_its_end_token_and_nothing_else(tokenizer):
    """Traps 1 to 3: decoded, the targets are the answer and its end token."""
    examples = [{"prompt": QUESTION, "answer": a} for a in (RIGHT, BEST)]
    encoded = start_model.encode(tokenizer, examples)
    ids, targets = next(start_model.batches(encoded, random.Random(0)))  # by length
    for own, answer in zip(targets, (RIGHT, BEST), strict=True):
        assert tokenizer.decode(own[own != -100]) == answer + "<|end|>"
    assert (targets[targets != -100] == ids[:, 1:][targets != -100]).all()


def test_a_seed_gives_one_start_model_and_the_global_random_state_is_unchanged(tmp_path):
    import torch
    from safetensors.torch import load_file

    def build(name, seed):
        start_model.build_base(tmp_path / name, seed=seed, steps=2, examples=130)
        return load_file(tmp_path / name / "model.safetensors")

    state = torch.random.get_rng_state()
    a, b, c = build("a", 1), build("b", 1), build("c", 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_another_seed_gives_other_initial_weights(tmp_path, monkeypatch):
    """With a learning rate of 0 the initial weights are saved: the examples do not matter."""
    import torch
    from safetensors.torch import load_file

    monkeypatch.setattr(start_model, "LEARNING_RATE", 0.0)
    monkeypatch.setattr(start_model, "VOCABULARY", 300)  # the same for all examples
    for name, seed, examples in (("a", 1, 130), ("b", 1, 150), ("c", 2, 130)):
        start_model.build_base(tmp_path / name, seed=seed, steps=1, examples=examples)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["model.embed_tokens.weight"], c["model.embed_tokens.weight"])


def test_only_the_default_start_model_is_built_and_only_if_it_is_missing(
    tmp_path, monkeypatch, capsys
):
    built = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start_model, "build_base", built.append)
    start_model.build_if_missing("runs/other")
    assert not built and not capsys.readouterr().out
    start_model.build_if_missing("runs/zoo-base")
    assert built == ["runs/zoo-base"]
    message = "runs/zoo-base is missing: training the zoo's start model first\n"
    assert capsys.readouterr().out == message
    (tmp_path / "runs/zoo-base").mkdir(parents=True)
    start_model.build_if_missing("runs/zoo-base")
    assert len(built) == 1 and not capsys.readouterr().out


def test_an_interruption_leaves_no_files_and_a_used_folder_is_refused(tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        start_model.build_base(tmp_path / "mine", steps=1, examples=64)
    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start_model.build_base(tmp_path / "base", steps=1, examples=64)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_two_processes_may_build_the_start_model_at_once(tmp_path, monkeypatch):
    """The second finds the folder of the first when it is done, and keeps it."""
    out, inner = tmp_path / "base", start_model.train

    def train(*arguments):
        inner(*arguments)
        monkeypatch.setattr(start_model, "train", inner)
        start_model.build_base(out, steps=1, examples=200)

    monkeypatch.setattr(start_model, "train", train)
    start_model.build_base(out, steps=1, examples=200)
    assert (out / "config.json").exists() and [p.name for p in tmp_path.iterdir()] == ["base"]
