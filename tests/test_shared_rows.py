"""Which prompt trees share a row, against enumeration and the limits of a row."""

import itertools
import random

import pytest
import torch

from rlhf_min.models.layout import Layout
from rlhf_min.models.shared_rows import SHARED_ROW, assign_rows, batch_positions, row_lengths


def layout(tree=True, max_row=10_000):
    return Layout(tree, max_row, torch.float32, torch.device("cpu"))


def positions(lengths, rows) -> int:
    """Oracle: rows by longest row."""
    sums = [
        sum(length for length, own in zip(lengths, rows, strict=True) if own == row)
        for row in set(rows)
    ]
    assert min(rows) == 0 and max(rows) == len(sums) - 1  # no row is empty
    assert row_lengths(lengths, rows) == sums
    assert batch_positions(sums) == len(sums) * max(sums)
    return len(sums) * max(sums)


@pytest.mark.parametrize("seed", range(50))
def test_rows_have_a_limit_and_never_more_padding_than_a_row_for_each(seed):
    draw = random.Random(seed)
    longest = draw.choice([10, 60, 128, 129, 500])
    max_row = draw.choice([100, 200, 10_000])
    lengths = [draw.randint(1, longest) for _ in range(draw.randint(1, 40))]
    rows = assign_rows(lengths, layout(max_row=max_row))
    alone = list(range(len(lengths)))
    assert positions(lengths, rows) <= positions(lengths, alone)
    assert max(row_lengths(lengths, rows)) <= max(max(lengths), min(SHARED_ROW, max_row))
    assert assign_rows(lengths, layout(tree=False, max_row=max_row)) == alone


def test_trees_of_one_length_stay_alone_and_short_ones_share():
    assert assign_rows([60] * 5, layout()) == [0, 1, 2, 3, 4]
    assert assign_rows([100, 30, 400, 250], layout()) == [1, 1, 0, 1]
    assert assign_rows([70, 40, 50, 60], layout()) == [0, 1, 0, 1]
    assert assign_rows([70, 40, 50, 60], layout(max_row=100)) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(10))
def test_six_trees_take_few_positions_more_than_the_best_of_all_plans(seed):
    """First fit is not always the best plan, but here at most a quarter worse."""
    lengths = [random.Random(seed + n).randint(20, 90) for n in range(6)]
    plans = [[*map(sorted(set(p)).index, p)] for p in itertools.product(range(6), repeat=6)]
    allowed = [p for p in plans if max(row_lengths(lengths, p)) <= SHARED_ROW]
    best = min(positions(lengths, p) for p in allowed)
    assert best <= positions(lengths, assign_rows(lengths, layout())) <= 1.25 * best
