"""Baselines: unbiased by enumeration, and a loop beside (a *missing* one is unbiased too)."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from rlhf_min.maths import baselines
from rlhf_min.maths.baselines import Baseline, ExponentialAverage, MovingAverage
from rlhf_min.maths.policy_losses import reinforce

THETA = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)  # logits of a 3-token policy
REWARD = torch.tensor([4.0, 7.0, 9.5], dtype=torch.float64)  # of each token, on a 1..10 scale
EARLIER = torch.tensor([[5.0, 8.5], [2.0, 6.5]], dtype=torch.float64)  # an earlier batch


def exact_gradient():
    """d/dθ of Σ_y π(y)·R(y)."""
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad((theta.softmax(-1) * REWARD).sum(), theta)[0]


def expected_gradient(advantages, samples):
    """The mean of −∇ reinforce over every possible group of `samples` tokens; [1, K] → [1, K]."""
    theta = THETA.clone().requires_grad_()
    total = torch.zeros_like(theta)
    for group in itertools.product(range(3), repeat=samples):
        log_probs = theta.log_softmax(-1)[list(group)]
        loss = reinforce(log_probs, advantages(REWARD[list(group)][None])[0], samples)
        probability = log_probs.sum().exp().detach()
        total -= probability * torch.autograd.grad(loss, theta)[0]
    return total


def running(baseline):
    return lambda rewards: baseline.advantages(rewards)


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_leave_one_out_has_the_exact_gradient_in_expectation(samples):
    assert_close(expected_gradient(baselines.leave_one_out, samples), exact_gradient())


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize(
    "baseline",
    [
        MovingAverage(start=3.0),
        MovingAverage(start=3.0).updated(EARLIER),
        ExponentialAverage(value=3.0),
        ExponentialAverage(value=3.0, decay=0.8).updated(EARLIER),
        Baseline(),
    ],
    ids=["moving-start", "moving", "exponential-start", "exponential", "none"],
)
def test_running_baselines_have_the_exact_gradient_in_expectation(baseline, samples):
    assert_close(expected_gradient(running(baseline), samples), exact_gradient())


@pytest.mark.parametrize("samples", [2, 3])
def test_trap_8_a_baseline_that_holds_its_own_batch_shrinks_the_gradient(samples):
    """trap 8: what goes wrong, so that the tests above are known to be able to fail."""
    shrunk = expected_gradient(lambda r: r - r.mean(-1, keepdim=True), samples)
    assert_close(shrunk, (1 - 1 / samples) * exact_gradient())


def test_baselines_lower_the_variance_of_the_gradient():
    def second_moment(advantages):
        theta, total = THETA.clone().requires_grad_(), 0.0
        for group in itertools.product(range(3), repeat=2):
            log_probs = theta.log_softmax(-1)[list(group)]
            loss = reinforce(log_probs, advantages(REWARD[list(group)][None])[0], 2)
            gradient = torch.autograd.grad(loss, theta)[0]
            total += log_probs.sum().exp().item() * gradient.square().sum().item()
        return total

    none = second_moment(running(Baseline()))
    assert second_moment(baselines.leave_one_out) < none / 2
    assert second_moment(running(MovingAverage(start=3.0).updated(EARLIER))) < none / 2


# ---------------------------------------------------------------- leave-one-out


@pytest.mark.parametrize("k", [2, 3, 8])
def test_leave_one_out_equals_a_loop_over_the_siblings(k):
    rewards = torch.randn(4, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = baselines.leave_one_out(rewards)
    for p in range(4):
        for i in range(k):
            siblings = [rewards[p, j].item() for j in range(k) if j != i]
            assert_close(got[p, i].item(), rewards[p, i].item() - sum(siblings) / (k - 1))
    assert_close(got, k / (k - 1) * (rewards - rewards.mean(-1, keepdim=True)))


def test_leave_one_out_never_mixes_prompts_and_ignores_a_constant_per_prompt():
    rewards = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    per_prompt = torch.tensor([[10.0], [-200.0], [0.5]], dtype=torch.float64)
    shifted = baselines.leave_one_out(rewards + per_prompt)
    assert_close(shifted, baselines.leave_one_out(rewards), atol=1e-12, rtol=1e-12)
    assert_close(shifted.sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_leave_one_out_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2 answers per prompt, got 1"):
        baselines.leave_one_out(torch.ones(5, 1))


# ---------------------------------------------------------------- running averages


def test_moving_average_is_the_mean_of_all_earlier_rewards():
    generator = torch.Generator().manual_seed(0)
    baseline, earlier = MovingAverage(start=5.5), []
    for size in (4, 1, 7, 4):  # batches of unequal size: one reward, one vote
        rewards = torch.randn(size, 2, generator=generator, dtype=torch.float64)
        expected = sum(earlier) / len(earlier) if earlier else 5.5
        assert_close(baseline.value, expected)
        for got, reward in zip(
            baseline.advantages(rewards).flatten().tolist(),
            rewards.flatten().tolist(),
            strict=True,
        ):
            assert_close(got, reward - expected)
        baseline = baseline.updated(rewards)
        earlier += rewards.flatten().tolist()


def test_exponential_average_equals_a_loop():
    baseline, expected = ExponentialAverage(value=5.5, decay=0.7), 5.5
    for rewards in ([1.0, 2.0], [9.0], [4.0, 4.0, 7.0]):
        assert_close(baseline.value, expected)
        baseline = baseline.updated(torch.tensor(rewards))
        expected = 0.7 * expected + 0.3 * sum(rewards) / len(rewards)
    assert_close(baseline.value, expected)


@pytest.mark.parametrize("kind", [MovingAverage(start=5.0), ExponentialAverage(5.0), Baseline()])
def test_trap_8_a_reward_in_the_batch_does_not_move_its_neighbours_advantages(kind):
    """trap 8: the baseline includes its own batch."""
    for baseline in (kind, kind.updated(EARLIER)):
        calm = baseline.advantages(torch.tensor([[6.0, 6.0]]))
        wild = baseline.advantages(torch.tensor([[6.0, 99.0]]))
        assert calm[0, 0] == wild[0, 0]
        # and using it does not change it: only `updated` does, and into a new object
        assert baseline.advantages(torch.tensor([[6.0, 6.0]])).equal(calm)


def test_trap_8_the_start_value_stands_in_until_the_first_update():
    """trap 8: started at 0 on a 1..10 scale, every sample of the first steps is pushed up."""
    first = torch.tensor([[5.0, 8.0]])
    for baseline in (MovingAverage(start=6.0), ExponentialAverage(value=6.0)):
        assert baseline.advantages(first).tolist() == [[-1.0, 2.0]]
    assert MovingAverage(start=6.0).updated(first).value == 6.5  # the start has no vote
    assert_close(ExponentialAverage(6.0, 0.9).updated(first).value, 6.05)


def test_trap_8_the_average_does_not_depend_on_how_a_batch_is_cut():
    """trap 8: differs by rank; the cumulative mean may be fed in parts of any size."""
    rewards = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = MovingAverage().updated(rewards)
    parts = MovingAverage()
    for part in rewards.split([1, 5, 2]):
        parts = parts.updated(part)
    assert whole.count == parts.count == 16
    assert_close(whole.value, parts.value)


def test_a_running_average_is_a_plain_number_in_double_precision():
    """Rewards may be bfloat16: a sum kept in that dtype would stand still after a few hundred."""
    baseline = MovingAverage()
    for _ in range(50):
        baseline = baseline.updated(torch.full((101,), 3.0, dtype=torch.bfloat16))
    assert isinstance(baseline.value, float) and baseline.value == 3.0
    assert isinstance(ExponentialAverage().updated(torch.ones(3, requires_grad=True)).value, float)


def test_no_baseline_is_zero_for_ever():
    baseline = Baseline().updated(EARLIER)
    assert baseline.value == 0 and baseline.advantages(EARLIER).equal(EARLIER)


def test_advantages_keep_the_dtype_of_the_rewards():
    for dtype in (torch.float32, torch.float64):
        assert MovingAverage(start=1.0).advantages(EARLIER.to(dtype)).dtype == dtype


def test_averages_start_at_0_and_decay_by_a_tenth_unless_something_else_is_asked_for():
    assert MovingAverage().value == ExponentialAverage().value == 0.0
    assert ExponentialAverage().updated(torch.tensor([5.0])).value == pytest.approx(0.5)


def test_leave_one_out_takes_one_prompt_or_many():
    """The last axis holds the answers to one prompt, whatever axes are before it."""
    rewards = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    whole = baselines.leave_one_out(rewards)
    assert_close(whole[1, 0], baselines.leave_one_out(rewards[1, 0]))
    assert_close(whole[2], baselines.leave_one_out(rewards[2]))


def test_the_exponential_average_of_bfloat16_rewards_is_computed_in_double_precision():
    rewards = torch.tensor([1.0, 2.0, 2.0], dtype=torch.bfloat16)
    assert ExponentialAverage(decay=0.0).updated(rewards).value == 5 / 3
