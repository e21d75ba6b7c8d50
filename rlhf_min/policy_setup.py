"""Everything a policy run needs, loaded and checked before its first file is written."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from rlhf_min import InputError
from rlhf_min.data import preferences as data
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.models.loading import choose_layout, context_length, load_causal_lm, load_tokenizer
from rlhf_min.models.prompt_tree import Layout
from rlhf_min.models.scoring import RolloutScorer
from rlhf_min.models.tokens import encode_prompts, end_token_ids
from rlhf_min.reporting.evaluation import PolicyBench
from rlhf_min.zoo import world as zoo


@dataclass(frozen=True)
class PolicySetup:
    """Models, prompts (as given, and as ids), and how answers are sampled and measured."""

    policy: object
    reference: object
    tokenizer: object
    scorer: RolloutScorer
    layout: Layout
    prompts: list
    prompt_ids: list[list[int]]
    per_step: int
    sampling: dict
    bench: PolicyBench
    gold: Callable[[str, str], float] | None
    about: dict

    def reference_rewards(self, count: int, seed: int) -> Tensor:
        """Raw rewards of the reference model's answers to the first training prompts: [count]."""
        some = slice(0, count)
        bench = replace(self.bench, prompts=self.prompts[some], prompt_ids=self.prompt_ids[some])
        return bench.answers(self.reference, seed)[1]


def load_prompts(config) -> tuple[list, list]:
    """Training prompts and held-out prompts, text or messages; no prompt is in both.

    Raises InputError when a side is empty or a step needs more prompts than there are.
    """
    prompts = data.read_prompts(config.data)
    if config.eval_data or "zoo" in config.data:
        held_out = data.read_prompts(config.eval_data or ["zoo:held-out"])[: config.eval_prompts]
        seen = {data.prompt_text(prompt) for prompt in held_out}
        prompts = [p for p in prompts if data.prompt_text(p) not in seen]
    else:
        prompts, held_out = data.split_by_prompt(prompts, 0.1, config.eval_prompts, config.seed)
    if not prompts:
        raise InputError("no training prompt is left, all are held out: give other --eval-data")
    per_step = config.batch_size // config.samples
    if per_step > len(prompts):
        raise InputError(
            f"--batch-size {config.batch_size} with --samples {config.samples} asks for {per_step} "
            f"prompts a step, but --data has {len(prompts)} besides those held out: "
            f"take --batch-size {len(prompts) * config.samples} or lower"
        )
    return prompts, held_out


def set_up(config, prompts: list, held_out: list) -> PolicySetup:
    """From the settings of train_policy.py.  Raises InputError for whatever cannot work."""
    dtype = choose_dtype(config.dtype)
    tokenizer = load_tokenizer(config.model)
    policy = load_causal_lm(config.model, dtype)
    reference = load_causal_lm(config.reference or config.model, dtype).requires_grad_(False)
    scorer = RolloutScorer(
        config.reward_model, tokenizer, dtype, config.reading, config.entropic_b, config.weight
    )
    layout = choose_layout(policy)
    room = min(map(context_length, (policy, scorer.model))) - config.max_new_tokens
    prompt_ids, cut = encode_prompts(tokenizer, prompts, room)
    held_out_ids, _ = encode_prompts(tokenizer, held_out, room)
    if cut:
        print(f"{cut} of {len(prompts)} prompts lost their left end to fit {room} tokens")
    sampling = {
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "end_ids": end_token_ids(policy, tokenizer),
    }
    in_zoo = {spec.split(":")[0] for spec in config.data} == {"zoo"}
    gold = zoo.gold_rating if in_zoo else None
    bench = PolicyBench(
        reference, scorer, tokenizer, layout, held_out, held_out_ids, sampling, gold
    )
    about = {"prompts/train": len(prompts), "prompts/held_out": len(held_out), "prompts/cut": cut}
    about["fingerprint"] = data.fingerprint(prompts)
    return PolicySetup(
        policy, reference, tokenizer, scorer, layout, prompts, prompt_ids,
        config.batch_size // config.samples, sampling,
        bench, gold, about,
    )  # fmt: skip
