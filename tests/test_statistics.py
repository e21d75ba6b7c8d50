"""statistics.py against closed forms, simulation and oracles that share no code with it."""

import math
import random

import pytest
import torch

from rlhf_min.maths.statistics import (
    bootstrap_interval,
    degenerate,
    distinct_n,
    expected_calibration_error,
    length_controlled_rate,
    longest_run,
    reliability,
    share_equal,
    wilson_interval,
    win_rate,
)


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37.5, 80), (1, 1)])
def test_wilson_ends_solve_the_score_equation(wins, n):
    """By definition the ends are the p with |wins/n − p| = z·√(p(1−p)/n)."""
    low, high = wilson_interval(wins, n)
    for p in (low, high):
        assert math.isclose(
            (wins / n - p) ** 2, 1.959964**2 * p * (1 - p) / n, abs_tol=1e-12, rel_tol=1e-9
        )
    assert 0 <= low <= wins / n <= high <= 1
    assert high - low > 0


def test_wilson_matches_a_published_value():
    """Newcombe (1998), table I: 81 of 263, score method without continuity correction."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_wilson_covers_the_truth_in_95_percent_of_simulations(p):
    draw = random.Random(1)
    inside = 0
    for _ in range(2000):
        low, high = wilson_interval(sum(draw.random() < p for _ in range(40)), 40)
        inside += low <= p <= high
    assert 0.925 < inside / 2000 < 0.985


def test_wilson_refuses_impossible_counts():
    for wins, n in [(0, 0), (3, 2), (-1, 2), (math.nan, 2)]:
        with pytest.raises(ValueError, match="0 <= wins <= n"):
            wilson_interval(wins, n)


def test_bootstrap_covers_the_truth_in_95_percent_of_simulations():
    draw = random.Random(2)
    inside = 0
    for i in range(300):
        low, high = bootstrap_interval([draw.gauss(3, 2) for _ in range(50)], seed=i, resamples=300)
        inside += low <= 3 <= high
    assert 0.89 < inside / 300 < 0.985


def test_bootstrap_width_equals_the_normal_approximation():
    draw = random.Random(3)
    values = [draw.gauss(0, 1) for _ in range(1000)]
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.1)


def test_bootstrap_depends_on_its_seed_only_and_needs_a_value():
    values = [1.0, 2.0, 2.0, 5.0, 9.0]
    state = torch.get_rng_state()
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert bootstrap_interval([3.0], seed=1) == (3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_win_rate_counts_ties_half_and_refuses_other_numbers():
    assert win_rate([1, 1, 0, 0.5]) == 0.625
    for verdicts in ([], [0.7], [math.nan], [1, -1]):
        with pytest.raises(ValueError, match="a win rate needs"):
            win_rate(verdicts)


def grid_oracle(verdicts, differences, ridge=0.01):
    """The same penalised likelihood, maximised by a shrinking grid search without gradients."""
    mean = sum(differences) / len(differences)
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / len(differences))

    def loss(alpha, gamma):
        total = ridge / 2 * (alpha**2 + gamma**2)
        for y, d in zip(verdicts, differences, strict=True):
            logit = alpha + gamma * math.tanh(d / spread)
            total += math.log1p(math.exp(-abs(logit))) + max(logit, 0) - y * logit
        return total

    best, width = (0.0, 0.0), 8.0
    while width > 1e-6:
        around = [
            (best[0] + i * width, best[1] + j * width) for i in (-1, 0, 1) for j in (-1, 0, 1)
        ]
        better = min(around, key=lambda point: loss(*point))
        best, width = better, width if better != best else width / 2
    return 1 / (1 + math.exp(-best[0]))


@pytest.mark.parametrize("seed", range(8))
def test_length_controlled_rate_equals_a_grid_search(seed):
    draw = random.Random(seed)
    n = draw.choice([3, 10, 60])
    differences = [draw.gauss(draw.choice([-20, 0, 20]), 30) for _ in range(n)]
    verdicts = [draw.choice([0, 0.5, 1]) if d < 5 else draw.choice([1, 1, 0]) for d in differences]
    expected = grid_oracle(verdicts, differences)
    assert length_controlled_rate(verdicts, differences) == pytest.approx(expected, abs=1e-5)


def test_length_controlled_rate_removes_the_bias_of_a_judge_that_prefers_long_answers():
    """Equally good answers (true rate ½), b's are longer, and the judge prefers long ones."""
    draw = random.Random(11)
    differences = [draw.gauss(60, 60) for _ in range(4000)]
    p = [1 / (1 + math.exp(-2 * math.tanh(d / 60))) for d in differences]
    verdicts = [float(draw.random() < pi) for pi in p]
    assert win_rate(verdicts) > 0.72
    assert length_controlled_rate(verdicts, differences) == pytest.approx(0.5, abs=0.04)


def test_length_controlled_rate_is_symmetric_and_independent_of_the_unit():
    verdicts, differences = [1, 0.5, 0, 1, 1, 0], [30, -4, 8, 60, -12, -30]
    rate = length_controlled_rate(verdicts, differences)
    mirrored = length_controlled_rate([1 - v for v in verdicts], [-d for d in differences])
    assert mirrored == pytest.approx(1 - rate)
    assert length_controlled_rate(verdicts, [5.5 * d for d in differences]) == pytest.approx(rate)


