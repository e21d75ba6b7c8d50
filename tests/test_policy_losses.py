"""Policy objectives, against loops, and invariant to how a step is cut into micro-batches."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_min.maths.policy_losses import clip_fraction, ppo_clip, reinforce

B, T, V = 8, 5, 4


def answers():
    """A toy policy: logits [B, T, V], sampled tokens, lengths 1..5, advantages."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(B, T, V, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(V, (B, T), generator=generator)
    lengths = torch.tensor([1, 5, 3, 2, 5, 4, 1, 2])
    return theta, tokens, lengths, torch.randn(B, generator=generator, dtype=torch.float64)


def sequence_log_probs(theta, tokens, lengths):
    picked = theta.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return torch.where(torch.arange(T) < lengths[:, None], picked, 0.0).sum(-1)


def test_reinforce_equals_a_loop_over_answers_and_tokens():
    theta, tokens, lengths, advantage = answers()
    gradient = torch.autograd.grad(
        reinforce(sequence_log_probs(theta, tokens, lengths), advantage, B), theta
    )[0]
    # d log softmax(z)[y] / dz_v = [v = y] − p_v, for every counted token and nothing else
    for b in range(B):
        for t in range(T):
            weights = [math.exp(z) for z in theta[b, t].tolist()]
            for v in range(V):
                step = float(v == tokens[b, t]) - weights[v] / sum(weights)
                want = -advantage[b].item() * step / B if t < lengths[b] else 0.0
                assert_close(gradient[b, t, v].item(), want, atol=1e-14, rtol=1e-10)


def test_reinforce_raises_the_probability_of_a_good_answer_and_lowers_that_of_a_bad_one():
    log_probs = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss = reinforce(log_probs, torch.tensor([2.0, -3.0]), 2)
    assert_close(loss.item(), -(2.0 * -1 + -3.0 * -1) / 2)
    assert torch.autograd.grad(loss, log_probs)[0].tolist() == [-1.0, 1.5]


@pytest.mark.parametrize("objective", ["reinforce", "ppo"])
def test_trap_9_the_gradient_does_not_depend_on_the_micro_batch(objective):
    """trap 9: a mean over micro-batches instead of one global count."""
    theta, tokens, lengths, advantage = answers()
    old = sequence_log_probs(theta, tokens, lengths).detach() - 0.3 * advantage  # some clipped

    def gradient(cuts):
        total = torch.zeros_like(theta)
        for part in torch.arange(B).split(cuts):
            log_probs = sequence_log_probs(theta, tokens, lengths)[part]
            if objective == "reinforce":
                loss = reinforce(log_probs, advantage[part], B)
            else:
                loss = ppo_clip(log_probs, old[part], advantage[part], B)
            total += torch.autograd.grad(loss, theta)[0]
        return total

    whole = gradient(8)
    assert whole.abs().max() > 1e-3
    for cuts in (1, 2, [3, 1, 4]):
        assert_close(gradient(cuts), whole, atol=1e-10, rtol=0)


def test_trap_9_an_answer_counts_once_however_long_it_is():
    """trap 9: token mean instead of sequence sum is a length bias."""
    log_probs = torch.tensor([-2.0, -90.0], requires_grad=True)  # a short and a long answer
    gradient = torch.autograd.grad(reinforce(log_probs, torch.ones(2), 2), log_probs)[0]
    assert gradient.tolist() == [-0.5, -0.5]


def test_no_gradient_flows_into_advantages_or_old_log_probs():
    log_probs, old, advantage = (torch.randn(4, requires_grad=True) for _ in range(3))
    reinforce(log_probs, advantage, 4).backward()
    ppo_clip(log_probs, old, advantage, 4).backward()
    assert advantage.grad is None and old.grad is None and log_probs.grad is not None


def test_ppo_has_the_gradient_of_reinforce_where_the_policy_has_not_moved():
    theta, tokens, lengths, advantage = answers()
    log_probs = sequence_log_probs(theta, tokens, lengths)
    ours = torch.autograd.grad(ppo_clip(log_probs, log_probs.detach(), advantage, B), theta)[0]
    log_probs = sequence_log_probs(theta, tokens, lengths)
    assert_close(ours, torch.autograd.grad(reinforce(log_probs, advantage, B), theta)[0])


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_ppo_equals_a_loop_for_both_signs_on_all_sides_of_the_clip(clip):
    """The gradient vanishes only where the answer has already moved far the way it should go."""
    sides, signs = [0.5, 0.9, 1.0 + clip / 2, 1.15, 2.0], [1.5, -1.5]
    cases = [(ratio, a) for ratio in sides for a in signs]
    old = torch.full((len(cases),), -7.0, dtype=torch.float64)
    log_probs = old + torch.tensor([ratio for ratio, _ in cases], dtype=torch.float64).log()
    log_probs.requires_grad_()
    advantage = torch.tensor([a for _, a in cases], dtype=torch.float64)
    loss = ppo_clip(log_probs, old, advantage, 3, clip)
    gradient = torch.autograd.grad(loss, log_probs)[0]
    want = 0.0
    for (ratio, a), got in zip(cases, gradient.tolist(), strict=True):
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        want -= min(ratio * a, clipped * a) / 3
        stopped = ratio > 1 + clip if a > 0 else ratio < 1 - clip
        assert_close(got, 0.0 if stopped else -ratio * a / 3)
    assert_close(loss.item(), want)


def test_clip_fraction_counts_the_ratios_outside_the_clip():
    ratios = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0, 1.0])
    old = torch.full((8,), -5.0)
    log_probs = (old + ratios.log()).requires_grad_()
    share = clip_fraction(log_probs, old)
    assert share.item() == 4 / 8 and not share.requires_grad
    assert clip_fraction(log_probs, old, clip=0.6).item() == 1 / 8
    assert clip_fraction(old, old).item() == 0


def test_an_answer_far_more_likely_than_before_has_no_gradient_rather_than_nan():
    log_probs = torch.tensor([0.0, 0.0], requires_grad=True)
    ppo_clip(log_probs, torch.tensor([-100.0, 0.0]), torch.ones(2), 2).backward()
    assert log_probs.grad.tolist() == [0.0, -0.5]


def test_epsilon_is_0_2_by_default_as_in_the_paper():
    log_probs = torch.tensor([[0.0, 0.25, 0.3]], dtype=torch.float64)
    old, advantages = torch.zeros_like(log_probs), torch.ones_like(log_probs)
    default = ppo_clip(log_probs, old, advantages, 3)
    assert default == ppo_clip(log_probs, old, advantages, 3, clip=0.2)
    assert default != ppo_clip(log_probs, old, advantages, 3, clip=0.4)
    assert clip_fraction(log_probs, old).item() == pytest.approx(2 / 3)


def test_the_log_ratio_of_ppo_is_limited_to_20():
    """Above it the gradient is 0; below it an answer that became likelier and worse is pushed."""
    for log_ratio, moves in ((19.9, True), (20.1, False)):
        log_probs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
        ppo_clip(log_probs, torch.zeros(1), -torch.ones(1), 1).backward()
        want = math.exp(log_ratio) if moves else 0.0
        assert log_probs.grad.item() == pytest.approx(want)


def test_a_ratio_exactly_at_the_clip_is_not_outside():
    """A ratio of 0 lies exactly at 1 − ε for ε = 1."""
    log_probs = torch.tensor([-math.inf, math.log(3.0)])
    assert clip_fraction(log_probs, torch.zeros(2), clip=1.0).item() == 1 / 2
