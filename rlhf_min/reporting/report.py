"""The report page of a run, OUT/report.html, or a comparison of several runs.

    python -m rlhf_min.reporting.report RUN        # draws the plots of RUN, writes RUN/report.html
    python -m rlhf_min.reporting.report RUN RUN …  # writes comparison.html beside the first run

The page needs no other file and no network, and all text on it is escaped.
"""

import argparse
import base64
import json
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from rlhf_min import InputError
from rlhf_min.data.visible import visible
from rlhf_min.hardware import disk
from rlhf_min.judging.comparisons import read_verdicts
from rlhf_min.reporting.diagnosis import diagnose
from rlhf_min.reporting.plots import overlay_plots, save_plots
from rlhf_min.reporting.series import (
    METRICS,
    finite_values,
    is_number,
    key_and_unit,
    read_run,
    too_few,
)

MAX_CHARACTERS = 4000  # of one text on the page; the run's other files hold all of it


def safe_text(value: object) -> Markup:
    """A value as escaped text: invisible characters as U+…, at most MAX_CHARACTERS."""
    if isinstance(value, Markup):
        return value
    text, mark = format_value(value), "<b class=mark>{}</b>"
    shown = str(escape(text[:MAX_CHARACTERS]))
    shown = visible(shown, mark)
    rest = len(text) - MAX_CHARACTERS
    return Markup(shown + (mark.format(f"… {rest} more characters") if rest > 0 else ""))


