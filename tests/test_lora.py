"""LoRA: adapters against float64 autograd, the shared reference, PEFT's folders, and whole runs."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import exit_of
from test_run_folder_and_resume import interrupt_at, no_report
from test_train_policy import config_of as policy_config
from test_train_policy import tiny_run as tiny_policy_run
from test_train_rm import rows_of
from test_train_rm import tiny_run as tiny_rm_run
from tiny_models import MODELS, parameter_gradients, tiny_folder, tiny_model
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

import train_policy
import train_rm
from rlhf_min import InputError
from rlhf_min.hardware import decoding, packing
from rlhf_min.hardware.optimiser import MasterAdamW
from rlhf_min.models import lora
from rlhf_min.models.alignment import alignment_gap
from rlhf_min.models.loading import load_causal_lm
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.reward_model import load_reward_model
from rlhf_min.models.sampling import sample
from rlhf_min.reporting import folder_files

__all__ = ["no_report", "tiny_policy_run", "tiny_rm_run"]  # fixtures
FAMILIES = sorted({family for family, _ in MODELS} | {"bloom", "falcon", "gemma3", "lfm2", "mamba"})
IDS = torch.tensor([[5, 9, 3, 14, 7, 4], [1, 8, 11, 6, 10, 12]])


def adapted_model(family: str = "llama", rank: int = 3, trained: bool = True, dtype=torch.float64):
    """A tiny model with adapters; trained: their B is random, not zero."""
    model = tiny_model(family, "eager", dtype)
    lora.add_adapters(model, rank, alpha=4.0)
    for i, layer in enumerate(lora.adapted_layers(model).values()):
        if trained:
            nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(i))
    return model


# One layer.


def linear(kind: str) -> nn.Module:
    layer = (nn.Linear(5, 4) if kind == "linear" else Conv1D(4, 5)).double()
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("kind", ["linear", "Conv1D"])
def test_trap_24_gradients_are_those_of_the_merged_weight_scaled_by_alpha_over_rank(kind):
    """W' = W + (α/R)·BA: dL/dA = (α/R)·Bᵀ·dL/dW' and dL/dB = (α/R)·dL/dW'·Aᵀ."""
    torch.manual_seed(0)
    layer = linear(kind)
    adapted, x = lora.LoraLinear(layer, rank=2, alpha=6.0), torch.randn(7, 5).double()
    nn.init.normal_(adapted.B)
    weight = layer.weight.detach() if kind == "linear" else layer.weight.detach().T
    merged = (weight + 3.0 * adapted.B @ adapted.A).detach().requires_grad_(True)
    expected = x @ merged.T + layer.bias
    output = adapted(x)
    assert_close(output, expected, atol=1e-12, rtol=1e-12)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), [merged])
    dA, dB = torch.autograd.grad(output.sin().sum(), [adapted.A, adapted.B])
    assert_close(dA, 3.0 * adapted.B.T @ gradient, atol=1e-12, rtol=1e-12)
    assert_close(dB, 3.0 * gradient @ adapted.A.T, atol=1e-12, rtol=1e-12)
    before = layer.weight.clone()
    assert_close(adapted.merged_layer()(x), expected, atol=1e-12, rtol=1e-12)
    assert type(adapted.merged_layer()) is type(layer) and torch.equal(layer.weight, before)


def test_full_rank_takes_the_direction_of_a_full_fine_tuning_step():
    """With R = inputs and orthogonal A, a gradient step on B moves BA along −dL/dW."""
    torch.manual_seed(0)
    layer = linear("linear")
    adapted, x = lora.LoraLinear(layer, rank=5, alpha=1.0), torch.randn(7, 5).double()
    nn.init.orthogonal_(adapted.A)
    layer.weight.requires_grad_(True)
    full, dB = torch.autograd.grad(adapted(x).sin().sum(), [layer.weight, adapted.B])
    step = adapted.scale * -dB @ adapted.A.detach()
    cosine = -(step * full).sum() / (step.norm() * full.norm())
    assert_close(cosine, torch.ones_like(cosine), atol=1e-12, rtol=0)


