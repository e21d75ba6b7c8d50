"""Curves of one reward model of the over-optimisation study: REINFORCE, best of n, frontier."""

import json
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

import train_policy
from experiments import best_of_n, zoo_runs
from experiments.exact_kl import rollout_kl
from rlhf_min.models import loading
from rlhf_min.models.answers import answer_texts
from rlhf_min.models.reward_model import all_outputs
from rlhf_min.models.sampling import sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.models.tokens import encode_prompts, end_token_ids
from rlhf_min.reporting.diagnosis import MIN_STEPS, collapse, diagnose
from rlhf_min.zoo import world

N_GRID = (1, 2, 3, 5, 8, 13, 22, 37, 60, 100, 170, 280, 460, 700, 1000)
KL_GRID = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)  # nats, of the frontier
NEW_TOKENS, CONTEXT = 64, 256
UNSEEN = ("unknown", "repeated", "misplaced")  # never in the training data (tests prove it)


def noisy_pairs(count: int, seed: int) -> Path:
    """A file of `count` pairs of the zoo's noisy annotators, another draw for every seed."""

    def build(folder: Path) -> None:
        folder.mkdir(parents=True)
        rows = [json.dumps(row) + "\n" for row in world.pairs("train", count, seed)]
        (folder / "pairs.jsonl").write_text("".join(rows), "utf-8")

    return zoo_runs.built("noisy-pairs", {"count": count, "seed": seed}, build) / "pairs.jsonl"


@lru_cache(maxsize=2)  # the runs of a seed come one after the other
def start_samples(start: Path, prompts: int, count: int) -> dict:
    """`count` answers of the start model to each of some held-out prompts, kept in the lab.

    → prompts and distinct answers (token ids [P][U], gold [P][U]) and `which` [P, N] into them.
    """

    def build(folder: Path) -> None:
        tokenizer = loading.load_tokenizer(str(start))
        model = loading.load_causal_lm(str(start), torch.float32)
        texts = random.Random("best of n").sample(world.prompts("held-out"), prompts)
        encoded, _ = encode_prompts(tokenizer, texts, CONTEXT - NEW_TOKENS)
        kept = {"texts": texts, "prompts": [e.ids for e in encoded]}
        kept |= {"answers": [], "which": [], "gold": [], "finished": []}
        generator = torch.Generator().manual_seed(1)
        ends = end_token_ids(model, tokenizer)
        for one, text in zip(encoded, texts, strict=True):
            (answers,) = sample(model, [one.ids], count, NEW_TOKENS, ends, 1.0, generator).answers
            places: dict[tuple, int] = {}
            kept["which"].append([places.setdefault(tuple(a), len(places)) for a in answers])
            kept["answers"].append([list(a) for a in places])
            decoded = tokenizer.batch_decode(kept["answers"][-1], skip_special_tokens=True)
            kept["gold"].append([world.gold_rating(text, a.strip()) for a in decoded])
            kept["finished"].append([a[-1] in ends for a in kept["answers"][-1]])
        folder.mkdir(parents=True)
        torch.save(kept, folder / "samples.pt")

    wanted = {"start": start.name, "prompts": prompts, "count": count}
    return torch.load(zoo_runs.built("samples", wanted, build) / "samples.pt")


def spread(values: list[list[float]], which: list[list[int]]) -> np.ndarray:
    """Values of the distinct answers [P][U] → of all samples [P, N]."""
    return np.array([np.array(own)[index] for own, index in zip(values, which, strict=True)])


def scored(scorer: RewardScorer, kept: dict) -> np.ndarray:
    """Scores of the reward model for the samples of `start_samples`: [P, N]."""
    prompts, branches, scores = [], [], []
    for ids, answers in zip(kept["prompts"], kept["answers"], strict=True):
        groups = [answers[i : i + 8] for i in range(0, len(answers), 8)]  # rows of fit length
        prompts, branches = prompts + [ids] * len(groups), branches + groups
    flat = all_outputs(scorer.model, prompts, branches)[:, 0].tolist()
    for answers in kept["answers"]:
        scores.append(flat[: len(answers)])
        flat = flat[len(answers) :]
    return spread(scores, kept["which"])


def best_of_n_curves(scorer: RewardScorer, kept: dict) -> dict:
    """Best of n and the frontier by this reward model; gold and score in units of the start's std.

    The score loses the missing-end penalty of train_policy.py, 1 standard deviation.
    """
    gold = spread(kept["gold"], kept["which"])
    score, finished = scored(scorer, kept), spread(kept["finished"], kept["which"])
    gold, score = (
        (gold - gold.mean()) / (gold.std() or 1.0),
        (score - score.mean()) / (score.std() or 1.0),
    )
    unequal = np.sign(gold[:, ::2] - gold[:, 1::2])
    agree = (np.sign(score[:, ::2] - score[:, 1::2]) * unequal).sum()
    score = score - (1.0 - finished)
    score -= score.mean()
    labels, grid = np.array(kept["which"]), [n for n in N_GRID if n <= gold.shape[1]]
    return {
        "accuracy": 0.5 + agree / 2 / max(1, np.abs(unequal).sum()),
        "n": grid,
        "gold": [best_of_n.best_of_n(score, gold, n).mean() for n in grid],
        "score": [best_of_n.best_of_n(score, score, n).mean() for n in grid],
        "kl": [best_of_n.counted_kl(score, labels, n) for n in grid],
        "tilt_gold": [best_of_n.frontier(score, gold, kl) for kl in KL_GRID],
        "tilt_score": [best_of_n.frontier(score, score, kl) for kl in KL_GRID],
        "best_gold": [best_of_n.frontier(gold, gold, kl) for kl in KL_GRID],
    }


