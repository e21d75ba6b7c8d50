"""The over-optimisation study: its formulas against loops and enumeration, and --quick."""

import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from experiments import (
    best_of_n,
    exact_kl,
    fits,
    overopt_claims,
    overopt_report,
    overopt_runs,
    overopt_tables,
    overoptimisation,
)
from rlhf_min.zoo import world

# --- best of n ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
def test_best_of_n_is_the_mean_over_all_subsets(n, scores):
    values, total = [0.5, -1.0, 2.0, 3.0, 1.5, -2.0], 0.0
    for subset in itertools.combinations(range(6), n):
        top = max(scores[i] for i in subset)
        # a tie is drawn among all samples of that score, in the subset or not: same expectation
        tied = [values[i] for i in range(6) if scores[i] == top]
        total += sum(tied) / len(tied)
    expected = total / math.comb(6, n)
    assert best_of_n.best_of_n(np.array([scores]), np.array([values]), n)[0] == pytest.approx(
        expected
    )


def test_the_kl_of_best_of_n_by_enumeration_of_draws():
    """Equal answers are one: 3 answers with shares 1/2, 1/3, 1/6, all 6ⁿ draws."""
    which, score, n = [0, 0, 0, 1, 1, 2], [1.0, 1.0, 1.0, 3.0, 3.0, 2.0], 3
    chosen = [0.0, 0.0, 0.0]
    for drawn in itertools.product(range(6), repeat=n):
        chosen[which[max(drawn, key=lambda i: score[i])]] += 1 / 6**n
    expected = sum(p * math.log(p / q) for p, q in zip(chosen, (1 / 2, 1 / 3, 1 / 6), strict=True))
    assert best_of_n.counted_kl(np.array([score]), np.array([which]), n) == pytest.approx(expected)


def test_the_formula_is_the_limit_of_many_different_answers():
    many = np.arange(20_000.0)[None]
    for n in (2, 5, 20):
        counted = best_of_n.counted_kl(many, many, n)
        assert counted == pytest.approx(best_of_n.formula_kl(n), abs=0.01)
    assert best_of_n.formula_kl(1) == 0


# --- tilting ------------------------------------------------------------------------------------


def test_tilted_weights_and_their_kl_by_a_loop():
    rewards, beta, total = [[0.0, 1.0, 3.0], [2.0, 2.0, -1.0]], 0.7, 0.0
    weights, kl = best_of_n.tilted(np.array(rewards), beta)
    for own, given in zip(rewards, weights, strict=True):
        expected = [math.exp(r / beta) for r in own]
        expected = [e / sum(expected) for e in expected]
        assert given == pytest.approx(expected)
        total += sum(w * math.log(w / (1 / 3)) for w in expected) / 2
    assert kl == pytest.approx(total)


def test_no_random_policy_with_the_same_kl_beats_the_frontier():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(1, 6))
    for _ in range(200):
        weights = rng.dirichlet(np.ones(6))
        kl = float((weights * np.log(weights * 6)).sum())
        highest = best_of_n.frontier(rewards, rewards, kl)
        assert highest is None or weights @ rewards[0] <= highest + 1e-3
    assert best_of_n.frontier(rewards, rewards, 10.0) is None  # above log 6


# --- KL -----------------------------------------------------------------------------------------


class Bigram(nn.Module):
    """p(next token | token) from a table: its hidden state is the token itself, one-hot."""

    def __init__(self, logits):
        super().__init__()
        self.head = nn.Linear(*logits.shape, bias=False, dtype=torch.float64)
        self.head.weight.data = logits.T.clone()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def base_model(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=torch.eye(4, dtype=torch.float64)[input_ids])

    def get_output_embeddings(self):
        return self.head


def test_exact_kl_is_the_enumerated_kl_and_the_mean_log_ratio(monkeypatch):
    """All answers of at most 3 tokens over 4 tokens; token 3 ends an answer."""
    logits = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    policy, reference = Bigram(logits[0]), Bigram(logits[1])
    p, q = logits.softmax(-1)
    answers = [(3,), *((a, 3) for a in range(3)), *itertools.product(range(3), range(3), range(4))]
    probability, ratio = [], []
    for answer in answers:
        path = list(zip((0, *answer), answer, strict=False))
        probability.append(math.prod(p[a, b].item() for a, b in path))
        ratio.append(sum(math.log(p[a, b] / q[a, b]) for a, b in path))
    assert sum(probability) == pytest.approx(1)
    expected = sum(w * r for w, r in zip(probability, ratio, strict=True))

    from rlhf_min.models.layout import Layout
    from rlhf_min.models.prompt_tree import build_tree

    ids = [list(answer) for answer in answers]
    layout = Layout(True, 10**4, torch.float64, torch.device("cpu"))
    trees = [([0], build_tree([[0]], [ids], layout))]
    monkeypatch.setattr(exact_kl, "tree_batches", lambda *_, **__: trees)
    rollout = SimpleNamespace(prompts=[[0]], answers=[ids], finished=torch.ones(1, len(ids)) > 0)
    kl = exact_kl.rollout_kl(policy, reference, rollout)[0].tolist()
    assert sum(w * k for w, k in zip(probability, kl, strict=True)) == pytest.approx(
        expected, abs=1e-6
    )
    assert min(kl) >= 0 > min(ratio)


