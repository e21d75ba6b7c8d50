"""Time policy steps: sample, score, reference log-probs, backward, optimiser step.

    python benchmarks/policy_step.py MODEL --prompts 2 --samples 4 --answer-tokens 32

MODEL is the folder of a causal language model, MODEL-rm that of a scalar reward model
(../shared/peers/make_shape.py writes both).  The flags are those of the TRL script.  Answers never
end, so all have the same length.
"""

from collections import Counter

import timing

import train_policy
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.models.loading import load_policy, load_tokenizer
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import EncodedPrompt


class StepTimes:
    """Stands in for RunLog: collects the seconds of each step and of its parts; saves nothing."""

    def __init__(self, answer_tokens: int):
        self.answer_tokens, self.seconds, self.parts = answer_tokens, [], Counter()
        self.under_way: dict = {}
        self.begin = timing.now()

    def log(self, step: int, metrics: dict, bar) -> None:
        self.seconds.append(timing.now() - self.begin)
        assert metrics["length/mean"] == self.answer_tokens
        if step > 2:
            self.parts.update({k: v for k, v in metrics.items() if k.startswith("time/")})
        self.begin = timing.now()

    def checkpoint_due(self, step: int) -> bool:
        return False


def main() -> None:
    args = timing.arguments(
        __doc__, prompts=2, samples=4, prompt_tokens=128, answer_tokens=32, kl=0.05, micro_batch=16,
        lora_rank=0, gradient_checkpointing=0,
    )  # fmt: skip
    if args.grow:
        return timing.report_curve(args)
    config = train_policy.Config(
        samples=args.samples, batch_size=args.prompts * args.samples, kl=args.kl, lr=1e-6,
        micro_batch=args.micro_batch, steps=args.steps, data=["random texts"], model=args.model,
        lora_rank=args.lora_rank, gradient_checkpointing=bool(args.gradient_checkpointing),
    )  # fmt: skip
    dtype = choose_dtype(args.dtype)
    tokenizer = load_tokenizer(args.model)
    policy, reference = load_policy(config, dtype, tokenizer)
    scorer = RewardScorer(args.model + "-rm", dtype, tokenizer)
    texts = timing.random_texts(args.prompts * args.steps, args.prompt_tokens)
    prompts = [EncodedPrompt(text, tokenizer(text).input_ids) for text in texts]
    sampling = {"max_new_tokens": args.answer_tokens, "temperature": 1.0, "end_ids": []}
    log = StepTimes(args.answer_tokens)
    state = {"step": 0, "reward_scale": {"mean": 0.0, "std": 1.0}}
    state["before"] = dict.fromkeys(("reward/mean", "finished/rate", "kl/mean"), 0.0)
    train_policy.train(config, policy, reference, scorer, prompts, sampling, None, log, state)
    count = max(1, args.steps - 2)
    timing.report(args, log.seconds, **{k: round(v / count, 3) for k, v in log.parts.items()})


if __name__ == "__main__":
    main()
