"""The last layer at some positions only: the same states and gradients there."""

from dataclasses import replace

import pytest
import torch
from test_prompt_tree import BRANCHES, PROMPTS, layout
from tiny_models import NAME, parameter_gradients, tiny_folder, tiny_model, tolerance
from torch.testing import assert_close
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DogeConfig, DogeForCausalLM

from rlhf_min.hardware.attention import use_products
from rlhf_min.hardware.last_layer import last_layer_at
from rlhf_min.models.alignment import alignment_gap
from rlhf_min.models.batches import choose_layout, end_states
from rlhf_min.models.loading import checkpoint_layers
from rlhf_min.models.log_probs import rollout_log_probs
from rlhf_min.models.prompt_tree import build_tree, hidden_states
from rlhf_min.models.reward_model import branch_outputs, new_reward_model
from rlhf_min.models.sampling import sample

AS_IN_LLAMA = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "granite", "cohere"]
OTHERS = ["gpt2", "gpt_neo", "gpt_neox"]
EAGER = ["gemma2", "granite", "cohere", "gpt_neo"]


def attention_of(family: str) -> str:
    return "eager" if family in EAGER else "sdpa"


def counted_positions(module) -> list[int]:
    """A list to which each forward of the module adds the number of its positions."""
    counts: list[int] = []
    module.register_forward_hook(lambda _, args, out: counts.append(args[0][..., 0].numel()))
    return counts


@pytest.mark.parametrize("family", AS_IN_LLAMA)
@pytest.mark.parametrize("max_row", [10_000, 14])
def test_states_and_gradients_at_the_places_are_those_of_the_whole_layer(family, max_row):
    model = tiny_model(family, attention_of(family))
    tree = build_tree(PROMPTS, BRANCHES, layout(max_row=max_row))
    positions = counted_positions(model.base_model.layers[-1].mlp.down_proj)
    whole = hidden_states(model, tree)[tree.ends]
    with last_layer_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)[tree.ends]
    most = tree.ends.div(tree.ids.shape[1], rounding_mode="floor").bincount().max()
    assert positions == [tree.ids.numel(), len(tree.ids) * most]
    assert_close(part, whole, **tolerance(family))
    weights = torch.randn_like(whole)
    wanted, found = (parameter_gradients(model, (weights * x).sum()) for x in (whole, part))
    assert sum(g.abs().sum() for g in wanted) > 0
    for w, f in zip(wanted, found, strict=True):
        assert_close(f, w, **tolerance(family))


def test_places_come_in_any_order():
    """Trees share rows, so an answer may lie in a row before that of the answer before it."""
    model = tiny_model("llama")
    draw = torch.Generator().manual_seed(0)
    own = [
        [torch.randint(23, (n,), generator=draw).tolist() for n in (20, m)]
        for m in (48, 18, 28, 38)
    ]
    tree = build_tree([[1, 2]] * 4, own, layout())  # of 70, 40, 50 and 60 tokens
    assert (tree.ends[1:] < tree.ends[:-1]).any()
    whole = hidden_states(model, tree)[tree.ends]
    with last_layer_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)[tree.ends]
    assert_close(part, whole, **tolerance("llama"))


def test_branch_by_branch_attention_of_the_other_layers_stays():
    model = tiny_model("llama", NAME)
    tree = build_tree(PROMPTS, BRANCHES, replace(layout(), spans_from=0))
    assert tree.spans
    whole = hidden_states(model, tree)[tree.ends]
    with last_layer_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)[tree.ends]
    assert_close(part, whole, **tolerance("llama"))


def test_other_positions_are_not_computed_to_the_end():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    with last_layer_at(model, tree.ends, tree.ids.shape):
        states = hidden_states(model, tree)
    others = torch.ones(len(states), dtype=torch.bool).index_fill(0, tree.ends, False)
    assert not states[others].any()
    assert states[tree.ends].abs().amax(-1).min() > 0


@pytest.mark.parametrize("family", AS_IN_LLAMA)
def test_a_layout_knows_that_the_last_layer_can_be_computed_at_the_ends(family):
    assert choose_layout(tiny_model(family, attention_of(family))).ends_only


@pytest.mark.parametrize("family", OTHERS)
def test_other_models_are_computed_as_a_whole(family):
    assert not choose_layout(tiny_model(family, attention_of(family))).ends_only


