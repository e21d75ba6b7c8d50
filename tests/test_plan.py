"""The memory that a training needs, told before it starts."""

import pytest
import torch
from tiny_models import tiny_folder

from rlhf_min import InputError, plan
from rlhf_min.command_line import parse
from rlhf_min.models.batches import layout_of
from rlhf_min.models.loading import checkpoint_layers, load_causal_lm
from rlhf_min.models.log_probs import answer_log_probs
from rlhf_min.models.prompt_tree import build_tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("plan") / "base", "smol"))


def plan_of(folder: str, *flags: str) -> dict:
    return plan.main(parse(plan.Config, ["--model", folder, *flags]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_counted_without_memory_are_those_of_a_real_pass(folder, checkpointing):
    """The oracle runs the model on the CPU and counts what autograd keeps."""
    flags = ["--dtype", "float32", "--prompt-tokens", "20", "--answer-tokens", "9"]
    settings = parse(plan.Config, ["--model", folder, *flags])
    empty, model = plan.empty_model(folder, torch.float32), load_causal_lm(folder, torch.float32)
    for each in (empty, model):  # else each device has its own kernel, which keeps other tensors
        each.config._attn_implementation = "eager"
    if checkpointing:
        for each in (empty, model):
            checkpoint_layers(each)
    tree = build_tree([[1] * 20] * 3, [[[1] * 9] * 2] * 3, layout_of(model))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer_log_probs(model, tree)
    real = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in weights)
    assert plan.kept_for_backward(empty, 3, 2, settings) == pytest.approx(
        real, rel=0.06
    )  # small states of random numbers


def test_masters_and_moments_are_divided_among_devices(folder):
    one, four = (plan_of(folder, "--devices", n) for n in ("1", "4"))
    count = sum(p.numel() for p in load_causal_lm(folder, torch.float32).parameters())
    for script in ("train_rm.py", "train_policy.py"):
        assert one[script]["weights"] * 1e9 == 2 * count
        assert one[script]["moments"] * 1e9 == pytest.approx(8 * count)
        assert four[script]["moments"] * 4 == pytest.approx(one[script]["moments"])
        assert four[script]["master weights"] * 4 == pytest.approx(one[script]["master weights"])
    assert plan_of(folder, "--dtype", "float32")["train_rm.py"]["master weights"] == 0


def test_adapters_need_no_moments_for_frozen_weights_and_no_second_reference(folder):
    full, small = plan_of(folder), plan_of(folder, "--lora-rank", "1")
    assert small["train_policy.py"]["reference"] == 0 < full["train_policy.py"]["reference"]
    assert small["train_policy.py"]["moments"] < full["train_policy.py"]["moments"] / 5
    assert small["train_policy.py"]["weights"] > full["train_policy.py"]["weights"]


def test_it_says_what_fits_and_checkpointing_needs_less(folder, capsys):
    lengths = ["--prompt-tokens", "100", "--answer-tokens", "100"]
    long = [*lengths, "--prompts", "64", "--micro-batch", "64"]
    much, less = plan_of(folder, *long), plan_of(folder, *long, "--gradient-checkpointing")
    for script in much:
        assert less[script]["backward pass"] < much[script]["backward pass"]
    middle = (much["train_rm.py"]["peak"] + much["train_policy.py"]["peak"]) / 2
    plan_of(folder, *long, "--memory", str(middle))
    output = capsys.readouterr().out
    assert output.count("train_rm.py fits") == 1 == output.count("train_policy.py does NOT fit")


def test_a_model_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        plan_of(str(tmp_path / "none"))
