"""Numbers that are NaN or infinite: the run stops, says where and why, and keeps its checkpoint."""

import math
from dataclasses import dataclass

import pytest
import torch
from test_train_policy import config_of as policy_config
from test_train_policy import tiny_run as tiny_policy_run
from test_train_rm import rows_of
from test_train_rm import tiny_run as tiny_rm_run
from tiny_models import tiny_model

import train_policy
import train_rm
from rlhf_min import command_line
from rlhf_min.hardware.finite import NonFiniteError, check_finite, naming, text_start
from rlhf_min.maths import policy_losses, preference_losses
from rlhf_min.models import loading
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.sampling import Rollout, sample
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.reporting import report
from rlhf_min.reporting.checkpoints import load_checkpoint

__all__ = ["tiny_policy_run", "tiny_rm_run"]  # fixtures


@dataclass(frozen=True)
class Nothing:
    """Settings without flags."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda out: None)


def sentence(capsys, script, config) -> str:
    """The last line on stderr of a run that must stop with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        command_line.run(lambda _: script.main(config), Nothing, [])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def rm_config(tiny_run, out, **settings):
    return train_rm.Config(**{**tiny_run, "out": str(out), **settings})


# The check itself.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_number_that_is_not_finite_is_named_with_its_row(value):
    values = torch.zeros(3, 2)
    check_finite("the loss", values)
    values[1, 1] = values[2, 0] = value
    with pytest.raises(NonFiniteError) as error:
        check_finite("the score", values, "why", text_of=lambda p, k: f"answer {p} {k}")
    assert (error.value.row, error.value.cause) == (1, "why")
    assert error.value.what == f"the score is {value} for the answer 'answer 1 1'"
    with pytest.raises(NonFiniteError) as error:
        check_finite("the score", values, rows=[7, 8, 9])
    assert error.value.row == 8
    with pytest.raises(NonFiniteError, match=f"the loss is {value}") as error:
        check_finite("the loss", torch.tensor([value]))


def test_an_error_names_place_and_prompt_as_they_are_when_it_comes():
    under_way = {}
    prompts = ["first", [{"role": "user", "content": "a\x1b[31m" + "b" * 99}]]
    with pytest.raises(FloatingPointError) as error, naming(under_way):
        under_way |= {"place": "step 4", "prompts": prompts}
        raise NonFiniteError("the loss is nan", "why", 1)
    assert str(error.value).startswith("step 4: the loss is nan (prompt ")
    assert "\x1b" not in str(error.value) and str(error.value).endswith('…"): why')
    with pytest.raises(FloatingPointError) as error, naming({}):
        raise NonFiniteError("the norm is inf", "why")
    assert str(error.value) == "before the first step: the norm is inf: why"
    assert text_start("short") == "'short'"


# Sampling.


def test_sampling_from_logits_that_are_not_finite_fails_at_the_first_token(monkeypatch):
    """One prompt's token gives NaN; random tokens would come of it without a word."""
    model, calls = tiny_model("llama", dtype=torch.float32), []
    model.get_input_embeddings().weight.data[7] = math.nan
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    healthy = sample(model, [[3, 4], [5]], 2, 1, [2])
    assert healthy.log_probs.isfinite().all()
    calls.clear()
    with pytest.raises(NonFiniteError, match="sampled token's probability is nan") as error:
        sample(model, [[3, 4], [7, 5], [5]], 2, 16, [2])
    assert error.value.row == 1 and len(calls) == 1


# Runs.


def poisoned(load, token: int | None = None):
    """A loader whose models give NaN, after `token` or always; files with NaN are refused."""

    def poisoned_load(*args, **kwargs):
        model = load(*args, **kwargs)
        rows = slice(None) if token is None else token
        with torch.no_grad():
            model.get_input_embeddings().weight[rows] = math.nan
        return model

    return poisoned_load


