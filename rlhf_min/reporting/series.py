"""The files of a run, its metrics as series, raw or smoothed, and their titles and units."""

import math
from pathlib import Path
from statistics import linear_regression

from rlhf_min import InputError
from rlhf_min.data.files import read_json, read_jsonl

FEW = 5  # an interval from fewer prompts or pairs means nothing
METRICS = {  # key in metrics.jsonl → (title, unit)
    "reward/mean": ("Learned reward", "raw score"),
    "reward/gold": ("Gold rating", "1 to 10"),
    "kl/mean": ("KL to the reference model", "nats per answer"),
    "length/mean": ("Answer length", "tokens"),
    "finished/rate": ("Finished answers", "share of answers"),
    "text/distinct_2": ("Variety of bigrams", "share unique"),
    "text/longest_run": ("Repetition", "copies in a row"),
    "loss/held_out": ("Held-out loss", "nats per pair"),
    "accuracy/held_out": ("Held-out accuracy", "share of pairs ranked right"),
}


def read_run(out: str | Path) -> dict:
    """A run's files ({} or [] if missing), path, name; InputError when `out` is no run's folder."""
    out = Path(out)
    names = ("run.json", "metrics.jsonl", "summary.json", "verdicts.csv")
    if not any((out / name).is_file() for name in names):
        raise InputError(f"{out} holds no run (no run.json): give the --out folder of a run")
    run = {name: read_json(out / f"{name}.json") for name in ("run", "summary")}
    for name in ("metrics", "samples", "held_out_scores"):
        run[name] = read_jsonl(out / f"{name}.jsonl")
    return run | {"out": out, "name": out.resolve().name}


def key_and_unit(key: str) -> str:
    return f"{key} ({METRICS[key][1]})" if key in METRICS else key


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def finite_values(row: dict, *keys: str) -> list[float]:
    """The values of `keys` in one row; [] when one of them is missing or not a finite number."""
    values = [row.get(key) for key in keys]
    return [float(value) for value in values] if all(map(is_number, values)) else []


def too_few(summary: dict) -> str:
    """What to say of intervals from fewer than FEW prompts or pairs; "" if there are enough.

    summary: of a reward model or judge, or held-out metrics of a policy; no count is enough.
    """
    for keys in (("prompts",), ("wins", "losses", "ties"), ("pairs/held_out",)):
        if counts := finite_values(summary, *keys):
            few = sum(counts) < FEW
            return (
                f"only {sum(counts):.0f} prompts or pairs: too few for a conclusion" if few else ""
            )
    return ""


def series(rows: list[dict], *keys: str) -> list[list[float]]:
    """[steps, values of each key], from the rows where all keys are finite; no step: 1, 2, …"""
    columns = [[] for _ in range(len(keys) + 1)]
    for position, row in enumerate(rows, 1):
        if values := finite_values(row, *keys):
            for column, value in zip(columns, [row.get("step", position), *values], strict=True):
                column.append(value)
    return columns


def half_window(count: int) -> int:
    """How many neighbours on each side `smooth` uses in a series of `count` values."""
    return min(15, count // 16)


def smooth(values: list[float]) -> list[float]:
    """Moving average, read from a line fitted to each window so that the ends keep their slope."""
    half = half_window(len(values))
    if half == 0:
        return list(values)
    smoothed = []
    for i in range(len(values)):
        offsets = range(max(-half, -i), min(half + 1, len(values) - i))
        smoothed.append(linear_regression(offsets, [values[i + o] for o in offsets]).intercept)
    return smoothed
