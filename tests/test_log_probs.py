"""Re-forwarded log-probabilities, against one unpadded sequence at a time and plain loops."""

import pytest
import torch
from test_prompt_tree import BRANCHES, FLAT, PROMPTS, layout
from tiny_models import (
    MODELS,
    loop_answer_log_probs,
    loop_token_log_probs,
    parameter_gradients,
    tiny_model,
    tolerance,
)
from torch.testing import assert_close

from rlhf_min.models import log_probs
from rlhf_min.models.log_probs import answer_log_probs, token_log_probs
from rlhf_min.models.prompt_tree import build_tree

WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 1.5, -0.7, 0.1, 1.0, -2.0])  # advantages of the branches


def tree(kind="tree", max_row=10_000, dtype=torch.float64):
    return build_tree(PROMPTS, BRANCHES, layout(kind == "tree", max_row, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_values_and_gradients_equal_the_loop_in_every_layout(family, attention, dtype):
    model = tiny_model(family, attention, dtype)
    weights = WEIGHTS.to(dtype)
    want = loop_answer_log_probs(model, PROMPTS, BRANCHES)
    want_gradients = parameter_gradients(model, (weights * want).sum())
    assert sum(g.abs().max() > 1e-3 for g in want_gradients) > len(want_gradients) / 2
    for kind, max_row in (("tree", 10_000), ("tree", 14), ("plain", 10_000)):
        got = answer_log_probs(model, tree(kind, max_row, dtype))
        assert got.shape == (8,) and got.dtype == dtype
        assert_close(got, want, **tolerance(family, dtype))
        gradients = parameter_gradients(model, (weights * got).sum())
        assert_close(gradients, want_gradients, **tolerance(family, dtype))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trap_1_equals_minus_the_model_s_own_loss_times_length(family):
    """trap 1: log-probs gathered from the wrong positions, those of the prompt."""
    model = tiny_model(family)
    got = answer_log_probs(model, tree())
    for number, (prompt, answer) in enumerate(FLAT):
        labels = torch.tensor([[-100] * len(prompt) + answer])
        loss = model(torch.tensor([prompt + answer]), labels=labels).loss
        # transformers takes its loss in float32, whatever the model's dtype
        assert_close(got[number], -loss.double() * len(answer), atol=1e-5, rtol=1e-5)


def test_trap_1_an_answer_has_the_gradient_of_the_answer_alone():
    """trap 1: the last prompt token predicts; the prompt itself is not predicted."""
    model = tiny_model("gpt2", tie_word_embeddings=False)
    got = answer_log_probs(model, build_tree([[1, 9, 9, 4]], [[[6, 2]]], layout()))[0]
    rows = torch.autograd.grad(got, model.lm_head.weight)[0]
    hidden = model.base_model(torch.tensor([[1, 9, 9, 4, 6]])).last_hidden_state[0]
    want = torch.zeros_like(rows)
    for position, token in ((3, 6), (4, 2)):
        p = model.lm_head(hidden[position]).softmax(-1)
        for v in range(23):
            want[v] += (float(v == token) - p[v]) * hidden[position]
    assert_close(rows, want)


def test_trap_2_every_token_is_scored_at_its_own_position():
    """trap 2: shift by one missing, or the first answer token dropped."""
    model = tiny_model("gpt_neox")
    logits = model(torch.tensor([FLAT[1][0] + FLAT[1][1]])).logits[0]
    distances = (logits[:, None] - logits[None]).abs().amax(-1)
    assert (distances + torch.eye(len(logits)) > 0.1).all()  # so a shift cannot hide
    for kind in ("tree", "plain"):
        built = tree(kind)
        tokens = token_log_probs(model, built)
        for number, want in enumerate(loop_token_log_probs(model, PROMPTS, BRANCHES)):
            assert_close(tokens[built.owners == number], want, **tolerance("gpt_neox"))


def test_trap_3_the_end_token_is_scored_and_learned():
    """trap 3: a model whose end token is not counted never learns to stop."""
    model = tiny_model("gpt2", tie_word_embeddings=False)
    end = 2
    short = build_tree([[1, 9, 4]], [[[6, 7]]], layout())
    ended = build_tree([[1, 9, 4]], [[[6, 7, end]]], layout())
    tokens = token_log_probs(model, ended)
    p_end = model(torch.tensor([[1, 9, 4, 6, 7]])).logits[0, -1].log_softmax(-1)[end]
    assert_close(answer_log_probs(model, ended) - answer_log_probs(model, short), p_end[None])
    toward_end = torch.autograd.grad(tokens.sum(), model.lm_head.weight)[0][end]
    without = torch.autograd.grad(token_log_probs(model, short).sum(), model.lm_head.weight)[0][end]
    last = model.base_model(torch.tensor([[1, 9, 4, 6, 7]])).last_hidden_state[0, -1]
    assert_close(toward_end - without, (1 - p_end.exp()) * last)


def test_trap_4_log_probs_do_not_depend_on_the_batch():
    """trap 4: amount of padding, batch size, order."""
    model = tiny_model("gpt2")
    together = answer_log_probs(model, tree())
    for number, (prompt, answer) in enumerate(FLAT):
        alone = answer_log_probs(model, build_tree([prompt], [[answer]], layout()))
        assert_close(alone[0], together[number], **tolerance("gpt2"))
    backwards = build_tree(PROMPTS[::-1], [own[::-1] for own in BRANCHES[::-1]], layout())
    assert_close(answer_log_probs(model, backwards), together.flip(0), **tolerance("gpt2"))


def test_an_answer_drawn_twice_counts_twice():
    model = tiny_model("gpt2")
    once = answer_log_probs(model, build_tree([[1, 9]], [[[6, 2]]], layout()))
    twice = answer_log_probs(model, build_tree([[1, 9]], [[[6, 2], [6, 2]]], layout()))
    assert_close(twice, once.expand(2), **tolerance("gpt2"))
    want = [2 * g for g in parameter_gradients(model, once.sum())]
    assert_close(parameter_gradients(model, twice.sum()), want, **tolerance("gpt2"))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_trap_7_temperature_divides_the_logits(temperature):
    """trap 7: log-probs must be of the very distribution that was sampled from."""
    for family in ("llama", "gemma2"):  # gemma2 squashes its logits first
        model = tiny_model(family, "eager")
        want = loop_answer_log_probs(model, PROMPTS, BRANCHES, temperature)
        assert_close(answer_log_probs(model, tree(), temperature), want, **tolerance(family))


@pytest.mark.parametrize("numbers", [1, 50, 23 * 7, 2**24])
def test_chunking_the_logits_changes_nothing(monkeypatch, numbers):
    model = tiny_model("llama")
    want = answer_log_probs(model, tree())
    want_gradients = parameter_gradients(model, (WEIGHTS * want).sum())
    heads = []
    model.lm_head.register_forward_hook(lambda _, h, out: heads.append(h[0].shape[0]))
    monkeypatch.setattr(log_probs, "MAX_LOGITS", numbers)
    monkeypatch.setattr(log_probs, "MIN_TOKENS", 1)
    got = answer_log_probs(model, tree())
    tokens = sum(len(answer) for _, answer in FLAT)
    assert max(heads) <= max(1, numbers // 23) and sum(heads) == tokens
    assert_close(got, want)
    assert_close(parameter_gradients(model, (WEIGHTS * got).sum()), want_gradients)
    assert sum(heads) == 2 * tokens  # logits are not kept for the backward pass, but made again


def test_values_without_a_graph_are_the_same_and_carry_none():
    model = tiny_model("llama")
    with torch.no_grad():
        quiet = answer_log_probs(model, tree())
    assert not quiet.requires_grad
    assert_close(quiet, answer_log_probs(model, tree()), atol=0, rtol=0)


def test_a_bfloat16_model_gives_float32_log_probs():
    """Sums of many log-probs need more than 8 bits: 256 + 1 is 256 in bfloat16."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    got = answer_log_probs(model, tree(dtype=torch.bfloat16))
    assert got.dtype == torch.float32
    exact = loop_answer_log_probs(tiny_model("llama"), PROMPTS, BRANCHES)
    assert_close(got.double(), exact, atol=0.5, rtol=0.05)
    assert (got != got.bfloat16().float()).any()
