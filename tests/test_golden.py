"""The numbers of short runs of all three scripts, as an earlier commit wrote them.

A change of form must not change a number.  golden.json was first written by commit 9fde692, before
the code was put into folders, and again where a mistake was corrected (docs/LOG.md says when):

    python tests/test_golden.py > tests/golden.json        # rewrite it only if a number must change

Tokens are sampled, so a processor with other rounding could one day sample another token; the
numbers are compared to a relative 10⁻³, far below what any mistake in the mathematics changes.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import tiny_folder, tiny_pairs, write_rows

import judge
import train_policy
import train_rm
from rlhf_min.command_line import parse

GOLDEN = Path(__file__).with_name("golden.json")
RM = "--model base --data pairs --eval-data held --max-steps 3 --batch-size 6 --micro-batch 4 "
RM += "--lr 1e-3"
POLICY = (
    "--model base --data prompts --eval-data held --steps 3 --batch-size 8 --samples 2 --lr 1e-3 "
    "--max-new-tokens 10 --warm-up 2 --micro-batch 3 --kl 0.2"
)
RUNS = {
    "rm": (train_rm, f"{RM} --margin 0.1"),
    "rm10": (train_rm, f"{RM} --head ratings --soft-labels 0.5 --earth-mover 0.1 --roughness 0.1"),
    "average": (train_policy, f"{POLICY} --reward-model rm"),
    "siblings": (train_policy, f"{POLICY} --reward-model rm --baseline leave-one-out"),
    "ppo": (
        train_policy,
        f"{POLICY} --reward-model rm --objective ppo-clip --updates 2 --baseline ema",
    ),
    "entropic": (
        train_policy,
        f"{POLICY} --reward-model rm10 --reading entropic --temperature 0.8",
    ),
    "win": (train_policy, f"{POLICY} --reward-model rm10 --reading win --weight inverse-sigma"),
    "judged": (
        judge,
        "--a base --b average --judge reward-model:rm --data prompts --max-new-tokens 10",
    ),
}


def numbers_of_all_runs(folder: Path) -> dict:
    """Run everything in `folder`: metrics and summary of each run, without its times."""
    os.chdir(folder)
    tiny_folder(folder / "base", "smol")
    pairs = tiny_pairs(12)
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "held.jsonl", [row | {"prompt": row["prompt"] + "?"} for row in pairs[:5]])
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in pairs])
    numbers = {}
    for name, (script, line) in RUNS.items():
        for data in ("pairs", "held", "prompts"):
            line = line.replace(f"data {data}", f"data {data}.jsonl")
        script.main(parse(script.Config, [*line.split(), "--out", name]))
        metrics = Path(name) / "metrics.jsonl"
        rows = [json.loads(row) for row in metrics.read_text().splitlines()]
        summary = json.loads((Path(name) / "summary.json").read_text())
        for values in (*rows, summary):
            for key in [k for k in values if k.startswith("time/") or k == "seconds"]:
                del values[key]
        numbers[name] = {"metrics": rows, "summary": summary}
    return numbers


def assert_equal(ours, golden, where: str) -> None:
    """All keys (newer metrics may be added), equal lengths, numbers that differ by rounding."""
    if isinstance(golden, dict):
        assert ours.keys() >= golden.keys(), where
        for key in golden:
            assert_equal(ours[key], golden[key], f"{where} {key}")
    elif isinstance(golden, list):
        assert len(ours) == len(golden), where
        for i, (one, other) in enumerate(zip(ours, golden, strict=True)):
            assert_equal(one, other, f"{where} {i}")
    elif isinstance(golden, float):
        assert ours == pytest.approx(golden, rel=1e-3, abs=1e-5), where
    else:
        assert ours == golden, where


def test_short_runs_of_every_script_give_the_numbers_they_always_gave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_equal(numbers_of_all_runs(tmp_path), json.loads(GOLDEN.read_text()), "golden.json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    stdout, sys.stdout = sys.stdout, sys.stderr  # the scripts' own lines
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(numbers_of_all_runs(Path(scratch)), indent=1), file=stdout)
