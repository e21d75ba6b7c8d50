"""A reward model reads a rollout: from sampled token ids to one reward per answer."""

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.models.reward_model import Scorer, read_reward, read_weight
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.tokens import decode_answer


class RolloutScorer:
    """A trained reward model, and how its output is read, for answers of a policy with `tokenizer`.

    Where both have the same tokens and template, the sampled ids go in as they are: text that is
    decoded and encoded again can become other tokens.  Otherwise the reward model's own tokenizer
    encodes prompt and answer text.  reading, b: reward_model.read_reward; weight: read_weight.
    Raises InputError for a reading that the head cannot give.
    """

    def __init__(self, path: str, tokenizer, dtype, reading="mean", b=2.0, weight="none"):
        self.scorer = Scorer(path, dtype)
        self.model = self.scorer.model
        self.tokenizer, self.reading, self.b, self.weight = tokenizer, reading, b, weight
        if self.scorer.head == "scalar" and (reading == "entropic" or weight != "none"):
            raise InputError(
                f"--reading entropic and --weight need a distribution over ratings, but {path} "
                "gives one number: train a reward model with --head ratings"
            )
        own = self.scorer.tokenizer
        vocabulary, own_vocabulary = tokenizer.get_vocab(), own.get_vocab()
        own_vocabulary.pop("<|pad|>", None) if "<|pad|>" not in vocabulary else None
        self.same_tokens = (
            own.chat_template == tokenizer.chat_template and own_vocabulary == vocabulary
        )

    @property
    def needs_start(self) -> bool:
        """Whether rewards compare with the reference model's own answers."""
        return self.reading == "win"

    def outputs(self, rollout: Rollout, prompts: list) -> Tensor:
        """Head outputs of every answer: [P, K, labels] float32.

        prompts: those of the rollout as text or chat messages, for a model with other tokens.
        """
        ids, branches = rollout.prompts, rollout.answers
        if not self.same_tokens:
            ids, branches = [], []
            for prompt, answers, finished in zip(
                prompts, rollout.answers, rollout.finished.tolist(), strict=True
            ):
                texts = [decode_answer(self.tokenizer, answer) for answer in answers]
                coded = [
                    self.scorer.encode(prompt, text, end)
                    for text, end in zip(texts, finished, strict=True)
                ]
                ids.append(min((c[0] for c in coded), key=len))  # the cut that suits every answer
                branches.append([c[1] for c in coded])
        outputs = self.scorer.outputs(ids, branches)
        return outputs.view(len(prompts), len(rollout.answers[0]), -1)

    def __call__(self, rollout: Rollout, prompts: list, start: Rollout | None = None):
        """Rewards in the reading's own unit and weights of the advantage: [P, K], [P, K].

        start: one answer of the reference model per prompt, for the reading "win".
        """
        outputs = self.outputs(rollout, prompts)
        against = self.outputs(start, prompts) if self.needs_start else None
        rewards = read_reward(outputs, self.reading, self.b, against)
        return rewards, read_weight(outputs, self.weight)


def ruler_of(rewards: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the reference model's rewards [...]: the unit of reward."""
    rewards = rewards.double()
    std = rewards.std().item() if rewards.numel() > 1 else 0.0
    # Equal answers set no unit: then the reward keeps its own.
    return {"mean": rewards.mean().item(), "std": std if std > 1e-6 else 1.0}


def alignment_gap(rollout: Rollout, log_probs: Tensor) -> float:
    """Mean |Δ log π| per token of the sampler to the re-forwarded answers, log_probs [P, K]."""
    gap = (log_probs.cpu() - rollout.log_probs).abs() / rollout.lengths
    return gap.mean().item()


def check_alignment(gap: float, dtype: torch.dtype) -> None:
    """Raise InputError when the gap is more than rounding (0.001 nat, 0.05 in bfloat16).

    Then the gradient would belong to another distribution than the one sampled: top-k or a
    penalty on, a mask or a position wrong, dropout.
    """
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.001
    if not gap <= tolerance:
        raise InputError(
            f"the sampler's log-probs and the re-forwarded ones differ by {gap:.3g} nat per token "
            f"(rounding explains {tolerance:g}), so the gradient would be wrong: this model does "
            "not compute the same with and without its cache; try --dtype float32 or another model"
        )
