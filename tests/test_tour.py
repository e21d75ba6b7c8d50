"""docs/tour.md: its commands run, its numeric example is right, its links and names exist."""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from rlhf_min.defaults import run_script
from rlhf_min.maths.baselines import LeaveOneOut, MovingAverage
from rlhf_min.maths.policy_losses import ppo_clip, reinforce
from rlhf_min.maths.reward_shaping import k1, penalise_missing_end, with_kl
from rlhf_min.zoo import start_model

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs/tour.md").read_text()
COMMANDS = re.findall(r"^```\n(.*?)^```$", TOUR, flags=re.M | re.S)
SHORT = {  # later flags win
    "train_rm.py": "--max-steps 2 --epochs 1 --limit 200 --eval-limit 20 --overwrite",
    "train_policy.py": "--steps 2 --eval-prompts 4 --ruler-prompts 4 --batch-size 8 "
    "--max-new-tokens 8 --eval-every 1 --overwrite",
    "judge.py": "--limit 6 --max-new-tokens 8",
}


def test_the_step_by_hand():
    """Every number of the table and the text below it."""
    rows = re.findall(r"^\| (\d[ab]) \| (.*) \|$", TOUR, flags=re.M)
    table = [[cell.strip().replace("−", "-") for cell in row.split("|")] for _, row in rows]
    assert len(table) == 4
    column = lambda i: torch.tensor([float(row[i]) for row in table]).view(2, 2).double()  # noqa: E731
    ended = torch.tensor([row[1] == "yes" for row in table]).view(2, 2)
    log_probs, ref = column(2).requires_grad_(), column(3)
    rewards = with_kl(penalise_missing_end(column(0), ended, 1.0), log_probs, ref, 0.2)
    torch.testing.assert_close(k1(log_probs.detach(), ref), column(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(rewards, column(5), atol=1e-6, rtol=0)
    average = MovingAverage(total=0.4, count=4)
    torch.testing.assert_close(average.advantages(rewards), column(6), atol=1e-6, rtol=0)
    advantages = LeaveOneOut().advantages(rewards)
    torch.testing.assert_close(advantages, column(7), atol=1e-6, rtol=0)
    loss = reinforce(log_probs, advantages, 4)
    loss.backward()
    assert loss.item() == pytest.approx(-0.40) and "= -0.40$" in TOUR
    gradient = ", ".join(f"{g:.2f}" for g in log_probs.grad.flatten().tolist())
    assert f"${gradient}$" in TOUR
    assert f"= {average.updated(rewards).value:.3f}$" in TOUR
    later = log_probs.detach().clone()
    later[0, 0] = -2.7
    later.requires_grad_()
    ppo_clip(later, log_probs.detach(), advantages, 4, clip=0.2).backward()
    assert later.grad[0, 0] == 0 and "1.2 \\cdot 1.36 = 1.63" in TOUR


def test_every_link_and_every_name_exists():
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", TOUR):
        assert (ROOT / "docs" / link).exists(), link
    stops = re.findall(r"`([a-z_0-9]+)`[^.]*? in\s+\[\w+\.py\]\((\S+\.py)\)", TOUR)
    assert len(stops) >= 6
    for name, link in stops:
        tree = ast.parse((ROOT / "docs" / link).read_text())
        assert name in {getattr(node, "name", None) for node in tree.body}, (name, link)


def test_there_are_eight_stops_with_a_command_something_to_see_and_to_break():
    stops = re.split(r"^## \d\. ", TOUR, flags=re.M)[1:]
    assert len(stops) == 8
    for stop in stops:
        assert "\n```\npython " in stop and "**See**" in stop and "**Break**" in stop


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path, monkeypatch):
    """In their shortest form, on a start model that was hardly trained."""
    monkeypatch.chdir(tmp_path)
    start_model.build_base(tmp_path / "runs/zoo-base", steps=2, examples=200)
    lines = [line for block in COMMANDS for line in block.splitlines()]
    assert len(lines) == 13
    for line in lines:
        words = shlex.split(line)
        if "pytest" in words:
            assert (ROOT / words[-1]).exists()  # this very test run runs it
            continue
        script, flags = words[1], words[2:]
        run_script(ROOT / script, *flags, *SHORT[script].split())
        if line.endswith("runs/tour-rm"):
            shutil.copytree("runs/tour-rm", "runs/rm")  # what `make demo` leaves
        if line.endswith("runs/tour-short"):
            shutil.copytree("runs/tour-short", "runs/policy")
        if (
            script == "judge.py" and "--agreement" not in words
        ):  # perhaps all ties, and nothing left to train on
            pairs = Path(words[words.index("--out") + 1], "comparisons.jsonl")
            row = {"prompt": "a?", "chosen": "yes", "rejected": "no"}
            pairs.write_text(pairs.read_text() or json.dumps(row) + "\n")
