"""Preference pairs and prompts of SPECs (sources.py), held out or not; pairs as token ids.

A row has `prompt`, `chosen` and `rejected`, each text or chat messages; ratings are optional.
"""

import hashlib
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass

from rlhf_min import InputError
from rlhf_min.data.sources import Prompt, as_messages, pair_of, prompt_of, ratings_of, read_rows
from rlhf_min.models.tokens import encode_answer, encode_prompt


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers, one preferred; ratings on the scale 1..10, None if not rated."""

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_rating: float | None = None
    rejected_rating: float | None = None


@dataclass(frozen=True)
class EncodedPair:
    """A preference pair and its token ids."""

    prompt: list[int]
    answers: list[list[int]]  # chosen, rejected
    ratings: tuple[float, float]  # of chosen and rejected, on 1..10; NaN when unknown
    pair: Pair


def read_pairs(specs: list[str], rating_range=(1.0, 10.0)) -> tuple[list[Pair], dict[str, int]]:
    """All pairs of the SPECs, ratings mapped linearly from `rating_range` to 1..10; and counts.

    Dropped: "identical" (equal answers), "duplicate" (a row read before), "different_dialogues"
    (other turns before each answer).  Only counted: "rated_against" (rejected is rated higher).
    """
    low, high = rating_range
    if not -math.inf < low < high < math.inf:
        raise InputError(f"--rating-range needs a low and a higher number, got {low} and {high}")
    counts = {"identical": 0, "duplicate": 0, "different_dialogues": 0, "rated_against": 0}
    pairs, seen = [], set()
    for spec in specs:
        for number, row in enumerate(read_rows(spec), 1):
            parts = pair_of(row, f"{spec} row {number}")
            ratings = ratings_of(row, f"{spec} row {number}", low, high)
            key = fingerprint([row])
            if key in seen or isinstance(parts, str):
                counts["duplicate" if key in seen else parts] += 1
                continue
            seen.add(key)
            pairs.append(Pair(*parts, *ratings))
            counts["rated_against"] += ratings[0] is not None and ratings[0] < ratings[1]
    if not pairs:
        raise InputError(f"{' '.join(specs)}: no usable pair is left, dropped were {counts}")
    return pairs, counts


def read_prompts(specs: list[str]) -> list[Prompt]:
    """The prompts of the SPECs in order, each once: of `prompt`, of a pair, or of `messages`."""
    prompts = {}
    for spec in specs:
        for number, row in enumerate(read_rows(spec), 1):
            prompt = prompt_of(row, f"{spec} row {number}")
            if prompt is not None:
                prompts.setdefault(json.dumps(prompt), prompt)
    if not prompts:
        raise InputError(f"{' '.join(specs)}: no usable prompt was found")
    return list(prompts.values())


def prompt_text(prompt: Prompt | Pair) -> str:
    """A prompt as one text: the content of a single user turn, else lines of "role: content"."""
    turns = as_messages(prompt.prompt if isinstance(prompt, Pair) else prompt)
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def hold_out(items: list, read, config, fraction: float, limit: int) -> tuple[list, list, dict]:
    """(training, held-out, counts) of pairs or prompts; no prompt is in both lists (trap 15).

    config: settings with data, eval_data and seed.  Held out are the first `limit` items of
    `read(eval_data)`, or, if it is empty and `data` has the zoo, of zoo:held-out; `items` with one
    of their prompts are dropped and counted.  Otherwise `items` are split by prompt.
    """
    if not config.eval_data and "zoo" not in config.data:
        return *split_by_prompt(items, fraction, limit, config.seed), {}
    held_out = read(config.eval_data or ["zoo:held-out"])[:limit]
    prompts = set(map(prompt_text, held_out))
    train = [item for item in items if prompt_text(item) not in prompts]
    if not train:
        raise InputError("no training data left: every prompt is held out, give other --eval-data")
    return train, held_out, {"prompt is held out": len(items) - len(train)}


def split_by_prompt(items: list, fraction: float, limit: int | None, seed: int) -> tuple:
    """Split pairs or prompts into (training, held-out), in order; no prompt is in both lists.

    Seed and prompt are hashed to a number in [0, 1), so a prompt stays on its side when others are
    added or removed.  Prompts below `fraction` are held out, lowest first, as long as they have at
    most `limit` items together; each list gets at least one prompt.
    """
    if not 0 < fraction < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
    sizes = Counter(map(prompt_text, items))
    hashes = {text: hashlib.sha256(f"{seed} {text}".encode()).hexdigest() for text in sizes}
    held_out, free = set(), len(items) if limit is None else limit
    for text in sorted(sizes, key=hashes.get)[:-1]:
        below = int(hashes[text], 16) / 16**64 < fraction
        if sizes[text] <= free and (below or not held_out):
            held_out.add(text)
            free -= sizes[text]
    if not held_out:
        several = f"no prompt has at most {limit} rows"
        reason = several if len(sizes) > 1 else "all rows of --data have the same prompt"
        raise InputError(f"{reason}, so none can be held out: name other data with --eval-data")
    train = [item for item in items if prompt_text(item) not in held_out]
    return train, [item for item in items if prompt_text(item) in held_out]


def encode_pairs(tokenizer, pairs: list[Pair], max_length: int, source: str, limit="--max-length"):
    """Pairs as token ids, and how many were dropped or cut, by reason.

    A prompt is cut on the left until prompt and longer answer fit in max_length tokens; a pair
    whose answer does not fit is dropped.  InputError if no pair is left.  source, limit: names of
    the data and of max_length, for messages.
    """
    encoded, dropped = [], Counter()
    for pair in pairs:
        answers = [encode_answer(tokenizer, pair.prompt, a) for a in (pair.chosen, pair.rejected)]
        room = max_length - max(map(len, answers))
        if room < 1:
            dropped[f"answer longer than {limit}"] += 1
        elif answers[0] == answers[1]:
            dropped["answers are the same tokens"] += 1
        else:
            prompt, whole = (encode_prompt(tokenizer, pair.prompt, n) for n in (room, sys.maxsize))
            dropped["prompt cut from the left (kept)"] += len(prompt) < len(whole)
            ratings = (pair.chosen_rating, pair.rejected_rating)
            known = tuple(math.nan if rating is None else rating for rating in ratings)
            encoded.append(EncodedPair(prompt, answers, known, pair))
    if not encoded:
        advice = f"raise {limit}" if "--" in limit else "take a model with a longer context"
        problem = f"no pair of {source} fits {limit} of {max_length} tokens"
        raise InputError(f"{problem}: {advice}, or give shorter answers")
    return encoded, dict(dropped)


def fingerprint(items: list) -> str:
    """The first 16 hex digits of the sha256 of rows, pairs or prompts."""
    lines = [json.dumps(item, sort_keys=True, default=str) + "\n" for item in items]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