def test_a_is_random_with_variance_one_third_over_inputs_and_b_is_zero():
    """PEFT's start: A uniform within ±1/√inputs."""
    adapted = lora.LoraLinear(nn.Linear(400, 30), 50, 1.0, torch.Generator().manual_seed(0))
    assert not adapted.B.any()
    assert 0.99 / 20 < adapted.A.abs().max() <= 1 / 20
    assert abs(adapted.A.std().item() - 1 / math.sqrt(3 * 400)) < 1e-3


# A model.


@pytest.mark.parametrize("family", FAMILIES)
def test_trap_24_with_new_adapters_every_model_gives_its_own_output(family):
    model = tiny_model(family, "eager")
    before, weights = model(IDS).logits, dict(model.named_parameters())
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    lora.add_adapters(model, 3, 4.0)
    assert torch.equal(model(IDS).logits, before)
    assert set(lora.adapted_layers(model)) == linear - {"lm_head"} != set()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.endswith((".A", ".B")) for name in trained)
    assert all(not weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "falcon", "bloom"])
def test_a_merged_model_computes_the_same_and_shared_weights_are_unchanged(family):
    model = adapted_model(family)
    reference, expected = lora.sharing_copy(tiny_model(family, "eager")), model(IDS).logits
    weights = {name: p.clone() for name, p in model.named_parameters()}
    layers = lora.adapted_layers(model)
    lora.merge(model)
    assert not lora.adapted_layers(model)
    assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - reference(IDS).logits).abs().max() > 0.01
    for name, layer in layers.items():
        assert torch.equal(layer.layer.weight, weights[f"{name}.layer.weight"])


def test_gradients_of_a_model_are_those_of_its_merged_form():
    model = adapted_model()
    layers = lora.adapted_layers(model)
    gradients = torch.autograd.grad(
        model(IDS).logits.sin().sum(), [w for layer in layers.values() for w in (layer.A, layer.B)]
    )
    lora.merge(model)
    model.requires_grad_(True)
    names = [name for name, _ in model.named_parameters()]
    full = dict(zip(names, parameter_gradients(model, model(IDS).logits.sin().sum()), strict=True))
    for (name, layer), dA, dB in zip(layers.items(), gradients[::2], gradients[1::2], strict=True):
        gradient = full[f"{name}.weight"]
        assert_close(dA, layer.scale * layer.B.T @ gradient, atol=1e-4, rtol=1e-4)
        assert_close(dB, layer.scale * gradient @ layer.A.T, atol=1e-4, rtol=1e-4)


def test_trap_24_the_reference_shares_all_weights_and_never_gets_adapters():
    model = tiny_model("llama")
    before, reference = model(IDS).logits, lora.sharing_copy(model.train())
    lora.add_adapters(model, 2, 4.0)
    shared = {p.data_ptr() for p in reference.parameters()}
    own = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    assert shared == {p.data_ptr() for p in model.parameters()} - own
    assert not reference.training and not lora.adapted_layers(reference)
    for layer in lora.adapted_layers(model).values():
        nn.init.ones_(layer.B)
    assert torch.equal(reference(IDS).logits, before)
    assert not torch.allclose(model(IDS).logits, before)


