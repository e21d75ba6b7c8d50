"""train_rm.py as a whole: loss and loop against plain Python, and the files of a run."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from test_reward_model import score_texts, trained_folder
from tiny_models import tiny_folder, tiny_pairs, write_rows
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import train_rm
from rlhf_min import InputError
from rlhf_min.data.sources import read_rows
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.reporting import report
from rlhf_min.reporting.run_folder import RunLog

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
ALL = {
    "soft_labels": 0.5, "label_width": 1.3, "earth_mover": 0.2, "answer_entropy": -0.3,
    "marginal_entropy": 0.1, "roughness": 0.05,
}  # fmt: skip
HEADS = {
    "scalar": {"head": "scalar", "margin": 0.1, "centring": 0.05, "batch_sum": 0.1},
    "ratings": {"head": "ratings", **ALL},
}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Settings of a tiny run: 8 pairs, all in one batch, and 5 held out."""
    place = tmp_path_factory.mktemp("rm")
    return {
        "model": str(tiny_folder(place / "base", "smol")),
        "data": [write_rows(place / "train.jsonl", tiny_pairs(8))],
        "eval_data": [write_rows(place / "test.jsonl", tiny_pairs(5, "frog"))],
        "batch_size": 8, "max_steps": 4, "lr": 1e-3, "eval_every": 3,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def no_report(monkeypatch, request):
    """Write no report, because it takes longer than these runs, unless a test uses `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "write_report", lambda out: None)


@pytest.fixture
def pictures():
    """A test that uses this fixture gets the real report."""


def run(tiny_run: dict, out: Path, **settings) -> tuple[dict, dict]:
    """main(config) → summary and final weights."""
    summary = train_rm.main(train_rm.Config(**{**tiny_run, "out": str(out), **settings}))
    model = AutoModelForSequenceClassification.from_pretrained(out)
    return summary, dict(model.named_parameters())


def rows_of(file: Path) -> list[dict]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def close(ours: dict, theirs: dict, atol: float = 1e-6) -> None:
    """Assert that two models' weights, by name, are equal up to rounding."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_close(ours[name], theirs[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: n + m)


# The loss with each option, against loops over Python numbers.


def softmax(z: list[float]) -> list[float]:
    top = sum(math.exp(x) for x in z)
    return [math.exp(x) / top for x in z]


def loop_loss(c: train_rm.Config, chosen, rejected, good, bad) -> float:
    """Oracle: the whole loss in Python numbers; for ratings it begins with −log Σ_{i>j} w_i l_j."""
    n = len(chosen)
    if c.head == "scalar":
        total = 0.0
        for (w,), (l,), a, b in zip(chosen, rejected, good, bad, strict=True):  # noqa: E741
            margin = c.margin * max(0.0, a - b) if c.margin else 0.0
            total += math.log1p(math.exp(-(w - l - margin))) + c.centring * (w + l) ** 2
        everything = sum(w + l for (w,), (l,) in zip(chosen, rejected, strict=True))  # noqa: E741
        return total / n + c.batch_sum * (everything / n) ** 2
    tau = {"half": 0.5, "strict": 0.0}[c.tie]
    loss, every = 0.0, [*chosen, *rejected]
    for w, l in zip(chosen, rejected, strict=True):  # noqa: E741
        p, q = softmax(w), softmax(l)
        win = sum(p[i] * q[j] for i, j in product(range(10), repeat=2) if i > j)
        loss -= math.log(win + tau * sum(p[i] * q[i] for i in range(10))) / n
    marginal = [0.0] * 10
    for z, rating in zip(every, [*good, *bad], strict=True):
        p = softmax(z)
        if c.soft_labels or c.earth_mover:
            cdf = [
                0.5 * (1 + math.erf((k + 0.5 - rating) / (c.label_width * math.sqrt(2))))
                for k in range(11)
            ]
            mass = [cdf[k + 1] - cdf[k] for k in range(10)]
            label = [m / sum(mass) for m in mass]
            loss += c.soft_labels * -sum(
                a * math.log(b) for a, b in zip(label, p, strict=True)
            ) / (2 * n)  # fmt: skip
            for k in range(10):
                loss += c.earth_mover * (sum(p[: k + 1]) - sum(label[: k + 1])) ** 2 / (2 * n)
        loss += c.answer_entropy * sum(x * math.log(x) for x in p) / (2 * n)
        for k in range(1, 9):
            loss += c.roughness * (z[k + 1] - 2 * z[k] + z[k - 1]) ** 2 / (2 * n)
        marginal = [m + x / (2 * n) for m, x in zip(marginal, p, strict=True)]
    return loss + c.marginal_entropy * sum(m * math.log(m) for m in marginal)


OPTIONS = [
    {"head": "scalar", "centring": 0.0},
    {"head": "scalar"},
    {"head": "scalar", "margin": 0.3},
    {"head": "scalar", "batch_sum": 0.4},
    {"head": "ratings"},
    {"head": "ratings", "tie": "strict"},
    *({"head": "ratings", name: value} for name, value in ALL.items()),
    {"head": "ratings", **ALL},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))
