"""How good is a reward model, and what became of a policy: numbers on held-out prompts."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.data.preferences import Pair, prompt_text
from rlhf_min.maths.preference_losses import bradley_terry, ratings_win_loss
from rlhf_min.maths.ratings import chance_loss
from rlhf_min.maths.reward_shaping import k1
from rlhf_min.maths.statistics import (
    bootstrap_interval,
    distinct_n,
    expected_calibration_error,
    longest_run,
    wilson_interval,
)
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import Layout, build_tree, length_batches
from rlhf_min.models.reward_model import branch_outputs, read_reward, win_probability, wins
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.scoring import RolloutScorer
from rlhf_min.models.tokens import decode_answer, encode_answer, encode_prompt


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a pair: prompt, (chosen, rejected), and their ratings (NaN when unknown)."""

    prompt: list[int]
    answers: list[list[int]]
    ratings: tuple[float, float]
    pair: Pair

    @property
    def length(self) -> int:
        """Slots of its row in a tree."""
        return len(self.prompt) + sum(map(len, self.answers))


def encode_pairs(tokenizer, pairs: list[Pair], max_length: int, where: str):
    """Pairs as token ids, and how many were dropped or cut, by reason.

    A prompt loses its left end until prompt and longer answer fit max_length tokens; an answer is
    never cut, so a pair whose answer does not fit is dropped.  Raises InputError if none is left.
    """
    encoded, dropped = [], Counter()
    for pair in pairs:
        answers = [encode_answer(tokenizer, pair.prompt, a) for a in (pair.chosen, pair.rejected)]
        room = max_length - max(map(len, answers))
        if room < 1:
            dropped["answer longer than --max-length"] += 1
            continue
        if answers[0] == answers[1]:
            dropped["answers are the same tokens"] += 1
            continue
        whole = encode_prompt(tokenizer, pair.prompt, 10**9)
        prompt = encode_prompt(tokenizer, pair.prompt, room)
        dropped["prompt cut from the left (kept)"] += len(prompt) < len(whole)
        nan = float("nan")
        ratings = [nan if r is None else r for r in (pair.chosen_rating, pair.rejected_rating)]
        encoded.append(EncodedPair(prompt, answers, tuple(ratings), pair))
    if not encoded:
        raise InputError(
            f"no pair of {where} fits {max_length} tokens: raise --max-length or take a model with "
            "a longer context"
        )
    return encoded, dict(dropped)