# --- fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", fits.LAWS)
def test_a_fit_recovers_the_coefficients_and_its_own_law_wins(law):
    d = np.linspace(0.2, 4, 30)
    formulas = {
        "best of n": lambda x: x * (1.5 - 0.3 * x),
        "RL": lambda x: x * (1.5 - 0.3 * math.log(x)),
        "cubic": lambda x: x * (1.5 - 0.3 * x * x),
        "root": lambda x: 1.5 * math.sqrt(x) - 0.3 * x,
    }
    reward = np.array([formulas[law](x) for x in d])
    assert fits.fit(law, d, reward) == pytest.approx((1.5, 0.3))
    assert fits.extrapolation_error(d, reward, law) < 1e-9
    noisy = reward + np.random.default_rng(0).normal(size=30) * 0.01
    assert min(fits.LAWS, key=lambda other: fits.aic(d, noisy, other)) == law


def test_slopes_recover_a_plane_of_coefficients():
    """α = 1 + 0.2·ln parameters + 0.1·ln pairs, β = 0.3 − 0.02·ln parameters, the same seeds."""
    cells = {}
    for size, pairs in itertools.product((10, 100, 1000), (300, 3000)):
        x, y = math.log(size), math.log(pairs)
        alpha, beta = 1 + 0.2 * x + 0.1 * y, 0.3 - 0.02 * x
        d = [0.1 * i for i in range(20)]
        gold = [a * (alpha - beta * math.log(a)) if a else 0.0 for a in d]
        result = {"parameters": size, "rl": {"kl": [a * a for a in d], "gold": gold}}
        cells[size, pairs, "gold", 0.0] = {0: result, 1: result}
    found = overopt_tables.slopes(cells, "RL")[0]
    assert found == pytest.approx(np.array([[0.2, 0.1], [-0.02, 0.0]]), abs=1e-6)


@pytest.mark.parametrize(
    ("by_seed", "says"),
    [
        ((0.2, 0.21), "yes"),
        ((-0.2, -0.21), "yes"),
        ((0.2, -0.2), "open"),
        ((0.2,), "open (1 seed)"),
    ],
)
def test_a_coefficient_changes_with_the_size_if_its_slope_is_up_or_down(by_seed, says):
    cells, d = {}, [0.1 * i for i in range(20)]
    for size, pairs in itertools.product((10, 100), (300, 3000)):
        own = cells.setdefault((size, pairs, "gold", 0.0), {})
        for seed, slope in enumerate(by_seed):
            alpha = 1 + slope * math.log(size)
            gold = [a * (alpha - 0.3 * math.log(a)) if a else 0.0 for a in d]
            own[seed] = {"parameters": size, "rl": {"kl": [a * a for a in d], "gold": gold}}
    assert overopt_claims.constant_coefficient(cells)[1] == says


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ({100: (0.1, 0.11), 1000: (0.5, 0.6)}, "yes"),
        ({100: (0.3, 0.31), 1000: (0.5, 0.52)}, "**refuted** down to the fewest pairs tried"),
        ({100: (0.0, 0.5), 1000: (0.5, 0.52)}, "open"),
    ],
)
def test_nothing_is_learned_where_the_gain_is_below_the_bound(gains, says):
    curve = lambda gold: {"kl": [0.0, 2.0], "gold": [0.0, gold]}  # noqa: E731
    cells = {
        (96, pairs, "gold", 0.0): {seed: {"bon": curve(gold)} for seed, gold in enumerate(golds)}
        for pairs, golds in gains.items()
    }
    assert overopt_claims.fewest_pairs(cells)[1] == says


# --- causes -------------------------------------------------------------------------------------


def test_losses_sum_to_the_distance_from_the_best_quality():
    rng, sentences = random.Random(0), list(world.SENTENCES)
    for i in range(400):
        prompt = rng.choice(world.prompts("held-out"))
        answer = world.random_answer(prompt, rng)
        if i % 2:
            answer = " ".join(rng.choices(sentences, k=rng.randrange(1, 6)))[
                : rng.randrange(4, 150)
            ]
        causes = world.losses(prompt, answer)
        assert sum(causes.values()) == pytest.approx(11 - world.quality(prompt, answer)[0])
        assert min(causes.values()) >= 0


