"""Preference pairs as token ids."""

import math
import sys
from collections import Counter
from dataclasses import dataclass

from rlhf_min import InputError
from rlhf_min.data.preferences import Pair
from rlhf_min.models.tokens import encode_answer, encode_prompt


@dataclass(frozen=True)
class EncodedPair:
    """A preference pair and its token ids."""

    prompt: list[int]
    answers: list[list[int]]  # chosen, rejected
    ratings: tuple[float, float]  # of chosen and rejected, on 1..10; NaN when unknown
    pair: Pair


def encode_pairs(tokenizer, pairs: list[Pair], max_length: int, source: str):
    """Pairs as token ids, and how many were dropped or cut, by reason.

    A prompt is cut on the left until prompt and longer answer fit in max_length tokens; a pair
    whose answer does not fit is dropped.  InputError, which names `source`, if no pair is left.
    """
    encoded, dropped = [], Counter()
    for pair in pairs:
        answers = [encode_answer(tokenizer, pair.prompt, a) for a in (pair.chosen, pair.rejected)]
        room = max_length - max(map(len, answers))
        if room < 1:
            dropped["answer longer than --max-length"] += 1
        elif answers[0] == answers[1]:
            dropped["answers are the same tokens"] += 1
        else:
            prompt, whole = (encode_prompt(tokenizer, pair.prompt, n) for n in (room, sys.maxsize))
            dropped["prompt cut from the left (kept)"] += len(prompt) < len(whole)
            ratings = (pair.chosen_rating, pair.rejected_rating)
            known = tuple(math.nan if rating is None else rating for rating in ratings)
            encoded.append(EncodedPair(prompt, answers, known, pair))
    if not encoded:
        problem = f"no pair of {source} fits {max_length} tokens"
        raise InputError(f"{problem}: raise --max-length or take a model with a longer context")
    return encoded, dict(dropped)
