"""The report page of a run, OUT/report.html, or a comparison of several runs.

    python -m rlhf_min.reporting.report RUN        # draws the plots of RUN, writes RUN/report.html
    python -m rlhf_min.reporting.report RUN RUN …  # writes comparison.html beside the first run

The page needs no other file and no network, and all text on it is escaped.
"""

import argparse
import base64
import io
import json
import re
import sys
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup, escape

from rlhf_min import InputError
from rlhf_min.data.preferences import prompt_text
from rlhf_min.judging.comparisons import read_verdicts
from rlhf_min.reporting.diagnosis import diagnose
from rlhf_min.reporting.metric_names import full_name
from rlhf_min.reporting.plots import overlay_figures, save_plots
from rlhf_min.reporting.series import finite_values, is_number, read_run

INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
MAX_CHARACTERS = 4000  # of one text on the page; the run's other files hold all of it
MAX_CARDS = 24  # samples, pairs or verdicts on the page


def safe_text(value: object) -> Markup:
    """A value as escaped text: invisible characters as U+…, at most MAX_CHARACTERS."""
    if isinstance(value, Markup):
        return value
    whole = format_value(value)
    text, rest = whole[:MAX_CHARACTERS], len(whole) - MAX_CHARACTERS
    marks = [f"U+{ord(character):04X}" for character in INVISIBLE.findall(text)]
    marks.append(f"… {rest} more characters" if rest > 0 else "")
    result = Markup()
    for part, mark in zip(INVISIBLE.split(text), marks, strict=True):
        result += escape(part) + (Markup("<b class=mark>{}</b>").format(mark) if mark else "")
    return result


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
    """The value of `key`, and [low, high] when the interval is known."""
    if not (numbers := finite_values(values, key, f"{key}_low", f"{key}_high")):
        return format_value(values.get(key))
    value, low, high = (format_value(round(number, 3)) for number in numbers)
    return f"{value} [{low}, {high}]"


def flatten(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} → {"a/b": 1}"""
    result = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flatten(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return result


def all_keys(*columns: dict) -> list[str]:
    """Keys in order of first appearance, without the …_low and …_high of intervals."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [key for key in keys if not key.endswith(("_low", "_high"))]


def results_table(run: dict) -> dict:
    """The summary as a table: before, after and change, or one column of values."""
    summary, rows = run["summary"], []
    before, after = summary.get("before"), summary.get("after")
    if not (isinstance(before, dict) and isinstance(after, dict)):
        values = flatten(summary)
        keys = sorted(all_keys(values), key=lambda key: f"{key}_low" not in values)
        rows = [[full_name(key), with_interval(values, key)] for key in keys]
        return {"columns": ["metric", "value"], "rows": rows}
    for key in all_keys(before, after):
        old, new = before.get(key), after.get(key)
        change = f"{new - old:+.3g}" if is_number(old) and is_number(new) else ""
        rows.append([full_name(key), with_interval(before, key), with_interval(after, key), change])
    return {"columns": ["held-out prompts", "before", "after", "change"], "rows": rows}


def text_of(value: object) -> str:
    """A prompt or answer (a string or chat messages) as text; anything else as JSON."""
    try:
        return str(prompt_text(value))
    except (TypeError, KeyError, IndexError):
        return json.dumps(value, ensure_ascii=False)


def card(row: dict, keys: list[str]) -> dict:
    """A prompt and, side by side, the texts under `keys`; KEY_reward, … are facts about KEY."""
    sides, used = [], {"prompt", *keys}
    for key in keys:
        own = [name for name in row if name.startswith(f"{key}_") and name not in used]
        used |= set(own)
        facts = [(name[len(key) + 1 :], row[name]) for name in own if not name.endswith("_ratings")]
        bars = row.get(f"{key}_ratings") or []
        bars = bars if all(is_number(p) and 0 <= p <= 1 for p in bars) else []
        title = key.replace("_", " ")
        sides.append({"title": title, "text": text_of(row.get(key)), "facts": facts, "bars": bars})
    facts = [(k, v) for k, v in row.items() if k not in used and v not in ("", None)]
    return {"prompt": text_of(row.get("prompt")), "sides": sides, "facts": facts}


