"""Studies `baselines` and `algorithms`: their formulas, and the whole studies in tiny form."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import train_policy
from experiments import algorithms, algorithms_report, baselines, dpo, objectives, zoo_runs
from experiments import gradient_variance as gv
from rlhf_min.maths.policy_losses import ppo_clip, reinforce

OWNERS = torch.tensor([0, 0, 0, 1, 2, 2])  # three answers of 3, 1 and 2 tokens
OLD = torch.tensor([-1.0, -0.4, -2.0, -0.7, -1.5, -0.2], dtype=torch.float64)
NEW = OLD + torch.tensor([0.3, -0.25, 0.02, -0.5, 0.001, 0.015], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.5, -2.0, 0.7], dtype=torch.float64)


def loop_objective(name, log_probs, clip):
    """Both objectives in plain Python, one token and one answer after the other."""
    total = 0.0
    for answer in range(3):
        own = [t for t in range(6) if OWNERS[t] == answer]
        changes = [log_probs[t] - OLD[t].item() for t in own]
        ratios = [math.exp(c) for c in changes]
        if name == "gspo":
            ratios = [math.prod(ratios) ** (1 / len(own))]
        for ratio in ratios:
            a = ADVANTAGES[answer].item()
            total += min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
    return -total / 7


def gradient(loss, *args, at):
    log_probs = at.clone().requires_grad_()
    return torch.autograd.grad(loss(log_probs, OLD, OWNERS, ADVANTAGES, *args), log_probs)[0]


@pytest.mark.parametrize(("name", "clip"), [("ppo-token", 0.2), ("gspo", 0.2), ("gspo", 0.01)])
def test_objectives_equal_a_loop_in_value_and_gradient(name, clip):
    loss = objectives.PER_TOKEN[name][0]
    value = loss(NEW, OLD, OWNERS, ADVANTAGES, 7, clip)
    assert value.item() == pytest.approx(loop_objective(name, NEW.tolist(), clip), abs=1e-12)
    own, h = gradient(loss, 7, clip, at=NEW), 1e-6
    for t in range(6):
        up, down = ([*NEW.tolist()] for _ in range(2))
        up[t], down[t] = up[t] + h, down[t] - h
        slope = (loop_objective(name, up, clip) - loop_objective(name, down, clip)) / (2 * h)
        assert own[t].item() == pytest.approx(slope, abs=1e-8)


def test_at_ratio_1_the_gradient_is_that_of_reinforce():
    def plain(log_probs, old, owners, advantages, count):
        answers = torch.zeros(3, dtype=torch.float64).index_add(0, owners, log_probs)
        return reinforce(answers, advantages, count)

    wanted = gradient(plain, 7, at=OLD)
    assert_close(gradient(objectives.token_ppo, 7, 0.2, at=OLD), wanted)
    lengths = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)[OWNERS]
    assert_close(gradient(objectives.gspo, 7, 0.01, at=OLD), wanted / lengths)


def test_for_answers_of_one_token_all_ratios_are_the_same():
    owners = torch.arange(6)
    advantages = torch.tensor([1.0, -1, 2, -2, 0.5, -0.5], dtype=torch.float64)
    wanted = ppo_clip(NEW, OLD, advantages, 6, 0.2)
    for loss in (objectives.token_ppo, objectives.gspo):
        assert_close(loss(NEW, OLD, owners, advantages, 6, 0.2), wanted)


def test_dpo_loss_is_the_formula_and_the_implicit_rewards_difference():
    generator = torch.Generator().manual_seed(0)
    policy, ref = -5 * torch.rand(2, 4, 2, generator=generator, dtype=torch.float64)
    wanted, beta = 0.0, 0.3
    for (w, lose), (ref_w, ref_l) in zip(policy.tolist(), ref.tolist(), strict=True):
        implicit = beta * math.log(math.exp(w) / math.exp(ref_w))
        implicit -= beta * math.log(math.exp(lose) / math.exp(ref_l))
        wanted -= math.log(1 / (1 + math.exp(-implicit))) / 4
    assert dpo.dpo_loss(policy, ref, beta).item() == pytest.approx(wanted, abs=1e-12)
    assert dpo.dpo_loss(ref, ref, beta).item() == pytest.approx(math.log(2), abs=1e-12)


def test_variance_and_signal_equal_numpy():
    gradients = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)) + 0.5
    array = gradients.double().numpy()
    trace = np.trace(np.cov(array, rowvar=False))
    assert gv.total_variance(gradients) == pytest.approx(trace)
    # Unbiased: the mean product of the gradients of two different batches.
    products = [a @ b for a, b in itertools.permutations(array, 2)]
    assert gv.squared_mean_norm(gradients) == pytest.approx(np.mean(products))


def bandit_groups(theta, rewards, samples):
    """(probability, gradient parts [3, W]) of every group of `samples` answers of a bandit."""
    for group in itertools.product(range(len(rewards)), repeat=samples):
        own = theta.clone().requires_grad_()
        log_probs = own.log_softmax(-1)[list(group)][None]
        parts = gv.gradient_parts(log_probs, rewards[list(group)][None], [own], samples)
        yield log_probs.sum().exp().item(), parts.numpy()


@pytest.mark.parametrize("samples", [2, 3])
def test_sampled_variances_equal_those_of_an_enumerated_bandit(samples):
    theta = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
    rewards = torch.tensor([4.0, 7.0, 9.5], dtype=torch.float64)
    probabilities, parts = map(np.array, zip(*bandit_groups(theta, rewards, samples), strict=True))
    expected = (theta.softmax(-1) * rewards).sum().item()

    def exact(gradients):
        mean = probabilities @ gradients
        return probabilities @ ((gradients - mean) ** 2).sum(1), mean

    drawn = np.random.default_rng(0).choice(len(parts), 20_000, p=probabilities)
    sampled = torch.from_numpy(parts[drawn])
    best = gv.best_constant(sampled)
    own = theta.clone().requires_grad_()
    true = torch.autograd.grad(-(own.softmax(-1) * rewards).sum(), own)[0].numpy()
    variances = {}
    for name, weights in {"none": (1, 0, 0), "mean": (1, -expected, 0), "loo": (0, 0, 1)}.items():
        variances[name], mean = exact(np.einsum("npw,p->nw", parts, np.array(weights)))
        np.testing.assert_allclose(mean, true, atol=1e-12)  # all baselines are unbiased
        gradients = torch.einsum("npw,p->nw", sampled, torch.tensor(weights, dtype=torch.float64))
        assert gv.total_variance(gradients) == pytest.approx(variances[name], rel=0.05)
    assert variances["mean"] < variances["none"] / 2
    scan = {b: exact(parts[:, 0] - b * parts[:, 1])[0] for b in np.linspace(0, 12, 241)}
    assert min(scan, key=scan.get) == pytest.approx(best, abs=0.3)


def test_gold_at_a_kl_lies_on_the_line_in_root_kl_between_two_runs():
    def row(method, result, **own):
        return {"settings": {"seed": 0, "method": method, **own}, "result": result}

    rows = [row("dpo", {"kl": 4.0, "gold": 8.0}), row("dpo", {"kl": 9.0, "gold": 7.0})]
    rows.append(row("best-of-n", {"points": {"1": [0.0, 5.0], "4": [0.64, 6.0]}}))
    points = algorithms_report.curves(rows)
    assert algorithms_report.gold_at(points, "dpo", 1) == {0: pytest.approx(6.5)}
    assert algorithms_report.gold_at(points, "dpo", 6.25) == {0: pytest.approx(7.5)}
    assert algorithms_report.gold_at(points, "dpo", 10) == {}


@pytest.fixture(scope="module")
def tiny_lab(tmp_path_factory):
    """A folder for the studies' models, and no more than one thread's worth of work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_MIN_LAB", str(tmp_path_factory.mktemp("lab")))
        with zoo_runs.without_reports():
            yield


