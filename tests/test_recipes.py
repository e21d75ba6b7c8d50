"""The recipes run from the shell, with tiny local models and data and short settings."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_folder, write_rows

from rlhf_min import InputError
from rlhf_min.zoo import start_model, world

ROOT = Path(__file__).parents[1]


def shell(recipe: str, *arguments: str, code: int = 0, **environment: str):
    """Run a recipe with this Python interpreter; asserts its exit code."""
    settings = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["bash", f"recipes/{recipe}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-2000:]
    return done


def helpsteer_rows(file: Path) -> Path:
    """Write rows in the format of esfrankel17/HelpSteer2_binarized: messages, ratings 0 to 4."""
    rows = []
    for number in range(30):
        prompt = f"Question {number}: which way is up?"
        turns = {
            side: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            for side, text in (("chosen", f"Up is that way, {number}."), ("rejected", "No."))
        }
        rows.append({"prompt": prompt, **turns, "chosen_rating": 3.4, "rejected_rating": 0.8})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("recipe", ["smollm2_scalar.sh", "smollm2_ratings.sh"])
def test_the_smollm2_recipes_run_on_a_model_with_a_system_turn_and_pad_equal_to_end(
    recipe, tmp_path
):
    short = "--batch-size 8 --samples 2 --steps 2 --max-new-tokens 8 --eval-prompts 4"
    shell(
        recipe,
        MODEL=str(tiny_folder(tmp_path / "model", "smol")),
        DATA=str(helpsteer_rows(tmp_path / "pairs.jsonl")),
        OUT=str(tmp_path / "runs"),
        EXTRA_RM="--batch-size 4 --max-steps 3",
        EXTRA_POLICY=f"{short} --ruler-prompts 8",
        EXTRA_JUDGE="--limit 4 --max-new-tokens 8",
    )
    summary = json.loads((tmp_path / "runs/policy/summary.json").read_text())
    assert set(summary["before"]) == set(summary["after"])
    accuracy = json.loads((tmp_path / "runs/rm/summary.json").read_text())["accuracy"]
    assert 0 <= accuracy <= 1


def test_the_circle_runs_and_its_table_names_every_round(tmp_path):
    """One round from a small start model: sample, judge, mix, retrain, continue, judge."""
    start = str(tmp_path / "start")
    start_model.build_base(start, steps=60, examples=2000, hidden=64)
    out = tmp_path / "loop"
    reward = str(tmp_path / "rm")
    train = ["train_rm.py", "--model", start, "--out", reward, "--limit", "20", "--max-steps", "1"]
    train += ["--head", "ratings"]  # the loop goes on with the head that it finds
    subprocess.run([sys.executable, *train], cwd=ROOT, check=True, capture_output=True)
    environment = {"START": start, "REWARD_MODEL": reward, "STEPS": "1", "OLD": "40", "COLD": "1"}
    done = shell("loop.sh", "1", "30", str(out), **environment)
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in table[2:]] == ["start", "0", "1"]
    assert (out / "loop.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "rm-1/run.json").read_text())["config"]
    assert record["data"] == ["zoo", str(out / "judge-1/comparisons.jsonl")]
    assert (record["model"], record["limit"], record["head"]) == (start, 40, "ratings")
    policy = json.loads((out / "policy-1/run.json").read_text())["config"]
    assert policy["reference"] == start and policy["reward_model"] == str(out / "rm-1")

    # The same command goes on where a killed loop was: here, after its last reward model.
    policy_id = json.loads((out / "policy-1/run.json").read_text())["id"]
    shutil.rmtree(out / "policy-1")
    (out / "loop.png").unlink()
    again = shell("loop.sh", "1", "30", str(out), **environment)
    lines = [line for line in again.stdout.splitlines() if line.startswith("$ ")]
    assert [line.split()[2] for line in lines if "train_" in line] == ["train_policy.py"]
    assert json.loads((out / "policy-1/run.json").read_text())["id"] != policy_id
    assert again.stdout.splitlines()[-3:] == done.stdout.splitlines()[-3:]  # the same table
    assert (out / "loop.png").exists()
    other = shell("loop.sh", "1", "31", str(out), code=2, **environment)
    assert f"--out {out} holds a loop with --comparisons 30, not 31" in other.stderr
    own = {name: value for name, value in environment.items() if name != "REWARD_MODEL"}
    own_first = shell("loop.sh", "1", "30", str(out), code=2, **own)
    assert f"--reward-model {reward}, not nothing" in own_first.stderr
    fewer = shell("loop.sh", "1", "41", str(tmp_path / "new"), code=2, **environment)
    assert "--old 40 is below --comparisons 41" in fewer.stderr
    assert not (tmp_path / "new").exists()
    wrong = environment | {"REWARD_MODEL": str(tmp_path / "typo")}
    shell("loop.sh", "1", "30", str(tmp_path / "new"), code=2, **wrong)
    done = shell("loop.sh", "0", "30", str(tmp_path / "new"), **environment)  # not locked
    assert "$ python train_policy.py" in done.stdout
    more = shell("loop.sh", "1", "30", str(tmp_path / "new"), **environment).stdout
    scripts = [line.split()[2] for line in more.splitlines() if line.startswith("$ ")]
    assert scripts == ["judge.py", "train_rm.py", "train_policy.py", "judge.py", "judge.py"]
    words = ["--out", tmp_path / "pairs", "--reward-model", reward, "--pairs", tmp_path / "typo"]
    early = [sys.executable, "recipes/loop.py", "--start", start, *map(str, words)]
    early = subprocess.run(early, cwd=ROOT, capture_output=True, text=True)
    assert (early.returncode, early.stdout) == (2, "")  # before the first policy
    assert f"{tmp_path / 'typo'}" in early.stderr and not (tmp_path / "pairs").exists()
    inside = shell("loop.sh", "1", "30", str(out / "policy-0"), code=2, **environment)
    assert "already holds another run" in inside.stderr
    assert not (out / "policy-0" / "loop.json").exists()


def test_the_loop_in_two_processes_judges_once_and_goes_on_like_one(tmp_path):
    """Under torchrun only rank 0 judges, and its answers are those of a single process."""
    start, out = str(tmp_path / "start"), tmp_path / "loop"
    start_model.build_base(start, steps=60, examples=2000, hidden=64)
    write_rows(tmp_path / "pairs.jsonl", list(world.pairs("train", 40)))
    words = ["--start", start, "--pairs", tmp_path / "pairs.jsonl", "--out", out, "--steps", "1"]
    words += ["--rounds", "1", "--comparisons", "12", "--old", "20", "--reward-model"]
    train = ["train_rm.py", "--model", start, "--data", tmp_path / "pairs.jsonl", "--max-steps"]
    reward, options = str(tmp_path / "rm"), {"cwd": ROOT, "capture_output": True, "text": True}
    subprocess.run([sys.executable, *train, "1", "--out", reward], check=True, **options)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--", "recipes/loop.py", *map(str, words), reward]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    scripts = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ ")]
    trained = ["train_rm.py", "train_policy.py"]
    assert scripts == ["train_policy.py", "judge.py", *trained, "judge.py", "judge.py"]
    assert done.stdout.count("judge-1: win rate of b") == 1
    assert (out / "loop.png").exists()
    for name in ("policy-0", "rm-1", "policy-1"):  # both processes trained
        assert f"{out / name}: each process exchanged" in done.stdout
    flags = ["--a", out / "policy-0", "--b", out / "policy-0", "--limit", "12", "--seed", "1"]
    alone = ["judge.py", *map(str, flags), "--batch-size", "512", "--out", str(tmp_path / "one")]
    subprocess.run([sys.executable, *alone], check=True, env=environment, **options)
    for name in ("answers.jsonl", "verdicts.jsonl", "comparisons.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (out / "judge-1" / name).read_text()

    again = subprocess.run(command, env=environment, **options)  # trains nothing twice
    assert again.returncode == 0, again.stderr[-3000:]
    assert "train_" not in again.stdout
    assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]  # the same table
    wrong = subprocess.run([*command, "--old", "21"], env=environment, **options)
    assert wrong.returncode and wrong.stderr.count("holds a loop with --old 20, not 21") == 1


def test_the_loops_short_form_explains_itself_and_takes_no_fifth_word():
    assert (
        "recipes/loop.sh [ROUNDS] [COMPARISONS] [OUT] [SEED]" in shell("loop.sh", "--help").stdout
    )
    fifth = shell("loop.sh", "1", "30", "runs/x-help", "0", "--resume", code=2)
    assert "--resume: at most four arguments" in fifth.stderr
    # Round n has the seed 100 * SEED + n, which must not be above the scripts' limit, 10**9.
    large = shell("loop.sh", "1", "30", "runs/x-help", "1000001", code=2)
    assert "--seed must be at most 1000000" in large.stderr


def test_without_a_reward_model_the_loop_trains_its_first_one_in_six_epochs(tmp_path, monkeypatch):
    """In this process, and shortened: --rounds 0 is the first reward model and its policy."""
    start = str(tmp_path / "start")
    start_model.build_base(start, steps=2, examples=64, hidden=32)
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import loop

    pairs = str(tmp_path / "pairs.jsonl")
    write_rows(tmp_path / "pairs.jsonl", list(world.pairs("train", 40)))
    short = {"train_rm.py": ["--eval-limit", "10"]}
    short["train_policy.py"] = ["--eval-prompts", "4", "--ruler-prompts", "8", "--batch-size", "4"]
    run_script = loop.run_script
    monkeypatch.setattr(
        loop, "run_script", lambda path, *words: run_script(path, *words, *short[path.name])
    )
    settings = {"start": start, "pairs": pairs, "steps": 1, "seed": 7}
    loop.main(loop.Config(rounds=0, out=str(tmp_path / "loop"), **settings))
    summary = json.loads((tmp_path / "loop/rm-0/summary.json").read_text())
    assert summary["steps"] == 6 * -(-summary["pairs/train"] // 32)  # six epochs in batches of 32
    record = json.loads((tmp_path / "loop/rm-0/run.json").read_text())["config"]
    assert (record["lr"], record["seed"], record["model"]) == (1e-3, 7, start)
    assert (record["data"], record["eval_data"]) == ([pairs], ["zoo:held-out"])
    policy = json.loads((tmp_path / "loop/policy-0/run.json").read_text())["config"]
    assert policy["reward_model"] == str(tmp_path / "loop/rm-0")
    file = tmp_path / "loop/loop.json"
    older = {name: value for name, value in json.loads(file.read_text()).items() if name != "old"}
    file.write_text(json.dumps(older))  # written before there was such a setting: its default
    loop.main(loop.Config(rounds=0, out=str(tmp_path / "loop"), **settings))
    file.write_text(json.dumps(older))
    with pytest.raises(InputError, match="with --old 2000, not 2001"):
        loop.main(loop.Config(rounds=0, old=2001, out=str(file.parent), **settings))


def test_the_small_random_model_is_trained_and_never_replaces_a_folder(tmp_path):
    pairs, out = helpsteer_rows(tmp_path / "pairs.jsonl"), tmp_path / "small"

    def small(*flags, code=0, folder=out, data=pairs):
        words = ["--data", str(data), "--out", str(folder), "--vocabulary", "300", *flags]
        command = [sys.executable, "recipes/small_model.py", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "--hidden must be a multiple of 8, got 30" in small("--hidden", "30", code=2)
    assert "typo" in small(code=2, data=tmp_path / "typo.jsonl")
    assert "must be a new or empty folder" in small(code=2, folder=pairs)
    assert not out.exists()
    pairs.write_text(pairs.read_text() + pairs.read_text().splitlines()[0] + "\n{}\n")
    assert "drop them with --skip-bad-rows" in small("--hidden", "32", code=2)
    counted = small("--hidden", "32", "--skip-bad-rows")
    assert "1 pairs dropped: duplicate" in counted and "1 pairs dropped: bad rows" in counted
    train = ["train_rm.py", "--model", out, "--data", pairs, "--max-steps", "1"]
    train += ["--rating-range", "0", "4", "--skip-bad-rows", "--out"]
    train = [sys.executable, *map(str, train), str(tmp_path / "rm")]
    subprocess.run(train, cwd=ROOT, check=True, capture_output=True)
    before = (out / "model.safetensors").read_bytes()
    assert "must be a new or empty folder" in small("--seed", "1", code=2)
    assert (out / "model.safetensors").read_bytes() == before


def test_the_loops_table_of_a_folder_without_a_loop_is_one_line_and_exit_code_2(tmp_path):
    words = [sys.executable, "recipes/loop_table.py", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"error: {tmp_path} holds no finished policy-0: run recipes/loop.py first\n"
    )
