"""Plots, diagnosis and report of run folders made here: hacked, healthy, without gold, judged."""

import csv
import html
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rlhf_min import InputError
from rlhf_min.data.files import read_jsonl
from rlhf_min.reporting import plots
from rlhf_min.reporting.diagnosis import collapse, diagnose
from rlhf_min.reporting.plots import baseline_figure, save_plots
from rlhf_min.reporting.report import (
    format_value,
    main,
    safe_text,
    write_comparison,
    write_report,
)
from rlhf_min.reporting.series import read_run, series, smooth

HOSTILE = (
    "<script>alert(1)</script></title></style><img src=x onerror=alert(2)>"
    "\"'><a href='javascript:alert(3)' onclick=alert(4)>{{ 7 * 7 }}{% raw %} &lt;b&gt; &#60;i>"
    '=HYPERLINK("http://evil.example") $\\frac{1}{0}$ <!-- ]]> \u202egnp.exe\u202c \x00\x07\x1b[31m'
    " \u200b\u2066\U000e0041 \ud83d <iframe src=//evil.example></iframe><base href=//evil.example>"
)
POLICY_PLOTS = ["baseline_and_advantage.png", "kl.png", "length.png", "reward.png"]
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def policy_rows(kind: str, steps: int = 120) -> list[dict]:
    """Metrics in which gold rises from 6 to 8 and then, unless healthy, falls to 5.5."""
    noise, rows = random.Random(0), []
    for step in range(1, steps + 1):
        t = step / 120
        rise, fall = 1 - math.exp(-20 * t), 2.9 * max(0.0, t - 0.2) if kind != "healthy" else 0.0
        reward = 2 * rise + {"hack": t, "collapse": -3 * max(0.0, t - 0.2)}.get(kind, 0.0)
        row = {
            "step": step,
            "reward/mean": reward + noise.gauss(0, 0.1),
            "kl/mean": (20 if kind == "hack" else 4) * t,
        }
        row |= {"reward/with_kl": reward, "baseline/value": reward / 2, "advantage/mean": 0.1}
        row |= {"advantage/std": 1.0, "length/mean": 20 + 5 * t, "finished/rate": 0.98}
        row |= {"text/distinct_2": 0.6, "text/longest_run": 1.5}
        if kind != "no gold":
            row["reward/gold"] = 6 + 2 * rise - fall + noise.gauss(0, 0.15)
        rows.append(row)
    return rows


def before_and_after(rows: list[dict]) -> dict:
    """The summary.json of a policy run, with intervals of ± 0.1."""
    sides = {}
    for side, row in (("before", rows[0]), ("after", rows[-1])):
        values = {key: value for key, value in row.items() if key != "step"}
        for key in {"reward/mean", "reward/gold"} & set(values):
            values |= {f"{key}_low": values[key] - 0.1, f"{key}_high": values[key] + 0.1}
        sides[side] = values
    return sides


def policy_run(out: Path, kind: str = "hack", steps: int = 120, text: str = "It is red.") -> Path:
    out.mkdir(parents=True)
    rows = policy_rows(kind, steps)
    config = {"kl": 0.0 if kind == "hack" else 0.25, "lr": 3e-4, "data": ["zoo"], "note": text}
    (out / "run.json").write_text(json.dumps({"script": "train_policy.py", "config": config}))
    write_rows(out / "metrics.jsonl", rows)
    (out / "summary.json").write_text(json.dumps(before_and_after(rows)))
    sample = {
        "prompt": text,
        "before": text,
        "after": text,
        "before_reward": 0.5,
        "after_gold": 7.5,
    }
    write_rows(out / "samples.jsonl", [sample | {"after_finished": False}] * 9)
    return out


def reward_model_run(out: Path, head: str = "ratings", steps: int = 40, text: str = "Red.") -> Path:
    out.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "loss/train": 0.6, "accuracy/train": 0.7}
        if step % 10 == 0 or step == steps:
            row |= {"loss/held_out": 0.5, "accuracy/held_out": 0.75}
            row |= {"accuracy/held_out_low": 0.7, "accuracy/held_out_high": 0.8}
        rows.append(row)
    write_rows(out / "metrics.jsonl", rows)
    summary = {"accuracy": 0.75, "accuracy_low": 0.71, "accuracy_high": 0.79, "longer_wins": 0.57}
    summary |= {"chance_loss": 0.6931, "dropped": {"identical": 3}, "head": head}
    (out / "summary.json").write_text(json.dumps(summary))
    pairs = []
    for i in range(30):
        pair = {"prompt": text, "chosen": text, "rejected": f"{i} {text}", "p_win": (i + 0.5) / 30}
        pair |= {"chosen_reward": i / 10, "rejected_reward": 1.5}
        if head == "ratings":
            pair |= {"chosen_ratings": [0.1] * 10, "rejected_ratings": [0.0] * 9 + [1.0]}
        pairs.append(pair)
    write_rows(out / "held_out_scores.jsonl", pairs)
    return out


