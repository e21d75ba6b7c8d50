"""Shared products with packed weights: who shares one, and that each layer gets its own output."""

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from torch.testing import assert_close

from rlhf_min.hardware import packing
from rlhf_min.hardware.attention import NAME
from rlhf_min.hardware.decoding import decoding_mode
from rlhf_min.models.lora import LoraLinear, add_adapters

pytestmark = pytest.mark.skipif(not packing.can_pack(), reason="this CPU has no bfloat16 products")
QKV = ("q_proj", "k_proj", "v_proj")


class Layers(nn.Module):
    """A model of linear layers with these names: sizes 16 → 8, 9, 10, …; `x` is their input."""

    device = torch.device("cpu")

    def __init__(self, names=QKV, biases=(False,) * 9, ins=(16,) * 9):
        super().__init__()
        torch.manual_seed(0)
        for i, (name, bias, size) in enumerate(zip(names, biases, ins, strict=False)):
            self.add_module(name, nn.Linear(size, 8 + i, bias=bias, dtype=torch.bfloat16))


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """The number of output features of every packed product that is computed."""
    real, log = packing.packed_product, []

    def logged(layers):
        product = real(layers)
        return lambda x: (out := product(x), log.append(out.shape[-1]))[0]

    monkeypatch.setattr(packing, "packed_product", logged)
    return log


def check(layer: nn.Module, x: torch.Tensor) -> None:
    """The layer's output is W·x + b in float64, to bfloat16's rounding."""
    plain = layer.merged_layer() if hasattr(layer, "merged_layer") else layer
    bias = 0 if plain.bias is None else plain.bias.double()
    expected = x.double() @ plain.weight.double().T + bias
    found = layer(x)
    assert found.dtype == torch.bfloat16 and found.is_contiguous()  # as of nn.Linear
    assert_close(found.double(), expected, atol=0.02, rtol=0.01)


def numbers() -> torch.Tensor:
    return torch.randn(3, 1, 16, dtype=torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [QKV, QKV[::-1], ("v_proj", "q_proj", "k_proj")])
@torch.no_grad()
def test_one_product_for_the_same_input_in_any_order(order, bias, products):
    model = Layers(biases=(bias,) * 3)
    with decoding_mode(model, 16):
        for step in range(1, 4):
            x = numbers()
            for name in order:
                check(getattr(model, name), x)
            assert products == [8 + 9 + 10] * step


@torch.no_grad()
def test_every_layer_answers_its_own_input():
    """Called alone, twice, with another input, with an equal copy, after a change in place."""
    model, x, other = Layers(), numbers(), numbers()
    with decoding_mode(model, 16):
        check(model.k_proj, x)
        check(model.k_proj, x)
        check(model.q_proj, other)
        check(model.v_proj, other.clone())
        check(model.q_proj, x)
        x.add_(1)
        check(model.k_proj, x)
        x.mul_(2)
        check(model.k_proj, x)
        check(model.v_proj, x)


@torch.no_grad()
def test_rows_written_into_the_same_buffer_are_new_input():
    """The memory of an input may be used again by the next one."""
    model, buffer = Layers(), torch.empty(3, 1, 16, dtype=torch.bfloat16)
    with decoding_mode(model, 16):
        for _ in range(3):
            x = buffer.copy_(numbers())
            check(model.q_proj, x)
            check(model.k_proj, x)


@torch.inference_mode()
def test_inference_tensors_share_a_product_too(products):
    model = Layers()
    with decoding_mode(model, 16):
        x = numbers()
        for name in QKV:
            check(getattr(model, name), x)
    assert products == [27]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"names": ("query", "key", "value")}, [8, 9, 10]),
        ({"names": QKV[:2]}, [8, 9]),
        ({"biases": (True, False, False)}, [8, 9, 10]),
        ({"ins": (16, 8, 16)}, [8, 9, 10]),
        ({"names": ("gate_proj", "up_proj", *QKV)}, [8, 9, 33, 33, 33]),
    ],
)
@torch.no_grad()
def test_who_shares_a_product(settings, sizes, products):
    model = Layers(**settings)
    layers = dict(model.named_children()).values()
    with decoding_mode(model, 16):
        for layer in layers:
            x = numbers()[..., : layer.weight.shape[1]].contiguous()
            check(layer, x)
    assert products == sizes


@torch.no_grad()
def test_a_layer_with_another_forward_or_class_is_left_out(products):
    model = Layers()
    model.k_proj.forward = lambda x: x
    with decoding_mode(model, 16):
        check(model.q_proj, numbers())
        check(model.v_proj, numbers())
    assert products == [8, 10]


@torch.no_grad()
def test_a_layer_under_two_parents_has_one_product():
    model = Layers()
    model.second = Layers()
    model.second.k_proj = model.k_proj
    with decoding_mode(model, 16):
        for parent in (model, model.second):
            x = numbers()
            for name in QKV:
                check(getattr(parent, name), x)


@torch.no_grad()
def test_merged_adapters_share_a_product(products):
    model = Layers(biases=(True,) * 3)
    for name in QKV[:2]:  # the third has no adapter
        adapted = LoraLinear(getattr(model, name), 2, 4.0)
        adapted.B.normal_()
        setattr(model, name, adapted)
    with decoding_mode(model, 16):
        x = numbers()
        for name in QKV:
            check(getattr(model, name), x)
    assert products == [27]


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "granite", "cohere"])
@torch.no_grad()
def test_whole_models(family, adapters, products):
    """Logits as without packing; afterwards every layer is plain again, after an error too."""
    attention = NAME if family in ("llama", "qwen2") else "eager"
    model = tiny_model(family, attention, torch.bfloat16)
    if adapters:
        add_adapters(model, 2, 4.0)
    ids = torch.randint(0, 23, (3, 7), generator=torch.Generator().manual_seed(0))
    plain = model(input_ids=ids).logits
    with pytest.raises(KeyError), decoding_mode(model, 16):
        shared = model(input_ids=ids).logits
        raise KeyError
    assert_close(shared, plain, atol=0.1, rtol=0.05)
    assert len(products) == 2 * 5 + 1  # q+k+v, o, gate, up and down of two layers, and the head
    assert not any("forward" in vars(m) for m in model.modules())
