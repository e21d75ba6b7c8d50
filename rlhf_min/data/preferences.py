"""Preference pairs and prompts: what the rows of any SPEC (`rows.py`) mean.

Rows hold `prompt, chosen, rejected` as text or as chat messages ({"role", "content"}), or the
prompt only as the common start of the two answers; ratings are optional.  Every row is checked;
whatever is wrong is an InputError that names file and row.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import astuple, dataclass
from itertools import takewhile

from rlhf_min import InputError
from rlhf_min.data.sources import Message, read_rows

Prompt = str | list[Message]

RATINGS = (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"))
TURN = "\n\nAssistant:"  # what an answer follows in the text dialogues of Anthropic/hh-rlhf


@dataclass(frozen=True)
class Pair:
    """One comparison of two answers; ratings on 1..10, None when the data has none."""

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_rating: float | None = None
    rejected_rating: float | None = None


def read_pairs(
    specs: list[str], rating_range: tuple[float, float] = (1.0, 10.0)
) -> tuple[list[Pair], dict[str, int]]:
    """All comparisons of the SPECs, and counts; ratings are mapped from `rating_range` to 1..10.

    Dropped: "identical" answers, "duplicate" (the whole row was seen before), "different_dialogues"
    (messages that part before the last turn).  Kept: "rated_against" (rejected rated higher).
    """
    low, high = rating_range
    if not -math.inf < low < high < math.inf:
        raise InputError(f"--rating-range needs a low and a higher number, got {low} and {high}")
    counts = {"identical": 0, "duplicate": 0, "different_dialogues": 0, "rated_against": 0}
    pairs, seen = [], set()
    for spec in specs:
        for number, row in enumerate(read_rows(spec), 1):
            parts = _parts(row, f"{spec} row {number}")
            ratings = _ratings(row, f"{spec} row {number}", low, high)
            key = fingerprint([row])
            if isinstance(parts, str) or key in seen:
                counts[parts if isinstance(parts, str) else "duplicate"] += 1
                continue
            seen.add(key)
            pairs.append(Pair(*parts, *ratings))
            counts["rated_against"] += ratings[0] is not None and ratings[0] < ratings[1]
    if not pairs:
        raise InputError(f"{' '.join(specs)}: no usable pair is left, dropped were {counts}")
    return pairs, counts


def read_prompts(specs: list[str]) -> list[Prompt]:
    """The prompts of the SPECs, each once, in their order.

    From `prompt`; else as `read_pairs` finds them; else `messages` up to the answer that ends them.
    """
    prompts = {}
    for spec in specs:
        for number, row in enumerate(read_rows(spec), 1):
            prompt = _prompt_only(row, f"{spec} row {number}")
            prompts.setdefault(json.dumps(prompt), prompt)
    prompts.pop("null", None)
    if not prompts:
        raise InputError(f"{' '.join(specs)}: no usable prompt was found")
    return list(prompts.values())


def _prompt_only(row: dict, where: str) -> Prompt | None:
    if "prompt" in row:
        return _content(row, "prompt", where)
    if "messages" not in row and "chosen" in row:
        parts = _parts(row, where)
        return None if isinstance(parts, str) else parts[0]
    turns = _content(row, "messages", where, wanted="prompt or messages")
    if isinstance(turns, str) or turns[0]["role"] == "assistant":
        raise InputError(f"{where}: messages must be chat messages that start with a prompt")
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def _parts(row: dict, where: str) -> tuple[Prompt, str, str] | str:
    """Prompt, chosen and rejected answer of a row, or the reason to drop it."""
    prompt = _content(row, "prompt", where) if "prompt" in row else None
    chosen, rejected = (_content(row, side, where) for side in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise InputError(f"{where}: one of chosen and rejected is text, the other chat messages")
    if chosen == rejected:
        return "identical"
    if isinstance(chosen, str):
        return (prompt, chosen, rejected) if prompt is not None else _seam(chosen, rejected, where)
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise InputError(f"{where}: chosen and rejected must each end with an assistant turn")
    before, other = chosen[:-1], rejected[:-1]
    if before and other and before != other:
        return "different_dialogues"
    parts = _fuller(prompt, before or other, where), chosen[-1]["content"], rejected[-1]["content"]
    return "identical" if parts[1] == parts[2] else parts


def _seam(chosen: str, rejected: str, where: str) -> tuple[str, str, str] | str:
    """A text prompt that both answers repeat: up to the last shared "Assistant:", else word."""
    chosen, rejected = chosen.strip(), rejected.strip()
    if chosen == rejected:
        return "identical"
    same = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
    start = "".join(letter for letter, _ in same)
    word = max((i + 1 for i, letter in enumerate(start) if letter.isspace()), default=0)
    cut = start.rfind(TURN) + len(TURN) if TURN in start else word
    parts = start[:cut].strip(), chosen[cut:].lstrip(), rejected[cut:].lstrip()
    if not all(parts):
        raise InputError(
            f"{where} has no prompt column, and its texts are not one shared prompt with an "
            "answer each: add a column named prompt"
        )
    return parts


def _fuller(prompt: Prompt | None, before: list[Message], where: str) -> Prompt:
    """The prompt column or the turns before the answers, whichever holds the other."""
    turns = [] if prompt is None else as_messages(prompt)
    column, dialogue = ([(t["role"], t["content"].strip()) for t in x] for x in (turns, before))
    if column and column[len(column) - len(dialogue) :] == dialogue:
        return prompt
    if not dialogue or not set(column) <= set(dialogue):
        raise InputError(f"{where}: no prompt, or another one than the turns before the answers")
    return before


def _content(row: dict, name: str, where: str, wanted: str = "") -> str | list[Message]:
    """A column's text, or its chat messages as role and content only; never empty."""
    if name not in row:
        found = ", ".join(map(str, row))
        raise InputError(f"{where} has no {wanted or name} column: its columns are {found}")
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
            raise InputError(f"{where}: {name} holds half a surrogate pair, which is no text")
    if not texts[-1].strip():
        raise InputError(f"{where}: {name} is empty: fill it or remove the row")
    return value


