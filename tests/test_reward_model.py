"""Reward models: heads, rewards from ratings, and a folder that transformers reads the same way."""

import math
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_folder
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_min import InputError
from rlhf_min.data.preferences import Pair, encode_pairs
from rlhf_min.maths.ratings import confidence_weight
from rlhf_min.models.answers import encode_texts
from rlhf_min.models.batches import choose_layout
from rlhf_min.models.layout import context_length
from rlhf_min.models.loading import load_causal_lm, load_tokenizer, save_model
from rlhf_min.models.prompt_tree import build_tree
from rlhf_min.models.reward_model import (
    LABELS,
    all_outputs,
    branch_outputs,
    load_reward_model,
    new_reward_model,
    reward_from,
    separate_pad,
    win_probability,
)
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.reporting.evaluation import evaluate_reward_model

SHARED = Path(__file__).parents[2] / "shared" / "models"
PROMPTS = ["the bear", "what does the frog like to eat, and where does it live?", "a", "the bear"]
ANSWERS = ["honey", "", "the bear likes honey and the frog likes flies", "honey 🙂 and more"]


def trained_folder(base: str | Path, out: Path, head: str, seed: int = 0) -> Path:
    """The folder that training would leave, with a random head in place of a trained one."""
    tokenizer = load_tokenizer(str(base))
    model = new_reward_model(str(base), head, torch.float32)
    separate_pad(model, tokenizer)
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.score.weight)
    out.mkdir()
    save_model(model, tokenizer, out)
    return out


def score_texts(scorer: RewardScorer, prompts: list, answers: list[str]) -> list[float]:
    """Rewards of one answer text to each prompt."""
    texts, ends = [[answer] for answer in answers], [[True]] * len(answers)
    tokens = encode_texts(scorer.tokenizer, prompts, texts, ends, scorer.context)
    return reward_from(all_outputs(scorer.model, *tokens), "mean").tolist()


