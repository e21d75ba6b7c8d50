"""Time reward-model steps on pairs of fixed length, or on the first pairs of a file.

python benchmarks/reward_step.py MODEL --pairs 4 --prompt-tokens 128 --answer-tokens 64
python benchmarks/reward_step.py MODEL --data pairs.jsonl.gz --rows 128 --max-length 1024
"""

import random

import timing

from rlhf_min.data.preferences import EncodedPair, encode_pairs, read_pairs
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.hardware.optimiser import MasterAdamW
from rlhf_min.maths.preference_losses import bradley_terry
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.loading import load_tokenizer
from rlhf_min.models.reward_model import branch_outputs, load_reward_model
from rlhf_min.models.shared_rows import tree_length


def fixed_pairs(args, tokenizer) -> list[EncodedPair]:
    """Pairs of random tokens, all of the same length, enough for all steps."""
    rng = random.Random(0)
    draw = lambda count: [rng.randrange(3, 250) for _ in range(count)]  # noqa: E731
    answer = lambda: [*draw(args.answer_tokens - 1), tokenizer.eos_token_id]  # noqa: E731
    return [
        EncodedPair(draw(args.prompt_tokens), [answer(), answer()], (0.0, 0.0), None)
        for _ in range(args.pairs * args.steps)
    ]


def main() -> None:
    args = timing.arguments(
        __doc__, pairs=4, prompt_tokens=128, answer_tokens=64, data="", rows=128, max_length=1024,
        micro_batch=16,
    )  # fmt: skip
    if args.grow:
        return timing.report_curve(args)
    tokenizer = load_tokenizer(args.model)
    model = load_reward_model(args.model + "-rm", choose_dtype(args.dtype))
    optimiser = MasterAdamW(model)
    if args.data:
        first = read_pairs([args.data])[0][: args.rows]
        pairs, dropped = encode_pairs(tokenizer, first, args.max_length, "--data")
        args.steps = -(-len(pairs) // args.pairs)
    else:
        pairs, dropped = fixed_pairs(args, tokenizer), {}

    def step(number: int) -> None:
        batch = pairs[number * args.pairs : (number + 1) * args.pairs]
        prompts, answers = [pair.prompt for pair in batch], [pair.answers for pair in batch]
        for rows, tree in tree_batches(model, prompts, answers, args.micro_batch):
            chosen, rejected = branch_outputs(model, tree).view(len(rows), 2).unbind(1)
            (bradley_terry(chosen, rejected) * len(rows) / len(batch)).backward()
        optimiser.step(1e-5, 1.0)

    seconds = timing.timed(step, args.steps)
    tokens = sum(tree_length(pair.prompt, pair.answers) for pair in pairs)
    timing.report(
        args, seconds, total_seconds=round(sum(seconds), 2), tokens=tokens, dropped=dropped
    )


if __name__ == "__main__":
    main()
