"""Train a reward model on preference pairs.

    python train_rm.py                                      # the zoo, a scalar head
    python train_rm.py --head ratings --soft-labels 0.5     # a distribution over the ratings 1..10
    torchrun --nproc-per-node 2 train_rm.py                 # two processes, each with a device
    python train_rm.py --model HuggingFaceTB/SmolLM2-135M-Instruct \\
        --data esfrankel17/HelpSteer2_binarized:average_rating_split --rating-range 0 4

Axes in comments: N pairs of a step, n pairs of a micro-batch (their indices).
Left out on purpose: learning-rate searches, quantised weights.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import dataclass
from typing import Literal

from rlhf_min.command_line import check_flags, check_needs, check_ranges, option, run


@dataclass(frozen=True)
class Config:
    """Settings of train_rm.py."""

    data: list[str] = option(["zoo"], "pairs: zoo, files, or hub ids (id:split)", heading="Inputs")
    eval_data: list[str] = option([], "held-out pairs (empty: the zoo's, or a split by prompt)")
    eval_fraction: float = option(0.1, "held-out share (no --eval-data, no zoo)", above=0, below=1)
    eval_limit: int = option(1000, "held-out pairs at most", at_least=1)
    limit: int = option(0, "pairs drawn from each SPEC of --data, at most (0: all)", at_least=0)
    skip_bad_rows: bool = option(False, "drop and count rows that cannot be used")
    rating_range: list[float] = option([1.0, 10.0], "lowest and highest rating of the data's scale")
    max_length: int = option(1024, "tokens of prompt and answer, at most", at_least=2)
    model: str = option("runs/zoo-base", "language model to start from: folder or hub id")
    head: Literal["scalar", "ratings"] = option("scalar", "output per answer", heading="Objective")
    head_std: float = option(0.0, "std of a new head's weights (0: all scores equal)", at_least=0)
    margin: float = option(0.0, "scalar head: reward units per rating point", at_least=0)
    centring: float = option(0.01, "scalar head: weight of mean((r_w + r_l)^2)", at_least=0)
    batch_sum: float = option(0.0, "scalar head: weight of mean(r_w + r_l)^2", at_least=0)
    tie: Literal["half", "strict"] = option("half", "ratings head: a tie counts 1/2 or 0")
    soft_labels: float = option(0.0, "ratings head: weight of cross-entropy to ratings", at_least=0)
    label_width: float = option(1.0, "std of a soft label, in ratings", at_least=0.01)
    earth_mover: float = option(0.0, "ratings head: weight of squared earth mover", at_least=0)
    answer_entropy: float = option(0.0, "ratings head: > 0 rewards wide distributions, < 0 narrow")
    marginal_entropy: float = option(0.0, "ratings head: rewards use of all ratings", at_least=0)
    roughness: float = option(0.0, "ratings head: weight of squared 2nd differences", at_least=0)
    epochs: float = option(1.0, "passes over the pairs", heading="Optimisation", above=0)
    max_steps: int = option(-1, "optimiser steps (-1: by --epochs)", at_least=-1)
    batch_size: int = option(32, "pairs per optimiser step", at_least=1)
    micro_batch: int = option(32, "pairs per forward and backward pass, at most", at_least=1)
    lr: float = option(3e-3, "peak learning rate", "--learning-rate", above=0, at_most=1)
    lora_rank: int = option(0, "LoRA, e.g. 8 with --lr 4e-3 (0: off)", at_least=0, at_most=4096)
    lora_alpha: float = option(16.0, "scales adapters by alpha / rank", above=0)
    warm_up: float = option(0.05, "steps of rising learning rate (below 1: a share)", at_least=0)
    weight_decay: float = option(0.01, "AdamW weight decay", at_least=0, at_most=1)
    adam_beta2: float = option(0.95, "AdamW: decay of mean squared gradients", at_least=0, below=1)
    max_grad_norm: float = option(1.0, "larger gradients are scaled down to this norm", above=0)
    gradient_checkpointing: bool = option(False, "less memory, about a third more time")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = option("float32", "of the model")
    out: str = option("runs/rm", "folder of the run", heading="Run")
    seed: int = option(0, "of the order of the pairs", at_least=0)
    eval_every: int = option(100, "steps between evaluations", at_least=1)
    save_every: int = option(200, "steps between checkpoints", at_least=1)
    track: Literal["none", "tensorboard", "wandb"] = option("none", "live tracking besides files")
    resume: bool = option(False, "continue the interrupted run in --out")
    overwrite: bool = option(False, "replace the run in --out")


if __name__ == "__main__":
    check_flags(Config)  # --help and wrong flags are answered before the slow imports below

import math
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from rlhf_min import InputError
from rlhf_min.data import preferences
from rlhf_min.data.bad_rows import report_dropped
from rlhf_min.data.order import batch_indices
from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import Clock, choose_dtype
from rlhf_min.hardware.finite import check_finite
from rlhf_min.hardware.optimiser import MasterAdamW, warm_up_and_down
from rlhf_min.maths import preference_losses, ratings
from rlhf_min.models import loading, reward_model
from rlhf_min.models.batches import padding_share, tree_batches
from rlhf_min.models.layout import context_length
from rlhf_min.models.reward_model import branch_outputs, new_reward_model, separate_pad, wins
from rlhf_min.reporting import checkpoints, evaluation, folder_files, run_folder
from rlhf_min.zoo import start_model

TIES = {"half": 0.5, "strict": 0.0}
RATINGS_ONLY = ["tie", "soft_labels", "label_width", "earth_mover"]
RATINGS_ONLY += ["answer_entropy", "marginal_entropy", "roughness"]


def check(config: Config) -> None:
    """Raise InputError for settings that cannot work."""
    check_ranges(config)
    if config.max_steps == 0:
        raise InputError("--max-steps must be above 0 (or -1: by --epochs), got 0")
    if len(config.rating_range) != 2:
        raise InputError("--rating-range needs two numbers, lowest and highest, such as 1 10")
    needs = dict.fromkeys(("margin", "batch_sum"), "head scalar")
    check_needs(config, needs | dict.fromkeys(RATINGS_ONLY, "head ratings"))
    run_folder.check_training(config)


def read_pairs(config: Config) -> tuple[list, list, dict, dict]:
    """Training pairs, held-out pairs, and counts by reason of those dropped from each."""
    scale = tuple(config.rating_range)
    read = partial(preferences.read_pairs, rating_range=scale, skip_bad_rows=config.skip_bad_rows)
    pairs, dropped = read(config.data, limit=config.limit, seed=config.seed)
    train, held_out, others, dropped_held_out = preferences.hold_out(
        pairs, read, config, config.eval_fraction, config.eval_limit
    )
    needs_ratings = config.margin or config.soft_labels or config.earth_mover
    if needs_ratings and any(pair.chosen_rating is None for pair in train):
        raise InputError(
            "--margin, --soft-labels and --earth-mover need chosen_rating and rejected_rating in "
            "every row of --data: add them or leave these settings at 0"
        )
    return train, held_out, dropped | others, dropped_held_out


def loss_of(config, chosen, rejected, chosen_rating, rejected_rating, step_mean=0.0) -> Tensor:
    """Loss of a micro-batch: outputs [n, 1 or 10], ratings [n] or NaN → scalar, mean over pairs."""
    if config.head == "scalar":
        r_w, r_l, margin = chosen[:, 0], rejected[:, 0], 0.0
        if config.margin:
            margin = preference_losses.rating_margin(chosen_rating, rejected_rating, config.margin)
        loss = preference_losses.bradley_terry(r_w, r_l, margin)
        if config.batch_sum:
            penalty = preference_losses.batch_sum_penalty(r_w, r_l, step_mean)
            loss = loss + config.batch_sum * penalty
        return loss + config.centring * preference_losses.centring_penalty(r_w, r_l)
    loss = preference_losses.ratings_win_loss(chosen, rejected, TIES[config.tie])
    both = torch.cat([chosen, rejected])
    if config.soft_labels or config.earth_mover:
        data_ratings = torch.cat([chosen_rating, rejected_rating])
        labels = ratings.soft_labels(data_ratings, both.shape[-1], config.label_width)
        loss = loss + config.soft_labels * ratings.soft_label_cross_entropy(both, labels)
        loss = loss + config.earth_mover * ratings.squared_earth_mover(both, labels)
    # A positive weight rewards entropy, so it is subtracted from the loss.
    loss = loss - config.answer_entropy * ratings.answer_entropy(both)
    loss = loss - config.marginal_entropy * ratings.marginal_entropy(both)
    return loss + config.roughness * ratings.roughness(both)


def train(config: Config, model, pairs, held_out, steps: int, log, checkpoint: dict) -> tuple:
    """Train the model in place; returns held-out metrics and outputs after the last step.

    pairs, held_out: EncodedPair; checkpoint: of a resumed run, else {"step": 0}.
    """
    optimiser = MasterAdamW(model, config.weight_decay, betas=(0.9, config.adam_beta2))
    first, tie, evaluated = checkpoint["step"], TIES[config.tie], None
    if "model" in checkpoint:
        states = checkpoint.pop("model"), checkpoint.pop("optimiser")  # not kept in memory
        checkpoints.restore_weights(model, optimiser, *states)
    for step in (bar := tqdm(range(first, steps), "reward model", steps, initial=first)):
        clock = Clock()
        order = batch_indices(len(pairs), config.batch_size, step, config.seed, partial=True)
        batch = [pairs[i] for i in order]  # N pairs
        prompts, answers = [pair.prompt for pair in batch], [pair.answers for pair in batch]
        log.under_way |= {"place": f"step {step + 1}", "prompts": [p.pair.prompt for p in batch]}
        loss_sum = wins_sum = step_mean = 0.0
        if config.batch_sum:  # needs the rewards of the whole step: one more forward pass
            step_mean = reward_model.all_outputs(model, prompts, answers).sum().item() / len(batch)
        for n, tree in tree_batches(model, prompts, answers, config.micro_batch):
            outputs = branch_outputs(model, tree).view(len(n), 2, -1)  # [n, 2, labels], gradient
            check_finite("the reward model's output", outputs, rows=n)
            chosen, rejected = outputs.unbind(1)  # [n, labels] each
            data_ratings = torch.tensor([batch[i].ratings for i in n], device=outputs.device)
            loss = loss_of(config, chosen, rejected, *data_ratings.unbind(1), step_mean)
            check_finite("the loss", loss)
            (loss * len(n) / len(batch)).backward()  # its part of the mean over all N pairs
            loss_sum += loss.item() * len(n) / len(batch)
            wins_sum += wins(chosen.detach(), rejected.detach()).sum().item()
        lr = config.lr * warm_up_and_down(step, config.warm_up, steps)
        grad_norm = optimiser.step(lr, config.max_grad_norm)
        clock("step")

        loss_sum, wins_sum = ranks.all_sum(loss_sum, wins_sum)
        metrics = {"loss/train": loss_sum, "accuracy/train": wins_sum / len(batch)}
        metrics |= {"learning_rate": lr, "grad/norm": grad_norm, **clock.seconds}
        metrics["batch/padding"] = padding_share(model, prompts, answers, config.micro_batch)
        if (step + 1) % config.eval_every == 0 or step + 1 == steps:
            evaluated = evaluation.evaluate_reward_model(model, held_out, tie)
            metrics |= evaluation.held_out_series(evaluated[0])
        log.log(step + 1, metrics, bar)
        if log.checkpoint_due(step + 1):
            weights = {"model": checkpoints.weights_of(model), "optimiser": optimiser.state_dict()}
            log.checkpoint(step + 1, weights)
    return evaluated or evaluation.evaluate_reward_model(model, held_out, tie)


@ranks.together
@folder_files.exclusive
def main(config: Config) -> dict:
    """Train, evaluate, save; returns the summary."""
    check(config)
    if summary := run_folder.write_missing_report(config):
        return summary
    pairs, held_out, dropped, dropped_held_out = read_pairs(config)
    ranks.from_first(start_model.build_if_missing, config.model, patient=True)
    torch.manual_seed(config.seed)  # for a new head, and a new pad token's embedding
    model = new_reward_model(config.model, config.head, choose_dtype(config.dtype), config.head_std)
    tokenizer = loading.load_tokenizer(config.model, model=model)
    separate_pad(model, tokenizer)
    loading.prepare_training(model, config)
    max_length = min(config.max_length, context_length(model))
    limit = "--max-length" if max_length == config.max_length else "the model's context"
    pairs, others = preferences.encode_pairs(tokenizer, pairs, max_length, "--data", limit)
    held_out, others_held_out = preferences.encode_pairs(
        tokenizer, held_out, max_length, "held-out data", limit
    )
    dropped, dropped_held_out = dropped | others, dropped_held_out | others_held_out
    report_dropped(dropped, len(pairs), "training pairs")
    report_dropped(dropped_held_out, len(held_out), "held-out pairs")
    metadata = {"pairs/train": len(pairs), "pairs/held_out": len(held_out)}
    metadata |= {"dropped": dropped, "dropped/held_out": dropped_held_out}
    metadata["fingerprint"] = preferences.fingerprint([pairs, held_out])

    per_epoch = math.ceil(len(pairs) / config.batch_size)
    by_epochs = math.ceil(round(config.epochs * per_epoch, 6))  # 0.07 * 100 is 7.000000000000001
    steps = config.max_steps if config.max_steps > 0 else by_epochs
    checkpoint = (config.resume and checkpoints.load_checkpoint(config.out)) or {"step": 0}
    log = run_folder.RunLog("train_rm.py", config, metadata, checkpoint)
    with log.stop_between_steps():
        metrics, outputs = train(config, model, pairs, held_out, steps, log, checkpoint)
    loading.save_model(model, tokenizer, config.out)
    summary = {"head": config.head, **metrics, **metadata, "steps": steps}
    return evaluation.write_reward_results(log, summary, held_out, outputs)


if __name__ == "__main__":
    run(main, Config)