@pytest.mark.parametrize("head", LABELS)
def test_a_new_head_scores_all_answers_the_same_so_that_training_starts_at_chance(tmp_path, head):
    folder = tiny_folder(tmp_path / "m")
    model, tokenizer = new_reward_model(str(folder), head, torch.float32), load_tokenizer(folder)
    pairs = [Pair(p, a, a + " and more") for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    encoded, _ = encode_pairs(tokenizer, pairs, 128, "test")
    found, outputs = evaluate_reward_model(model, encoded, 0.5)
    assert outputs.shape == (4, 2, LABELS[head]) and not outputs.any()
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(found["chance_loss"]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("head", LABELS)
def test_a_new_head_has_the_std_that_was_asked_for_and_a_trained_one_stays(tmp_path, head):
    folder = tiny_folder(tmp_path / "m")
    torch.manual_seed(0)
    model = new_reward_model(str(folder), head, torch.float32, std=0.5)
    weights = model.score.weight
    error = 0.5 / (2 * weights.numel()) ** 0.5  # standard error of a sample's std
    assert weights.std().item() == pytest.approx(0.5, abs=4 * error)
    (tmp_path / "rm").mkdir()
    save_model(model, load_tokenizer(folder), tmp_path / "rm")
    again = new_reward_model(str(tmp_path / "rm"), head, torch.float32, std=0.5)
    assert torch.equal(again.score.weight, weights)


@pytest.mark.parametrize("head", LABELS)
def test_a_model_that_gives_every_answer_the_same_has_accuracy_one_half(tmp_path, head):
    """Equal outputs are ties, whichever way the last bit of P(win) was rounded."""
    folder = tiny_folder(tmp_path / "m")
    model, tokenizer = new_reward_model(str(folder), head, torch.float32), load_tokenizer(folder)
    pairs = [Pair(p, a, a + " and more") for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    encoded, _ = encode_pairs(tokenizer, pairs, 128, "test")
    for seed in range(10):
        torch.manual_seed(seed)
        constant = torch.randn(LABELS[head])
        model.score.forward = lambda hidden, constant=constant: constant.expand(len(hidden), -1)
        assert evaluate_reward_model(model, encoded, 0.5)[0]["accuracy"] == 0.5


FOLDERS = [("chatml", "llama"), ("smol", "llama"), ("one-special", "gpt2"), ("plain", "gpt_neo"),
           ("one-special", "gpt_neo"), ("bos", "qwen2"), ("smol", "gpt_neox")]  # fmt: skip


def agrees_with_transformers(folder: Path) -> None:
    """HF's pooled score of padded batches, on either side, is ours; nothing is missing."""
    scorer = RewardScorer(str(folder), torch.float32)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_labels == scorer.model.config.num_labels
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    answers = [[answer] for answer in ANSWERS]
    pairs = encode_texts(scorer.tokenizer, PROMPTS, answers, [[True]] * 4, 128)
    ours = all_outputs(scorer.model, *pairs)
    rows = [{"input_ids": p + a[0]} for p, a in zip(*pairs, strict=True)]
    for side in ("right", "left"):
        batch = tokenizer.pad(rows, padding=True, padding_side=side, return_tensors="pt")
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        with torch.no_grad():
            theirs = model.eval()(**batch, position_ids=positions).logits
        assert_close(theirs, ours, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("head", LABELS)
@pytest.mark.parametrize(("kind", "family"), FOLDERS)
def test_trap_4_the_folder_scores_in_transformers_as_it_does_here(tmp_path, kind, family, head):
    base = tiny_folder(tmp_path / "m", kind, family)
    agrees_with_transformers(trained_folder(base, tmp_path / "rm", head))


@pytest.mark.parametrize("head", LABELS)
@pytest.mark.parametrize("name", ["tinystories-chat-3m", "stories260k"])
def test_a_real_model_scores_in_transformers_as_it_does_here(tmp_path, name, head):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here: ../shared/models holds the real models")
    agrees_with_transformers(trained_folder(SHARED / name, tmp_path / "rm", head))


@pytest.mark.parametrize("kind", ["smol", "one-special", "plain"])
def test_trap_4_a_reward_does_not_depend_on_its_batch(tmp_path, kind):
    base = tiny_folder(tmp_path / "m", kind, "gpt2")
    scorer = RewardScorer(str(trained_folder(base, tmp_path / "rm", "ratings")), torch.float32)
    together = score_texts(scorer, PROMPTS, ANSWERS)
    alone = [score_texts(scorer, [p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    backwards = score_texts(scorer, PROMPTS[::-1], ANSWERS[::-1])
    assert backwards[::-1] == pytest.approx(together, abs=1e-4)
    assert all(1 <= r <= 10 for r in together)


def test_branches_of_unequal_number_come_back_in_order(tmp_path):
    base = tiny_folder(tmp_path / "m")
    scorer = RewardScorer(str(trained_folder(base, tmp_path / "rm", "scalar")), torch.float32)
    generator = torch.Generator().manual_seed(0)

    def some(length):
        return torch.randint(3, 290, (length,), generator=generator).tolist()

    prompts = [some(n) for n in (9, 2, 30, 4)]
    branches = [[some(n) for n in sizes] for sizes in ([3], [20, 1, 5], [2, 2], [7])]
    outputs = all_outputs(scorer.model, prompts, branches)
    flat = [(p, a) for p, answers in zip(prompts, branches, strict=True) for a in answers]
    for (prompt, ids), output in zip(flat, outputs, strict=True):
        with torch.no_grad():
            logits = scorer.model(torch.tensor([prompt + ids])).logits[0]
        assert_close(output, logits, atol=1e-4, rtol=1e-3)
    assert not outputs.requires_grad


def test_trap_14_a_scorer_cuts_the_prompt_and_never_the_answer(tmp_path):
    base = tiny_folder(tmp_path / "m", "plain")
    scorer = RewardScorer(str(trained_folder(base, tmp_path / "rm", "scalar")), torch.float32)
    prompts = ["the bear likes " * 90]
    (prompt,), ((ids,),) = encode_texts(
        scorer.tokenizer, prompts, [["honey " * 10]], [[True]], context_length(scorer.model)
    )
    assert len(prompt) + len(ids) == 128 and prompt[0] == scorer.tokenizer.bos_token_id
    assert scorer.tokenizer.decode(ids[:-1]) == "honey " * 10
    with pytest.raises(InputError, match="answers are never cut"):
        score_texts(scorer, ["the bear"], ["honey " * 90])


def test_a_reward_model_goes_on_from_its_own_head(tmp_path):
    base = tiny_folder(tmp_path / "m")
    folder = trained_folder(base, tmp_path / "rm", "ratings")
    again = new_reward_model(str(folder), "ratings", torch.float32)
    first = load_reward_model(str(folder), torch.float32)
    assert_close(again.score.weight, first.score.weight, rtol=0, atol=0)
    assert again.score.weight.any()


@pytest.mark.parametrize("heads", [("scalar", "ratings"), ("ratings", "scalar")])
def test_a_reward_model_with_the_other_head_is_refused_in_words(tmp_path, heads):
    folder = trained_folder(tiny_folder(tmp_path / "m"), tmp_path / "rm", heads[0])
    with pytest.raises(InputError):
        new_reward_model(str(folder), heads[1], torch.float32)


@pytest.mark.parametrize("kind", ["smol", "one-special", "bos", "chatml"])
def test_trap_4_a_pad_that_is_the_end_token_is_replaced_for_good(tmp_path, kind):
    base = tiny_folder(tmp_path / "m", kind)
    before = load_tokenizer(base)
    folder = trained_folder(base, tmp_path / "rm", "scalar")
    tokenizer, model = load_tokenizer(folder), load_reward_model(str(folder), torch.float32)
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.get_input_embeddings().num_embeddings > tokenizer.pad_token_id
    assert tokenizer.eos_token_id == before.eos_token_id
    assert tokenizer("the bear").input_ids == before("the bear").input_ids
    if kind == "chatml":  # had a pad of its own: nothing to do
        assert tokenizer.pad_token_id == before.pad_token_id


# Reading a number out of the head.


def test_rewards_from_ratings_equal_a_loop_over_the_ratings():
    torch.manual_seed(0)
    outputs, start = torch.randn(4, 10) * 2, torch.randn(4, 10) * 2
    p, q = outputs.softmax(-1).tolist(), start.softmax(-1).tolist()
    mean = [sum((k + 1) * x for k, x in enumerate(row)) for row in p]
    entropic = [-3 * math.log(sum(x * math.exp(-(k + 1) / 3) for k, x in enumerate(r))) for r in p]
    win = [
        sum(a * b * (1.0 if i > j else 0.5 if i == j else 0.0)
            for (i, a), (j, b) in product(enumerate(one), enumerate(two)))
        for one, two in zip(p, q, strict=True)
    ]  # fmt: skip
    assert reward_from(outputs, "mean").tolist() == pytest.approx(mean, abs=1e-4)
    assert reward_from(outputs, "entropic", b=3.0).tolist() == pytest.approx(entropic, abs=1e-4)
    assert reward_from(outputs, "win", reference=start).tolist() == pytest.approx(win, abs=1e-5)
    sigma = [
        math.sqrt(sum((k + 1 - m) ** 2 * x for k, x in enumerate(row)))
        for row, m in zip(p, mean, strict=True)
    ]
    weights = {
        "none": [1.0] * 4,
        "inverse-sigma": [1 / s for s in sigma],
        "inverse-variance": [1 / s**2 for s in sigma],
        "inverse-one-plus-sigma": [1 / (1 + s) for s in sigma],
    }
    for kind, expected in weights.items():
        assert confidence_weight(outputs, kind).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_scalar_head_reads_as_itself_and_wins_by_bradley_terry():
    first, second = torch.tensor([[1.5], [-2.0]]), torch.tensor([[0.5], [3.0]])
    assert reward_from(first, "mean").tolist() == [1.5, -2.0]
    assert confidence_weight(first, "none").tolist() == [1, 1]
    expected = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(5.0))]
    assert win_probability(first, second).tolist() == pytest.approx(expected)
    assert reward_from(first, "win", reference=second).tolist() == pytest.approx(expected)


def test_branch_outputs_read_each_branch_s_last_token_in_the_order_given(tmp_path):
    folder = trained_folder(tiny_folder(tmp_path / "m"), tmp_path / "rm", "ratings")
    model = load_reward_model(str(folder), torch.float32)
    prompts, branches = [[5, 6, 7], [8]], [[[9, 10, 1], [11]], [[12, 13], [14, 15, 16, 17]]]
    with torch.no_grad():
        ours = branch_outputs(model, build_tree(prompts, branches, choose_layout(model)))
        for p, k in product(range(2), range(2)):
            row = torch.tensor([prompts[p] + branches[p][k]])
            assert_close(ours[2 * p + k], model(row).logits[0], atol=1e-4, rtol=1e-3)


def test_evaluation_equals_a_loop_over_the_pairs(tmp_path):
    """Accuracy with ties a half, loss, the longer-wins baseline, dropped and cut pairs."""
    folder = trained_folder(tiny_folder(tmp_path / "m", "plain"), tmp_path / "rm", "scalar")
    scorer = RewardScorer(str(folder), torch.float32)
    pairs = [
        Pair("the bear", "honey", "flies and honey"),
        Pair("the frog", "flies, as the bear likes honey", "no"),
        Pair("the bear likes " * 40, "yes", "no"),  # cut from the left
        Pair("a", "same", "same"),
        Pair("a", "x" * 300, "y"),  # never cut: dropped
    ]
    encoded, dropped = encode_pairs(scorer.tokenizer, pairs, 60, "--data")
    assert dropped == {
        "prompt cut from the left (kept)": 1,
        "answers are the same tokens": 1,
        "answer longer than --max-length": 1,
    }
    assert max(len(p.prompt) + max(map(len, p.answers)) for p in encoded) == 60
    assert all(math.isnan(r) for p in encoded for r in p.ratings)
    found, outputs = evaluate_reward_model(scorer.model, encoded, 0.5)
    wins, losses = [], []
    for pair, output in zip(encoded, outputs, strict=True):
        with torch.no_grad():
            w, l = (scorer.model(torch.tensor([pair.prompt + a])).logits.item()  # noqa: E741
                    for a in pair.answers)  # fmt: skip
        assert output[:, 0].tolist() == pytest.approx([w, l], abs=1e-4)
        wins.append(1.0 if w > l else 0.5 if w == l else 0.0)
        losses.append(math.log1p(math.exp(l - w)))
    assert found["accuracy"] == pytest.approx(sum(wins) / 3)
    assert found["loss"] == pytest.approx(sum(losses) / 3, abs=1e-4)
    assert found["longer_wins"] == pytest.approx(2 / 3)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    with pytest.raises(InputError, match="raise --max-length"):
        encode_pairs(scorer.tokenizer, pairs[-1:], 60, "--data")


def test_trap_4_the_embedding_of_an_end_token_that_is_the_pad_token_is_trained(tmp_path):
    """transformers gives the pad token's embedding no gradient; the oracle has no such token."""
    folder = trained_folder(tiny_folder(tmp_path / "base", "smol"), tmp_path / "rm", "scalar")
    for load in (
        partial(load_causal_lm, str(tmp_path / "base")),
        partial(load_reward_model, folder),
    ):
        model = load(torch.float64)
        end = load_tokenizer(str(tmp_path / "base")).eos_token_id
        ids = [5, 6, end, 7, end]
        embeddings = model.get_input_embeddings()
        model.base_model(torch.tensor([ids])).last_hidden_state.square().sum().backward()
        ours, embeddings.weight.grad = embeddings.weight.grad, None
        rows = embeddings.weight[ids]  # indexing, not an embedding layer
        states = model.base_model(inputs_embeds=rows[None]).last_hidden_state
        (oracle,) = torch.autograd.grad(states.square().sum(), embeddings.weight)
        assert_close(ours, oracle)
        assert oracle[end].norm() > 0


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2],
)
def test_scores_have_at_least_32_bits(tmp_path, dtype, wanted):
    model = new_reward_model(str(tiny_folder(tmp_path / "m")), "ratings", dtype)
    tree = build_tree([[5, 6, 7]], [[[9, 10, 1]]], choose_layout(model))
    assert branch_outputs(model, tree).dtype == wanted


def test_a_win_probability_of_confident_ratings_is_never_above_1_by_rounding():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 2000, 10, generator=generator)
    slope = 3 * torch.arange(10.0)
    probability = win_probability(logits[0] + slope, logits[1] - slope)
    assert probability.max() == 1 and probability.min() > 0.9