def test_length_controlled_rate_stays_finite_where_data_are_separable():
    assert 0.99 < length_controlled_rate([1] * 500, list(range(500))) < 1
    assert length_controlled_rate([1, 1, 0, 0], [4, 3, -3, -4]) == pytest.approx(0.5)
    assert 0 < length_controlled_rate([1, 0] * 2000, [1e-3, -1e-3] * 2000) < 1


def test_length_controlled_rate_without_length_differences_is_the_win_rate():
    for differences in ([0] * 4, [7] * 4):
        assert length_controlled_rate([1, 1, 1, 0], differences) == pytest.approx(0.75, abs=0.01)


def test_calibration_error_of_calibrated_probabilities_is_small():
    draw = random.Random(21)
    probabilities = [draw.random() for _ in range(20000)]
    outcomes = [float(draw.random() < p) for p in probabilities]
    assert expected_calibration_error(probabilities, outcomes) < 0.015


def test_calibration_error_equals_a_known_miscalibration():
    probabilities = [0.9] * 100 + [0.25] * 300
    outcomes = [1] * 70 + [0] * 30 + [1] * 75 + [0] * 225
    assert expected_calibration_error(probabilities, outcomes) == pytest.approx(0.25 * 0.2)
    assert expected_calibration_error([0.0, 1.0], [1, 0]) == pytest.approx(1.0)


def test_calibration_needs_both_orders_of_a_pair():
    """The outcome of chosen first is always 1: then a calibrated model looks miscalibrated."""
    draw = random.Random(22)
    p = [0.8] * 1000
    right = [draw.random() < 0.8 for _ in p]
    p_chosen = [pi if ok else 1 - pi for pi, ok in zip(p, right, strict=True)]
    both = p_chosen + [1 - pi for pi in p_chosen], [1] * 1000 + [0] * 1000
    assert expected_calibration_error(p_chosen, [1] * 1000) > 0.3
    assert expected_calibration_error(*both) < 0.03


def test_reliability_bins_hold_every_point_once():
    probabilities = [0.0, 0.05, 0.1, 0.55, 0.999, 1.0]
    rows = reliability(probabilities, [0, 1, 0, 1, 1, 1])
    assert [count for _, _, count in rows] == [2, 1, 1, 2]
    assert rows[0] == pytest.approx((0.025, 0.5, 2))
    assert rows[-1] == pytest.approx((0.9995, 1, 2))
    for bad in ([1.2], [math.nan], []):
        with pytest.raises(ValueError, match="between 0 and 1"):
            reliability(bad, [1] * len(bad))
    with pytest.raises(ValueError, match="longer"):
        reliability([0.5], [1, 0])


@pytest.mark.parametrize("bins", [2, 5, 10])
def test_the_bins_of_reliability_end_just_below_their_upper_edge(bins):
    """A probability on an edge is in the bin above it; 1, the last edge, is in the last bin."""
    for k in range(bins + 1):
        lower, edge = k / bins - 1e-9, k / bins
        middle = (min(k, bins - 1) + 0.5) / bins  # of the bin in which the edge belongs
        assert [row[2] for row in reliability([edge, middle], [1, 0], bins)] == [2]
        if k:
            counts = [row[2] for row in reliability([lower, middle], [1, 0], bins)]
            assert counts == ([2] if k == bins else [1, 1])


def test_calibration_error_equals_a_loop_over_bins():
    draw = random.Random(23)
    probabilities = [draw.random() for _ in range(200)] + [0.0, 0.3, 0.7, 1.0]
    outcomes = [draw.choice([0, 1]) for _ in probabilities]
    for bins in (1, 4, 10):
        total = 0.0
        for b in range(bins):
            inside = [
                (p, y) for p, y in zip(probabilities, outcomes, strict=True)
                if b / bins <= p < (b + 1) / bins or (b == bins - 1 and p == 1)
            ]  # fmt: skip
            if inside:
                total += abs(sum(y - p for p, y in inside)) / len(probabilities)
        error = expected_calibration_error(probabilities, outcomes, bins)
        assert error == pytest.approx(total) and total > 0
    assert expected_calibration_error(probabilities, outcomes) == error  # ten bins by default


def test_share_equal_by_hand():
    assert share_equal(["a"] * 4) == 1.0
    assert share_equal(["a", "a", "b"]) == pytest.approx(1 / 3)
    assert share_equal(["a", "b", "c"]) == share_equal(["a"]) == share_equal([]) == 0.0


