"""Reads preference pairs and prompts, splits off held-out ones, encodes pairs as token ids.

A row has `prompt`, `chosen` and `rejected`, each text or chat messages; ratings are optional.
"""

import hashlib
import json
import math
import random
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial

from rlhf_min import InputError
from rlhf_min.data.bad_rows import REPEATED, listed, parse_rows, report_dropped
from rlhf_min.data.rows import Prompt, as_messages, pair_of, prompt_of, ratings_of
from rlhf_min.models.tokens import encode_answers, encode_prompt


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
    "duplicate" (a row read before), "different_dialogues" (other turns before each answer),
    "tied_vote" (a vote that finds both answers equally good).
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


def prompt_key(prompt: Prompt | Pair) -> str:
    """The text by which prompts are the same: white space around it does not count."""
    return prompt_text(prompt).strip()


def split_prompts(config) -> tuple[list[Prompt], list[Prompt], dict]:
    """Training prompts, held-out prompts, and facts for run.json; prints what was dropped.

    config: settings of train_policy.py.
    """
    read = partial(read_prompts, skip_bad_rows=config.skip_bad_rows)
    prompts, dropped = read(config.data)
    prompts, held_out, others, held = hold_out(prompts, read, config, 0.1, config.eval_prompts)
    report_dropped(dropped | others, len(prompts), "training prompts")
    report_dropped(held, len(held_out), "held-out prompts")
    check_batch_size(config.batch_size, config.samples, len(prompts))
    counts = {"prompts/train": len(prompts), "prompts/held_out": len(held_out)}
    counts |= {"dropped": dropped | others, "dropped/held_out": held}
    return prompts, held_out, {"fingerprint": fingerprint([prompts, held_out]), **counts}


def check_batch_size(batch_size: int, samples: int, prompts: int) -> None:
    """Raise InputError when a step needs more prompts than there are."""
    wanted = batch_size // samples
    if wanted > prompts:
        needs = f"--batch-size {batch_size} with --samples {samples} needs {wanted} prompts a step"
        raise InputError(f"{needs}, but --data leaves {prompts}: take {prompts * samples} or lower")


def draw_items(items: list, count: int, specs: list[str]) -> list:
    """At most `count` items: the first ones of a single SPEC, a fixed random draw of several."""
    if len(specs) == 1 or len(items) <= count:
        return items[:count]
    return random.Random(0).sample(items, count)


def hold_out(items: list, read, config, fraction: float, limit: int) -> tuple:
    """(training, held-out, counts of each) of pairs or prompts; no prompt is in both (trap 15).

    config: settings with data and eval_data; read(specs): items and counts.  Held out are `limit`
    items (`draw_items`) of eval_data, or without it of zoo:held-out if `data` has the zoo; `items`
    with a prompt of that data are dropped and counted.  Otherwise `items` are split by prompt.
    """
    with_zoo = any(spec.partition(":")[0] == "zoo" for spec in config.data)
    if not config.eval_data and not with_zoo:
        train, held_out = split_by_prompt(items, fraction)
        return train, draw_items(held_out, limit, config.data), {}, {}
    specs = config.eval_data or ["zoo:held-out"]
    all_held_out, counts = read(specs)
    prompts = set(map(prompt_key, all_held_out))  # also those beyond `limit`
    train = [item for item in items if prompt_key(item) not in prompts]
    if not train:
        raise InputError("no training data left: every prompt is held out, give other --eval-data")
    dropped = {"prompt is held out": len(items) - len(train)}
    dropped_held_out = {reason: count for reason, count in counts.items() if count}
    return train, draw_items(all_held_out, limit, specs), dropped, dropped_held_out


def split_by_prompt(items: list, fraction: float) -> tuple[list, list]:
    """Split pairs or prompts into (training, held-out), in order; no prompt is in both lists.

    A prompt is hashed to a number in [0, 1); below `fraction` it is held out.  So it is on the same
    side in every run, for pairs and prompts, and when others are added or removed.  Each list gets
    at least one prompt.
    """
    hashes = {key: hashlib.sha256(key.encode()).hexdigest() for key in map(prompt_key, items)}
    by_hash = sorted(hashes, key=hashes.get)
    if len(by_hash) < 2:
        raise InputError(
            "all rows of --data have the same prompt, so none can be held out: "
            "name other data with --eval-data"
        )
    held_out = {key for key in by_hash if int(hashes[key], 16) / 16**64 < fraction}
    held_out = (held_out | {by_hash[0]}) - {by_hash[-1]}
    train = [item for item in items if prompt_key(item) not in held_out]
    return train, [item for item in items if prompt_key(item) in held_out]


def encode_pairs(tokenizer, pairs: list[Pair], max_length: int, source: str, limit="--max-length"):
    """Pairs as token ids, and how many were dropped or cut, by reason.

    A prompt is cut on the left until prompt and longer answer fit in max_length tokens; a pair
    whose answer does not fit is dropped.  InputError if no pair is left.  source, limit: names of
    the data and of max_length, for messages.
    """
    encoded, dropped = [], Counter()
    prompts = [pair.prompt for pair in pairs]
    sides = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    ids = [encode_answers(tokenizer, prompts, texts) for texts in sides]
    for pair, *answers in zip(pairs, *ids, strict=True):
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
