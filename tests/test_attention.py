"""Attention by matrix products, whole and branch by branch, against torch's own in float64."""

import json

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model, tolerance
from torch.testing import assert_close

from rlhf_min.hardware import attention
from rlhf_min.models.layout import Layout, tree_mask
from rlhf_min.models.loading import load_causal_lm
from rlhf_min.models.log_probs import token_log_probs
from rlhf_min.models.prompt_tree import build_tree

# Of each row, the trees: lengths of prompt and branches.  The last two rows have padding.
SPANS = [[(5, 4, 7)], [(2, 3), (1, 4, 2, 1), (1, 2)], [(9, 7)], [(3, 6, 2)], [(1, 1)]]


def states(heads: int, groups: int, dtype=torch.float64, spans=SPANS):
    """Random query, key, value with gradient, and the mask of these spans."""
    torch.manual_seed(0)
    shapes = [(len(spans), n, 16, 8) for n in (heads, groups, groups)]
    qkv = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    segments, roots = torch.full((2, len(spans), 16), -1)
    for r, row in enumerate(spans):
        column = 0
        for n, lengths in enumerate(row):
            for k, length in enumerate(lengths):
                segments[r, column : column + length] = 10 * n + k
                roots[r, column : column + length] = 10 * n
                column += length
    return qkv, tree_mask(segments, roots, dtype)


def filled() -> torch.Tensor:
    """Which positions hold a token: [R, L]."""
    used = torch.tensor([sum(map(sum, row)) for row in SPANS])
    return torch.arange(16) < used[:, None]


def oracle(query, key, value, mask, scale=None):
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)


def compare(ours, theirs, inputs, where):
    """Outputs and gradients at the positions that count."""
    assert_close(ours[where], theirs[where])
    weight = torch.randn_like(theirs[where])
    expected = torch.autograd.grad((theirs[where] * weight).sum(), inputs)
    assert_close(torch.autograd.grad((ours[where] * weight).sum(), inputs), expected)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("queries", [256, 3, 1])
def test_branch_by_branch_equals_the_whole_mask(heads, groups, scaling, queries, monkeypatch):
    """Rows of unlike shape, one without padding, one without branch tokens to speak of."""
    monkeypatch.setattr(attention, "QUERIES", queries)
    qkv, mask = states(heads, groups)
    expected = oracle(*qkv, mask, scaling)
    ours, weights = attention.attention(None, *qkv, mask, scaling=scaling, spans=SPANS)
    assert weights is None
    compare(ours, expected, qkv, filled())


@pytest.mark.parametrize("spans", [SPANS, None])
def test_values_may_have_another_size_than_queries_and_the_result_is_contiguous(spans):
    """As in DeepSeek-V3 (multi-head latent attention); JetMoE's layers `view` the result."""
    (query, key, value), mask = states(4, 2)
    value = value[..., :3].detach().clone().requires_grad_()
    rounded = (x.bfloat16() for x in (query, key, value, mask))
    assert attention.attention(None, *rounded, spans=spans)[0].is_contiguous()
    queries = slice(None) if spans else slice(-1, None)  # without spans: one query, as in decoding
    query, mask = query[:, :, queries], mask[:, :, queries]
    ours, _ = attention.attention(None, query, key, value, mask, spans=spans)
    where = filled() if spans else torch.ones(len(SPANS), 1, dtype=torch.bool)
    compare(ours, oracle(query, key, value, mask), (key, value), where)


def test_what_the_mask_hides_is_not_computed(monkeypatch):
    """Query by key pairs: the prompt's square and, for each branch, its length by what it sees."""
    pairs = []
    real = attention.products
    monkeypatch.setattr(
        attention,
        "products",
        lambda q, k, *r: pairs.append(q.shape[2] * k.shape[2]) or real(q, k, *r),
    )
    qkv, mask = states(2, 2, spans=SPANS[:2])
    attention.attention(None, *qkv, mask, spans=SPANS[:2])
    shared = [2 * 2, 3 * 5, 1 * 1, 4 * 5, 2 * 3, 1 * 2, 1 * 1, 2 * 3]
    assert pairs == [5 * 5, 4 * 9, 7 * 12, *shared]


