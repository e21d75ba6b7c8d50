"""The policy training loop in plain PyTorch: one answer at a time, in the order of the formulas.

train_policy.py computes the same numbers with prompt trees, micro-batches and chunks of logits;
test_train_policy.py runs both on the same sampled answers and compares them.  What is for
`config.reading` and s["weight"] belongs to the ratings head: skip it on a first reading.
"""

import math

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def answer_log_prob(model, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t): the log-probs of the answer's tokens, summed."""
    logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0]  # [tokens, V]
    # The logits at position t belong to the token at position t + 1.
    log_p = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)  # [T, V]
    return log_p[range(len(answer)), answer].sum()


def reward_outputs(reward_model, prompt: list[int], answer: list[int]) -> Tensor:
    """The reward head's output at the answer's last token: [1], or [10] logits of the ratings."""
    hidden = reward_model.model(torch.tensor([prompt + answer])).last_hidden_state[0, -1]
    return reward_model.score(hidden).detach()


def plain_policy_loop(config, rollouts: list, reward_scale: dict, end_ids: list[int], start: float):
    """Train a policy on answers that were sampled before; returns its weights and the metrics.

    config: settings of train_policy.py; rollouts: one per step, and with --reading win one more of
    the reference model after each; reward_scale: {"mean", "std"} of the reference's scores;
    start: the baseline of the first step.
    """
    policy, reference = (AutoModelForCausalLM.from_pretrained(config.model) for _ in range(2))
    policy.get_input_embeddings().padding_idx = None  # train the pad token too: it may be the end
    reward_model = AutoModelForSequenceClassification.from_pretrained(config.reward_model)
    optimiser = torch.optim.AdamW(policy.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    rollouts, all_rewards, average, metrics = list(rollouts), [], start, []
    for step in range(config.steps):
        # 1. Answers y sampled from π: here given.
        rollout = rollouts.pop(0)
        reference_answers = rollouts.pop(0).answers if config.reading == "win" else None
        samples = [
            {"prompt": rollout.prompts[p], "answer": answer, "group": p}
            for p in range(len(rollout.prompts))
            for answer in rollout.answers[p]
        ]
        for s in samples:
            # 2. Score, standardised, minus a penalty for an answer without its end token.
            z, z_reference = reward_outputs(reward_model, s["prompt"], s["answer"]), None
            if reference_answers:
                other = reference_answers[s["group"]][0]
                z_reference = reward_outputs(reward_model, s["prompt"], other)
            s["score"], s["weight"] = score_of(z, z_reference, config), weight_of(z, config.weight)
            s["reward"] = (s["score"] - reward_scale["mean"]) / reward_scale["std"]
            if s["answer"][-1] not in end_ids:
                s["reward"] -= config.missing_end_penalty
            # 3. KL penalty: R = r' − β·log[π(y|x)/π_ref(y|x)].
            question = s["prompt"], s["answer"], config.temperature
            s["old"] = answer_log_prob(policy, *question).item()
            ref = answer_log_prob(reference, *question).item()
            s["kl"] = s["old"] - ref
            s["total"] = s["reward"] - config.kl * s["kl"]
        # 4. Advantage: reward minus baseline.  The baseline never contains the answer itself.
        rewards = [s["total"] for s in samples]
        baseline = 0.0
        if config.baseline == "moving-average":
            baseline = sum(all_rewards) / len(all_rewards) if all_rewards else start
        elif config.baseline == "ema":
            baseline = average
        for i, s in enumerate(samples):
            b = baseline
            if config.baseline == "leave-one-out":
                group = [j for j, other in enumerate(samples) if other["group"] == s["group"]]
                b = sum(rewards[j] for j in group if j != i) / (len(group) - 1)
            s["advantage"] = (s["total"] - b) * s["weight"]
        # 5. Loss, gradient, optimiser step.
        for _ in range(config.updates):
            loss, clipped = 0.0, 0
            for s in samples:
                log_prob = answer_log_prob(policy, s["prompt"], s["answer"], config.temperature)
                clipped += abs(math.exp(log_prob.item() - s["old"]) - 1) > config.clip
                if config.objective == "reinforce":  # −A·log π(y|x)
                    loss = loss - s["advantage"] * log_prob / len(samples)
                else:  # PPO: −min(ρA, clip(ρ)A)
                    ratio = (log_prob - s["old"]).exp()
                    bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
                    gain = torch.minimum(ratio * s["advantage"], bounded * s["advantage"])
                    loss = loss - gain / len(samples)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm).item()
            optimiser.param_groups[0]["lr"] = config.lr * min(1.0, (step + 1) / config.warm_up)
            optimiser.step()
            optimiser.zero_grad()
        # 6. Only now do the new rewards enter the baseline.
        all_rewards += rewards
        decay = config.ema_decay
        average = decay * average + (1 - decay) * sum(rewards) / len(rewards)

        def mean(name, samples=samples):
            return sum(s[name] for s in samples) / len(samples)

        metrics.append({
            "reward/mean": mean("score"), "reward/with_kl": mean("total"), "kl/mean": mean("kl"),
            "baseline/value": baseline, "advantage/mean": mean("advantage"), "grad/norm": norm,
            "clip/fraction": clipped / len(samples),
            "length/mean": sum(len(s["answer"]) for s in samples) / len(samples),
        })  # fmt: skip
    return dict(policy.named_parameters()), metrics


# The rest is for the ratings head (--reading, --weight): skip it on a first reading.


def score_of(z: Tensor, z_reference: Tensor | None, config) -> float:
    """One number from the head's output (--reading)."""
    if config.reading == "win" and len(z) == 1:
        return torch.sigmoid(z - z_reference).item()
    if len(z) == 1:
        return z.item()
    p, ratings = z.double().softmax(-1), torch.arange(1, 11).double()
    if config.reading == "win":  # P(rating > reference's rating), ties count ½
        joint = p[:, None] * z_reference.double().softmax(-1)[None]
        return (joint.tril(-1).sum() + joint.trace() / 2).item()
    if config.reading == "entropic":
        b = config.entropic_b
        return (-b * (p * (-ratings / b).exp()).sum().log()).item()
    return (p * ratings).sum().item()


def weight_of(z: Tensor, kind: str) -> float:
    """Factor of the advantage from the standard deviation of the ratings (--weight)."""
    if kind == "none":
        return 1.0
    p, ratings = z.double().softmax(-1), torch.arange(1, 11).double()
    variance = ((p * ratings**2).sum() - (p * ratings).sum() ** 2).item()
    sigma = max(variance, 0.01) ** 0.5
    factors = {"inverse-sigma": 1 / sigma, "inverse-variance": 1 / sigma**2}
    return factors.get(kind, 1 / (1 + sigma))
