"""Duels: two answers to one prompt, and what came of them, on disk and in numbers.

Each duel is asked in both orders.  A verdict that turns with the order is about the place and not
about the answer: the duel is a tie, and it is counted.  A verdict that could not be had is a
failure: kept and counted, never made into a win or a tie.
"""

import csv
import json
import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rlhf_min.data.files import read_jsonl
from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.judging.judges import Verdict
from rlhf_min.maths.statistics import (
    bootstrap_interval,
    degenerate,
    length_controlled_rate,
    wilson_interval,
    win_rate,
)

SCORE = {"a": 0.0, "tie": 0.5, "b": 1.0}  # of b


@dataclass(frozen=True)
class Duel:
    """Two answers to one prompt; `first`: the side ("a" or "b") shown first in the first order."""

    prompt: Prompt
    a: str
    b: str
    first: str
    a_finished: bool | None = None  # did the answer end by itself; None when nobody knows
    b_finished: bool | None = None

    def shown(self, order: int) -> tuple[str, str]:
        """The sides in the order in which `order` (0 or 1) shows them."""
        return ("a", "b") if (self.first == "a") == (order == 0) else ("b", "a")

    def question(self, order: int) -> tuple[Prompt, str, str]:
        first, second = self.shown(order)
        return self.prompt, getattr(self, first), getattr(self, second)


@dataclass(frozen=True)
class Outcome:
    """Result of a duel: "a" | "b" | "tie" | "failed" | "skipped" | "waiting"."""

    winner: str
    orders: tuple[str, ...] = ()  # the same words, one for each order that is asked
    explanation: str = ""


def settle(duel: Duel, verdicts: list[Verdict | None]) -> Outcome:
    """One winner from the verdicts of all orders (both orders, or a tie); None: not yet known."""
    if duel.a == duel.b:
        return Outcome("tie", explanation="the answers are identical")
    orders, explanations = [], []
    for order, verdict in enumerate(verdicts):
        sides = dict(zip(("first", "second"), duel.shown(order), strict=True))
        orders.append(sides.get(verdict.winner, verdict.winner) if verdict else "waiting")
        if verdict and verdict.explanation:
            explanations.append(f"{sides['first']} first: {verdict.explanation}")
    winner = orders[0] if len(set(orders)) == 1 else "tie"
    winner = next((w for w in ("waiting", "failed", "skipped") if w in orders), winner)
    return Outcome(winner, tuple(orders), "\n".join(explanations))


class Journal:
    """Verdicts in a .jsonl file, one line each, written when they are known; a later line counts.

    A line reaches the operating system at once: a killed process loses nothing.  Several threads
    may add.  `add(..., None)` takes a verdict back.
    """

    def __init__(self, path: Path):
        self.known: dict[tuple[int, int], Verdict] = {}  # (duel, order), in the order of judging
        self._lock = threading.Lock()
        if path.exists():  # a line that a kill cut off goes, lest the next be glued to it
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        for row in read_jsonl(path):
            self._note((row["duel"], row["order"]), row["verdict"] and Verdict(**row["verdict"]))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def _note(self, key: tuple[int, int], verdict: Verdict | None) -> None:
        self.known.pop(key, None)
        if verdict:
            self.known[key] = verdict

    def add(self, duel: int, order: int, verdict: Verdict | None) -> None:
        row = {"duel": duel, "order": order, "verdict": verdict and asdict(verdict)}
        with self._lock:
            self._file.write(json.dumps(row) + "\n")
            self._note((duel, order), verdict)

    def close(self) -> None:
        self._file.close()


FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def spreadsheet_safe(text: str) -> str:
    """`text`, with an apostrophe in front where Excel or LibreOffice would run it as a formula.

    That is where it begins with = + - @ tab or a line break, or with apostrophes and one of these:
    so taking one apostrophe off every cell that matches FORMULA after it gives the text back.
    """
    return "'" + text if FORMULA.match(text) else text


