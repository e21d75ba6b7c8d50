"""Exhibits of the bug museum: each mistake of docs/traps.md as a patch of a few lines.

An exhibit is a function that returns its patches: {where: what stands there instead}.  They are in
place while train_policy.py (or train_rm.py) runs; the right code then measures what was trained.
docs/museum.md shows the source of these functions.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from rlhf_min.data.preferences import encode_pairs
from rlhf_min.maths.baselines import ExponentialAverage
from rlhf_min.maths.policy_losses import reinforce
from rlhf_min.maths.reward_shaping import with_kl
from rlhf_min.models.batches import tree_batches
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import hidden_states
from rlhf_min.models.reward_model import all_outputs
from rlhf_min.models.sampling import sample

PAD = 0  # the zoo's pad token


@dataclass(frozen=True)
class Exhibit:
    """A mistake: its trap in docs/traps.md, and how the run that shows it is set up."""

    title: str
    trap: str  # its number in docs/traps.md, or ""
    patches: Callable[[], dict]  # {} for the right code
    settings: dict = field(default_factory=dict)  # of train_policy.py, besides those of all runs
    beside: str = "right"  # the run of the right code that it is compared with
    head: str = "scalar"  # of the reward model
    stage: str = "policy"  # or "reward": the patches are in place while train_rm.py runs


EXHIBITS: dict[str, Exhibit] = {}  # name → exhibit, in the order of the page


def exhibit(name: str, trap: str, title: str, **settings):
    """Decorator: adds a function that returns patches to EXHIBITS."""

    def add(patches: Callable) -> Callable:
        EXHIBITS[name] = Exhibit(title, trap, patches, **settings)
        return patches

    return add


def source(name: str) -> str:
    """The source of an exhibit's function, without the decorator."""
    lines = inspect.getsource(EXHIBITS[name].patches).splitlines()
    return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("def ")) :])


def right() -> dict:
    """No patch."""
    return {}


LONG = {"steps": 120}  # for mistakes that show late
SHORT = {"max_new_tokens": 24}  # half of the answers do not fit
for _name, _title, _more in (
    ("right", "the right code", {}),
    ("right-long", "the right code, 120 steps", {"settings": LONG}),
    ("right-short", "the right code, answers of at most 24 tokens", {"settings": SHORT}),
    ("right-ratings", "the right code, ratings head", {"head": "ratings"}),
):
    EXHIBITS[_name] = Exhibit(_title, "", right, beside=_name, **_more)


def everywhere(wrong: Callable) -> dict:
    """Patches: `wrong` computes the log-probs of the policy and of the reference model."""
    places = "train_policy.answer_log_probs", "rlhf_min.models.log_probs.answer_log_probs"
    return dict.fromkeys(places, wrong)


def first_places(tree) -> tuple:
    """Places of the row's first T tokens, of a row [prompt | answer], and of their successors."""
    before, after = [], []
    for branch, end in enumerate(tree.ends.tolist()):
        count = int((tree.owners == branch).sum())
        begin, row = end - count + 1, end - end % tree.ids.shape[1]
        prompt = int(tree.positions.flatten()[begin])
        places = [*range(row, row + prompt), *range(begin, end + 1)][: count + 1]
        before, after = before + places[:-1], after + places[1:]
    return torch.tensor(before), torch.tensor(after)


@exhibit("misplaced", "1", "Logits of positions 0…T−1 of the row")
def misplaced():
    def wrong(model, tree, temperature=1.0):
        before, _ = first_places(tree)  # places 0…T−1 of the row, so mostly the prompt's
        return answer_log_probs(model, replace(tree, predictors=before), temperature)

    return everywhere(wrong)


@exhibit("misplaced-flipped", "1", "The same, and the sign of the loss flipped")
def misplaced_flipped():
    def flipped(log_probs, advantages, count):
        return -reinforce(log_probs, advantages, count)

    return misplaced() | {"rlhf_min.maths.policy_losses.reinforce": flipped}


@exhibit("prompt-tokens", "1", "Log-probs of the row's first T tokens")
def prompt_tokens():
    def wrong(model, tree, temperature=1.0):
        before, after = first_places(tree)  # the tokens there are mostly the prompt's
        first = replace(tree, predictors=before, targets=tree.ids.flatten()[after])
        return answer_log_probs(model, first, temperature)

    return everywhere(wrong)


@exhibit("no-shift", "2", "The shift by one is missing")
def no_shift():
    def wrong(model, tree, temperature=1.0):
        own = tree.predictors.roll(-1)  # each token's own place, which predicts the next token
        last = tree.owners != tree.owners.roll(-1)
        own[last] = tree.ends
        return answer_log_probs(model, replace(tree, predictors=own), temperature)

    return everywhere(wrong)


@exhibit("pads-counted", "3", "Padding after the end token is counted")
def pads_counted():
    def padded(model, prompts, answers, *limits, **forward):
        longest = max(len(answer) for own in answers for answer in own)
        pad = lambda answer: answer + [PAD] * (longest - len(answer))  # noqa: E731
        answers = [[*map(pad, own)] for own in answers]
        return tree_batches(model, prompts, answers, *limits, **forward)

    return {"train_policy.tree_batches": padded, "rlhf_min.models.log_probs.tree_batches": padded}


@exhibit("end-dropped", "3", "The end token is not counted")
def end_dropped():
    def wrong(model, tree, temperature=1.0):
        last = tree.owners != tree.owners.roll(-1)
        parts = {name: getattr(tree, name)[~last] for name in ("predictors", "targets", "owners")}
        return answer_log_probs(model, replace(tree, **parts), temperature)

    return everywhere(wrong)


