"""A run as one page, OUT/report.html: self-contained, opens offline; or several runs compared.

    python -m rlhf_min.reporting.report RUN        # draws the plots of RUN and RUN/report.html
    python -m rlhf_min.reporting.report RUN RUN …  # comparison.html beside the first run

What is shown follows from the files that the folder holds.  The template engine escapes every text,
a model's above all, and signs that cannot be seen (bidi controls, escapes) are written out.
"""

import argparse
import base64
import csv
import io
import json
import re
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from rlhf_min import InputError
from rlhf_min.data.preferences import prompt_text
from rlhf_min.judging.comparisons import FORMULA
from rlhf_min.reporting.diagnosis import hack_verdict
from rlhf_min.reporting.plots import CURVES, overlay_figures, policy_plots, reward_model_plots
from rlhf_min.reporting.series import is_number, read_run

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
LONGEST = 4000  # characters of one text on the page; all of it is in the run's own files
CARDS = 24  # samples, pairs or verdicts on the page


def visible(value: object) -> Markup:
    """Any value as escaped text; unseen signs as U+…; cut after LONGEST characters.

    The template engine sends every {{ expression }} through here.
    """
    if isinstance(value, Markup):
        return value
    whole = number(value)
    text, rest = whole[:LONGEST], len(whole) - LONGEST
    signs = [f"U+{ord(sign):04X}" for sign in UNSEEN.findall(text)]
    signs.append(f"… {rest} more characters" if rest > 0 else "")
    result = Markup()
    for part, sign in zip(UNSEEN.split(text), signs, strict=True):
        result += escape(part) + (Markup("<b class=sign>{}</b>").format(sign) if sign else "")
    return result


def number(value: object) -> str:
    """Numbers to three digits, truth as yes or no, nothing as –; all else as it is."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if not isinstance(value, float) or not is_number(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def with_interval(values: dict, key: str) -> str:
    ends = (key, f"{key}_low", f"{key}_high")
    if not all(is_number(values.get(end)) for end in ends):
        return number(values.get(key))
    value, low, high = (number(round(float(values[end]), 3)) for end in ends)
    return f"{value} [{low}, {high}]"


def flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} → {"a/b": 1}; lists as text."""
    result = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}/")
        else:
            whole = isinstance(value, list)
            result[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False) if whole else value
    return result


def metric_names(*columns: dict) -> list[str]:
    """Keys in order of first appearance, without the ends of intervals."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [key for key in keys if re.sub("_(low|high)$", "", key) == key]


def title_of(key: str) -> str:
    title, unit = CURVES.get(key, (key.replace("_", " "), ""))
    if unit.startswith(title.lower()):
        return unit.capitalize()
    return f"{title}, {unit}" if unit else title


def read_verdicts(path: Path) -> list[dict]:
    """Rows of verdicts.csv, without the apostrophes that keep a spreadsheet from running a cell."""
    csv.field_size_limit(10**8)  # answers may be longer than the default 128 KiB
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            header, *rows = list(csv.reader(file)) or [[]]
        except csv.Error as error:
            raise InputError(f"{path} is broken ({error}): repair or delete it") from error
    bare = [[c[1:] if c[:1] == "'" and FORMULA.match(c[1:]) else c for c in row] for row in rows]
    return [dict(zip(header, row, strict=False)) for row in bare if row]


def headline(run: dict) -> dict:
    """The summary as a table: before, after and change; or one column of values."""
    summary = run["summary"]
    before, after = summary.get("before"), summary.get("after")
    if not (isinstance(before, dict) and isinstance(after, dict)):
        values = flat(summary)
        names = sorted(metric_names(values), key=lambda key: f"{key}_low" not in values)
        rows = [[title_of(key), with_interval(values, key)] for key in names]
        return {"columns": ["", "value"], "rows": rows}
    rows = []
    for key in metric_names(before, after):
        old, new = before.get(key), after.get(key)
        change = f"{new - old:+.3g}" if is_number(old) and is_number(new) else ""
        rows.append([title_of(key), with_interval(before, key), with_interval(after, key), change])
    return {"columns": ["held-out prompts", "before", "after", "change"], "rows": rows}


def text_of(value: object) -> str:
    """A prompt or answer as text: a string, chat messages, or whatever else stands there."""
    try:
        return str(prompt_text(value))
    except (TypeError, KeyError, IndexError):
        return json.dumps(value, ensure_ascii=False)


def card(row: dict, keys: list[str]) -> dict:
    """A prompt with the texts under `keys` side by side; KEY_reward, … are facts of that side."""
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
    """Samples before and after; held-out pairs most wrong and most right; a judge's verdicts."""
    pairs = [row for row in run["held_out_scores"] if is_number(row.get("p_win"))]
    pairs.sort(key=lambda row: row["p_win"])
    half = min(CARDS // 4, (len(pairs) + 1) // 2)
    path = run["out"] / "verdicts.csv"
    verdicts = read_verdicts(path) if path.is_file() else []
    columns = list(verdicts[0]) if verdicts else []
    answers = [name for name in columns if "answer" in name] or [c for c in columns if c in "ab"]
    groups = [
        ("Answers before and after", run["samples"], ["before", "after"]),
        ("Held-out pairs with the lowest P(chosen wins)", pairs[:half], ["chosen", "rejected"]),
        ("Held-out pairs with the highest", pairs[half:][::-1][:half], ["chosen", "rejected"]),
        ("Verdicts", verdicts, answers),
    ]
    return [
        {"title": title, "cards": [card(row, keys) for row in rows[:CARDS]], "total": len(rows)}
        for title, rows, keys in groups
        if rows
    ]


def picture(title: str, png: bytes) -> dict:
    data = Markup("data:image/png;base64,") + base64.b64encode(png).decode()
    return {"title": title, "data": data}


def judged(name: str, run: dict) -> dict:
    level, sentences = hack_verdict(run["metrics"], run["summary"])
    return {"name": name, "level": level, "sentences": sentences}


def render(path: Path, **content) -> Path:
    here = FileSystemLoader(Path(__file__).parent)
    engine = Environment(
        loader=here, autoescape=True, finalize=visible, trim_blocks=True, lstrip_blocks=True
    )
    page = engine.get_template("report.html.jinja").render(**content)
    path.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))
    return path


