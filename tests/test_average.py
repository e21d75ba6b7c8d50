"""python -m rlhf_min.average: the weights of several models become those of one folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_reward_model import trained_folder
from tiny_models import tiny_folder

from rlhf_min import average
from rlhf_min.command_line import run
from rlhf_min.models.loading import load_causal_lm, load_tokenizer, save_model
from rlhf_min.models.lora import add_adapters
from rlhf_min.models.scoring import RewardScorer

FILE = "model.safetensors"


def moved(folder: Path, out: Path, seed: int) -> Path:
    """A copy of a model, as if trained: each weight has moved a little."""
    shutil.copytree(folder, out)
    generator, weights = torch.Generator().manual_seed(seed), load_file(folder / FILE)
    for weight in weights.values():
        noise = torch.randn(weight.shape, generator=generator)
        weight += (0.1 * weight.float().std() * noise).to(weight.dtype)
    save_file(weights, out / FILE, {"format": "pt"})
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("average")
    base = tiny_folder(place / "base", "smol")
    trained_folder(base, place / "rm", "scalar")
    for i in (1, 2):
        moved(place / "rm", place / f"rm-{i}", i)
    return place


def averaged(place: Path, out: Path, *names: str) -> dict[str, torch.Tensor]:
    """The weights that the command writes."""
    words = [*(str(place / name) for name in names), "--out", str(out)]
    assert run(average.main, average.Config, words) == 0
    return load_file(out / FILE)


@pytest.mark.parametrize("count", [2, 3])
def test_a_model_averaged_with_itself_is_itself_bit_for_bit(place, tmp_path, count):
    ours, before = (
        averaged(place, tmp_path / "out", *["rm-1"] * count),
        load_file(place / "rm-1" / FILE),
    )
    assert ours.keys() == before.keys()
    assert all(torch.equal(ours[name], before[name]) for name in ours)


def test_an_average_equals_a_loop_over_the_files_and_is_a_reward_model(place, tmp_path):
    names = ("rm", "rm-1", "rm-2")
    ours = averaged(place, tmp_path / "out", *names)
    files = [load_file(place / name / FILE) for name in names]
    for name, weight in ours.items():
        values = zip(*(file[name].flatten().tolist() for file in files), strict=True)
        expected = torch.tensor([sum(own) / 3 for own in values]).view(weight.shape)
        torch.testing.assert_close(weight, expected, atol=1e-7, rtol=1e-6)
    assert RewardScorer(str(tmp_path / "out"), torch.float32).tokenizer.chat_template
    assert not (tmp_path / "out" / ".lock").exists()


def test_policies_keep_their_dtype_and_tied_embeddings(tmp_path):
    base = tiny_folder(tmp_path / "base", "smol", "qwen2")  # tied
    model = load_causal_lm(str(base), torch.bfloat16)
    (tmp_path / "half").mkdir()
    save_model(model, load_tokenizer(str(base)), tmp_path / "half")
    moved(tmp_path / "half", tmp_path / "other", 1)
    ours = averaged(tmp_path, tmp_path / "out", "half", "other")
    one, two = (load_file(tmp_path / name / FILE) for name in ("half", "other"))
    for name, weight in ours.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, ((one[name].double() + two[name].double()) / 2).bfloat16())
    assert "lm_head.weight" not in ours


@pytest.fixture(scope="module")
def others(place) -> Path:
    """Models that cannot be averaged with `rm`."""
    base = place / "base"
    trained_folder(base, place / "ratings", "ratings")
    trained_folder(tiny_folder(place / "base-2", "smol", seed=5), place / "stranger", "scalar")
    trained_folder(
        tiny_folder(place / "wide-base", "smol", hidden_size=32), place / "wide", "scalar"
    )
    trained_folder(tiny_folder(place / "neox-base", "smol", "gpt_neox"), place / "neox", "scalar")
    shutil.copytree(place / "rm", place / "template")
    (place / "template" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    save_file(
        {name: w.bfloat16() for name, w in load_file(place / "rm" / FILE).items()},
        moved(place / "rm", place / "bfloat16", 3) / FILE, {"format": "pt"},
    )  # fmt: skip
    config = json.loads((place / "bfloat16" / "config.json").read_text())
    (place / "bfloat16" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    for name, start in (("rm-a", "start"), ("rm-b", "another")):
        run_json = moved(place / "rm", place / name, 4) / "run.json"
        run_json.write_text(json.dumps({"config": {"model": start}}))
    adapted = load_causal_lm(str(base), torch.float32)
    add_adapters(adapted, 2, 4.0)
    (place / "lora").mkdir()
    save_model(adapted, load_tokenizer(str(base)), place / "lora")
    return place


@pytest.mark.parametrize(
    ("words", "causes"),
    [
        ("rm", ["two or more", "got 1"]),
        ("", ["two or more", "got 0"]),
        ("rm base", ["base and the models before it differ in their head"]),
        ("rm ratings", ["ratings and the models before it differ in their head"]),
        ("rm wide", ["wide and the models before it differ in their shapes of weights"]),
        ("rm neox", ["neox and the models before it differ in their architecture"]),
        ("rm bfloat16", ["bfloat16 and the models before it differ in their dtype"]),
        ("rm template", ["template and the models before it differ in their tokenizer"]),
        (
            "rm rm-1 stranger",
            ["stranger and the models before it have unlike weights", "start models"],
        ),
        ("rm rm-a rm-b", ["rm-b and the models before it differ in their start model"]),
        ("rm-a rm-b", ["rm-b and the models before it differ in their start model"]),
        ("lora/adapter lora", ["lora/adapter holds adapters only"]),
        ("rm nowhere/at/all", ["nowhere/at/all"]),
        ("rm rm-1 --out rm-2", ["--out rm-2 holds files"]),
        ("rm rm-1 --mean", ["--mean"]),
    ],
)
def test_what_cannot_be_averaged_is_one_sentence(others, monkeypatch, capsys, words, causes):
    monkeypatch.chdir(others)
    before = {str(path) for path in others.rglob("*")}
    line = words.split() if "--out" in words else [*words.split(), "--out", "result"]
    with pytest.raises(SystemExit) as stop:
        run(average.main, average.Config, line)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert all(cause in errors for cause in causes), errors
    assert {str(path) for path in others.rglob("*")} == before
