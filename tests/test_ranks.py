"""Several processes that train as one: the same numbers, and one end for all."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_folder, tiny_pairs, write_rows

from rlhf_min import InputError
from rlhf_min.hardware import ranks
from rlhf_min.reporting.run_folder import RunLog, check_training
from train_rm import Config

ROOT = Path(__file__).parents[1]
FOLDERS = {"rm": ["scalar", "ratings", "lora"]}
FOLDERS["policy"] = ["average", "siblings", "ema", "lora", "none", "ppo", "win"]


def rank_runs(folder: Path, kind: str) -> None:
    command = [sys.executable, ROOT / "tests" / "rank_runs.py", folder, kind]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def numbers(value, key="") -> list[tuple[str, float]]:
    """All numbers in a JSON value with their keys; times and the clock aside."""
    if isinstance(value, dict):
        return [n for k, v in value.items() for n in numbers(v, f"{key}/{k}")]
    if isinstance(value, list):
        return [n for i, v in enumerate(value) for n in numbers(v, f"{key}/{i}")]
    timed = "/time/" in key or key.endswith("/seconds")
    return [(key, value)] if isinstance(value, (int, float)) and not timed else []


def gap(folder: Path, other: Path) -> float:
    """The largest difference of two runs: of a weight, a metric, or a number of the summary.

    The samples must be equal as text.
    """
    largest = 0.0
    for name in ("metrics.jsonl", "summary.json", "samples.jsonl", "held_out_scores.jsonl"):
        assert (folder / name).exists() == (other / name).exists()
        if not (folder / name).exists():
            continue
        ours, theirs = ((run / name).read_text() for run in (folder, other))
        if name.endswith(".json"):
            ours, theirs = [json.loads(ours)], [json.loads(theirs)]
        else:
            ours, theirs = ([json.loads(x) for x in text.splitlines()] for text in (ours, theirs))
        if name == "samples.jsonl":
            assert [row["after"] for row in ours] == [row["after"] for row in theirs]
        a, b = numbers(ours), numbers(theirs)
        assert [k for k, _ in a] == [k for k, _ in b] and len(a) > 5
        largest = max(largest, *(abs(x - y) for (_, x), (_, y) in zip(a, b, strict=True)))
    ours, theirs = (load_file(run / "model.safetensors") for run in (folder, other))
    assert ours.keys() == theirs.keys()
    differences = [(ours[name] - theirs[name]).abs().max().item() for name in ours]
    return max(largest, *differences)


@pytest.mark.parametrize("kind", ["rm", "policy"])
def test_trap_23_several_processes_compute_what_one_computes(tmp_path, kind):
    """Both heads, every baseline; uneven shares; a batch smaller than the group; resumed runs."""
    rank_runs(tmp_path, kind)
    compared = itertools.product(FOLDERS[kind], (2, 4))
    for name, size in compared:
        assert gap(tmp_path / f"{name}-1", tmp_path / f"{name}-{size}") < 1e-9, (name, size)
    for size in (1, 4):  # begun by two processes, stopped by a signal to one of them
        first = tmp_path / f"{FOLDERS[kind][0]}-1"
        assert gap(first, tmp_path / f"resumed-by-{size}") < 1e-9


def test_trap_23_a_wrong_reduction_changes_the_weights(tmp_path):
    rank_runs(tmp_path, "wrong")
    for name in ("averaged", "dropped"):
        assert gap(tmp_path / "right", tmp_path / name) > 1e-6
    # DistributedDataParallel gives both processes one gradient only if its own forward is called.
    through_wrapper, past_wrapper = map(float, (tmp_path / "wrapped-1.txt").read_text().split())
    assert through_wrapper == 0 < past_wrapper


def write_inputs(folder: Path) -> None:
    tiny_folder(folder / "base", "smol")
    pairs = tiny_pairs(14)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "held.jsonl", [row | {"prompt": row["prompt"] + "?"} for row in pairs[:3]])


def torchrun(folder: Path, *words: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, *map(str, words)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


RM = "--model base --data pairs.jsonl --eval-data held.jsonl --out run"
POLICY = "--model base --data pairs.jsonl --eval-data held.jsonl --max-new-tokens 5 --batch-size 8"


def test_an_error_of_one_process_ends_all_and_is_said_once(tmp_path):
    """The reward function is called by the first process only; a wrong flag is read by all."""
    write_inputs(tmp_path)
    (tmp_path / "own.py").write_text("def bad(prompts, answers):\n    raise KeyError('no key')\n")
    flags = f"{POLICY} --reward-function own.py:bad --out run".split()
    process = torchrun(tmp_path, ROOT / "train_policy.py", *flags)
    output, _ = process.communicate(timeout=200)
    assert process.returncode
    assert output.count("error: --reward-function own.py:bad, line 2 failed") == 1, output
    assert "exitcode  : 2" in output and "Traceback (most recent call last):\n  File" in output
    ours = output[: output.index("error:")] + output.split("error:")[1].split("\n")[0]
    assert "Traceback" not in ours
    process = torchrun(tmp_path, ROOT / "train_rm.py", "--batch-sise", "4")
    output, _ = process.communicate(timeout=200)
    assert process.returncode and output.count("unknown flag --batch-sise") == 1


def test_sigterm_saves_once_and_ends_all(tmp_path):
    write_inputs(tmp_path)
    flags = f"{RM} --epochs 9000".split()
    process = torchrun(tmp_path, ROOT / "train_rm.py", *flags)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode
    assert output.count("interrupted: the same command with --resume goes on") == 1, output
    assert output.count("stopping after this step") == 1
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == metrics.read_text().count("\n")
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_process_that_hangs_ends_the_run_after_the_stated_time(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "hang.py").write_text(
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train_rm\n"
        "from rlhf_min.command_line import run\n"
        "if os.environ['RANK'] == '1':\n"
        "    train_rm.loss_of = lambda *values: time.sleep(1000)\n"
        "run(train_rm.main, train_rm.Config)\n"
    )
    flags = RM.split()
    process = torchrun(tmp_path, "hang.py", *flags, RLHF_MIN_TIMEOUT="3")
    output, _ = process.communicate(timeout=100)
    assert process.returncode
    assert output.count("a process of this run did not answer for 3 seconds") == 1, output


def test_more_processes_than_prompts_of_a_step_are_refused(monkeypatch):
    monkeypatch.setattr(ranks._Group, "size", 3)
    check_training(Config(batch_size=3, out="runs/x-none"))
    wrong = "a step of 2 prompts .* cannot be shared by 3 processes: take at least 3"
    with pytest.raises(InputError, match=wrong):
        check_training(Config(batch_size=2, out="runs/x-none"))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_item_belongs_to_exactly_one_process(monkeypatch, size):
    monkeypatch.setattr(ranks._Group, "size", size)
    owned = []
    for rank in range(size):
        monkeypatch.setattr(ranks._Group, "rank", rank)
        owned += ranks.own(12)
    assert sorted(owned) == list(range(12))


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as rank 1 of two, with a store that the test writes to as rank 0 would."""
    store = torch.distributed.HashStore()
    for name, value in {"rank": 1, "size": 2, "store": store}.items():
        monkeypatch.setattr(ranks._Group, name, value)
    monkeypatch.setattr(ranks._Group, "calls", itertools.count())
    return store


