"""Pair losses, against Python loops, and the invariances they must have."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_min.maths import preference_losses as losses
from rlhf_min.maths import ratings


def random(*shape, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


CHOSEN, REJECTED = random(7), random(7, seed=1)


@pytest.mark.parametrize("margin", [0.0, 0.8, random(7, seed=2).abs()], ids=["0", "0.8", "each"])
def test_bradley_terry_equals_a_loop(margin):
    margins = margin.tolist() if torch.is_tensor(margin) else [margin] * 7
    want = 0.0
    for w, r, m in zip(CHOSEN.tolist(), REJECTED.tolist(), margins, strict=True):
        want += math.log(1 + math.exp(-(w - r - m))) / 7
    assert_close(losses.bradley_terry(CHOSEN, REJECTED, margin).item(), want, rtol=1e-12, atol=0)


def test_bradley_terry_is_invariant_to_a_constant_and_ln_2_at_a_tie():
    plain = losses.bradley_terry(CHOSEN, REJECTED)
    assert_close(losses.bradley_terry(CHOSEN + 50, REJECTED + 50), plain)
    assert_close(losses.bradley_terry(CHOSEN, CHOSEN).item(), math.log(2))


def test_bradley_terry_pushes_chosen_up_and_rejected_down_by_the_probability_of_the_error():
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    up, down = torch.autograd.grad(losses.bradley_terry(chosen, rejected), (chosen, rejected))
    error = torch.tensor([1 / (1 + math.exp(d)) for d in (CHOSEN - REJECTED).tolist()]).double() / 7
    assert_close(up, -error, atol=1e-7, rtol=1e-6)
    assert_close(down, -up)


def test_a_margin_asks_for_more():
    plain = losses.bradley_terry(CHOSEN, REJECTED)
    assert losses.bradley_terry(CHOSEN, REJECTED, 1.0) > plain
    # as if the chosen reward were lower by the margin
    assert_close(
        losses.bradley_terry(CHOSEN, REJECTED, 1.0), losses.bradley_terry(CHOSEN - 1, REJECTED)
    )


def test_bradley_terry_is_finite_at_extreme_rewards():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = losses.bradley_terry(chosen, -chosen.detach())
    assert_close(loss.item(), 1e4)  # (0 + 2e4) / 2
    assert torch.autograd.grad(loss, chosen)[0].isfinite().all()


def test_centring_penalty_is_zero_exactly_when_the_pair_is_centred():
    want = sum((w + r) ** 2 for w, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)) / 7
    assert_close(losses.centring_penalty(CHOSEN, REJECTED).item(), want)
    assert losses.centring_penalty(CHOSEN, -CHOSEN).item() == 0


def test_centring_penalty_pulls_only_the_constant_that_bradley_terry_leaves_free():
    constant = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def shifted(function):
        return torch.autograd.grad(function(CHOSEN + constant, REJECTED + constant), constant)[0]

    assert_close(shifted(losses.bradley_terry).item(), 0.0, atol=1e-15, rtol=0)
    middle = ((CHOSEN + REJECTED) / 2 + 3.0).mean().item()
    assert middle > 0 and shifted(losses.centring_penalty).item() > 0
    assert_close(shifted(losses.centring_penalty).item(), 8 * middle)
    # moving the two rewards apart costs nothing
    assert_close(
        losses.centring_penalty(CHOSEN + 5, REJECTED - 5), losses.centring_penalty(CHOSEN, REJECTED)
    )


def test_batch_sum_penalty_of_micro_batches_has_the_value_and_gradient_of_the_whole_step():
    """The oracle is autograd of the square, over all seven pairs."""
    both = [x.clone().requires_grad_() for x in (CHOSEN, REJECTED)]
    whole = ((both[0].sum() + both[1].sum()) / 7) ** 2
    want = torch.autograd.grad(whole, both)
    mean = sum(w + r for w, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)) / 7
    for sizes in ((7,), (3, 4), (1, 1, 5)):
        parts = zip(*(x.split(sizes) for x in both), strict=True)
        losses_ = [losses.batch_sum_penalty(w, r, mean) * len(w) / 7 for w, r in parts]
        assert_close(sum(losses_), whole, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(torch.autograd.grad(sum(losses_), both), want, strict=True):
            assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_centring_is_the_batch_sum_and_the_variance_of_pairs():
    sums = [w + r for w, r in zip(CHOSEN.tolist(), REJECTED.tolist(), strict=True)]
    mean = sum(sums) / 7
    variance = sum((s - mean) ** 2 for s in sums) / 7
    batch_sum = losses.batch_sum_penalty(CHOSEN, REJECTED, mean)
    assert_close(losses.centring_penalty(CHOSEN, REJECTED).item(), batch_sum.item() + variance)


def test_rating_margin_grows_with_the_gap_and_is_zero_for_a_contradicted_label():
    chosen, rejected = torch.tensor([9.0, 5.0, 2.0]), torch.tensor([4.0, 5.0, 8.0])
    assert losses.rating_margin(chosen, rejected, 0.5).tolist() == [2.5, 0.0, 0.0]


@pytest.mark.parametrize("tie", [0.0, 0.5])
def test_ratings_win_loss_equals_a_double_loop(tie):
    chosen, rejected = random(4, 10), random(4, 10, seed=1)
    want = 0.0
    for w, r in zip(chosen.exp().tolist(), rejected.exp().tolist(), strict=True):
        win = sum(
            w[i] * r[j] * (1.0 if i > j else tie) for i in range(10) for j in range(i + 1)
        ) / (sum(w) * sum(r))
        want -= math.log(win) / 4
    assert_close(losses.ratings_win_loss(chosen, rejected, tie).item(), want)


def test_ratings_win_loss_of_a_model_that_knows_nothing_is_the_chance_loss():
    flat = torch.zeros(6, 10, dtype=torch.float64)
    assert_close(losses.ratings_win_loss(flat, flat).item(), math.log(2))
    assert_close(losses.ratings_win_loss(flat, flat, tie=0.0).item(), ratings.chance_loss(10, 0.0))


@pytest.mark.parametrize("tie", [0.0, 0.5])
def test_trap_5_one_step_down_the_loss_rates_the_chosen_answer_higher(tie):
    """trap 5: a swapped win matrix trains the reward model in reverse."""
    chosen, rejected = random(1, 10).requires_grad_(), random(1, 10, seed=1).requires_grad_()
    loss = losses.ratings_win_loss(chosen, rejected, tie)
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    # uphill for chosen is a *downhill* gradient at the top rating and an uphill one at the bottom
    assert up[0, -1] < 0 < up[0, 0] and down[0, 0] < 0 < down[0, -1]
    gap = ratings.mean_rating(chosen) - ratings.mean_rating(rejected)
    moved = ratings.mean_rating(chosen - up) - ratings.mean_rating(rejected - down)
    assert moved > gap + 1e-3


def test_no_margin_and_half_ties_unless_something_else_is_asked_for():
    default = losses.bradley_terry(CHOSEN, REJECTED)
    assert default == losses.bradley_terry(CHOSEN, REJECTED, 0.0)
    first, second = random(4, 10), random(4, 10, seed=1)
    default = losses.ratings_win_loss(first, second)
    assert default == losses.ratings_win_loss(first, second, 0.5)


def test_a_small_gap_of_ratings_gives_a_small_margin():
    chosen, rejected = torch.tensor([5.25, 5.0]), torch.tensor([5.0, 5.25])
    assert losses.rating_margin(chosen, rejected, 2.0).tolist() == [0.5, 0.0]
