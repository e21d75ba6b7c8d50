"""What an entry of the leaderboard used: its preference labels, and signs of cheating.

A label is a preference pair: a prompt, the better and the worse answer.  Labels are read again from
the data that every reward model of the entry names in its run.json, and from the comparisons.jsonl
of every run of judge.py; equal ones count once.  Comparisons on held-out prompts are evaluation,
not labels, unless a reward model was trained on them, which is refused.
"""

from dataclasses import dataclass
from pathlib import Path

from rlhf_min.data.files import read_json, read_jsonl
from rlhf_min.data.preferences import prompt_key, read_pairs, read_prompts
from rlhf_min.reporting.folder_files import RESULTS
from rlhf_min.zoo import world

HELD_OUT = {prompt.strip() for prompt in world.prompts("held-out")}


@dataclass(frozen=True)
class Audit:
    """labels: distinct pairs; judged: those that judge.py made; problems: reasons to refuse."""

    labels: int
    judged: int
    problems: list[str]


def audit(out: Path) -> Audit:
    """The labels and problems of an entry whose runs are all in the folder `out`."""
    labels, judged, problems = set(), set(), []
    for run in sorted(path.parent for path in out.rglob("run.json")):
        record, name = read_json(run / "run.json"), run.relative_to(out)
        config = record["config"]
        if record["script"] == "judge.py":
            pairs = map(_key, read_jsonl(run / "comparisons.jsonl"))
            judged |= {pair for pair in pairs if pair[0] not in HELD_OUT}
        elif record["script"] == "train_rm.py":
            own = trained_pairs(config)
            labels |= own
            problems += held_out_problem(name, {prompt for prompt, *_ in own})
        else:
            prompts, _ = read_prompts(config["data"], config["skip_bad_rows"])
            problems += held_out_problem(name, set(map(prompt_key, prompts)))
            if config["reward_function"]:
                problems.append(f"{name}: --reward-function gives rewards without labels")
    if not (out / "policy/run.json").exists():
        problems.append("policy: no run.json, so its prompts and labels are unknown")
    problems += foreign_files(out)
    return Audit(len(labels | judged), len(judged), problems)


def trained_pairs(config: dict) -> set[tuple[str, str, str]]:
    """The pairs (prompt, chosen, rejected) that a run of train_rm.py read, drawn as it drew them.

    config: of its run.json.
    """
    draw = {name: config[name] for name in ("skip_bad_rows", "limit", "seed")}
    pairs, _ = read_pairs(config["data"], tuple(config["rating_range"]), **draw)
    return {(prompt_key(pair), pair.chosen, pair.rejected) for pair in pairs}


def _key(row: dict) -> tuple[str, str, str]:
    """A row of comparisons.jsonl as `trained_pairs` names it; its prompt is one text in the zoo."""
    return row["prompt"].strip(), row["chosen"], row["rejected"]


def held_out_problem(name: Path, prompts: set[str]) -> list[str]:
    """A problem if training prompts are held out: [] or one sentence."""
    wrong = sorted(prompts & HELD_OUT)
    return (
        [f"{name}: trained on {len(wrong)} held-out prompts, first {wrong[0]!r}"] if wrong else []
    )


def foreign_files(out: Path) -> list[str]:
    """Problems of data files that none of the scripts writes: held-out prompts in their text."""
    problems = []
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        ours = path.name in RESULTS and (path.parent / "run.json").exists()
        if path.suffix not in (".jsonl", ".json", ".csv", ".txt") or ours or not path.is_file():
            continue
        if "tokenizer" in path.name or path.name == "run.json":
            continue
        text = path.read_text("utf-8", "replace")
        if wrong := [prompt for prompt in sorted(HELD_OUT) if prompt in text]:
            problems.append(f"{name}: holds {len(wrong)} held-out prompts, first {wrong[0]!r}")
    return problems
