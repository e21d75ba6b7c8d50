"""The loop of judging and retraining: policy → judge → reward model → policy, several rounds.

    python recipes/loop.py --rounds 3 --comparisons 1900 --out runs/loop

Without --reward-model a first one is trained for six epochs.  A reward model of one epoch, as in
`make demo`, scores wrong facts as high as true ones; after three rounds of judging it still did so
in four of five seeds (experiments/blind_spots.py).

In each round the judge compares two answers to each of --comparisons training prompts: both from
the current policy, or one from the previous policy (--rival last).  The verdicts are added to all
earlier comparisons, and training of the policy and (without --cold) of the reward model continues
from the previous round.  KL is always measured to the start model.  Held-out prompts are for
evaluation only.

The judge is the zoo's gold rater, so the loop works only with questions of the zoo.
The same command again continues an interrupted loop, and more --rounds a finished one.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import dataclass
from typing import Literal

from rlhf_min.command_line import check_flags, check_ranges, flag_of, option, run


@dataclass(frozen=True)
class Config:
    """Settings of recipes/loop.py.  docs/LOG.md compares several of them."""

    rounds: int = option(3, "rounds of judging and retraining", at_least=0)
    comparisons: int = option(1900, "judged per round (0: keep the reward model)", at_least=0)
    out: str = option("runs/loop", "folder of all the runs")
    seed: int = option(0, "of round 0; round n has 100 * seed + n", at_least=0, at_most=10**6)
    start: str = option("runs/zoo-base", "start model, to which KL is measured")
    reward_model: str = option("", "of round 0: folder (nothing: train one for six epochs)")
    steps: int = option(60, "of each policy", at_least=1)
    kl: float = option(0.2, "weight of the KL penalty", at_least=0)
    lr: float = option(5e-4, "learning rate of each policy", above=0)
    pairs: str = option("zoo", "original pairs: a SPEC, as in --data of train_rm.py")
    old: int = option(2000, "original pairs in the mix (0: none)", at_least=0)
    cold: bool = option(False, "train each reward model from the start model")
    rival: Literal["self", "last"] = option(
        "self", "judge the policy against itself or the policy before"
    )


if __name__ == "__main__":
    check_flags(Config)  # --help and wrong flags are answered before the slow imports below

import json
from dataclasses import asdict
from pathlib import Path

from loop_table import show
from transformers import AutoConfig

from rlhf_min import InputError
from rlhf_min.data.files import read_json, replace_text
from rlhf_min.data.preferences import read_pairs
from rlhf_min.defaults import run_script
from rlhf_min.hardware import ranks

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 6  # over the pairs, for a reward model that is trained from the start model


@ranks.together
def main(config: Config) -> None:
    """Run all rounds, then print a table of them and draw it."""
    check_ranges(config)
    out, start, reward = Path(config.out), config.start, config.reward_model
    ranks.from_first(check_settings, config)
    settings = ["--kl", config.kl, "--lr", config.lr, "--steps", config.steps]
    train = ["--lr", 1e-3, "--eval-every", 1000, "--eval-data", "zoo:held-out"]
    gold = ["--judge", "gold", "--batch-size", 512]  # twice as fast as 64 at once
    policy, previous, judged = out / "policy-0", start, []
    if not reward:
        reward = out / "rm-0"
        stage("train_rm.py", reward, "--model", start, "--data", config.pairs, *train,
              "--epochs", EPOCHS, "--seed", config.seed)  # fmt: skip
    stage("train_policy.py", policy, "--model", start, "--reward-model", reward, *settings,
          "--seed", config.seed)  # fmt: skip
    labels = AutoConfig.from_pretrained(reward).num_labels  # 10 if it has a head over ratings
    head = ["--head", "ratings" if labels > 1 else "scalar"]
    for number in range(1, config.rounds + 1):
        seed = ["--seed", 100 * config.seed + number]
        if config.comparisons:
            rival = previous if config.rival == "last" else policy
            comparisons = ["--limit", config.comparisons, *gold]
            stage("judge.py", out / f"judge-{number}", "--a", rival, "--b", policy, *comparisons,
                  *seed)  # fmt: skip
            judged.append(out / f"judge-{number}/comparisons.jsonl")
            old = ["--limit", config.old, "--data", config.pairs] if config.old else ["--data"]
            model, epochs = (start, EPOCHS) if config.cold else (reward, 2)
            reward = out / f"rm-{number}"
            # A sampled answer may hold a NUL character, which train_rm.py counts as a bad row.
            stage("train_rm.py", reward, "--model", model, *head, *old, *judged, *train,
                  "--epochs", epochs, "--skip-bad-rows", *seed)  # fmt: skip
        previous, policy = policy, out / f"policy-{number}"
        stage("train_policy.py", policy, "--model", previous, "--reference", start,
              "--reward-model", reward, *settings, *seed)  # fmt: skip
        for name, rival in (("last", previous), ("start", start)):
            held_out = ["--data", "zoo:held-out", "--limit", 400, *gold]
            stage("judge.py", out / f"against-{name}-{number}", "--a", rival, "--b", policy,
                  *held_out, *seed)  # fmt: skip
    ranks.from_first(show, out)


def stage(script: str, out: Path, *flags) -> None:
    """Run a script with these flags in this process; a training run that is finished is kept."""
    if script != "judge.py" and ranks.from_first((out / "report.html").exists):
        return
    words = [str(word) for word in (*flags, "--out", out, "--resume")]
    print(f"\n$ python {script} {' '.join(words)}", flush=True)
    run_script(ROOT / script, *words)


def check_settings(config: Config) -> None:
    """Raise InputError for settings that cannot work together or differ from those in the folder.

    Only --rounds may differ.  The settings are written to loop.json in --out.  Until a first run
    has begun there, the next command may change all of them, for example to correct a wrong path.
    Also refused: the folder of another run, and --pairs that cannot be read.
    """
    if 0 < config.old < config.comparisons:
        raise InputError(
            f"--old {config.old} is below --comparisons {config.comparisons}: train_rm.py --limit "
            "counts each source alone and would drop verdicts: take at least as many, or 0"
        )
    file = Path(config.out) / "loop.json"
    began = any(file.parent.glob("*/run.json"))
    now, before = asdict(config), read_json(file) if began else {}
    before = before and asdict(Config()) | before  # an older loop.json may lack a setting
    changed = [name for name in now if before and now[name] != before[name] and name != "rounds"]
    if changed:
        name = changed[0]
        old, new = ("nothing" if x == "" else x for x in (before[name], now[name]))
        raise InputError(
            f"--out {config.out} holds a loop with {flag_of(name)} {old}, not {new}: "
            "give another folder, or the same settings to go on"
        )
    if not before and (file.parent / "run.json").exists():
        raise InputError(f"--out {config.out} already holds another run: give another folder")
    # With --reward-model, --pairs is first used after judging in round 1: check it now.
    read_pairs([config.pairs], rating_range=None, skip_bad_rows=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(now, indent=1) + "\n")


if __name__ == "__main__":
    run(main, Config)
