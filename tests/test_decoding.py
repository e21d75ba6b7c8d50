"""Decoding: the growing cache, the static one that a GPU replays as a graph, packed weights."""

import functools
import gc
import warnings
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from tiny_models import MODELS, lengths_of, tiny_model
from torch import nn
from torch.testing import assert_close

from rlhf_min.hardware import decoding as hardware
from rlhf_min.hardware import packing, static_decoding
from rlhf_min.hardware.attention import NAME
from rlhf_min.hardware.decoding import Decoder, decoding_mode
from rlhf_min.hardware.static_decoding import StaticDecoder, use_static
from rlhf_min.models import decoding, sampling
from rlhf_min.models.decoding import make_decoder
from rlhf_min.models.layout import slides
from rlhf_min.models.sampling import sample

WHOLE = [(family, attention) for family, attention in MODELS if family != "gemma2"]  # no window
packs = pytest.mark.skipif(not packing.can_pack(), reason="this CPU does not multiply bfloat16")
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14]]
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 3, 9, 3, 9, 3], [0, 1, 2, 0, 1, 2]])


def plain_logits(model, answers: torch.Tensor) -> torch.Tensor:
    """Oracle: what follows each whole row, computed without a cache: [B, V]."""
    rows = [PROMPTS[b // 2] + answer for b, answer in enumerate(answers.tolist())]
    return torch.stack([model(torch.tensor([r]), use_cache=False).logits[0, -1] for r in rows])


def follow(decoder: Decoder, model) -> None:
    """Three tokens; half of the rows leave before the third."""
    for t in range(2):
        logits = decoder(TOKENS[t])
        assert_close(logits, plain_logits(model, TOKENS[: t + 1].T), atol=1e-4, rtol=1e-4)
    left = torch.tensor([0, 3, 4])
    decoder.keep(left)
    logits = decoder(TOKENS[2, left])
    assert_close(logits, plain_logits(model, TOKENS.T)[left], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("family", "attention"), MODELS)
@torch.no_grad()
def test_each_step_follows_from_the_whole_row(static, family, attention):
    """Padded prompts, two samples each, rows that leave in the middle."""
    if static and (family, attention) not in WHOLE:
        pytest.skip("its layers with a window keep a cache of their own")
    model = tiny_model(family, attention, torch.float32)
    decoder = make_decoder(model, PROMPTS, 2, 4, static)
    assert type(decoder) is (StaticDecoder if static else Decoder)
    assert_close(decoder.logits, plain_logits(model, torch.zeros(6, 0, dtype=torch.long)))
    follow(decoder, model)


@pytest.mark.parametrize(("family", "attention"), [*MODELS[:3], ("cohere", "eager")])
@torch.no_grad()
def test_a_cache_grows_by_blocks_and_hides_what_is_not_written(family, attention, monkeypatch):
    """Ten tokens in blocks of 4; whatever lies in places that are not written must not matter."""
    monkeypatch.setattr(hardware, "BLOCK", 4)
    monkeypatch.setattr(decoding, "BLOCK", 4)
    model = tiny_model(family, attention, torch.float32)
    decoder, answers = make_decoder(model, PROMPTS, 2, 10), torch.zeros(6, 0, dtype=torch.long)
    torch.manual_seed(0)
    copies, before = 0, decoder.cache.layers[0].keys
    for _ in range(10):
        for layer in decoder.cache.layers:
            assert layer.keys.is_contiguous() and layer.keys.shape[2] % 4 == 0
            layer.keys[:, :, layer.length :] = layer.values[:, :, layer.length :] = 1e4
        answers = torch.cat([answers, torch.randint(3, 9, (6, 1))], 1)
        logits = decoder(answers[:, -1])
        assert_close(logits, plain_logits(model, answers), atol=1e-4, rtol=1e-4)
        copies += decoder.cache.layers[0].keys is not before
        before = decoder.cache.layers[0].keys
    assert copies == 3  # at the 9th, 13th and 17th token of the longest row
    assert decoder.cache.get_seq_length() == 17


@torch.no_grad()
def test_a_window_that_no_layer_has_changes_nothing():
    """Qwen2's window begins at a layer that is not there: trees, blocks and graphs are allowed."""
    model = tiny_model(
        "qwen2", "sdpa", torch.float32,
        use_sliding_window=True, sliding_window=3, max_window_layers=99,
    )  # fmt: skip
    assert model.config.sliding_window == 3 and not slides(model, 10)
    for static in (False, True):
        decoder = make_decoder(model, PROMPTS, 2, 4, static)
        assert decoder.block == 32 and type(decoder) is (StaticDecoder if static else Decoder)
        follow(decoder, model)


@torch.no_grad()
def test_a_graph_finds_everything_where_it_was():
    """What a replayed graph reads and writes stays in place; warming up twice changes nothing."""
    model = tiny_model("llama", "sdpa", torch.float32)
    decoder = make_decoder(model, PROMPTS, 2, 4, static=True)

    def places() -> list[int]:
        layers = decoder.cache.layers
        tensors = [decoder.token, decoder.position, decoder.mask, decoder.write_at]
        tensors += [x for layer in layers for x in (layer.keys, layer.values)]
        return [tensor.data_ptr() for tensor in tensors]

    # What the fused kernels of a GPU take: anything else is computed in float32, slowly.
    assert all(x.stride(-1) == 1 for c in decoder.cache.layers for x in (c.keys, c.values))
    assert decoder.mask.shape[-1] % 16 == 0
    before = places()
    for t in range(3):
        logits = decoder(TOKENS[t])
        assert_close(decoder._step(), logits, rtol=0, atol=0)
    assert places() == before


@pytest.mark.parametrize(("family", "attention"), WHOLE)
@torch.no_grad()
def test_a_step_waits_for_no_number(family, attention):
    """A graph cannot be captured from a step that reads a tensor; meta tensors have no numbers."""
    model = tiny_model(family, attention, torch.float32).to("meta")
    decoder = make_decoder(model, PROMPTS, 2, 4, static=True)
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
        ("gpt2", "cuda", {}, True),
        ("llama", "cpu", {}, False),
        ("gemma2", "cuda", {}, False),  # half of its layers have a window
        ("mistral", "cuda", {}, True),
        ("mistral", "cuda", {"sliding_window": 5}, False),
        ("gpt_neo", "cuda", {}, False),  # its window counts slots
    ],
)
def test_who_decodes_from_a_static_cache(family, device, extra, static, monkeypatch):
    model = tiny_model(family, "eager", torch.float32, **extra)
    monkeypatch.setattr(type(model), "device", torch.device(device))
    assert use_static(model) == static


