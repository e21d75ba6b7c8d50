"""A judge compares two answers to one prompt: any callable `(prompt, first, second) -> Verdict`.

The gold rater and the reward model are here, a language model in llm_judge.py, a person in
human_judge.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from rlhf_min import InputError
from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.zoo import world as zoo


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one question; "skipped" comes from people only."""

    winner: str  # "first" | "second" | "tie" | "failed" | "skipped"
    explanation: str = ""
    reply: str = ""  # a language model's own words, whether they could be read or not
    prompt_tokens: int = 0
    reply_tokens: int = 0
    ratings: tuple[float, float] | None = None  # of first and second, on 1..10, by the gold rater

    @property
    def unheard(self) -> bool:
        """No reply came at all; a reply that could not be read is another thing."""
        return self.winner == "failed" and not self.reply


Judge = Callable[[Prompt, str, str], Verdict]


def build(name: str, dtype: str = "float32", **openai_settings) -> Judge | None:
    """The judge that `--judge` names; None for a person.  Raises InputError."""
    kind, _, model = name.partition(":")
    if kind in ("gold", "human") and not model:
        return gold if kind == "gold" else None
    if kind == "reward-model" and model:
        return reward_model(model, dtype)
    if kind == "openai" and model:
        from rlhf_min.judging.llm_judge import OpenAIJudge

        return OpenAIJudge(model, **openai_settings)
    raise InputError(
        f"--judge {name} is unknown: use gold, reward-model:DIR, openai:MODEL or human"
    )


def gold(prompt: Prompt, first: str, second: str) -> Verdict:
    """The truth of the zoo, without an annotator's noise; closer than 0.01 rating is a tie."""
    ratings = tuple(zoo.gold_rating(prompt_text(prompt), answer) for answer in (first, second))
    return Verdict(_higher(*ratings, 0.01), _scores("gold", *ratings), ratings=ratings)


def reward_model(path: str, dtype: str = "float32") -> Judge:
    """The answer with the higher reward wins; a pair is scored once, whatever the order."""
    from rlhf_min.models.reward_model import Scorer  # here: the other judges need no torch

    scorer = Scorer(path, dtype)

    @lru_cache(maxsize=1024)
    def rewards(prompt: str, first: str, second: str) -> list[float]:
        return scorer.rewards([json.loads(prompt)] * 2, [first, second])

    def judge(prompt: Prompt, first: str, second: str) -> Verdict:
        answers = sorted((first, second))
        scores = dict(zip(answers, rewards(json.dumps(prompt), *answers), strict=True))
        pair = scores[first], scores[second]
        return Verdict(_higher(*pair, 1e-6), _scores("reward", *pair))

    return judge


def _higher(first: float, second: float, tie: float) -> str:
    if abs(first - second) < tie:
        return "tie"
    return "first" if first > second else "second"


def _scores(name: str, first: float, second: float) -> str:
    return f"{name} {first:.3f} against {second:.3f}"
