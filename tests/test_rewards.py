"""From score to reward: standardised rewards, the missing-end penalty, the KL inside the reward."""

import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from rlhf_min.maths import reward_shaping as rewards

SCORES = torch.tensor([[0.2, 1.9, -3.0], [7.0, 4.0, 4.5]], dtype=torch.float64)


def test_the_start_model_s_answers_get_mean_0_and_standard_deviation_1():
    values = SCORES.flatten().tolist()
    mean = sum(values) / 6
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / 6)
    standard = rewards.standardise(SCORES, mean, std)
    assert standard.shape == SCORES.shape
    assert_close(standard.mean().item(), 0.0, atol=1e-12, rtol=0)
    assert_close(standard.square().mean().item(), 1.0)
    for got, value in zip(standard.flatten().tolist(), values, strict=True):
        assert_close(got, (value - mean) / std)


def test_trap_22_two_reward_models_that_differ_by_a_scale_give_one_reward():
    """trap 22: rewards of two reward models compared as if on one scale."""

    def on_own_scale(scores, start):
        return rewards.standardise(scores, start.mean().item(), start.std().item())

    start = torch.tensor([1.0, 2.0, 4.0, 4.0], dtype=torch.float64)
    other = lambda r: 0.01 * r - 300  # noqa: E731  the same judgement in another unit
    assert_close(on_own_scale(other(SCORES), other(start)), on_own_scale(SCORES, start))
    assert (on_own_scale(SCORES, start) - SCORES).abs().max() > 0.1


@pytest.mark.parametrize("value", [0.0, 2.5, -0.1, 1e6])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_scale_of_equal_scores_is_exactly_1(value, count):
    """Then a reward keeps the reward model's unit; any other number would be invented."""
    scores = torch.full((count,), value)
    assert rewards.reward_scale(scores) == {"mean": scores[0].item(), "std": 1.0}
    assert rewards.standardise(scores, **rewards.reward_scale(scores)).tolist() == [0.0] * count


def test_the_scale_of_close_scores_is_their_own():
    scores = torch.tensor([1.0, 1.0 + 2e-6, 1.0 - 2e-6], dtype=torch.float64)
    assert rewards.reward_scale(scores)["std"] == pytest.approx(2e-6)


def test_trap_16_the_penalty_hits_exactly_the_unfinished_answers():
    """trap 16: truncated answers scored as if complete."""
    finished = torch.tensor([[True, False, True], [False, True, False]])
    got = rewards.penalise_missing_end(SCORES, finished, 2.0)
    for i in range(2):
        for k in range(3):
            lost = 0.0 if finished[i, k] else 2.0
            assert got[i, k].item() == SCORES[i, k].item() - lost
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(rewards.penalise_missing_end(SCORES, everything, 2.0), SCORES)
    assert torch.equal(rewards.penalise_missing_end(SCORES, ~everything, 2.0), SCORES - 2)


def test_with_kl_equals_a_loop():
    log_probs = torch.tensor([[-3.0, -9.5, -1.0], [-20.0, -4.0, -0.5]], dtype=torch.float64)
    reference = torch.tensor([[-5.0, -9.5, -0.5], [-10.0, -6.0, -8.5]], dtype=torch.float64)
    got = rewards.with_kl(SCORES, log_probs, reference, 0.05)
    for i in range(2):
        for k in range(3):
            divergence = log_probs[i, k].item() - reference[i, k].item()
            assert_close(got[i, k].item(), SCORES[i, k].item() - 0.05 * divergence)
    assert torch.equal(rewards.with_kl(SCORES, log_probs, log_probs, 0.05), SCORES)
    assert torch.equal(rewards.with_kl(SCORES, log_probs, reference, 0.0), SCORES)


def test_trap_10_with_kl_lowers_the_reward_of_what_the_policy_has_come_to_prefer():
    """trap 10: a flipped sign rewards divergence."""
    score, likely, unlikely = torch.tensor([1.0]), torch.tensor([-2.0]), torch.tensor([-7.0])
    assert rewards.with_kl(score, likely, unlikely, 0.1) < score
    assert rewards.with_kl(score, unlikely, likely, 0.1) > score


def test_trap_10_with_kl_carries_no_graph():
    """trap 10: a live graph would turn the KL in the reward into a loss term."""
    live = [torch.ones(3, requires_grad=True) for _ in range(3)]
    reward = rewards.with_kl(live[0] * 2, live[1] * 2, live[2] * 2, 0.1)
    assert not reward.requires_grad and reward.grad_fn is None


def test_a_standard_deviation_is_kept_from_just_above_a_millionth():
    """Two correct sides of the limit; -s, s, -s, s, 0 has the standard deviation s."""
    for std, want in ((0.9e-6, 1.0), (1e-6, 1.0), (1.1e-6, 1.1e-6)):
        scores = std * torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0], dtype=torch.float64)
        assert rewards.reward_scale(scores)["std"] == pytest.approx(want, rel=1e-9)


def test_the_scale_of_one_score_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rewards.reward_scale(torch.tensor([3.0])) == {"mean": 3.0, "std": 1.0}


def test_two_scores_have_a_scale():
    assert rewards.reward_scale(torch.tensor([1.0, 3.0]))["std"] == pytest.approx(math.sqrt(2))
