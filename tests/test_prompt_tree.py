"""The prompt tree: every branch gets what it would get in a row of its own."""

import dataclasses
import itertools
import math
import random

import pytest
import torch
from tiny_models import MODELS, tiny_model, tolerance
from torch.testing import assert_close

from rlhf_min.models import batches, shared_rows
from rlhf_min.models.answers import encode_texts
from rlhf_min.models.batches import length_batches, padding_share, tree_batches
from rlhf_min.models.encoder import encoder_outputs
from rlhf_min.models.layout import Layout, tree_mask
from rlhf_min.models.prompt_tree import build_tree, hidden_states
from rlhf_min.models.shared_rows import split_trees

CPU = torch.device("cpu")
# Prompts and answers of many lengths; id 0 is also the padding, and 2 ends most answers.
PROMPTS = [[1, 5, 6, 7, 8], [1, 9], [1, 0, 4, 0, 3, 11, 12]]
BRANCHES = [
    [[13, 14, 2], [15, 16, 17, 18, 19, 20, 2], [2]],
    [[3, 0, 4, 5, 0], [6, 2], [7, 8, 9, 0], [13, 14, 2]],
    [[21, 2]],
]
FLAT = [(prompt, answer) for prompt, own in zip(PROMPTS, BRANCHES, strict=True) for answer in own]


def layout(tree=True, max_row=10_000, dtype=torch.float64):
    return Layout(tree=tree, max_row=max_row, dtype=dtype, device=CPU)


def loop_end_states(model):
    """Oracle: the hidden state of each answer's last token, one unpadded sequence at a time."""
    rows = [
        model.base_model(torch.tensor([prompt + answer])).last_hidden_state[0, -1]
        for prompt, answer in FLAT
    ]
    return torch.stack(rows)


# ---------------------------------------------------------------- the layout


@pytest.mark.parametrize("max_row", [10_000, 14, 1])
@pytest.mark.parametrize("kind", ["tree", "plain"])
def test_every_branch_can_be_read_back_from_the_tree(kind, max_row):
    read_back(build_tree(PROMPTS, BRANCHES, layout(kind == "tree", max_row)), FLAT)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("shared_row", [0, 24, 60])
def test_every_branch_can_be_read_back_from_shared_rows(seed, shared_row, monkeypatch):
    """Random batches: one tree in a row, some short ones beside a long one, several in each."""
    monkeypatch.setattr(shared_rows, "SHARED_ROW", shared_row)
    draw = random.Random(seed)
    tokens = lambda most: [draw.randint(0, 22) for _ in range(draw.randint(1, most))]  # noqa: E731
    prompts = [tokens(9) for _ in range(draw.randint(1, 9))]
    own = [[tokens(12) for _ in range(draw.randint(1, 3))] for _ in prompts]
    tree = build_tree(prompts, own, layout(max_row=draw.choice([20, 10_000])))
    read_back(tree, [(prompt, a) for prompt, own in zip(prompts, own, strict=True) for a in own])


