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
from torch import Tensor
from tqdm import tqdm

import train_rm
from rlhf_min import InputError, command_line
from rlhf_min.command_line import option
from rlhf_min.data.order import batch_indices
from rlhf_min.hardware.optimiser import MasterAdamW, warm_up
from rlhf_min.maths import baselines, policy_losses
from rlhf_min.maths import reward_shaping as kl
from rlhf_min.maths import reward_shaping as shaping
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import build_tree, length_batches
from rlhf_min.models.sampling import sample
from rlhf_min.models.scoring import alignment_gap, check_alignment, ruler_of
from rlhf_min.policy_setup import PolicySetup, load_prompts, set_up
from rlhf_min.reporting import report
from rlhf_min.reporting.checkpoints import (
    drop_checkpoint,
    interruptible,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from rlhf_min.reporting.evaluation import gold_ratings, rollout_metrics, show, side_by_side
from rlhf_min.reporting.run_folder import (
    Clock,
    RunLog,
    check_folder,
    check_unfinished,
    is_unfinished,
)
from rlhf_min.zoo import start_model

BASELINES = {  # they start at 0, the reference model's mean reward on the ruler
    "moving-average": lambda config: baselines.MovingAverage(start=0.0),
    "ema": lambda config: baselines.ExponentialAverage(value=0.0, decay=config.ema_decay),
    "leave-one-out": lambda config: baselines.NoBaseline(),
    "none": lambda config: baselines.NoBaseline(),
}


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
    kl: float = option(0.2, "weight of KL to the reference: reward units per nat", "--beta")
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
    track: Literal["none", "tensorboard", "wandb"] = option(
        "none", "live tracking beside the files"
    )
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
    if config.lr <= 0 or config.kl < 0 or config.entropic_b <= 0:
        raise InputError("--lr and --entropic-b must be above 0, --kl at least 0")
    if not 0 <= config.ema_decay < 1 or config.save_every < 1:
        raise InputError("--ema-decay must be in [0, 1), --save-every at least 1")
    if config.eval_prompts < 1 or config.ruler_prompts < 2:
        raise InputError("--eval-prompts must be at least 1, --ruler-prompts at least 2")
    if config.temperature <= 0 or config.max_new_tokens < 1 or config.updates < 1:
        raise InputError("--temperature must be above 0, --max-new-tokens and --updates at least 1")
    for flag in ("model", "reward_model", "reference"):
        place = getattr(config, flag)
        if place != Config.reward_model and is_unfinished(place):
            raise InputError(
                f"--{flag.replace('_', '-')} {place} is a run that was interrupted: "
                "go on with it first, by the same command with --resume"
            )
    check_folder(config.out, config, config.resume, config.overwrite)
    check_unfinished(config.out, config.resume)


def build_missing(config: Config) -> None:
    """With the default places, build what is not there yet, and say so."""
    no_model = config.model == Config.model and not Path(config.model).exists()
    reward_model = config.reward_model
    interrupted = is_unfinished(reward_model)
    no_reward = interrupted or not Path(reward_model).exists()
    no_reward = no_reward and reward_model == Config.reward_model
    if no_reward and (config.reading == "entropic" or config.weight != "none"):
        raise InputError(
            "--reading entropic and --weight need a ratings head: train one with "
            "`python train_rm.py --head ratings --out DIR` and give it as --reward-model DIR"
        )
    if no_model:
        print(f"{config.model} is missing: building the zoo's start model first")
        start_model.build_base(config.model)
    if no_reward:
        print(f"{reward_model} is missing or unfinished: training a reward model on the zoo first")
        train_rm.main(train_rm.Config(model=config.model, out=reward_model, resume=interrupted))


class Learner:
    """The policy, and what learning keeps beside it: the optimiser and the running baseline."""

    def __init__(self, setup: PolicySetup, config: Config):
        self.setup, self.config = setup, config
        self.optimiser = MasterAdamW(setup.policy)
        self.baseline = BASELINES[config.baseline](config)

    def state_dict(self) -> dict:
        """What `load_state_dict` goes on from."""
        return {
            "policy": self.setup.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "baseline": asdict(self.baseline),
        }

    def load_state_dict(self, state: dict) -> None:
        """As after the step that `state` was taken at."""
        self.setup.policy.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.baseline = replace(self.baseline, **state["baseline"])

    def advantages(self, rewards: Tensor) -> Tensor:
        """What some prompts' rewards, KL included, are better than expected: [p, K] → [p, K]."""
        if self.config.baseline == "leave-one-out":
            return baselines.leave_one_out(rewards)
        return baselines.advantages(rewards, self.baseline)

    def loss(self, log_probs: Tensor, old: Tensor, advantages: Tensor, count: int) -> Tensor:
        """A micro-batch's share of the loss over `count` answers; log-probs and the rest [p, K]."""
        if self.config.objective == "reinforce":
            return policy_losses.reinforce(log_probs, advantages, count)
        return policy_losses.ppo_clip(log_probs, old, advantages, count, self.config.clip)

    def update(self, rollout, rewards, weights, rate, guard, clock) -> dict:
        """Learn from one rollout: rewards, weights [P, K] without gradient → metrics.

        The log-probs of the answers are computed again, with gradient; the forward that gives the
        gradient also gives the KL of the reward, and a running baseline is known before the batch,
        so each micro-batch goes forward, reward, backward at once.  With `guard` the alignment
        guard may raise InputError before any weight changes.
        """
        setup, config = self.setup, self.config
        rewards = rewards.clone()
        first, last, divergence, a = (torch.zeros_like(rewards) for _ in range(4))
        lengths, slots, empty = rollout.row_lengths, 0, 0.0
        for number in range(config.updates):
            for rows in length_batches(lengths, config.micro_batch, setup.layout.micro_tokens):
                prompts = [rollout.prompts[p] for p in rows]
                tree = build_tree(prompts, [rollout.answers[p] for p in rows], setup.layout)
                slots, empty = slots + tree.ids.numel(), empty + tree.padding * tree.ids.numel()
                log_probs = answer_log_probs(setup.policy, tree, config.temperature)
                log_probs = log_probs.view(len(rows), config.samples)
                clock("policy")
                if number == 0:  # the rollout's worth is fixed before its first update
                    with torch.no_grad():
                        ref = answer_log_probs(setup.reference, tree, config.temperature)
                    clock("reference")
                    ref = ref.view_as(log_probs)
                    first[rows] = log_probs.detach()
                    divergence[rows] = kl.k1(first[rows], ref)
                    rewards[rows] = shaping.with_kl(rewards[rows], first[rows], ref, config.kl)
                    a[rows] = self.advantages(rewards[rows]) * weights[rows]
                self.loss(log_probs, first[rows], a[rows], rewards.numel()).backward()
                last[rows] = log_probs.detach()
                clock("policy")
            gap = alignment_gap(rollout, first)
            if guard and number == 0:
                check_alignment(gap, setup.policy.dtype)
            norm = self.optimiser.step(rate, config.max_grad_norm)
            clock("policy")
        clipped = policy_losses.clip_fraction(last, first, config.clip)
        used, self.baseline = self.baseline.value, self.baseline.updated(rewards)
        return {
            "reward/with_kl": rewards.mean().item(),
            "baseline/value": used,
            "kl/mean": divergence.mean().item(),
            "advantage/mean": a.mean().item(),
            "advantage/std": a.std().item(),
            "clip/fraction": clipped.item(),
            "alignment/gap": gap,
            "grad/norm": norm,
            "batch/padding": empty / slots,  # share of the slots that hold no token
            "learning_rate": rate,
        }


def main(config: Config) -> dict:
    """Train, evaluate before and after, save; returns the summary."""
    check(config)
    prompts, held_out = load_prompts(config)
    build_missing(config)
    setup = set_up(config, prompts, held_out)
    policy, scorer, bench = setup.policy, setup.scorer, setup.bench
    torch.manual_seed(config.seed)
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()  # dropout is 0; checkpointing works in training mode only
    learner = Learner(setup, config)
    state = load_checkpoint(config.out) if config.resume else None
    if state:
        learner.load_state_dict(state)
        generator.set_state(state["generator"])
    else:
        before, samples_before = bench.measure(policy)
        ruler = ruler_of(setup.reference_rewards(config.ruler_prompts, config.seed))
        state = {"step": 0, "ruler": ruler, "before": before, "samples": samples_before}
    kept = {name: state[name] for name in ("ruler", "before", "samples")}
    first, about = state["step"], setup.about | {"ruler": kept["ruler"]}
    log = RunLog(config.out, "train_policy.py", config, about, first, config.overwrite)

    with interruptible() as stop:
        for step in (bar := tqdm(range(first, config.steps), initial=first, total=config.steps)):
            clock = Clock()
            at = batch_indices(len(setup.prompts), setup.per_step, step, config.seed)
            prompts, ids = [setup.prompts[i] for i in at], [setup.prompt_ids[i] for i in at]

            # Sample.  No gradient, no graph: π is re-forwarded in `Learner.update`.
            rollout = sample(policy, ids, config.samples, generator=generator, **setup.sampling)
            start = None
            if scorer.needs_start:
                start = sample(setup.reference, ids, 1, generator=generator, **setup.sampling)
            clock("sample")

            # Score.
            scores, weights = scorer(rollout, prompts, start)
            rewards = shaping.standardise(scores, **kept["ruler"])
            finished = rollout.finished.to(rewards.device)
            rewards = shaping.penalise_missing_end(rewards, finished, config.missing_end_penalty)
            clock("score")

            # Learn.
            rate = config.lr * warm_up(step, config.warm_up)
            learnt = learner.update(rollout, rewards, weights, rate, step == first, clock)

            row = {"reward/mean": scores.mean().item(), **learnt}
            row |= rollout_metrics(rollout) | clock.seconds
            if setup.gold:
                golds = gold_ratings(setup.gold, prompts, setup.tokenizer, rollout)
                row["reward/gold"] = sum(golds) / len(golds)
            if config.eval_every and (step + 1) % config.eval_every == 0:
                row |= {f"held_out/{k}": v for k, v in bench.measure(policy)[0].items()}
            log.log(step + 1, row)
            shown = {"reward": "reward/mean", "gold": "reward/gold", "kl": "kl/mean"}
            bar.set_postfix({k: f"{row[key]:.2f}" for k, key in shown.items() if key in row})
            stopping = stop()
            if stopping or (step + 1) % config.save_every == 0:
                now = {"step": step + 1, "generator": generator.get_state()}
                save_checkpoint(config.out, {**kept, **now, **learner.state_dict()})
            if stopping:
                raise KeyboardInterrupt

    save_model(policy, setup.tokenizer, config.out)
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
