"""Train a reward model on preference pairs.

    python train_rm.py                                      # the zoo, a scalar head
    python train_rm.py --head ratings --soft-labels 0.5     # a distribution over the ratings 1..10
    python train_rm.py --model HuggingFaceTB/SmolLM2-135M-Instruct \\
        --data esfrankel17/HelpSteer2_binarized:average_rating_split --rating-range 0 4

Left out on purpose: learning-rate searches, several GPUs, quantised weights.
"""

import math
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from rlhf_min import InputError, command_line
from rlhf_min.command_line import option
from rlhf_min.data import preferences as data
from rlhf_min.data.order import batch_indices
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.hardware.optimiser import MasterAdamW, warm_up_and_down
from rlhf_min.maths.preference_losses import (
    bradley_terry,
    centring_penalty,
    rating_margin,
    ratings_win_loss,
)
from rlhf_min.maths.ratings import (
    answer_entropy,
    marginal_entropy,
    roughness,
    soft_label_cross_entropy,
    soft_labels,
    squared_earth_mover,
)
from rlhf_min.models.loading import choose_layout, context_length, load_tokenizer
from rlhf_min.models.prompt_tree import build_tree, length_batches
from rlhf_min.models.reward_model import branch_outputs, new_reward_model, separate_pad, wins
from rlhf_min.reporting import report
from rlhf_min.reporting.checkpoints import (
    drop_checkpoint,
    interruptible,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from rlhf_min.reporting.evaluation import encode_pairs, evaluate_reward_model, scored_rows
from rlhf_min.reporting.run_folder import RunLog, check_folder, check_unfinished
from rlhf_min.zoo import start_model


@dataclass(frozen=True)
class Config:
    """Train a reward model on preference pairs."""

    data: list[str] = option(["zoo"], "pairs: zoo, files, or hub ids (id:split); concatenated")
    eval_data: list[str] = option([], "held-out pairs (nothing: the zoo's, or a split by prompt)")
    model: str = option("runs/zoo-base", "language model to start from: folder or hub id")
    out: str = option("runs/rm", "folder of the run")
    head: Literal["scalar", "ratings"] = option("scalar", "one number, or ratings 1..10")
    seed: int = option(0, "of the order of the pairs")
    max_steps: int = option(-1, "optimiser steps (-1: by --epochs)")
    epochs: float = option(1.0, "passes over the pairs")
    lr: float = option(1e-3, "peak learning rate", "--learning-rate")
    batch_size: int = option(32, "pairs per optimiser step")
    micro_batch: int = option(16, "pairs per forward and backward pass, at most")
    max_length: int = option(1024, "tokens of prompt and answer; long prompts lose their left end")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "what the model computes in")
    warm_up: float = option(0.05, "share of the steps with a rising learning rate")
    weight_decay: float = option(0.01, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "gradients with a larger norm are scaled down to it")
    gradient_checkpointing: bool = option(False, "less memory, about a third more time")
    rating_range: list[float] = option([1.0, 10.0], "lowest and highest rating of the data's scale")
    margin: float = option(0.0, "scalar head: reward units per rating point of difference")
    centring: float = option(0.01, "scalar head: weight of mean((r_w + r_l)^2)")
    tie: Literal["half", "strict"] = option("half", "ratings head: what an equal rating counts")
    soft_labels: float = option(0.0, "ratings head: weight of cross-entropy to the data's ratings")
    label_width: float = option(1.0, "standard deviation of a soft label, in ratings")
    earth_mover: float = option(0.0, "ratings head: weight of the squared earth mover's distance")
    answer_entropy: float = option(0.0, "ratings head: > 0 rewards wide distributions, < 0 narrow")
    marginal_entropy: float = option(
        0.0, "ratings head: > 0 rewards use of the whole scale (by micro-batch)"
    )
    roughness: float = option(0.0, "ratings head: weight of squared second differences of logits")
    limit: int = option(0, "pairs drawn from each SPEC of --data, at most (0: all)")
    eval_fraction: float = option(0.1, "share of prompts held out where the data has no own split")
    eval_limit: int = option(1000, "held-out pairs at most")
    eval_every: int = option(100, "steps between evaluations")
    save_every: int = option(200, "steps between checkpoints")
    track: Literal["none", "tensorboard", "wandb"] = option(
        "none", "live tracking beside the files"
    )
    resume: bool = option(False, "go on with the interrupted run in --out")
    overwrite: bool = option(False, "replace the run in --out")