class Memory:
    """Stands for RunLog in `train_policy.train`: keeps the steps' metrics and writes no files."""

    def __init__(self):
        self.under_way: dict = {}
        self.steps: list[dict] = []

    def log(self, step: int, metrics: dict, bar=None) -> None:
        """Keep the metrics of one step."""
        self.steps.append({"step": step, **metrics})

    def checkpoint_due(self, step: int) -> bool:
        """Never: these runs last seconds."""
        return False


def reinforce_curve(start: Path, scorer: RewardScorer, wanted: dict, times: list[int]) -> tuple:
    """REINFORCE by train_policy.py's own loop: (points at the steps `times`, steps' metrics).

    wanted: settings of train_policy.py's Config, seed among them.  Each point has one answer to
    each of `eval_prompts` held-out prompts, with the same random numbers at every time.
    """
    config = train_policy.Config(model=str(start), eval_every=1, **wanted)
    tokenizer = scorer.policy_tokenizer
    policy, reference = loading.load_policy(config, torch.float32, tokenizer)
    ends = end_token_ids(policy, tokenizer)
    sampling = {"max_new_tokens": NEW_TOKENS, "temperature": 1.0, "end_ids": ends}
    train, held_out = world.prompts("train"), world.prompts("held-out")
    texts = random.Random("curve").sample(held_out, config.eval_prompts)
    train, _ = encode_prompts(tokenizer, train, CONTEXT - NEW_TOKENS)
    prompts, _ = encode_prompts(tokenizer, texts, CONTEXT - NEW_TOKENS)
    points: list[dict] = []
    clock = iter(range(1, config.steps + 1))

    def evaluate(policy, step=None):
        step = next(clock) if step is None else step
        if step in times:
            generator = torch.Generator().manual_seed(7)
            rollout = sample(policy, [p.ids for p in prompts], 1, generator=generator, **sampling)
            score = scorer.score(rollout, texts)[0][:, 0]
            answers = [text for (text,) in answer_texts(tokenizer, rollout)]
            kl = rollout_kl(policy, reference, rollout).mean().item() if step else 0.0
            points.append(point(step, kl, score, rollout.finished[:, 0], texts, answers))
        return {}, {}

    evaluate(policy, step=0)
    first = points[0]
    before = {"reward/mean": first["score"], "finished/rate": first["finished"], "kl/mean": 0.0}
    scale = {"mean": first["score"], "std": first["score_std"]}
    state, log = {"step": 0, "reward_scale": scale, "before": before}, Memory()
    train_policy.train(config, policy, reference, scorer, train, sampling, evaluate, log, state)
    return points, log.steps


def point(step: int, kl: float, score, finished, prompts: list[str], answers: list[str]) -> dict:
    """One point of a curve: means over held-out prompts, and the mean losses of quality by cause.

    score, finished: [P]; gold and losses in rating points.
    """
    gold = np.array([world.gold_rating(*pair) for pair in zip(prompts, answers, strict=True)])
    losses: dict[str, float] = {}
    unseen = np.zeros(len(answers), bool)
    for i, pair in enumerate(zip(prompts, answers, strict=True)):
        own = world.losses(*pair)
        unseen[i] = any(own.get(kind) for kind in UNSEEN)
        for kind, cost in own.items():
            losses[kind] = losses.get(kind, 0.0) + cost / len(answers)
    return {
        "step": step,
        "kl": kl,
        "gold": float(gold.mean()),
        "gold_std": float(gold.std()) or 1.0,
        "score": score.mean().item(),
        "score_std": score.std().item() or 1.0,
        "finished": finished.double().mean().item(),
        "losses": losses,
        "unseen": float(unseen.mean()),
        # how far gold is below 10 through answers with, and without, kinds of text never trained on
        "short_unseen": float(((10 - gold) * unseen).mean()),
        "short_seen": float(((10 - gold) * ~unseen).mean()),
    }


def stopped_at(steps: list[dict]) -> dict:
    """The first step at which a run would be stopped: by the report's diagnosis, by its KL limit.

    steps: metrics of the steps.  None: never.  Only the diagnosis sees the gold rating.
    """
    ends = range(MIN_STEPS, len(steps) + 1)
    hacked = (steps[t - 1]["step"] for t in ends if diagnose(steps[:t], {})[0] == "hacking")
    limit = (row["step"] for row in steps if collapse(row))
    return {"diagnosis": next(hacked, None), "limit": next(limit, None)}