def _ratings(row: dict, where: str, low: float, high: float) -> list[float | None]:
    """Ratings of chosen and rejected on 1..10, or None twice."""
    for names in RATINGS:
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
    if not low <= number <= high or isinstance(value, bool):  # NaN lies in no range
        wrong = f"{what} must be a number from {low:g} to {high:g}, got {value!r:.40}"
        raise InputError(f"{wrong}: correct it, or name the data's scale with --rating-range")
    return number


def as_messages(prompt: Prompt) -> list[Message]:
    """Chat messages; a text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_text(prompt: Prompt) -> str:
    """One text for tables and judges: a single user turn as it is, else "role: content" lines."""
    turns = as_messages(prompt)
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def split_by_prompt(items: list, fraction: float, limit: int | None, seed: int) -> tuple:
    """Pairs or prompts → (train, held-out), order kept, no prompt on both sides (trap 15).

    Each prompt gets a hash of seed and text in [0, 1) and is held out below `fraction`, so it stays
    where it is when rows come or go; lowest first, at most `limit` items, at least one prompt each.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    texts = [prompt_text(item.prompt if isinstance(item, Pair) else item) for item in items]
    sizes = Counter(texts)
    if len(sizes) < 2:
        reason = "all rows of --data have the same prompt, so no split by prompt can hold one out"
        raise InputError(f"{reason}: name other data with --eval-data")
    hashes = {text: hashlib.sha256(f"{seed} {text}".encode()).hexdigest() for text in sizes}
    held_out, room = set(), len(items) if limit is None else limit
    for text in sorted(sizes, key=hashes.get)[:-1]:
        below = int(hashes[text], 16) / 16**64 < fraction
        if sizes[text] <= room and (below or not held_out):
            held_out.add(text)
            room -= sizes[text]
    if not held_out:
        reason = f"no prompt has at most {limit} rows, so none can be held out"
        raise InputError(f"{reason}: name other data with --eval-data")
    sides = [], []
    for item, text in zip(items, texts, strict=True):
        sides[text in held_out].append(item)
    return sides


def fingerprint(rows: list) -> str:
    """The first 16 hex digits of the sha256 of rows, pairs or prompts."""
    digest = hashlib.sha256()
    for row in rows:
        content = astuple(row) if isinstance(row, Pair) else row
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
