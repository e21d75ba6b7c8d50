"""The formats of a row of preference data: its prompt, answers and ratings.

`where` names the row in error messages.  A row that cannot be used raises InputError.
"""

import math
import re
from itertools import takewhile

from rlhf_min import InputError
from rlhf_min.data.sources import Message

Prompt = str | list[Message]

RATING_COLUMNS = (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"))
# As far as the last "Assistant:" (the text dialogues of Anthropic/hh-rlhf), else the last space.
SHARED_PROMPT = re.compile(r"(?s).*\n\nAssistant:|.*\s|")


def as_messages(prompt: Prompt) -> list[Message]:
    """The prompt as chat messages; a text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def parse_prompt(row: dict, where: str) -> Prompt | None:
    """The prompt of a row; None if `parse_pair` drops the row."""
    if "prompt" in row:
        return _content(row, "prompt", where)
    if "messages" not in row and "chosen" in row:
        parts = parse_pair(row, where)
        return None if isinstance(parts, str) else parts[0]
    turns = _content(row, "messages", where, wanted="prompt or messages")
    if isinstance(turns, str) or turns[0]["role"] == "assistant":
        raise InputError(f"{where}: messages must be chat messages that start with a prompt")
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def parse_pair(row: dict, where: str) -> tuple[Prompt, str, str] | str:
    """(prompt, chosen, rejected) of a row; "identical" or "different_dialogues" if it is dropped.

    Without a `prompt` column the prompt is the beginning that both answers share.
    """
    prompt = _content(row, "prompt", where) if "prompt" in row else None
    chosen, rejected = (_content(row, side, where) for side in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise InputError(f"{where}: one of chosen and rejected is text, the other chat messages")
    if chosen == rejected:
        return "identical"
    if isinstance(chosen, str):
        return (prompt, chosen, rejected) if prompt else _split_texts(chosen, rejected, where)
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise InputError(f"{where}: chosen and rejected must each end with an assistant turn")
    before, other = chosen[:-1], rejected[:-1]
    if before and other and before != other:
        return "different_dialogues"
    prompt = _whole_prompt(prompt, before or other, where)
    answers = chosen[-1]["content"], rejected[-1]["content"]
    return "identical" if answers[0] == answers[1] else (prompt, *answers)


def _split_texts(chosen: str, rejected: str, where: str) -> tuple[str, str, str] | str:
    """(prompt, chosen, rejected) of two texts that begin with the same prompt; or "identical"."""
    chosen, rejected = chosen.strip(), rejected.strip()
    if chosen == rejected:
        return "identical"
    equal = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
    end = SHARED_PROMPT.match("".join(letter for letter, _ in equal)).end()
    parts = chosen[:end].strip(), chosen[end:].lstrip(), rejected[end:].lstrip()
    if not all(parts):
        raise InputError(
            f"{where} has no prompt column, and its texts are not one shared prompt with an "
            "answer each: add a column named prompt"
        )
    return parts


def _whole_prompt(prompt: Prompt | None, before: list[Message], where: str) -> Prompt:
    """The prompt column or the messages before the answers: the one that contains the other."""
    turns = [] if prompt is None else as_messages(prompt)
    column, dialogue = ([(t["role"], t["content"].strip()) for t in x] for x in (turns, before))
    if column and column[len(column) - len(dialogue) :] == dialogue:
        return prompt
    if not dialogue or not set(column) <= set(dialogue):
        raise InputError(f"{where}: no prompt, or another one than the turns before the answers")
    return before


def _content(row: dict, name: str, where: str, wanted: str = "") -> str | list[Message]:
    """The text or the chat messages (role and content only) in a column; never empty."""
    if name not in row:
        columns = ", ".join(map(str, row))
        raise InputError(f"{where} has no {wanted or name} column: its columns are {columns}")
    value = row[name] or ""
    if isinstance(value, list):
        try:
            value = [{"role": turn["role"], "content": turn["content"]} for turn in value]
        except (TypeError, KeyError):
            raise InputError(f"{where}: {name} holds a message without role and content") from None
    texts = [t for turn in value for t in turn.values()] if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{where}: {name} must be text or chat messages, got {text!r:.40}")
        if text.encode(errors="ignore").decode() != text:
            raise InputError(f"{where}: {name} holds half a surrogate pair, which is not text")
    if not texts[-1].strip():
        raise InputError(f"{where}: {name} is empty: fill it or remove the row")
    return value


def parse_ratings(row: dict, where: str, low: float, high: float) -> list[float | None]:
    """[chosen, rejected] ratings, mapped from low..high to 1..10; [None, None] if not rated."""
    for names in RATING_COLUMNS:
        given = {name: row[name] for name in names if row.get(name) not in (None, "")}
        if len(given) == 1:
            raise InputError(f"{where} has a {next(iter(given))} only: rate both answers or none")
        if given:
            numbers = [_rating(given[name], f"{where}: {name}", low, high) for name in names]
            return [1 + 9 * (number - low) / (high - low) for number in numbers]
    return [None, None]


def _rating(value, what: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or isinstance(value, bool):  # always true for NaN
        wrong = f"{what} must be a number from {low:g} to {high:g}, got {value!r:.40}"
        raise InputError(f"{wrong}: correct it, or give the data's scale with --rating-range")
    return number
