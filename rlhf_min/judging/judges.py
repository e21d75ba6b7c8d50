"""Judges are functions (prompt, first answer, second answer) → Verdict; a person needs a dialogue.

The language model as judge is in llm_judge.py.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache

import torch

from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.judging.comparisons import Comparison, Verdict, VerdictLog
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.scoring import RewardScorer
from rlhf_min.zoo import world

Judge = Callable[[Prompt, str, str], Verdict]
KEYS = {"1": "first", "2": "second", "t": "tie", "s": "skipped"}
HELP = "1 or 2: that answer is better · t: tie · s: skip · u: undo the last · q: quit (saved)"
# terminal control characters and those that reverse the direction of text (bidi controls)
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def gold(prompt: Prompt, first: str, second: str) -> Verdict:
    """The higher gold rating of the zoo wins; a tie below a difference of 0.01 rating points."""
    ratings = tuple(world.gold_rating(prompt_text(prompt), answer) for answer in (first, second))
    return _higher_wins("gold", *ratings, tie=0.01, ratings=ratings)


def reward_model_judge(path: str, dtype: torch.dtype = torch.float32) -> Judge:
    """A judge that prefers the higher reward; each pair is scored once for both orders."""
    scorer = RewardScorer(path, dtype)

    @lru_cache(maxsize=1024)
    def rewards(prompt: str, first: str, second: str) -> list[float]:
        texts, ends = [[first], [second]], [[True], [True]]
        outputs = scorer.text_outputs([json.loads(prompt)] * 2, texts, ends)
        return reward_from(outputs, "mean").tolist()

    def judge(prompt: Prompt, first: str, second: str) -> Verdict:
        answers = sorted((first, second))
        scores = dict(zip(answers, rewards(json.dumps(prompt), *answers), strict=True))
        return _higher_wins("reward", scores[first], scores[second], tie=1e-6)

    return judge


def _higher_wins(what: str, first: float, second: float, tie: float, ratings=None) -> Verdict:
    """The verdict of two scores; a difference below `tie` is a tie."""
    winner = "tie" if abs(first - second) < tie else "first" if first > second else "second"
    return Verdict(winner, f"{what} {first:.3f} against {second:.3f}", ratings=ratings)


def judge_by_hand(comparisons: list[Comparison], log: VerdictLog, read=input, show=print) -> None:
    """Show a person every comparison without a verdict, in one order; log each verdict at once.

    Raises KeyboardInterrupt when the person quits or the input ends.
    """
    show(f"Which answer is better?  {HELP}\nA comment may follow the key, as in: 1 more polite")
    different = [i for i, c in enumerate(comparisons) if c.a != c.b]
    while waiting := [i for i in different if (i, 0) not in log.verdicts]:
        prompt, *answers = comparisons[waiting[0]].question(0)
        texts = prompt_text(prompt), *answers
        prompt, first, second = (UNPRINTABLE.sub("�", text) or "(empty)" for text in texts)
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
