"""Claims judged by numbers: a verdict from the 95 % interval of paired differences over seeds."""

from experiments.lab import mean_interval, shown


def verdict(differences: list[float]) -> str:
    """ "holds" if the interval of their mean is above 0, "refuted" if below, else "open"."""
    if len(differences) < 2:
        return "too few seeds"
    _, low, high = mean_interval(differences)
    return "holds" if low > 0 else "refuted" if high < 0 else "open: the interval holds 0"


def claim(text: str, differences: list[float], digits: int = 2) -> list[str]:
    """A row of a table "claim | holds? | numbers": differences, one per seed, > 0 as claimed."""
    return [text, verdict(differences), f"{shown(differences, digits)}, n = {len(differences)}"]


def paired(first: dict, second: dict) -> list[float]:
    """first − second for the seeds that both have: {seed: number} → differences."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
