"""The leaderboard measures a tiny entry, counts its labels, refuses cheats, and writes its page."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import judge  # noqa: E402
import train_policy  # noqa: E402
import train_rm  # noqa: E402
from experiments import entry_audit, leaderboard  # noqa: E402
from rlhf_min.models.answers import sample_texts  # noqa: E402
from rlhf_min.models.loading import load_causal_lm, load_tokenizer  # noqa: E402
from rlhf_min.zoo import world  # noqa: E402
from rlhf_min.zoo.start_model import build_base  # noqa: E402

TINY = {"batch_size": 8, "samples": 2, "steps": 1, "ruler_prompts": 4, "eval_prompts": 6}
NO_RUNS = """
import shutil, sys
shutil.copytree({source!r}, sys.argv[2], dirs_exist_ok=True)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Start model, reward models on 30 and 20 labels, judge runs, and a policy: an entry's runs."""
    out = tmp_path_factory.mktemp("entry") / "runs"
    build_base(out / "start", steps=30, examples=600)
    start = {"model": str(out / "start")}
    short = {"max_steps": 1, "eval_limit": 10}
    train_rm.main(train_rm.Config(**start, **short, limit=30, out=str(out / "rm")))
    both = {"a": start["model"], "b": start["model"], "judge": f"reward-model:{out / 'rm'}"}
    judge.main(judge.Config(**both, limit=24, out=str(out / "judge-1")))
    held_out = ["zoo:held-out"]
    judge.main(judge.Config(**both, limit=10, data=held_out, out=str(out / "evaluated")))
    mix = ["zoo", str(out / "judge-1/comparisons.jsonl")]
    more = {"data": mix, "limit": 20, "seed": 5, "out": str(out / "rm-1")}
    train_rm.main(train_rm.Config(**start, **short, **more))
    more = {"reward_model": str(out / "rm-1"), "out": str(out / "policy")}
    train_policy.main(train_policy.Config(**start, **more, **TINY))
    return out


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_labels_are_distinct_pairs_of_training_and_judging_but_not_of_evaluation(runs):
    """Counted again by hand: 30 and 20 draws of the annotated pairs, and the judge's winners."""
    zoo = [(r["prompt"], r["chosen"], r["rejected"]) for r in world.pairs("train", 10_000)]
    unique = list(dict.fromkeys(zoo))
    drawn = {*random.Random(0).sample(unique, 30), *random.Random(5).sample(unique, 20)}
    winners = rows_of(runs / "judge-1/comparisons.jsonl")
    own = {(r["prompt"], r["chosen"], r["rejected"]) for r in winners}
    found = entry_audit.audit(runs)
    assert (found.labels, found.judged) == (len(drawn | own), len(own))
    assert 45 < len(drawn) <= 50 and 10 < len(own) <= 24 and found.problems == []
    assert rows_of(runs / "evaluated/comparisons.jsonl")  # there are some, and none is counted


def changed(runs: Path, name: str, **settings) -> list[str]:
    """The problems found when the config of a run had these settings; the file is restored."""
    file = runs / name / "run.json"
    before = file.read_text()
    record = json.loads(before)
    file.write_text(json.dumps(record | {"config": record["config"] | settings}))
    try:
        return entry_audit.audit(runs).problems
    finally:
        file.write_text(before)


def test_training_on_held_out_prompts_is_refused(runs):
    evaluated = str(runs / "evaluated/comparisons.jsonl")
    (problem,) = changed(runs, "rm-1", data=["zoo", evaluated])
    assert problem.startswith("rm-1: trained on ") and "held-out prompts" in problem
    (problem,) = changed(runs, "policy", data=["zoo:held-out"])
    assert problem.startswith("policy: trained on 480 held-out prompts")
    (problem,) = changed(runs, "policy", reward_function="own.py:gold")
    assert "--reward-function" in problem


def test_other_data_files_and_a_policy_of_unknown_origin_are_refused(runs):
    file = runs / "more.jsonl"
    file.write_text(json.dumps({"prompt": world.prompts("train")[0], "answer": "x"}))
    assert entry_audit.audit(runs).problems == []
    file.write_text(json.dumps({"prompt": world.prompts("held-out")[7], "answer": "x"}))
    (problem,) = entry_audit.audit(runs).problems
    file.unlink()
    assert "more.jsonl: holds 1 held-out prompts" in problem
    (runs / "policy/run.json").rename(runs / "run.json.away")
    problems = entry_audit.audit(runs).problems
    (runs / "run.json.away").rename(runs / "policy/run.json")
    assert problems[0].startswith("policy: no run.json")


def test_no_training_question_holds_a_held_out_one():
    """So that a search for held-out prompts in a file's text finds no training question."""
    train = "\n".join(world.prompts("train"))
    assert not any(prompt in train for prompt in world.prompts("held-out"))


