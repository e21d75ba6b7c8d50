"""Comparisons of two answers to one prompt: settled from verdicts, stored and summarised.

A judge gets each comparison in both orders.  If swapping the order changes the verdict, that is
position bias: count a tie.  Without a verdict from the judge, the comparison is "failed": counted,
but never a win, a loss or a tie.
"""

import csv
import json
import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.data.files import read_jsonl
from rlhf_min.data.labelled import Labelled
from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.data.visible import visible
from rlhf_min.hardware import disk

WINNERS = ["first", "second", "tie", "failed", "skipped", "waiting"]  # skipped: by a person
COLUMNS = "prompt answer_a answer_b shown_first first_order second_order winner explanation judge"
# Excel and LibreOffice execute a cell that begins like this; an apostrophe in front prevents it.
# Apostrophes before such a beginning get one more, so that removing one restores every text.
FORMULA = r"(?='*[=+\-@\t\r\n])"


@dataclass(frozen=True)
class Verdict:
    """A judge's decision between two answers to one prompt, shown in one order."""

    winner: str  # one of WINNERS
    explanation: str = ""
    reply: str = ""  # what the judge said, even if no verdict was found in it
    prompt_tokens: int = 0
    reply_tokens: int = 0
    ratings: tuple[float, float] | None = None  # gold ratings of both answers, from 1 to 10
    share: float | None = None  # of two lists: the first one's share of the best-scored answers

    def __post_init__(self):
        """Raise TypeError for values that no judge gives; a damaged file may hold them."""
        texts = [self.winner, self.explanation, self.reply]
        numbers = [self.prompt_tokens, self.reply_tokens, *(self.ratings or (0, 0))]
        numbers += [] if self.share is None else [self.share]
        good = set(map(type, texts)) == {str} and set(map(type, numbers)) <= {int, float}
        if not good or self.winner not in WINNERS:
            raise TypeError("no verdict")

    @property
    def no_reply(self) -> bool:
        """Whether the judge did not reply at all; --resume asks such a question again."""
        return self.winner == "failed" and not self.reply


@dataclass(frozen=True)
class Comparison:
    """A prompt and the answers of models a and b.  Order 0 begins with the answer of `first`.

    Of rows with known winners b is the better answer; a and b may be lists, shown in one order.
    """

    prompt: Prompt
    a: str | list[str]
    b: str | list[str]
    first: str  # "a" | "b"
    a_finished: bool | None = None  # whether the answer ended with an end token; None: unknown
    b_finished: bool | None = None
    tied: bool = False  # known: neither answer is the better one
    subset: str | None = None

    @property
    def orders(self) -> tuple[int, ...]:
        """The orders in which a judge sees the answers."""
        return (0,) if isinstance(self.a, list) else (0, 1)

    @property
    def chance(self) -> float:
        """The probability that a guess at the best answer is one of b's."""
        return len(self.b) / (len(self.a) + len(self.b)) if isinstance(self.a, list) else 0.5

    def sides(self, order: int) -> tuple[str, str]:
        """The models ("a" and "b") whose answers are shown first and second in order 0 or 1."""
        second = "b" if self.first == "a" else "a"
        return (self.first, second) if order == 0 else (second, self.first)

    def question(self, order: int) -> tuple:
        """The arguments of a judge: prompt, first answer, second answer (or lists of answers)."""
        first, second = self.sides(order)
        return self.prompt, getattr(self, first), getattr(self, second)


@dataclass(frozen=True)
class Outcome:
    """A comparison and its result: "a" | "b" | "tie" | "failed" | "skipped" | "waiting"."""

    comparison: Comparison
    verdicts: list[Verdict]  # one for each order
    winner: str
    by_order: tuple[str, ...] = ()  # the result in each order, in the same words
    explanation: str = ""


def labelled_comparisons(rows: list[Labelled], first: list[str]) -> list[Comparison]:
    """Comparisons in which b is the chosen answer: of two answers, or of lists if a row has more.

    first: for each row the side that is shown first; of lists it is always b.
    """
    lists = any(len(row.chosen) + len(row.rejected) > 2 for row in rows)
    comparisons = []
    for row, side in zip(rows, first, strict=True):
        a, b = (x if lists else x[0] for x in (row.rejected, row.chosen))
        label = {"tied": row.tied, "subset": row.subset}
        comparisons.append(Comparison(row.prompt, a, b, "b" if lists else side, **label))
    return comparisons