def loss_of(config: Config, chosen, rejected, chosen_rating, rejected_rating):
    """The training loss of some pairs: head outputs [B, 1 or 10] ×2, ratings [B] ×2 → scalar."""
    if config.head == "scalar":
        r_w, r_l = chosen[:, 0], rejected[:, 0]
        margin = 0.0
        if config.margin:  # without ratings they are NaN
            margin = rating_margin(chosen_rating, rejected_rating, config.margin)
        return bradley_terry(r_w, r_l, margin) + config.centring * centring_penalty(r_w, r_l)
    loss = ratings_win_loss(chosen, rejected, tie=0.5 if config.tie == "half" else 0.0)
    both = torch.cat([chosen, rejected])
    if config.soft_labels or config.earth_mover:
        ratings = torch.cat([chosen_rating, rejected_rating])
        labels = soft_labels(ratings, both.shape[-1], config.label_width)
        loss = loss + config.soft_labels * soft_label_cross_entropy(both, labels)
        loss = loss + config.earth_mover * squared_earth_mover(both, labels)
    # Signs: entropies are rewarded, so they are subtracted from what is minimised.
    loss = loss - config.answer_entropy * answer_entropy(both)
    loss = loss - config.marginal_entropy * marginal_entropy(both)
    return loss + config.roughness * roughness(both)


def check(config: Config) -> None:
    """Settings that cannot work, each in one sentence."""
    if config.batch_size < 1 or config.micro_batch < 1:
        raise InputError("--batch-size and --micro-batch must be at least 1 pair")
    if config.max_steps == 0 or config.max_steps < -1 or config.epochs <= 0:
        raise InputError("--max-steps and --epochs must be above 0 (or --max-steps -1)")
    if config.lr <= 0 or config.label_width <= 0 or config.eval_limit < 1:
        raise InputError("--lr and --label-width must be above 0, --eval-limit at least 1")
    if config.eval_every < 1 or config.save_every < 1 or config.max_length < 2:
        raise InputError("--eval-every and --save-every must be at least 1, --max-length 2")
    if len(config.rating_range) != 2:
        raise InputError("--rating-range needs two numbers, lowest and highest, such as 1 10")
    needs = {"margin": "scalar", "soft_labels": "ratings", "earth_mover": "ratings"}
    for name, head in needs.items():
        if getattr(config, name) and config.head != head:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} needs --head {head}, but --head is {config.head}")
    check_folder(config.out, config, config.resume, config.overwrite)
    check_unfinished(config.out, config.resume)


def load_pairs(config: Config) -> tuple[list, list, dict]:
    """Training pairs, held-out pairs, and what was dropped and why."""
    scale = tuple(config.rating_range)
    pairs, dropped = [], Counter()
    for spec in config.data:
        some, why = data.read_pairs([spec], scale)
        if config.limit:
            some = random.Random(config.seed).sample(some, min(config.limit, len(some)))
        pairs += some
        dropped.update(why)
    if config.eval_data or "zoo" in config.data:
        held_out, _ = data.read_pairs(config.eval_data or ["zoo:held-out"], scale)
        held_out = held_out[: config.eval_limit]
        seen = {data.prompt_text(pair.prompt) for pair in held_out}
        train = [pair for pair in pairs if data.prompt_text(pair.prompt) not in seen]
        dropped["prompt is held out"] = len(pairs) - len(train)
    else:
        train, held_out = data.split_by_prompt(
            pairs, config.eval_fraction, config.eval_limit, config.seed
        )
    if not train:
        raise InputError(
            "no training pair is left, every prompt is held out: give other --eval-data"
        )
    rated = config.margin or config.soft_labels or config.earth_mover
    if rated and any(pair.chosen_rating is None for pair in train):
        raise InputError(
            "--margin, --soft-labels and --earth-mover need chosen_rating and rejected_rating in "
            "every row of --data: add them or leave these settings at 0"
        )
    return train, held_out, dropped