def test_gold_is_the_mean_of_several_answers_to_every_held_out_question(runs):
    folder = str(runs / "policy")
    policy, tokenizer = load_causal_lm(folder, torch.float32), load_tokenizer(folder)
    prompts, golds = world.prompts("held-out"), []
    for seed in (0, 1):
        answers, _ = sample_texts(policy, tokenizer, prompts, 64, seed=seed, batch_size=256)
        golds += [world.gold_rating(*pair) for pair in zip(prompts, answers, strict=True)]
    assert len(golds) == 960 and golds[:480] != golds[480:]
    assert leaderboard.held_out_gold(runs / "policy", draws=2) == pytest.approx(sum(golds) / 960)


PAGE = "text\n<!-- begin: python -m experiments.leaderboard -->\n<!-- end: leaderboard -->\nrest\n"


def test_an_entry_is_run_for_each_seed_and_its_row_printed(runs, tmp_path, capsys):
    """The command line, with an entry that copies finished runs; two seeds are not entered."""
    entry = tmp_path / "copy.py"
    entry.write_text(NO_RUNS.format(source=str(runs)))
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text(PAGE)
    out = ["--out", str(tmp_path / "out"), "--draws", "1"]
    leaderboard.main([str(entry), "--seeds", "4", "5", "--name", "a copy", *out], rows, page)
    shown = capsys.readouterr().out
    assert (tmp_path / "out/seed-4/policy").is_dir() and (tmp_path / "out/seed-5/policy").is_dir()
    assert "| a copy | [copy.py]" in shown and "not entered" in shown and not rows.exists()
    with pytest.raises(SystemExit, match="starts from nothing"):
        leaderboard.main([str(entry), "--seeds", "4", *out], rows, page)
    entry.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match="exit code 3"):
        leaderboard.main([str(entry), "--seeds", "6", *out], rows, page)
    entry.write_text("")
    with pytest.raises(SystemExit, match="left no policy"):
        leaderboard.main([str(entry), "--seeds", "7", *out], rows, page)


def test_a_cheating_entry_is_refused(runs, tmp_path):
    entry = tmp_path / "cheat.py"
    prompt = world.prompts("held-out")[0]
    cheat = f"open(sys.argv[2] + '/data.jsonl', 'w').write({prompt!r})\n"
    entry.write_text(NO_RUNS.format(source=str(runs)) + cheat)
    with pytest.raises(SystemExit, match=r"is refused: data\.jsonl: holds 1 held-out"):
        leaderboard.main([str(entry), "--seeds", "0", "--out", str(tmp_path / "out")])


def row(name: str, gold: float, labels: int, seconds: float) -> dict:
    numbers = {"gold": gold, "labels": labels, "seconds": seconds, "judged": 5}
    result = {key: [value - 0.1, value, value + 0.1] for key, value in numbers.items()}
    settings = {"entry": f"experiments/entries/{name}.py", "name": name, "seeds": [0, 1, 2]}
    return {"settings": settings, "result": result, "commit": "abc", "hardware": "2 cores"}


def test_tables_rank_those_that_reach_the_gold_and_the_newest_row_of_a_program_counts(tmp_path):
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    page.write_text(PAGE)
    entries = [row("quick", 8.6, 9000, 50), row("thrifty", 9.3, 3000, 400), row("poor", 7.0, 1, 1)]
    entries += [row("greedy", 9.4, 12600, 200), row("thrifty", 9.25, 2000, 300)]
    entries[-1]["settings"]["name"] = "thrifty, again"
    rows.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    leaderboard.main(["--tables"], rows, page)
    labels, seconds = page.read_text().split("### Seconds")
    order = [re.findall(r"^\| \d \| (.*?) \|", part, re.MULTILINE) for part in (labels, seconds)]
    assert order == [["thrifty, again", "greedy"], ["quick", "greedy", "thrifty, again"]]
    assert "below 9.2: quick (8.60); poor (7.00)." in labels
    assert "below 8.5: poor (7.00)." in seconds
    assert "| 9.25 (9.15, 9.25, 9.35) | 2 000 (5) | 300 |" in labels
    assert page.read_text().startswith("text\n") and page.read_text().endswith("rest\n")


def test_the_page_has_its_section_and_its_entries_exist():
    text = leaderboard.PAGE.read_text()
    assert "<!-- begin: python -m experiments.leaderboard -->" in text
    for entry in sorted((ROOT / "experiments/entries").glob("[a-z]*.py")):
        assert leaderboard.command_of(entry, 0, ROOT)[1] == str(entry)
        compile(entry.read_text(), entry.name, "exec")
