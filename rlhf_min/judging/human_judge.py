"""A person as judge, in the terminal: blind to the models, each comparison shown in one order."""

import re

from rlhf_min.data.preferences import prompt_text
from rlhf_min.judging.comparisons import Comparison, Verdict, VerdictLog

KEYS = {"1": "first", "2": "second", "t": "tie", "s": "skipped"}
HELP = "1 or 2: that answer is better · t: tie · s: skip · u: undo the last · q: quit (saved)"
# terminal control characters and those that reverse the direction of text (bidi controls)
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def judge_by_hand(comparisons: list[Comparison], log: VerdictLog, read=input, show=print) -> None:
    """Ask about every comparison without a verdict; log each verdict before the next question.

    A comment may follow the key ("1 more polite").  Raises KeyboardInterrupt when the person quits
    or the input ends.
    """
    show(f"Which answer is better?  {HELP}\nA comment may follow the key, as in: 1 more polite")
    different = [i for i, c in enumerate(comparisons) if c.a != c.b]
    while waiting := [i for i in different if (i, 0) not in log.verdicts]:
        prompt, *answers = comparisons[waiting[0]].question(0)
        show(f"\n{'─' * 20} {len(waiting)} to go {'─' * 20}\n{_printable(prompt_text(prompt))}")
        for number, answer in enumerate(answers, 1):
            show(f"\n[{number}] {_printable(answer)}")
        key, comment = _read_key(read, show)
        if key == "q":
            show(f"saved in {log.path.parent}: go on with --resume")
            raise KeyboardInterrupt
        if key in KEYS:
            log.add(waiting[0], 0, Verdict(KEYS[key], comment))
        elif log.verdicts:
            log.add(*list(log.verdicts)[-1], None)
        else:
            show("Nothing to undo.")


def _read_key(read, show) -> tuple[str, str]:
    """A valid key in lower case, and the comment behind it."""
    while True:
        try:
            key, _, comment = read("\n> ").strip().partition(" ")
        except EOFError:
            return "q", ""
        if key.lower() in (*KEYS, "u", "q"):
            return key.lower(), comment.strip()
        show(f"Not understood.  {HELP}")


def _printable(text: str) -> str:
    return UNPRINTABLE.sub("�", text) or "(empty)"