def test_every_option_of_the_loss_equals_a_loop(options):
    config = train_rm.Config(**options)
    torch.manual_seed(0)
    labels = 1 if config.head == "scalar" else 10
    chosen, rejected = torch.randn(2, 3, labels, dtype=torch.float64)
    good, bad = torch.tensor([[9.0, 4.0, 2.5], [1.0, 6.0, 2.0]], dtype=torch.float64)
    step_mean = (chosen + rejected).mean().item()  # of a step with these three pairs only
    ours = train_rm.loss_of(config, chosen, rejected, good, bad, step_mean).item()
    expected = loop_loss(config, *(x.tolist() for x in (chosen, rejected, good, bad)))
    assert ours == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("head", ["scalar", "ratings"])
def test_pairs_without_ratings_have_a_finite_loss_and_gradient(head):
    outputs = torch.randn(2, 3, 1 if head == "scalar" else 10, requires_grad=True)
    unknown = torch.full((3,), float("nan"))
    train_rm.loss_of(train_rm.Config(head=head), *outputs, unknown, unknown).backward()
    assert outputs.grad.isfinite().all()


# The loop.


@pytest.mark.parametrize("head", HEADS)
def test_a_run_equals_a_plain_loop(tiny_run, tmp_path, head):
    """One answer at a time, torch's AdamW and gradient clipping: the same final weights."""
    settings = {**HEADS[head], "weight_decay": 0.1, "max_grad_norm": 0.5, "warm_up": 0.5}
    beta2 = 0.999 if head == "ratings" else 0.95
    settings |= {"adam_beta2": 0.999} if head == "ratings" else {}
    summary, ours = run(tiny_run, tmp_path / "rm", **settings)
    config = train_rm.Config(**{**tiny_run, **settings})
    tokenizer = AutoTokenizer.from_pretrained(tiny_run["model"])
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_run["model"], num_labels=1 if head == "scalar" else 10
    )
    torch.nn.init.zeros_(model.score.weight)
    model.get_input_embeddings().padding_idx = None  # the pad token is the end token here
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, beta2), weight_decay=0.1)
    losses = []
    for step in range(4):
        outputs = []
        for side, row in product(("chosen", "rejected"), tiny_pairs(8)):
            turns = [("user", row["prompt"]), ("assistant", row[side])]
            text = tokenizer.apply_chat_template(
                [{"role": r, "content": c} for r, c in turns], tokenize=False
            )
            ids = tokenizer(text.rstrip("\n"), add_special_tokens=False).input_ids
            assert ids[-1] == tokenizer.eos_token_id
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            outputs.append(model.score(hidden))
        chosen, rejected = torch.stack(outputs).view(2, 8, -1)
        ratings = [
            torch.tensor([r[f"{s}_rating"] for r in tiny_pairs(8)]) for s in ("chosen", "rejected")
        ]
        loss = train_rm.loss_of(replace(config, batch_sum=0.0), chosen, rejected, *ratings)
        loss = loss + config.batch_sum * (chosen + rejected).mean() ** 2
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        # 4 steps, half of them warm-up: 1/2, 1, then linearly down to 0 after the last step.
        adam.param_groups[0]["lr"] = 1e-3 * [0.5, 1.0, 1.0, 0.5][step]
        adam.step()
        adam.zero_grad()
    close(ours, dict(model.named_parameters()), atol=2e-5)
    logged = [row["loss/train"] for row in rows_of(tmp_path / "rm" / "metrics.jsonl")]
    assert logged == pytest.approx(losses, abs=1e-4)
    assert summary["head"] == head


