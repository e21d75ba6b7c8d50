"""Wrong settings and inputs: one sentence that names the cause, exit code 2, nothing written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_reward_model import trained_folder
from tiny_models import tiny_folder, tiny_pairs, write_rows

import train_policy
import train_rm
from rlhf_min import command_line, defaults
from rlhf_min.reporting import report
from rlhf_min.zoo import start_model

ROOT = Path(__file__).parents[1]
PROMPTS = [{"prompt": row["prompt"]} for row in tiny_pairs(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with correct and wrong inputs of every kind."""
    place = tmp_path_factory.mktemp("input")
    base = tiny_folder(place / "base", "smol")
    trained_folder(base, place / "rm", "scalar")
    trained_folder(base, place / "rm10", "ratings")
    endless = tiny_folder(place / "endless", "smol")
    settings = json.loads((endless / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (endless / "tokenizer_config.json").write_text(json.dumps(settings))
    broken = tiny_folder(place / "broken", "smol")
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    wordy = tiny_folder(place / "wordy", "smol")  # its end token is in no vocabulary
    settings["eos_token"] = "<end>"
    (wordy / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = tiny_folder(place / "generation", "smol")
    (generation / "generation_config.json").write_text('{"eos_token_id": "end"}')
    shutil.copytree(place / "rm", place / "wordy-rm")
    shutil.copy(wordy / "tokenizer_config.json", place / "wordy-rm")
    template = tiny_folder(place / "template", "smol")  # its message is empty
    (template / "chat_template.jinja").write_text("{{ 'x' * 10**12 }}")
    overflow = tiny_folder(place / "overflow", "smol")
    weights = load_file(overflow / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 1e30
    save_file(weights, overflow / "model.safetensors", metadata={"format": "pt"})
    rows = tiny_pairs(8)
    write_rows(place / "good.jsonl", rows)
    write_rows(place / "held.jsonl", tiny_pairs(3, "frog"))
    write_rows(place / "prompts.jsonl", PROMPTS)
    write_rows(place / "held_prompts.jsonl", [{"prompt": "what does a frog like?"}])
    lost = [{k: v for k, v in row.items() if k != "rejected"} for row in rows]
    write_rows(place / "no_column.jsonl", lost)
    (place / "empty.jsonl").write_text("")
    good = (place / "good.jsonl").read_text().splitlines(keepends=True)
    (place / "no_json.jsonl").write_text("".join([*good[:4], "{oops\n", *good[5:]]))
    for name, rating in (("nan", float("nan")), ("eleven", 11), ("word", "good"), ("zero", 0)):
        write_rows(place / f"{name}.jsonl", [*rows[:2], rows[2] | {"chosen_rating": rating}])
    write_rows(place / "one_rating.jsonl", [rows[0] | {"rejected_rating": None}])
    unrated = [{k: v for k, v in row.items() if "rating" not in k} for row in rows]
    write_rows(place / "unrated.jsonl", unrated)
    write_rows(place / "equal.jsonl", [row | {"prompt": "a bear?"} for row in rows])
    write_rows(place / "equal_prompts.jsonl", [{"prompt": "a bear?"}] * 4)
    write_rows(place / "identical.jsonl", [row | {"rejected": row["chosen"]} for row in rows])
    write_rows(place / "long.jsonl", [{"prompt": p["prompt"] * 30} for p in PROMPTS])
    long = [row | {"chosen": "honey " * 90} for row in rows]
    write_rows(place / "long_answers.jsonl", long)
    write_rows(place / "no_prompt.jsonl", [{"text": "hello"}])
    (place / "used").mkdir()
    (place / "used" / "run.json").write_text('{"config": {}}')
    (place / "photos").mkdir()
    (place / "photos" / "photo.jpg").write_text("x")
    (place / "file.txt").write_text("x")
    return place


RM = "--model base --data good.jsonl --eval-data held.jsonl --max-steps 1 "
POLICY = (
    "--model base --reward-model rm --data prompts.jsonl --eval-data held_prompts.jsonl "
    "--batch-size 8 --samples 2 --steps 1 --max-new-tokens 4 "
)
TRAIN_RM = [
    ("--data no_column.jsonl", ["no_column.jsonl row 1", "rejected"]),
    ("--data empty.jsonl", ["empty.jsonl", "empty"]),
    ("--data no_json.jsonl", ["no_json.jsonl row 5", "JSON"]),
    ("--data absent.jsonl", ["absent.jsonl", "does not exist"]),
    ("--data nan.jsonl", ["nan.jsonl row 3", "chosen_rating", "nan"]),
    ("--data eleven.jsonl", ["eleven.jsonl row 3", "chosen_rating", "11"]),
    ("--data zero.jsonl", ["zero.jsonl row 3", "--rating-range"]),
    ("--data word.jsonl", ["word.jsonl row 3", "good"]),
    ("--data one_rating.jsonl", ["one_rating.jsonl row 1", "rate both"]),
    ("--eval-data nan.jsonl", ["nan.jsonl row 3"]),
    ("--data identical.jsonl", ["identical.jsonl", "identical"]),
    ("--data equal.jsonl --eval-data equal.jsonl", ["held out", "--eval-data"]),
    ("--data long_answers.jsonl", ["--data", "model's context of 128"]),
    ("--data long_answers.jsonl --max-length 64", ["--data", "--max-length of 64"]),
    ("--max-length 3", ["--max-length"]),
    ("--rating-range 1", ["--rating-range"]),
    ("--rating-range 10 1", ["--rating-range"]),
    ("--head pairs", ["--head", "pairs", "scalar", "ratings"]),
    ("--head ratings --margin 1", ["--margin", "--head"]),
    ("--soft-labels 1", ["--soft-labels", "--head"]),
    ("--head ratings --soft-labels 1 --data unrated.jsonl", ["--soft-labels", "chosen_rating"]),
    ("--head ratings --batch-sum 1", ["--batch-sum", "--head scalar"]),
    ("--margin 1 --data unrated.jsonl", ["--margin", "chosen_rating"]),
    ("--head ratings --soft-labels 1 --label-width 0", ["--label-width"]),
    ("--batch-size 0", ["--batch-size"]),
    ("--batch-size many", ["--batch-size", "many"]),
    ("--micro-batch 0", ["--micro-batch"]),
    ("--max-steps 0", ["--max-steps"]),
    ("--epochs 0", ["--epochs"]),
    ("--eval-every 0", ["--eval-every"]),
    ("--save-every 0", ["--save-every"]),
    ("--eval-limit 0", ["--eval-limit"]),
    ("--lr -1", ["--lr"]),
    ("--learning-rte 1", ["--learning-rte", "--learning-rate"]),
    ("--model no/such/folder", ["no/such/folder"]),
    ("--model endless", ["endless", "end token"]),
    ("--model wordy", ["wordy has 293 embeddings", "'<end>'", "id 293"]),
    ("--model template", ["template of template", "MemoryError"]),
    ("--model broken", ["broken"]),
    ("--model rm --head ratings", ["rm", "head"]),
    ("--out used", ["used", "another run"]),
    ("--out photos", ["photos", "no run"]),
    ("--out file.txt", ["file.txt", "file"]),
    ("--out photos --resume", ["photos", "no run"]),
]
TRAIN_POLICY = [
    ("--data no_prompt.jsonl", ["no_prompt.jsonl row 1", "prompt"]),
    ("--data empty.jsonl", ["empty.jsonl", "empty"]),
    ("--data no_json.jsonl", ["no_json.jsonl row 5", "JSON"]),
    ("--data absent.jsonl", ["absent.jsonl", "does not exist"]),
    ("--data equal_prompts.jsonl --batch-size 4", ["--data", "--batch-size"]),
    ("--data prompts.jsonl --eval-data prompts.jsonl", ["--eval-data"]),
    ("--data long.jsonl", ["prompt", "longer", "context"]),
    ("--eval-data long.jsonl", ["prompt", "longer", "context"]),
    ("--max-new-tokens 128", ["--max-new-tokens", "context"]),
    ("--max-new-tokens 0", ["--max-new-tokens"]),
    ("--step 5", ["--step", "--steps"]),
    ("--baseline batch-mean", ["--baseline", "batch-mean", "leave-one-out"]),
    ("--samples 1 --baseline leave-one-out", ["--samples", "leave-one-out"]),
    ("--samples 0", ["--samples"]),
    ("--batch-size 7", ["--batch-size 7", "--samples 2"]),
    ("--batch-size 64", ["--batch-size 64", "prompts"]),
    ("--micro-batch 0", ["--micro-batch"]),
    ("--steps 0", ["--steps"]),
    ("--updates 2", ["--updates", "ppo-clip"]),
    ("--clip 0.3", ["--clip", "--objective ppo-clip", "reinforce"]),
    ("--ema-decay 0.5", ["--ema-decay", "--baseline ema", "moving-average"]),
    ("--entropic-b 1", ["--entropic-b", "--reading entropic", "mean"]),
    ("--ensemble-weight 2", ["--ensemble-weight", "--ensemble uncertainty"]),
    ("--temperature 0", ["--temperature"]),
    ("--eval-prompts 0", ["--eval-prompts"]),
    ("--ruler-prompts 0", ["--ruler-prompts"]),
    ("--ruler-prompts 1", ["--ruler-prompts"]),
    ("--save-every 0", ["--save-every"]),
    ("--ema-decay 1.5 --baseline ema", ["--ema-decay"]),
    ("--entropic-b 0 --reading entropic --reward-model rm10", ["--entropic-b"]),
    ("--lr -1", ["--lr"]),
    ("--kl -1", ["--kl"]),
    ("--reading entropic", ["entropic", "rm", "--head ratings"]),
    ("--weight inverse-sigma", ["--weight", "rm", "--head ratings"]),
    ("--reading median", ["--reading", "median"]),
    ("--reward-model base", ["base", "no reward head"]),
    ("--ensemble min", ["--ensemble min", "--reward-model", "got 1"]),
    ("--ensemble median --reward-model rm rm10", ["--ensemble", "median"]),
    ("--ensemble-weight -1", ["--ensemble-weight"]),
    ("--reward-model rm base", ["base", "no reward head"]),
    ("--reward-model rm no/such/folder", ["no/such/folder"]),
    ("--reward-model rm10 rm --reading entropic", ["rm gives", "--head ratings"]),
    ("--reward-model rm10 rm10 --weight inverse-sigma", ["--weight", "gives 2", "uncertainty"]),
    (
        "--reward-model rm rm10 --reward-function own.py:reward",
        ["--reward-function", "2 folders", "--function-weight"],
    ),
    ("--reward-model no/such/folder", ["no/such/folder"]),
    ("--model no/such/folder", ["no/such/folder"]),
    ("--model endless", ["endless", "end token"]),
    ("--model wordy", ["wordy has 293 embeddings", "'<end>'", "id 293"]),
    ("--model template", ["template of template", "MemoryError"]),
    ("--model generation", ["generation/generation_config.json", "eos_token_id 'end'"]),
    ("--reward-model wordy-rm", ["wordy-rm has 293 embeddings", "'<end>'"]),
    ("--model overflow", ["overflow gives hidden states", "0"]),
    ("--model broken", ["broken"]),
    ("--reference no/such/folder", ["no/such/folder"]),
    ("--out used", ["used", "another run"]),
    ("--out photos", ["photos", "no run"]),
    ("--out photos --resume", ["photos", "no run"]),
]
CASES = [(train_rm, *case) for case in TRAIN_RM] + [(train_policy, *case) for case in TRAIN_POLICY]


def command(script, words: str, out: Path) -> list[str]:
    """A correct command line, with the flags in `words` instead of its own."""
    flags, given = {"out": [str(out)]}, {}
    for line, into in ((RM if script is train_rm else POLICY, flags), (words, given)):
        for piece in (" " + line).split(" --")[1:]:
            name, *values = piece.split()
            into[name] = values
    flags |= given
    return [word for name, values in flags.items() for word in ("--" + name, *values)]


def contents(place: Path) -> dict:
    """The bytes of every file in a folder."""
    return {str(f): f.read_bytes() for f in place.rglob("*") if f.is_file()}


def assert_one_sentence(code: int, errors: str, causes: list[str]) -> None:
    """Exit code 2 and one line on stderr that contains every word of `causes`."""
    assert code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and len(errors) < 500
    for cause in causes:
        assert cause in errors


@pytest.mark.parametrize(
    ("script", "words", "causes"), CASES, ids=[f"{c[0].__name__} {c[1]}" for c in CASES]
)
def test_a_wrong_setting_or_input_gives_one_sentence(
    place, tmp_path, monkeypatch, capfd, script, words, causes
):
    monkeypatch.chdir(place)
    before = contents(place)
    with pytest.raises(SystemExit) as stop:
        command_line.run(script.main, script.Config, command(script, words, tmp_path / "out"))
    assert_one_sentence(stop.value.code, capfd.readouterr().err, causes)
    assert contents(place) == before
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", [train_rm, train_policy])
def test_the_command_line_without_a_mistake_runs(place, monkeypatch, script, tmp_path):
    """So every case of the test above fails because of its own mistake."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(report, "write_report", lambda out: None)
    line = command(script, "", tmp_path / "out")
    assert command_line.run(script.main, script.Config, line) == 0


@pytest.mark.parametrize(
    ("script", "words", "causes"),
    [
        (train_rm, "--data absent.jsonl", "absent.jsonl"),
        (train_rm, "--data absent", "absent"),
        (train_policy, "--data absent.jsonl", "absent.jsonl"),
        (train_policy, "--batch-size 100000", "--batch-size"),
        (train_policy, "--reading entropic", "entropic"),
    ],
)
def test_nothing_is_built_for_a_run_that_cannot_start(
    place, tmp_path, monkeypatch, capfd, script, words, causes
):
    """Building the default start model and reward model would take minutes."""
    monkeypatch.chdir(tmp_path)
    base, rm = place / "base", place / "rm"

    def build(out, *rest):
        Path(out).parent.mkdir(exist_ok=True)
        Path(out).symlink_to(base)

    monkeypatch.setattr(start_model, "build_base", build)
    link = lambda script, *flags: Path("runs/rm").symlink_to(rm)  # noqa: E731
    monkeypatch.setattr(defaults, "run_script", link)
    with pytest.raises(SystemExit) as stop:
        command_line.run(script.main, script.Config, words.split())
    assert stop.value.code == 2 and causes in capfd.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "words", "causes"),
    [
        (train_rm, "--data no_json.jsonl", ["no_json.jsonl row 5"]),
        (train_policy, "--reward-model base", ["no reward head"]),
    ],
)
def test_a_wrong_input_through_the_shell(place, tmp_path, script, words, causes):
    before = contents(place)
    line = [str(ROOT / f"{script.__name__}.py"), *command(script, words, tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *line], cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert_one_sentence(done.returncode, done.stderr, causes)
    assert contents(place) == before and not any(tmp_path.iterdir())


def test_the_alignment_error_is_printed_below_the_progress_bar(place, tmp_path, monkeypatch, capfd):
    """An error in the middle of a run is printed on a line of its own."""
    monkeypatch.chdir(place)
    sample = train_policy.sample

    def wrong(*args, **kwargs):
        rollout = sample(*args, **kwargs)
        rollout.log_probs.sub_(torch.ones(()))
        return rollout

    monkeypatch.setattr(train_policy, "sample", wrong)
    with pytest.raises(SystemExit) as stop:
        line = command(train_policy, "", tmp_path / "out")
        command_line.run(train_policy.main, train_policy.Config, line)
    assert stop.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: the log-probs of sampling")
