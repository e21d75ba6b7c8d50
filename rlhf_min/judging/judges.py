"""Judges: functions (prompt, first answer, second answer) → Verdict.

The gold and reward-model judges are here, the language model in llm_judge.py.  A person is asked by
human_judge.py, outside this interface: a person can skip, undo and quit.
"""

import json
from collections.abc import Callable
from functools import lru_cache

import torch

from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.judging.comparisons import Verdict
from rlhf_min.models.answers import encode_texts
from rlhf_min.models.layout import context_length
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.zoo import world

Judge = Callable[[Prompt, str, str], Verdict]


def gold(prompt: Prompt, first: str, second: str) -> Verdict:
    """The higher gold rating of the zoo wins; a tie below a difference of 0.01 rating points."""
    ratings = tuple(world.gold_rating(prompt_text(prompt), answer) for answer in (first, second))
    return _higher_wins("gold", *ratings, tie=0.01, ratings=ratings)


def reward_model_judge(path: str, dtype: torch.dtype = torch.float32) -> Judge:
    """A judge that prefers the higher reward; each pair is scored once for both orders."""
    scorer = RewardScorer(path, dtype)
    room = context_length(scorer.model)

    @lru_cache(maxsize=1024)
    def rewards(prompt: str, first: str, second: str) -> list[float]:
        texts, ends = [[first], [second]], [[True], [True]]
        ids = encode_texts(scorer.tokenizer, [json.loads(prompt)] * 2, texts, ends, room)
        return reward_from(scorer.outputs(*ids), "mean").tolist()

    def judge(prompt: Prompt, first: str, second: str) -> Verdict:
        answers = sorted((first, second))
        scores = dict(zip(answers, rewards(json.dumps(prompt), *answers), strict=True))
        return _higher_wins("reward", scores[first], scores[second], tie=1e-6)

    return judge


def _higher_wins(what: str, first: float, second: float, tie: float, ratings=None) -> Verdict:
    """The verdict of two scores; a difference below `tie` is a tie."""
    winner = "first" if first > second else "second"
    winner = "tie" if abs(first - second) < tie else winner
    return Verdict(winner, f"{what} {first:.3f} against {second:.3f}", ratings=ratings)