def test_the_calibration_error_of_a_run_equals_a_loop_over_its_scores(tiny_run, tmp_path):
    """In ten bins, every pair in both orders."""
    summary, _ = run(tiny_run, tmp_path / "rm", lr=1e-2)
    p_wins = [row["p_win"] for row in rows_of(tmp_path / "rm" / "held_out_scores.jsonl")]
    points = [(p, 1) for p in p_wins] + [(1 - p, 0) for p in p_wins]
    total = 0.0
    for b in range(10):
        inside = [(p, y) for p, y in points if b <= 10 * p < b + 1]
        total += abs(sum(y - p for p, y in inside)) / len(points)
    assert summary["calibration_error"] == pytest.approx(total, abs=1e-6) and total > 0.01


@pytest.mark.parametrize(
    ("warm_up", "rates"), [(2, [0.5, 1]), (0.5, [0.5, 1]), (100, [0.01, 0.02])]
)
def test_warm_up_is_in_steps_or_below_1_a_share(tiny_run, tmp_path, warm_up, rates):
    run(tiny_run, tmp_path / "rm", warm_up=warm_up, lr=1e-4)
    logged = [row["learning_rate"] for row in rows_of(tmp_path / "rm" / "metrics.jsonl")]
    assert logged[:2] == pytest.approx([1e-4 * rate for rate in rates])


@pytest.mark.parametrize("head", HEADS)
def test_trap_9_micro_batches_of_1_2_and_8_give_the_same_weights(tiny_run, tmp_path, head):
    """Without the marginal entropy, which is computed for each micro-batch."""
    options = {**HEADS[head], "lr": 1e-4}
    if head == "ratings":
        options["marginal_entropy"] = 0.0
    sizes = (1, 2, 3, 8)
    runs = [run(tiny_run, tmp_path / str(n), micro_batch=n, **options)[1] for n in sizes]
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


def test_gradient_checkpointing_gives_the_same_weights(tiny_run, tmp_path):
    options = {**HEADS["ratings"], "lr": 1e-4}
    one = run(tiny_run, tmp_path / "a", **options)[1]
    two = run(tiny_run, tmp_path / "b", gradient_checkpointing=True, **options)[1]
    close(two, one)


def test_the_seed_decides_the_run(tiny_run, tmp_path):
    settings = {"batch_size": 3, "lr": 1e-2, "seed": 1}
    first, again = (run(tiny_run, tmp_path / name, **settings)[1] for name in "ab")
    close(first, again, atol=0)
    other = run(tiny_run, tmp_path / "c", **{**settings, "seed": 2})[1]
    assert any((other[n] - first[n]).abs().max() > 1e-4 for n in first)


def test_training_learns_to_rank_the_pairs(tiny_run, tmp_path):
    summary, _ = run(tiny_run, tmp_path / "rm", max_steps=40, lr=1e-2, eval_every=40)
    assert summary["accuracy"] == 1.0 and summary["loss"] < 0.4
    metrics = rows_of(tmp_path / "rm" / "metrics.jsonl")
    assert metrics[0]["loss/train"] == pytest.approx(math.log(2))
    assert metrics[-1]["loss/train"] < 0.4
    assert metrics[0]["accuracy/train"] == 0.5


def test_a_bfloat16_run_saves_a_folder_that_loads(tiny_run, tmp_path):
    run(tiny_run, tmp_path / "rm", dtype="bfloat16", max_steps=2)
    scorer = RewardScorer(str(tmp_path / "rm"), torch.float32)
    assert all(map(math.isfinite, score_texts(scorer, ["a"], ["b"])))


def test_by_default_the_number_of_steps_follows_from_epochs(tiny_run, tmp_path):
    few = {"max_steps": -1, "batch_size": 3}
    assert run(tiny_run, tmp_path / "a", epochs=2.0, **few)[0]["steps"] == 6  # 8 pairs: 3 + 3 + 2
    assert run(tiny_run, tmp_path / "b", epochs=0.5, **few)[0]["steps"] == 2
    hundred = {**tiny_run, "data": [write_rows(tmp_path / "more.jsonl", tiny_pairs(100))]}
    few["batch_size"] = 1  # 0.07 * 100 is 7.000000000000001
    assert run(hundred, tmp_path / "c", epochs=0.07, **few)[0]["steps"] == 7