def test_losses_by_hand():
    prompt = "Tell me the colour and food of the fox."
    answer = "Well, let me think. The fox is green. It eats mice. It eats mice. Have a"
    expected = {"missing fact": 3.5, "no manners": 2.0, "filler": 3.5, "wrong fact": 1.5}
    expected |= {"repeated": 6.0, "unfinished": 3.5}
    assert world.losses(prompt, answer) == expected


def test_the_training_data_has_none_of_the_kinds_called_unseen():
    found = set()
    for row in world.demonstrations(4000, seed=1):
        found |= {kind for kind, cost in world.losses(row["prompt"], row["answer"]).items() if cost}
    assert not found & set(overopt_runs.UNSEEN)
    assert found | set(overopt_runs.UNSEEN) == {*world.COST, "missing fact", "no manners"}


# --- the study ----------------------------------------------------------------------------------


def test_the_best_step_of_a_fall_is_that_of_the_other_seeds():
    curves = {0: [0.0, 9.0, 1.0], 1: [0.0, 2.0, 1.0], 2: [0.0, 1.0, 3.0]}
    own = {seed: {"rl": {"gold": gold}} for seed, gold in curves.items()}
    # others' means: seed 0 (0, 1.5, 2), seed 1 (0, 5, 2), seed 2 (0, 5.5, 1)
    assert overopt_tables.falls(own) == [0.0, 1.0, -2.0]
    other = {0: {"rl": {"gold": [3.0, 3.0, 3.0]}}, 1: {"rl": {"gold": [2.0, 5.0, 5.0]}}}
    start = lambda result: result["rl"]["gold"][0]  # noqa: E731
    # best minus start: (1, 2, 1) and (0, 0); seed 2 has one cell
    assert overopt_report.gold_lost({"a": own, "b": other}, start) == [0.5, 1.0, 1.0]


def test_points_leave_out_n_near_the_number_of_samples():
    curve = {"kl": [0.0, 1.0, 4.0, 5.0], "gold": [0.0, 1.0, 2.0, 3.0], "n": [1, 8, 280, 460]}
    d, gold = overopt_tables.points({"bon": curve}, "best of n")
    assert d.tolist() == [1.0, 2.0] and gold.tolist() == [1.0, 2.0]


def test_stopping_by_the_diagnosis_of_the_curve_so_far():
    gold = [5 + 0.1 * t if t <= 20 else 7 - 0.1 * (t - 20) for t in range(60)]
    steps = [
        {"step": t + 1, "reward/mean": float(t), "reward/gold": gold[t], "kl/mean": t / 4}
        for t in range(60)
    ]
    stop = overopt_runs.stopped_at(steps)
    assert stop["limit"] == 42  # t / 4 > 10 for the first time at t = 41
    assert 25 <= stop["diagnosis"] <= 40  # the gold has fallen by 0.5 at t = 25
    assert overopt_runs.stopped_at(steps[:20]) == {"diagnosis": None, "limit": None}


def test_the_learned_reward_of_both_methods_holds_the_missing_end_penalty():
    """At the start 10 % of the answers have no end token, later none, then 60 %."""
    curve = {"kl": [0.0, 1.0, 4.0], "score": [0.0, 2.0, 3.0], "finished": [0.9, 1.0, 0.4]}
    _, reward = overopt_tables.points({"rl": curve}, "RL", "score")
    assert reward.tolist() == pytest.approx([2.0 + 0.1, 3.0 - 0.5])
    best = {"kl": [0.0, 1.0, 4.0], "score": [0.0, 2.0, 3.0], "n": [1, 2, 4]}  # has it already
    _, reward = overopt_tables.points({"bon": best}, "best of n", "score")
    assert reward.tolist() == [2.0, 3.0]


def test_quick_runs_give_a_report_with_every_row(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    wanted = overoptimisation.settings(quick=True)
    rows = [{"settings": s, "result": overoptimisation.run(s), "seconds": 1.0} for s in wanted]
    for row in rows:
        curve = row["result"]["rl"]
        assert curve["kl"][0] == curve["gold"][0] == curve["score"][0] == 0
        assert curve["step"] == [0, 2, 4]
        assert all(kl > 0 for kl in curve["kl"][1:])
        assert ("bon" in row["result"]) == (row["settings"]["kl"] == 0)
    text = overoptimisation.report(rows, tmp_path)
    for row in rows:
        own = row["settings"]
        assert f"| {own['hidden']} | {own['pairs']} | {own['labels']} | {own['kl']:g} |" in text
    assert "nan" not in text
    assert (tmp_path / "overoptimisation.png").stat().st_size < 150_000
    assert overoptimisation.report(rows[:1], tmp_path)  # a study that has just begun


def test_the_full_study_has_whole_seeds_first():
    seeds = [one["seed"] for one in overoptimisation.settings(quick=False)]
    assert seeds == sorted(seeds)
    assert {seeds.count(seed) for seed in seeds} == {33}
