"""A trained reward model applied to sampled answers: one score per answer, without gradient."""

from torch import Tensor

from rlhf_min.hardware.finite import check_finite
from rlhf_min.maths.ratings import confidence_weight
from rlhf_min.models.answers import answer_texts, encode_texts
from rlhf_min.models.encoder import encoder_outputs, is_encoder
from rlhf_min.models.layout import context_length
from rlhf_min.models.loading import load_tokenizer
from rlhf_min.models.reward_model import all_outputs, load_reward_model, reward_from
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.tokens import decode_answer, same_tokens

BROKEN = "its weights are broken or overflow on this text: train it again, or try --dtype float32"


class RewardScorer:
    """A trained reward model (folder or hub id) with its tokenizer.

    policy_tokenizer: of the model whose rollouts are scored; reading, b: how outputs become scores
    (`reward_from`); weight: `confidence_weight`.  Raises InputError when the head cannot give them.
    """

    def __init__(self, path, dtype, policy_tokenizer=None, reading="mean", b=2.0, weight="none"):
        self.model = load_reward_model(path, dtype, reading == "entropic" or weight != "none")
        self.encoder = is_encoder(self.model)
        self.tokenizer = load_tokenizer(path, not self.encoder, self.model)
        self.policy_tokenizer = policy_tokenizer or self.tokenizer
        self.context = context_length(self.model)
        self.same_tokens = not self.encoder and same_tokens(self.policy_tokenizer, self.tokenizer)
        self.reading, self.b, self.weight = reading, b, weight
        self.needs_reference = reading == "win"  # rewards compare with the reference's answers

    def score(self, rollout: Rollout, prompts: list, reference: Rollout | None = None):
        """Scores and advantage weights of a rollout: [P, K], [P, K].

        prompts [P]: text or messages; reference: the reference's answers, if `needs_reference`.
        """
        outputs = self.rollout_outputs(rollout, prompts)
        others = self.rollout_outputs(reference, prompts) if self.needs_reference else None
        scores = reward_from(outputs, self.reading, self.b, others)
        return scores, confidence_weight(outputs, self.weight)

    def rollout_outputs(self, rollout: Rollout, prompts: list) -> Tensor:
        """Head outputs of every answer of a rollout: [P, K, labels] float32.

        The sampled ids are scored.  With another tokenizer, or an id without an embedding, the
        answers are decoded and encoded again.  Raises NonFiniteError, with the answer.
        """
        known = self.model.get_input_embeddings().num_embeddings
        if self.same_tokens and all(i < known for own in rollout.answers for a in own for i in a):
            outputs = all_outputs(self.model, rollout.prompts, rollout.answers)
        else:
            texts, ends = answer_texts(self.policy_tokenizer, rollout), rollout.finished.tolist()
            outputs = self.text_outputs(prompts, texts, ends)
        outputs = outputs.view(*rollout.finished.shape, -1)
        text_of = lambda p, k: decode_answer(self.policy_tokenizer, rollout.answers[p][k])  # noqa: E731
        check_finite("the reward model's output", outputs, BROKEN, text_of=text_of)
        return outputs

    def text_outputs(self, prompts: list, texts: list[list[str]], ends: list[list[bool]]) -> Tensor:
        """Head outputs of answer texts, arguments as `encode_texts`: [B, labels] float32."""
        if self.encoder:
            return encoder_outputs(self.model, self.tokenizer, prompts, texts)
        ids = encode_texts(self.tokenizer, prompts, texts, ends, self.context)
        return all_outputs(self.model, *ids)