@pytest.mark.parametrize("positions", [1, 6])
def test_bfloat16_and_single_queries_are_no_further_from_the_truth_than_sdpa(positions):
    """The truth in float64 from the same rounded inputs; keys that a mask hides stay hidden."""
    torch.manual_seed(0)
    q = torch.randn(3, 6, positions, 16).bfloat16()
    k, v = (torch.randn(3, 2, 40, 16).bfloat16() for _ in range(2))
    mask = torch.zeros(3, 1, positions, 40, dtype=torch.bfloat16)
    mask[1, ..., :17] = torch.finfo(torch.bfloat16).min
    truth = oracle(q.double(), k.double(), v.double(), mask.double())
    ours, _ = attention.attention(None, q, k, v, mask)
    v[1, :, :17] = 1e4
    again, _ = attention.attention(None, q, k, v, mask)
    assert torch.equal(ours, again)
    assert (ours.double() - truth).abs().max() < 0.03  # three roundings of 2⁻⁹ of values below 4


def test_long_float32_rows_go_to_sdpa_and_no_mask_is_no_error(monkeypatch):
    monkeypatch.setattr(attention, "products", None)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    qkv, mask = states(4, 2, torch.float32)
    assert_close(attention.attention(module, *qkv, mask)[0], oracle(*qkv, mask))
    causal = torch.full((16, 16), float("-inf")).triu(1)
    assert_close(attention.attention(module, *qkv, None)[0], oracle(*qkv, causal))


@pytest.mark.parametrize(("max_row", "rows"), [(64, 2), (1000, 1)])  # a row for each; one for both
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "mistral", "gpt2"])
def test_a_model_with_long_trees_equals_plain_rows(family, max_row, rows, monkeypatch):
    """Log-probs and gradients in float64; every layer must have gone branch by branch."""
    calls = []
    real = attention.branch_by_branch
    monkeypatch.setattr(
        attention, "branch_by_branch", lambda *x: calls.append(len(calls)) or real(*x)
    )
    model, plain = tiny_model(family, attention.NAME), tiny_model(family, "eager")
    plain.load_state_dict(model.state_dict())
    prompts = [[5, 6, 7, 8], [9, 10]]
    branches = [[[11, 12, 13], [14, 2]], [[15], [16, 17, 18, 19, 2]]]
    found = []
    for m, tree in ((model, True), (plain, False)):
        layout = Layout(tree, max_row, torch.float64, m.device, spans_from=1)
        log_probs = token_log_probs(m, build_tree(prompts, branches, layout))
        log_probs.mul(torch.arange(1.0, 1 + len(log_probs))).sum().backward()
        found.append((log_probs, {n: p.grad for n, p in m.named_parameters()}))
    assert len(calls) == rows * 2  # two layers
    assert_close(*found, **tolerance(family))


def test_only_long_trees_carry_spans():
    layout = Layout(True, 10_000, torch.float32, torch.device("cpu"), spans_from=256)
    prompt, answers = [5] * 100, [[6] * 100, [7] * 56]
    shorter = [prompt, prompt[:9], prompt[:7]], [answers, answers[1:], answers[1:]]
    assert build_tree(*shorter, layout).spans == [[(100, 100, 56)], [(9, 56), (7, 56)]]
    assert not build_tree([prompt], [answers[:1]], layout).spans


def test_loaded_models_take_it_and_saved_ones_do_not_name_it(tmp_path, monkeypatch):
    tiny_model("llama", dtype=torch.float32).save_pretrained(tmp_path / "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = load_causal_lm(str(tmp_path / "a"), torch.float32)
    assert model.config._attn_implementation == attention.NAME
    model.save_pretrained(tmp_path / "b")
    assert attention.NAME not in json.dumps(json.loads((tmp_path / "b/config.json").read_text()))
    eager = tiny_model("llama", "eager")
    assert attention.use_products(eager).config._attn_implementation == "eager"
