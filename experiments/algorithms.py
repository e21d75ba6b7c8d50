"""Study: policy-gradient objectives, best-of-n and DPO, at equal KL and at equal samples.

    python -m experiments.algorithms

Policies: 60 steps of 64 answers against the same reward model, three KL weights; those with a ratio
make two updates per rollout.  DPO learns from the pairs that the reward model learned from.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch

import train_policy
from experiments import algorithms_report, baselines, best_of_n, dpo, lab, objectives, zoo_runs
from rlhf_min.data.preferences import split_prompts
from rlhf_min.models import loading
from rlhf_min.models.answers import answer_texts
from rlhf_min.models.sampling import sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import encode_prompts, end_token_ids
from rlhf_min.reporting import evaluation
from rlhf_min.zoo.world import gold_rating

KL_WEIGHTS, BETAS, DPO_LR = (0.03, 0.1, 0.3), (0.1, 0.3, 1.0), 3e-4
BEST_OF = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
RATIO = {"objective": "ppo-clip", "updates": 2}
POLICIES = {  # settings of train_policy.py that differ from its defaults
    "reinforce": {},
    "rloo-2": {"baseline": "leave-one-out", "samples": 2},
    "rloo-4": {"baseline": "leave-one-out"},
    "ppo": RATIO,
    "ppo-token": RATIO,
    "gspo": RATIO,
}


def settings(quick: bool) -> list[dict]:
    """One run per method and KL weight or β, whole seeds after one another."""
    size = {"steps": 2, "prompts": 8, "batch": 16, "quick": True} if quick else {}
    size = size or {
        "steps": baselines.STEPS,
        "prompts": 256,
        "batch": baselines.BATCH,
        "quick": False,
    }
    weights, betas = (KL_WEIGHTS[1:2], BETAS[1:2]) if quick else (KL_WEIGHTS, BETAS)
    runs = []
    for seed in range(1) if quick else baselines.SEEDS:
        common = {"seed": seed, **size}
        runs += [common | {"method": m, "kl": kl} for kl in weights for m in POLICIES]
        runs += [common | {"method": "best-of-n", "n": [*BEST_OF]}]
        runs += [common | {"method": "dpo", "beta": b, "lr": DPO_LR} for b in betas]
    return runs


def run(settings: dict) -> dict:
    """Held-out gold and KL of one run; "points": one [KL, gold] per n of best-of-n."""
    kinds = {"best-of-n": best_answers, "dpo": direct}
    return kinds.get(settings["method"], policy)(settings)


def policy(settings: dict) -> dict:
    """A run of train_policy.py, with its own objective or another one."""
    method, models = settings["method"], baselines.models(settings)
    own = baselines.policy_settings(settings) | {"kl": settings["kl"], **POLICIES[method]}
    own.setdefault("samples", 4)
    own.setdefault("baseline", "moving-average")
    if method in objectives.PER_TOKEN:
        folder = plugged_policy(method, *models, own)
        outside = json.loads((folder / "outside.json").read_text("utf-8"))
    else:
        folder = zoo_runs.policy(*models, **own)
        outside = [row["clip/fraction"] for row in zoo_runs.metrics(folder)]
    rows, after = zoo_runs.metrics(folder), zoo_runs.summary(folder)["after"]
    result = held_out(after) | {"samples": own["steps"] * own["batch_size"]}
    if own.get("updates"):  # of the second update of each rollout: in the first all ratios are 1
        result["outside"] = round(sum(outside) / len(outside), 4)
    return result | {"curve": zoo_runs.binned(rows, "reward/gold", 5, 3)}


def held_out(metrics: dict) -> dict:
    """Gold, KL and learned reward of `evaluate_policy`, rounded."""
    names = {"gold": "reward/gold", "kl": "kl/mean", "reward": "reward/mean"}
    return {name: round(metrics[long], 4) for name, long in names.items()}


def plugged_policy(method: str, start: Path, reward: Path, settings: dict) -> Path:
    """The folder of a policy trained with one of `objectives.PER_TOKEN`; adds outside.json."""

    def build(folder: Path) -> None:
        config = train_policy.Config(str(start), str(reward), out=str(folder))
        with objectives.plugged_in(method) as own, zoo_runs.without_reports():
            train_policy.main(replace(config, **settings))
        (folder / "outside.json").write_text(json.dumps(own.outside), "utf-8")

    names = {"method": method, "clip": objectives.PER_TOKEN[method][2]}
    names |= {"start": start.name, "reward": reward.name}
    return zoo_runs.built("policy", names | settings, build)


def evaluation_parts(settings: dict) -> tuple:
    """Start model, scorer, held-out prompts and sampling settings, as train_policy.py has them."""
    start, reward = baselines.models(settings)
    own = baselines.policy_settings(settings)
    config = replace(train_policy.Config(str(start), str(reward)), **own)
    tokenizer = loading.load_tokenizer(start)
    model = loading.load_causal_lm(start, torch.float32)
    scorer = RewardScorer(reward, torch.float32, tokenizer)
    room = 256 - config.max_new_tokens
    prompts, _ = encode_prompts(tokenizer, split_prompts(config)[1], room)
    sampling = {"max_new_tokens": config.max_new_tokens, "temperature": 1.0}
    return model, scorer, prompts, sampling | {"end_ids": end_token_ids(model, tokenizer)}


def direct(settings: dict) -> dict:
    """DPO, evaluated as train_policy.py evaluates its policies."""
    start, limit = baselines.models(settings)[0], 64 if settings["quick"] else 0
    beta, lr = settings["beta"], settings["lr"]
    policy, loss = dpo.train(start, beta, settings["seed"], lr, limit)
    reference, scorer, prompts, sampling = evaluation_parts(settings)
    metrics, _ = evaluation.evaluate_policy(
        policy, reference, scorer, prompts, sampling, gold_rating
    )
    return held_out(metrics) | {"loss": round(loss, 4), "samples": 0}


def best_answers(settings: dict) -> dict:
    """The start model's gold, and that of the answer with the best learned reward among n.

    KL = log n − (n − 1)/n (Stiennon et al. 2020); the mean over all subsets of 64 answers.
    """
    model, scorer, prompts, sampling = evaluation_parts(settings)
    most = max(settings["n"])
    scores, gold = [], []  # [prompts][most]
    generator = torch.Generator().manual_seed(settings["seed"])
    for prompt in prompts:
        rollout = sample(model, [prompt.ids], most, generator=generator, **sampling)
        scores.append(scorer.score(rollout, [prompt.prompt])[0][0])
        (texts,) = answer_texts(scorer.policy_tokenizer, rollout)
        gold.append(torch.tensor([gold_rating(prompt.prompt, text) for text in texts]))
    scores, gold = torch.stack(scores).double().numpy(), torch.stack(gold).double().numpy()
    of_best = lambda n: float(best_of_n.best_of_n(scores, gold, n).mean())  # noqa: E731
    points = {n: [best_of_n.formula_kl(n), of_best(n)] for n in settings["n"]}
    return {"points": {str(n): [round(v, 4) for v in point] for n, point in points.items()}}


def report(rows: list[dict], out: Path) -> str:
    """The Markdown section; see algorithms_report.py."""
    return algorithms_report.report(rows, out)


if __name__ == "__main__":
    lab.main("algorithms", settings, run, report)
