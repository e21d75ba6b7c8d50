"""Peak memory of the log-prob step, forward and backward, beside the form that keeps all logits.

    python benchmarks/memory.py MODEL --answer-tokens 64
    python benchmarks/memory.py MODEL --answer-tokens 128 --grow vocabulary --vocabulary 12288

Runs 1×, 2×, 4×, 8× the answer tokens (or the vocabulary), each in a process of its own, both ways.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import timing
import torch

from rlhf_min.loading import choose_dtype, choose_layout, load_causal_lm
from rlhf_min.log_probs import answer_log_probs
from rlhf_min.prompt_tree import build_tree


def naive(model, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """All logits, log-softmax, gather."""
    log_probs = model(ids, use_cache=False).logits[:, prompt - 1 : -1].float().log_softmax(-1)
    return log_probs.gather(-1, ids[:, prompt:, None])[..., 0].sum(-1)


def main() -> None:
    args = timing.arguments(
        __doc__,
        answer_tokens=64,
        prompt_tokens=64,
        rows=4,
        vocabulary=0,
        grow="answer_tokens",
        way="all",
    )
    if args.way == "all":
        memory, seconds = {}, {}
        for way in ("ours", "naive"):
            for factor in (1, 2, 4, 8):
                settings = {**vars(args), "way": way, args.grow: factor * vars(args)[args.grow]}
                model = settings.pop("model")
                flags = [
                    x for k, v in settings.items() for x in ("--" + k.replace("_", "-"), str(v))
                ]
                command = [sys.executable, __file__, model, *flags]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                memory.setdefault(way, []).append(found["step_gb"])
                seconds.setdefault(way, []).append(found["seconds"])
        about = {**vars(args), "factors": [1, 2, 4, 8]}
        print(json.dumps({**about, "step_gb": memory, "seconds": seconds}))
        return
    model = load_causal_lm(args.model, choose_dtype(args.dtype))
    if args.vocabulary:
        model.resize_token_embeddings(args.vocabulary, mean_resizing=False)
    ids = torch.randint(3, 250, (args.rows, args.prompt_tokens + args.answer_tokens))
    layout = choose_layout(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = statistics.median(step() for _ in range(3))
    print(json.dumps({"step_gb": round((peak - before) / 1e6, 2), "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
