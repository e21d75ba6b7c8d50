"""Rows with known winners, which test a judge: pairs, tied votes, lists of answers; by subset."""

from collections import Counter
from dataclasses import dataclass

from rlhf_min import InputError
from rlhf_min.data.bad_rows import listed, parse_rows
from rlhf_min.data.preferences import fingerprint
from rlhf_min.data.rows import Prompt, labelled_of


@dataclass(frozen=True)
class Labelled:
    """A prompt with answers that are known to be better (chosen) and worse (rejected)."""

    prompt: Prompt
    chosen: list[str]
    rejected: list[str]
    tied: bool = False  # the label says that chosen and rejected are equally good
    subset: str | None = None


def read_labelled(spec: str, skip_bad_rows=False) -> tuple[list[Labelled], dict[str, int]]:
    """The rows of a SPEC, in order, and counts of the dropped ones by reason as in `read_pairs`.

    Chosen and rejected may be lists of answers; ratings are not read, and tied votes are kept.
    """

    def parse(row: dict) -> tuple:
        # JudgeBench calls its subsets sources
        subset = row.get("source" if "response_A" in row else "subset")
        return labelled_of(row), None if subset is None else str(subset), fingerprint([row])

    counts = Counter(dict.fromkeys(["identical", "duplicate", "different_dialogues"], 0))
    rows, seen = [], set()
    for parts, subset, key in parse_rows(spec, parse, skip_bad_rows, counts):
        if key in seen or isinstance(parts, str):
            counts["duplicate" if key in seen else parts] += 1
            continue
        seen.add(key)
        rows.append(Labelled(*parts, subset))
    if not rows:
        raise InputError(f"{spec}: no usable pair is left, {listed(counts)}")
    return rows, dict(counts)
