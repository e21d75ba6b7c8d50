"""Several reward models as one scorer: their standardised scores are combined into one."""

from functools import partial

import torch

from rlhf_min import InputError
from rlhf_min.maths import ensembles
from rlhf_min.maths.reward_shaping import standardise
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.scoring import RewardScorer


def member_paths(reward_model: str | list[str]) -> list[str]:
    """The folders or hub ids that --reward-model gives."""
    return [reward_model] if isinstance(reward_model, str) else reward_model


def check_ensemble(config) -> None:
    """Raise InputError where the settings of train_policy.py about an ensemble do not fit."""
    count = len(member_paths(config.reward_model))
    if count < 2:
        if config.ensemble != "mean":
            raise InputError(
                f"--ensemble {config.ensemble} needs two or more folders behind --reward-model, "
                f"got {count}"
            )
    elif config.weight != "none":
        raise InputError(
            f"--weight {config.weight} is for one reward model, but --reward-model gives {count}: "
            "leave it out, or let their disagreement count by --ensemble uncertainty"
        )
    elif config.reward_function and not config.function_weight:
        raise InputError(
            f"--reward-function alone uses none of the {count} folders of --reward-model: leave "
            "them out, or add the function to their reward by --function-weight"
        )


class EnsembleScorer:
    """Reward models whose scores are standardised, each by its own scale, and then combined.

    members: at least one; ensemble: "mean", "min" or "uncertainty", with its weight.
    scales: mean and std of each member's scores of the reference's answers, which the run sets
    before the first score; spread [P, K]: standard deviation across members in the last score.
    """

    def __init__(self, members: list[RewardScorer], ensemble: str, weight: float):
        self.members, self.scales, self.spread = members, [], None
        self.combine = {
            "mean": ensembles.mean,
            "min": ensembles.minimum,
            "uncertainty": partial(ensembles.uncertainty_weighted, weight=weight),
        }[ensemble]
        self.policy_tokenizer = members[0].policy_tokenizer
        self.context = min(member.context for member in members)
        self.needs_reference = members[0].needs_reference

    def score(self, rollout: Rollout, prompts: list, reference: Rollout | None = None):
        """Combined scores, standardised, and advantage weights, all 1: [P, K], [P, K].

        Arguments as of `RewardScorer.score`.
        """
        per_member = [member.score(rollout, prompts, reference)[0] for member in self.members]
        pairs = zip(per_member, self.scales, strict=True)
        scores = torch.stack([standardise(scores, **scale) for scores, scale in pairs])  # [M, P, K]
        self.spread = ensembles.spread(scores)
        combined = self.combine(scores)
        return combined, torch.ones_like(combined)


def ensemble_in(scorer) -> EnsembleScorer | None:
    """The EnsembleScorer that a scorer is or, for a FunctionScorer, contains; else None."""
    scorer = getattr(scorer, "beside", None) or scorer
    return scorer if isinstance(scorer, EnsembleScorer) else None


def restore_scales(scorer, state: dict) -> dict:
    """Give an ensemble the scales of its members in a run's state; returns all scales of the run.

    state: reward_scale, and for an ensemble member_scales.
    """
    scales = {"reward_scale": state["reward_scale"]}
    if ensemble := ensemble_in(scorer):
        scales["member_scales"] = ensemble.scales = state["member_scales"]
    return scales