def settle(comparison: Comparison, verdicts: list[Verdict]) -> Outcome:
    """The outcome from one verdict per order; a verdict that is not known yet is "waiting"."""
    if comparison.a == comparison.b:
        return Outcome(comparison, verdicts, "tie", explanation="the answers are identical")
    results, explanations = [], []
    for order, verdict in enumerate(verdicts):
        first, second = comparison.sides(order)
        results.append({"first": first, "second": second}.get(verdict.winner, verdict.winner))
        if verdict.explanation:
            explanations.append(f"{first} first: {verdict.explanation}")
    undecided = [word for word in ("waiting", "failed", "skipped") if word in results]
    winner = undecided[0] if undecided else results[0] if len(set(results)) == 1 else "tie"
    return Outcome(comparison, verdicts, winner, tuple(results), "\n".join(explanations))


def _each_row(path: Path, store) -> None:
    """Call store(**row) for each row of a .jsonl file; InputError for rows that do not fit."""
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            store(**row)
        except TypeError:
            wrong = f"{path} row {number} is damaged or of another judge.py version"
            raise InputError(f"{wrong}: start again with --overwrite") from None


def read_comparisons(path: Path) -> list[Comparison]:
    """The comparisons in answers.jsonl.  Raises InputError for rows with other keys."""
    comparisons: list[Comparison] = []
    _each_row(path, lambda **row: comparisons.append(Comparison(**row)))
    return comparisons


class VerdictLog:
    """The verdicts of a run in a .jsonl file, one per line; several threads may add.

    Each line is written at once, so a killed process loses no verdict.  A later line replaces an
    earlier one about the same question; a null verdict removes it.  Raises InputError for rows that
    are damaged or that another version wrote.
    """

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.Lock()
        self.verdicts: dict[tuple[int, int], Verdict] = {}  # by (comparison, order), oldest first
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        # remove an incomplete last line, or the next line would be joined to it
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        _each_row(path, self._store)

    def _store(self, comparison: int, order: int, verdict: dict | None) -> None:
        if type(comparison) is not int or order not in (0, 1):
            raise TypeError
        self.verdicts.pop((comparison, order), None)
        if verdict:
            self.verdicts[comparison, order] = Verdict(**verdict)

    def add(self, comparison: int, order: int, verdict: Verdict | None) -> None:
        """Write the verdict on a comparison (its index) in one order; None removes it."""
        row = {"comparison": comparison, "order": order, "verdict": verdict and asdict(verdict)}
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            self._store(**row)


def write_verdicts(path: Path, outcomes: list[Outcome], judge: str) -> None:
    """Write verdicts.csv: one row per comparison, every cell safe in a spreadsheet or a terminal.

    Control characters are shown as <U+001B>; answers.jsonl holds the exact texts.
    """
    with (
        disk.replaced(path) as draft,
        draft.open("w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS.split())
        for outcome in outcomes:
            c, by_order = outcome.comparison, [*outcome.by_order, "", ""][:2]
            answers = [x if isinstance(x, str) else "\n\n".join(x) for x in (c.a, c.b)]
            cells = [prompt_text(c.prompt), *answers, c.first, *by_order]
            cells += [outcome.winner, outcome.explanation, judge]
            table.writerow([re.sub(rf"\A{FORMULA}", "'", visible(cell)) for cell in cells])


def read_verdicts(path: Path) -> list[dict]:
    """The rows of verdicts.csv, without the apostrophes before formulas.  Raises InputError."""
    csv.field_size_limit(10**8)  # answers may be longer than the default of 128 KiB
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            header, *rows = list(csv.reader(file)) or [[]]
        except csv.Error as error:
            raise InputError(f"{path} is broken ({error}): repair or delete it") from error
    texts = [[re.sub(rf"\A'{FORMULA}", "", cell) for cell in row] for row in rows if row]
    return [dict(zip(header, row, strict=False)) for row in texts]
