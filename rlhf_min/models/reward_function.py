"""The user's own reward function, in place of a reward model or beside one."""

import importlib.util
import os
import sys
import traceback
from pathlib import Path

import torch

from rlhf_min import InputError
from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import main_device
from rlhf_min.hardware.finite import check_finite, text_start
from rlhf_min.models.answers import answer_texts
from rlhf_min.models.ensemble import EnsembleScorer, member_paths
from rlhf_min.models.sampling import Rollout
from rlhf_min.models.scoring import RewardScorer


def load_function(spec: str):
    """The function NAME of FILE.py.  Raises InputError for a file that cannot be run."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"--reward-function {spec!r} must be FILE.py:NAME")
    if not Path(file).is_file():
        raise InputError(f"--reward-function: {file} does not exist: check the name")
    module_spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file is the user's program
        wrong = f"--reward-function: {file}{_line(error, file)} cannot be run"
        raise InputError(f"{wrong} ({type(error).__name__}: {error})") from error
    if not callable(function := getattr(module, name, None)):
        raise InputError(f"--reward-function: {file} has no function {name}")
    return function


def _line(error: BaseException, file: str) -> str:
    """Text with the last line of the user's file that ran before the error; empty if none did."""
    here, frames = os.path.realpath(file), traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == here]
    if isinstance(error, SyntaxError) and os.path.realpath(error.filename or "") == here:
        lines.append(error.lineno)  # the file itself cannot be parsed
    return f", line {lines[-1]}" if lines else ""


class FunctionScorer:
    """A function (prompts, answers) → rewards, called once for all answers of a rollout.

    It gets two lists of the same length: prompts (text or chat messages) and answers (text), and
    returns as many numbers.  beside: scorer of reward models or None; the score is its score +
    weight·reward.
    """

    def __init__(self, spec: str, policy_tokenizer, beside, weight: float):
        self.spec, self.function = spec, load_function(spec)
        self.policy_tokenizer, self.beside, self.weight = policy_tokenizer, beside, weight
        self.context = beside.context if beside else sys.maxsize
        self.needs_reference = beside.needs_reference if beside else False

    def score(self, rollout: Rollout, prompts: list, reference: Rollout | None = None):
        """Scores and advantage weights of a rollout, as `RewardScorer.score`: [P, K], [P, K]."""
        texts = answer_texts(self.policy_tokenizer, rollout)
        rewards = torch.tensor(ranks.from_first(self._call, prompts, texts), device=main_device())
        rewards = rewards.view(len(texts), -1)
        what, cause = f"the reward of {self.spec}", "correct the function"
        check_finite(what, rewards, cause, text_of=lambda p, k: texts[p][k])
        if not self.beside:
            return rewards, torch.ones_like(rewards)
        scores, weights = self.beside.score(rollout, prompts, reference)
        return scores + self.weight * rewards.to(scores), weights

    def _call(self, prompts: list, texts: list[list[str]]) -> list[float]:
        """The function's rewards [P·K].  Raises InputError for anything else."""
        repeated = [prompt for prompt, own in zip(prompts, texts, strict=True) for _ in own]
        answers = [answer for own in texts for answer in own]
        first = f"(first prompt {text_start(prompts[0])})"
        try:
            rewards = [float(reward) for reward in self.function(repeated, answers)]
        except (Exception, SystemExit) as error:  # the function is the user's program
            place = f"{self.spec}{_line(error, self.spec.rpartition(':')[0])} failed {first}"
            wrong = f"{type(error).__name__}: {error}"
            raise InputError(f"--reward-function {place}: {wrong}") from error
        if len(rewards) != len(answers):
            raise InputError(
                f"--reward-function {self.spec} returned {len(rewards)} rewards for "
                f"{len(answers)} answers {first}: return one number for each"
            )
        return rewards


def make_scorer(config, dtype: torch.dtype, tokenizer):
    """The scorer of answers: reward models, --reward-function, or both.

    config: settings of train_policy.py; tokenizer: the policy's.
    """
    settings = config.reading, config.entropic_b, config.weight
    if config.reward_function and not config.function_weight:
        if config.reading != "mean" or config.weight != "none":
            raise InputError(
                "--reading and --weight are for a reward model: leave them out, or use one beside "
                "--reward-function by --function-weight"
            )
        print(f"rewards: {config.reward_function} alone (--function-weight adds a reward model's)")
        return FunctionScorer(config.reward_function, tokenizer, None, 0.0)
    paths = member_paths(config.reward_model)
    members = [RewardScorer(path, dtype, tokenizer, *settings) for path in paths]
    scorer = members[0]
    if len(members) > 1:
        scorer = EnsembleScorer(members, config.ensemble, config.ensemble_weight)
    if not config.reward_function:
        return scorer
    return FunctionScorer(config.reward_function, tokenizer, scorer, config.function_weight)
