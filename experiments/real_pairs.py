"""Study: accuracy on human preferences of train_rm.py and of TRL's RewardTrainer, same pairs.

    python -m experiments.real_pairs --peer-python .venv-peers/bin/python [--shared ../shared]

The pairs of hh_helpful with at most 250 tokens in prompt and answer, so that neither side drops or
cuts any.  TRL runs in its own environment (../shared/peers/README.md), by trl_reward_data.py.

A prompt of hh_helpful is a text: "Human: … Assistant: … Human: … Assistant:".  train_rm.py makes
one user message of it and puts it in the model's chat template; TRL takes text as it is and uses
the template only for messages.  So two more sides: TRL with the messages that train_rm.py makes,
and train_rm.py with one message per turn of the dialogue.  And one more: this model's tokenizer has
the end token as padding, so TRL reads the reward at the token before it.  The side `trl_end` gives
TRL a tokenizer with a separate padding token; then it reads the reward at the end token.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import train_rm
from experiments import lab, zoo_runs
from experiments.claims import HEADER, claim_row, paired, values
from rlhf_min.models import loading
from rlhf_min.models.reward_model import separate_pad
from rlhf_min.models.tokens import encode_answer, encode_prompt

SIDES = {  # side → name, form of the prompts
    "ours": ("train_rm.py", "one message"),
    "matched": ("train_rm.py, TRL's other settings", "one message"),
    "trl_message": ("TRL 1.16, RewardTrainer", "one message"),
    "trl": ("TRL 1.16, RewardTrainer", "text without a template"),
    "trl_end": ("TRL 1.16, reward read at the end token", "text without a template"),
    "ours_turns": ("train_rm.py", "a message per turn"),
}
FORMS = {"trl_message": "message", "ours_turns": "turns"}  # of the files, where not texts
COMPARED = {  # claim → (better side, other side)
    "TRL on text is more accurate than train_rm.py": ("trl", "ours"),
    "TRL on the same messages is more accurate than train_rm.py": ("trl_message", "ours"),
    "… than train_rm.py with TRL's other settings": ("trl_message", "matched"),
    "TRL on text, read at the end token, is more accurate than train_rm.py": ("trl_end", "ours"),
    "TRL: text is better than one message": ("trl", "trl_message"),
    "TRL: reading before the end token is better than at it": ("trl", "trl_end"),
    "train_rm.py: TRL's other settings are better": ("matched", "ours"),
    "train_rm.py: a message per turn is better than one": ("ours_turns", "ours"),
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


def messages(row: dict, per_turn: bool) -> dict:
    """A pair as chat messages: the prompt one user message, or one per turn of its dialogue."""
    prompt = [{"role": "user", "content": row["prompt"]}]
    if per_turn:
        # "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:": the last turn is the answer's
        _, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", row["prompt"])
        roles = [{"Human": "user", "Assistant": "assistant"}[name] for name in parts[::2]]
        turns = zip(roles, parts[1::2], strict=True)
        prompt = [{"role": role, "content": text.strip()} for role, text in turns][:-1]
    answers = {a: [{"role": "assistant", "content": row[a]}] for a in ("chosen", "rejected")}
    return {"prompt": prompt, **answers}


def in_form(data: Path, form: str) -> Path:
    """The folder of the same pairs as chat messages; `data` holds texts.

    form: "message" or "turns" (see `messages`), or "": `data` itself.
    """
    if not form:
        return data

    def build(folder: Path) -> None:
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            lines = (data / f"{split}.jsonl").read_text("utf-8").splitlines()
            rows = [messages(json.loads(line), form == "turns") for line in lines]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    return zoo_runs.built("real-pairs", {"of": data.name, "form": form}, build)


def with_own_pad(model: Path) -> Path:
    """The folder of the same model, with a tokenizer whose padding is not the end token."""

    def build(folder: Path) -> None:
        tokenizer = loading.load_tokenizer(model)
        copy = loading.load_causal_lm(str(model), torch.float32)
        separate_pad(copy, tokenizer)
        copy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return zoo_runs.built("real-pairs-model", {"of": model.name, "pad": "own"}, build)


def run(settings: dict) -> dict:
    """Held-out accuracy of one side, and its numbers of training and held-out pairs."""
    data = fitting_pairs(settings["pairs"], shared())
    data = in_form(data, FORMS.get(settings["side"], ""))
    model = shared() / "models/tinystories-chat-3m"
    files = [str(data / f"{split}.jsonl") for split in ("train", "test")]
    if not settings["side"].startswith("trl"):
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
        model = with_own_pad(model) if settings["side"] == "trl_end" else model
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
        rate = f"{lr:.0e}".replace("e-0", "e-")
        by_side = {side: found.get((lr, side), {}) for side in SIDES}
        for side, results in by_side.items():
            pairs = sorted({f"{one['train']}, {one['test']}" for one in results.values()})
            shown = lab.shown(values(results, "accuracy"), 3)
            cells = [shown, "; ".join(pairs) or "–", str(len(results))]
            lines.append([rate, *SIDES[side], *cells])
        for claim, (better, other) in COMPARED.items():
            difference = paired(by_side[better], by_side[other], "accuracy")
            verdicts.append([rate, *claim_row(claim, difference, "difference")])
    header = ["learning rate", "training", "prompt as", "held-out accuracy"]
    header += ["pairs: training, held-out", "seeds"]
    return "\n\n".join(
        [
            lab.table(header, lines),
            "The interval is over seeds, which change the order of the pairs and, except for "
            "train_rm.py with its own settings, the head's first weights; "
            "the held-out pairs are the same, so it does not say how well the accuracy is "
            "known for other pairs. TRL counts each of the last two pairs twice (its batches have "
            "four), which changes its accuracy by at most 0.01.",
            lab.table(["learning rate", *HEADER], verdicts),
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
