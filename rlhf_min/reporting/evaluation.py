"""Metrics: of a reward model and of a policy on held-out prompts, and of one training step."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_min.data.encoding import EncodedPair
from rlhf_min.data.preferences import prompt_text
from rlhf_min.maths.preference_losses import bradley_terry, ratings_win_loss
from rlhf_min.maths.ratings import chance_loss
from rlhf_min.maths.reward_shaping import k1, reward_scale
from rlhf_min.maths.statistics import (
    bootstrap_interval,
    distinct_n,
    expected_calibration_error,
    longest_run,
    wilson_interval,
)
from rlhf_min.models.answers import answer_texts
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.reward_model import branch_outputs, reward_from, win_probability, wins
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import EncodedPrompt
from rlhf_min.reporting import report
from rlhf_min.reporting.run_folder import RunLog
from rlhf_min.zoo import world

Gold = Callable[[str, str], float]  # the true rating of (prompt, answer), where it is known


@torch.no_grad()
def evaluate_reward_model(model, pairs: list[EncodedPair], tie: float):
    """Metrics on held-out pairs, and head outputs [N, 2, labels].

    A tie counts ½ in the accuracy, which has a 95 % Wilson interval; `tie` is that of
    `ratings_win_loss`.
    """
    outputs = torch.zeros(len(pairs), 2, model.config.num_labels)
    prompts, answers = [pair.prompt for pair in pairs], [pair.answers for pair in pairs]
    for n, tree in tree_batches(model, prompts, answers, 64, 2**15):
        outputs[n] = branch_outputs(model, tree).view(len(n), 2, -1).cpu()
    chosen, rejected = outputs.unbind(1)
    if outputs.shape[-1] == 1:
        loss, chance = bradley_terry(chosen[:, 0], rejected[:, 0]), chance_loss(10, 0.5)
    else:
        loss, chance = ratings_win_loss(chosen, rejected, tie), chance_loss(10, tie)
    won = wins(chosen, rejected).sum().item()
    low, high = wilson_interval(won, len(pairs))
    p_win = win_probability(chosen, rejected).double().tolist()
    both_orders = [*p_win, *(1 - p for p in p_win)]
    calibration = expected_calibration_error(both_orders, [1] * len(pairs) + [0] * len(pairs))
    lengths = [(len(p.pair.chosen), len(p.pair.rejected)) for p in pairs]
    metrics = {
        "accuracy": won / len(pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_wins": sum(0.5 + ((c > r) - (c < r)) / 2 for c, r in lengths) / len(pairs),
        "loss": loss.item(),
        "chance_loss": chance,
        "calibration_error": calibration,
        "reward/chosen": reward_from(chosen, "mean").mean().item(),
        "reward/rejected": reward_from(rejected, "mean").mean().item(),
    }
    return metrics, outputs


def scored_rows(pairs: list[EncodedPair], outputs: Tensor) -> list[dict]:
    """One row per held-out pair for held_out_scores.jsonl; outputs [N, 2, labels]."""
    rewards = reward_from(outputs, "mean")
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


def sample_and_score(
    model, reference, scorer: RewardScorer, prompts: list[EncodedPrompt], sampling: dict, seed=0
) -> tuple[Rollout, Tensor]:
    """One answer of `model` to each prompt, sampled with this seed, and their rewards [P]."""
    ids = [prompt.ids for prompt in prompts]
    settings = {"generator": torch.Generator(model.device).manual_seed(seed), **sampling}
    rollout = sample(model, ids, 1, **settings)
    against = sample(reference, ids, 1, **settings) if scorer.needs_reference else None
    return rollout, scorer.score(rollout, [p.prompt for p in prompts], against)[0][:, 0]


def evaluate_policy(
    policy,
    reference,
    scorer: RewardScorer,
    prompts: list[EncodedPrompt],
    sampling: dict,
    gold: Gold | None,
) -> tuple[dict, list[dict]]:
    """Metrics of a policy on held-out prompts, and one row per prompt.

    `reward/mean` is not standardised; `…_low` and `…_high` are the ends of 95 % bootstrap
    intervals over prompts.
    """
    rollout, rewards = sample_and_score(policy, reference, scorer, prompts, sampling)
    log_probs, ref_log_probs = (
        rollout_log_probs(model, rollout, sampling["temperature"], 64, 2**15)
        for model in (policy, reference)
    )
    columns = {
        "reward/mean": rewards.tolist(),
        "kl/mean": k1(log_probs, ref_log_probs)[:, 0].tolist(),
    }
    if gold:
        columns["reward/gold"] = gold_ratings(gold, prompts, rollout, scorer)
    metrics = rollout_metrics(rollout)
    for name, values in columns.items():
        metrics[name] = sum(values) / len(values)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_interval(values)
    rows = []
    texts = answer_texts(scorer.policy_tokenizer, rollout)
    for i, prompt in enumerate(prompts):
        row = {"prompt": prompt_text(prompt.prompt), "answer": texts[i][0]}
        row |= {"finished": bool(rollout.finished[i]), "reward": columns["reward/mean"][i]}
        if gold:
            row["gold"] = columns["reward/gold"][i]
        rows.append(row)
    return metrics, rows


def gold_of(specs: list[str]) -> Gold | None:
    """The true rating where all data are the zoo's, else None."""
    return world.gold_rating if {spec.split(":")[0] for spec in specs} == {"zoo"} else None


