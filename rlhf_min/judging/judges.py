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


def gold(prompt: Prompt, first: str, second: str) -> Verdict:
    """The higher gold rating of the zoo wins; a tie below a difference of 0.01 rating points."""
    ratings = tuple(world.gold_rating(prompt_text(prompt), answer) for answer in (first, second))
    return _higher_wins("gold", *ratings, tie=0.01, ratings=ratings)


def reward_model_judge(path: str, dtype: torch.dtype = torch.float32) -> Judge:
    """A judge that prefers the higher reward; each pair is scored once for both orders.

    An answer longer than the model's context, or a reward that is NaN or infinite, is a failure.
    """
    scorer = RewardScorer(path, dtype)

    @lru_cache(maxsize=1024)
    def rewards(prompt: str, first: str, second: str) -> list[float]:
        texts, ends = [[first], [second]], [[True], [True]]
        outputs = scorer.text_outputs([json.loads(prompt)] * 2, texts, ends)
        return reward_from(outputs, "mean").tolist()

    def judge(prompt: Prompt, first: str, second: str) -> Verdict:
        answers = sorted((first, second))
        try:
            scores = dict(zip(answers, rewards(json.dumps(prompt), *answers), strict=True))
        except AnswerTooLongError as error:
            return _failed(str(error))
        return _higher_wins("reward", scores[first], scores[second], tie=1e-6)

    return judge


def _higher_wins(what: str, first: float, second: float, tie: float, ratings=None) -> Verdict:
    """The verdict of two scores; a difference below `tie` is a tie; NaN and infinity fail."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return _failed(f"{what} {first:.3f} against {second:.3f}: one is not a number")
    winner = "tie" if abs(first - second) < tie else "first" if first > second else "second"
    return Verdict(winner, f"{what} {first:.3f} against {second:.3f}", ratings=ratings)


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
            show(f"saved in {log.path.parent}: go on with --resume")
            raise KeyboardInterrupt
        elif log.verdicts:
            log.add(*list(log.verdicts)[-1], None)
        else:
            show("Nothing to undo.")