@pytest.mark.parametrize("name", ["data", "eval_data"])
def test_a_resumed_run_must_have_the_same_ratings_and_held_out_pairs(tiny_run, tmp_path, name):
    file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [json.loads(line) for line in Path(tiny_run[name][0]).read_text().splitlines()]
    rated = [row | {"chosen_rating": 9.0, "rejected_rating": 8.0} for row in rows]
    write_rows(file, rated)
    settings = {**tiny_run, name: [str(file)]}
    run(settings, out)
    (out / "summary.json").unlink()
    write_rows(file, [row | {"rejected_rating": 1.0} for row in rated])
    with pytest.raises(InputError, match="the data changed since the run"):
        run(settings, out, resume=True)


# The files of a run.

SUMMARY = {
    "accuracy", "accuracy_low", "accuracy_high", "longer_wins", "calibration_error", "loss",
    "chance_loss", "pairs/train", "pairs/held_out", "dropped", "head",
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_the_folder_has_every_file_and_key_of_the_contract(tiny_run, tmp_path, head, pictures):
    out = tmp_path / "deep" / "rm"
    summary, _ = run(tiny_run, out, **HEADS[head])
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and model.config.num_labels == (1 if head == "scalar" else 10)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template and tokenizer.pad_token_id != tokenizer.eos_token_id
    saved = json.loads((out / "summary.json").read_text())
    assert saved.keys() >= SUMMARY and saved.items() >= summary.items()
    assert saved["pairs/train"] == 8 and saved["pairs/held_out"] == 5
    record = json.loads((out / "run.json").read_text())
    assert record["script"] == "train_rm.py" and record["config"]["data"] == tiny_run["data"]
    assert record.keys() >= {"versions", "commit", "data", "device", "started"}
    assert record["data"]["fingerprint"] and record["config"]["seed"] == 0
    metrics = rows_of(out / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    every_step = {"loss/train", "accuracy/train", "learning_rate", "grad/norm", "batch/padding"}
    evaluated = {"loss/held_out", "accuracy/held_out"}
    evaluated |= {"accuracy/held_out_low", "accuracy/held_out_high"}
    for row in metrics:
        assert row.keys() >= every_step
        assert (row.keys() >= evaluated) == (row["step"] in (3, 4))
    assert metrics[-1]["accuracy/held_out"] == summary["accuracy"]
    scores = rows_of(out / "held_out_scores.jsonl")
    assert [row["prompt"] for row in scores] == [row["prompt"] for row in tiny_pairs(5, "frog")]
    scorer = RewardScorer(str(out), torch.float32)
    for row in scores:
        again = score_texts(scorer, [row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        given = [row["chosen_reward"], row["rejected_reward"]]
        assert given == pytest.approx(again, abs=1e-4)
        assert 0 <= row["p_win"] <= 1 and row["chosen_tokens"] > 1
        if head == "ratings":
            assert sum(row["chosen_ratings"]) == pytest.approx(1, abs=1e-5)
            mean = sum((k + 1) * p for k, p in enumerate(row["rejected_ratings"]))
            assert mean == pytest.approx(row["rejected_reward"], abs=1e-4)
    assert (out / "report.html").stat().st_size > 1000 and list(out.glob("*.png"))
    assert not (out / "checkpoint.pt").exists() and not list(out.glob(".saving*"))


def test_trap_15_held_out_prompts_are_never_trained_on(tiny_run, tmp_path):
    rows = tiny_pairs(8) + tiny_pairs(2, "frog")
    data = write_rows(tmp_path / "mixed.jsonl", rows)
    summary, _ = run(tiny_run, tmp_path / "rm", data=[data], max_steps=1)
    assert summary["pairs/train"] == 8
    assert summary["dropped"]["prompt is held out"] == 2
    twice = [row | {"chosen": row["chosen"] + "."} for row in rows] + rows
    data = write_rows(tmp_path / "twice.jsonl", twice)
    split = {"data": [data], "eval_data": [], "max_steps": 1, "eval_fraction": 0.4}
    summary, _ = run(tiny_run, tmp_path / "split", **split)
    held_out = {row["prompt"] for row in rows_of(tmp_path / "split" / "held_out_scores.jsonl")}
    assert summary["pairs/held_out"] == 2 * len(held_out)
    assert summary["pairs/train"] == 20 - 2 * len(held_out)


def test_trap_14_identical_pairs_and_cut_prompts_are_counted(tiny_run, tmp_path):
    rows = tiny_pairs(8)
    rows[0] |= {"rejected": rows[0]["chosen"]}
    rows[1] |= {"prompt": "what does the bear like? " * 40}
    rows[2] |= {"chosen": "honey " * 100}
    data = write_rows(tmp_path / "data.jsonl", rows)
    summary, _ = run(tiny_run, tmp_path / "rm", data=[data], max_steps=1)
    assert summary["dropped"]["identical"] == 1
    assert summary["dropped"]["prompt cut from the left (kept)"] == 1
    assert summary["dropped"]["answer longer than the model's context"] == 1
    assert summary["pairs/train"] == 6


def test_training_can_start_from_a_trained_reward_model(tiny_run, tmp_path):
    run(tiny_run, tmp_path / "one", max_steps=3)
    _, before = run(tiny_run, tmp_path / "two", model=str(tmp_path / "one"), max_steps=1, lr=1e-9)
    first = dict(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "one").named_parameters()
    )
    close(before, first, atol=1e-7)


@pytest.mark.parametrize("data", ["ultrafeedback", "hh_helpful"])
def test_training_on_real_pairs(tmp_path, data):
    """Real lengths, Unicode, messages and ratings, with a tiny model of a long context."""
    if not (SHARED / "data" / data).is_dir():
        pytest.skip(f"the real preferences in ../shared/data/{data} are missing")

    spec = str(SHARED / "data" / data / "test.jsonl.gz")
    rows = [row.columns for row in read_rows(spec)]
    rows = [row for row in rows if len(str(row)) < 2500][:24]  # a byte is a token here
    tiny_run = {
        "model": str(tiny_folder(tmp_path / "base", "one-special", max_position_embeddings=2048)),
        "data": [write_rows(tmp_path / "some.jsonl", rows)], "max_steps": 2, "batch_size": 4,
        "max_length": 2048, "eval_limit": 4, "head": "ratings",
        "soft_labels": 0.5 if "chosen_rating" in rows[0] or "score_chosen" in rows[0] else 0.0,
    }  # fmt: skip
    summary, _ = run(tiny_run, tmp_path / "rm")
    assert math.isfinite(summary["loss"]) and summary["pairs/train"] > 8


def test_a_run_through_the_shell(tiny_run, tmp_path):
    out = tmp_path / "rm"
    line = f"train_rm.py --model {tiny_run['model']} --data {tiny_run['data'][0]} --max-steps 1"
    line += f" --eval-data {tiny_run['eval_data'][0]} --out {out} --head ratings"
    done = subprocess.run(
        [sys.executable, *line.split()], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy" in done.stdout and (out / "report.html").exists()


@pytest.mark.parametrize("name", ["margin", "soft_labels", "earth_mover"])
def test_settings_that_use_ratings_need_them_in_the_data(tiny_run, tmp_path, name):
    rows = [{k: v for k, v in row.items() if "rating" not in k} for row in tiny_pairs(8)]
    data = [write_rows(tmp_path / "data.jsonl", rows)]
    head = "scalar" if name == "margin" else "ratings"
    with pytest.raises(InputError, match="chosen_rating"):
        run(tiny_run, tmp_path / "rm", data=data, head=head, **{name: 0.5})
    with pytest.raises(InputError, match="--head"):
        wrong = "ratings" if name == "margin" else "scalar"
        run(tiny_run, tmp_path / "rm", head=wrong, **{name: 0.5})
    assert not (tmp_path / "rm").exists()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_steps": 0}, "--max-steps must be above 0"),
        ({"max_steps": 1}, ""),
        ({"max_steps": -1}, ""),
        ({"rating_range": [1.0]}, "--rating-range needs two numbers"),
        ({"rating_range": [1.0, 5.0, 10.0]}, "--rating-range needs two numbers"),
        ({"rating_range": [0.0, 4.0]}, ""),
        ({"head": "ratings", "margin": 0.5}, "--margin needs --head scalar, but --head is ratings"),
        ({"head": "scalar", "margin": 0.5}, ""),
        ({"head": "scalar", "soft_labels": 0.5}, "--soft-labels needs --head ratings, but --head"),
        ({"head": "ratings", "soft_labels": 0.5, "earth_mover": 0.5}, ""),
        ({"head": "scalar", "earth_mover": 0.5}, "--earth-mover needs --head ratings, but --head"),
        ({"head": "scalar", "answer_entropy": 5.0}, "--answer-entropy needs --head ratings, but"),
        ({"marginal_entropy": 5.0}, "--marginal-entropy needs --head ratings, but"),
        ({"roughness": 5.0}, "--roughness needs --head ratings, but --head is scalar"),
        ({"tie": "strict"}, "--tie needs --head ratings, but --head is scalar"),
        ({"label_width": 0.5}, "--label-width needs --head ratings, but --head is scalar"),
        ({"label_width": 0.5, "resume": True}, ""),  # earlier versions let such runs begin
        ({"head": "ratings", "tie": "strict", "label_width": 0.5}, ""),
        ({"lr": 2.0}, "--lr must be at most 1"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_together_are_named(tmp_path, settings, error):
    config = train_rm.Config(**{"out": str(tmp_path / "rm"), **settings})
    if not error:
        return train_rm.check(config)
    with pytest.raises(InputError, match=error):
        train_rm.check(config)


def test_the_model_s_folder_is_checked_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="--model and --out are both"):
        train_rm.check(train_rm.Config(model=str(tmp_path), out=str(tmp_path)))


def test_the_settings_of_the_data_reach_the_reader(tmp_path):
    """--limit draws by --seed, --rating-range maps to 1..10, --skip-bad-rows drops and counts."""
    rows, held_out = tiny_pairs(20), tiny_pairs(2, "frog")
    for row in rows + held_out:
        row |= {"chosen_rating": 4.0, "rejected_rating": 0.0}
    rows[0] = {"prompt": "no answers"}
    settings = {
        "data": [write_rows(tmp_path / "data.jsonl", rows)], "rating_range": [0.0, 4.0],
        "eval_data": [write_rows(tmp_path / "test.jsonl", held_out)],
    }  # fmt: skip

    def read(**more):
        return train_rm.read_pairs(train_rm.Config(**{**settings, **more}))

    with pytest.raises(InputError, match="no chosen column"):
        read()
    pairs, _, dropped, _ = read(skip_bad_rows=True)
    assert len(pairs) == 19 and sum(dropped.values()) == 1
    assert {(pair.chosen_rating, pair.rejected_rating) for pair in pairs} == {(10.0, 1.0)}
    drawn = [[p.prompt for p in read(skip_bad_rows=True, limit=5, seed=s)[0]] for s in (0, 1, 1)]
    assert len(drawn[0]) == 5 and drawn[0] != drawn[1] == drawn[2]


def test_evaluations_and_checkpoints_come_at_their_steps(tiny_run, tmp_path, monkeypatch):
    """Evaluated every 2 steps and at the end; saved every 2 steps."""
    saved = []
    monkeypatch.setattr(RunLog, "checkpoint", lambda self, step, state: saved.append(step))
    run(tiny_run, tmp_path / "out", max_steps=5, eval_every=2, save_every=2)
    rows = rows_of(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows if "accuracy/held_out" in row] == [2, 4, 5]
    assert saved == [2, 4]


def test_a_loss_that_overflows_is_named(tiny_run, tmp_path):
    """Rewards of 1e25 are finite, their squares in the centring penalty are not."""
    folder = trained_folder(Path(tiny_run["model"]), tmp_path / "rm", "scalar")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight.mul_(1e25)
    model.save_pretrained(folder)
    with pytest.raises(FloatingPointError, match="step 1: the loss is inf"):
        run({**tiny_run, "model": str(folder)}, tmp_path / "out")


def test_dropped_training_pairs_are_said(tiny_run, tmp_path, capsys):
    pairs = tiny_pairs(8)
    data = [write_rows(tmp_path / "twice.jsonl", [*pairs, *pairs[:3]])]
    run({**tiny_run, "data": data}, tmp_path / "out", max_steps=1)
    assert "3 training pairs dropped: duplicate" in capsys.readouterr().out