def test_a_policy_that_gives_nan_stops_before_the_first_step(
    tiny_policy_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load_causal_lm", poisoned(loading.load_causal_lm))
    config = policy_config(tiny_policy_run, tmp_path / "run")
    line = sentence(capsys, train_policy, config)
    assert "evaluation: a sampled token's probability is nan" in line and "bear like?" in line
    assert not (tmp_path / "run").exists()


def test_a_reward_model_that_gives_nan_for_one_answer_is_named_with_it(
    tiny_policy_run, tmp_path, monkeypatch, capsys
):
    """From the second step on all answers with a common token score NaN."""
    score, calls = RewardScorer.score, []

    def poisoning(scorer, rollout, prompts, reference=None):
        calls.append(1)
        if len(calls) == 4:  # before: held-out prompts, the unit of reward, the first step
            worst = rollout.answers[2][1][0]
            with torch.no_grad():
                scorer.model.get_input_embeddings().weight[worst] = math.nan
        return score(scorer, rollout, prompts, reference)

    monkeypatch.setattr(RewardScorer, "score", poisoning)
    config = policy_config(tiny_policy_run, tmp_path / "run", save_every=1)
    line = sentence(capsys, train_policy, config)
    for part in ("step 2", "the reward model's output is nan for the answer '", "(prompt 'what"):
        assert part in line
    assert "--lr" not in line  # which is not the cause
    assert load_checkpoint(tmp_path / "run")["step"] == 1


def wrong_from(loss, call: int, value: float):
    """The loss, times `value` from this call on."""
    calls = []

    def wrong(*args, **kwargs):
        calls.append(1)
        return loss(*args, **kwargs) * (value if len(calls) >= call else 1.0)

    return wrong


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(
    tiny_policy_run, tmp_path, monkeypatch, capsys, value
):
    """The checkpoint of the step before stays, and is what a run of that many steps gives."""
    monkeypatch.setattr(policy_losses, "reinforce", wrong_from(policy_losses.reinforce, 3, value))
    config = policy_config(tiny_policy_run, tmp_path / "run", save_every=1, micro_batch=4)
    line = sentence(capsys, train_policy, config)
    assert "step 3: the gradient's norm is nan" in line and "--lr" in line
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == 2
    assert all(weight.isfinite().all() for weight in state["policy"].values())
    assert len(rows_of(tmp_path / "run" / "metrics.jsonl")) == 2


def test_log_probs_that_are_not_finite_name_the_prompt(
    tiny_policy_run, tmp_path, monkeypatch, capsys
):
    """The policy's own, in the training forward, of one answer."""
    right = train_policy.answer_log_probs

    def wrong(model, tree, temperature):
        log_probs = right(model, tree, temperature)
        return torch.where(torch.arange(len(log_probs)) == 3, math.nan, log_probs)

    monkeypatch.setattr(train_policy, "answer_log_probs", wrong)
    line = sentence(capsys, train_policy, policy_config(tiny_policy_run, tmp_path / "run"))
    assert "step 1: the policy's log-prob is nan (prompt 'what does the" in line


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_model_s_loss_that_is_not_finite_stops_its_training(
    tiny_rm_run, tmp_path, monkeypatch, capsys, value
):
    loss = preference_losses.bradley_terry
    monkeypatch.setattr(preference_losses, "bradley_terry", wrong_from(loss, 3, value))
    config = rm_config(tiny_rm_run, tmp_path / "rm", save_every=1, eval_every=100)
    line = sentence(capsys, train_rm, config)
    assert f"step 3: the loss is {value}" in line
    assert load_checkpoint(tmp_path / "rm")["step"] == 2


def test_a_pair_that_a_reward_model_cannot_score_is_named(
    tiny_rm_run, tmp_path, monkeypatch, capsys
):
    """Training answers begin "it" or "no"; the token that only one prompt has gives NaN."""
    tokenizer = loading.load_tokenizer(tiny_rm_run["model"])
    (seven,) = tokenizer("7", add_special_tokens=False).input_ids
    load = poisoned(train_rm.new_reward_model, seven)
    monkeypatch.setattr(train_rm, "new_reward_model", load)
    line = sentence(capsys, train_rm, rm_config(tiny_rm_run, tmp_path / "rm"))
    assert "step 1: the reward model's output is nan (prompt 'what does bear 7 like?')" in line


def test_a_held_out_pair_that_a_reward_model_cannot_score_is_named(
    tiny_rm_run, tmp_path, monkeypatch, capsys
):
    tokenizer = loading.load_tokenizer(tiny_rm_run["model"])
    frog = tokenizer("what does frog", add_special_tokens=False).input_ids
    bear = tokenizer("what does bear", add_special_tokens=False).input_ids
    (only, *_) = [i for i in frog if i not in bear]
    load = poisoned(train_rm.new_reward_model, only)
    monkeypatch.setattr(train_rm, "new_reward_model", load)
    line = sentence(capsys, train_rm, rm_config(tiny_rm_run, tmp_path / "rm"))
    assert "held-out pairs: the reward model's output is nan (prompt 'what does frog" in line


def test_log_probs_of_a_rollout_that_are_not_finite_name_the_prompt():
    """Of the reference model, for instance, which the training forward does not see."""
    model = tiny_model("llama", dtype=torch.float32)
    model.get_input_embeddings().weight.data[7] = math.nan
    prompts, answers = [[3, 4, 5], [7, 5]], [[[2]], [[2]]]
    rollout = Rollout(prompts, answers, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1))
    with pytest.raises(NonFiniteError, match="an answer's log-prob is nan") as error:
        rollout_log_probs(model, rollout, 1.0, 1)
    assert error.value.row == 1
