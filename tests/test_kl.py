"""KL estimators, value and gradient, against the enumerated divergence of two tiny policies."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_min.maths.policy_losses import reinforce
from rlhf_min.maths.reward_shaping import k1, k2, k3, with_kl

# Answers are all 9 sequences of two tokens of {0, 1, 2}; the second depends on the first.
ANSWERS = [(a, b) for a in range(3) for b in range(3)]
SCORE = torch.tensor([1.0, 3.0, 2.0, 9.0, 0.5, 4.0, 4.0, 7.0, 6.0], dtype=torch.float64)


def policy(seed):
    """Logits of the first token in row 0, of the second after each first in rows 1..3."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_probs(theta):
    """log π of the whole answer, a sum over its tokens: [9]."""
    rows = theta.log_softmax(-1)
    return torch.stack([rows[0, a] + rows[1 + a, b] for a, b in ANSWERS])


THETA, REFERENCE = policy(0), log_probs(policy(1))


def divergence(left, right):
    """KL by enumeration of log-probs [9]."""
    return (left.exp() * (left - right)).sum()


def gradient(function):
    """d function(log π) / dθ."""
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(function(log_probs(theta)), theta)[0]


def expected_loss_gradient(estimator):
    """E_{y~π} ∇ estimator(y): the samples' probabilities are not differentiated, as in training."""
    return gradient(lambda lp: (lp.exp().detach() * estimator(lp, REFERENCE)).sum())


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    lp = log_probs(THETA)
    want = sum(math.exp(p) * (p - q) for p, q in zip(lp.tolist(), REFERENCE.tolist(), strict=True))
    assert want > 0.1
    assert_close((lp.exp() * k1(lp, REFERENCE)).sum().item(), want)
    assert_close((lp.exp() * k3(lp, REFERENCE)).sum().item(), want)
    assert abs((lp.exp() * k2(lp, REFERENCE)).sum().item() - want) > 0.01


def test_estimators_equal_their_formulas():
    lp = log_probs(THETA)
    for p, q, one, two, three in zip(
        lp.tolist(),
        REFERENCE.tolist(),
        k1(lp, REFERENCE).tolist(),
        k2(lp, REFERENCE).tolist(),
        k3(lp, REFERENCE).tolist(),
        strict=True,
    ):
        u = q - p
        assert_close([one, two, three], [-u, u * u / 2, math.exp(u) - 1 - u])


def test_estimators_are_zero_where_the_policies_agree_and_k2_k3_are_never_negative():
    lp = log_probs(THETA)
    for estimator in (k1, k2, k3):
        assert torch.equal(estimator(lp, lp), torch.zeros_like(lp))
    assert (k1(lp, REFERENCE) < 0).any()
    assert (k2(lp, REFERENCE) > 0).all() and (k3(lp, REFERENCE) > 0).all()


def test_k3_keeps_its_precision_for_a_policy_that_has_hardly_moved():
    """k3 → u²/2; the textbook eᵘ − 1 − u would be rounding noise."""
    u = 1e-7
    zero = torch.zeros(1, dtype=torch.float64)
    assert_close(k3(zero, zero + u).item(), u * u / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_trap_10_k1_in_the_detached_reward_gives_the_exact_gradient(beta):
    """trap 10: value *and* gradient of E[r] − β·KL, by enumeration through the code that trains."""

    def objective(lp):
        return (lp.exp() * SCORE).sum() - beta * divergence(lp, REFERENCE)

    lp = log_probs(THETA)
    reward = with_kl(SCORE, lp, REFERENCE, beta)
    assert_close((lp.exp() * reward).sum(), objective(lp))  # the value

    def loss(lp):  # every answer once, weighted by how often it would be sampled
        return reinforce(lp, lp.exp().detach() * with_kl(SCORE, lp, REFERENCE, beta), 1)

    assert_close(-gradient(loss), gradient(objective))


def test_trap_10_k1_as_a_loss_controls_nothing():
    """trap 10: zero expected gradient, where that of the KL is not zero."""
    assert gradient(lambda lp: divergence(lp, REFERENCE)).abs().max() > 0.1
    got = expected_loss_gradient(k1)
    assert_close(got, torch.zeros_like(got), atol=1e-14, rtol=0)


def test_k2_as_a_loss_has_the_gradient_of_the_kl_on_policy():
    assert_close(expected_loss_gradient(k2), gradient(lambda lp: divergence(lp, REFERENCE)))


def test_k3_as_a_loss_has_the_gradient_of_the_forward_kl():
    forward = gradient(lambda lp: divergence(REFERENCE, lp))
    assert_close(expected_loss_gradient(k3), forward)
    assert (forward - gradient(lambda lp: divergence(lp, REFERENCE))).abs().max() > 0.01


def test_trap_10_the_kl_in_the_reward_pulls_back_to_the_start_model():
    """trap 10: a flipped sign rewards divergence.  Small steps on the reward alone, no score."""
    theta = THETA.clone().requires_grad_()
    distances = []
    for _ in range(20):
        lp = log_probs(theta)
        distances.append(divergence(lp, REFERENCE).item())
        reward = with_kl(torch.zeros(9), lp, REFERENCE, 1.0)
        step = torch.autograd.grad(reinforce(lp, lp.exp().detach() * reward, 1), theta)[0]
        theta = (theta - 0.3 * step).detach().requires_grad_()
    assert all(later < earlier for earlier, later in itertools.pairwise(distances))
    assert distances[-1] < distances[0] / 2