def test_a_model_that_calls_its_last_layer_twice_is_computed_as_a_whole():
    model = tiny_model("llama")
    model.base_model.layers[0] = model.base_model.layers[1]
    assert not choose_layout(model).ends_only


def test_a_layer_that_gives_other_states_there_is_computed_as_a_whole():
    """A layer whose output depends on how many positions it sees, by 1 % of the values."""
    model = tiny_model("llama")
    layer = model.base_model.layers[-1]
    plain = layer.forward
    layer.forward = lambda x, *args, **kwargs: plain(x, *args, **kwargs) + 0.01 * (x.shape[1] < 5)
    assert not choose_layout(model).ends_only


def test_a_layer_that_does_not_use_its_cache_is_computed_as_a_whole():
    model = tiny_model("llama")
    layer = model.base_model.layers[-1]
    plain = layer.forward
    layer.forward = lambda x, **kwargs: plain(x, **kwargs | {"past_key_values": None})
    assert not choose_layout(model).ends_only


@pytest.mark.parametrize("experts", [False, True])
def test_a_mixture_of_experts_gives_the_same_outputs(experts):
    """Doge's experts are found by a router that sees the whole row at once."""
    sizes = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 64}
    router = {"is_moe": experts, "num_experts": 16, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**sizes, **heads, **router)).double().eval()
    model.score = torch.nn.Linear(16, 1, dtype=torch.float64)
    own = choose_layout(model)
    tree = build_tree(PROMPTS, BRANCHES, own)
    whole = model.score(hidden_states(model, tree)[tree.ends])
    assert_close(branch_outputs(model, tree), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("branches", [BRANCHES, [own[:1] for own in BRANCHES]])
def test_values_of_another_size_than_queries_also_with_one_answer_per_row(branches):
    """A policy's evaluation scores one answer to each prompt.  DeepSeek-V3 has such values."""
    config = DeepseekV3Config(
        vocab_size=23, hidden_size=16, intermediate_size=24, moe_intermediate_size=8,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, head_dim=8,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = use_products(DeepseekV3ForCausalLM(config).eval())
    own = choose_layout(model)
    assert own.tree
    assert own.ends_only
    tree = build_tree(PROMPTS, branches, own)
    assert_close(end_states(model, tree), hidden_states(model, tree)[tree.ends])
    rollout = sample(model, PROMPTS, 2, 4, [2])
    assert alignment_gap(rollout, rollout_log_probs(model, rollout, 1.0, 8)) < 1e-5


def test_a_layer_that_fails_with_one_answer_per_row_is_computed_as_a_whole():
    model = tiny_model("llama")
    layer = model.base_model.layers[-1]
    plain = layer.forward

    def forward(x, *args, **kwargs):
        if x.shape[1] == 1:
            raise ValueError
        return plain(x, *args, **kwargs)

    layer.forward = forward
    assert not choose_layout(model).ends_only


def test_a_reward_model_uses_it_for_the_ends_of_the_answers(tmp_path):
    model = new_reward_model(str(tiny_folder(tmp_path / "m")), "scalar", torch.float32)
    positions = counted_positions(model.base_model.layers[-1].mlp.down_proj)
    tree = build_tree([[5, 6, 7], [8]], [[[9, 10, 1], [11]], [[12, 13]]], choose_layout(model))
    positions.clear()
    branch_outputs(model, tree)
    assert positions[-1] == 3  # three answers in one row


def test_with_gradient_checkpointing_the_layer_is_computed_as_a_whole():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    wanted = parameter_gradients(model, hidden_states(model, tree)[tree.ends].square().sum())
    checkpoint_layers(model)
    with last_layer_at(model, tree.ends, tree.ids.shape):
        part = hidden_states(model, tree)[tree.ends]
    for w, f in zip(wanted, parameter_gradients(model, part.square().sum()), strict=True):
        assert_close(f, w)


def test_after_the_context_every_position_is_computed_again_also_after_an_error():
    model = tiny_model("llama")
    tree = build_tree(PROMPTS, BRANCHES, layout())
    whole = hidden_states(model, tree)
    with pytest.raises(KeyError), last_layer_at(model, tree.ends, tree.ids.shape):
        raise KeyError
    assert torch.equal(hidden_states(model, tree), whole)
