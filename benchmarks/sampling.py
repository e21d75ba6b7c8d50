"""Time our sampling and `model.generate` on the same prompts, alternating in one process.

    python benchmarks/sampling.py MODEL --rows 8 --prompt-tokens 128 --answer-tokens 32
    python benchmarks/sampling.py MODEL --rows 64 --answer-tokens 128 --uneven 1

A random model never ends an answer.  With --uneven 1 every answer gets a length drawn from a
geometric distribution, the same length on both sides, and it ends there.
"""

import statistics
import time
from unittest import mock

import timing
import torch
from transformers import StoppingCriteria

import rlhf_min.models.sampling as ours
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.models.loading import load_causal_lm, load_tokenizer


class FixedLengths(StoppingCriteria):
    """Makes `generate` end each row when its length is reached."""

    def __init__(self, lengths: torch.Tensor, prompt: int):
        self.lengths, self.prompt = lengths, prompt

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] - self.prompt >= self.lengths


def main() -> None:
    args = timing.arguments(
        __doc__, rows=8, samples=4, prompt_tokens=128, answer_tokens=32, uneven=0
    )
    if args.grow:
        return timing.report_curve(args)
    tokenizer = load_tokenizer(args.model)
    model = load_causal_lm(args.model, choose_dtype(args.dtype))
    attention = {"ours": model.config._attn_implementation, "generate": "sdpa"}
    texts = timing.random_texts(args.rows // args.samples, args.prompt_tokens)
    prompts = [tokenizer(text).input_ids for text in texts]
    lengths = torch.full((args.rows,), args.answer_tokens)
    if args.uneven:
        draws = torch.distributions.Geometric(4 / args.answer_tokens).sample((args.rows,))
        lengths = (draws.long() + 1).clamp_max(args.answer_tokens)
    lengths = lengths.to(model.device)
    end_id = tokenizer.eos_token_id

    def our_sampling() -> int:
        """Our sampler, with a `draw` that returns the end token at the row's given length."""
        real, state = ours.draw, {"t": 0, "rows": torch.arange(args.rows, device=model.device)}

        def draw(probabilities, generator):
            if len(probabilities) < len(state["rows"]):  # finished rows were dropped
                state["rows"] = state["rows"][lengths[state["rows"]] > state["t"]]
            state["t"] += 1
            token = real(probabilities, generator)
            token = torch.where(token == end_id, end_id + 1, token)  # no other end
            return torch.where(lengths[state["rows"]] <= state["t"], end_id, token)

        with mock.patch.object(ours, "draw", draw):
            rollout = ours.sample(model, prompts, args.samples, args.answer_tokens, [end_id])
        return sum(len(answer) for answers in rollout.answers for answer in answers)

    def generate() -> int:
        ids = torch.tensor(prompts, device=model.device).repeat_interleave(args.samples, 0)
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=args.answer_tokens,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=[FixedLengths(lengths, args.prompt_tokens)],
        )
        return int(lengths.sum())

    seconds = {"ours": [], "generate": []}
    for _ in range(args.steps):
        for name, run in (("ours", our_sampling), ("generate", generate)):
            model.config._attn_implementation = attention[name]
            begin = time.perf_counter()
            tokens = run()
            assert tokens == int(lengths.sum()), (name, tokens)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: round(statistics.median(times[1:]), 3) for name, times in seconds.items()}
    ratio = round(medians["generate"] / medians["ours"], 2)
    timing.report(args, seconds["ours"], tokens=int(lengths.sum()), medians=medians, ratio=ratio)


if __name__ == "__main__":
    main()
