"""The bug museum: mistakes are in place while a run lasts, and the page says what the rows say."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from experiments import museum, museum_page  # noqa: E402
from experiments.museum_exhibits import EXHIBITS, source  # noqa: E402

MISTAKES = museum_page.MISTAKES
# The log-probs of the training forward are wrong in these: the alignment check must see it.
MISALIGNED = {"misplaced", "temperature"}
OTHERS = {"right", "right-ratings", "reward-at-pad", "triu", "greedy"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of --quick, of some exhibits: all take half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_MIN_LAB", str(tmp_path_factory.mktemp("lab")))
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr("rlhf_min.reporting.report.write_report", lambda *_: None)  # takes time
        wanted = [one for one in museum.settings(True) if one["exhibit"] in MISALIGNED | OTHERS]
        return [{"settings": one, "result": museum.run(one)} for one in wanted]


def test_mistakes_show_and_the_guard_catches_the_wrong_log_probs(rows):
    results = {row["settings"]["exhibit"]: row["result"] for row in rows}
    assert {name for name, one in results.items() if one["guard"]} == MISALIGNED
    assert results["misplaced"]["guard"].startswith("the log-probs of sampling and training differ")
    assert results["right"]["curves"] != results["reward-at-pad"]["curves"]
    assert results["greedy"]["last"]["text/equal"] > results["right"]["last"]["text/equal"]
    told, right = (results[name]["reward_model"] for name in ("triu", "right-ratings"))
    assert (told["reward/chosen"] - told["reward/rejected"]) * (
        right["reward/chosen"] - right["reward/rejected"]
    ) < 0  # upside down


def test_no_mistake_stays_after_its_run(rows):
    assert {one["exhibit"] for one in museum.settings(True)} == set(EXHIBITS)
    for name in MISTAKES:
        for place, wrong in EXHIBITS[name].patches().items():
            before = found(place)
            with museum.patched({place: wrong}):
                assert found(place) is not before
            assert found(place) is before


def found(place: str):
    """What stands at a dotted place."""
    names = place.split(".")
    for cut in range(len(names), 0, -1):
        try:
            thing = importlib.import_module(".".join(names[:cut]))
        except ModuleNotFoundError:
            continue
        for name in names[cut:]:
            thing = getattr(thing, name)
        return thing
    raise AssertionError(f"{place} does not exist")


def test_the_report_has_every_exhibit_and_the_page_a_place_for_it(rows, tmp_path):
    sections = museum_page.report(rows, tmp_path)
    page = museum_page.PAGE.read_text()
    assert (tmp_path / "museum.png").stat().st_size > 10_000
    assert set(sections) == {"museum", *(f"museum {name}" for name in MISTAKES)}
    for name, text in sections.items():
        assert page.count(f"<!-- begin: python -m experiments.{name} -->") == 1
        assert page.count(f"<!-- end: {name} -->") == 1
        assert name == "museum" or f'<a id="{name.split()[1]}"></a>' in page, text
    run = {row["settings"]["exhibit"] for row in rows} & set(MISTAKES)
    assert sections["museum"].count("\n| [") == len(run)
    assert "too few seeds" in sections["museum"]  # one seed shows nothing


def test_the_page_shows_the_present_source_of_each_exhibit():
    """`python -m experiments.museum --tables` writes it; an exhibit that changed needs new runs."""
    page = museum_page.PAGE.read_text()
    for name in MISTAKES:
        begin = re.escape(f"<!-- begin: python -m experiments.museum {name} -->")
        section = re.search(f"{begin}(.*?)<!-- end", page, re.DOTALL).group(1)
        assert f"```python\n{source(name)}\n```" in section, name


def pair(own: float, right: float, before=5.7, guard="") -> tuple[dict, dict]:
    result = {"gold_before": before, "guard": guard, "last": {"kl/mean": own}}
    return result | {"gold_after": own}, result | {"gold_after": right, "last": {"kl/mean": right}}


@pytest.mark.parametrize(
    ("both", "says"),
    [
        ([(8.5, 8.5), (8.4, 8.5), (8.6, 8.5)], "no harm seen here"),
        ([(1.0, 8.5), (1.1, 8.4), (1.0, 8.6)], "falls"),
        ([(6.9, 8.5), (6.8, 8.4), (7.0, 8.6)], "worse than the right code"),
        ([(8.9, 7.5), (8.8, 7.4), (9.0, 7.6)], "better than the right code, here"),
        ([(8.9, 8.5), (6.8, 8.4), (7.0, 8.6)], "differs between seeds"),
        ([(1.0, 8.5)], "too few seeds"),
    ],
)
def test_verdicts_follow_from_intervals(both, says):
    assert museum_page.verdict([pair(*golds) for golds in both]) == says


def test_a_guard_counts_only_if_it_stops_every_seed():
    both = [pair(1.0, 8.5, guard="gap"), pair(1.1, 8.5, guard="gap"), pair(1.0, 8.5, guard="gap")]
    assert museum_page.verdict(both) == "stopped by a guard; without it: falls"
    both[1] = pair(1.1, 8.5)
    assert museum_page.verdict(both) == "falls"


def test_a_metric_is_named_only_beyond_the_range_of_all_seeds():
    assert museum_page.moved([pair(9.0, 2.0), pair(8.0, 3.0)]) == ["`kl/mean` 8.5 (right: 2.5)"]
    assert museum_page.moved([pair(9.0, 2.0), pair(2.5, 3.0)]) == []


def test_the_counts_of_what_one_would_notice():
    def seeds(own, guard, level):
        result = pair(own, 8.5, guard=guard)[0] | {"diagnosis": [level, ""]}
        return {0: result, 1: result}

    right = {seed: pair(8.5, 8.5)[1] for seed in (0, 1)}
    results = {"right": right, "end-dropped": seeds(8.4, "gap", "healthy")}
    results |= {"greedy": seeds(5.0, "", "hacking"), "own-batch": seeds(8.6, "", "healthy")}
    assert museum_page.counts(results) == (
        "Of 3 mistakes the alignment check stops 1 in the first step. Without it, 2 of the 3 would "
        "end less than one rating below the right code, and the report would call 2 healthy in "
        "every seed; 1 of those pass the alignment check too."
    )


def test_trap_1_first_places_are_those_of_the_row_by_a_loop():
    from experiments.museum_exhibits import first_places
    from rlhf_min.models.layout import Layout
    from rlhf_min.models.prompt_tree import build_tree

    prompt, answers = [7, 8, 9], [[1, 2], [3, 4, 5, 6]]
    layout = Layout(True, 64, torch.float32, torch.device("cpu"))
    tree = build_tree([prompt], [answers], layout)
    before, after = first_places(tree)
    ids, expected_before, expected_after = tree.ids.flatten(), [], []
    for answer in answers:
        row = prompt + answer
        expected_before += row[: len(answer)]
        expected_after += row[1 : len(answer) + 1]
    assert ids[before].tolist() == expected_before and ids[after].tolist() == expected_after