def write_report(out: str | Path) -> Path:
    """Draw the run's plots and write OUT/report.html; raises InputError when OUT holds no run."""
    run = read_run(out)
    out = run["out"]
    is_policy = any("kl/mean" in row for row in run["metrics"]) or "before" in run["summary"]
    drawn = policy_plots(out) if is_policy else reward_model_plots(out)
    drawn += sorted(set(out.glob("*.png")) - set(drawn))
    return render(
        out / "report.html",
        title=run["name"],
        script=run["run"].get("script", "run"),
        started=run["run"].get("started", ""),
        verdicts=[judged("", run)],
        tables=[{"title": "In numbers", **headline(run)}],
        pictures=[picture(path.stem, path.read_bytes()) for path in drawn],
        groups=card_groups(run),
        settings=list(flat(run["run"]).items()),
    )


def write_comparison(outs: list[str | Path], path: str | Path | None = None) -> Path:
    """Several runs on one page: verdicts, results, settings that differ, curves over each other."""
    runs = [read_run(out) for out in outs]
    names = [run["name"] for run in runs]
    if len(set(names)) < len(names):
        names = [f"{i}: {name}" for i, name in enumerate(names, 1)]
    results = [flat(run["summary"].get("after") or run["summary"]) for run in runs]
    settings = [flat(run["run"]) for run in runs]
    differ = [k for k in metric_names(*settings) if len({str(s.get(k)) for s in settings}) > 1]
    rows = [[title_of(k), *(with_interval(r, k) for r in results)] for k in metric_names(*results)]
    figures = overlay_figures({n: run["metrics"] for n, run in zip(names, runs, strict=True)})
    pictures = []
    for title, figure in figures.items():
        figure.savefig(png := io.BytesIO())
        pictures.append(picture(title, png.getvalue()))
    diff = [[key, *(number(values.get(key)) for values in settings)] for key in differ]
    return render(
        Path(path) if path else runs[0]["out"].resolve().parent / "comparison.html",
        title=" · ".join(names),
        script="comparison of runs",
        verdicts=[judged(name, run) for name, run in zip(names, runs, strict=True)],
        tables=[
            {"title": "In numbers, after training", "columns": ["", *names], "rows": rows},
            {"title": "Settings that differ", "columns": ["", *names], "rows": diff},
        ],
        pictures=pictures,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlhf_min.reporting.report", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (its --out)")
    parser.add_argument("--out", metavar="FILE", help="where a comparison goes")
    given = parser.parse_args(argv)
    several = len(given.runs) > 1
    if given.out and not several:
        parser.error("--out is for a comparison: give two runs, or leave it out")
    try:
        page = write_comparison(given.runs, given.out) if several else write_report(given.runs[0])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
