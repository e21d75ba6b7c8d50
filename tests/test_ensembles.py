"""Several reward models as one: formulas, one scale for all members, whole runs."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
from test_reward_model import trained_folder
from test_run_folder_and_resume import interrupt_at
from test_train_policy import config_of, run, tiny_run
from test_train_rm import close, rows_of
from tiny_models import tiny_folder
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import train_policy
from rlhf_min import InputError, plan
from rlhf_min.command_line import parse
from rlhf_min.maths import ensembles
from rlhf_min.maths.reward_shaping import standardise
from rlhf_min.models.ensemble import EnsembleScorer
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.reporting import report

__all__ = ["tiny_run"]  # a fixture
SCORES = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Write no report, which takes longer than these runs."""
    monkeypatch.setattr(report, "write_report", lambda out: None)


# The formulas.


def test_each_combination_equals_a_loop():
    combined = {
        "mean": ensembles.mean(SCORES),
        "min": ensembles.minimum(SCORES),
        "uncertainty": ensembles.uncertainty_weighted(SCORES, 0.7),
        "spread": ensembles.spread(SCORES),
    }
    for p in range(4):
        for k in range(2):
            own = [SCORES[m, p, k].item() for m in range(3)]
            mean = sum(own) / 3
            variance = sum((x - mean) ** 2 for x in own) / 3
            want = {"mean": mean, "min": sorted(own)[0], "spread": math.sqrt(variance)}
            want["uncertainty"] = mean - 0.7 * variance
            ours = {name: values[p, k].item() for name, values in combined.items()}
            assert ours == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_copies_of_one_model_give_exactly_its_scores(count):
    one = torch.randn(500, 4, generator=torch.Generator().manual_seed(count))
    copies = one.expand(count, -1, -1)
    assert torch.equal(ensembles.mean(copies), one)
    assert torch.equal(ensembles.minimum(copies), one)
    assert torch.equal(ensembles.uncertainty_weighted(copies, 5.0), one)
    assert not ensembles.spread(copies).any()


def test_the_worst_case_is_below_the_mean_and_weight_0_is_the_mean():
    assert (ensembles.minimum(SCORES) < ensembles.mean(SCORES)).all()
    assert torch.equal(ensembles.uncertainty_weighted(SCORES, 0.0), ensembles.mean(SCORES))
    assert (ensembles.uncertainty_weighted(SCORES, 0.1) < ensembles.mean(SCORES)).all()


# The scorer, and one scale for all its members.


def rollout_of(model: str) -> tuple[Rollout, object]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [["honey", "the bear likes"], ["flies and honey", "frog"]]
    answers = [[tokenizer(text).input_ids for text in own] for own in texts]
    return Rollout([[5], [6]], answers, torch.ones(2, 2).bool(), torch.zeros(2, 2)), tokenizer


@pytest.fixture(scope="module")
def members(tiny_run, tmp_path_factory) -> list[str]:
    """Three reward models: one, one whose scores are 100 times as large, and a ratings head."""
    place = tmp_path_factory.mktemp("members")
    loud = trained_folder(tiny_run["model"], place / "loud", "scalar", seed=1)
    model = AutoModelForSequenceClassification.from_pretrained(loud)
    with torch.no_grad():
        model.score.weight.mul_(100)
    model.save_pretrained(loud)
    return [tiny_run["scalar"], str(loud), tiny_run["ratings"]]


def test_trap_22_members_on_different_scales_are_standardised(tiny_run, tmp_path, members):
    """trap 22: else the member with the largest numbers decides.

    The run's own scales make the scores of the reference's answers 0 ± 1 for every member.
    """
    run(tiny_run, tmp_path / "out", reward_model=members, steps=1, ensemble="min")
    data = json.loads((tmp_path / "out" / "run.json").read_text())["data"]
    scales = data["member_scales"]
    assert len(scales) == 3 and scales[1]["std"] > 20 * scales[0]["std"]
    for path, scale in zip(members, scales, strict=True):  # as of a run with this member alone
        head = "ratings" if path == tiny_run["ratings"] else "scalar"
        run({**tiny_run, head: path}, tmp_path / Path(path).name, head, steps=1)
        alone = json.loads((tmp_path / Path(path).name / "run.json").read_text())["data"]
        assert alone["reward_scale"] == scale and "member_scales" not in alone
    rollout, tokenizer = rollout_of(tiny_run["model"])
    models = [RewardScorer(path, torch.float32, tokenizer) for path in members]
    raw = [model.score(rollout, ["a", "b"])[0] for model in models]
    scorer = EnsembleScorer(models, "min", 0.0)
    scorer.scales = scales
    scores, weights = scorer.score(rollout, ["a", "b"])
    assert torch.equal(weights, torch.ones(2, 2))
    for p in range(2):
        for k in range(2):
            own = [
                (r[p, k].item() - s["mean"]) / s["std"] for r, s in zip(raw, scales, strict=True)
            ]
            assert scores[p, k].item() == pytest.approx(min(own), abs=1e-4)
            spread = math.sqrt(fmean((x - fmean(own)) ** 2 for x in own))
            assert scorer.spread[p, k].item() == pytest.approx(spread, abs=1e-4)


