"""Results by variant and seed, and verdicts on claims, computed from paired values of seeds."""

from experiments.lab import mean_interval, shown

HEADER = ["claim", "holds?", "numbers"]  # of a claim table
REFUTED = "**refuted**"  # bold in the pages


def verdict(values: list[float], bound: float = 0.0) -> str:
    """Is the mean of `values` above `bound`?  "yes", "**refuted**" or "open".

    "open": the 95 % interval over the seeds holds the bound.  One value alone is "open" too, and
    none is "–".
    """
    if not values:
        return "–"
    if len(values) < 2:
        return "open (1 seed)"
    _, low, high = mean_interval(values)
    return "yes" if low > bound else REFUTED if high < bound else "open"


def claim_row(text: str, values: list[float], what: str, digits: int = 3, bound=0.0) -> list[str]:
    """A row of a claim table: claim, verdict on "mean of values > bound", the numbers.

    what: the values in words, such as "strict minus half".
    """
    return [text, verdict(values, bound), f"{what}: {shown(values, digits)}"]


def by_variant(rows: list[dict]) -> dict[str, dict[int, dict]]:
    """Results by variant and seed, in the order of the rows; the truth has no seed: 0."""
    found: dict[str, dict[int, dict]] = {}
    for row in rows:
        own = found.setdefault(row["settings"]["variant"], {})
        own[row["settings"].get("seed", 0)] = row["result"]
    return found


def values(results: dict[int, dict], name: str) -> list[float]:
    """A measure of a variant, one number per seed, in order of the seeds; None left out."""
    found = [results[seed].get(name) for seed in sorted(results)]
    return [value for value in found if value is not None]


def paired(first: dict, second: dict, name: str | None = None, ratio=False) -> list[float]:
    """First minus second (or the ratio), one per seed that both have.

    first, second: numbers by seed; with `name`, results by seed, of which this measure is taken.
    """
    both = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    if name is not None:
        both = [(a.get(name), b.get(name)) for a, b in both]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    return [a / b if ratio else a - b for a, b in known]


def pairs_of(results: dict[int, dict], first: str, second: str) -> list[tuple[float, float]]:
    """Two measures of a variant, by seed, where both are known."""
    both = [(results[seed].get(first), results[seed].get(second)) for seed in sorted(results)]
    return [(a, b) for a, b in both if a is not None and b is not None]


def plain(found: list[float], digits: int) -> str:
    """`shown`, without "(1 seed)": the number of seeds has its own column."""
    return shown(found, digits).removesuffix(" (1 seed)")
