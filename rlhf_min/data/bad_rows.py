"""Bad and dropped rows: all of a file's bad rows in one message; what is dropped is counted."""

from collections import Counter
from collections.abc import Callable

from rlhf_min import InputError
from rlhf_min.data.sources import read_rows

REPEATED = "prompt repeated (used once)"
# Reasons that are counted although nothing is lost.
NOTED = ("equal_ratings", "rated_against", "prompt cut from the left (kept)", REPEATED)
SHOWN = 3  # bad rows that a message describes
FEW = 30  # pairs or prompts; with fewer, the scripts warn


def parse_rows(spec: str, parse: Callable, skip_bad_rows: bool, counts: Counter) -> list:
    """parse(columns) of every good row of a SPEC; bad rows are listed in one InputError.

    skip_bad_rows: print that list instead, and add their number to `counts`.
    """
    rows, parsed, bad = read_rows(spec), [], []
    for row in rows:
        try:
            if row.problem:
                raise InputError(row.problem)
            parsed.append(parse(row.columns))
        except InputError as error:
            bad.append((row.place, str(error)))
        except RecursionError:
            bad.append((row.place, "is nested too deeply"))
    if not bad:
        return parsed
    (place, reason), *others = bad[:SHOWN]
    text = f"{spec} {place}: {reason}"
    for place, other in others:
        text += f"; {place}: {'the same' if other == reason else other[:80]}"
    text += f"{'; …' if len(bad) > SHOWN else ''} (bad rows: {len(bad)} of {len(rows)})"
    if not parsed:
        raise InputError(f"{text}: no row can be used, so correct the file")
    if not skip_bad_rows:
        raise InputError(f"{text}: correct or remove them, or drop them with --skip-bad-rows")
    print(f"skipped: {text}")
    counts["bad_rows"] += len(bad)
    return parsed


def listed(counts: dict[str, int]) -> str:
    """The counts as text: "dropped were 3 identical, 2 duplicate"; zeros are left out."""
    texts = [f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count]
    return f"dropped were {', '.join(texts) or 'none'}"


def report_dropped(counts: dict[str, int], left: int, what: str) -> None:
    """Print the counts by reason, and warn when few are left.  what: such as "training pairs"."""
    for reason, count in counts.items():
        if count and reason != REPEATED:  # of pairs, a prompt usually comes more than once
            fate = "noted" if reason in NOTED else "dropped"
            print(f"{count} {what} {fate}: {reason.replace('_', ' ')}")
    if left < FEW:
        print(f"warning: only {left} {what} are left: results from so few are uncertain")
