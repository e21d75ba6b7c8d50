"""Why did the policy get worse?  A founding report's mistakes, put back in one at a time.

    python benchmarks/why_it_fell.py --reward-model runs/rm-ratings [--variant …] [--seeds 0 1 2]

The report trained a policy by the expected rating and saw the reward fall; "flipping the sign
helped".  Each variant changes one thing in train_policy.py, everything else stays: start model,
reward model, settings.  Prints held-out learned reward and gold, before → after, per seed.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from unittest import mock

import timing  # noqa: F401 (finds the scripts)
import torch

import train_policy
from rlhf_min.maths.baselines import ExponentialAverage
from rlhf_min.models.log_probs import answer_log_probs as right_log_probs
from rlhf_min.models.log_probs import rollout_log_probs


def of_the_prompt(model, tree, temperature=1.0):
    """Trap 1: positions 0..T−1 of the row and their own tokens, hence the prompt's log-probs."""
    return misplaced(model, tree, temperature, own_tokens=True)


def at_the_first_positions(model, tree, temperature=1.0):
    """Trap 1: the answer's T tokens, looked up in the logits of positions 0..T−1 of the row."""
    return misplaced(model, tree, temperature, own_tokens=False)


def misplaced(model, tree, temperature, own_tokens):
    width, predictors, targets = tree.ids.shape[1], [], []
    counts = torch.bincount(tree.owners, minlength=len(tree.ends)).tolist()
    for end, count in zip(tree.ends.tolist(), counts, strict=True):
        begin, row = end - count + 1, end // width * width
        prompt = int(tree.positions.flatten()[begin])
        slots = [*range(row, row + prompt), *range(begin, end + 1)][: count + 1]
        predictors.append(torch.tensor(slots[:count]))
        targets.append(tree.ids.flatten()[torch.tensor(slots[1:])])
    wrong = dataclasses.replace(tree, predictors=torch.cat(predictors))
    if own_tokens:
        wrong = dataclasses.replace(wrong, targets=torch.cat(targets))
    return right_log_probs(model, wrong, temperature)


def of_all_but_the_last_token(model, tree, temperature=1.0):
    """Traps 2 and 3: the end token is not counted, so nothing teaches the policy to stop."""
    last = torch.cat([tree.owners[1:] != tree.owners[:-1], torch.ones(1, dtype=torch.bool)])
    kept = {name: getattr(tree, name)[~last] for name in ("predictors", "targets", "owners")}
    return right_log_probs(model, dataclasses.replace(tree, **kept), temperature)


def everywhere(wrong) -> dict:
    """Patches that compute the policy's and the reference's log-probs by the function `wrong`."""

    def wrong_rollout(*args):
        with mock.patch("rlhf_min.models.log_probs.answer_log_probs", wrong):
            return rollout_log_probs(*args)

    return {"answer_log_probs": wrong, "rollout_log_probs": wrong_rollout}


def no_guard(gap, dtype):
    """The alignment guard would stop these runs at their first step."""


def flipped(log_probs, advantages, count):
    """The loss with its sign flipped: it *lowers* the log-probs of good answers."""
    return (advantages.detach() * log_probs).sum() / count


RAW = {
    "evaluation.reward_scale": lambda scores: {"mean": 0.0, "std": 1.0}
}  # ratings as they are, 1..10
ZERO = RAW | {"baselines.MovingAverage": lambda start: ExponentialAverage(value=0.0, decay=0.95)}
VARIANTS = {
    "as it is": {},
    "trap 1: the prompt's log-probs": everywhere(of_the_prompt),
    "trap 1: answer's tokens, wrong positions": everywhere(at_the_first_positions),
    "trap 1: the same, sign flipped": {
        **everywhere(at_the_first_positions),
        "policy_losses.reinforce": flipped,
    },
    "trap 3: end token not counted": everywhere(of_all_but_the_last_token),
    "trap 8: baseline starts at 0, ratings raw": ZERO,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="runs/zoo-base")
    parser.add_argument("--reward-model", default="runs/rm-ratings")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    lines = []
    for name in args.variant:
        for seed in args.seeds:
            patches = {"check_alignment": no_guard, **VARIANTS[name]}
            with tempfile.TemporaryDirectory() as out, contextlib.ExitStack() as stack:
                for target, wrong in patches.items():
                    stack.enter_context(mock.patch(f"train_policy.{target}", wrong))
                summary = train_policy.main(
                    train_policy.Config(
                        model=args.model, reward_model=args.reward_model, out=f"{out}/run",
                        steps=args.steps, seed=seed,
                    )
                )  # fmt: skip
            ends = (summary["before"], summary["after"])
            numbers = [f"{e['reward/mean']:.2f} {e['reward/gold']:.2f}" for e in ends]
            finished = summary["after"]["finished/rate"]
            lines.append(f"{name:44} {seed:4}   {'  →  '.join(numbers)}   {finished:.2f}")
    print(f"\n{'variant':44} seed   reward gold → reward gold   finished")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
