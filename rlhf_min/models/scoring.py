"""A trained reward model applied to sampled answers: one reward per answer, without gradient."""

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.hardware.finite import check_finite
from rlhf_min.maths.ratings import confidence_weight
from rlhf_min.models.answers import answer_texts, encode_texts
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.layout import context_length
from rlhf_min.models.loading import load_tokenizer
from rlhf_min.models.reward_model import branch_outputs, load_reward_model, reward_from
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.tokens import decode_answer, same_tokens

BROKEN = "its weights are broken or overflow on this text: train it again, or try --dtype float32"


class RewardScorer:
    """A trained reward model (folder or hub id) with its tokenizer.

    policy_tokenizer: of the model whose rollouts are scored; reading, b: how outputs become rewards
    (`reward_from`); weight: `confidence_weight`.  Raises InputError when the head cannot give them.
    """

    def __init__(self, path, dtype, policy_tokenizer=None, reading="mean", b=2.0, weight="none"):
        self.model, self.tokenizer = load_reward_model(path, dtype), load_tokenizer(path)
        self.policy_tokenizer = policy_tokenizer or self.tokenizer
        self.context = context_length(self.model)
        self.same_tokens = same_tokens(self.policy_tokenizer, self.tokenizer)
        self.reading, self.b, self.weight = reading, b, weight
        self.needs_reference = reading == "win"  # rewards compare with the reference's answers
        if self.model.config.num_labels == 1 and (reading == "entropic" or weight != "none"):
            raise InputError(
                f"--reading entropic and --weight need a distribution over ratings, but {path} "
                "gives one number: train a reward model with --head ratings"
            )

    def score(self, rollout: Rollout, prompts: list, reference: Rollout | None = None):
        """Rewards and advantage weights of a rollout: [P, K], [P, K].

        prompts [P]: text or messages; reference: the reference's answers, if `needs_reference`.
        """
        outputs = self.rollout_outputs(rollout, prompts)
        against = self.rollout_outputs(reference, prompts) if self.needs_reference else None
        rewards = reward_from(outputs, self.reading, self.b, against)
        return rewards, confidence_weight(outputs, self.weight)

    def rollout_outputs(self, rollout: Rollout, prompts: list) -> Tensor:
        """Head outputs of every answer of a rollout: [P, K, labels] float32.

        Answers are encoded again only for other tokens: text may become other ids than sampled.
        Raises NonFiniteError, with the answer.
        """
        ids, branches = rollout.prompts, rollout.answers
        if not self.same_tokens:
            texts, ends = answer_texts(self.policy_tokenizer, rollout), rollout.finished.tolist()
            ids, branches = encode_texts(self.tokenizer, prompts, texts, ends, self.context)
        outputs = self.outputs(ids, branches).view(*rollout.finished.shape, -1)
        text_of = lambda p, k: decode_answer(self.policy_tokenizer, rollout.answers[p][k])  # noqa: E731
        check_finite("the reward model's output", outputs, BROKEN, text_of=text_of)
        return outputs

    @torch.no_grad()
    def outputs(self, prompts: list[list[int]], branches: list[list[list[int]]]) -> Tensor:
        """Head outputs of each prompt's branches, all in token ids: [B, labels] float32."""
        results = {}  # by prompt
        for p, tree in tree_batches(self.model, prompts, branches, 64, 2**14):
            counts = [len(branches[i]) for i in p]
            results |= zip(p, branch_outputs(self.model, tree).split(counts), strict=True)
        return torch.cat([results[i] for i in range(len(prompts))])
