"""Train a policy against a reward model: REINFORCE with a baseline; the whole answer is one action.

    python train_policy.py                              # the zoo, from nothing
    python train_policy.py --kl 0 --out runs/hacked     # watch the reward model being hacked
    python train_policy.py --baseline leave-one-out --objective ppo-clip --updates 2 --out runs/ppo
    torchrun --nproc-per-node 2 train_policy.py         # two processes, each with a device

Axes, as suffixes: P prompts of a step, K answers to each, p prompts (indices) of a micro-batch.
Left out on purpose: a value network, rewards per token, a sampling server.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import asdict, dataclass, replace
from typing import Literal

from rlhf_min.command_line import check_flags, check_needs, check_ranges, option, run


@dataclass(frozen=True)
class Config:
    """Settings of train_policy.py."""

    model: str = option("runs/zoo-base", "language model: folder or hub id", heading="Inputs")
    reward_model: str | list[str] = option("runs/rm", "reward model, or several: folder or hub id")
    ensemble: Literal["mean", "min", "uncertainty"] = option("mean", "how several are combined")
    ensemble_weight: float = option(1.0, "weight of the variance (uncertainty)", at_least=0)
    reward_function: str = option("", "FILE.py:NAME of (prompts, answers) -> rewards")
    function_weight: float = option(0.0, "0: function alone; else its weight", at_least=0)
    reference: str = option("", "reference model of the KL (empty: --model)")
    data: list[str] = option(["zoo"], "prompts: zoo, files, or hub ids (id:split); concatenated")
    eval_data: list[str] = option([], "held-out prompts (empty: the zoo's, or a split)")
    skip_bad_rows: bool = option(False, "drop and count rows that cannot be used")
    objective: Literal["reinforce", "ppo-clip"] = option("reinforce", "loss", heading="Objective")
    baseline: Literal["moving-average", "ema", "leave-one-out", "none"] = option(
        "moving-average", "subtracted from the reward (moving-average: mean of all earlier ones)"
    )
    updates: int = option(1, "updates per rollout (ppo-clip)", at_least=1)
    clip: float = option(0.2, "epsilon of ppo-clip", above=0, at_most=1)
    ema_decay: float = option(0.9, "decay of --baseline ema", at_least=0, below=1)
    kl: float = option(0.1, "weight of the KL penalty, reward per nat", "--beta", at_least=0)
    missing_end_penalty: float = option(1.0, "subtracted if there is no end token", at_least=0)
    reading: Literal["mean", "entropic", "win"] = option("mean", "how outputs become a score")
    entropic_b: float = option(2.0, "scale of --reading entropic, in ratings", at_least=0.01)
    weight: Literal["none", "inverse-sigma", "inverse-variance", "inverse-one-plus-sigma"] = option(
        "none", "factor of the advantage from the ratings' spread"
    )
    samples: int = option(4, "answers per prompt", heading="Sampling", at_least=1, at_most=10**6)
    batch_size: int = option(64, "answers per step: prompts x --samples", at_least=1, at_most=10**6)
    max_new_tokens: int = option(64, "tokens of an answer, at most", at_least=1, at_most=10**6)
    temperature: float = option(1.0, "of the sampling distribution", at_least=0.01)
    steps: int = option(80, "rollouts", heading="Optimisation", at_least=1)
    lr: float = option(8e-4, "learning rate", "--learning-rate", above=0, at_most=1)
    lora_rank: int = option(0, "LoRA, e.g. 8 with --lr 4e-3 (0: off)", at_least=0, at_most=4096)
    lora_alpha: float = option(16.0, "scales adapters by alpha / rank", above=0)
    warm_up: float = option(5, "steps of rising learning rate (below 1: a share)", at_least=0)
    max_grad_norm: float = option(1.0, "larger gradients are scaled down to this norm", above=0)
    micro_batch: int = option(16, "prompts per backward pass, each with all answers", at_least=1)
    gradient_checkpointing: bool = option(False, "less memory, about a third more time")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = option("float32", "of the models")
    out: str = option("runs/policy", "folder of the run", heading="Run")
    seed: int = option(0, "of prompts' order and sampling", at_least=0)
    eval_prompts: int = option(256, "held-out prompts at most", at_least=1)
    eval_every: int = option(0, "steps between evaluations (0: before, after only)", at_least=0)
    ruler_prompts: int = option(256, "prompts for the reward scale, at most", at_least=2)
    save_every: int = option(50, "steps between checkpoints", at_least=1)
    track: Literal["none", "tensorboard", "wandb"] = option("none", "live tracking besides files")
    resume: bool = option(False, "continue the interrupted run in --out")
    overwrite: bool = option(False, "replace the run in --out")


if __name__ == "__main__":
    check_flags(Config)  # --help and wrong flags are answered before the slow imports below

from functools import partial

import torch
from tqdm import tqdm

from rlhf_min import InputError
from rlhf_min.data.order import batch_indices
from rlhf_min.data.preferences import split_prompts
from rlhf_min.defaults import REWARD_MODEL, build_missing
from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import Clock, choose_dtype
from rlhf_min.hardware.finite import check_finite
from rlhf_min.hardware.optimiser import MasterAdamW, warm_up
from rlhf_min.maths import baselines, policy_losses
from rlhf_min.maths.reward_shaping import penalise_missing_end, standardise, with_kl
from rlhf_min.models import loading
from rlhf_min.models.alignment import alignment_gap, check_alignment
from rlhf_min.models.batches import padding_share, tree_batches
from rlhf_min.models.ensemble import check_ensemble, restore_scales
from rlhf_min.models.layout import context_length
from rlhf_min.models.log_probs import answer_log_probs, rollout_log_probs
from rlhf_min.models.reward_function import make_scorer
from rlhf_min.models.sampling import sample
from rlhf_min.models.tokens import encode_prompts, end_token_ids
from rlhf_min.reporting import checkpoints, evaluation, folder_files, run_folder
from rlhf_min.reporting.evaluation import step_metrics


def check(config: Config) -> None:
    """Raise InputError for settings that cannot work."""
    check_ranges(config)
    if config.batch_size % config.samples:
        fits = config.batch_size // config.samples * config.samples or config.samples
        wrong = f"--batch-size {config.batch_size} is not divisible by --samples {config.samples}"
        raise InputError(f"{wrong}: take {fits}")
    if config.baseline == "leave-one-out" and config.samples < 2:
        raise InputError("--baseline leave-one-out needs --samples 2 or more, got 1")
    needs = dict.fromkeys(("updates", "clip"), "objective ppo-clip")  # REINFORCE is on-policy
    needs |= {"ema_decay": "baseline ema", "entropic_b": "reading entropic"}
    check_needs(config, needs | {"ensemble_weight": "ensemble uncertainty"})
    check_ensemble(config)
    run_folder.check_training(config, may_be_unfinished=REWARD_MODEL)


def initial_state(config: Config, policy, state: dict) -> tuple:
    """Optimiser, random generator and baseline; restored, like the policy, from a checkpoint."""
    start = evaluation.mean_total_reward(config, state["before"], state["reward_scale"])
    optimiser = MasterAdamW(policy)  # betas (0.9, 0.95), no weight decay
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    baseline = {
        "moving-average": baselines.MovingAverage(start),
        "ema": baselines.ExponentialAverage(start, config.ema_decay),
        "leave-one-out": baselines.LeaveOneOut(),
        "none": baselines.Baseline(),
    }[config.baseline]
    if "policy" in state:
        checkpoints.restore_weights(policy, optimiser, state.pop("policy"), state.pop("optimiser"))
        generator.set_state(state.pop("generator"))
        baseline = replace(baseline, **state.pop("baseline"))
    return optimiser, generator, baseline


def choose_loss(config: Config):
    """The loss of a micro-batch: (log_probs, old_log_probs, advantages, count) → scalar."""
    if config.objective == "ppo-clip":
        return partial(policy_losses.ppo_clip, clip=config.clip)
    return lambda log_probs, _, advantages, n: policy_losses.reinforce(log_probs, advantages, n)


def train(config: Config, policy, reference, scorer, prompts, sampling, evaluate, log, state):
    """Train the policy in place, from step state["step"] on.

    sampling: arguments of `sample`; evaluate(policy): held-out metrics and answers; state: step,
    reward_scale, before, samples (metrics, answers before training); more in a checkpoint.
    """
    K, P = config.samples, config.batch_size // config.samples
    temperature, p_max = config.temperature, config.micro_batch
    loss, gold, first = choose_loss(config), evaluation.gold_of(config), state["step"]
    optimiser, generator, baseline = initial_state(config, policy, state)
    sampling = {**sampling, "generator": generator}
    for step in (bar := tqdm(range(first, config.steps), "policy", config.steps, initial=first)):
        clock = Clock()
        batch = [prompts[i] for i in batch_indices(len(prompts), P, step, config.seed)]
        ids, texts = [prompt.ids for prompt in batch], [prompt.prompt for prompt in batch]
        log.under_way |= {"place": f"step {step + 1}", "prompts": texts}  # for error messages

        # Sample K answers to each of P prompts, without gradient, and score them.
        rollout = sample(policy, ids, K, **sampling)  # answers [P][K]
        ref_rollout = sample(reference, ids, 1, **sampling) if scorer.needs_reference else None
        clock("sample")
        scores_PK, weights_PK = scorer.score(rollout, texts, ref_rollout)  # of --weight
        rewards_PK = standardise(scores_PK, **state["reward_scale"])  # mean, std
        rewards_PK = penalise_missing_end(rewards_PK, rollout.finished, config.missing_end_penalty)
        clock("score")
        ref_PK = rollout_log_probs(reference, rollout, temperature, p_max)  # log π_ref
        clock("reference")

        # The first update's forward pass also gives old_PK, total rewards and advantages.  Micro-
        # batches (prompts p) hold all K answers to a prompt, which leave-one-out needs together.
        log_probs_PK, old_PK, total_rewards_PK, advantages_PK = ref_PK.new_empty(4, P, K)
        lr = config.lr * warm_up(step, config.warm_up, config.steps)
        for update in range(config.updates):
            for p, tree in tree_batches(policy, rollout.prompts, rollout.answers, p_max):
                log_probs_pK = answer_log_probs(policy, tree, temperature).view(-1, K)  # gradient
                log_probs_PK[p] = log_probs_pK.detach()
                if update == 0:
                    old_PK[p] = log_probs_PK[p]
                    total_rewards_PK[p] = with_kl(rewards_PK[p], old_PK[p], ref_PK[p], config.kl)
                    advantages_PK[p] = baseline.advantages(total_rewards_PK[p]) * weights_PK[p]
                loss(log_probs_pK, old_PK[p], advantages_PK[p], P * K).backward()
            ranks.complete(log_probs_PK, old_PK, total_rewards_PK, advantages_PK)
            check_finite("the policy's log-prob", log_probs_PK)
            if step == first and update == 0:  # before any weight changes
                check_alignment(alignment_gap(rollout, old_PK), policy.dtype)
            grad_norm = optimiser.step(lr, config.max_grad_norm)  # clips, steps, zeroes gradients
        clock("policy")

        metrics = step_metrics(rollout, scores_PK, total_rewards_PK, advantages_PK, old_PK, ref_PK)
        metrics |= {"grad/norm": grad_norm, "learning_rate": lr, "baseline/value": baseline.value}
        metrics["clip/fraction"] = policy_losses.clip_fraction(log_probs_PK, old_PK, config.clip)
        metrics["batch/padding"] = padding_share(policy, rollout.prompts, rollout.answers, p_max)
        metrics |= clock.seconds | evaluation.reward_metrics(gold, batch, rollout, scorer)
        baseline = baseline.updated(total_rewards_PK)  # after its use: b must not contain this R
        if config.eval_every and (step + 1) % config.eval_every == 0:
            metrics |= {f"held_out/{k}": v for k, v in evaluate(policy)[0].items()}
        log.log(step + 1, metrics, bar)
        if log.checkpoint_due(step + 1):
            models = {"policy": checkpoints.weights_of(policy), "optimiser": optimiser.state_dict()}
            others = {"generator": generator.get_state(), "baseline": asdict(baseline)}
            log.checkpoint(step + 1, state | models | others)


@ranks.together
@folder_files.exclusive
def main(config: Config) -> dict:
    """Train, evaluate before and after, save; returns the summary."""
    check(config)
    if summary := run_folder.write_missing_report(config):
        return summary
    prompts, held_out, metadata = split_prompts(config)
    build_missing(config)
    dtype, tokenizer = choose_dtype(config.dtype), loading.load_tokenizer(config.model)
    policy, reference = loading.load_policy(config, dtype, tokenizer)
    scorer = make_scorer(config, dtype, tokenizer)
    room = min(*map(context_length, (policy, reference)), scorer.context) - config.max_new_tokens
    prompts, metadata["prompts/cut"] = encode_prompts(tokenizer, prompts, room)
    held_out, _ = encode_prompts(tokenizer, held_out, room)
    sampling = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    sampling["end_ids"] = end_token_ids(policy, tokenizer)
    settings = {"prompts": held_out, "sampling": sampling, "gold": evaluation.gold_of(config)}
    evaluate = partial(evaluation.evaluate_policy, reference=reference, scorer=scorer, **settings)
    state = checkpoints.load_checkpoint(config.out) if config.resume else None
    if not state:
        scales = evaluation.reference_scales(reference, scorer, prompts, sampling, config)
        before, answers = evaluate(policy)
        state = {"step": 0, "before": before, "samples": answers, **scales}
    metadata |= restore_scales(scorer, state)
    log = run_folder.RunLog("train_policy.py", config, metadata, state)
    with log.stop_between_steps():
        train(config, policy, reference, scorer, prompts, sampling, evaluate, log, state)
    loading.save_model(policy, tokenizer, config.out)
    return evaluation.write_results(log, state, *evaluate(policy), config.steps)


if __name__ == "__main__":
    run(main, Config)
