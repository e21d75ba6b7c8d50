"""Judges are functions (prompt, first answer, second answer) → Verdict; a person needs a dialogue.

The language model as judge is in llm_judge.py.
"""

import json
import math
from collections.abc import Callable
from functools import lru_cache

import torch

from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.data.visible import visible
from rlhf_min.judging.comparisons import Comparison, Verdict, VerdictLog
from rlhf_min.models.answers import AnswerTooLongError
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.zoo import world

Judge = Callable[[Prompt, str, str], Verdict]
KEYS = {"1": "first", "2": "second", "t": "tie", "s": "skipped"}
HELP = "1 or 2: that answer is better · t: tie · s: skip · u: undo the last · q: quit (saved)"


class ScoringJudge:
    """A judge that scores each answer by itself and prefers the higher score.

    name: of the score; scores: function (prompt, answers) → one score each; tie: a smaller
    difference is a tie; rates: whether the scores are ratings that verdicts keep.
    """

    def __init__(self, name: str, scores: Callable, tie: float, rates: bool = False):
        self.name, self.scores, self.tie, self.rates = name, scores, tie, rates

    def __call__(self, prompt: Prompt, first: str | list[str], second: str | list[str]) -> Verdict:
        """The verdict on two answers, or on two lists: which of them has the best answer.

        A list that shares the best score with the other gets the share of its answers among them.
        A score that is NaN or infinite, or an answer longer than the context, is a failure.
        """
        lists = isinstance(first, list)
        firsts, seconds = (first, second) if lists else ([first], [second])
        try:
            scores = self.scores(prompt, [*firsts, *seconds])
        except AnswerTooLongError as error:
            return _failed(str(error))
        sides = scores[: len(firsts)], scores[len(firsts) :]
        said = " against ".join(", ".join(f"{score:.3f}" for score in side) for side in sides)
        said = f"{self.name} {said}"
        if not all(map(math.isfinite, scores)):
            return _failed(f"{said}: one is not a number")
        best = [score == max(scores) or score > max(scores) - self.tie for score in scores]
        share = sum(best[: len(firsts)]) / sum(best)
        winner = {1.0: "first", 0.0: "second"}.get(share, "tie")
        if lists:
            return Verdict(winner, said, share=share)
        return Verdict(winner, said, ratings=tuple(scores) if self.rates else None)


def _gold_ratings(prompt: Prompt, answers: list[str]) -> list[float]:
    return [world.gold_rating(prompt_text(prompt), answer) for answer in answers]


gold = ScoringJudge("gold", _gold_ratings, tie=0.01, rates=True)  # the zoo's gold ratings decide


def reward_model_judge(path: str, dtype: torch.dtype = torch.float32) -> ScoringJudge:
    """A judge that prefers the higher reward; each answer is scored once for both orders."""
    scorer = RewardScorer(path, dtype)

    @lru_cache(maxsize=1024)
    def rewards(prompt: str, answers: tuple[str, ...]) -> list[float]:
        rows = [[answer] for answer in answers]  # one each: prompts are cut to fit their own answer
        outputs = scorer.text_outputs([json.loads(prompt)] * len(rows), rows, [[True]] * len(rows))
        return reward_from(outputs, "mean").tolist()

    def scores(prompt: Prompt, answers: list[str]) -> list[float]:
        texts = tuple(sorted(set(answers)))
        by_text = dict(zip(texts, rewards(json.dumps(prompt), texts), strict=True))
        return [by_text[answer] for answer in answers]

    return ScoringJudge("reward", scores, tie=1e-6)


def _failed(explanation: str) -> Verdict:
    """A failure that counts as a reply: asked again, this judge would fail again."""
    return Verdict("failed", explanation, reply=explanation)


def judge_by_hand(comparisons: list[Comparison], log: VerdictLog, read=input, show=print) -> None:
    """Show a person every comparison without a verdict, in one order; log each verdict at once.

    Raises KeyboardInterrupt when the person quits or the input ends.
    """
    show(f"Which answer is better?  {HELP}\nA comment may follow the key, as in: 1 more polite")
    different = [i for i, c in enumerate(comparisons) if c.a != c.b]
    while waiting := [i for i in different if (i, 0) not in log.verdicts]:
        prompt, *answers = comparisons[waiting[0]].question(0)
        texts = prompt_text(prompt), *answers
        prompt, first, second = (visible(text) or "(empty)" for text in texts)
        line = "─" * 20
        show(f"\n{line} {len(waiting)} to go {line}\n{prompt}\n\n[1] {first}\n\n[2] {second}")
        while True:
            try:
                key, _, comment = read("\n> ").strip().partition(" ")
            except EOFError:
                key, comment = "q", ""
            if key.lower() in (*KEYS, "u", "q"):
                break
            show(f"Not understood.  {HELP}")
        if key.lower() in KEYS:
            log.add(waiting[0], 0, Verdict(KEYS[key.lower()], comment.strip()))
        elif key.lower() == "q":
            show("")  # the line of the prompt may still be open
            raise KeyboardInterrupt
        elif log.verdicts:
            log.add(*list(log.verdicts)[-1], None)
        else:
            show("Nothing to undo.")
