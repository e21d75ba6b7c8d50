"""Time one policy step: sample, score, reference KL, backward, optimiser step.

    python benchmarks/policy_step.py MODEL --prompts 2 --samples 4 --answer-tokens 32

MODEL is a causal LM folder, MODEL-rm a scalar reward model (../shared/peers/make_shape.py writes
both).  The flags are those of the peer's script; answers never end, so all have the same length.
"""

from collections import Counter

import timing
import torch

import train_policy
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.maths.reward_shaping import standardise
from rlhf_min.models.loading import choose_layout, load_causal_lm, load_tokenizer
from rlhf_min.models.sampling import sample
from rlhf_min.models.scoring import RolloutScorer
from rlhf_min.policy_setup import PolicySetup
from rlhf_min.reporting.run_folder import Clock


def main() -> None:
    args = timing.arguments(
        __doc__, prompts=2, samples=4, prompt_tokens=128, answer_tokens=32, kl=0.05, micro_batch=16
    )
    if args.grow:
        return timing.report_curve(args)
    config = train_policy.Config(
        samples=args.samples, batch_size=args.prompts * args.samples, kl=args.kl, lr=1e-6,
        micro_batch=args.micro_batch,
    )  # fmt: skip
    dtype = choose_dtype(args.dtype)
    tokenizer = load_tokenizer(args.model)
    policy = load_causal_lm(args.model, dtype)
    reference = load_causal_lm(args.model, dtype).requires_grad_(False)
    scorer = RolloutScorer(args.model + "-rm", tokenizer, dtype)
    texts = timing.random_texts(args.prompts * args.steps, args.prompt_tokens)
    ids = [tokenizer(text).input_ids for text in texts]
    sampling = {"max_new_tokens": args.answer_tokens, "temperature": 1.0, "end_ids": []}
    setup = PolicySetup(
        policy, reference, tokenizer, scorer, choose_layout(policy), texts, ids, args.prompts,
        sampling, None, None, {},
    )  # fmt: skip
    learner = train_policy.Learner(setup, config)
    generator = torch.Generator(policy.device).manual_seed(0)
    parts = Counter()

    def step(number: int) -> None:
        clock = Clock()
        some = slice(number * args.prompts, (number + 1) * args.prompts)
        rollout = sample(policy, ids[some], args.samples, generator=generator, **sampling)
        assert rollout.lengths.eq(args.answer_tokens).all()
        clock("sample")
        scores, weights = scorer(rollout, texts[some])
        rewards = standardise(scores, 0.0, 1.0)
        clock("score")
        learner.update(rollout, rewards, weights, 1e-6, guard=False, clock=clock)
        if number >= 2:
            parts.update(clock.seconds)

    seconds = timing.timed(step, args.steps)
    count = max(1, args.steps - 2)
    timing.report(args, seconds, **{k: round(v / count, 3) for k, v in parts.items()})


if __name__ == "__main__":
    main()
