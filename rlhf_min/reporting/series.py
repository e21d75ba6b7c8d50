"""Reading a run's folder back: JSON objects, JSON lines, and a metric as a smoothed series."""

import math
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.data.files import read_json, read_jsonl

FILES = ("run.json", "metrics.jsonl", "summary.json", "verdicts.csv")  # one of them makes a run


def read_run(out: str | Path) -> dict:
    """What a run wrote: out, name, run, summary, and the rows of metrics, samples, held_out_scores.

    Raises InputError when `out` is no folder or holds no run; a file that is missing is empty.
    """
    out = Path(out)
    if not out.is_dir():
        raise InputError(f"{out} is no folder: give the --out folder of a run")
    if not any((out / name).is_file() for name in FILES):
        raise InputError(f"{out} holds no run (no {FILES[0]}): give the --out folder of a run")
    run = {"out": out, "name": out.resolve().name}
    run |= {name: read_json(out / f"{name}.json") for name in ("run", "summary")}
    rows = ("metrics", "samples", "held_out_scores")
    return run | {name: read_jsonl(out / f"{name}.jsonl") for name in rows}


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def series(rows: list[dict], *keys: str) -> list[list[float]]:
    """[steps, values of each key] over the rows where every key is finite; no step: 1, 2, …"""
    kept = [
        [row.get("step", number), *(float(row[key]) for key in keys)]
        for number, row in enumerate(rows, 1)
        if all(is_number(row.get(key)) for key in keys)
    ]
    return [list(column) for column in zip(*kept, strict=True)] or [
        [] for _ in range(len(keys) + 1)
    ]


def half_window(count: int) -> int:
    """Neighbours on each side that `smooth` looks at in a series of `count` values."""
    return min(15, count // 16)


def smooth(values: list[float]) -> list[float]:
    """Moving average; near the ends a line fitted to the window, so that a slope stays."""
    half, result = half_window(len(values)), []
    for i in range(len(values)):
        window = [
            (j - i, values[j]) for j in range(max(0, i - half), min(len(values), i + half + 1))
        ]
        mean_x, mean_y = (sum(column) / len(window) for column in zip(*window, strict=True))
        spread = sum((x - mean_x) ** 2 for x, _ in window) or 1.0
        slope = sum((x - mean_x) * (y - mean_y) for x, y in window) / spread
        result.append(mean_y - slope * mean_x)
    return result
