"""The ratings head's mathematics, against Python loops, closed forms and known limits."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from rlhf_min.maths import ratings

R = 10


def random_logits(*shape, scale=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def probabilities(row):
    """Softmax of a list, by hand."""
    top = max(row)
    weights = [math.exp(z - top) for z in row]
    return [w / sum(weights) for w in weights]


def point_mass(rating, height=200.0):
    logits = torch.zeros(R, dtype=torch.float64)
    logits[rating - 1] = height
    return logits


def win(first, second, tie):
    return ratings.win_log_probability(first, second, tie).exp()


# ---------------------------------------------------------------- the win probability


@pytest.mark.parametrize("tie", [0.0, 0.5, 1.0])
def test_win_probability_equals_a_double_loop_over_both_ratings(tie):
    first, second = random_logits(6, R), random_logits(6, R, seed=1)
    for a, b, got in zip(first.tolist(), second.tolist(), win(first, second, tie), strict=True):
        p, q = probabilities(a), probabilities(b)
        want = 0.0
        for i in range(R):
            for j in range(R):
                if i > j:
                    want += p[i] * q[j]
                elif i == j:
                    want += tie * p[i] * q[i]
        assert_close(got.item(), want, rtol=1e-12, atol=0)


def test_win_probability_broadcasts_over_leading_axes():
    first, second = random_logits(4, 1, R), random_logits(3, R, seed=1)
    table = win(first, second, 0.5)
    assert table.shape == (4, 3)
    assert_close(table[2, 1], win(first[2, 0], second[1], 0.5))


def test_trap_5_the_higher_rating_wins():
    """trap 5: rows of the win matrix swapped (triu for tril) train the model in reverse."""
    for tie in (0.0, 0.5):
        assert_close(win(point_mass(10), point_mass(1), tie).item(), 1.0)
        assert win(point_mass(1), point_mass(10), tie).item() < 1e-60
        assert_close(win(point_mass(6), point_mass(5), tie).item(), 1.0)


@pytest.mark.parametrize("tie", [0.0, 0.5])
def test_trap_5_moving_mass_up_never_lowers_the_win_probability(tie):
    """trap 5, for whole distributions: first-order stochastic dominance."""
    p = random_logits(R).softmax(-1)
    opponents = random_logits(20, R, scale=3, seed=1)
    before = win(p.log(), opponents, tie)
    for low in range(R):
        for high in range(low + 1, R):
            moved = p.clone()
            moved[low] -= p[low] / 2
            moved[high] += p[low] / 2
            after = win(moved.log(), opponents, tie)
            assert (after >= before - 1e-14).all()
            assert after.sum() > before.sum() + 1e-6
            assert (win(opponents, moved.log(), tie) <= win(opponents, p.log(), tie) + 1e-14).all()


def test_equal_distributions_give_exactly_one_half_with_half_ties():
    logits = random_logits(50, R, scale=4)
    assert_close(win(logits, logits, 0.5), torch.full((50,), 0.5, dtype=torch.float64))


def test_equal_distributions_give_less_than_half_when_strict_and_width_pays():
    logits = random_logits(50, R, scale=4)
    strict = win(logits, logits, 0.0)
    assert_close(strict, (1 - logits.softmax(-1).square().sum(-1)) / 2)
    assert (strict < 0.5).all()
    # Flattening both distributions alike tells nothing apart, and is rewarded all the same.
    assert (win(logits / 2, logits / 2, 0.0) > strict).all()


def test_half_ties_make_the_two_directions_sum_to_one():
    first, second = random_logits(20, R), random_logits(20, R, seed=1)
    total = win(first, second, 0.5) + win(second, first, 0.5)
    assert_close(total, torch.ones(20, dtype=torch.float64))
    strict = win(first, second, 0.0) + win(second, first, 0.0)
    ties = (first.softmax(-1) * second.softmax(-1)).sum(-1)
    assert_close(strict, 1 - ties)


def test_win_probability_is_invariant_to_a_constant_added_to_the_logits():
    first, second = random_logits(5, R), random_logits(5, R, seed=1)
    assert_close(win(first + 30, second - 7, 0.5), win(first, second, 0.5))


@pytest.mark.parametrize("tie", [0.0, 0.5, 1.0])
def test_win_probability_has_the_right_gradient(tie):
    first = random_logits(3, R).requires_grad_()
    second = random_logits(3, R, seed=1).requires_grad_()
    assert gradcheck(lambda a, b: ratings.win_log_probability(a, b, tie), (first, second))


def test_win_probability_works_in_log_space():
    """δ(1) against δ(10), each with e^-1000 elsewhere: log(sum(prod)) would be log 0."""
    low = torch.tensor([1000.0] + [0.0] * 9)
    high = low.flip(0)
    # strict: 45 pairs i > j of e^-2000 each; half: the two ties of 1·e^-1000, at ½ each
    assert_close(ratings.win_log_probability(low, high, 0.0).item(), math.log(45) - 2000)
    assert_close(ratings.win_log_probability(low, high, 0.5).item(), -1000.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tie", [0.0, 0.5])
def test_extreme_logits_have_finite_values_and_gradients(dtype, tie):
    extremes = [
        [1e4] + [-1e4] * 9, [-1e4] * 9 + [1e4], [1e4] * 10, [-1e4] * 10, [0.0] * 10,
        [1e4, -1e4] * 5,
    ]  # fmt: skip
    logits = torch.tensor(extremes, dtype=dtype)
    functions = {
        "win": lambda z: ratings.win_log_probability(z[:, None], z, tie),
        "mean": ratings.mean_rating,
        "variance": ratings.rating_variance,
        "entropic": lambda z: ratings.entropic_rating(z, 0.5),
        "answer entropy": ratings.answer_entropy,
        "marginal entropy": ratings.marginal_entropy,
        "cross-entropy": lambda z: ratings.soft_label_cross_entropy(z, torch.full_like(z, 0.1)),
        "earth mover": lambda z: ratings.squared_earth_mover(z, torch.full_like(z, 0.1)),
    }
    for name, function in functions.items():
        z = logits.clone().requires_grad_()
        value = function(z)
        assert value.isfinite().all(), name
        assert torch.autograd.grad(value.sum(), z)[0].isfinite().all(), name


@pytest.mark.parametrize("tie", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 5, 10])
def test_chance_loss_is_the_loss_of_two_uniform_distributions(tie, count):
    uniform = torch.full((count,), 3.0, dtype=torch.float64)
    want = -ratings.win_log_probability(uniform, uniform, tie).item()
    assert_close(ratings.chance_loss(count, tie), want)


def test_chance_loss_is_ln_2_for_half_ties_and_more_when_strict():
    assert_close(ratings.chance_loss(10), math.log(2))
    assert_close(ratings.chance_loss(10, tie=0.0), -math.log(0.45))


# ---------------------------------------------------------------- reading a number out


def test_mean_and_variance_equal_loops():
    logits = random_logits(8, R)
    for row, mean, variance in zip(
        logits.tolist(), ratings.mean_rating(logits), ratings.rating_variance(logits), strict=True
    ):
        p = probabilities(row)
        mu = sum((k + 1) * p[k] for k in range(R))
        assert_close(mean.item(), mu)
        assert_close(variance.item(), sum(p[k] * (k + 1 - mu) ** 2 for k in range(R)))


def test_a_point_mass_reads_as_its_own_rating():
    for k in (1, 4, 10):
        assert_close(ratings.mean_rating(point_mass(k)).item(), float(k))
        assert_close(ratings.rating_variance(point_mass(k)).item(), 0.0, atol=1e-12, rtol=0)
        assert_close(ratings.entropic_rating(point_mass(k, 1e4), 0.5).item(), float(k))


@pytest.mark.parametrize("b", [0.3, 1.0, 2.0, 5.0])
def test_entropic_rating_equals_a_loop(b):
    logits = random_logits(8, R)
    for row, got in zip(logits.tolist(), ratings.entropic_rating(logits, b), strict=True):
        p = probabilities(row)
        want = -b * math.log(sum(p[k] * math.exp(-(k + 1) / b) for k in range(R)))
        assert_close(got.item(), want)


def test_entropic_rating_goes_from_the_lowest_rating_to_the_mean():
    logits = random_logits(8, R)
    mean, variance = ratings.mean_rating(logits), ratings.rating_variance(logits)
    assert_close(ratings.entropic_rating(logits, 1e6), mean, atol=1e-4, rtol=0)
    # b·log p_1 is all that is left over the lowest rating
    lowest = 1 - 0.05 * logits.log_softmax(-1)[:, 0]
    assert_close(ratings.entropic_rating(logits, 0.05), lowest, atol=1e-6, rtol=0)
    readings = torch.stack([ratings.entropic_rating(logits, b) for b in (0.05, 0.5, 2, 10, 100)])
    assert (readings.diff(dim=0) > 0).all() and (readings < mean).all()
    # μ − Var/2b up to a term in 1/b²: twice the b, a quarter of the rest
    rest = [
        ratings.entropic_rating(logits, b) - (mean - variance / (2 * b)) for b in (1000.0, 2000.0)
    ]
    assert_close(rest[0] / rest[1], torch.full((8,), 4.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_entropic_rating_prefers_the_narrower_of_two_equal_means():
    narrow = torch.tensor([0.0, 0, 0, 0.5, 0, 0.5, 0, 0, 0, 0], dtype=torch.float64).log()
    wide = torch.tensor([0.0, 0.5, 0, 0, 0, 0, 0, 0.5, 0, 0], dtype=torch.float64).log()
    assert_close(ratings.mean_rating(narrow), ratings.mean_rating(wide))
    assert ratings.entropic_rating(narrow) > ratings.entropic_rating(wide) + 0.5


def test_readings_move_by_one_when_the_distribution_moves_by_one_rating():
    logits = torch.full((R,), -1e4, dtype=torch.float64)
    logits[2:6] = random_logits(4)
    up = logits.roll(1)
    for read in (ratings.mean_rating, ratings.entropic_rating):
        assert_close((read(up) - read(logits)).item(), 1.0)
    assert_close(ratings.rating_variance(up), ratings.rating_variance(logits))


def test_confidence_weights_are_the_stated_powers_of_sigma():
    logits = random_logits(8, R)
    for i, row in enumerate(logits.tolist()):
        p = probabilities(row)
        mu = sum((k + 1) * p[k] for k in range(R))
        sigma = math.sqrt(sum(p[k] * (k + 1 - mu) ** 2 for k in range(R)))
        wanted = {
            "none": 1.0,
            "inverse-sigma": 1 / sigma,
            "inverse-variance": 1 / sigma**2,
            "inverse-one-plus-sigma": 1 / (1 + sigma),
        }
        for kind, want in wanted.items():
            assert_close(ratings.confidence_weight(logits, kind)[i].item(), want)


@pytest.mark.parametrize("kind", ["inverse-sigma", "inverse-variance", "inverse-one-plus-sigma"])
def test_confidence_weights_prefer_the_uncertain_answer_below_the_baseline(kind):
    """The flaw that the docstring states: times −1, the higher weight is the lower reward."""
    confident, uncertain = point_mass(5, height=4.0), torch.zeros(R, dtype=torch.float64)
    weight = ratings.confidence_weight(torch.stack([confident, uncertain]), kind)
    assert weight[0] > weight[1] > 0
    below_the_baseline = -1.0 * weight
    assert below_the_baseline[0] < below_the_baseline[1]


def test_confidence_weight_of_a_point_mass_is_finite_and_an_unknown_kind_is_refused():
    for kind in ("none", "inverse-sigma", "inverse-variance", "inverse-one-plus-sigma"):
        assert ratings.confidence_weight(point_mass(5, 1e4), kind).isfinite()
    with pytest.raises(ValueError, match="unknown weight 'sigma'"):
        ratings.confidence_weight(point_mass(5), "sigma")


# ---------------------------------------------------------------- regularisers


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def test_entropies_equal_loops():
    logits = random_logits(6, R)
    rows = [probabilities(row) for row in logits.tolist()]
    assert_close(ratings.answer_entropy(logits).item(), sum(map(entropy, rows)) / 6)
    marginal = [sum(row[k] for row in rows) / 6 for k in range(R)]
    assert_close(ratings.marginal_entropy(logits).item(), entropy(marginal))


def test_marginal_entropy_is_at_least_the_answers_mean_entropy():
    for seed in range(20):
        logits = random_logits(5, R, scale=3, seed=seed)
        assert ratings.marginal_entropy(logits) > ratings.answer_entropy(logits) + 1e-6
    same = random_logits(1, R).expand(5, R)
    assert_close(ratings.marginal_entropy(same), ratings.answer_entropy(same))


def test_marginal_entropy_asks_the_batch_and_not_the_answer_to_spread():
    every_rating_once = torch.stack([point_mass(k) for k in range(1, R + 1)])
    assert_close(ratings.marginal_entropy(every_rating_once).item(), math.log(R))
    assert_close(ratings.answer_entropy(every_rating_once).item(), 0.0, atol=1e-12, rtol=0)


@pytest.mark.parametrize("sign", [-1, 1])
def test_subtracted_from_a_loss_answer_entropy_rewards_spread(sign):
    """One founding report had this sign wrong: it meant to reward spread and penalised it."""
    logits = random_logits(5, R).requires_grad_()
    gradient = torch.autograd.grad(sign * ratings.answer_entropy(logits), logits)[0]
    after = ratings.answer_entropy(logits - gradient)  # one step down the loss
    assert (after > ratings.answer_entropy(logits)) == (sign == -1)


@pytest.mark.parametrize("width", [0.4, 1.0, 2.5])
def test_soft_labels_are_the_normal_mass_of_each_bin(width):
    data = [1.0, 1.4, 3.0, 5.5, 7.25, 10.0]
    labels = ratings.soft_labels(torch.tensor(data, dtype=torch.float64), R, width)
    for got, rating in zip(labels.tolist(), data, strict=True):
        mass = []
        for k in range(1, R + 1):
            above = math.erf((k + 0.5 - rating) / (width * math.sqrt(2)))
            below = math.erf((k - 0.5 - rating) / (width * math.sqrt(2)))
            mass.append((above - below) / 2)
        assert_close(got, [m / sum(mass) for m in mass])
    assert_close(labels.sum(-1), torch.ones(len(data), dtype=torch.float64))


def test_soft_labels_mirror_and_sharpen_to_the_rating():
    data = torch.tensor([1.0, 2.0, 6.5, 10.0], dtype=torch.float64)
    assert_close(ratings.soft_labels(11 - data, R, 0.7), ratings.soft_labels(data, R, 0.7).flip(-1))
    whole = torch.arange(1.0, 11.0)
    assert_close(ratings.soft_labels(whole, R, 0.05), torch.eye(R))
    between = ratings.soft_labels(torch.tensor([6.5]), R, 0.05)[0]
    assert_close(between[5:7], torch.tensor([0.5, 0.5]))


def test_soft_label_cross_entropy_equals_a_loop_and_is_least_at_the_label():
    logits = random_logits(4, R).requires_grad_()
    labels = random_logits(4, R, seed=1).softmax(-1)
    want = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        want -= sum(q * math.log(p) for p, q in zip(probabilities(row), label, strict=True)) / 4
    assert_close(ratings.soft_label_cross_entropy(logits, labels).item(), want)
    best = labels.log().requires_grad_()
    loss = ratings.soft_label_cross_entropy(best, labels)
    assert_close(torch.autograd.grad(loss, best)[0], torch.zeros_like(best), atol=1e-15, rtol=0)


def test_squared_earth_mover_equals_a_loop_and_counts_ratings_between_point_masses():
    logits, labels = random_logits(4, R), random_logits(4, R, seed=1).softmax(-1)
    want = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = probabilities(row)
        want += sum((sum(p[: k + 1]) - sum(label[: k + 1])) ** 2 for k in range(R)) / 4
    assert_close(ratings.squared_earth_mover(logits, labels).item(), want)
    assert_close(ratings.squared_earth_mover(labels.log(), labels).item(), 0.0)
    for other in (1, 4, 9):
        far = ratings.squared_earth_mover(point_mass(4)[None], point_mass(other).softmax(-1)[None])
        assert_close(far.item(), float(abs(4 - other)))


def test_roughness_is_zero_for_a_line_and_equals_a_loop():
    k = torch.arange(R, dtype=torch.float64)
    assert_close(ratings.roughness((3 - 2 * k)[None]).item(), 0.0)
    assert_close(ratings.roughness(k.square()[None]).item(), 4.0 * (R - 2))
    logits = random_logits(4, R)
    want = sum(
        (z[k + 1] - 2 * z[k] + z[k - 1]) ** 2 for z in logits.tolist() for k in range(1, R - 1)
    )
    assert_close(ratings.roughness(logits).item(), want / 4)


def test_regularisers_have_the_right_gradients():
    labels = random_logits(3, R, seed=1).softmax(-1)
    for function in (
        ratings.mean_rating,
        ratings.rating_variance,
        ratings.entropic_rating,
        ratings.answer_entropy,
        ratings.marginal_entropy,
        ratings.roughness,
        lambda z: ratings.soft_label_cross_entropy(z, labels),
        lambda z: ratings.squared_earth_mover(z, labels),
    ):
        assert gradcheck(function, random_logits(3, R).requires_grad_())


@pytest.mark.parametrize("kind", ["inverse-sigma", "inverse-variance", "inverse-one-plus-sigma"])
def test_a_point_mass_has_a_finite_weight_and_gradient(kind):
    logits = torch.tensor([0.0, 1e4, 0.0], requires_grad=True)
    weight = ratings.confidence_weight(logits, kind)
    weight.backward()
    assert 0 < weight.item() <= 100 and logits.grad.isfinite().all()


def test_a_tie_counts_one_half_unless_something_else_is_asked_for():
    """Then equal distributions win as often as they lose."""
    logits = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(ratings.win_log_probability(logits, logits).exp(), torch.full((4,), 0.5).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ratings_are_numbers_of_the_dtype_of_the_logits(dtype):
    values = ratings.rating_values(torch.zeros(2, 4, dtype=dtype))
    assert_close(values, torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype))


def test_the_defaults_are_half_a_win_for_a_tie_and_b_2():
    logits = random_logits(3, R)
    assert ratings.chance_loss(R) == pytest.approx(math.log(2))
    assert_close(ratings.entropic_rating(logits), ratings.entropic_rating(logits, 2.0))
    assert (ratings.entropic_rating(logits) - ratings.entropic_rating(logits, 4.0)).min() < -1e-3


def test_the_smallest_variance_of_a_weight_is_a_hundredth():
    """σ is at least 0.1, so no answer weighs more than 10, 100 or 1/1.1."""
    for kind, want in (
        ("inverse-sigma", 10.0), ("inverse-variance", 100.0), ("inverse-one-plus-sigma", 1 / 1.1),
    ):  # fmt: skip
        assert ratings.confidence_weight(point_mass(5), kind).item() == pytest.approx(want)


def test_an_axis_of_length_1_changes_no_loss():
    """The sums go over the last axis, the ratings, wherever it is."""
    logits, labels = random_logits(4, R), random_logits(4, R, seed=1).softmax(-1)
    for function in (
        ratings.answer_entropy,
        ratings.marginal_entropy,
        ratings.roughness,
        lambda z: ratings.soft_label_cross_entropy(z, labels.view(z.shape)),
        lambda z: ratings.squared_earth_mover(z, labels.view(z.shape)),
    ):
        assert_close(function(logits[:, None]), function(logits))


def test_a_rating_far_from_the_scale_has_a_label_too():
    """Its mass on the scale is a tail of the normal distribution; the label still sums to 1."""
    labels = ratings.soft_labels(torch.tensor([1.0, 10.0]), R, 0.01)
    assert labels.min() >= 0
    assert_close(labels, torch.eye(R)[[0, 9]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_soft_labels_have_the_shape_and_dtype_of_the_ratings(dtype):
    data = torch.tensor([[1.0, 5.5], [3.25, 10.0]], dtype=dtype)
    labels = ratings.soft_labels(data, R, 1.0)
    assert labels.shape == (2, 2, R) and labels.dtype == dtype
    assert_close(labels[1], ratings.soft_labels(data[1], R, 1.0))
    assert_close(labels[0, 1], ratings.soft_labels(data[0, 1], R, 1.0))