@exhibit("reward-at-pad", "4", "The reward is read at the pad token")
def reward_at_pad():
    @torch.no_grad()
    def wrong(model, prompts, branches):
        rows = [x + y for x, own in zip(prompts, branches, strict=True) for y in own]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        return model.score(model.base_model(ids).last_hidden_state)[:, -1]  # right: at its end

    return {"rlhf_min.models.scoring.all_outputs": wrong}


@exhibit("triu", "5", "triu instead of tril in P(win)", head="ratings", stage="reward",
         beside="right-ratings")  # fmt: skip
def triu():
    def wrong(first, second, tie=0.5):
        credit = torch.ones(10, 10).triu(1).fill_diagonal_(tie)  # right: tril(-1)
        pairs = first.log_softmax(-1)[..., :, None] + second.log_softmax(-1)[..., None, :]
        return (pairs + credit.log()).flatten(-2).logsumexp(-1)

    places = "maths.preference_losses", "models.reward_model"
    return {f"rlhf_min.{place}.win_log_probability": wrong for place in places}


@exhibit("greedy", "7", "Greedy rollouts")
def greedy():
    def most_likely(probabilities, u):
        return probabilities.argmax(-1)

    return {"rlhf_min.models.sampling.draw": most_likely}


@exhibit("temperature", "7", "Sampled at 0.7, log-probs at 1")
def temperature():
    def wrong(model, prompts, samples, **settings):
        return sample(model, prompts, samples, **settings | {"temperature": 0.7})

    return {"train_policy.sample": wrong}


@exhibit("own-batch", "8", "The baseline contains its own batch")
def own_batch():
    def wrong(self, rewards):
        return rewards - self.updated(rewards).value  # right: updated after its use

    return {"rlhf_min.maths.baselines.MovingAverage.advantages": wrong}


@exhibit("from-zero", "8", "Raw ratings, baseline from 0", head="ratings",
         beside="right-ratings")  # fmt: skip
def from_zero():
    return {
        "rlhf_min.reporting.evaluation.reference_scales": lambda *_: {
            "reward_scale": {"mean": 0.0, "std": 1.0}
        },
        "rlhf_min.maths.baselines.MovingAverage": lambda start: ExponentialAverage(0.0, 0.95),
    }


@exhibit("micro-batch-mean", "9", "Mean over each micro-batch", settings={"micro_batch": 15})
def micro_batch_mean():
    def wrong(log_probs, advantages, count):
        return -(advantages * log_probs).mean()  # right: sum / count; here 15 prompts, then 1

    return {"rlhf_min.maths.policy_losses.reinforce": wrong}


@exhibit("token-mean", "9", "Token mean instead of a sum")
def token_mean():
    def wrong(model, tree, temperature=1.0):
        return answer_log_probs(model, tree, temperature) / tree.owners.bincount()

    return everywhere(wrong)


@exhibit("k1-loss", "10", "k1 as a loss", settings=LONG, beside="right-long")
def k1_loss():
    def wrong(log_probs, advantages, count):
        k1 = log_probs.sum() / count  # minus log π_ref, which has no gradient
        return reinforce(log_probs, advantages, count) + 0.1 * k1

    no_kl = lambda rewards, *_: rewards  # noqa: E731
    return {"rlhf_min.maths.policy_losses.reinforce": wrong, "train_policy.with_kl": no_kl}


@exhibit("kl-sign", "10", "The KL's sign flipped")
def kl_sign():
    def wrong(rewards, log_probs, ref_log_probs, beta):
        return with_kl(rewards, ref_log_probs, log_probs, beta)

    return {"train_policy.with_kl": wrong}


@exhibit("cut-answers", "14", "Reward pairs cut at 24 tokens", stage="reward")
def cut_answers():
    def wrong(tokenizer, pairs, max_length, *names):
        encoded, dropped = encode_pairs(tokenizer, pairs, max_length, *names)
        cut = lambda pair: [a[: 24 - len(pair.prompt)] for a in pair.answers]  # noqa: E731
        return [replace(pair, answers=cut(pair)) for pair in encoded], dropped

    return {"rlhf_min.data.preferences.encode_pairs": wrong}


@exhibit("truncated", "16", "Truncated answers scored as whole", beside="right-short",
         settings=SHORT | {"missing_end_penalty": 0.0})  # fmt: skip
def truncated():
    def wrong(model, prompts, branches):
        end = [model.config.eos_token_id]
        ended = [[a if a[-1:] == end else a + end for a in own] for own in branches]
        return all_outputs(model, prompts, ended)

    return {"rlhf_min.models.scoring.all_outputs": wrong}


@exhibit("no-reduction", "23", "Two devices, gradients never summed", settings={"batch_size": 32})
def no_reduction():
    def wrong(log_probs, advantages, count):  # the model of rank 0 sees its half of the answers
        return reinforce(log_probs, advantages, 2 * count)  # divided by the count of both ranks

    return {"rlhf_min.maths.policy_losses.reinforce": wrong}


@exhibit("kl-to-itself", "24", "KL measured to the policy itself", settings=LONG,
         beside="right-long")  # fmt: skip
def kl_to_itself():
    def wrong(reference, rollout, *limits):
        return rollout.log_probs  # of the policy; right: of the reference model

    return {"train_policy.rollout_log_probs": wrong}


@exhibit("dropout", "", "Dropout in the training forward")
def dropout():
    def wrong(model, tree):
        return F.dropout(hidden_states(model, tree), 0.1, training=torch.is_grad_enabled())

    return {"rlhf_min.models.log_probs.hidden_states": wrong}