def test_the_optimiser_keeps_masters_and_moments_of_the_adapters_only():
    model = adapted_model(dtype=torch.bfloat16)
    adapters = sum(
        layer.A.numel() + layer.B.numel() for layer in lora.adapted_layers(model).values()
    )
    masters = [part["master"] for part in MasterAdamW(model).state_dict()["parts"]]
    assert sum(master.numel() for master in masters) == adapters
    assert all(master.dtype == torch.float32 for master in masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_merges_the_adapters_and_agrees_with_training(dtype):
    model = adapted_model(dtype=dtype)
    names, decoded = list(lora.adapted_layers(model)), []
    handle = lora.LoraLinear.forward
    lora.LoraLinear.forward = lambda self, x: decoded.append(self) or handle(self, x)
    try:
        rollout = sample(model, [[5, 9, 3], [4, 8]], 8, 20, [2])
    finally:
        lora.LoraLinear.forward = handle
    assert not decoded and list(lora.adapted_layers(model)) == names
    assert all("forward" not in vars(module) for module in model.modules())
    gap = alignment_gap(rollout, rollout_log_probs(model, rollout, 1.0, 4))
    assert gap < (1e-5 if dtype == torch.float32 else 0.1)


def test_bfloat16_adapters_are_merged_and_packed_for_sampling():
    if not packing.can_pack():
        pytest.skip("this CPU does not multiply packed bfloat16 weights")
    model = adapted_model(dtype=torch.bfloat16)
    layer = next(iter(lora.adapted_layers(model).values()))
    x = torch.randn(3, 16).bfloat16()
    with torch.no_grad(), decoding.decoding_mode(model, 100):
        merged = layer(x)
        assert "forward" not in vars(layer.layer)
    assert_close(merged, layer.merged_layer()(x), atol=0.02, rtol=0.02)


def test_a_model_without_linear_layers_is_refused():
    model = tiny_model("llama")
    model.base_model.layers = nn.ModuleList()
    with pytest.raises(InputError, match="no linear layers below its head"):
        lora.add_adapters(model, 2, 4.0)


# Whole runs.


def rm_config(tiny_run: dict, out: Path, **settings) -> train_rm.Config:
    return train_rm.Config(**{**tiny_run, "out": str(out), "lora_rank": 3, "lr": 0.02, **settings})


@pytest.fixture(scope="module")
def runs(tiny_policy_run, tiny_rm_run, tmp_path_factory):
    """A finished policy `policy` and a finished reward model `rm` of rank 3, and their bases."""
    place = tmp_path_factory.mktemp("lora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_min.reporting.report.write_report", lambda out: None)
        settings = {"lora_rank": 3, "lr": 0.02, "gradient_checkpointing": True}
        train_policy.main(policy_config(tiny_policy_run, place / "policy", **settings))
        train_rm.main(rm_config(tiny_rm_run, place / "rm", head="ratings"))
    bases = {"policy": tiny_policy_run["model"], "rm": tiny_rm_run["model"]}
    return place, bases


AUTO = {
    "policy": (AutoModelForCausalLM, {}),
    "rm": (AutoModelForSequenceClassification, {"num_labels": 10}),
}


@pytest.mark.parametrize("name", AUTO)
def test_frozen_weights_never_move_and_the_others_move_by_the_adapter(runs, name):
    place, bases = runs
    before = load_file(f"{bases[name]}/model.safetensors")
    after = load_file(place / name / "model.safetensors")
    adapter = load_file(place / name / "adapter" / "adapter_model.safetensors")
    moved = set()
    for weight in before.keys() & after.keys():
        path = "base_model.model." + weight.removesuffix(".weight")
        if f"{path}.lora_A.weight" in adapter:
            change = adapter[f"{path}.lora_B.weight"] @ adapter[f"{path}.lora_A.weight"]
            assert change.any()
            assert_close(after[weight], before[weight] + 16 / 3 * change, atol=1e-6, rtol=1e-5)
            moved.add(weight)
        else:
            assert torch.equal(before[weight], after[weight]), weight
    assert len(moved) == 14  # 7 linear layers in each of 2 blocks
    assert (name == "policy") == (before.keys() == after.keys())
    if name == "rm":
        assert torch.equal(after["score.weight"], adapter["base_model.model.score.weight"])
        assert after["score.weight"].any()


def test_trap_24_the_kl_to_the_shared_reference_is_not_zero(runs):
    rows = rows_of(runs[0] / "policy" / "metrics.jsonl")
    assert rows[0]["kl/mean"] == 0 and abs(rows[-1]["kl/mean"]) > 1e-4
    assert json.loads((runs[0] / "policy/summary.json").read_text())["after"]["kl/mean"] != 0


def test_a_shared_reference_gives_the_numbers_of_a_reference_of_its_own(
    runs, tiny_policy_run, tmp_path
):
    shutil.copytree(tiny_policy_run["model"], tmp_path / "reference")
    settings = {"lora_rank": 3, "lr": 0.02, "reference": str(tmp_path / "reference")}
    train_policy.main(policy_config(tiny_policy_run, tmp_path / "own", **settings))
    files = [place / "model.safetensors" for place in (runs[0] / "policy", tmp_path / "own")]
    one, other = map(load_file, files)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_overwrite_removes_the_adapter_s_files_too(runs, tmp_path):
    folder = Path(shutil.copytree(runs[0] / "rm", tmp_path / "rm"))
    (folder / "adapter" / "mine.txt").write_text("x")
    folder_files.remove_results(folder)
    assert {path.name for path in folder.rglob("*")} == {"run.json", "adapter", "mine.txt"}
    (folder / "adapter" / "mine.txt").unlink()
    folder_files.remove_results(folder)
    assert {path.name for path in folder.rglob("*")} == {"run.json"}


@pytest.mark.parametrize("name", AUTO)
def test_peft_loads_the_adapter_and_computes_the_same_logits(runs, name):
    peft = pytest.importorskip("peft")
    (place, bases), (auto, settings) = runs, AUTO[name]
    base = auto.from_pretrained(bases[name], **settings)
    plain = base(IDS).logits
    adapted = peft.PeftModel.from_pretrained(base, place / name / "adapter").eval()
    merged = auto.from_pretrained(place / name)
    assert_close(adapted(IDS).logits, merged(IDS).logits, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(plain, adapted(IDS).logits, atol=1e-3)


def test_an_adapter_that_peft_made_is_loaded(tmp_path):
    """Conv1D's weights are transposed; PEFT's adapter is on some of the layers only."""
    peft = pytest.importorskip("peft")
    base = tiny_folder(tmp_path / "base", "smol", "gpt2")
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    ours = load_causal_lm(str(tmp_path / "adapter"), torch.float32)
    assert_close(ours(IDS).logits, adapted.eval()(IDS).logits, atol=2e-5, rtol=1e-4)
    assert all(weight.requires_grad for weight in ours.parameters())


def test_an_adapter_folder_is_its_base_model_merged(runs, tiny_policy_run, tmp_path):
    place, _ = runs
    merged = load_causal_lm(str(place / "policy"), torch.float32)
    ours = load_causal_lm(str(place / "policy" / "adapter"), torch.float32)
    assert torch.equal(ours(IDS).logits, merged(IDS).logits)
    ours, merged = (
        load_reward_model(str(path), torch.float32, needs_ratings=True)
        for path in (place / "rm" / "adapter", place / "rm")
    )
    assert torch.equal(ours(IDS).logits, merged(IDS).logits)
    settings = {"model": str(place / "policy" / "adapter"), "steps": 1}
    train_policy.main(policy_config(tiny_policy_run, tmp_path / "next", **settings))
    assert (tmp_path / "next" / "tokenizer.json").exists()


# Resume, and bad input.


def interrupted(monkeypatch, config) -> Path:
    """A run with adapters that was interrupted after step 2."""
    script = train_rm if isinstance(config, train_rm.Config) else train_policy
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            script.main(config)
    return Path(config.out) / "checkpoint.pt"


def test_a_checkpoint_holds_no_frozen_weight(tmp_path, monkeypatch, tiny_policy_run, tiny_rm_run):
    runs = [policy_config(tiny_policy_run, tmp_path / "policy", lora_rank=2)]
    runs.append(rm_config(tiny_rm_run, tmp_path / "rm"))
    for config, name in zip(runs, ("policy", "model"), strict=True):
        weights = torch.load(interrupted(monkeypatch, config), weights_only=True)[name]
        names = {key.rpartition(".")[2] for key in weights if not key.startswith("score.")}
        assert names == {"A", "B", "frozen weights"}


@pytest.mark.parametrize(
    ("other", "cause"),
    [({"lora_rank": 3}, "--lora-rank 2, not 3"), ({"lora_alpha": 8.0}, "--lora-alpha 16.0"),
     ({"lora_rank": 0}, "--lora-rank 2, not 0")],
)  # fmt: skip
def test_resuming_with_another_adapter_is_refused(
    tmp_path, monkeypatch, tiny_policy_run, other, cause, capfd
):
    config = policy_config(tiny_policy_run, tmp_path, lora_rank=2)
    before = interrupted(monkeypatch, config).read_bytes()
    changed = policy_config(tiny_policy_run, tmp_path, resume=True, **{"lora_rank": 2, **other})
    assert cause in exit_of(train_policy, changed, capfd)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_resuming_on_another_base_of_the_same_sizes_is_refused(
    tmp_path, monkeypatch, tiny_policy_run, capfd
):
    model = str(shutil.copytree(tiny_policy_run["model"], tmp_path / "model"))
    tiny_run = {**tiny_policy_run, "model": model}
    before = interrupted(
        monkeypatch, policy_config(tiny_run, tmp_path / "run", lora_rank=2)
    ).read_bytes()
    weights = load_file(f"{model}/model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, f"{model}/model.safetensors", {"format": "pt"})
    resume = policy_config(tiny_run, tmp_path / "run", lora_rank=2, resume=True)
    assert "its frozen weights are others" in exit_of(train_policy, resume, capfd)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_new_pad_token_does_not_change_the_frozen_weights_of_a_resumed_run(
    tmp_path, monkeypatch, tiny_rm_run
):
    """The embeddings get a random row; drawn anew, it would look like another base model."""
    model = str(tiny_folder(tmp_path / "base", "one-special"))
    config = rm_config({**tiny_rm_run, "model": model}, tmp_path / "run")
    interrupted(monkeypatch, config)
    torch.rand(3)
    train_rm.main(replace(config, resume=True))
    assert (tmp_path / "run" / "summary.json").exists()


def wrong_adapter(kind: str, adapter: Path, tmp_path: Path) -> None:
    """Damage an adapter's folder, or give it another base model."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    if kind == "other sizes":
        config["base_model_name_or_path"] = str(
            tiny_folder(tmp_path / "other", "smol", intermediate_size=32)
        )
    elif kind == "other family":
        config["base_model_name_or_path"] = str(tiny_folder(tmp_path / "other", "smol", "gpt2"))
    elif kind == "no base":
        config["base_model_name_or_path"] = str(tmp_path / "absent")
    elif kind == "rsLoRA":
        config["use_rslora"] = True
    elif kind == "no rank":
        config["r"] = 0
    elif kind == "weights":
        (adapter / "adapter_model.safetensors").write_bytes(b"x" * 40)
    text = "[" if kind == "json" else json.dumps(config)
    (adapter / "adapter_config.json").write_text(text)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("other sizes", "is an adapter for another model than"),
        ("other family", "is an adapter for another model than"),
        ("no base", "there is no such folder"),
        ("rsLoRA", "merge it with the PEFT library"),
        ("no rank", "cannot read the adapter"),
        ("weights", "cannot read the adapter"),
        ("json", "cannot read the adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_gives_one_sentence(
    runs, tiny_policy_run, tmp_path, kind, cause, capfd
):
    adapter = Path(shutil.copytree(runs[0] / "policy" / "adapter", tmp_path / "adapter"))
    wrong_adapter(kind, adapter, tmp_path)
    config = policy_config({**tiny_policy_run, "model": str(adapter)}, tmp_path / "out")
    assert cause in exit_of(train_policy, config, capfd)
    assert not (tmp_path / "out").exists()
