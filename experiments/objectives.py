"""Other objectives for train_policy.py: ratios per token (PPO) and per answer's mean token (GSPO).

Both are −Σ min(ρA, clip(ρ, 1−ε, 1+ε)·A)/count, as `policy_losses.ppo_clip` is; they differ in ρ.
Shapes: N answer tokens of B answers; log_probs, old_log_probs [N], of every token under the policy
and under the one that sampled; owners [N], the answer of each token; advantages [B]; count: answers
of the whole step.
"""

from collections.abc import Callable
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

import train_policy
from rlhf_min.models.log_probs import token_log_probs


def token_ratio(log_probs: Tensor, old_log_probs: Tensor, owners: Tensor) -> Tensor:
    """ρ_t = π(y_t|…)/π_old(y_t|…) of every token [N] (PPO: Schulman et al. 2017)."""
    return (log_probs - old_log_probs.detach()).clamp_max(20).exp()


def mean_ratio(log_probs: Tensor, old_log_probs: Tensor, owners: Tensor) -> Tensor:
    """ρ = (π(y|x)/π_old(y|x))^(1/T) of every answer of T tokens: [B] (GSPO: Zheng et al. 2025)."""
    change = log_probs - old_log_probs.detach()
    lengths = torch.bincount(owners)
    return (change.new_zeros(len(lengths)).index_add(0, owners, change) / lengths).exp()


def clipped(ratio: Tensor, advantages: Tensor, count: int, clip: float) -> Tensor:
    """−Σ min(ρA, clip(ρ, 1−ε, 1+ε)·A)/count: ratio and advantages [n] → scalar."""
    a = advantages.detach()
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).sum() / count


def token_ppo(log_probs, old_log_probs, owners, advantages, count: int, clip: float) -> Tensor:
    """PPO with a ratio for each token, all with the advantage of their answer → scalar.

    Where all ratios are 1 its gradient is that of REINFORCE: a sum over tokens, not a mean.
    """
    ratio = token_ratio(log_probs, old_log_probs, owners)
    return clipped(ratio, advantages[owners], count, clip)


def gspo(log_probs, old_log_probs, owners, advantages, count: int, clip: float) -> Tensor:
    """GSPO: one ratio per answer, the geometric mean of its tokens' ratios → scalar.

    Where all ratios are 1 its gradient is that of REINFORCE with advantages A/T: long answers
    count less.  ε must be smaller too, by about the length T.
    """
    return clipped(mean_ratio(log_probs, old_log_probs, owners), advantages, count, clip)


# name → (loss, ratio, ε).  Zoo answers have about 18 tokens, so 0.01 is PPO's 0.2 per answer.
PER_TOKEN = {"ppo-token": (token_ppo, token_ratio, 0.2), "gspo": (gspo, mean_ratio, 0.01)}


class PerToken:
    """Log-probs and loss of an objective that needs every token, in place of train_policy.py's.

    `log_probs` is called for a micro-batch and then `loss`, so it can keep the tokens between them.
    outside: share of ratios beyond 1 ± ε, one number for every later update of a micro-batch.
    """

    def __init__(self, loss: Callable, ratio: Callable, clip: float):
        self.objective, self.ratio, self.clip = loss, ratio, clip
        self.old: dict[bytes, Tensor] = {}  # by the token ids of the micro-batch
        self.outside: list[float] = []

    def log_probs(self, model, tree, temperature: float) -> Tensor:
        """As `models.log_probs.answer_log_probs`: [B], with gradient."""
        self.tokens, self.tree = token_log_probs(model, tree, temperature), tree
        return self.tokens.new_zeros(len(tree.ends)).index_add(0, tree.owners, self.tokens)

    def loss(self, log_probs, old_log_probs, advantages, count: int) -> Tensor:
        """As the losses of `train_policy.choose_loss`: all [p, K] → scalar."""
        batch, owners = self.tree.ids.cpu().numpy().tobytes(), self.tree.owners
        if torch.equal(log_probs.detach(), old_log_probs):  # the first update of this rollout
            self.old[batch] = self.tokens.detach()
        else:
            ratio = self.ratio(self.tokens.detach(), self.old[batch], owners)
            self.outside.append(((ratio - 1).abs() > self.clip).float().mean().item())
        advantages = advantages.flatten()
        return self.objective(self.tokens, self.old[batch], owners, advantages, count, self.clip)


@contextmanager
def plugged_in(name: str):
    """Context manager: train_policy.py trains with an objective of PER_TOKEN; gives its PerToken.

    Its settings need objective="ppo-clip", which allows several updates per rollout.
    """
    own = PerToken(*PER_TOKEN[name])
    with (
        patch.object(train_policy, "choose_loss", lambda config: own.loss),
        patch.object(train_policy, "answer_log_probs", own.log_probs),
    ):
        yield own