def main(config: Config) -> dict:
    """Train, evaluate, save; returns the summary."""
    check(config)
    train, held_out, dropped = load_pairs(config)
    if config.model == Config.model and not Path(config.model).exists():
        print(f"{config.model} is missing: building the zoo's start model first")
        start_model.build_base(config.model)
    tokenizer = load_tokenizer(config.model)
    model = new_reward_model(config.model, config.head, choose_dtype(config.dtype))
    separate_pad(model, tokenizer)
    max_length = min(config.max_length, context_length(model))
    train, too_long = encode_pairs(tokenizer, train, max_length, "--data")
    held_out, held_out_too_long = encode_pairs(tokenizer, held_out, max_length, "held-out data")
    dropped = {**dropped, **too_long}
    for reason, count in dropped.items():
        if count:
            print(f"{count} pairs dropped or noted: {reason}")

    torch.manual_seed(config.seed)
    layout = choose_layout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # dropout is 0; checkpointing works in training mode only
    optimiser = MasterAdamW(model, config.weight_decay)
    per_epoch = math.ceil(len(train) / config.batch_size)
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.epochs * per_epoch)
    state = load_checkpoint(config.out) if config.resume else None
    first = 0
    if state:
        first = state["step"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    about = {"pairs/train": len(train), "pairs/held_out": len(held_out), "dropped": dropped}
    about["fingerprint"] = data.fingerprint([[pair.prompt, *pair.answers] for pair in train])
    log = RunLog(config.out, "train_rm.py", config, about, first, config.overwrite)

    def save(step: int) -> None:
        save_checkpoint(config.out, {"step": step, "model": model.state_dict(),
                                     "optimiser": optimiser.state_dict()})  # fmt: skip

    with interruptible() as stop:
        for step in (bar := tqdm(range(first, steps), initial=first, total=steps, desc="reward")):
            begin = time.perf_counter()
            at = batch_indices(len(train), config.batch_size, step, config.seed, partial=True)
            batch = [train[i] for i in at]
            total, won, slots, empty = 0.0, 0.0, 0, 0.0
            lengths = [pair.length for pair in batch]
            for rows in length_batches(lengths, config.micro_batch, layout.micro_tokens):
                pairs = [batch[i] for i in rows]
                tree = build_tree([p.prompt for p in pairs], [p.answers for p in pairs], layout)
                slots, empty = slots + tree.ids.numel(), empty + tree.padding * tree.ids.numel()
                chosen, rejected = branch_outputs(model, tree).view(len(pairs), 2, -1).unbind(1)
                ratings = torch.tensor([p.ratings for p in pairs], device=chosen.device).unbind(1)
                loss = loss_of(config, chosen, rejected, *ratings)
                (loss * len(pairs) / len(batch)).backward()
                total += loss.item() * len(pairs) / len(batch)
                won += wins(chosen.detach(), rejected.detach()).sum().item()
            rate = config.lr * warm_up_and_down(step, round(config.warm_up * steps), steps)
            norm = optimiser.step(rate, config.max_grad_norm)
            row = {"loss/train": total, "accuracy/train": won / len(batch), "learning_rate": rate}
            row |= {"batch/padding": empty / slots}  # share of the slots that hold no token
            row |= {"grad/norm": norm, "time/step": time.perf_counter() - begin}
            if (step + 1) % config.eval_every == 0 or step + 1 == steps:
                found, outputs = evaluate_reward_model(model, layout, held_out, config.tie)
                row |= {f"{k}/held_out": found[k] for k in ("loss", "accuracy")}
                row |= {f"accuracy/held_out_{k}": found[f"accuracy_{k}"] for k in ("low", "high")}
            log.log(step + 1, row)
            bar.set_postfix(loss=f"{total:.3f}", accuracy=f"{row['accuracy/train']:.2f}")
            stopping = stop()
            if stopping or (step + 1) % config.save_every == 0:
                save(step + 1)
            if stopping:
                raise KeyboardInterrupt

    if first == steps:  # interrupted at the very last step
        found, outputs = evaluate_reward_model(model, layout, held_out, config.tie)
    save_model(model, tokenizer, config.out)
    summary = {"head": config.head, **found, **about, "steps": steps}
    summary["dropped/held_out"] = held_out_too_long
    log.write_rows("held_out_scores.jsonl", scored_rows(tokenizer, held_out, outputs))
    log.finish(summary)
    drop_checkpoint(config.out)
    report.write_report(Path(config.out))
    print(
        f"{config.out}: held-out accuracy {found['accuracy']:.3f} "
        f"[{found['accuracy_low']:.3f}, {found['accuracy_high']:.3f}], longer wins "
        f"{found['longer_wins']:.3f}, loss {found['loss']:.3f} (chance {found['chance_loss']:.3f})"
    )
    return summary


if __name__ == "__main__":
    command_line.run(main, Config)
