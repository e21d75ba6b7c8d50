"""Peak memory of the answers' log-probs, forward and backward: ours against all logits at once.

    python benchmarks/memory.py MODEL --answer-tokens 64
    python benchmarks/memory.py MODEL --grow vocabulary --vocabulary 24576

Measures both ways with 1×, 2×, 4× and 8× the answer tokens (or the setting that --grow names),
each in its own process.  With --way ours or --way naive it measures that way once.
"""

import json
import statistics
import time

import timing
import torch

from rlhf_min.hardware.device import choose_dtype
from rlhf_min.models.batches import layout_of
from rlhf_min.models.loading import load_causal_lm
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import build_tree


def naive(model, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """log π(y|x) from the logits of all positions: [rows]."""
    log_probs = model(ids, use_cache=False).logits[:, prompt - 1 : -1].float().log_softmax(-1)
    return log_probs.gather(-1, ids[:, prompt:, None])[..., 0].sum(-1)


def main() -> None:
    args = timing.arguments(
        __doc__, answer_tokens=64, prompt_tokens=64, rows=4, vocabulary=0, way="both"
    )
    if args.way == "both":
        args.grow = args.grow or "answer_tokens"
        curves = {}
        for args.way in ("ours", "naive"):
            curves[args.way] = timing.curve(args)
        print(json.dumps(vars(args) | {"factors": timing.FACTORS} | curves))
        return
    model = load_causal_lm(args.model, choose_dtype(args.dtype))
    if args.vocabulary:
        model.resize_token_embeddings(args.vocabulary, mean_resizing=False)
    ids = torch.randint(3, 250, (args.rows, args.prompt_tokens + args.answer_tokens))
    layout = layout_of(model)
    before = timing.peak_gb()

    def step() -> float:
        begin = time.perf_counter()
        if args.way == "naive":
            naive(model, ids.to(model.device), args.prompt_tokens).sum().backward()
        else:
            rows = ids.tolist()
            prompts = [row[: args.prompt_tokens] for row in rows]
            branches = [[row[args.prompt_tokens :]] for row in rows]
            answer_log_probs(model, build_tree(prompts, branches, layout)).sum().backward()
        model.zero_grad()
        return time.perf_counter() - begin

    step()
    peak = timing.peak_gb()
    seconds = statistics.median(step() for _ in range(3))
    metrics = {"step_gb": round(peak - before, 2), "step_seconds": round(seconds, 2)}
    print(json.dumps(vars(args) | metrics))


if __name__ == "__main__":
    main()