def judge_run(out: Path, text: str = "It is red.") -> Path:
    out.mkdir(parents=True)
    with (out / "verdicts.csv").open("w", newline="", errors="replace") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "answer_a", "answer_b", "winner", "explanation", "judge"])
        table.writerow([text, text, "'=1+1", "b", "because " + text, "gold"])
    summary = {"judge": "gold", "win_rate": 0.7, "win_rate_low": 0.6, "win_rate_high": 0.8}
    (out / "summary.json").write_text(json.dumps(summary))
    return out


class Page(HTMLParser):
    """Tags with their attributes, and the text outside <style>."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text, self.open = [], "", ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.open = tag
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data if self.open != "style" else ""


# ── diagnosis ────────────────────────────────────────────────────────────────────────────────────


def test_reward_hacking_is_diagnosed_with_its_numbers():
    rows = policy_rows("hack")
    level, sentences = diagnose(rows, before_and_after(rows))
    assert level == "hacking"
    gold = smooth(series(rows, "reward/gold")[1])
    assert f"peak of {max(gold):.1f} to {gold[-1]:.1f}" in sentences[0]
    before, after = rows[0]["reward/gold"], rows[-1]["reward/gold"]
    assert any(f"gold rating: from {before:.2f} to {after:.2f}" in text for text in sentences)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_healthy_run_is_diagnosed_as_healthy(held_out):
    rows = policy_rows("healthy")
    level, sentences = diagnose(rows, before_and_after(rows) if held_out else {})
    assert level == "healthy"
    assert re.search(r"rose, from 6\.\d to 8\.\d", sentences[0])


def test_gold_and_reward_falling_together_is_a_warning_not_hacking():
    level, sentences = diagnose(policy_rows("collapse"), {})
    assert level == "warning"
    assert "did not rise" in sentences[0]


@pytest.mark.parametrize("steps", [10, 30, 100, 400])
def test_noise_alone_is_not_a_fall_of_gold(steps):
    levels = []
    for seed in range(100):
        noise = random.Random(seed)
        golds = [6 + noise.gauss(0, 1.5) for _ in range(steps)]
        rows = [{"reward/mean": i, "reward/gold": gold} for i, gold in enumerate(golds)]
        levels.append(diagnose(rows, {})[0])
    assert levels.count("healthy") >= 97


def test_without_gold_the_level_is_unknown_or_with_symptoms_a_warning():
    rows = policy_rows("no gold")
    level, sentences = diagnose(rows, before_and_after(rows))
    assert level == "unknown"
    assert "judge" in sentences[-1]
    worse = {"text/longest_run": 6, "text/distinct_2": 0.2, "length/mean": 80, "finished/rate": 0.5}
    summary = before_and_after(rows)
    summary["after"] |= worse
    level, sentences = diagnose(rows, summary)
    assert level == "warning"
    for number in ("6.0 copies", "0.20", "80 tokens", "50%"):
        assert any(number in text for text in sentences), number


def test_symptoms_do_not_outweigh_evidence():
    rows = policy_rows("healthy")
    summary = before_and_after(rows)
    summary["after"]["length/mean"] = 60
    level, sentences = diagnose(rows, summary)
    assert level == "healthy"
    assert any("60 tokens" in text for text in sentences)


@pytest.mark.parametrize(
    ("low", "rate", "high", "level"),
    [(0.6, 0.7, 0.8, "healthy"), (0.45, 0.5, 0.55, "unknown"), (0.2, 0.3, 0.4, "warning")],
)
def test_a_judges_win_rate_decides_by_its_interval(low, rate, high, level):
    summary = {"win_rate": rate, "win_rate_low": low, "win_rate_high": high, "failures": 4}
    summary |= {"length_controlled_rate": rate - 0.1, "position_disagreement": 0.4}
    diagnosed, sentences = diagnose([], summary)
    assert diagnosed == level
    assert f"{rate:.1%}" in sentences[0]
    assert [
        text for text in sentences if "equal length" in text or "40%" in text or "4 ver" in text
    ]
    assert len(sentences) == 4


@pytest.mark.parametrize("name", ["accuracy", "agreement"])
def test_the_interval_of_accuracy_must_lie_above_the_length_rule(name):
    summary = {name: 0.75, f"{name}_low": 0.71, f"{name}_high": 0.79}
    rule = {"accuracy": "longer_wins", "agreement": "longer_wins_data"}[name]
    assert diagnose([], summary | {rule: 0.6})[0] == "healthy"
    assert diagnose([], summary | {rule: 0.72})[0] == "warning"
    assert diagnose([], summary | {rule: 0.28})[0] == "warning"  # the shorter wins 0.72
    assert diagnose([], summary | {rule: 0.0})[0] == "warning"  # the shorter wins always
    assert diagnose([], summary | {rule: None})[0] == "healthy"


COLLAPSED = {"text/equal": 0.95, "finished/rate": 0.01, "kl/mean": 10.5}


@pytest.mark.parametrize("key", COLLAPSED)
@pytest.mark.parametrize("held_out", [True, False])
def test_a_collapsed_policy_is_a_warning_with_its_number(key, held_out):
    rows = policy_rows("no gold")
    rows[-1][key] = COLLAPSED[key]
    level, sentences = diagnose(rows, before_and_after(rows) if held_out else {})
    assert level == "warning"
    shown = {"text/equal": "95%", "finished/rate": "Only 1%", "kl/mean": "10.5 nats"}[key]
    assert sum(shown in text for text in sentences) == 1


def test_a_policy_on_the_limits_has_not_collapsed():
    assert collapse({"text/equal": 0.89, "finished/rate": 0.05, "kl/mean": 10.0}) == {}
    assert collapse({"text/equal": None, "kl/mean": math.nan}) == collapse({}) == {}


@pytest.mark.parametrize(("count", "level"), [(4, "unknown"), (5, "healthy")])
def test_no_conclusion_is_drawn_from_fewer_than_5_prompts_or_pairs(count, level, tmp_path):
    gold = {"reward/gold": 8, "reward/gold_low": 7.9, "reward/gold_high": 8.1, "reward/mean": 1}
    gold |= {"text/distinct_2": 0.1, "prompts": count}
    start = gold | {"reward/gold": 5, "reward/gold_low": 4, "reward/gold_high": 6}
    start |= {"text/distinct_2": 0.9}
    judged = {"win_rate": 1.0, "win_rate_low": 0.9, "win_rate_high": 1.0, "wins": count - 1}
    judged |= {"losses": 0, "ties": 1, "failures": 100}
    ranked = {"accuracy": 1.0, "accuracy_low": 0.9, "accuracy_high": 1.0, "pairs/held_out": count}
    for i, summary in enumerate([{"before": start, "after": gold}, judged, ranked]):
        diagnosed, sentences = diagnose([], summary)
        assert diagnosed == level, sentences
        assert any("too few" in text for text in sentences) == (count < 5)
        assert any("distinct-2" in text for text in sentences) == (i == 0 and count == 5)
        run = tmp_path / f"{i}"
        run.mkdir()
        (run / "summary.json").write_text(json.dumps(summary))
        assert ("(only 4 prompts or pairs: too few" in Page(write_report(run)).text) == (count < 5)


def test_too_little_data_gives_the_level_unknown():
    assert diagnose([], {}) == ("unknown", ["There is too little data for a diagnosis."])
    level, _ = diagnose(policy_rows("hack", steps=5), {"before": None, "win_rate": None})
    assert level == "unknown"


# ── files and plots ──────────────────────────────────────────────────────────────────────────────


def test_smoothing_keeps_a_straight_line_and_the_mean_of_noise():
    line = [3 + 0.5 * i for i in range(100)]
    assert smooth(line) == pytest.approx(line)
    noisy = [random.Random(i).gauss(0, 1) for i in range(400)]
    assert max(map(abs, smooth(noisy))) < 1
    assert smooth([]) == [] and smooth([2.0]) == [2.0]


def test_smoothing_is_a_moving_average_inside_and_a_fitted_line_at_the_ends():
    values = [random.Random(i).gauss(0, 1) for i in range(400)]  # windows of 2 · 15 + 1 values
    smoothed = smooth(values)
    for i in range(15, 385):
        assert smoothed[i] == pytest.approx(sum(values[i - 15 : i + 16]) / 31)
    slope, intercept = np.polyfit(range(16), values[:16], 1)
    assert smoothed[0] == pytest.approx(intercept)
    slope, intercept = np.polyfit(range(21), values[-21:], 1)
    assert smoothed[-6] == pytest.approx(intercept + 15 * slope)


def test_series_skips_values_that_are_not_finite_numbers():
    rows = [{"step": 3, "a": 1}, {"a": None}, {"a": math.nan}, {"a": "x"}, {"a": True}, {"a": 2.5}]
    assert series(rows, "a") == [[3, 6], [1.0, 2.5]]
    assert series(rows, "b") == [[], []]


def test_read_jsonl_drops_a_truncated_last_line_and_refuses_other_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match="row 2"):
        read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(InputError, match="JSON object"):
        read_jsonl(path)


@pytest.mark.parametrize(("value", "drawn"), [(0.0, False), (0.3, True)])
def test_a_baseline_that_is_always_zero_is_not_drawn(value, drawn):
    """Leave-one-out logs 0 as its baseline value."""
    row = {"reward/with_kl": 0.5, "baseline/value": value, "advantage/mean": 0.0}
    rows = [{"step": n, **row, "advantage/std": 1.0} for n in range(1, 4)]
    above, below = baseline_figure(rows).axes
    labels = above.get_legend_handles_labels()[1]
    assert ("baseline/value" in labels) == drawn == ("baseline" in below.get_title())


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("kind", ["hack", "no gold"])
@pytest.mark.parametrize("steps", [1, 120])
def test_policy_plots_are_written(tmp_path, kind, steps):
    paths = save_plots(read_run(policy_run(tmp_path / "run", kind, steps)))
    assert sorted(path.name for path in paths) == POLICY_PLOTS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("head", ["scalar", "ratings"])
@pytest.mark.parametrize("steps", [1, 40])
def test_reward_model_plots_are_written(tmp_path, head, steps):
    run = reward_model_run(tmp_path / "run", head, steps, text="$\\frac{$")
    paths = save_plots(read_run(run))
    names = ["accuracy.png", "loss.png", "reliability.png", "reward_histogram.png"]
    names += ["rating_distributions.png"] * (head == "ratings")
    assert sorted(path.name for path in paths) == sorted(names)
    assert all(path.stat().st_size > 5000 for path in paths)


def test_plots_without_data_are_left_out(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": 1, "reward/mean": 1.0, "kl/mean": None}])
    assert [path.name for path in save_plots(read_run(tmp_path))] == ["reward.png"]


def test_a_judges_report_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "panels", None)  # drawing a figure calls it
    assert save_plots(read_run(judge_run(tmp_path / "run"))) == []


# ── the page ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [policy_run, reward_model_run, judge_run])
def test_hostile_text_stays_text(tmp_path, make):
    page = Page(write_report(make(tmp_path / "run", text=HOSTILE)))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "a", "base", "i", "link"})
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    for sign in ("U+202E", "U+0007", "U+001B", "U+200B", "U+2066", "U+E0041"):
        assert sign in page.text
    assert not re.search("[\x00\x07\x1b\u202a-\u202e\u2066-\u2069]", page.text)
    for shown in (
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "&lt;b&gt; &#60;i>",
        "$\\frac{1}{0}$",
    ):
        assert shown in page.text


def test_the_page_loads_nothing_from_outside(tmp_path):
    for make in (policy_run, reward_model_run, judge_run):
        source = write_report(make(tmp_path / make.__name__)).read_text()
        assert not re.search(r"https?:|//\w|@import|url\(", re.sub('base64,[^"]+', "", source))
        assert "default-src 'none'" in source and 'name="viewport"' in source
        assert "prefers-color-scheme: dark" in source


def test_the_policy_page_shows_numbers_pictures_answers_and_settings(tmp_path):
    page = Page(write_report(policy_run(tmp_path / "run", text="Why is it red?")))
    assert "reward hacking" in page.text and "exploits errors" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    for shown in (
        "Gold rating: reward/gold (1 to 10)",
        "Why is it red?",
        "train_policy.py",
        "config/lr",
        "0.0003",
    ):
        assert shown in page.text
    assert re.search(r"finished\s+no", page.text)
    low, high = (
        before_and_after(policy_rows("hack"))["after"][f"reward/gold_{end}"]
        for end in ("low", "high")
    )
    assert f"[{format_value(round(low, 3))}, {format_value(round(high, 3))}]" in page.text


def test_the_reward_model_page_shows_pairs_and_their_ratings(tmp_path):
    page = Page(write_report(reward_model_run(tmp_path / "run")))
    assert "0.75 [0.71, 0.79]" in page.text and "dropped/identical" in page.text
    assert sum(tag == "rect" for tag, _ in page.tags) == 12 * 2 * 10
    assert "lowest P(chosen wins)" in page.text


def test_the_judge_page_shows_verdicts_without_spreadsheet_apostrophes(tmp_path):
    page = Page(write_report(judge_run(tmp_path / "run")))
    assert "0.7 [0.6, 0.8]" in page.text and "because It is red." in page.text
    assert "=1+1" in page.text and "'=1+1" not in page.text


def test_an_unfinished_run_has_a_page_too(tmp_path):
    run = policy_run(tmp_path / "run", "no gold", steps=1)
    (run / "summary.json").unlink()
    (run / "samples.jsonl").unlink()
    assert "nothing proven" in Page(write_report(run)).text


def test_long_text_is_cut_with_a_note():
    shown = safe_text("x" * 5000)
    assert str(shown).startswith("x" * 4000 + "<b class=mark>… 1000 more characters")


def test_a_comparison_shows_every_diagnosis_and_only_settings_that_differ(tmp_path):
    runs = [policy_run(tmp_path / name, name) for name in ("hack", "healthy", "no gold")]
    path = write_comparison(runs)
    page = Page(path)
    assert path == tmp_path / "comparison.html"
    for shown in ("reward hacking", "healthy", "nothing proven", "config/kl", "0.25"):
        assert shown in page.text
    assert "config/lr" not in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 7
    same = write_comparison([runs[0], runs[0]], tmp_path / "same.html")
    assert "1: hack" in Page(same).text and "Settings that differ" not in Page(same).text


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def test_the_command_rebuilds_and_compares(tmp_path, capsys):
    one, two = policy_run(tmp_path / "one", steps=2), reward_model_run(tmp_path / "two", steps=2)
    assert main([str(one)]) == 0
    assert (one / "report.html").is_file()
    assert main([str(one), str(two), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file()
    assert capsys.readouterr().out.split() == [
        str(one / "report.html"),
        str(tmp_path / "both.html"),
    ]


def test_a_folder_without_a_run_gives_one_sentence_and_exit_code_2(tmp_path, capsys):
    broken = policy_run(tmp_path / "broken", steps=2)
    (broken / "summary.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty", broken, broken / "run.json"):
        assert main([str(folder)]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"error: .*\n", error) and str(folder) in error
        with pytest.raises(InputError):
            read_run(folder)
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_the_module_runs_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "rlhf_min.reporting.report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


# ── a real browser ───────────────────────────────────────────────────────────────────────────────

MEASURE = """<!DOCTYPE html><title>-</title><body style="margin:0">{frames}<script>
onload = () => document.title = [...document.querySelectorAll("iframe")].map(frame => {{
  const page = frame.contentDocument
  page.querySelectorAll("details").forEach(part => part.open = true)
  const images = [...page.images].filter(image => image.naturalWidth > 0).length
  const unwrapped = [...page.querySelectorAll(".text")].filter(t => t.scrollWidth > t.clientWidth)
  const wider = page.documentElement.scrollWidth - frame.clientWidth
  return [wider, unwrapped.length, images, page.scripts.length]
}}).join(" ")</script>"""
FRAME = '<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe>'


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_a_browser_shows_pages_without_errors_or_horizontal_scrolling(tmp_path):
    """Each page in a frame as wide as a phone and in one as wide as a desktop."""
    text = HOSTILE + "x" * 900 + "\u0301" * 50
    makers = (policy_run, reward_model_run, judge_run)
    reports = [write_report(make(tmp_path / make.__name__, text=text)) for make in makers]
    reports.append(write_comparison([path.parent for path in reports]))
    pages = [html.escape(path.read_text("utf-8")) for path in reports]
    frames = [FRAME.format(width=w, page=page) for page in pages for w in (390, 1280)]
    (tmp_path / "frames.html").write_text(MEASURE.format(frames="".join(frames)), "utf-8")
    flags = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    flags += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    command = [BROWSER, *flags, "--window-size=1400,1000", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>([\d, -]+)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    pictures = [page.count("&lt;img src=&quot;data:image/png") for page in pages for _ in range(2)]
    assert sum(pictures) > 20
    assert title[1].split() == [f"0,0,{count},0" for count in pictures]
    assert "CONSOLE" not in done.stderr, done.stderr