@torch.no_grad()
def test_sampling_from_the_static_cache_gives_the_same_answers(monkeypatch):
    model = tiny_model("llama", "sdpa", torch.float32)

    def answers():
        seed = torch.Generator().manual_seed(0)
        return sample(model, PROMPTS, 8, 12, [2, 3, 4], 1.0, seed)

    # Rows that leave at other times would meet other random numbers.
    monkeypatch.setattr(Decoder, "compact_below", StaticDecoder.compact_below)
    growing = answers()
    static_maker = functools.partial(make_decoder, static=True)
    monkeypatch.setattr(sampling, "make_decoder", static_maker)
    static = answers()
    assert static.answers == growing.answers and lengths_of(growing).unique().numel() > 3
    assert_close(static.log_probs, growing.log_probs, atol=1e-4, rtol=1e-4)


class FakeCuda:
    """What PyTorch's notes promise of graphs: a capture computes nothing, a replay computes the
    captured step again, into the tensor that the capture returned.
    """

    def __init__(self, monkeypatch, fails: str = ""):
        self.fails, self.log = fails, []
        self.current, self.strictness = "caller", 0
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, contextmanager(getattr(self, name)))
        for name in (
            "Stream", "CUDAGraph", "current_stream", "set_stream",
            "get_sync_debug_mode", "set_sync_debug_mode",
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        static_decoding.side_stream.cache_clear()

    def current_stream(self):
        return SimpleNamespace(name=self.current, wait_stream=lambda other: None)

    def Stream(self, device):  # noqa: N802
        return SimpleNamespace(name="side", wait_stream=lambda other: None)

    def set_stream(self, stream):
        self.current = stream.name

    def get_sync_debug_mode(self):
        return self.strictness

    def set_sync_debug_mode(self, mode):
        self.strictness = mode

    def device(self, device):
        yield

    def stream(self, stream):
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: self.step())

    def graph(self, graph, stream):
        self.current, self.log = stream.name, [*self.log, "capture"]
        yield
        if self.fails == "capture":
            raise RuntimeError("capture failed")  # and its stream stays in place
        self.current = "caller"


def capturing(cuda: FakeCuda, step):
    """`step` as a GPU would run it: captured once, then replayed into the same tensor."""
    state = {}

    def run():
        if cuda.strictness == "error" and cuda.fails == "wait":
            raise RuntimeError("called a synchronizing operation")
        cuda.log.append("run")
        out = step()
        if cuda.log[-2:] == ["capture", "run"]:
            state["out"] = torch.full_like(out, float("nan"))  # nothing was computed
            cuda.step = lambda: cuda.log.append("replay") or state["out"].copy_(step())
            return state["out"]
        return out

    return run