def card_groups(run: dict) -> list[dict]:
    """Samples before and after, held-out pairs ranked worst and best, and a judge's verdicts."""
    pairs = [row for row in run["held_out_scores"] if is_number(row.get("p_win"))]
    pairs.sort(key=lambda row: row["p_win"])
    half = min(MAX_CARDS // 4, (len(pairs) + 1) // 2)
    lowest, highest = pairs[:half], pairs[half:][::-1][:half]
    path = run["out"] / "verdicts.csv"
    verdicts = read_verdicts(path) if path.is_file() else []
    answers = [name for name in verdicts[0] if "answer" in name] if verdicts else []
    groups = [
        ("Answers before and after", run["samples"], ["before", "after"]),
        ("Held-out pairs with the lowest P(chosen wins)", lowest, ["chosen", "rejected"]),
        ("Held-out pairs with the highest P(chosen wins)", highest, ["chosen", "rejected"]),
        ("Verdicts", verdicts, answers),
    ]
    return [
        {"title": title, "cards": [card(row, keys) for row in rows[:MAX_CARDS]], "total": len(rows)}
        for title, rows, keys in groups
        if rows
    ]


def render(path: Path, **content) -> Path:
    """Fill report.html.jinja with `content` and write the page; returns its path."""
    engine = Environment(autoescape=True, finalize=safe_text)  # applied to every {{ expression }}
    engine.filters["base64"] = lambda png: Markup(base64.b64encode(png).decode())
    template = engine.from_string(Path(__file__).with_name("report.html.jinja").read_text("utf-8"))
    path.write_bytes(template.render(**content).encode("utf-8", "xmlcharrefreplace"))
    return path


def write_report(out: str | Path) -> Path:
    """Draw the run's plots and write OUT/report.html; raises InputError when OUT holds no run."""
    run = read_run(out)
    drawn = save_plots(run)
    drawn += sorted(set(run["out"].glob("*.png")) - set(drawn))
    return render(
        run["out"] / "report.html",
        title=run["name"],
        script=run["run"].get("script", "run"),
        started=run["run"].get("started", ""),
        diagnoses=[("", *diagnose(run["metrics"], run["summary"]))],
        tables=[{"title": "Results", **results_table(run)}],
        pictures={path.stem: path.read_bytes() for path in drawn},
        groups=card_groups(run),
        settings=list(flatten(run["run"]).items()),
    )


def write_comparison(outs: list[str | Path], path: str | Path | None = None) -> Path:
    """Several runs on one page: diagnoses, results, settings that differ, and curves."""
    runs = [read_run(out) for out in outs]
    names = [run["name"] for run in runs]
    if len(set(names)) < len(names):
        names = [f"{i}: {name}" for i, name in enumerate(names, 1)]
    path = Path(path) if path else runs[0]["out"].resolve().parent / "comparison.html"
    runs = dict(zip(names, runs, strict=True))
    results = [flatten(run["summary"].get("after") or run["summary"]) for run in runs.values()]
    rows = [[full_name(k), *(with_interval(r, k) for r in results)] for k in all_keys(*results)]
    settings = [flatten(run["run"]) for run in runs.values()]
    differing = [k for k in all_keys(*settings) if len({str(s.get(k)) for s in settings}) > 1]
    setting_rows = [[k, *(format_value(s.get(k)) for s in settings)] for k in differing]
    pictures = {}
    for title, figure in overlay_figures({n: run["metrics"] for n, run in runs.items()}).items():
        figure.savefig(png := io.BytesIO())
        pictures[title] = png.getvalue()
    return render(
        path,
        title=" · ".join(names),
        script="comparison of runs",
        diagnoses=[(n, *diagnose(run["metrics"], run["summary"])) for n, run in runs.items()],
        tables=[
            {"title": "Results after training", "columns": ["metric", *names], "rows": rows},
            {"title": "Settings that differ", "columns": ["setting", *names], "rows": setting_rows},
        ],
        pictures=pictures,
    )


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
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