def test_trap_22_a_scorer_without_scales_refuses_to_score(tiny_run, members):
    rollout, tokenizer = rollout_of(tiny_run["model"])
    models = [RewardScorer(path, torch.float32, tokenizer) for path in members[:2]]
    with pytest.raises(ValueError, match="argument 2"):
        EnsembleScorer(models, "mean", 0.0).score(rollout, ["a", "b"])


# Whole runs.


@pytest.mark.parametrize("ensemble", ["mean", "min", "uncertainty"])
def test_a_run_with_copies_of_one_model_is_the_run_with_that_model(tiny_run, tmp_path, ensemble):
    """Their scores are standardised once more, which rounds."""
    rollout, tokenizer = rollout_of(tiny_run["model"])
    model = RewardScorer(tiny_run["scalar"], torch.float32, tokenizer)
    copies, scale = EnsembleScorer([model] * 3, ensemble, 2.0), {"mean": 0.3, "std": 0.7}
    copies.scales = [scale] * 3
    single = standardise(model.score(rollout, ["a", "b"])[0], **scale)
    assert torch.equal(copies.score(rollout, ["a", "b"])[0], single)
    one = run(tiny_run, tmp_path / "one", lr=1e-4)
    paths = [tiny_run["scalar"]] * 3
    three = run(tiny_run, tmp_path / "three", lr=1e-4, reward_model=paths, ensemble=ensemble)
    close(three, one, atol=1e-5)
    rows, single_rows = (rows_of(tmp_path / name / "metrics.jsonl") for name in ("three", "one"))
    assert all(row["reward/spread"] == 0 for row in rows)
    assert not any("reward/spread" in row for row in single_rows)
    for row, single_row in zip(rows, single_rows, strict=True):
        assert row["reward/with_kl"] == pytest.approx(single_row["reward/with_kl"], abs=1e-4)


@pytest.mark.parametrize("settings", [{"reading": "win"}, {"function_weight": 0.1}], ids=str)
def test_an_interrupted_ensemble_goes_on_bit_for_bit(
    tiny_run, tmp_path, monkeypatch, members, settings
):
    if "function_weight" in settings:
        own = tmp_path / "own.py"
        own.write_text("def f(prompts, answers):\n    return list(map(len, answers))\n")
        settings = {**settings, "reward_function": f"{own}:f"}
    settings = {**settings, "reward_model": members, "ensemble": "uncertainty", "save_every": 1}
    whole = run(tiny_run, tmp_path / "whole", eval_every=2, **settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_run, tmp_path / "parts", eval_every=2, **settings)
    parts = run(tiny_run, tmp_path / "parts", eval_every=2, resume=True, **settings)
    close(parts, whole, atol=0)
    rows = [rows_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        assert one["reward/spread"] == other["reward/spread"] > 0
    assert rows[0][1]["held_out/reward/spread"] > 0
    runs = [json.loads((tmp_path / n / "run.json").read_text()) for n in ("whole", "parts")]
    assert runs[0]["data"] == runs[1]["data"]


def test_one_folder_is_as_before_and_runs_of_before_can_be_resumed(tiny_run, tmp_path, monkeypatch):
    line = ["--reward-model", tiny_run["scalar"]]
    assert parse(train_policy.Config, line).reward_model == tiny_run["scalar"]
    assert parse(train_policy.Config, [*line, "more"]).reward_model == [tiny_run["scalar"], "more"]
    assert parse(train_policy.Config, [*line, "--reward-model", "last"]).reward_model == "last"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_run, tmp_path / "out", save_every=1)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["reward_model"] == tiny_run["scalar"]
    for name in ("ensemble", "ensemble_weight", "kl"):  # as if an earlier version had none
        del record["config"][name]
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"--kl 0.1, not 0.3"):
        run(tiny_run, tmp_path / "out", save_every=1, resume=True, kl=0.3)
    run(tiny_run, tmp_path / "out", save_every=1, resume=True, micro_batch=2)  # this may differ


def test_a_member_must_not_be_the_run_itself_or_unfinished(tiny_run, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{}")
    models = [tiny_run["scalar"], str(tmp_path / "half")]
    with pytest.raises(InputError, match=r"--reward-model .*half is a run that was interrupted"):
        train_policy.main(config_of(tiny_run, tmp_path / "out", reward_model=models))
    with pytest.raises(InputError, match="--reward-model and --out are both"):
        config = config_of(tiny_run, Path(tiny_run["scalar"]), reward_model=models)
        train_policy.main(config)


def test_the_context_of_an_ensemble_is_its_members_smallest(tiny_run, tmp_path):
    short = tiny_folder(tmp_path / "short", "smol", max_position_embeddings=40)
    short = trained_folder(short, tmp_path / "rm", "scalar")
    models = [RewardScorer(str(path), torch.float32) for path in (tiny_run["scalar"], short)]
    assert [model.context for model in models] == [128, 40]
    assert EnsembleScorer(models, "mean", 0.0).context == 40


def test_the_plan_counts_every_member(tiny_run):
    flags = ["--model", tiny_run["model"], "--reward-model", *[tiny_run["model"]] * 3]
    three = plan.main(parse(plan.Config, flags))["train_policy.py"]["reward model"]
    one = plan.main(parse(plan.Config, flags[:4]))["train_policy.py"]["reward model"]
    none = plan.main(parse(plan.Config, flags[:2]))["train_policy.py"]["reward model"]
    assert_close(three, 3 * one)
    assert one == none > 0
