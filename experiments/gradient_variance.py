"""The variance of the policy gradient at a fixed policy, by baseline, from independent batches."""

import random

import torch
from torch import Tensor

from rlhf_min.maths.baselines import leave_one_out
from rlhf_min.maths.policy_losses import reinforce
from rlhf_min.maths.reward_shaping import penalise_missing_end, standardise, with_kl
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.log_probs import answer_log_probs, rollout_log_probs
from rlhf_min.models.sampling import sample


def total_variance(gradients: Tensor) -> float:
    """Trace of the covariance matrix: [n, W] gradients of n batches → sum over W weights."""
    return gradients.double().var(0).sum().item()


def squared_mean_norm(gradients: Tensor) -> float:
    """Unbiased estimate of the squared norm of the true gradient: [n, W] → number.

    The squared norm of the mean of n gradients is too large by their variance divided by n.
    """
    square = gradients.double().mean(0).square().sum().item()
    return square - total_variance(gradients) / len(gradients)


def gradient_parts(log_probs: Tensor, rewards: Tensor, weights: list, count: int) -> Tensor:
    """Gradients of `reinforce` with three advantages: R, 1, and leave-one-out: [3, W].

    log_probs [P, K] with gradient, rewards [P, K]; weights: parameters, W numbers in all.
    The gradient is linear in the advantages: with the constant baseline b it is [0] − b·[1].
    """
    parts = []
    for advantages in (rewards, torch.ones_like(rewards), leave_one_out(rewards)):
        loss = reinforce(log_probs, advantages, count)
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        parts.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(parts)


def best_constant(parts: Tensor) -> float:
    """The constant baseline of least variance, Cov(g_R, g_1)/Var(g_1): parts [n, 3, W] → number."""
    reward, one = (parts[:, i].double() - parts[:, i].double().mean(0) for i in (0, 1))
    return ((reward * one).sum() / one.square().sum()).item()


def sampled_parts(
    policy,
    reference,
    scorer,
    prompts: list,
    sampling: dict,
    scale: dict,
    kl: float,
    samples: int,
    batch_size: int,
    batches: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """`gradient_parts` of independent batches of the real policy [n, 3, W], and rewards [n, P, K].

    A batch is that of a step of train_policy.py: batch_size / samples prompts, drawn anew.
    """  # fmt: skip
    weights, P = [*policy.parameters()], batch_size // samples
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    parts, rewards = [], []
    for _ in range(batches):
        batch = rng.sample(prompts, P)
        ids, texts = [prompt.ids for prompt in batch], [prompt.prompt for prompt in batch]
        rollout = sample(policy, ids, samples, generator=generator, **sampling)
        rewards_PK = standardise(scorer.score(rollout, texts)[0], **scale)
        rewards_PK = penalise_missing_end(rewards_PK, rollout.finished, 1.0)
        ref_PK = rollout_log_probs(reference, rollout, 1.0, P)
        total = 0
        for p, tree in tree_batches(policy, rollout.prompts, rollout.answers, P):
            log_probs = answer_log_probs(policy, tree).view(-1, samples)
            rewards_PK[p] = with_kl(rewards_PK[p], log_probs.detach(), ref_PK[p], kl)
            total = total + gradient_parts(log_probs, rewards_PK[p], weights, P * samples)
        parts.append(total)
        rewards.append(rewards_PK)
    return torch.stack(parts), torch.stack(rewards)
