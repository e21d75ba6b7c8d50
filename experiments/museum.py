"""The bug museum: what each mistake of docs/traps.md does to a run, beside the right code.

    python -m experiments.museum             # three seeds; writes docs/museum.md's numbers, figures
    python -m experiments.museum --quick     # tiny, to see that it works

The mistakes are in museum_exhibits.py, tables and figures in museum_page.py.  Start model and
reward model of a seed are the same for all exhibits.  A mistake is in place while the training
script runs, its evaluation included; the gold rating of the trained policy is then measured again
by the right code (`true_gold`).
"""

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from unittest import mock

import torch

import train_policy
import train_rm
from experiments import lab, zoo_runs
from experiments.museum_exhibits import EXHIBITS, Exhibit
from rlhf_min import InputError
from rlhf_min.models.alignment import check_alignment
from rlhf_min.models.answers import sample_texts
from rlhf_min.models.loading import load_causal_lm, load_tokenizer
from rlhf_min.reporting.diagnosis import diagnose
from rlhf_min.zoo import world

FULL = {"steps": 60, "eval_prompts": 64, "gold_prompts": 256}
TINY = {"steps": 2, "eval_prompts": 8, "ruler_prompts": 8, "batch_size": 8, "gold_prompts": 8}
TINY |= {"start": {"steps": 30, "examples": 400}}  # and of the reward model:
TINY |= {"reward": {"max_steps": 2, "limit": 64, "eval_limit": 32}}
KEPT = 10  # last steps that a metric is averaged over
CURVES = {"gold": "reward/gold", "reward": "reward/mean", "kl": "kl/mean"}
METRICS = ["reward/mean", "reward/with_kl", "kl/mean", "baseline/value", "advantage/mean"]
METRICS += ["advantage/std", "grad/norm", "alignment/gap", "batch/padding", "length/mean"]
METRICS += ["finished/rate", "text/distinct_2", "text/equal", "text/longest_run"]


def settings(quick: bool) -> list[dict]:
    """One run for each seed and exhibit; the seed changes last."""
    seeds = range(1 if quick else 3)
    common = TINY if quick else FULL
    return [{"seed": seed, "exhibit": name, **common} for seed in seeds for name in EXHIBITS]


@contextlib.contextmanager
def patched(patches: dict):
    """Context manager: every place of `patches` holds its replacement."""
    with contextlib.ExitStack() as stack:
        for place, wrong in patches.items():
            stack.enter_context(mock.patch(place, wrong))
        yield


def reward_model(shown: Exhibit, name: str, start: Path, seed: int, more: dict) -> Path:
    """The reward model of a seed; for an exhibit of stage "reward" one trained with the mistake."""
    own = {"seed": seed, **more}
    own |= {"head": shown.head} if shown.head != "scalar" else {}
    if shown.stage == "policy":
        return zoo_runs.reward_model(start, **own)

    def build(folder: Path) -> None:
        with patched(shown.patches()):
            train_rm.main(train_rm.Config(model=str(start), out=str(folder), **own))

    return zoo_runs.built("rm", {"start": start.name, "mistake": name, **own}, build)


def true_gold(folder: Path, prompts: int, max_new_tokens: int) -> float:
    """Mean gold rating of a model's answers to held-out prompts, by the right code."""
    tokenizer = load_tokenizer(str(folder))
    model = load_causal_lm(str(folder), torch.float32)
    asked = world.prompts("held-out")
    asked = asked[:: max(1, len(asked) // prompts)][:prompts]
    answers, _ = sample_texts(model, tokenizer, asked, max_new_tokens)
    return fmean(world.gold_rating(*pair) for pair in zip(asked, answers, strict=True))


def run(settings: dict) -> dict:
    """Train with one mistake; returns curves, last metrics, messages of guards, and gold."""
    shown, seed = EXHIBITS[settings["exhibit"]], settings["seed"]
    start = zoo_runs.start_model(seed, **settings.get("start", {}))
    more = settings.get("reward", {})
    reward = reward_model(shown, settings["exhibit"], start, seed, more)
    names = "steps", "eval_prompts", "ruler_prompts", "batch_size"
    own = {name: settings[name] for name in names if name in settings}
    if "reward" in settings:  # --quick: as few steps for every exhibit
        own = {**shown.settings, **own}
    else:
        own |= shown.settings
    messages = []

    def record(gap, dtype):
        try:
            check_alignment(gap, dtype)
        except InputError as error:  # the run goes on, to see what would have happened
            messages.append(str(error))

    patches = shown.patches() if shown.stage == "policy" else {}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        config = train_policy.Config(
            model=str(start), reward_model=str(reward), out=str(out), seed=seed, save_every=10**6
        )
        patches["train_policy.check_alignment"] = record
        patches["rlhf_min.reporting.report.write_report"] = lambda *_: None  # plots take time
        with patched(patches):
            summary = train_policy.main(replace(config, **own))
        metrics = zoo_runs.metrics(out)
        gold = true_gold(out, settings["gold_prompts"], own.get("max_new_tokens", 64))
    before = true_gold(start, settings["gold_prompts"], own.get("max_new_tokens", 64))
    level, sentences = diagnose(metrics, summary)
    seen = zoo_runs.summary(reward)
    last = {name: fmean(row[name] for row in metrics[-KEPT:]) for name in METRICS}
    return {
        "gold_before": round(before, 3),
        "gold_after": round(gold, 3),
        "curves": {k: [round(row[name], 2) for row in metrics] for k, name in CURVES.items()},
        "last": {name: float(f"{value:.4g}") for name, value in last.items()},
        "first_gap": float(f"{metrics[0]['alignment/gap']:.3g}"),
        "guard": messages[0] if messages else "",
        "diagnosis": [level, sentences[0]],
        "reward_model": {
            name: round(seen[name], 3) for name in ("accuracy", "reward/chosen", "reward/rejected")
        },
    }


if __name__ == "__main__":
    from experiments.museum_page import PAGE, report

    lab.main("museum", settings, run, report, PAGE)