def test_the_result_of_the_first_process_reaches_the_others_as_it_is(second_of_two):
    second_of_two.set("result-0", json.dumps(["x", 1.5, None]))
    assert ranks.from_first(pytest.fail, "is called by rank 0 only") == ["x", 1.5, None]


def test_the_first_process_may_be_several_results_ahead_and_none_is_kept_after_all_read_it(
    second_of_two, monkeypatch
):
    """With a slow rank 1, rank 0 has already gone on; it must not delete what was not read yet."""
    with monkeypatch.context() as first:
        first.setattr(ranks._Group, "rank", 0)
        assert [ranks.from_first(pow, 2, n) for n in range(5)] == [1, 2, 4, 8, 16]
    monkeypatch.setenv(ranks.TIMEOUT, "0.1")
    monkeypatch.setattr(ranks._Group, "calls", itertools.count())
    assert [ranks.from_first(pytest.fail) for _ in range(5)] == [1, 2, 4, 8, 16]
    assert not any(second_of_two.check([f"result-{n}"]) for n in range(5))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_second_signal_stops_at_once_only_without_other_processes(grouped, monkeypatch, tmp_path):
    """torchrun sends a second one by itself, also while rank 0 works alone (size 1)."""
    if grouped:
        monkeypatch.setattr(ranks._Group, "store", torch.distributed.HashStore())
    log = RunLog("train_rm.py", Config(out=str(tmp_path / "run")), {})
    with log.stop_between_steps():
        os.kill(os.getpid(), signal.SIGTERM)
        ended = False
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            ended = True
    assert log.stop_requested and ended != grouped


def test_waiting_for_the_first_process_ends_when_another_one_fails(second_of_two):
    second_of_two.set("errors", "1")
    with pytest.raises(SystemExit) as ended:
        ranks.from_first(pytest.fail, patient=True)
    assert ended.value.code == 2


def test_waiting_for_the_first_process_ends_after_the_stated_time(second_of_two, monkeypatch):
    monkeypatch.setenv(ranks.TIMEOUT, "0.1")
    with pytest.raises(InputError, match=r"rank 0 did not answer for 0\.1 seconds"):
        ranks.from_first(pytest.fail)


def test_a_time_limit_that_is_no_number_is_refused(second_of_two, monkeypatch):
    monkeypatch.setenv(ranks.TIMEOUT, "abc")
    with pytest.raises(InputError, match=f"environment variable {ranks.TIMEOUT} must be seconds"):
        ranks.from_first(pytest.fail)


def test_only_errors_of_the_network_are_explained_by_a_lost_process():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert "died without a word" in ranks._lost(lost)
    assert ranks._lost(InputError("igloo")) == ranks._lost(RuntimeError("shape")) == ""


def test_processes_that_resume_from_other_steps_are_refused(tmp_path, monkeypatch):
    """A folder that is not shared: rank 1 sees the checkpoint of step 4, rank 0 none."""
    config = SimpleNamespace(out=str(tmp_path / "run"), resume=True)
    monkeypatch.setattr(ranks._Group, "size", 2)
    monkeypatch.setattr(ranks, "all_sum", lambda *values: [4.0])
    with pytest.raises(InputError, match="processes see other checkpoints"):
        RunLog("train_rm.py", config, {}, {"step": 4})
    assert not (tmp_path / "run").exists()


def test_a_signal_during_the_sum_that_decides_about_stopping_is_kept(tmp_path, monkeypatch):
    """It comes too late for this step's decision, so the next step's must see it."""
    config = Config(out=str(tmp_path / "run"), save_every=100)
    log = RunLog("train_rm.py", config, {})

    def interrupted(*values):
        log.stop_requested = True  # as the handler does, after the values were read
        return [float(value) for value in values]

    with monkeypatch.context() as patch:
        patch.setattr(ranks, "all_sum", interrupted)
        assert not log.checkpoint_due(1)
    log.checkpoint(1, {})  # does not stop: the other processes do not know yet
    assert log.checkpoint_due(2)
    with pytest.raises(KeyboardInterrupt):
        log.checkpoint(2, {})
