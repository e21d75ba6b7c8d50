"""Train a policy against a reward model: REINFORCE with a baseline, the answer as one action.

    python train_policy.py                              # the zoo, from nothing
    python train_policy.py --kl 0 --out runs/hacked     # watch the reward model being hacked
    python train_policy.py --baseline leave-one-out --objective ppo-clip --updates 2 --out runs/ppo

Left out on purpose: a value network, token-level rewards, several GPUs, a sampling server.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import train_rm
from rlhf_min import InputError, command_line, data, report, zoo
from rlhf_min.baselines import (
    ExponentialAverage,
    MovingAverage,
    NoBaseline,
    advantages,
    leave_one_out,
)
from rlhf_min.batches import batch_indices
from rlhf_min.checkpoints import (
    drop_checkpoint,
    interruptible,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from rlhf_min.command_line import option
from rlhf_min.evaluation import PolicyBench, answer_texts, rollout_metrics, show, side_by_side
from rlhf_min.kl import k1
from rlhf_min.loading import (
    choose_dtype,
    choose_layout,
    context_length,
    encode_prompts,
    end_token_ids,
    load_causal_lm,
    load_tokenizer,
)
from rlhf_min.log_probs import answer_log_probs
from rlhf_min.optimiser import MasterAdamW, warm_up
from rlhf_min.policy_losses import clip_fraction, ppo_clip, reinforce
from rlhf_min.prompt_tree import build_tree, length_batches
from rlhf_min.rewards import penalise_missing_end, standardise, with_kl
from rlhf_min.run_log import Clock, RunLog, check_folder
from rlhf_min.sampling import sample
from rlhf_min.scoring import RolloutScorer, alignment_gap, check_alignment, ruler_of

MICRO_TOKENS = 2**15  # slots of one forward and backward pass at most, prompts and answers


@dataclass(frozen=True)
class Config:
    """Train a policy against a reward model."""

    model: str = option("runs/zoo-base", "language model to start from: folder or hub id")
    reward_model: str = option("runs/rm", "trained reward model: folder or hub id")
    reference: str = option("", "model that KL is measured to (nothing: --model itself)")
    data: list[str] = option(["zoo"], "prompts: zoo, files, or hub ids (id:split); concatenated")
    eval_data: list[str] = option([], "held-out prompts (nothing: the zoo's, or a split)")
    out: str = option("runs/policy", "folder of the run")
    objective: Literal["reinforce", "ppo-clip"] = option("reinforce", "loss of an update")
    baseline: Literal["moving-average", "ema", "leave-one-out", "none"] = option(
        "moving-average", "what is subtracted from the reward"
    )
    samples: int = option(4, "answers per prompt")
    batch_size: int = option(64, "answers per step")
    steps: int = option(100, "rollouts")
    updates: int = option(1, "updates per rollout (ppo-clip)")
    kl: float = option(0.25, "weight of KL to the reference: reward units per nat", "--beta")
    lr: float = option(5e-4, "learning rate", "--learning-rate")
    warm_up: int = option(5, "steps with a rising learning rate")
    max_grad_norm: float = option(1.0, "gradients with a larger norm are scaled down to it")
    max_new_tokens: int = option(64, "tokens of an answer, at most")
    temperature: float = option(1.0, "of the sampling distribution")
    missing_end_penalty: float = option(1.0, "reward units taken from answers that did not end")
    reading: Literal["mean", "entropic", "win"] = option(
        "mean", "how ratings become a reward (win, against the reference's answer: any head)"
    )
    entropic_b: float = option(2.0, "scale of the entropic reading, in ratings")
    weight: Literal["none", "inverse-sigma", "inverse-variance", "inverse-one-plus-sigma"] = option(
        "none", "factor of the advantage from the ratings' spread"
    )
    ema_decay: float = option(0.9, "decay of --baseline ema")
    clip: float = option(0.2, "epsilon of ppo-clip")
    micro_batch: int = option(16, "prompts (rows of a tree) per forward and backward, at most")
    gradient_checkpointing: bool = option(False, "less memory, about a third more time")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "what the models compute in")
    seed: int = option(0, "of prompts' order and sampling")
    eval_prompts: int = option(256, "held-out prompts at most")
    eval_every: int = option(0, "steps between held-out evaluations (0: before and after only)")
    ruler_prompts: int = option(256, "prompts whose reference answers set the unit of reward")
    save_every: int = option(50, "steps between checkpoints")
    resume: bool = option(False, "go on with the interrupted run in --out")
    overwrite: bool = option(False, "replace the run in --out")


def check(config: Config) -> None:
    """Settings that cannot work, each in one sentence."""
    if config.samples < 1 or config.batch_size < 1 or config.micro_batch < 1 or config.steps < 1:
        raise InputError("--samples, --batch-size, --micro-batch and --steps must be at least 1")
    if config.batch_size % config.samples:
        raise InputError(
            f"--batch-size {config.batch_size} is not divisible by --samples {config.samples}: "
            f"take {config.batch_size // config.samples * config.samples or config.samples}"
        )
    if config.baseline == "leave-one-out" and config.samples < 2:
        raise InputError("--baseline leave-one-out needs --samples 2 or more, got 1")
    if config.objective == "reinforce" and config.updates != 1:
        raise InputError("--updates above 1 needs --objective ppo-clip: REINFORCE is on-policy")
    if config.temperature <= 0 or config.max_new_tokens < 1 or config.updates < 1:
        raise InputError("--temperature must be above 0, --max-new-tokens and --updates at least 1")
    check_folder(config.out, config, config.resume, config.overwrite)


def load_prompts(config: Config) -> tuple[list, list]:
    """Training prompts and held-out prompts, text or messages; no prompt is in both."""
    prompts = data.read_prompts(config.data)
    if config.eval_data or "zoo" in config.data:
        held_out = data.read_prompts(config.eval_data or ["zoo:held-out"])[: config.eval_prompts]
        seen = {data.prompt_text(prompt) for prompt in held_out}
        return [p for p in prompts if data.prompt_text(p) not in seen], held_out
    return data.split_by_prompt(prompts, 0.1, config.eval_prompts, config.seed)


def build_missing(config: Config) -> None:
    """With the default places, build what is not there yet, and say so."""
    if not Path(config.model).exists() and config.model == Config.model:
        print(f"{config.model} is missing: building the zoo's start model first")
        zoo.build_base(config.model)
    if not Path(config.reward_model).exists() and config.reward_model == Config.reward_model:
        print(f"{config.reward_model} is missing: training a reward model on the zoo first")
        train_rm.main(train_rm.Config(model=config.model, out=config.reward_model))


def main(config: Config) -> dict:
    """Train, evaluate before and after, save; returns the summary."""
    check(config)
    prompts, held_out = load_prompts(config)
    build_missing(config)
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
    if cut:
        print(f"{cut} of {len(prompts)} prompts lost their left end to fit {room} tokens")
    per_step = config.batch_size // config.samples
    if per_step > len(prompts):
        raise InputError(
            f"--batch-size {config.batch_size} with --samples {config.samples} asks for {per_step} "
            f"prompts a step, but --data has {len(prompts)}: lower the one or raise the other"
        )
    sampling = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    sampling["end_ids"] = end_token_ids(policy, tokenizer)
    in_zoo = {spec.split(":")[0] for spec in config.data} == {"zoo"}
    gold = zoo.gold_rating if in_zoo else None
    held_out_ids, _ = encode_prompts(tokenizer, held_out, room)
    bench = PolicyBench(
        reference, scorer, tokenizer, layout, held_out, held_out_ids, sampling, gold
    )

    torch.manual_seed(config.seed)
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()  # dropout is 0; checkpointing works in training mode only
    optimiser = MasterAdamW(policy)
    baseline = {  # 0 is the reference model's mean reward on the ruler
        "moving-average": MovingAverage(start=0.0),
        "ema": ExponentialAverage(value=0.0, decay=config.ema_decay),
        "leave-one-out": NoBaseline(),
        "none": NoBaseline(),
    }[config.baseline]
    state = load_checkpoint(config.out) if config.resume else None
    if state:
        policy.load_state_dict(state["policy"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        baseline = replace(baseline, **state["baseline"])
    else:
        some = slice(0, config.ruler_prompts)
        on_train = replace(bench, prompts=prompts[some], prompt_ids=prompt_ids[some])
        before, samples_before = bench.measure(policy)
        ruler = ruler_of(on_train.answers(reference, config.seed)[1])
        state = {"step": 0, "ruler": ruler, "before": before, "samples": samples_before}
    kept = {name: state[name] for name in ("ruler", "before", "samples")}
    about = {"prompts/train": len(prompts), "prompts/held_out": len(held_out), "prompts/cut": cut}
    about |= {"ruler": kept["ruler"], "fingerprint": data.fingerprint(prompts)}
    log = RunLog(config.out, "train_policy.py", config, about, state["step"], config.overwrite)

    first = state["step"]
    with interruptible() as stop:
        for step in (bar := tqdm(range(first, config.steps), initial=first, total=config.steps)):
            clock = Clock()
            at = batch_indices(len(prompts), per_step, step, config.seed)
            batch, ids = [prompts[i] for i in at], [prompt_ids[i] for i in at]

            # Sample, and score.  No gradient, no graph: π is re-forwarded below.
            rollout = sample(policy, ids, config.samples, generator=generator, **sampling)
            start = None
            if scorer.needs_start:
                start = sample(reference, ids, 1, generator=generator, **sampling)
            clock("sample")
            scores, weights = scorer(rollout, batch, start)
            rewards = standardise(scores, **kept["ruler"])
            finished = rollout.finished.to(rewards.device)
            rewards = penalise_missing_end(rewards, finished, config.missing_end_penalty)
            clock("score")

            # Update.  A row of the tree holds a prompt with all its samples.
            log_probs_old, log_probs_new, kl, a = (torch.zeros_like(rewards) for _ in range(4))
            for update in range(config.updates):
                for rows in length_batches(rollout.row_lengths, config.micro_batch, MICRO_TOKENS):
                    answers = [rollout.answers[p] for p in rows]
                    tree = build_tree([ids[p] for p in rows], answers, layout)
                    log_probs = answer_log_probs(policy, tree, config.temperature)
                    log_probs = log_probs.view(len(rows), config.samples)
                    clock("policy")
                    if update == 0:  # advantages are fixed before the rollout's first update
                        log_probs_old[rows] = log_probs.detach()
                        with torch.no_grad():
                            ref = answer_log_probs(reference, tree, config.temperature)
                        clock("reference")
                        ref = ref.view_as(log_probs)
                        kl[rows] = k1(log_probs.detach(), ref)
                        rewards[rows] = with_kl(rewards[rows], log_probs, ref, config.kl)
                        if config.baseline == "leave-one-out":
                            a[rows] = leave_one_out(rewards[rows]) * weights[rows]
                        else:
                            a[rows] = advantages(rewards[rows], baseline) * weights[rows]
                    if config.objective == "reinforce":
                        loss = reinforce(log_probs, a[rows], rewards.numel())
                    else:
                        old = log_probs_old[rows]
                        loss = ppo_clip(log_probs, old, a[rows], rewards.numel(), config.clip)
                    loss.backward()
                    log_probs_new[rows] = log_probs.detach()
                    clock("policy")
                gap = alignment_gap(rollout, log_probs_old)
                if step == first and update == 0:
                    check_alignment(gap, dtype)
                rate = config.lr * warm_up(step, config.warm_up)
                norm = optimiser.step(rate, config.max_grad_norm)
                clock("policy")
            used = baseline.value
            baseline = baseline.updated(rewards)

            row = {"reward/mean": scores.mean().item(), "reward/with_kl": rewards.mean().item()}
            if gold:
                texts = answer_texts(tokenizer, rollout)
                golds = [gold(p, t) for p, ts in zip(batch, texts, strict=True) for t in ts]
                row["reward/gold"] = sum(golds) / len(golds)
            row |= {"kl/mean": kl.mean().item(), "baseline/value": used, "alignment/gap": gap}
            row |= {"advantage/mean": a.mean().item(), "advantage/std": a.std().item()}
            clipped = clip_fraction(log_probs_new, log_probs_old, config.clip)
            row |= {"clip/fraction": clipped.item(), "grad/norm": norm}
            row |= {"learning_rate": rate, **rollout_metrics(rollout), **clock.seconds}
            if config.eval_every and (step + 1) % config.eval_every == 0:
                row |= {f"held_out/{k}": v for k, v in bench.measure(policy)[0].items()}
            log.log(step + 1, row)
            shown = {"reward": row["reward/mean"], "kl": row["kl/mean"]}
            shown |= {"gold": row["reward/gold"]} if gold else {}
            bar.set_postfix({k: f"{v:.2f}" for k, v in shown.items()})
            if stop() or (step + 1) % config.save_every == 0:
                save_checkpoint(config.out, {
                    **kept, "step": step + 1, "policy": policy.state_dict(),
                    "optimiser": optimiser.state_dict(), "generator": generator.get_state(),
                    "baseline": asdict(baseline),
                })  # fmt: skip
            if stop():
                raise KeyboardInterrupt

    save_model(policy, tokenizer, config.out)
    after, samples_after = bench.measure(policy)
    samples = side_by_side(kept["samples"], samples_after)
    log.write_rows("samples.jsonl", samples)
    summary = {"before": kept["before"], "after": after, "steps": config.steps}
    log.finish(summary)
    drop_checkpoint(config.out)
    report.write_report(Path(config.out))
    show(summary, samples)
    return summary


if __name__ == "__main__":
    command_line.run(main, Config)
