"""A person as judge, in the terminal: blind, answers in random order, each duel asked once."""

import re
from collections.abc import Callable

from rlhf_min.data.preferences import prompt_text
from rlhf_min.judging.comparisons import Duel, Journal
from rlhf_min.judging.judges import Verdict

KEYS = {"1": "first", "2": "second", "t": "tie", "s": "skipped"}
HELP = "1 or 2: that answer is better · t: tie · s: skip · u: undo the last · q: quit (saved)"
# answers are not trusted: no escape sequence, no text that runs backwards
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def judge_by_hand(
    duels: list[Duel], journal: Journal, read: Callable = input, show: Callable = print
) -> bool:
    """Ask about every duel without a verdict; True when none is left, False when the person quit.

    Each verdict is in the journal before the next question.  A comment may follow the key ("1 more
    polite").  The end of the input means quit.
    """
    show(f"Which answer is better?  {HELP}\nA comment may follow the key, as in: 1 more polite")
    while True:
        waiting = [i for i, d in enumerate(duels) if d.a != d.b and (i, 0) not in journal.known]
        if not waiting:
            return True
        duel = waiting[0]
        prompt, first, second = duels[duel].question(0)
        show(f"\n{'─' * 20} {len(waiting)} to go {'─' * 20}\n{_printable(prompt_text(prompt))}")
        for number, answer in enumerate((first, second), 1):
            show(f"\n[{number}] {_printable(answer)}")
        key, comment = _key(read, show)
        if key == "q":
            return False
        if key == "u":
            if journal.known:
                journal.add(*list(journal.known)[-1], None)
            else:
                show("Nothing to undo.")
            continue
        journal.add(duel, 0, Verdict(KEYS[key], comment))


def _key(read: Callable, show: Callable) -> tuple[str, str]:
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
