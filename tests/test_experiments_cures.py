"""The study of cures: gold at equal KL by hand, and a tiny run."""

from types import SimpleNamespace

import pytest

from experiments import cures, cures_runs, zoo_runs


def test_gold_at_a_kl_is_where_the_curve_first_reaches_it():
    curve = [[0.0, 5.0], [4.0, 7.0], [1.0, 3.0], [9.0, 1.0]]
    assert cures.gold_at(curve, 1.0) == pytest.approx(6.0)  # half-way in √KL, on the way up
    assert cures.gold_at(curve, 4.0) == 7.0
    assert cures.gold_at(curve, 6.25) == pytest.approx(1.5)  # √6.25 is 3/4 of the way from 1 to 3
    assert cures.gold_at(curve, 10.0) is None


def test_a_reward_of_one_is_worth_the_ratio_of_the_standard_deviations(tmp_path, monkeypatch):
    """A predicted gain must not change with the unit of the learned reward."""
    answers = [{"prompt": "p", "before": "a" * n, "before_gold": 2.0 * n} for n in range(1, 6)]
    for unit in (1.0, 10.0):
        judge = SimpleNamespace(scores=lambda prompt, texts, u=unit: [u * len(t) for t in texts])
        monkeypatch.setattr(cures_runs, "reward_model_judge", lambda path, j=judge: j)
        ratio = cures_runs.ratings_per_reward(tmp_path, answers)
        assert ratio * unit == pytest.approx(2.0)


def test_a_tiny_run_and_its_report(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MIN_LAB", str(tmp_path / "lab"))
    wanted = [one for one in cures_runs.settings(quick=True) if one["cure"] == "ensemble, min"]
    with zoo_runs.without_reports():
        rows = [{"settings": one, "result": cures_runs.run(one)} for one in wanted[:1]]
    result = rows[0]["result"]
    assert len(result["curve"]) > 1 and 1 <= result["gold"] <= 10 and 0 <= result["accuracy"] <= 1
    text = cures.report(rows, tmp_path)
    assert "| ensemble, min |" in text and (tmp_path / "cures.png").exists()


def row(cure: str, seed: int, gold: float, like: str | None = None, **more) -> dict:
    """A row with KL weight 0.2 whose four policies end at `gold`."""
    own = {"cure": cure, "kl": cures_runs.LOOP_KL, "seed": seed, "quick": False}
    curve = [[float(n), gold - 0.1 * (3 - n)] for n in range(4)]
    if like:
        own["like"] = like
        curve.insert(0, [0.0, 5.0])  # these runs begin with the start model
    return {"settings": own, "result": {"gold": gold, "kl": 3.0, "curve": curve, **more}}


def test_the_loops_are_compared_with_as_many_pairs_at_once_after_as_many_epochs():
    loop, longer, more = cures_runs.LOOP, cures_runs.LONGER, cures_runs.MORE
    judged = {"comparisons": [1000, 500, 250], "predicted": [0.0, 0.4, 0.3, 0.2]}
    rows = []
    for seed in range(3):
        level = 7.0 + seed  # differences are taken within a seed
        early = [[0.0, level + 0.8], *([float(n), level + 1.5] for n in (1, 2, 3))]
        rows.append(row(loop, seed, level + 1, **judged))  # its first policy: level + 0.7
        rows.append(row(longer, seed, level + 1.5, **judged, curve=early))
        rows += [row(more, seed, level, like=loop), row(more, seed, level + 0.75, like=longer)]
    lines = cures.loop_differences(rows).splitlines()[2:]
    gaps = (1, 0.75, 0.25, 0.5, 0.75, 0.1)
    for line, gap in zip(lines, gaps, strict=True):
        assert line.endswith(f"| {gap:.2f} [{gap:.2f}, {gap:.2f}] |"), line
    header, _, first, *_, last = cures.loop_table(rows).splitlines()
    place = header.split(" | ").index(longer)
    assert last.split(" | ")[place].endswith("; 1750") and ";" not in first
    once = [cell for cell in header.split(" | ") if "at once" in cell]
    assert [cell.strip(" |").rpartition(", ")[2] for cell in once] == ["1 epoch", "6 epochs"]
    assert cures.loop_differences(rows[:1]) == ""


@pytest.mark.parametrize(("like", "epochs"), [(cures_runs.LOOP, 1.0), (cures_runs.LONGER, 6.0)])
def test_the_pairs_at_once_are_learned_in_as_many_epochs_as_the_loop_s(like, epochs, monkeypatch):
    class SeenError(Exception):
        """Raised where the training would begin; holds its settings."""

    def no_training(start, **settings):
        raise SeenError(settings)

    monkeypatch.setattr(zoo_runs, "start_model", lambda seed, **_: None)
    monkeypatch.setattr(zoo_runs, "gold_pairs", lambda count, seed: f"{count} pairs")
    monkeypatch.setattr(zoo_runs, "reward_model", no_training)
    wanted = [one for one in cures_runs.settings(quick=False) if one.get("like") == like]
    assert [one["seed"] for one in wanted] == list(range(5))
    with pytest.raises(SeenError) as stop:
        cures_runs.run(wanted[0])
    train = stop.value.args[0]
    assert train.get("epochs", 1.0) == epochs and train["data"] == ["zoo", "5700 pairs"]