def write_verdicts(path: Path, duels: list[Duel], outcomes: list[Outcome], judge: str) -> None:
    """verdicts.csv: one row per duel, every cell safe to open in a spreadsheet."""
    columns = ["prompt", "answer_a", "answer_b", "shown_first", "first_order", "second_order"]
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, "winner", "explanation", "judge"])
        for duel, outcome in zip(duels, outcomes, strict=True):
            orders = [*outcome.orders, "", ""][:2]
            cells = [prompt_text(duel.prompt), duel.a, duel.b, duel.first, *orders]
            cells += [outcome.winner, outcome.explanation, judge]
            table.writerow([spreadsheet_safe(cell) for cell in cells])


def comparisons(duels: list[Duel], outcomes: list[Outcome], journal: Journal) -> list[dict]:
    """Rows of comparisons.jsonl, the format that `train_rm.py --data` reads.

    Only duels with a winner are in it, and none with an empty answer, which the reader refuses.
    The gold rater's ratings go along; other judges give none.
    """
    rows = []
    for i, (duel, outcome) in enumerate(zip(duels, outcomes, strict=True)):
        if outcome.winner not in ("a", "b") or not (duel.a.strip() and duel.b.strip()):
            continue
        chosen, rejected = (duel.a, duel.b) if outcome.winner == "a" else (duel.b, duel.a)
        row = {"prompt": duel.prompt, "chosen": chosen, "rejected": rejected}
        if ratings := journal.known[i, 0].ratings:
            row |= {"chosen_rating": max(ratings), "rejected_rating": min(ratings)}
        rows.append(row)
    return rows


def summarise(
    duels: list[Duel], outcomes: list[Outcome], journal: Journal, winners_known: bool, seed: int
) -> dict:
    """The numbers of summary.json; None where there is nothing to count.

    winners_known: b is right in every duel, so that its win rate is the judge's agreement.
    """
    winners, heard = [o.winner for o in outcomes], list(journal.known.values())
    words = {"wins": "b", "losses": "a", "ties": "tie", "failures": "failed"}
    words |= {"skipped": "skipped", "waiting": "waiting"}
    found = {"pairs": len(duels)} | {name: winners.count(word) for name, word in words.items()}
    found["identical"] = sum(d.a == d.b for d in duels)
    both = [o.orders for o in outcomes if len(o.orders) == 2 and set(o.orders) <= set(SCORE)]
    found["position_disagreement"] = _mean(x != y for x, y in both)
    found["first_shown_wins"] = _mean(
        v.winner == "first" for v in heard if v.winner in ("first", "second")
    )
    found["tokens/prompt"] = sum(v.prompt_tokens for v in heard)
    found["tokens/reply"] = sum(v.reply_tokens for v in heard)
    judged = [(d, o.winner) for d, o in zip(duels, outcomes, strict=True) if o.winner in SCORE]
    scores, differences = [SCORE[w] for _, w in judged], [len(d.b) - len(d.a) for d, _ in judged]
    rate = "agreement" if winners_known else "win_rate"
    found |= {rate: None, f"{rate}_low": None, f"{rate}_high": None, "length_controlled_rate": None}
    if judged:
        low, high = (
            wilson_interval(sum(scores), len(scores))
            if winners_known
            else bootstrap_interval(scores, win_rate, seed)
        )
        found |= {rate: win_rate(scores), f"{rate}_low": low, f"{rate}_high": high}
        found["length_controlled_rate"] = length_controlled_rate(scores, differences)
    # how often the longer answer (in characters) wins, for the judge and in the data
    uneven = [(d > 0, s == 1) for d, s in zip(differences, scores, strict=True) if d and s != 0.5]
    found["longer_wins"] = _mean(b_longer == b_wins for b_longer, b_wins in uneven)
    if winners_known:
        return found | {"longer_wins_data": _mean(b_longer for b_longer, _ in uneven)}
    for side in ("a", "b"):
        answers = [getattr(d, side) for d in duels]
        found[f"length/mean_{side}"] = _mean(map(len, answers))
        found[f"degenerate/rate_{side}"] = _mean(map(degenerate, answers))
        found[f"finished/rate_{side}"] = _mean(getattr(d, f"{side}_finished") for d in duels)
    return found


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return fmean(values) if values else None