def test_distinct_n_by_hand():
    assert distinct_n([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3)
    assert distinct_n([["a", "b"], ["a", "b"]], 2) == 0.5
    assert distinct_n([[1, 2, 3], [1, 2]], 1) == pytest.approx(3 / 5)
    assert distinct_n([["a", "b"], ["b", "c"]], 1) == pytest.approx(3 / 4)
    assert distinct_n([[], ["one"]], 2) == 0.0


def longest_run_oracle(tokens, longest_unit):
    """The same by trying every start and every unit."""
    best = min(len(tokens), 1)
    for start in range(len(tokens)):
        for n in range(1, longest_unit + 1):
            unit, copies = tokens[start : start + n], 0
            while len(unit) == n and tokens[start + copies * n :][:n] == unit:
                copies += 1
            best = max(best, copies)
    return best


def test_longest_run_equals_a_naive_search():
    assert longest_run([]) == 0
    assert longest_run([5]) == 1
    assert longest_run([7, 7, 7]) == 3
    assert longest_run(["the", "cat", "the", "cat", "the", "cat", "sat"]) == 3
    draw = random.Random(31)
    for _ in range(300):
        tokens = [draw.randrange(3) for _ in range(draw.randrange(20))]
        unit = draw.randrange(1, 5)
        assert longest_run(tokens, unit) == longest_run_oracle(tokens, unit)


@pytest.mark.parametrize(
    "text",
    [
        "Fine so far" + "!" * 20,
        "well " + "ha ha " * 10,
        "It eats fish. " * 4,
        "It eats fish. It eats fish. It eats fish. It eats fish. It ea",
        "x" + "\n" * 30,
        "no no no no no no no \n\n",
        "日本" * 10,
    ],
)
def test_text_that_repeats_to_the_end_is_degenerate(text):
    assert degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The fox is red.",
        "Wait......",
        "no no no",
        "ha ha " * 10 + "and then it stopped.",
        "It eats fish. It eats fish. It sleeps.",
        " ".join(str(i) for i in range(100)),
    ],
)
def test_other_text_is_not_degenerate(text):
    assert not degenerate(text)


def test_degenerate_is_quick_on_long_texts():
    assert not degenerate("a" * 20000 + "b")
    assert not degenerate(" ".join(str(i) for i in range(5000)))


def test_each_verdict_needs_a_length_difference():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        length_controlled_rate([1, 0, 1], [5, -5])


@pytest.mark.parametrize(
    ("resamples", "low", "high"),
    [(None, 25, 974), (60, 1, 58), (41, 1, 39), (22, 1, 20), (1, 0, 0)],
)
def test_the_ends_of_a_bootstrap_are_2_5_percent_from_both_ends(resamples, low, high):
    """Means of 1 000 draws with seed 0, unless something else is asked for, by a loop."""
    values, generator, means = [1.0, 2.5, 2.5, 5.0, 9.25, 0.125], torch.Generator(), []
    generator.manual_seed(0)
    for _ in range(resamples or 1000):
        drawn = torch.randint(6, (6,), generator=generator).tolist()
        means.append(math.fsum(values[i] for i in drawn) / 6)
    found = bootstrap_interval(values, **({"resamples": resamples} if resamples else {}))
    assert found == pytest.approx((sorted(means)[low], sorted(means)[high]), abs=1e-12)


def test_wilson_ends_never_leave_0_and_1_by_rounding():
    for n in range(1, 200):
        assert wilson_interval(n, n)[1] == 1.0
        assert wilson_interval(0, n)[0] == 0.0


def test_a_win_rate_refuses_one_wrong_verdict_among_right_ones():
    with pytest.raises(ValueError, match=r"each of them 0, 0\.5 or 1"):
        win_rate([1, 0, 2])


def test_length_controlled_rate_demands_verdicts_as_a_win_rate_does():
    with pytest.raises(ValueError, match="a win rate needs"):
        length_controlled_rate([0.7, 1], [3, -3])


def test_length_controlled_rate_is_finite_for_one_verdict_and_for_many():
    """One win against a ridge of 0.01: p solves 1 − p = 0.01·logit(p)."""
    for n in (1, 100):
        p = length_controlled_rate([1] * n, [0] * n)
        assert n * (1 - p) == pytest.approx(0.01 * math.log(p / (1 - p)), rel=1e-9)


def test_the_smallest_texts_of_the_statistics_of_repetition():
    assert distinct_n([["a", "b", "a", "b", "a"]]) == 0.5  # pairs unless something else is asked
    assert distinct_n([["a", "b"]]) == 1.0
    assert share_equal(["a", "a"]) == 1.0 and share_equal(["a", "b"]) == 0.0
    assert longest_run(list("abcdefgh") * 2) == 2  # units of 8 are found, of 9 are not
    assert longest_run(list("abcdefghi") * 2) == 1
    assert degenerate("ab" * 10) and not degenerate("ab" * 9 + "a")  # 20 characters, or 19
    assert degenerate("abcdefghij" * 4) and not degenerate("abcdefghij" * 3 + "abcdefghi")


def test_reliability_has_ten_bins_unless_something_else_is_asked_for():
    probabilities = [(k + 0.5) / 110 for k in range(110)]
    assert [row[2] for row in reliability(probabilities, [1] * 110)] == [11] * 10


def test_degenerate_obeys_its_limits():
    assert degenerate("aaaa", repeats=4, characters=4) and not degenerate("aaa", 4, 3)
    assert degenerate("xaaaa", 4, 4) and not degenerate("xaaaa", 4, 5)
    assert degenerate("abab", 2, 4) and not degenerate("aba", 2, 3)
