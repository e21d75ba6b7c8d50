"""The last layer's MLP at some positions only: the same states and gradients there."""

from dataclasses import replace

import pytest
import torch
from test_prompt_tree import BRANCHES, PROMPTS, layout
from tiny_models import parameter_gradients, tiny_folder, tiny_model, tolerance
from torch.testing import assert_close
from transformers import DogeConfig, DogeForCausalLM

from rlhf_min.hardware.last_mlp import last_layer, last_mlp_at
from rlhf_min.models.loading import checkpoint_layers
from rlhf_min.models.prompt_tree import build_tree, hidden_states
from rlhf_min.models.reward_model import branch_outputs, new_reward_model

GATED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "granite", "cohere"]
OTHERS = ["gpt2", "gpt_neo", "gpt_neox"]
EAGER = ["gemma2", "granite", "cohere", "gpt_neo"]


def counted_rows(module) -> list[int]:
    """A list to which each forward of the module adds the number of its positions."""
    rows: list[int] = []
    module.register_forward_hook(lambda _, args, out: rows.append(args[0][..., 0].numel()))
    return rows


@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize("tree_form", [True, False])
def test_states_and_gradients_at_the_places_are_those_of_the_whole_pass(family, tree_form):
    model = tiny_model(family, "eager" if family in EAGER else "sdpa")
    tree = build_tree(PROMPTS, BRANCHES, layout(tree_form))
    rows = counted_rows(last_layer(model).mlp.down_proj)
    whole = hidden_states(model, tree)[tree.ends]
    with last_mlp_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)[tree.ends]
    assert rows == [tree.ids.numel(), len(tree.ends)]
    assert_close(part, whole, **tolerance(family))
    weights = torch.randn_like(whole)
    wanted, found = (parameter_gradients(model, (weights * x).sum()) for x in (whole, part))
    assert sum(g.abs().sum() for g in wanted) > 0
    for w, f in zip(wanted, found, strict=True):
        assert_close(f, w, **tolerance(family))


def test_a_reward_model_uses_it_for_the_ends_of_the_answers(tmp_path):
    model = new_reward_model(str(tiny_folder(tmp_path / "m")), "scalar", torch.float32)
    rows = counted_rows(last_layer(model).mlp.down_proj)
    tree = build_tree([[5, 6, 7], [8]], [[[9, 10, 1], [11]], [[12, 13]]], layout())
    branch_outputs(model, replace(tree, mask=tree.mask.float()))
    assert rows == [3]


def test_other_positions_are_not_computed_to_the_end():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    whole = hidden_states(model, tree)
    with last_mlp_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)
    differs = (part - whole).abs().amax(-1) > 1e-6
    assert not differs[tree.ends].any()
    assert differs.sum() == len(differs) - len(tree.ends)


def test_a_mixture_of_experts_with_these_names_is_computed_as_a_whole():
    """Doge's experts are found by a router beside the three projections, and read whole rows."""
    sizes = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 64}
    experts = {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2}
    model = DogeForCausalLM(DogeConfig(**sizes, **heads, **experts)).eval()
    assert {"gate_proj", "up_proj", "down_proj"} <= {
        name for name, _ in model.base_model.layers[-1].mlp.named_children()
    }
    assert last_layer(model) is None


def test_rows_and_columns_in_another_order_are_computed_as_a_whole():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    whole = hidden_states(model, tree)
    with last_mlp_at(model, tree.ends, tree.ids.T.shape):
        assert torch.equal(hidden_states(model, tree), whole)


@pytest.mark.parametrize("family", OTHERS)
def test_a_model_without_a_gated_mlp_is_computed_as_a_whole(family):
    model = tiny_model(family, "eager" if family in EAGER else "sdpa")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    whole = hidden_states(model, tree)
    with last_mlp_at(model, tree.ends, tree.ids.shape):
        assert torch.equal(hidden_states(model, tree), whole)


def test_with_gradient_checkpointing_a_layer_is_computed_again_as_a_whole():
    model = tiny_model("llama")
    checkpoint_layers(model)
    tree = build_tree(PROMPTS, BRANCHES, layout())
    wanted = parameter_gradients(model, hidden_states(model, tree)[tree.ends].square().sum())
    with last_mlp_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)[tree.ends]
    for w, f in zip(wanted, parameter_gradients(model, part.square().sum()), strict=True):
        assert_close(f, w)
    rows = counted_rows(last_layer(model).mlp.down_proj)
    with (
        torch.no_grad(),
        last_mlp_at(model, tree.ends, tree.ids.shape),
    ):  # nothing is computed again here
        hidden_states(model, tree)
    assert rows == [len(tree.ends)]


def test_after_the_context_every_position_is_computed_again_also_after_an_error():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    whole = hidden_states(model, tree)
    with pytest.raises(KeyError), last_mlp_at(model, tree.ends, tree.ids.shape):
        raise KeyError
    assert torch.equal(hidden_states(model, tree), whole)


def test_a_model_that_calls_its_last_layer_twice_is_an_error_and_not_a_wrong_number():
    model = tiny_model("llama")
    layers = model.base_model.layers
    layers[0] = layers[1]
    tree = build_tree(PROMPTS, BRANCHES, layout())
    with pytest.raises(RuntimeError, match="twice"), last_mlp_at(model, tree.ends, tree.ids.shape):
        hidden_states(model, tree)
