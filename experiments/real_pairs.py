"""Study: accuracy on human preferences of train_rm.py and of TRL's RewardTrainer, same pairs.

    python -m experiments.real_pairs --peer-python .venv-peers/bin/python [--shared ../shared]

The pairs of hh_helpful with at most 250 tokens in prompt and answer, so that neither side drops or
cuts any.  TRL runs in its own environment (../shared/peers/README.md), by trl_reward_data.py.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import train_rm
from experiments import lab, zoo_runs
from experiments.claims import HEADER, claim_row, paired, values
from rlhf_min.models import loading
from rlhf_min.models.tokens import encode_answer, encode_prompt

SIDES = {
    "ours": "train_rm.py",
    "matched": "train_rm.py, TRL's other settings",
    "trl": "TRL 1.16, RewardTrainer",
}
# What TRL's defaults are and ours are not: Adam's second beta, the head's first weights, and no
# weight decay, no centring penalty, no warm-up.
TRL_SETTINGS = {"adam_beta2": 0.999, "head_std": 0.02}
TRL_SETTINGS |= {"weight_decay": 0.0, "centring": 0.0, "warm_up": 0.0}
LEARNING_RATES = (1e-4, 1e-5)  # the default of TRL's RewardTrainer; of the recipes here
MAX_TOKENS, LONGEST_PROMPT = 250, 700  # TRL's script keeps 700 characters of a prompt


def settings(quick: bool) -> list[dict]:
    """One run per seed and side; quick: this project's side only, 32 pairs."""
    pairs = 32 if quick else 0  # 0: all
    common = {"batch_size": 4, "epochs": 1, "pairs": pairs}
    sides, rates = (["ours"], [1e-4]) if quick else (SIDES, LEARNING_RATES)
    return [
        {"seed": seed, "side": side, "lr": lr, **common}
        for lr in rates
        for seed in range(1 if quick else 5)
        for side in sides
    ]


def shared() -> Path:
    """The folder with data, models and peers."""
    return Path(os.environ.get("RLHF_MIN_SHARED", "../shared"))


def fitting_pairs(pairs: int, real: Path) -> Path:
    """The folder of train.jsonl and test.jsonl: the pairs that fit (`pairs` at most, 0: all).

    real: the folder with `data` and `models`.
    """

    def build(folder: Path) -> None:
        tokenizer = loading.load_tokenizer(real / "models/tinystories-chat-3m")
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            with gzip.open(real / f"data/hh_helpful/{split}.jsonl.gz", "rt", "utf-8") as file:
                rows = [json.loads(line) for line in file]
            rows = [row for row in rows if fits(tokenizer, row)]
            text = "".join(json.dumps(row) + "\n" for row in rows[: pairs or None])
            (folder / f"{split}.jsonl").write_text(text, "utf-8")

    names = {"tokens": MAX_TOKENS, "characters": LONGEST_PROMPT, "pairs": pairs}
    return zoo_runs.built("real-pairs", names, build)


def fits(tokenizer, row: dict) -> bool:
    """Whether a pair's prompt with its longer answer has MAX_TOKENS at most."""
    answers = [encode_answer(tokenizer, row["prompt"], row[a]) for a in ("chosen", "rejected")]
    length = len(encode_prompt(tokenizer, row["prompt"])) + max(map(len, answers))
    return length <= MAX_TOKENS and len(row["prompt"]) <= LONGEST_PROMPT


def run(settings: dict) -> dict:
    """Held-out accuracy of one side, and its numbers of training and held-out pairs."""
    data = fitting_pairs(settings["pairs"], shared())
    model = shared() / "models/tinystories-chat-3m"
    files = [str(data / f"{split}.jsonl") for split in ("train", "test")]
    if settings["side"] != "trl":
        other = TRL_SETTINGS if settings["side"] == "matched" else {}
        with tempfile.TemporaryDirectory(dir=zoo_runs.lab()) as out:
            summary = train_rm.main(
                train_rm.Config(
                    model=str(model), data=files[:1], eval_data=files[1:], max_length=256, out=out,
                    micro_batch=2, save_every=10**6, overwrite=True, **other,
                    **{name: settings[name] for name in ("seed", "lr", "batch_size", "epochs")},
                )
            )  # fmt: skip
        found = summary["accuracy"], summary["pairs/train"], summary["pairs/held_out"]
    else:
        if not (python := os.environ.get("RLHF_MIN_PEER_PYTHON")):
            raise SystemExit("TRL's runs need --peer-python, the Python of its environment")
        command = [python, shared() / "peers/trl_reward_data.py", model, *files, "--seed"]
        command += [settings["seed"], "--epochs", settings["epochs"], "--lr", settings["lr"]]
        command += ["--pairs", settings["batch_size"]]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
        accuracy = theirs["evaluations"][-1]["eval_accuracy"]
        found = accuracy, theirs["train_pairs"], theirs["test_pairs"]
    return dict(zip(("accuracy", "train", "test"), found, strict=True))


def report(rows: list[dict], out: Path) -> str:
    """The Markdown section from the rows at hand: a line per learning rate and side, and claims."""
    found: dict[tuple[float, str], dict[int, dict]] = {}
    for row in rows:
        own = row["settings"]
        found.setdefault((own["lr"], own["side"]), {})[own["seed"]] = row["result"]
    lines, verdicts = [], []
    for lr in LEARNING_RATES:
        by_side = {side: found.get((lr, side), {}) for side in SIDES}
        for side, results in by_side.items():
            pairs = sorted({f"{one['train']}, {one['test']}" for one in results.values()})
            shown = lab.shown(values(results, "accuracy"), 3)
            cells = [shown, "; ".join(pairs) or "–", str(len(results))]
            lines.append([f"{lr:g}", SIDES[side], *cells])
        for side, name in (("ours", "our settings"), ("matched", "TRL's settings")):
            difference = paired(by_side["trl"], by_side[side], "accuracy")
            claim = f"learning rate {lr:g}, {name}: TRL is more accurate"
            verdicts.append(claim_row(claim, difference, "TRL minus ours"))
    header = ["learning rate", "hh_helpful", "held-out accuracy", "pairs: training, held-out"]
    return "\n\n".join(
        [
            lab.table([*header, "seeds"], lines),
            "The interval is over seeds, which change the order of the pairs and the head's first "
            "weights; the held-out pairs are the same, so it does not say how well the accuracy is "
            "known for other pairs.",
            lab.table(HEADER, verdicts),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--shared", default="../shared")
    own, sys.argv[1:] = parser.parse_known_args()
    # For the worker processes, which inherit the environment.
    os.environ |= {"RLHF_MIN_PEER_PYTHON": own.peer_python, "RLHF_MIN_SHARED": own.shared}
    lab.main("real_pairs", settings, run, report)
