"""Metrics: of a reward model and of a policy on held-out prompts, and of one training step."""

import torch
from torch import Tensor

from rlhf_min.data.preferences import EncodedPair, draw_items, prompt_text
from rlhf_min.data.visible import visible
from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import precise
from rlhf_min.hardware.finite import check_finite, naming
from rlhf_min.maths import statistics as stats
from rlhf_min.maths.preference_losses import bradley_terry, ratings_win_loss
from rlhf_min.maths.ratings import chance_loss
from rlhf_min.maths.reward_shaping import k1, reward_scale, standardise
from rlhf_min.models.alignment import alignment_gap
from rlhf_min.models.answers import answer_texts
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.ensemble import ensemble_in
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.reward_model import branch_outputs, reward_from, win_probability, wins
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.reporting.run_folder import RunLog
from rlhf_min.zoo import world


@torch.no_grad()
def evaluate_reward_model(model, pairs: list[EncodedPair], tie: float):
    """Metrics on held-out pairs, and head outputs [N, 2, labels].

    A tie counts ½ in the accuracy (95 % Wilson interval); `tie` is that of `ratings_win_loss`.
    """
    outputs = torch.zeros(len(pairs), 2, model.config.num_labels, dtype=precise(model.dtype))
    prompts, answers = [pair.prompt for pair in pairs], [pair.answers for pair in pairs]
    for n, tree in tree_batches(model, prompts, answers, 64, forward=True):
        outputs[n] = branch_outputs(model, tree).view(len(n), 2, -1).cpu()
    ranks.complete(outputs)
    with naming({"place": "held-out pairs", "prompts": [pair.pair.prompt for pair in pairs]}):
        check_finite("the reward model's output", outputs)
    chosen, rejected = outputs.unbind(1)
    if outputs.shape[-1] == 1:
        loss, chance = bradley_terry(chosen[:, 0], rejected[:, 0]), chance_loss(10, 0.5)
    else:
        loss, chance = ratings_win_loss(chosen, rejected, tie), chance_loss(10, tie)
    won = wins(chosen, rejected).sum().item()
    low, high = stats.wilson_interval(won, len(pairs))
    p_win = win_probability(chosen, rejected).double().tolist()
    both_orders = [*p_win, *(1 - p for p in p_win)]
    calibration = stats.expected_calibration_error(both_orders, [1] * len(pairs) + [0] * len(pairs))
    longer = [len(p.pair.chosen) - len(p.pair.rejected) for p in pairs]  # in characters
    return {
        "accuracy": won / len(pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_wins": sum((d > 0) + (d == 0) / 2 for d in longer) / len(pairs),
        "loss": loss.item(),
        "chance_loss": chance,
        "calibration_error": calibration,
        "reward/chosen": reward_from(chosen, "mean").mean().item(),
        "reward/rejected": reward_from(rejected, "mean").mean().item(),
    }, outputs


def held_out_series(metrics: dict) -> dict:
    """The metrics of `evaluate_reward_model` that metrics.jsonl holds, by their names there."""
    names = {"loss": "loss/held_out", "accuracy": "accuracy/held_out"}
    names |= {f"accuracy_{end}": f"accuracy/held_out_{end}" for end in ("low", "high")}
    return {name: metrics[key] for key, name in names.items()}


def write_reward_results(log: RunLog, summary: dict, held_out: list, outputs: Tensor) -> dict:
    """Write held_out_scores.jsonl, summary.json and the report of a reward model; the summary."""
    log.write_rows("held_out_scores.jsonl", scored_rows(held_out, outputs))
    log.finish(summary)
    print(
        f"{log.out}: held-out accuracy {summary['accuracy']:.3f} "
        f"[{summary['accuracy_low']:.3f}, {summary['accuracy_high']:.3f}], longer wins "
        f"{summary['longer_wins']:.3f}, loss {summary['loss']:.3f} "
        f"(chance {summary['chance_loss']:.3f})"
    )
    return summary


def rows_of(columns: dict[str, list]) -> list[dict]:
    """One dictionary per row of a table that is given by its columns."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def scored_rows(pairs: list[EncodedPair], outputs: Tensor) -> list[dict]:
    """One row per held-out pair for held_out_scores.jsonl; outputs [N, 2, labels]."""
    rewards = reward_from(outputs, "mean")
    columns = {
        "prompt": [prompt_text(pair.pair.prompt) for pair in pairs],
        "chosen": [pair.pair.chosen for pair in pairs],
        "rejected": [pair.pair.rejected for pair in pairs],
        "chosen_reward": rewards[:, 0].tolist(),
        "rejected_reward": rewards[:, 1].tolist(),
        "p_win": win_probability(outputs[:, 0], outputs[:, 1]).tolist(),
        "chosen_tokens": [len(pair.answers[0]) for pair in pairs],
        "rejected_tokens": [len(pair.answers[1]) for pair in pairs],
    }
    if outputs.shape[-1] > 1:
        for i, side in enumerate(("chosen", "rejected")):
            columns[f"{side}_ratings"] = outputs[:, i].softmax(-1).tolist()
    return rows_of(columns)


def sample_and_score(model, reference, scorer: RewardScorer, prompts, sampling: dict, seed=0):
    """A rollout with one answer of `model` to each EncodedPrompt, and its scores [P]."""
    ids = [prompt.ids for prompt in prompts]
    settings = {"generator": torch.Generator(model.device).manual_seed(seed), **sampling}
    texts = [prompt.prompt for prompt in prompts]
    with naming({"place": "evaluation", "prompts": texts}):
        rollout = sample(model, ids, 1, **settings)
        ref_rollout = sample(reference, ids, 1, **settings) if scorer.needs_reference else None
        return rollout, scorer.score(rollout, texts, ref_rollout)[0][:, 0]


def reference_scales(reference, scorer, prompts, sampling: dict, config) -> dict:
    """Mean and std of the scores of the reference model's answers, one to each of some prompts.

    Keys: "reward_scale"; for an ensemble also "member_scales", computed first and stored in the
    ensemble.
    """
    drawn, seed = draw_items(prompts, config.ruler_prompts, config.data), config.seed

    def scale_of(scorer) -> dict[str, float]:
        scores = sample_and_score(reference, reference, scorer, drawn, sampling, seed)[1]
        if len(scores) > 1 and (scores == scores[0]).all():
            same = f"all {len(scores)} answers of the reference have the reward {scores[0]:g}"
            print(f"warning: {same}, and from equal rewards a policy learns nothing: check it")
        return reward_scale(scores)

    if not (ensemble := ensemble_in(scorer)):
        return {"reward_scale": scale_of(scorer)}
    ensemble.scales = [scale_of(member) for member in ensemble.members]  # of the same answers
    return {"member_scales": ensemble.scales, "reward_scale": scale_of(scorer)}


def mean_total_reward(config, metrics: dict, scale: dict[str, float]) -> float:
    """Mean of standardised score − penalty for a missing end − β·KL, from held-out metrics."""
    reward = standardise(metrics["reward/mean"], scale["mean"], scale["std"])
    reward -= config.missing_end_penalty * (1 - metrics["finished/rate"])
    return reward - config.kl * metrics["kl/mean"]


def evaluate_policy(policy, reference, scorer: RewardScorer, prompts, sampling: dict, gold):
    """Metrics on held-out prompts (EncodedPrompt), and a table of answers: column → [P] values.

    `reward/mean` is not standardised; …_low, …_high: 95 % bootstrap intervals over prompts.
    """
    rollout, rewards = sample_and_score(policy, reference, scorer, prompts, sampling)
    settings = {"temperature": sampling["temperature"], "max_prompts": 64, "forward": True}
    with naming({"place": "evaluation", "prompts": [prompt.prompt for prompt in prompts]}):
        log_probs = rollout_log_probs(policy, rollout, **settings)
        kl = k1(log_probs, rollout_log_probs(reference, rollout, **settings))
    table = {
        "prompt": [prompt_text(prompt.prompt) for prompt in prompts],
        "answer": [text for (text,) in answer_texts(scorer.policy_tokenizer, rollout)],
        "finished": rollout.finished[:, 0].tolist(),
        "reward": rewards.tolist(),
    }
    columns = {"reward/mean": table["reward"], "kl/mean": kl[:, 0].tolist()}
    if ensemble := ensemble_in(scorer):
        columns["reward/spread"] = ensemble.spread[:, 0].tolist()
    if gold:
        table["gold"] = columns["reward/gold"] = list(map(gold, table["prompt"], table["answer"]))
    metrics = {"prompts": len(prompts), **rollout_metrics(rollout)}
    for name, values in columns.items():
        metrics[name] = sum(values) / len(values)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = stats.bootstrap_interval(values)
    return metrics, table


def gold_of(config):
    """(prompt, answer) → true rating if data and eval_data are all the zoo's, else None."""
    sources = {spec.split(":")[0] for spec in [*config.data, *config.eval_data]}
    return world.gold_rating if sources == {"zoo"} else None


def reward_metrics(gold, prompts: list, rollout: Rollout, scorer: RewardScorer) -> dict:
    """Mean gold rating of a rollout (if known), and mean std of an ensemble's scores per answer.

    rollout: must be the one that was scored last.
    """
    ensemble = ensemble_in(scorer)
    metrics = {"reward/spread": ensemble.spread.mean().item()} if ensemble else {}
    if not gold:
        return metrics
    pairs = zip(prompts, answer_texts(scorer.policy_tokenizer, rollout), strict=True)
    ratings = [gold(prompt_text(prompt.prompt), text) for prompt, own in pairs for text in own]
    return metrics | {"reward/gold": sum(ratings) / len(ratings)}


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Length in tokens, share of finished answers, and how much the answers repeat."""
    flat = [answer for answers in rollout.answers for answer in answers]
    return {
        "length/mean": sum(map(len, flat)) / len(flat),
        "finished/rate": rollout.finished.double().mean().item(),
        "text/distinct_2": stats.distinct_n(flat, 2),
        "text/equal": stats.share_equal(list(map(tuple, flat))),
        "text/longest_run": sum(map(stats.longest_run, flat)) / len(flat),
    }


def step_metrics(
    rollout: Rollout, scores: Tensor, rewards: Tensor, advantages: Tensor, log_probs: Tensor, ref
) -> dict[str, float]:
    """Metrics of one training step; docs/metrics.md explains each.  All arguments are [P, K].

    scores: of the reward model; rewards: standardised, with all penalties; log_probs, ref: of the
    answers under the policy that sampled them and under the reference.
    """
    return {
        "reward/mean": scores.mean().item(),
        "reward/with_kl": rewards.mean().item(),
        "kl/mean": k1(log_probs, ref).mean().item(),
        "advantage/mean": advantages.mean().item(),
        "advantage/std": advantages.std().item(),
        "alignment/gap": alignment_gap(rollout, log_probs),
        **rollout_metrics(rollout),
    }


def write_results(log: RunLog, state: dict, after: dict, table: dict, steps: int) -> dict:
    """Write samples.jsonl, summary.json and the report of a policy run; returns the summary.

    state: held-out metrics and table of answers before training; after, table: after training.
    """
    before, old = state["before"], state["samples"]
    columns = {"prompt": old["prompt"], "before": old["answer"], "after": table["answer"]}
    for key in ("reward", "gold", "finished"):
        if key in old:
            columns |= {f"before_{key}": old[key], f"after_{key}": table[key]}
    samples = rows_of(columns)
    log.write_rows("samples.jsonl", samples)
    summary = {"before": before, "after": after, "steps": steps}
    log.finish(summary)
    print(f"{'held-out prompts':24}{'before':>10}{'after':>10}")
    for key in before:
        if not key.endswith(("_low", "_high")):
            print(f"{key:24}{before[key]:10.3f}{after[key]:10.3f}")
    for row in samples[:3]:
        prompt, old_answer, new_answer = (visible(row[k]) for k in ("prompt", "before", "after"))
        print(f"\n{prompt}\n  before: {old_answer}\n  after:  {new_answer}")
    return summary