def read_back(tree, flat: list) -> None:
    """Assert that the tree holds these (prompt, answer), and that each answer sees both only."""
    width = tree.ids.shape[1]
    flat_ids, flat_positions = tree.ids.flatten().tolist(), tree.positions.flatten().tolist()
    assert len(tree.ends) == len(flat)
    for number, (prompt, answer) in enumerate(flat):
        own = [n for n in range(len(tree.owners)) if tree.owners[n] == number]
        assert [tree.targets[n].item() for n in own] == answer
        indices = [tree.predictors[n].item() for n in own]
        end = tree.ends[number].item()
        # the prompt's last token predicts the first answer token, each answer token the next one
        places = [*range(indices[0] - len(prompt) + 1, indices[0] + 1), *indices[1:], end]
        assert all(i // width == end // width for i in places)
        assert [flat_ids[i] for i in places] == prompt + answer
        assert [flat_positions[i] for i in places] == list(range(len(prompt + answer)))
        if tree.mask.is_floating_point():
            row = tree.mask[end // width, 0]
            for n, i in enumerate(places):
                seen = (row[i % width] == 0).nonzero().flatten() + end // width * width
                assert seen.tolist() == places[: n + 1]


def test_a_prompt_is_stored_once_per_row_and_a_plain_row_holds_one_branch():
    tree = build_tree(PROMPTS, BRANCHES, layout(max_row=16))
    assert tree.ids.shape == (3, 5 + 3 + 7 + 1)
    shared = build_tree(PROMPTS, BRANCHES, layout())
    assert shared.ids.shape == (1, 5 + 3 + 7 + 1 + 2 + 5 + 2 + 4 + 3 + 7 + 2)
    plain = build_tree(PROMPTS, BRANCHES, layout(tree=False))
    assert plain.ids.shape == (8, 12)
    assert plain.mask.dtype == torch.bool
    assert plain.mask.sum(-1).tolist() == [len(prompt + answer) for prompt, answer in FLAT]


@pytest.mark.parametrize("max_row", range(1, 30))
def test_no_tree_is_longer_than_max_row_unless_one_branch_alone_is(max_row):
    trees = split_trees(PROMPTS, BRANCHES, layout(max_row=max_row))
    assert [(p, answer) for p, own in trees for answer in own] == FLAT
    for prompt, own in trees:
        assert len(prompt) + sum(map(len, own)) <= max_row or len(own) == 1
    for (prompt, own), (following, others) in itertools.pairwise(trees):  # not without need
        if prompt is following:
            assert len(prompt) + sum(map(len, own)) + len(others[0]) > max_row
    longest = max(len(prompt) + sum(map(len, own)) for prompt, own in trees)
    width = build_tree(PROMPTS, BRANCHES, layout(max_row=max_row)).ids.shape[1]
    assert width <= max(longest, max_row)


def test_prompts_without_matching_branches_are_refused():
    with pytest.raises(ValueError):
        build_tree(PROMPTS, BRANCHES[:2], layout())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tree_mask_equals_a_loop_over_queries_and_keys(dtype):
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3, -1, -1], [4, 5, 6, 6, 6, 7, 7, 8, 9, 9]])
    roots = torch.tensor([[0] * 8 + [-1] * 2, [4] * 5 + [7] * 5])  # two trees in the second row
    mask = tree_mask(segments, roots, dtype)
    assert mask.shape == (2, 1, 10, 10) and mask.dtype == dtype
    for r, (row, prompts) in enumerate(zip(segments.tolist(), roots.tolist(), strict=True)):
        for query in range(10):
            for key in range(10):
                if row[query] == -1:  # padding may see anything, but must see something
                    continue
                sees = key <= query and row[key] in (prompts[query], row[query])
                assert mask[r, 0, query, key].item() == (0.0 if sees else torch.finfo(dtype).min)
    # no empty row of the softmax, and nothing infinite: −∞ − (−∞) is NaN
    assert (mask == 0).any(-1).all() and mask.isfinite().all()


# ---------------------------------------------------------------- the hidden states


@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_trap_4_the_last_token_is_found_by_length(family, attention):
    """trap 4: pad == eos; here 0 is the padding, a token in texts, and the end of some of them."""
    model = tiny_model(family, attention)
    want = loop_end_states(model)
    for shape in (layout(), layout(max_row=16), layout(max_row=14), layout(tree=False)):
        tree = build_tree(PROMPTS, BRANCHES, shape)
        assert_close(hidden_states(model, tree)[tree.ends], want, **tolerance(family))


