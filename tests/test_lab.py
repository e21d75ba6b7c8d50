"""Runs of studies: kept by their settings, computed once, written into their section of a page."""

import importlib
import json
import re
from pathlib import Path

import pytest

from experiments import lab, museum_page, zoo_runs
from rlhf_min.zoo import world


def run(settings: dict) -> dict:
    """A run that leaves a trace, so that the test sees which runs were computed."""
    with Path(settings["trace"]).open("a") as trace:
        trace.write(f"{settings['number']}\n")
    if settings["number"] < 0:
        raise ValueError("a negative number")
    return {"square": settings["number"] ** 2}


def test_a_run_is_computed_once_and_rows_keep_the_order_of_the_settings(tmp_path):
    file, trace = tmp_path / "rows.jsonl", tmp_path / "trace"
    settings = [{"number": n, "trace": str(trace)} for n in (3, 1, 2)]
    first = lab.run_all("s", run, settings[:2], file, jobs=2)
    # A killed process may leave half a line: the run of that line is computed again.
    lines = file.read_text().splitlines()
    kept = [line for line in lines if '"number": 1' in line]
    file.write_text(kept[0] + "\n" + '{"settings": {"numb')
    rows = lab.run_all("s", run, settings, file, jobs=2)
    assert [row["result"]["square"] for row in rows] == [9, 1, 4]
    assert [row["settings"]["number"] for row in first] == [3, 1]
    assert sorted(trace.read_text().split()) == ["1", "2", "3", "3"]
    assert [json.loads(line)["settings"]["number"] for line in file.read_text().splitlines()[-2:]]
    assert lab.run_all("s", run, settings, file, jobs=2) == rows
    assert len(trace.read_text().split()) == 4


def test_an_error_in_one_run_keeps_the_rows_of_the_others(tmp_path):
    file, trace = tmp_path / "rows.jsonl", str(tmp_path / "trace")
    settings = [{"number": n, "trace": trace} for n in (-1, 5)]
    with pytest.raises(RuntimeError, match="-1"):
        lab.run_all("s", run, settings, file, jobs=1)
    assert [row["result"] for row in lab.read_rows(file).values()] == [{"square": 25}]


def test_equal_settings_in_another_order_are_one_run():
    assert lab.key({"a": 1, "b": 2}) == lab.key({"b": 2, "a": 1}) != lab.key({"a": 2, "b": 1})


def test_a_section_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    begin, end = "<!-- begin: python -m experiments.x -->", "<!-- end: x -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    lab.publish("x", "new \\1\n", page)
    assert page.read_text() == f"before\n{begin}\nnew \\1\n{end}\nafter\n"
    with pytest.raises(SystemExit, match="no section"):
        lab.publish("y", "text", page)


@pytest.mark.slow
@pytest.mark.parametrize("study", sorted(p.stem for p in lab.ROWS.glob("*.jsonl")))
def test_the_pages_show_what_the_committed_rows_say(study, tmp_path):
    """After a change of rows or of a report: `python -m experiments.NAME --tables`."""
    module = importlib.import_module(f"experiments.{study}")
    if study == "leaderboard":
        pytest.skip("test_leaderboard.py compares its tables")
    rows = lab.rows_of(module.settings(False), lab.ROWS / f"{study}.jsonl")
    text = getattr(module, "report", museum_page.report)(rows, tmp_path)
    files = (lab.PAGE, museum_page.PAGE, lab.ROOT / "README.md")
    pages = "".join(page.read_text("utf-8") for page in files)
    assert rows
    for name, part in (text if isinstance(text, dict) else {study: text}).items():
        assert f"experiments.{name} -->\n{part.strip()}\n<!-- end" in pages, name
    figures = set(re.findall(r"\((?:docs/)?figures/(.*?)\)", pages))
    assert figures >= {file.name for file in tmp_path.iterdir()}
    assert all((lab.FIGURES / file).exists() for file in figures)


def test_the_interval_is_students_t():
    """The table of Student (1908): for 4 degrees of freedom the 97.5 % quantile is 2.776."""
    mean, low, high = lab.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764 * (2.5**0.5) / 5**0.5  # the variance of 1..5 is 2.5
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-4)
    assert lab.shown([1.0]) == "1.00 (1 seed)" and lab.shown([]) == "–"
    assert lab.shown([1.0, 3.0, 2.0]) == "2.00 [-0.48, 4.48]"
    assert lab.shown([2.0, 1.0]) == "1.50 (1.00, 2.00)"  # two values: their range


def test_a_thing_is_built_once_and_again_after_a_build_that_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path))
    built = []

    def build(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        built.append(folder)
        if len(built) == 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError):
        zoo_runs.built("x", {"seed": 0}, build)
    folder = zoo_runs.built("x", {"seed": 0}, build)
    assert zoo_runs.built("x", {"seed": 0}, build) == folder and len(built) == 2
    assert zoo_runs.built("x", {"seed": 1}, build) != folder


def test_gold_pairs_are_ordered_by_the_gold_rating(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path))
    rows = [json.loads(line) for line in zoo_runs.gold_pairs(50, 3).read_text().splitlines()]
    assert len(rows) == 50
    for row in rows:
        chosen, rejected = (
            world.gold_rating(row["prompt"], row[k]) for k in ("chosen", "rejected")
        )
        assert chosen > rejected
    assert {row["prompt"] for row in rows} <= set(world.prompts("train"))