def test_the_study_of_baselines_in_tiny_form(tiny_lab, tmp_path):
    rows = [{"settings": one, "result": baselines.run(one)} for one in baselines.settings(True)]
    text = baselines.report(rows, tmp_path)
    assert (tmp_path / "baselines.png").exists()
    early = next(r["result"] for r in rows if r["settings"].get("policy") == "early")
    for samples in ("2", "4", "8"):
        found = early[samples]["variance"]
        assert found["best constant"] <= min(found["none"], found["converged"]) * 1.0001
    for name in ("start model | leave-one-out", "after 30 steps | exponential average"):
        assert f"| {name}" in text
    for name in ("none", "moving average", "leave-one-out, K = 8"):
        assert f"\n| {name} |" in text
    assert baselines.report([], tmp_path)  # a study that has no rows yet


def test_the_study_of_algorithms_in_tiny_form(tiny_lab, tmp_path):
    rows = [{"settings": one, "result": algorithms.run(one)} for one in algorithms.settings(True)]
    text = algorithms.report(rows, tmp_path)
    assert (tmp_path / "algorithms.png").exists()
    for name in algorithms_report.NAMES.values():
        assert f"\n| {name} |" in text
    for row in rows:
        if row["settings"]["method"] in ("ppo", "ppo-token", "gspo"):
            assert 0 <= row["result"]["outside"] <= 1
    assert algorithms.report(rows[:2], tmp_path) and algorithms.report([], tmp_path)


def test_a_plugged_objective_of_one_update_trains_as_reinforce(tiny_lab, tmp_path):
    """The ratio per token is 1 in the first update, so the trained weights must be the same."""
    models = baselines.models(algorithms.settings(True)[0])
    own = {"steps": 2, "eval_prompts": 2, "ruler_prompts": 8, "batch_size": 8, "micro_batch": 1}
    own |= {"objective": "ppo-clip", "dtype": "float64", "warm_up": 0}
    summaries = []
    for name in ("product", "ppo-token"):
        config = train_policy.Config(*map(str, models), out=str(tmp_path / name))
        if name == "product":
            summaries.append(train_policy.main(replace(config, **own)))
        else:
            with objectives.plugged_in(name) as plugged:
                summaries.append(train_policy.main(replace(config, **own)))
            assert not plugged.outside
    assert summaries[0]["after"]["kl/mean"] > 0
    assert summaries[0]["after"] == pytest.approx(summaries[1]["after"], rel=1e-9)
