"""Decoding: the growing cache, the static one that a GPU replays as a graph, packed weights."""

from contextlib import contextmanager

import pytest
import torch
from tiny_models import MODELS, tiny_model
from torch import nn
from torch.testing import assert_close

import rlhf_min.decoding as decoding
from rlhf_min.attention import NAME
from rlhf_min.decoding import (
    Decoder,
    StaticDecoder,
    captured,
    make_decoder,
    packed_weights,
)
from rlhf_min.sampling import sample

WHOLE = [(family, attention) for family, attention in MODELS if family != "gemma2"]  # no window
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14]]
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 3, 9, 3, 9, 3], [0, 1, 2, 0, 1, 2]])


def plain_logits(model, answers: torch.Tensor) -> torch.Tensor:
    """Oracle: what follows each whole row, computed without a cache: [B, V]."""
    rows = [PROMPTS[b // 2] + answer for b, answer in enumerate(answers.tolist())]
    return torch.stack([model(torch.tensor([r]), use_cache=False).logits[0, -1] for r in rows])


@pytest.mark.parametrize("kind", [Decoder, StaticDecoder])
@pytest.mark.parametrize(("family", "attention"), MODELS)
@torch.no_grad()
def test_each_step_follows_from_the_whole_row(kind, family, attention):
    """Padded prompts, two samples each, rows that leave in the middle."""
    if kind is StaticDecoder and (family, attention) not in WHOLE:
        pytest.skip("its layers with a window keep a cache of their own")
    model = tiny_model(family, attention, torch.float32)
    decoder = kind(model, PROMPTS, 2, 4)
    assert_close(decoder.logits, plain_logits(model, torch.zeros(6, 0, dtype=torch.long)))
    for t in range(2):
        logits = decoder(TOKENS[t])
        assert_close(logits, plain_logits(model, TOKENS[: t + 1].T), atol=1e-4, rtol=1e-4)
    left = torch.tensor([0, 3, 4])
    decoder.keep(left)
    logits = decoder(TOKENS[2, left])
    assert_close(logits, plain_logits(model, TOKENS.T)[left], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_graph_finds_everything_where_it_was():
    """What a replayed graph reads and writes stays in place; warming up twice changes nothing."""
    model = tiny_model("llama", "sdpa", torch.float32)
    decoder = StaticDecoder(model, PROMPTS, 2, 4)

    def places() -> list[int]:
        layers = decoder.cache.layers
        tensors = [decoder.token, decoder.position, decoder.mask, decoder.slot]
        tensors += [x for layer in layers for x in (layer.key_store, layer.value_store)]
        tensors += [x for layer in layers for x in (layer.keys, layer.values)]
        return [tensor.data_ptr() for tensor in tensors]

    before = places()
    for t in range(3):
        logits = decoder(TOKENS[t])
        assert_close(decoder._one_step(), logits, rtol=0, atol=0)
    assert places() == before


@pytest.mark.parametrize(("family", "attention"), WHOLE)
@torch.no_grad()
def test_a_step_waits_for_no_number(family, attention):
    """A graph cannot be captured from a step that reads a tensor; meta tensors have no numbers."""
    model = tiny_model(family, attention, torch.float32).to("meta")
    decoder = StaticDecoder(model, PROMPTS, 2, 4)
    for _ in range(2):
        assert decoder(torch.zeros(6, dtype=torch.long, device="meta")).shape == (6, 23)
    decoder.keep(torch.zeros(2, dtype=torch.long, device="meta"))
    logits = decoder(torch.zeros(2, dtype=torch.long, device="meta"))
    assert logits.shape == (2, 23) and logits.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):  # it would be noticed
        logits.sum().item()


@pytest.mark.parametrize(
    ("family", "device", "extra", "static"),
    [
        ("llama", "cuda", {}, True),
        ("gpt_neox", "cuda", {}, True),
        ("gpt_neo", "cuda", {}, True),
        ("llama", "cpu", {}, False),
        ("gemma2", "cuda", {}, False),  # half of its layers have a window
        ("mistral", "cuda", {}, True),
        ("mistral", "cuda", {"sliding_window": 5}, False),
        ("gpt_neo", "cuda", {"window_size": 10}, False),
    ],
)
def test_who_decodes_from_a_static_cache(family, device, extra, static, monkeypatch):
    model = tiny_model(family, "eager", torch.float32, **extra)
    monkeypatch.setattr(type(model), "device", torch.device(device))
    for kind in (Decoder, StaticDecoder):
        monkeypatch.setattr(decoding, kind.__name__, lambda *args, kind=kind: kind)
    assert make_decoder(model, PROMPTS, 2, 4) is (StaticDecoder if static else Decoder)


@torch.no_grad()
def test_sampling_from_the_static_cache_gives_the_same_answers(monkeypatch):
    model = tiny_model("llama", "sdpa", torch.float32)

    def answers():
        seed = torch.Generator().manual_seed(0)
        return sample(model, PROMPTS, 8, 12, [2, 3, 4], 1.0, seed)

    # Rows that leave at other times would meet other random numbers.
    monkeypatch.setattr(Decoder, "leave_at", StaticDecoder.leave_at)
    growing = answers()
    monkeypatch.setattr(decoding, "Decoder", StaticDecoder)
    static = answers()
    assert static.answers == growing.answers and growing.lengths.unique().numel() > 3
    assert_close(static.log_probs, growing.log_probs, atol=1e-4, rtol=1e-4)


class FakeGraph:
    """What PyTorch's notes promise of a graph: capture runs nothing now, replay runs it again."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@contextmanager
def nothing(*args):
    yield


class FakeStream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, fake in {
        "Stream": FakeStream, "current_stream": FakeStream, "stream": nothing,
        "CUDAGraph": FakeGraph, "graph": nothing,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)


def test_a_captured_step_is_replayed_not_run(fake_cuda):
    runs = []
    step = captured(lambda: runs.append(len(runs)) or torch.tensor(len(runs)))
    assert len(runs) == 2  # to warm up, to capture
    assert [int(step()), int(step())] == [2, 2] and len(runs) == 2


def test_a_step_that_cannot_be_captured_runs_and_says_so(fake_cuda, monkeypatch):
    @contextmanager
    def refusing(graph):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refusing)
    runs = []
    with pytest.warns(UserWarning, match="without a CUDA graph.*not permitted"):
        step = captured(lambda: runs.append(0) or len(runs))
    assert step() == 3


def bfloat16_linear(bias: bool) -> nn.Linear:
    return nn.Linear(40, 24, bias=bias, dtype=torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 300])
@torch.no_grad()
def test_packed_weights_give_the_same_product(rows, bias):
    layer = bfloat16_linear(bias)
    x = torch.randn(rows, 1, 40, dtype=torch.bfloat16)
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with packed_weights(Holder(layer), 16):
        assert "forward" in vars(layer)
        found = layer(x)
    assert found.shape == (rows, 1, 24) and found.dtype == torch.bfloat16
    assert_close(found.double(), expected, atol=0.02, rtol=0.01)


class Holder(nn.Module):
    """A model around one layer, with a device like a transformers model."""

    device = torch.device("cpu")

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer


def test_layers_are_handed_back_plain_even_after_an_error():
    layer = bfloat16_linear(False)
    with pytest.raises(KeyError), packed_weights(Holder(layer), 16):
        raise KeyError
    assert "forward" not in vars(layer)
    layer(torch.randn(2, 40, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_an_update_of_the_weights_is_seen_by_the_next_sampling():
    """The packed copy must not outlive its use."""
    layer, x = bfloat16_linear(False), torch.ones(1, 40, dtype=torch.bfloat16)
    with packed_weights(Holder(layer), 16):
        layer(x)
    layer.weight.zero_()
    with packed_weights(Holder(layer), 16):
        assert layer(x).abs().sum() == 0


@pytest.mark.parametrize(
    ("dtype", "tokens", "device"),
    [(torch.float32, 16, "cpu"), (torch.bfloat16, 15, "cpu"), (torch.bfloat16, 16, "cuda")],
)
def test_who_is_not_packed(dtype, tokens, device):
    layer = bfloat16_linear(False).to(dtype)
    holder = Holder(layer)
    holder.device = torch.device(device)
    with packed_weights(holder, tokens):
        assert "forward" not in vars(layer)


@torch.no_grad()
def test_sampling_in_bfloat16_packs_and_agrees_with_the_plain_forward():
    model = tiny_model("llama", NAME, torch.bfloat16)
    rollout = sample(model, PROMPTS, 4, 16, [2], 1.0, torch.Generator().manual_seed(0))
    exact = tiny_model("llama", "eager", torch.float32)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    for p, answers in enumerate(rollout.answers):
        for k, ids in enumerate(answers):
            row = PROMPTS[p] + ids
            z = exact(torch.tensor([row])).logits[0].double().log_softmax(-1)
            total = sum(z[len(PROMPTS[p]) + t - 1, i] for t, i in enumerate(ids))
            assert_close(rollout.log_probs[p, k].double(), total, atol=0.1, rtol=0.02)


@torch.no_grad()
def test_rows_that_leave_get_a_graph_of_their_own(monkeypatch):
    """The old one would go on with the old rows."""
    captures = []
    monkeypatch.setattr(decoding, "captured", lambda step: captures.append(step) or step)
    decoder = StaticDecoder(tiny_model("llama", "sdpa", torch.float32), PROMPTS, 2, 4)
    decoder(TOKENS[0])
    decoder(TOKENS[1])
    assert len(captures) == 1
    decoder.keep(torch.tensor([0, 3]))
    decoder(TOKENS[2, :2])
    assert len(captures) == 2