def gold_ratings(
    gold: Gold, prompts: list[EncodedPrompt], rollout: Rollout, scorer: RewardScorer
) -> list[float]:
    """The true rating of every answer of a rollout, prompt by prompt: P·K numbers."""
    texts = answer_texts(scorer.policy_tokenizer, rollout)
    pairs = zip(prompts, texts, strict=True)
    return [gold(prompt_text(prompt.prompt), text) for prompt, own in pairs for text in own]


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Length in tokens, share of finished answers, distinct-2 and longest run of their tokens."""
    flat = [answer for answers in rollout.answers for answer in answers]
    return {
        "length/mean": sum(map(len, flat)) / len(flat),
        "finished/rate": rollout.finished.double().mean().item(),
        "text/distinct_2": distinct_n(flat, 2),
        "text/longest_run": sum(longest_run(answer) for answer in flat) / len(flat),
    }


def step_metrics(
    rollout: Rollout, scores: Tensor, rewards: Tensor, advantages: Tensor, log_probs: Tensor, ref
) -> dict[str, float]:
    """Metrics of one training step; docs/metrics.md explains each.

    scores: of the reward model; rewards: standardised, with all penalties; log_probs, ref: of the
    answers under the policy that sampled them and under the reference.  All [P, K].
    """
    return {
        "reward/mean": scores.mean().item(),
        "reward/with_kl": rewards.mean().item(),
        "kl/mean": k1(log_probs, ref).mean().item(),
        "advantage/mean": advantages.mean().item(),
        "advantage/std": advantages.std().item(),
        **rollout_metrics(rollout),
    }


def reference_scale(
    reference, scorer: RewardScorer, prompts: list[EncodedPrompt], sampling: dict, seed: int
) -> dict[str, float]:
    """Mean and standard deviation of the rewards of one reference answer to each prompt."""
    return reward_scale(sample_and_score(reference, reference, scorer, prompts, sampling, seed)[1])


def write_results(log: RunLog, state: dict, after: dict, answers: list[dict], steps: int) -> dict:
    """Write samples.jsonl, summary.json and the report of a policy run; returns the summary.

    state, and after with answers: held-out metrics and rows before and after training.
    """
    samples = []
    for old, new in zip(state["samples"], answers, strict=True):
        row = {"prompt": old["prompt"], "before": old["answer"], "after": new["answer"]}
        for key in ("reward", "gold", "finished"):
            if key in old:
                row |= {f"before_{key}": old[key], f"after_{key}": new[key]}
        samples.append(row)
    log.write_rows("samples.jsonl", samples)
    summary = {"before": state["before"], "after": after, "steps": steps}
    log.finish(summary)
    report.write_report(log.out)
    show(summary, samples)
    return summary


def show(summary: dict, samples: list[dict], count: int = 3) -> None:
    """Print the held-out metrics and a few answers, before and after training."""
    before, after = summary["before"], summary["after"]
    print(f"{'held-out prompts':24}{'before':>10}{'after':>10}")
    for key in before:
        if not key.endswith(("_low", "_high")):
            print(f"{key:24}{before[key]:10.3f}{after[key]:10.3f}")
    for row in samples[:count]:
        print(f"\n{row['prompt']}\n  before: {row['before']}\n  after:  {row['after']}")
