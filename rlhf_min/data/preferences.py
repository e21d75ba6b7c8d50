"""Preference pairs and prompts of SPECs (sources.py), held out or not; pairs as token ids.

A row has `prompt`, `chosen` and `rejected`, each text or chat messages; ratings are optional.
"""

import hashlib
import json
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass

from rlhf_min import InputError
from rlhf_min.data.bad_rows import REPEATED, listed, parse_rows
from rlhf_min.data.rows import Prompt, as_messages, pair_of, prompt_of, ratings_of
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


def read_pairs(
    specs: list[str], rating_range=(1.0, 10.0), skip_bad_rows=False, limit: int = 0, seed: int = 0
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs of the SPECs, ratings mapped linearly from `rating_range` to 1..10; and counts.

    rating_range None: ratings are not read.  limit: pairs drawn by seed from each SPEC (0: all).
    Dropped: "bad_rows" (with skip_bad_rows, else InputError), "identical" (equal answers),
    "duplicate" (a row read before), "different_dialogues" (other turns before each answer).
    Only counted: "equal_ratings" and "rated_against" (rejected is rated higher): the columns chosen
    and rejected decide who wins, whatever the ratings.
    """
    low, high = rating_range or (1.0, 10.0)
    if not -math.inf < low < high < math.inf:
        raise InputError(f"--rating-range needs a low and a higher number, got {low} and {high}")

    def parse(row: dict) -> tuple:
        ratings = ratings_of(row, low, high) if rating_range else [None, None]
        return pair_of(row), ratings, fingerprint([row])

    reasons = ["identical", "duplicate", "different_dialogues", "rated_against"]
    counts = Counter(dict.fromkeys(reasons, 0))
    pairs, seen = [], set()
    for spec in specs:
        own = []
        for parts, ratings, key in parse_rows(spec, parse, skip_bad_rows, counts):
            if key in seen or isinstance(parts, str):
                counts["duplicate" if key in seen else parts] += 1
                continue
            seen.add(key)
            own.append(Pair(*parts, *ratings))
            if ratings[0] is not None and ratings[0] <= ratings[1]:
                counts["rated_against" if ratings[0] < ratings[1] else "equal_ratings"] += 1
        drawn = random.Random(seed).sample(own, min(limit, len(own))) if limit else own
        pairs += drawn
    if not pairs:
        raise InputError(f"{' '.join(specs)}: no usable pair is left, {listed(counts)}")
    return pairs, dict(counts)


def read_prompts(specs: list[str], skip_bad_rows=False) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of the SPECs in order: of `prompt`, of a pair, or of `messages`; and counts.

    Dropped: "bad_rows" (with skip_bad_rows, else InputError), "no_shared_prompt" (of pairs without
    a prompt column, with equal answers or other dialogues).  Each prompt is used once.
    """
    prompts, counts = {}, Counter()
    for spec in specs:
        for prompt in parse_rows(spec, prompt_of, skip_bad_rows, counts):
            key = json.dumps(prompt)
            if prompt is None or key in prompts:
                counts["no_shared_prompt" if prompt is None else REPEATED] += 1
            else:
                prompts[key] = prompt
    if not prompts:
        raise InputError(f"{' '.join(specs)}: no usable prompt is left, {listed(counts)}")
    return list(prompts.values()), dict(counts)


def prompt_text(prompt: Prompt | Pair) -> str:
    """A prompt as one text: the content of a single user turn, else lines of "role: content"."""
    turns = as_messages(prompt.prompt if isinstance(prompt, Pair) else prompt)
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def hold_out(items: list, read, config, fraction: float, limit: int) -> tuple:
    """(training, held-out, counts of each) of pairs or prompts; no prompt is in both (trap 15).

    config: settings with data, eval_data and seed; read(specs): items and counts.  Held out are the
    first `limit` items of eval_data, and `items` with one of their prompts are dropped and counted.
    Without eval_data, but with zoo data, the same holds for zoo:held-out, all of whose questions
    are held out.  Otherwise `items` are split by prompt.
    """
    with_zoo = any(spec.partition(":")[0] == "zoo" for spec in config.data)
    if not config.eval_data and not with_zoo:
        return *split_by_prompt(items, fraction, limit, config.seed), {}, {}
    held_out, counts = read(config.eval_data or ["zoo:held-out"])
    prompts = set(map(prompt_text, held_out[:limit] if config.eval_data else held_out))
    train = [item for item in items if prompt_text(item) not in prompts]
    if not train:
        raise InputError("no training data left: every prompt is held out, give other --eval-data")
    dropped = {"prompt is held out": len(items) - len(train)}
    dropped_held_out = {reason: count for reason, count in counts.items() if count}
    return train, held_out[:limit], dropped, dropped_held_out


def split_by_prompt(items: list, fraction: float, limit: int | None, seed: int) -> tuple:
    """Split pairs or prompts into (training, held-out), in order; no prompt is in both lists.

    Seed and prompt are hashed to a number in [0, 1), so a prompt stays on its side when others are
    added or removed.  Prompts below `fraction` are held out, lowest first, as long as they have at
    most `limit` items together; each list gets at least one prompt.
    """
    if not 0 < fraction < 1:
        raise InputError(f"--eval-fraction must lie between 0 and 1, got {fraction}")
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
        longer = "a higher --max-length" if "--" in limit else "a model with a longer context"
        raise InputError(f"no pair of {source} fits {limit}: give shorter answers, or {longer}")
    return encoded, dict(dropped)


def fingerprint(items: list) -> str:
    """The first 16 hex digits of the sha256 of rows, pairs or prompts."""
    lines = [json.dumps(item, sort_keys=True, default=str) + "\n" for item in items]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