def test_trap_4_a_branch_does_not_depend_on_its_batch():
    """trap 4: invariant to the amount of padding, to the batch, and to the order in it."""
    model = tiny_model("gpt2")
    want = loop_end_states(model)
    for number, (prompt, answer) in enumerate(FLAT):
        tree = build_tree([prompt], [[answer]], layout())
        assert_close(hidden_states(model, tree)[tree.ends][0], want[number], **tolerance("gpt2"))
    long_neighbour = build_tree([[1] * 40, *PROMPTS[::-1]], [[[3] * 30], *BRANCHES[::-1]], layout())
    got = hidden_states(model, long_neighbour)[long_neighbour.ends]
    assert_close(got[1:], torch.cat([want[7:], want[3:7], want[:3]]), **tolerance("gpt2"))


def positions_with_tokens(tree) -> torch.Tensor:
    """Which positions of a tree hold a token: [R, L] bool."""
    used = torch.zeros(tree.ids.numel(), dtype=torch.bool)
    width = tree.ids.shape[1]
    for end in tree.ends.tolist():  # rows are filled from the left, without gaps
        used[end // width * width : end + 1] = True
    return used.view_as(tree.ids)


@pytest.mark.parametrize("max_rows", [1, 2, 3])
@pytest.mark.parametrize("kind", [layout(), layout(max_row=16), layout(tree=False)], ids=str)
def test_the_padding_share_counts_the_positions_without_a_token(kind, max_rows, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setitem(batches._layouts, model, kind)
    used = [
        positions_with_tokens(tree).flatten()
        for _, tree in tree_batches(model, PROMPTS, BRANCHES, max_rows)
    ]
    expected = 1 - torch.cat(used).double().mean().item()
    assert padding_share(model, PROMPTS, BRANCHES, max_rows) == pytest.approx(expected)


def test_plain_rows_repeat_the_prompt_and_stay_below_the_limit_too(monkeypatch):
    """A prompt of 300 tokens with 4 answers of 20: 380 positions as a tree, 1280 as plain rows."""
    model = tiny_model("llama")
    plain = dataclasses.replace(layout(tree=False), small=False)
    monkeypatch.setitem(batches._layouts, model, plain)
    prompts, answers = [[1] * 300 for _ in range(16)], [[[2] * 20] * 4 for _ in range(16)]
    sizes = [tree.ids.numel() for _, tree in tree_batches(model, prompts, answers, 64)]
    assert sum(sizes) == 16 * 4 * 320 and max(sizes) <= plain.max_positions


@pytest.mark.parametrize("forward", [False, True])
def test_a_batch_of_long_rows_stays_below_the_limit_of_positions(forward):
    """Eager attention keeps rows × heads × length² numbers: 64 rows of 500 tokens would be 5 GB."""
    model = tiny_model("llama")
    prompts, answers = [[1] * 60 for _ in range(64)], [[[2] * 20] * 2 for _ in range(64)]
    trees = [tree for _, tree in tree_batches(model, prompts, answers, 64, forward)]
    sizes = [tree.ids.numel() for tree in trees]
    assert sum(sizes) == 64 * 100
    limit = 2**12  # of a small model
    assert limit - 100 < max(sizes) <= limit


@pytest.mark.parametrize("tree_layout", [True, False])
@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_trap_3_the_ids_of_the_padding_change_nothing(family, attention, tree_layout):
    """trap 3: pads counted."""
    model = tiny_model(family, attention)
    tree = build_tree(PROMPTS, BRANCHES, layout(tree_layout, max_row=16))
    used = positions_with_tokens(tree)
    other = torch.randint(1, 23, tree.ids.shape, generator=torch.Generator().manual_seed(0))
    noisy = dataclasses.replace(tree, ids=torch.where(used, tree.ids, other))
    assert (noisy.ids != tree.ids).any()
    indices = torch.cat([tree.predictors, tree.ends])
    assert torch.equal(hidden_states(model, noisy)[indices], hidden_states(model, tree)[indices])


def test_a_branch_sees_neither_its_siblings_nor_what_follows():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS[:1], BRANCHES[:1], layout())
    before = hidden_states(model, tree)
    prompt, first = range(5), range(5, 8)  # the columns of BRANCHES[0][0]
    changed = dataclasses.replace(tree, ids=tree.ids.clone())
    changed.ids[0, 6] = 21  # its second token
    after = hidden_states(model, changed)
    moved = [i for i in range(tree.ids.numel()) if not after[i].equal(before[i])]
    assert moved == [6, 7] and moved[0] in first and not set(moved) & set(prompt)


def test_trap_20_a_boolean_4d_mask_is_silently_wrong_with_eager_attention():
    """trap 20: eager adds the mask, so True and False become 1 and 0.  Ours is additive."""
    for attention, fine in (("sdpa", True), ("eager", False)):
        model = tiny_model("llama", attention)
        tree = build_tree(PROMPTS, BRANCHES, layout())
        assert tree.mask.is_floating_point()
        boolean = dataclasses.replace(tree, mask=tree.mask == 0)
        error = (hidden_states(model, boolean)[tree.ends] - loop_end_states(model)).abs().max()
        assert (error < 1e-4) == fine and (fine or error > 0.1)


def test_a_row_within_the_window_is_what_keeps_a_local_attention_right():
    """GPT-Neo's window counts columns: a later branch would lose the prompt. `max_row` helps."""
    model = tiny_model("gpt_neo", "eager", window_size=12)
    want = loop_end_states(model)
    fits = build_tree(PROMPTS, BRANCHES, layout(max_row=12))
    assert_close(hidden_states(model, fits)[fits.ends], want, **tolerance("gpt_neo"))
    too_long = build_tree(PROMPTS, BRANCHES, layout())
    assert (hidden_states(model, too_long)[too_long.ends] - want).abs().max() > 0.01


# ---------------------------------------------------------------- batches of like length


@pytest.mark.parametrize("max_rows", [1, 3, 100])
@pytest.mark.parametrize("max_tokens", [1, 64, 300, 10**6])
def test_length_batches_are_a_partition_within_bounds(max_rows, max_tokens):
    generator = random.Random(0)
    lengths = [generator.randint(1, 80) for _ in range(60)]
    groups = length_batches(lengths, max_rows, max_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= max_rows
        assert len(group) * max(lengths[i] for i in group) <= max_tokens or len(group) == 1
    order = [lengths[i] for group in groups for i in group]
    assert order == sorted(order, reverse=True)  # memory runs out at the start or never


def test_length_batches_are_no_more_than_needed():
    assert len(length_batches([7] * 20, 8, 10**6)) == math.ceil(20 / 8)
    assert len(length_batches([7] * 20, 100, 35)) == math.ceil(20 / 5)
    assert length_batches([3, 50, 4], 8, 12) == [[1], [2, 0]]
    assert length_batches([], 8, 12) == []


@pytest.mark.parametrize("prompts, branches", [([[]], [[[1]]]), ([[1]], [[[2], []]])])
def test_an_empty_prompt_or_answer_is_an_error_not_a_shift_of_its_neighbours(prompts, branches):
    with pytest.raises(ValueError, match="at least one token"):
        build_tree(prompts, branches, layout())


def test_lists_that_do_not_belong_together_are_refused():
    """Answers without a prompt, or a prompt without answers: all later rows would be shifted."""
    model = tiny_model("llama")
    for function in (
        lambda prompts, own: list(tree_batches(model, prompts, own, 4)),
        lambda prompts, own: padding_share(model, prompts, own, 4),
        lambda prompts, own: split_trees(prompts, own, layout()),
        lambda prompts, own: encode_texts(None, prompts, own, [[]], 9),
        lambda prompts, own: encoder_outputs(None, None, prompts, own),
    ):
        with pytest.raises(ValueError, match="argument 2 is longer"):
            function([], [[[1]]])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        encode_texts(None, ["why?"], [[]], [[True]], 9)  # an end without an answer