def format_value(value: object) -> str:
    """Floats have three digits; True, False and None are yes, no and –; lists are JSON."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, float) or not is_number(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def with_interval(values: dict, key: str) -> str:
    """The value of `key`, and [low, high] when the interval is known, marked if from too few."""
    if not (numbers := finite_values(values, key, f"{key}_low", f"{key}_high")):
        return format_value(values.get(key))
    value, low, high = (format_value(round(number, 3)) for number in numbers)
    return f"{value} [{low}, {high}]" + (f" ({note})" if (note := too_few(values)) else "")


def flatten(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} → {"a/b": 1}"""
    result = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flatten(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return result


def table(first: str, columns: dict[str, dict], only_different: bool = False) -> list[list[str]]:
    """A header and one row per key of the columns; …_low and …_high are shown as intervals."""
    rows = [[first, *columns]]
    for key in dict.fromkeys(key for column in columns.values() for key in column):
        different = len({str(column.get(key)) for column in columns.values()}) > 1
        if not key.endswith(("_low", "_high")) and (different or not only_different):
            name = f"{METRICS[key][0]}: {key_and_unit(key)}" if key in METRICS else key
            rows.append([name, *(with_interval(column, key) for column in columns.values())])
    return rows


def results_table(summary: dict) -> list[list[str]]:
    """The summary as a table: before, after and change, or one column of values."""
    before, after = summary.get("before"), summary.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        numbers = [key for key in after if finite_values(before, key) and finite_values(after, key)]
        change = {key: f"{after[key] - before[key]:+.3g}" for key in numbers}
        return table("held-out prompts", {"before": before, "after": after, "change": change})
    values = flatten(summary)
    intervals_first = sorted(values, key=lambda key: f"{key}_low" not in values)
    return table("metric", {"value": {key: values[key] for key in intervals_first}})


def card(row: dict, keys: list[str]) -> dict:
    """A prompt and, side by side, the texts under `keys`; KEY_reward, … are facts about KEY."""
    sides, shown = [], ("prompt", *keys)
    for key in keys:
        facts = {k[len(key) + 1 :]: v for k, v in row.items() if k.startswith(f"{key}_")}
        bars = facts.pop("ratings", None) or []
        bars = bars if all(is_number(p) and 0 <= p <= 1 for p in bars) else []
        sides.append({"name": key, "text": row.get(key), "facts": facts, "bars": bars})
    facts = {k: v for k, v in row.items() if not k.startswith(shown) and v not in ("", None)}
    return {"prompt": row.get("prompt"), "sides": sides, "facts": facts}


def card_groups(run: dict) -> dict[str, list[dict]]:
    """Samples before and after, held-out pairs ranked worst and best, and a judge's verdicts."""
    pairs = [row for row in run["held_out_scores"] if is_number(row.get("p_win"))]
    pairs.sort(key=lambda row: row["p_win"])
    half = min(6, (len(pairs) + 1) // 2)
    lowest, highest = pairs[:half], pairs[half:][::-1][:half]
    path = run["out"] / "verdicts.csv"
    verdicts = read_verdicts(path) if path.is_file() else []
    groups = {
        "Answers before and after": (run["samples"], ["before", "after"]),
        "Held-out pairs with the lowest P(chosen wins)": (lowest, ["chosen", "rejected"]),
        "Held-out pairs with the highest P(chosen wins)": (highest, ["chosen", "rejected"]),
        "Verdicts": (verdicts, ["answer_a", "answer_b"]),
    }
    return {title: [card(row, keys) for row in rows] for title, (rows, keys) in groups.items()}


def render(path: Path, runs: dict[str, dict], **content) -> Path:
    """Fill report.html.jinja with runs, their diagnoses and `content`; returns the page's path."""
    loader = FileSystemLoader(Path(__file__).parent)
    engine = Environment(loader=loader, autoescape=True, finalize=safe_text)  # of every {{ … }}
    engine.filters["base64"] = lambda png: Markup(base64.b64encode(png).decode())
    diagnoses = {name: diagnose(run["metrics"], run["summary"]) for name, run in runs.items()}
    template = engine.get_template("report.html.jinja")
    page = template.render(title=" · ".join(runs), diagnoses=diagnoses, **content)
    with disk.replaced(path) as draft:
        draft.write_text(page, "utf-8", "xmlcharrefreplace")
    return path


def write_report(out: str | Path) -> Path:
    """Draw the run's plots and write OUT/report.html; raises InputError when OUT holds no run."""
    run = read_run(out)
    drawn = save_plots(run)
    drawn += sorted(set(run["out"].glob("*.png")) - set(drawn))
    return render(
        run["out"] / "report.html",
        {run["name"]: run},
        script=run["run"].get("script", "run"),
        started=run["run"].get("started", ""),
        tables={"Results": results_table(run["summary"])},
        pictures={path.stem: path.read_bytes() for path in drawn},
        groups=card_groups(run),
        settings=table("setting", {"value": flatten(run["run"])}),
    )


def write_comparison(outs: list[str | Path], path: str | Path | None = None) -> Path:
    """Several runs on one page: diagnoses, results, settings that differ, and curves."""
    runs = [read_run(out) for out in outs]
    names = [run["name"] for run in runs]
    if len(set(names)) < len(names):
        names = [f"{i}: {name}" for i, name in enumerate(names, 1)]
    path = Path(path) if path else runs[0]["out"].resolve().parent / "comparison.html"
    runs = dict(zip(names, runs, strict=True))
    results = {n: flatten(r["summary"].get("after") or r["summary"]) for n, r in runs.items()}
    settings = {name: flatten(run["run"]) for name, run in runs.items()}
    for values in settings.values():
        for key in ("id", "started", "config/out", "config/resume", "config/overwrite"):
            values.pop(key, None)
    tables = {"Results after training": table("metric", results)}
    tables["Settings that differ"] = table("setting", settings, only_different=True)
    pictures = overlay_plots({name: run["metrics"] for name, run in runs.items()})
    return render(path, runs, script="comparison of runs", tables=tables, pictures=pictures)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlhf_min.reporting.report", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (its --out)")
    parser.add_argument("--out", metavar="FILE", help="path of the comparison page")
    given = parser.parse_args(argv)
    one_run = len(given.runs) == 1
    if given.out and one_run:
        parser.error("--out is for a comparison: give two runs, or leave it out")
    try:
        page = write_report(given.runs[0]) if one_run else write_comparison(given.runs, given.out)
    except (InputError, OSError) as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
