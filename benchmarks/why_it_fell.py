"""Why did the policy get worse?  The mistakes of a founding report, put back in one at a time.

    python benchmarks/why_it_fell.py --reward-model runs/rm-ratings [--variant …] [--seeds 0 1 2]

The report trained a policy on the expected rating, and the reward fell; "flipping the sign
helped".  Each variant changes one thing in train_policy.py; start model, reward model and settings
stay the same.  Prints held-out learned reward and gold, before → after, for each seed.
docs/why_it_fell.md shows the results.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from unittest import mock

import timing  # noqa: F401 (puts train_policy.py on the path)
import torch

import train_policy
from rlhf_min.maths.baselines import ExponentialAverage
from rlhf_min.models.log_probs import answer_log_probs as correct_log_probs
from rlhf_min.models.log_probs import rollout_log_probs


def prompt_log_probs(model, tree, temperature=1.0):
    """Trap 1: log-probs of the tokens at positions 0..T−1 of the row, so mostly of the prompt."""
    return log_probs_of_first_positions(model, tree, temperature, own_tokens=True)


def misplaced_log_probs(model, tree, temperature=1.0):
    """Trap 1: log-probs of the answer's T tokens in the logits of positions 0..T−1 of the row."""
    return log_probs_of_first_positions(model, tree, temperature, own_tokens=False)


def log_probs_of_first_positions(model, tree, temperature, own_tokens):
    """Log-probs at positions 0..T−1, of the tokens there (own_tokens) or of the answer."""
    width, predictors, targets = tree.ids.shape[1], [], []
    counts = torch.bincount(tree.owners, minlength=len(tree.ends)).tolist()
    for end, count in zip(tree.ends.tolist(), counts, strict=True):
        begin, row = end - count + 1, end // width * width
        prompt = int(tree.positions.flatten()[begin])
        places = [*range(row, row + prompt), *range(begin, end + 1)][: count + 1]
        predictors.append(torch.tensor(places[:count]))
        targets.append(tree.ids.flatten()[torch.tensor(places[1:])])
    wrong = dataclasses.replace(tree, predictors=torch.cat(predictors))
    if own_tokens:
        wrong = dataclasses.replace(wrong, targets=torch.cat(targets))
    return correct_log_probs(model, wrong, temperature)


def log_probs_without_end(model, tree, temperature=1.0):
    """Trap 3: the end token is not counted, so the policy does not learn to end its answers."""
    last = torch.cat([tree.owners[1:] != tree.owners[:-1], torch.ones(1, dtype=torch.bool)])
    others = {name: getattr(tree, name)[~last] for name in ("predictors", "targets", "owners")}
    return correct_log_probs(model, dataclasses.replace(tree, **others), temperature)


def in_both_models(wrong) -> dict:
    """Patches: the function `wrong` computes the log-probs of the policy and of the reference."""

    def wrong_rollout(*args):
        with mock.patch("rlhf_min.models.log_probs.answer_log_probs", wrong):
            return rollout_log_probs(*args)

    return {"answer_log_probs": wrong, "rollout_log_probs": wrong_rollout}


def no_check(gap, dtype):
    """Replaces `check_alignment`, which would stop these runs in their first step."""


def flipped(log_probs, advantages, count):
    """REINFORCE with its sign flipped: it *lowers* the log-probs of good answers."""
    return (advantages.detach() * log_probs).sum() / count


NOT_STANDARDISED = {"evaluation.reward_scale": lambda scores: {"mean": 0.0, "std": 1.0}}
BASELINE_FROM_0 = {
    "baselines.MovingAverage": lambda start: ExponentialAverage(value=0.0, decay=0.95)
}
VARIANTS = {
    "correct code": {},
    "trap 1: the prompt's log-probs": in_both_models(prompt_log_probs),
    "trap 1: answer's tokens, wrong positions": in_both_models(misplaced_log_probs),
    "trap 1: the same, sign flipped": {
        **in_both_models(misplaced_log_probs),
        "policy_losses.reinforce": flipped,
    },
    "trap 3: end token not counted": in_both_models(log_probs_without_end),
    "trap 8: baseline starts at 0, ratings raw": NOT_STANDARDISED | BASELINE_FROM_0,
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
            patches = {"check_alignment": no_check, **VARIANTS[name]}
            with tempfile.TemporaryDirectory() as out, contextlib.ExitStack() as stack:
                for target, wrong in patches.items():
                    stack.enter_context(mock.patch(f"train_policy.{target}", wrong))
                summary = train_policy.main(
                    train_policy.Config(
                        model=args.model, reward_model=args.reward_model, out=f"{out}/run",
                        steps=args.steps, seed=seed,
                    )
                )  # fmt: skip
            sides = (summary["before"], summary["after"])
            numbers = [f"{s['reward/mean']:.2f} {s['reward/gold']:.2f}" for s in sides]
            finished = summary["after"]["finished/rate"]
            lines.append(f"{name:44} {seed:4}   {'  →  '.join(numbers)}   {finished:.2f}")
    print(f"\n{'variant':44} seed   reward gold → reward gold   finished")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
