"""train_policy.py as a whole: against a plain loop, the alignment check, the files of a run."""

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import torch
from plain_loop import answer_log_prob, plain_policy_loop
from test_reward_model import trained_folder
from test_train_rm import close, rows_of
from tiny_models import tiny_folder, write_rows
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.llama.modeling_llama import LlamaMLP

import train_policy
import train_rm
from rlhf_min import InputError, command_line, defaults
from rlhf_min.hardware.optimiser import MasterAdamW
from rlhf_min.maths.reward_shaping import reward_scale
from rlhf_min.models.layout import Layout
from rlhf_min.models.sampling import sample
from rlhf_min.reporting import evaluation, report
from rlhf_min.reporting.run_folder import RunLog
from rlhf_min.zoo import start_model
from rlhf_min.zoo import world as zoo

ROOT = Path(__file__).parents[1]
NAMES = ["bear", "frog", "cat", "dog", "emu", "yak", "ape", "bat"]
PROMPTS = [f"what does the {name} like?" for name in NAMES]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Settings of a tiny run: 8 prompts, 4 per step, random models; some answers end."""
    place = tmp_path_factory.mktemp("policy")
    base = tiny_folder(place / "base", "smol")
    GenerationConfig(eos_token_id=[2, *range(40, 70)], do_sample=False).save_pretrained(base)
    return {
        "model": str(base),
        "scalar": str(trained_folder(base, place / "scalar", "scalar")),
        "ratings": str(trained_folder(base, place / "ratings", "ratings")),
        "data": [write_rows(place / "train.jsonl", [{"prompt": p} for p in PROMPTS])],
        "eval_data": [write_rows(place / "test.jsonl", [{"prompt": p + "?"} for p in PROMPTS[:3]])],
        "batch_size": 8, "samples": 2, "steps": 3, "max_new_tokens": 8, "lr": 1e-3, "warm_up": 2,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def no_report(monkeypatch, request):
    """Write no report, because it takes longer than these runs, unless a test uses `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "write_report", lambda out: None)


@pytest.fixture
def pictures():
    """A test that uses this fixture gets the real report."""


def config_of(tiny_run: dict, out: Path, head: str = "scalar", **settings) -> train_policy.Config:
    tiny_run = {**tiny_run, "reward_model": tiny_run[head], "out": str(out)}
    return train_policy.Config(
        **{k: v for k, v in {**tiny_run, **settings}.items() if k not in ("scalar", "ratings")}
    )


def run(tiny_run: dict, out: Path, head: str = "scalar", **settings) -> dict:
    """Run main(config); returns the final weights by name."""
    train_policy.main(config_of(tiny_run, out, head, **settings))
    return dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())


# The whole run against a plain loop that shares only the sampled answers.

SETTINGS = [
    ("scalar", {}),
    ("scalar", {"baseline": "ema", "ema_decay": 0.7}),
    ("scalar", {"baseline": "leave-one-out"}),
    ("scalar", {"baseline": "leave-one-out", "samples": 4, "kl": 0.0}),
    ("scalar", {"baseline": "none", "samples": 1, "batch_size": 4}),
    ("scalar", {"objective": "ppo-clip", "updates": 2, "lr": 3e-3, "clip": 0.1}),
    ("scalar", {"objective": "ppo-clip", "updates": 2, "baseline": "leave-one-out"}),
    ("scalar", {"temperature": 0.7, "missing_end_penalty": 0.0}),
    ("scalar", {"temperature": 1.3, "missing_end_penalty": 3.0, "kl": 1.0}),
    ("scalar", {"reading": "win"}),
    ("ratings", {}),
    ("ratings", {"reading": "win"}),
    ("ratings", {"reading": "entropic", "entropic_b": 1.5}),
    ("ratings", {"weight": "inverse-sigma"}),
    ("ratings", {"weight": "inverse-variance", "baseline": "leave-one-out"}),
    ("ratings", {"weight": "inverse-one-plus-sigma"}),
]


@pytest.mark.parametrize(
    ("head", "settings"), SETTINGS, ids=lambda x: x if isinstance(x, str) else str(x)[1:-1]
)
def test_a_run_equals_a_plain_loop(tiny_run, tmp_path, monkeypatch, head, settings):
    rollouts, models = [], []

    def recording(model, *args, **kwargs):
        models.append(model)
        rollouts.append(sample(model, *args, **kwargs))
        return rollouts[-1]

    monkeypatch.setattr(train_policy, "sample", recording)
    config = config_of(tiny_run, tmp_path / "out", head, **settings)
    ours = run(tiny_run, tmp_path / "out", head, **settings)
    finished = torch.cat([r.finished.flatten() for r in rollouts])
    assert finished.any() and not finished.all()
    scale = json.loads((tmp_path / "out" / "run.json").read_text())["data"]["reward_scale"]
    before = json.loads((tmp_path / "out" / "summary.json").read_text())["before"]
    score = (before["reward/mean"] - scale["mean"]) / scale["std"]
    unfinished = (1 - before["finished/rate"]) * config.missing_end_penalty
    ends, first = [2, *range(40, 70)], score - unfinished - config.kl * before["kl/mean"]
    expected, logged = plain_policy_loop(config, rollouts, scale, ends, first)
    metrics = rows_of(tmp_path / "out" / "metrics.jsonl")
    for row, wanted in zip(metrics, logged, strict=True):
        assert {k: row[k] for k in wanted} == pytest.approx(wanted, abs=2e-3, rel=1e-3)
    # Where a gradient is almost 0, Adam turns rounding into whole steps.  So norms are compared.
    start = dict(AutoModelForCausalLM.from_pretrained(config.model).named_parameters())
    wrong, moved = (
        torch.cat([(ours[n] - other[n]).flatten() for n in ours]).norm()
        for other in (expected, start)
    )
    assert wrong < 0.01 * moved
    if config.reading == "win":  # every other rollout is the reference model's, which never changes
        close(dict(models[1].named_parameters()), start, atol=0)
        assert all(model is models[1] for model in models[1::2]) and models[0] is not models[1]


@pytest.mark.parametrize("baseline", ["moving-average", "ema"])
def test_trap_8_the_baseline_starts_at_the_mean_reward_before_training(
    tiny_run, tmp_path, baseline
):
    """With another model as reference the mean reward is far from 0 before the first step."""
    other = tiny_folder(tmp_path / "other", "smol", seed=5)
    prompts = [{"prompt": f"{a} {b}"} for a in NAMES for b in NAMES]
    settings = {"eval_data": [write_rows(tmp_path / "eval.jsonl", prompts)], "steps": 1}
    settings |= {"samples": 16, "batch_size": 128, "reference": str(other), "kl": 0.5}
    run(tiny_run, tmp_path / "out", baseline=baseline, **settings)
    (row,) = rows_of(tmp_path / "out" / "metrics.jsonl")
    error = row["advantage/std"] * math.sqrt(1 / 128 + 1 / 64)
    assert abs(row["reward/with_kl"]) > 10 * error
    assert abs(row["advantage/mean"]) < 5 * error


def test_trap_22_the_reward_scale_is_that_of_the_reference_model(tiny_run, tmp_path, monkeypatch):
    seen = []

    def recording(scores):
        seen.append(scores.clone())
        return reward_scale(scores)

    monkeypatch.setattr(evaluation, "reward_scale", recording)
    run(tiny_run, tmp_path / "out", "ratings", steps=1)
    scale = json.loads((tmp_path / "out" / "run.json").read_text())["data"]["reward_scale"]
    (rewards,) = seen
    assert len(rewards) == len(PROMPTS)
    mean = sum(rewards.tolist()) / len(PROMPTS)
    variance = sum((r - mean) ** 2 for r in rewards.tolist()) / (len(PROMPTS) - 1)
    assert scale == pytest.approx({"mean": mean, "std": variance**0.5}, abs=1e-5)


def test_trap_22_the_reward_scale_does_not_depend_on_where_the_policy_starts(tiny_run, tmp_path):
    """In later rounds of the circle --model is not the reference; the scale stays the same."""
    other = tiny_folder(tmp_path / "model", "smol", seed=5)
    GenerationConfig(eos_token_id=[2, *range(40, 70)]).save_pretrained(other)

    def scale_of(name: str, **models: str) -> dict:
        run(tiny_run, tmp_path / name, steps=1, **models)
        return json.loads((tmp_path / name / "run.json").read_text())["data"]["reward_scale"]

    alone = scale_of("alone")
    assert scale_of("moved", model=str(other), reference=tiny_run["model"]) == pytest.approx(alone)
    assert scale_of("other", model=str(other)) != pytest.approx(alone)


def test_trap_22_the_scale_of_the_scores_does_not_change_the_policy(tiny_run, tmp_path):
    """Standardising removes a factor of 5, up to rounding."""
    other = trained_folder(tiny_run["model"], tmp_path / "rm", "scalar")
    model = AutoModelForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        model.score.weight.mul_(5)
    model.save_pretrained(other)
    one = run(tiny_run, tmp_path / "a", lr=1e-4)
    five = run({**tiny_run, "scalar": str(other)}, tmp_path / "b", lr=1e-4)
    close(five, one, atol=1e-5)


# Settings that must not change the result, and settings that must.


def test_ppo_clip_with_one_update_is_reinforce(tiny_run, tmp_path):
    one = run(tiny_run, tmp_path / "a", lr=1e-4)
    two = run(tiny_run, tmp_path / "b", lr=1e-4, objective="ppo-clip", updates=1)
    close(two, one)


@pytest.mark.parametrize("settings", [{}, {"baseline": "leave-one-out"}], ids=str)
def test_trap_9_micro_batches_of_1_2_and_8_prompts_give_the_same_weights(
    tiny_run, tmp_path, settings
):
    settings = {**settings, "batch_size": 16, "lr": 1e-4}
    sizes = (1, 2, 3, 8)
    runs = [run(tiny_run, tmp_path / str(n), micro_batch=n, **settings) for n in sizes]
    for other in runs[1:]:
        close(other, runs[0])
    # Adam and clipping hide a constant factor of the gradient, but its norm shows it.
    norms = [
        [row["grad/norm"] for row in rows_of(tmp_path / str(n) / "metrics.jsonl")] for n in sizes
    ]
    for other in norms[1:]:
        assert other == pytest.approx(norms[0], rel=1e-4)
    padding = [
        [row["batch/padding"] for row in rows_of(tmp_path / str(n) / "metrics.jsonl")]
        for n in sizes
    ]
    assert not any(padding[0]) and all(share > 0 for share in padding[-1])
    assert padding[1] <= padding[-1] and max(padding[-1]) < 1


def test_trap_9_a_low_token_limit_gives_the_same_weights(tiny_run, tmp_path, monkeypatch):
    one = run(tiny_run, tmp_path / "a", lr=1e-4)
    monkeypatch.setattr(Layout, "max_positions", 10)
    monkeypatch.setattr(Layout, "forward_positions", 10)
    close(run(tiny_run, tmp_path / "b", lr=1e-4), one)


@pytest.mark.parametrize("settings", [{}, {"objective": "ppo-clip", "updates": 2}], ids=str)
def test_trap_19_gradient_checkpointing_gives_the_same_weights(
    tiny_run, tmp_path, monkeypatch, settings
):
    calls, forward = [0], LlamaMLP.forward

    def counting(self, x):
        calls[0] += torch.is_grad_enabled()
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    one = run(tiny_run, tmp_path / "a", lr=1e-4, **settings)
    plain, calls[0] = calls[0], 0
    two = run(tiny_run, tmp_path / "b", lr=1e-4, gradient_checkpointing=True, **settings)
    close(two, one)
    assert calls[0] == 2 * plain > 0  # each layer once more, in the backward pass


def test_the_seed_decides_the_run(tiny_run, tmp_path):
    first, again = (run(tiny_run, tmp_path / name, seed=3) for name in "ab")
    close(first, again, atol=0)
    lines = [rows_of(tmp_path / name / "metrics.jsonl") for name in "ab"]
    for one, two in zip(*lines, strict=True):
        assert {k: v for k, v in one.items() if "time/" not in k} == {
            k: v for k, v in two.items() if "time/" not in k
        }
    other = run(tiny_run, tmp_path / "c", seed=4)
    assert any((other[n] - first[n]).abs().max() > 1e-4 for n in first)


def test_the_reference_may_be_another_model_than_the_start(tiny_run, tmp_path):
    """KL is measured to the reference, so here it is not 0 in the first step."""
    other = tiny_folder(tmp_path / "other", "smol", seed=1)
    run(tiny_run, tmp_path / "a", reference=str(other), steps=1)
    run(tiny_run, tmp_path / "b", steps=1)
    kl = [rows_of(tmp_path / name / "metrics.jsonl")[0]["kl/mean"] for name in "ab"]
    assert abs(kl[0]) > 0.1 and abs(kl[1]) < 1e-3


def test_a_reward_model_with_its_own_tokenizer_works(tiny_run, tmp_path):
    base = tiny_folder(tmp_path / "other", "plain", "gpt2")
    folder = str(trained_folder(base, tmp_path / "rm", "ratings"))
    run({**tiny_run, "ratings": folder}, tmp_path / "out", "ratings", steps=1)
    row = rows_of(tmp_path / "out" / "metrics.jsonl")[0]
    assert 1 <= row["reward/mean"] <= 10


def test_training_raises_the_learned_reward(tiny_run, tmp_path):
    settings = {"steps": 40, "lr": 1e-2, "kl": 0.0, "missing_end_penalty": 0.0, "batch_size": 16}
    config = config_of(tiny_run, tmp_path / "out", **settings)
    assert train_policy.main(config)["after"]["kl/mean"] > 1
    rewards = [row["reward/mean"] for row in rows_of(tmp_path / "out" / "metrics.jsonl")]
    assert fmean(rewards[-10:]) > fmean(rewards[:10]) + 1  # 160 answers each


def test_the_missing_end_penalty_makes_all_answers_end(tiny_run, tmp_path):
    settings = {"steps": 40, "lr": 1e-2, "kl": 0.0, "missing_end_penalty": 50.0, "batch_size": 16}
    summary = train_policy.main(config_of(tiny_run, tmp_path / "out", **settings))
    assert summary["after"]["finished/rate"] == 1.0


def test_bfloat16_runs(tiny_run, tmp_path):
    weights = run(tiny_run, tmp_path / "out", dtype="bfloat16")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert rows_of(tmp_path / "out" / "metrics.jsonl")[0]["alignment/gap"] < 0.05


# The alignment check.


@torch.no_grad()
def higher_temperature(model, *args, temperature=1.0, **kwargs):
    return sample(model, *args, temperature=temperature * 1.3, **kwargs)


def with_logits(change):
    """A sampler that changes the logits, which the training forward does not do."""

    def sampler(model, *args, **kwargs):
        forward = model.forward

        def changed(*inputs, **named):
            output = forward(*inputs, **named)
            output.logits = change(output.logits)
            return output

        model.forward = changed
        try:
            return sample(model, *args, **kwargs)
        finally:
            del model.forward

    return sampler


def top_k(logits):
    return logits.masked_fill(logits < logits.topk(20).values[..., -1:], -1e9)


def without_positions(model, *args, **kwargs):
    """A sampler with position ids that ignore the padding on the left."""
    forward = model.forward

    def changed(*inputs, position_ids=None, **named):
        begin = named["past_key_values"].get_seq_length()
        width = named["input_ids"].shape[1]
        return forward(*inputs, position_ids=torch.arange(begin, begin + width)[None], **named)

    model.forward = changed
    try:
        return sample(model, *args, **kwargs)
    finally:
        del model.forward


def off_by_one(model, *args, **kwargs):
    """A sampler whose answers are rotated by one token."""
    rollout = sample(model, *args, **kwargs)
    for answers in rollout.answers:
        for answer in answers:
            answer.insert(0, answer.pop())
    return rollout


@pytest.mark.parametrize(
    "sampler",
    [higher_temperature, with_logits(top_k), with_logits(lambda z: z * 0.9), off_by_one],
    ids=["temperature", "top-k", "scaled logits", "answers shifted"],
)
def test_trap_7_the_alignment_check_stops_the_run_before_any_weight_changes(
    tiny_run, tmp_path, monkeypatch, sampler
):
    steps = []
    monkeypatch.setattr(MasterAdamW, "step", lambda *args: steps.append(args))
    monkeypatch.setattr(train_policy, "sample", sampler)
    with pytest.raises(InputError, match="the gradient would be wrong"):
        run(tiny_run, tmp_path / "out")
    assert not steps and not list((tmp_path / "out").glob("*.safetensors"))


def test_trap_13_the_alignment_check_finds_wrong_positions(tiny_run, tmp_path, monkeypatch):
    """In a padded batch, with learned positions: rotary ones do not see a common shift."""
    base = tiny_folder(tmp_path / "base", "smol", "gpt2")
    prompts = [{"prompt": p} for p in ("a", "what does the bear like to eat?", "the frog", "b")]
    settings = {"model": str(base), "data": [write_rows(tmp_path / "p.jsonl", prompts)]}
    settings["scalar"] = str(trained_folder(base, tmp_path / "rm", "scalar"))
    run({**tiny_run, **settings}, tmp_path / "right", steps=1)
    monkeypatch.setattr(train_policy, "sample", without_positions)
    with pytest.raises(InputError, match="the gradient would be wrong"):
        run({**tiny_run, **settings}, tmp_path / "wrong", steps=1)


def test_the_gap_is_logged_at_every_step(tiny_run, tmp_path):
    run(tiny_run, tmp_path / "out")
    gaps = [row["alignment/gap"] for row in rows_of(tmp_path / "out" / "metrics.jsonl")]
    assert len(gaps) == 3 and all(0 <= gap < 1e-4 for gap in gaps)


# The files of a run.

METRICS = {
    "step", "reward/mean", "reward/with_kl", "kl/mean", "baseline/value", "advantage/mean",
    "advantage/std", "length/mean", "finished/rate", "text/distinct_2", "text/longest_run",
    "text/equal",
    "alignment/gap", "batch/padding", "grad/norm", "learning_rate", "time/sample", "time/score",
    "time/reference", "time/policy",
}  # fmt: skip
SUMMARY = {
    "reward/mean", "reward/mean_low", "reward/mean_high", "kl/mean", "length/mean", "finished/rate",
    "text/distinct_2", "text/longest_run", "text/equal", "prompts",
}  # fmt: skip


def test_the_folder_has_every_file_and_key_of_the_contract(tiny_run, tmp_path, pictures):
    out = tmp_path / "deep" / "policy"
    run(tiny_run, out, eval_every=2)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    tokenizer = AutoTokenizer.from_pretrained(out)
    before = AutoTokenizer.from_pretrained(tiny_run["model"])
    assert tokenizer.chat_template == before.chat_template
    assert tokenizer.get_vocab() == before.get_vocab()
    assert model.generation_config.eos_token_id == [2, *range(40, 70)]
    record = json.loads((out / "run.json").read_text())
    assert record["script"] == "train_policy.py"
    assert record.keys() >= {"versions", "commit", "data", "device", "started", "config"}
    assert record["config"]["seed"] == 0 and record["data"]["fingerprint"]
    metrics = rows_of(out / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(row.keys() >= METRICS for row in metrics)
    assert "held_out/reward/mean" in metrics[1] and "held_out/reward/mean" not in metrics[0]
    summary = json.loads((out / "summary.json").read_text())
    for side in ("before", "after"):
        assert summary[side].keys() >= SUMMARY and "reward/gold" not in summary[side]
        low, mean, high = (summary[side]["reward/mean" + x] for x in ("_low", "", "_high"))
        assert low <= mean <= high
    assert summary["before"]["kl/mean"] == pytest.approx(0, abs=1e-3)
    samples = rows_of(out / "samples.jsonl")
    assert [row["prompt"] for row in samples] == [p + "?" for p in PROMPTS[:3]]
    wanted = {"before", "after", "before_reward", "after_reward"}
    wanted |= {"before_finished", "after_finished"}
    assert all(row.keys() >= wanted for row in samples)
    means = [sum(row[f"{side}_reward"] for row in samples) / 3 for side in ("before", "after")]
    given = [summary[side]["reward/mean"] for side in ("before", "after")]
    assert means == pytest.approx(given)
    assert (out / "report.html").stat().st_size > 1000 and list(out.glob("*.png"))
    assert not (out / "checkpoint.pt").exists() and not list(out.glob(".saving*"))


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_a_policy_that_is_its_reference_has_no_kl_at_any_temperature(
    tiny_run, tmp_path, temperature
):
    summary = train_policy.main(config_of(tiny_run, tmp_path / "out", temperature=temperature))
    assert summary["before"]["kl/mean"] == pytest.approx(0, abs=1e-6)
    assert abs(summary["after"]["kl/mean"]) > 1e-3  # so a policy that moved is seen


def test_a_collapse_is_said_once_while_training(tiny_run, tmp_path, capsys):
    """One token per answer, and one end token among 300: no answer ends."""
    base = str(tiny_folder(tmp_path / "base", "smol"))
    run(tiny_run, tmp_path / "out", model=base, max_new_tokens=1, steps=4, lr=1e-9)
    rows = rows_of(tmp_path / "out" / "metrics.jsonl")
    unfinished = [row["step"] for row in rows if row["finished/rate"] < 0.05]
    assert len(unfinished) > 1
    errors = capsys.readouterr().err
    assert errors.count("of the answers end") == 1
    assert f"warning: step {unfinished[0]}: Only 0% of the answers end" in errors


def test_intervals_from_3_prompts_are_marked_in_summary_and_terminal(tiny_run, tmp_path, capsys):
    run(tiny_run, tmp_path / "out", steps=1)
    note = json.loads((tmp_path / "out" / "summary.json").read_text())["note"]
    assert note == "only 3 prompts or pairs: too few for a conclusion"
    assert note in capsys.readouterr().out


def test_held_out_metrics_equal_a_loop(tiny_run, tmp_path, monkeypatch):
    rollouts = []

    def recording(*args, **kwargs):
        rollouts.append(sample(*args, **kwargs))
        return rollouts[-1]

    monkeypatch.setattr(evaluation, "sample", recording)
    ours = run(tiny_run, tmp_path / "out")
    last = rollouts[-1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["after"]
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reference = AutoModelForCausalLM.from_pretrained(tiny_run["model"])
    reward_model = AutoModelForSequenceClassification.from_pretrained(tiny_run["scalar"])
    rewards, kls = [], []
    with torch.no_grad():
        for prompt, (answer,) in zip(last.prompts, last.answers, strict=True):
            rewards.append(reward_model(torch.tensor([prompt + answer])).logits.item())
            kls.append(
                answer_log_prob(policy, prompt, answer, 1.0).item()
                - answer_log_prob(reference, prompt, answer, 1.0).item()
            )
    assert summary["reward/mean"] == pytest.approx(sum(rewards) / 3, abs=1e-3)
    assert summary["kl/mean"] == pytest.approx(sum(kls) / 3, abs=2e-3)
    assert summary["length/mean"] == sum(len(a) for (a,) in last.answers) / 3
    assert ours.keys() == dict(policy.named_parameters()).keys()


def test_trap_15_held_out_prompts_are_never_trained_on(tiny_run, tmp_path):
    prompts = [{"prompt": p} for p in [*PROMPTS, *(p + "?" for p in PROMPTS[:3])]]
    data = [write_rows(tmp_path / "p.jsonl", prompts)]
    run(tiny_run, tmp_path / "out", data=data, steps=1)
    metadata = json.loads((tmp_path / "out" / "run.json").read_text())["data"]
    assert metadata["prompts/train"] == 8 and metadata["prompts/held_out"] == 3
    run(tiny_run, tmp_path / "split", data=data, eval_data=[], steps=1)
    metadata = json.loads((tmp_path / "split" / "run.json").read_text())["data"]
    held_out = {row["prompt"] for row in rows_of(tmp_path / "split" / "samples.jsonl")}
    assert metadata["prompts/train"] + len(held_out) == 11


def test_control_characters_of_samples_are_shown_not_obeyed(tiny_run, tmp_path, capsys):
    evil = "what does the \x1b[31m\x9b2J\u202e bear like?"
    held_out = write_rows(tmp_path / "evil.jsonl", [{"prompt": evil}])
    run(tiny_run, tmp_path / "out", eval_data=[held_out])
    shown = capsys.readouterr().out
    assert "what does the <U+001B>[31m<U+009B>2J<U+202E> bear" in shown
    assert not set("\x1b\x9b\u202e") & set(shown)
    assert rows_of(tmp_path / "out" / "samples.jsonl")[0]["prompt"] == evil  # exact


def test_chat_prompts_are_read_and_long_ones_cut(tiny_run, tmp_path):
    """A long dialogue is cut at its left end, and the run counts it."""
    turns = [{"role": "user", "content": "hello " * 60}, {"role": "assistant", "content": "yes"}]
    rows = [{"prompt": [*turns, {"role": "user", "content": p}]} for p in PROMPTS]
    rows.append({"prompt": [{"role": "user", "content": "short"}]})
    data = [write_rows(tmp_path / "p.jsonl", rows)]
    run(tiny_run, tmp_path / "out", data=data, steps=1)
    metadata = json.loads((tmp_path / "out" / "run.json").read_text())["data"]
    assert metadata["prompts/cut"] == 8 and metadata["prompts/train"] == 9


def test_trap_14_prompts_leave_room_in_the_shortest_context(tiny_run, tmp_path):
    base = tiny_folder(tmp_path / "base", "smol", max_position_embeddings=52)
    rm = str(trained_folder(base, tmp_path / "rm", "scalar"))
    run({**tiny_run, "scalar": rm}, tmp_path / "out", steps=1)
    metadata = json.loads((tmp_path / "out" / "run.json").read_text())["data"]
    assert metadata["prompts/cut"] > 0
    # The reference's context counts too: its log-probs enter the KL.
    short = str(tiny_folder(tmp_path / "short", "smol", max_position_embeddings=52))
    run(tiny_run, tmp_path / "out2", steps=1, reference=short)
    assert json.loads((tmp_path / "out2" / "run.json").read_text())["data"]["prompts/cut"] > 0


def test_a_resumed_run_must_have_the_same_held_out_prompts(tiny_run, tmp_path):
    file, out = Path(tiny_run["eval_data"][0]), tmp_path / "out"
    own = tmp_path / "test.jsonl"
    own.write_text(file.read_text())
    settings = {**tiny_run, "eval_data": [str(own)]}
    run(settings, out, steps=2)
    (out / "summary.json").unlink()
    own.write_text(file.read_text().replace("?", "!"))
    with pytest.raises(InputError, match="the data changed since the run"):
        train_policy.main(config_of(settings, out, steps=2, resume=True))


# The zoo.


@pytest.fixture(scope="module")
def tiny_zoo(tmp_path_factory):
    """A start model of the zoo after a few steps of training, and a reward model of it."""
    place = tmp_path_factory.mktemp("zoo")
    start_model.build_base(place / "base", steps=3, examples=200)
    rm = str(trained_folder(place / "base", place / "rm", "scalar"))
    return {"model": str(place / "base"), "reward_model": rm}


def unfinished(folder: Path) -> Path:
    """Make the folder of an interrupted training run; returns it."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    return folder


@pytest.mark.parametrize("flag", ["model", "reward_model", "reference"])
def test_a_model_whose_training_was_interrupted_is_refused(tiny_run, tmp_path, flag):
    place = unfinished(tmp_path / "half")
    name = "scalar" if flag == "reward_model" else flag
    config = config_of({**tiny_run, name: str(place)}, tmp_path / "out")
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')} .*half .*--resume"):
        train_policy.main(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_default_reward_model_is_trained_or_resumed(tmp_path, monkeypatch, interrupted):
    """Resumed as after `make demo`, Ctrl-C while the reward model trains, and `make demo` again."""
    monkeypatch.chdir(tmp_path)
    Path("runs/zoo-base").mkdir(parents=True)
    if interrupted:
        unfinished(Path("runs/rm"))
    seen = []
    monkeypatch.setattr(defaults, "run_script", lambda *line: seen.append(line))
    train_policy.check(train_policy.Config())
    train_policy.build_missing(train_policy.Config())
    ((script, *flags),) = seen
    assert script == ROOT / "train_rm.py"
    config = command_line.parse(train_rm.Config, flags)
    assert config == train_rm.Config(out="runs/rm", resume=interrupted)
    Path("runs/rm").mkdir(exist_ok=True)
    (Path("runs/rm") / "config.json").write_text("{}")
    train_policy.build_missing(train_policy.Config())
    assert len(seen) == 1


def test_a_model_of_ones_own_that_learns_from_the_zoo_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "runs/zoo-base"):
        Path(folder).mkdir(parents=True)
    monkeypatch.setattr(defaults, "run_script", lambda *line: None)
    own = {"data": ["prompts.jsonl"], "reward_model": "my-rm"}
    for settings, why in (
        ({}, "--data is zoo and there is no --reward-model"),
        ({"data": own["data"]}, "there is no --reward-model"),
        ({"reward_model": own["reward_model"]}, "--data is zoo"),
    ):
        train_policy.build_missing(train_policy.Config(model="mine", **settings))
        assert (
            f"note: {why}: mine learns the questions of a made-up world" in capsys.readouterr().out
        )
    train_policy.build_missing(train_policy.Config(model="mine", **own))
    train_policy.build_missing(train_policy.Config())
    assert "note" not in capsys.readouterr().out


def test_in_the_zoo_gold_is_measured_and_no_argument_is_needed(
    tiny_zoo, tmp_path, monkeypatch, capsys
):
    """Without arguments, start model and reward model are built once and then reused."""
    built = []
    monkeypatch.chdir(tmp_path)

    def build(out):
        built.append(out)
        Path(out).parent.mkdir(exist_ok=True)
        Path(out).symlink_to(tiny_zoo["model"])

    monkeypatch.setattr(start_model, "build_base", build)

    def run_script(script, *flags):
        config = command_line.parse(train_rm.Config, list(flags))
        built.append(config.out)
        Path(config.out).symlink_to(tiny_zoo["reward_model"])

    monkeypatch.setattr(defaults, "run_script", run_script)
    few = {"steps": 2, "eval_prompts": 4, "ruler_prompts": 4, "max_new_tokens": 6, "batch_size": 8}
    summary = train_policy.main(train_policy.Config(**few))
    assert built == ["runs/zoo-base", "runs/rm"]
    assert "is missing: training" in capsys.readouterr().out
    keys = {"reward/gold", "reward/gold_low", "reward/gold_high"}
    assert all(summary[side].keys() >= keys for side in ("before", "after"))
    row = rows_of(tmp_path / "runs/policy/metrics.jsonl")[0]
    assert 1 <= row["reward/gold"] <= 10
    samples = rows_of(tmp_path / "runs/policy/samples.jsonl")
    for sample_row in samples:
        for side in ("before", "after"):
            gold = zoo.gold_rating(sample_row["prompt"], sample_row[side])
            assert sample_row[f"{side}_gold"] == pytest.approx(gold)
    train_policy.main(train_policy.Config(out="runs/again", **few))
    assert len(built) == 2


def test_a_run_through_the_shell(tiny_run, tmp_path):
    line = (
        f"train_policy.py --model {tiny_run['model']} --reward-model {tiny_run['scalar']} --steps 1"
    )
    line += f" --data {tiny_run['data'][0]} --eval-data {tiny_run['eval_data'][0]} --batch_size=4"
    line += f" --samples 2 --max-new-tokens 4 --out {tmp_path / 'out'} --beta 0.1"
    done = subprocess.run(
        [sys.executable, *line.split()], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "held-out prompts" in done.stdout
    assert (tmp_path / "out" / "report.html").exists()


def test_every_prompt_is_sampled_once_per_epoch(tiny_run, tmp_path, monkeypatch):
    seen = []

    def recording(model, ids, *args, **kwargs):
        seen.append([tuple(i) for i in ids])
        return sample(model, ids, *args, **kwargs)

    monkeypatch.setattr(train_policy, "sample", recording)
    run(tiny_run, tmp_path / "out", steps=4)
    assert len({*seen[0], *seen[1]}) == len({*seen[2], *seen[3]}) == 8
    assert math.prod(map(len, seen)) == 4**4


def test_weights_stay_tied(tmp_path, tiny_run):
    base = tiny_folder(tmp_path / "base", "smol", "qwen2")
    rm = str(trained_folder(base, tmp_path / "rm", "scalar"))
    run({**tiny_run, "model": str(base), "scalar": rm}, tmp_path / "out", steps=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_close(model.lm_head.weight, model.model.embed_tokens.weight, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"batch_size": 6, "samples": 4}, "--batch-size 6 is not divisible by --samples 4: take 4"),
        ({"batch_size": 11, "samples": 4}, "is not divisible by --samples 4: take 8"),
        ({"batch_size": 3, "samples": 4}, "is not divisible by --samples 4: take 4"),
        ({"batch_size": 8, "samples": 4}, ""),
        ({"baseline": "leave-one-out", "samples": 1}, "leave-one-out needs --samples 2 or more"),
        ({"baseline": "leave-one-out", "samples": 2}, ""),
        ({"baseline": "none", "samples": 1}, ""),
        ({"objective": "reinforce", "updates": 2}, "--updates needs --objective ppo-clip"),
        ({"objective": "reinforce", "updates": 1}, ""),
        ({"objective": "ppo-clip", "updates": 2}, ""),
        ({"objective": "ppo-clip", "updates": 1}, ""),
        ({"lr": 2.0}, "--lr must be at most 1"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_together_are_named(tmp_path, settings, error):
    config = train_policy.Config(**{"out": str(tmp_path / "p"), **settings})
    if not error:
        return train_policy.check(config)
    with pytest.raises(InputError, match=error):
        train_policy.check(config)


def test_the_policy_s_folder_is_checked_before_anything_is_written(tiny_run, tmp_path):
    with pytest.raises(InputError, match="--model and --out are both"):
        train_policy.check(train_policy.Config(model=str(tmp_path), out=str(tmp_path)))


def test_the_loss_is_the_objective_s(tiny_run):
    log_probs = torch.tensor([[-1.0, -3.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.4, -2.9]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    loss = train_policy.choose_loss(train_policy.Config(objective="reinforce"))
    assert loss(log_probs, old, advantages, 4).item() == pytest.approx(-(2 * -1 + 3.0) / 4)
    loss = train_policy.choose_loss(train_policy.Config(objective="ppo-clip", clip=0.3))
    want = -(2 * min(math.exp(0.4), 1.3) - max(math.exp(-0.1), 0.7)) / 4
    assert loss(log_probs, old, advantages, 4).item() == pytest.approx(want)


def test_checkpoints_come_at_their_steps(tiny_run, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(RunLog, "checkpoint", lambda self, step, state: saved.append(step))
    run(tiny_run, tmp_path / "out", steps=5, save_every=2)
    assert saved == [2, 4]