@torch.no_grad()
def test_replayed_steps_follow_from_the_whole_rows(monkeypatch):
    """Rows that leave get a graph of their own: the old one would go on with the old rows."""
    cuda = FakeCuda(monkeypatch)
    model = tiny_model("llama", "sdpa", torch.float32)
    decoder = make_decoder(model, PROMPTS, 2, 4, static=True)
    decoder.capturable = True
    decoder._step = capturing(cuda, decoder._step)
    follow(decoder, model)
    capture = ["run", "run", "capture", "run", "replay"]
    assert cuda.log == [*capture, "replay", *capture]
    assert cuda.current == "caller" and cuda.strictness == 0


@pytest.mark.parametrize("fails", ["wait", "capture"])
@torch.no_grad()
def test_a_step_that_cannot_be_captured_runs_and_says_so_once(fails, monkeypatch):
    """No second try, no trace on the caller's stream, no cycle that would keep the cache."""
    cuda = FakeCuda(monkeypatch, fails)
    model = tiny_model("llama", "sdpa", torch.float32)
    decoder = make_decoder(model, PROMPTS, 2, 4, static=True)
    decoder.capturable = True
    with monkeypatch.context() as patch:
        patch.setattr(StaticDecoder, "_step", property(one_step(cuda)))
        with pytest.warns(UserWarning, match="without a CUDA graph.*(synchronizing|failed)"):
            decoder(TOKENS[0])
        assert cuda.current == "caller" and cuda.strictness == 0
        decoder.keep(torch.arange(6))
        tries = cuda.log.count("capture")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits = decoder(TOKENS[1])
        assert cuda.log.count("capture") == tries == (fails == "capture")
    assert_close(logits, plain_logits(model, TOKENS[:2].T), atol=1e-4, rtol=1e-4)
    gone, cuda.step = weakref.ref(decoder), None
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()


def one_step(cuda: FakeCuda):
    """A StaticDecoder's own step, with the faults of `cuda`."""
    real = StaticDecoder._step
    return lambda decoder: capturing(cuda, lambda: real(decoder))


def test_a_gpu_beside_a_model_on_the_cpu_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(static_decoding, "captured", lambda *_: pytest.fail("no CUDA tensor here"))
    decoder = make_decoder(tiny_model("llama", "sdpa", torch.float32), PROMPTS, 2, 4, static=True)
    with torch.no_grad():
        decoder(TOKENS[0])


def bfloat16_linear(bias: bool) -> nn.Linear:
    return nn.Linear(40, 24, bias=bias, dtype=torch.bfloat16)


@packs
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 300])
@torch.no_grad()
def test_packed_weights_give_the_same_product(rows, bias):
    layer = bfloat16_linear(bias)
    x = torch.randn(rows, 1, 40, dtype=torch.bfloat16)
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    with decoding_mode(Holder(layer), 16):
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
    with pytest.raises(KeyError), decoding_mode(Holder(layer), 16):
        raise KeyError
    assert "forward" not in vars(layer)
    layer(torch.randn(2, 40, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


@packs
def test_an_error_while_packing_is_the_one_that_is_seen(monkeypatch):
    layers = nn.Sequential(bfloat16_linear(False), bfloat16_linear(False))
    real, seen = packing.packed_product, []

    def second_fails(group):
        seen.append(group)
        if len(seen) == 2:
            raise MemoryError("no room")
        return real(group)

    monkeypatch.setattr(packing, "packed_product", second_fails)
    with pytest.raises(MemoryError, match="no room"), decoding_mode(Holder(layers), 16):
        pass
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_forward_of_somebody_else_s_stays():
    layer = bfloat16_linear(False)
    layer.forward = theirs = lambda x: x
    with decoding_mode(Holder(layer), 16):
        assert layer.forward is theirs
    assert layer.forward is theirs


def test_a_cpu_that_cannot_multiply_packed_weights_multiplies_plain_ones(monkeypatch):
    monkeypatch.setattr(hardware, "can_pack", lambda: False)
    layer = bfloat16_linear(False)
    with decoding_mode(Holder(layer), 16):
        assert "forward" not in vars(layer)


@torch.no_grad()
def test_an_update_of_the_weights_is_seen_by_the_next_sampling():
    """The packed copy must not outlive its use."""
    layer, x = bfloat16_linear(False), torch.ones(1, 40, dtype=torch.bfloat16)
    with decoding_mode(Holder(layer), 16):
        layer(x)
    layer.weight.zero_()
    with decoding_mode(Holder(layer), 16):
        assert layer(x).abs().sum() == 0


@pytest.mark.parametrize(
    ("dtype", "tokens", "device"),
    [(torch.float32, 16, "cpu"), (torch.bfloat16, 15, "cpu"), (torch.bfloat16, 16, "cuda")],
)
def test_who_is_not_packed(dtype, tokens, device):
    layer = bfloat16_linear(False).to(dtype)
    holder = Holder(layer)
    holder.device = torch.device(device)
    with decoding_mode(holder, tokens):
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