@torch.no_grad()
def evaluate_reward_model(model, layout: Layout, pairs: list[EncodedPair], tie: str):
    """Accuracy (ties ½) with its Wilson interval, loss, calibration; and outputs [N, 2, labels]."""
    outputs = torch.zeros(len(pairs), 2, model.config.num_labels)
    for rows in length_batches([pair.length for pair in pairs], 64, 2**15):
        tree = build_tree([pairs[i].prompt for i in rows], [pairs[i].answers for i in rows], layout)
        outputs[rows] = branch_outputs(model, tree).view(len(rows), 2, -1).cpu()
    chosen, rejected = outputs.unbind(1)
    p_win = win_probability(chosen, rejected).double()
    won = wins(chosen, rejected).sum().item()
    longer = [_compare(len(p.pair.chosen), len(p.pair.rejected)) for p in pairs]
    tau = 0.5 if tie == "half" else 0.0
    if outputs.shape[-1] == 1:
        loss, chance = bradley_terry(chosen[:, 0], rejected[:, 0]), chance_loss(10, 0.5)
    else:
        loss, chance = ratings_win_loss(chosen, rejected, tau), chance_loss(10, tau)
    low, high = wilson_interval(won, len(pairs))
    both_orders = [*p_win.tolist(), *(1 - p_win).tolist()]
    found = {
        "accuracy": won / len(pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_wins": sum(longer) / len(pairs),
        "loss": loss.item(),
        "chance_loss": chance,
        "calibration_error": expected_calibration_error(
            both_orders, [1] * len(pairs) + [0] * len(pairs)
        ),
        "reward/chosen": read_reward(chosen, "mean").mean().item(),
        "reward/rejected": read_reward(rejected, "mean").mean().item(),
    }
    return found, outputs


def _compare(a: int, b: int) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def scored_rows(tokenizer, pairs: list[EncodedPair], outputs: Tensor) -> list[dict]:
    """One row per held-out pair for held_out_scores.jsonl; outputs [N, 2, labels]."""
    rewards = read_reward(outputs, "mean")
    p_win = win_probability(outputs[:, 0], outputs[:, 1])
    rows = []
    for i, pair in enumerate(pairs):
        row = {
            "prompt": prompt_text(pair.pair.prompt),
            "chosen": pair.pair.chosen,
            "rejected": pair.pair.rejected,
            "chosen_reward": rewards[i, 0].item(),
            "rejected_reward": rewards[i, 1].item(),
            "p_win": p_win[i].item(),
            "chosen_tokens": len(pair.answers[0]),
            "rejected_tokens": len(pair.answers[1]),
        }
        if outputs.shape[-1] > 1:
            row["chosen_ratings"], row["rejected_ratings"] = outputs[i].softmax(-1).tolist()
        rows.append(row)
    return rows


@dataclass(frozen=True)
class PolicyBench:
    """Held-out prompts (text or messages, and their ids) and what it takes to measure a policy."""

    reference: object
    scorer: RolloutScorer
    tokenizer: object
    layout: Layout
    prompts: list
    prompt_ids: list[list[int]]
    sampling: dict
    gold: Callable[[str, str], float] | None = None

    @torch.no_grad()
    def measure(self, policy, seed: int = 0) -> tuple[dict, list[dict]]:
        """One answer per prompt, sampled with its own seed: metrics, and a row per prompt.

        `reward/mean` is in the reading's own unit; `…_low`, `…_high` are 95 % bootstrap bounds.
        """
        rollout, rewards = self.answers(policy, seed)
        log_ratio = torch.zeros(len(self.prompts))
        for rows in length_batches([len(p) for p in self.prompt_ids], 64, 2**15):
            tree = build_tree(
                [rollout.prompts[i] for i in rows], [rollout.answers[i] for i in rows], self.layout
            )
            temperature = self.sampling["temperature"]
            ours = answer_log_probs(policy, tree, temperature)
            log_ratio[rows] = k1(ours, answer_log_probs(self.reference, tree, temperature)).cpu()
        columns = {"reward/mean": rewards.tolist(), "kl/mean": log_ratio.tolist()}
        texts = answer_texts(self.tokenizer, rollout)
        if self.gold:
            columns["reward/gold"] = gold_ratings(self.gold, self.prompts, self.tokenizer, rollout)
        found = rollout_metrics(rollout)
        for name, values in columns.items():
            found[name] = sum(values) / len(values)
            found[f"{name}_low"], found[f"{name}_high"] = bootstrap_interval(values)
        rows = []
        for i, prompt in enumerate(self.prompts):
            row = {"prompt": prompt_text(prompt), "answer": texts[i][0]}
            row |= {"finished": bool(rollout.finished[i]), "reward": columns["reward/mean"][i]}
            if self.gold:
                row["gold"] = columns["reward/gold"][i]
            rows.append(row)
        return found, rows

    def answers(self, policy, seed: int = 0):
        """One sampled answer per prompt and its raw reward: Rollout, [P]."""
        generator = torch.Generator(policy.device).manual_seed(seed)
        rollout = sample(policy, self.prompt_ids, 1, generator=generator, **self.sampling)
        start = None
        if self.scorer.needs_start:
            start = sample(self.reference, self.prompt_ids, 1, generator=generator, **self.sampling)
        return rollout, self.scorer(rollout, self.prompts, start)[0][:, 0]


def answer_texts(tokenizer, rollout: Rollout) -> list[list[str]]:
    """The rollout's answers as text, [P][K]."""
    return [[decode_answer(tokenizer, a) for a in answers] for answers in rollout.answers]


def gold_ratings(gold: Callable, prompts: list, tokenizer, rollout: Rollout) -> list[float]:
    """The true rating of every answer of the rollout, prompt by prompt: P·K numbers."""
    texts = answer_texts(tokenizer, rollout)
    pairs = zip(prompts, texts, strict=True)
    return [gold(prompt_text(prompt), text) for prompt, own in pairs for text in own]


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Length in tokens, finished share, distinct-2 and longest run of the answers' tokens."""
    flat = [answer for answers in rollout.answers for answer in answers]
    return {
        "length/mean": sum(map(len, flat)) / len(flat),
        "finished/rate": rollout.finished.double().mean().item(),
        "text/distinct_2": distinct_n(flat, 2),
        "text/longest_run": sum(longest_run(answer) for answer in flat) / len(flat),
    }


def side_by_side(before: list[dict], after: list[dict]) -> list[dict]:
    """Rows of two measurements of the same prompts, joined for samples.jsonl."""
    rows = []
    for old, new in zip(before, after, strict=True):
        row = {"prompt": old["prompt"], "before": old["answer"], "after": new["answer"]}
        for key in ("reward", "gold", "finished"):
            if key in old:
                row |= {f"before_{key}": old[key], f"after_{key}": new[key]}
        rows.append(row)
    return rows


def show(summary: dict, samples: list[dict], count: int = 3) -> None:
    """Print what changed, and some answers before and after."""
    before, after = summary["before"], summary["after"]
    print(f"{'held-out prompts':24}{'before':>10}{'after':>10}")
    for key in before:
        if not key.endswith(("_low", "_high")):
            print(f"{key:24}{before[key]:10.3f}{after[key]:10.3f}")
    for row in samples[:count]:
        print(f"\n{row['prompt']}\n  before: {row['before']}\n  after:  {row['after']}")
