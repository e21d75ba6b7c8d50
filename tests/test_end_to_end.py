"""A short run of the whole project; and the scripts call the functions that the tests check."""

from statistics import fmean

import pytest
import torch
from tiny_models import tiny_folder, tiny_pairs, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_policy
import train_rm
from rlhf_min.zoo import start_model
from rlhf_min.zoo import world as zoo


@pytest.mark.slow
def test_a_short_run_raises_gold_by_a_point_and_a_half_on_held_out_prompts(tmp_path):
    """The default start model; reward model and policy with about half of the default's steps."""
    base, rm = str(tmp_path / "base"), str(tmp_path / "rm")
    start_model.build_base(base)
    check_mixed_quality(base)
    accuracy = train_rm.main(train_rm.Config(model=base, out=rm, max_steps=180))["accuracy"]
    assert accuracy > 0.7  # "the longer answer wins" scores 0.43 here
    summary = train_policy.main(
        train_policy.Config(model=base, reward_model=rm, out=str(tmp_path / "policy"), steps=35)
    )
    before, after = summary["before"], summary["after"]
    assert after["reward/gold"] > before["reward/gold"] + 1.5
    assert after["reward/gold_low"] > before["reward/gold_high"]
    assert after["reward/mean"] > before["reward/mean"] and after["finished/rate"] > 0.95


def check_mixed_quality(base: str) -> None:
    """Sampled answers of the start model are of mixed quality, and nearly all end.

    Greedy answers to held-out questions are right, so the facts have been learnt.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = zoo.prompts("held-out")[:400]
    chats = [[{"role": "user", "content": p}] for p in prompts]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    torch.manual_seed(0)
    ratings, finished = {}, {}
    for sampled in (True, False):
        answers = model.generate(**batch, do_sample=sampled, max_new_tokens=64)
        answers = answers[:, batch["input_ids"].shape[1] :]
        finished[sampled] = fmean((answers == tokenizer.eos_token_id).any(1).tolist())
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        ratings[sampled] = fmean(map(zoo.gold_rating, prompts, texts))
    assert 5.4 < ratings[True] < 6.5
    assert finished[True] > 0.97
    assert ratings[False] > 8.2


class CalledError(Exception):
    """Raised when a patched function is called."""


REWARD_MODEL = {
    "preference_losses.bradley_terry": {},
    "preference_losses.centring_penalty": {},
    "preference_losses.rating_margin": {"margin": 0.1},
    "preference_losses.ratings_win_loss": {"head": "ratings"},
    "ratings.soft_label_cross_entropy": {"head": "ratings", "soft_labels": 1.0},
    "ratings.squared_earth_mover": {"head": "ratings", "earth_mover": 1.0},
    "ratings.answer_entropy": {"head": "ratings"},
    "ratings.marginal_entropy": {"head": "ratings"},
    "ratings.roughness": {"head": "ratings"},
    "tree_batches": {},
    "branch_outputs": {},
}
POLICY = {
    "policy_losses.reinforce": {},
    "policy_losses.ppo_clip": {"objective": "ppo-clip"},
    "policy_losses.clip_fraction": {},
    "baselines.Baseline.advantages": {},
    "baselines.leave_one_out": {"baseline": "leave-one-out"},
    "baselines.MovingAverage.updated": {},
    "baselines.ExponentialAverage.updated": {"baseline": "ema"},
    "with_kl": {},
    "standardise": {},
    "penalise_missing_end": {},
    "answer_log_probs": {},
    "rollout_log_probs": {},
    "tree_batches": {},
    "check_alignment": {},
    "sample": {},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Settings that name a tiny model and tiny pairs; the folder of a tiny reward model."""
    place = tmp_path_factory.mktemp("tiny")
    pairs, held_out = tiny_pairs(8), tiny_pairs(4, "frog")
    for number, row in enumerate(held_out):
        row["prompt"] += f" ({number})"
    settings = {
        "data": [write_rows(place / "pairs.jsonl", pairs)],
        "eval_data": [write_rows(place / "held.jsonl", held_out)],
        "model": str(tiny_folder(place / "base")),
    }
    train_rm.main(train_rm.Config(**settings, out=str(place / "rm"), max_steps=1))
    return settings, str(place / "rm")


def raise_called(*args, **kwargs):
    raise CalledError


@pytest.mark.parametrize("name", REWARD_MODEL)
def test_trap_21_train_rm_calls_the_tested_function(name, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(f"train_rm.{name}", raise_called)
    config = train_rm.Config(
        **inputs[0], out=str(tmp_path / "rm"), max_steps=1, **REWARD_MODEL[name]
    )
    with pytest.raises(CalledError):
        train_rm.main(config)


@pytest.mark.parametrize("name", POLICY)
def test_trap_21_train_policy_calls_the_tested_function(name, inputs, tmp_path, monkeypatch):
    settings, reward_model = inputs
    monkeypatch.setattr(f"train_policy.{name}", raise_called)
    config = train_policy.Config(
        **settings, reward_model=reward_model, out=str(tmp_path / "policy"), batch_size=4,
        samples=2, steps=1, max_new_tokens=4, **POLICY[name],
    )  # fmt: skip
    with pytest.raises(CalledError):
        train_policy.main(config)
