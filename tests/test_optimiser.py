"""AdamW on float32 masters, warm-up, and the order of the rows."""

import copy

import pytest
import torch
from tiny_models import tiny_model
from torch.testing import assert_close

from rlhf_min.data.order import batch_indices
from rlhf_min.hardware.optimiser import MasterAdamW, warm_up, warm_up_and_down


def layer(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.fill_(1.0)
    return module.to(dtype)


def parts_of(optimiser: MasterAdamW) -> list:
    return [part for bucket in optimiser.buckets for part in bucket.parts]


def train(module, optimiser, steps: int, lr: float) -> None:
    for _ in range(steps):
        module(torch.ones(2, 4, dtype=module.weight.dtype)).float().sum().backward()
        optimiser.step(lr, 1e9)


def test_trap_17_tiny_updates_of_bfloat16_weights_add_up_in_the_master():
    """A bfloat16 step below 1.0 is 0.004: a hundred updates of 1e-6 must add up, not round away."""
    module = layer(torch.bfloat16)
    optimiser = MasterAdamW(module)
    train(module, optimiser, 100, 1e-6)
    assert module.weight.dtype == torch.bfloat16 and (module.weight == 1).all()  # not yet visible
    assert_close(
        parts_of(optimiser)[0].master.view(3, 4), torch.full((3, 4), 1 - 1e-4), atol=5e-6, rtol=0
    )
    train(module, optimiser, 100, 1e-4)
    assert_close(module.weight.float(), torch.full((3, 4), 0.99), atol=0.005, rtol=0)
    assert (module.weight < 1).all()


def test_trap_17_plain_bfloat16_weights_do_not_move():
    module = layer(torch.bfloat16)
    adam = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.0)
    for _ in range(200):
        module(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
        adam.step()
        adam.zero_grad()
    assert (module.weight == 1).all()


@pytest.mark.parametrize("betas", [None, (0.9, 0.999)])
def test_a_float32_model_gets_exactly_adamw(betas):
    ours, theirs = layer(torch.float32), layer(torch.float32)
    optimiser = MasterAdamW(ours, weight_decay=0.1, **({"betas": betas} if betas else {}))
    adam = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1, betas=betas or (0.9, 0.95))
    torch.manual_seed(1)
    for step in range(20):
        x = torch.randn(2, 4)
        for module in (ours, theirs):
            module(x).square().sum().backward()
        norm = torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()
        for p in theirs.parameters():
            p.grad.mul_(min(1.0, 0.5 / norm.item()))
        adam.param_groups[0]["lr"] = 0.01 * (step + 1)
        adam.step()
        adam.zero_grad()
        assert optimiser.step(0.01 * (step + 1), 0.5) == pytest.approx(norm.item(), rel=1e-5)
        assert all(p.grad is None or not p.grad.any() for p in ours.parameters())
        assert_close(ours.weight, theirs.weight)


def test_trap_9_gradients_of_micro_batches_add_up_in_float32():
    """1 + 512 · 2⁻⁹: bfloat16 would lose every summand after the first."""
    module = layer(torch.bfloat16)
    optimiser = MasterAdamW(module)
    for size in [1.0] + [2.0**-9] * 512:
        (module.weight.sum() * size).backward()
    assert_close(optimiser.gradients[0], torch.full((3, 4), 2.0))
    assert module.weight.grad is None


def test_the_norm_is_clipped_over_all_weights_together():
    module = layer(torch.float32)
    optimiser = MasterAdamW(module)
    (module.weight.sum() * 3 + module.bias.sum() * 4).backward()
    expected = (12 * 9 + 3 * 16) ** 0.5
    (bucket,), seen = optimiser.buckets, []  # both weights fit in one
    adam_step = bucket.adam.step

    def step():
        seen.extend(part.master.grad.clone() for part in bucket.parts)
        adam_step()

    bucket.adam.step = step
    assert optimiser.step(0.1, 2.0) == pytest.approx(expected)
    assert len(seen) == 2
    assert torch.cat(seen).norm().item() == pytest.approx(2.0, rel=1e-4)


def test_a_weight_of_several_pieces_gets_exactly_adamw(monkeypatch):
    """Pieces of 5 for 12 weights: the last one is short, and all share one norm."""
    monkeypatch.setattr("rlhf_min.hardware.optimiser.PIECE", 5)
    ours, theirs = layer(torch.float64), layer(torch.float64)
    optimiser = MasterAdamW(ours, weight_decay=0.1)
    indices = [[part.index for part in bucket.parts] for bucket in optimiser.buckets]
    assert indices == [[0], [0], [0, 1]]  # the last piece of 2 numbers, and the bias of 3
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    torch.manual_seed(1)
    for _ in range(9):
        x = torch.randn(2, 4, dtype=torch.float64)
        for module in (ours, theirs):
            module(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        adam.step()
        adam.zero_grad()
        assert optimiser.step(0.01, 0.5) == pytest.approx(norm.item(), rel=1e-12)
        assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)


def test_small_weights_are_updated_together_and_no_bucket_is_too_large(monkeypatch):
    monkeypatch.setattr("rlhf_min.hardware.optimiser.PIECE", 300)
    model = tiny_model("llama")
    model.model.layers[0].post_attention_layernorm.to(torch.bfloat16)  # between float32 weights
    optimiser = MasterAdamW(model)
    parts = parts_of(optimiser)
    assert sum(part.weight.numel() for part in parts) == sum(p.numel() for p in model.parameters())
    assert 1 < len(optimiser.buckets) < len(parts)
    for bucket in optimiser.buckets:
        assert sum(part.weight.numel() for part in bucket.parts) <= 300
        assert len({part.weight.dtype for part in bucket.parts}) == 1


def test_a_model_without_trainable_weights_takes_an_empty_step():
    assert MasterAdamW(layer(torch.float32).requires_grad_(False)).step(0.1, 1.0) == 0.0


def test_one_gradient_waits_in_bfloat16_and_is_gone_after_the_step():
    module = layer(torch.bfloat16)
    optimiser = MasterAdamW(module)
    module.weight.sum().backward()
    assert [g.dtype for g in optimiser.gradients.values()] == [torch.bfloat16]
    optimiser.step(0.1, 1.0)
    assert not optimiser.gradients and module.weight.grad is None
    assert all(part.master.grad is None for part in parts_of(optimiser))
    before = module.bias.clone()
    module.weight.sum().backward()  # a weight without a gradient stays, whatever its moments are
    optimiser.step(0.1, 1.0)
    assert torch.equal(module.bias, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_any_weight_changes(bad):
    module = layer(torch.float32)
    optimiser = MasterAdamW(module)
    before = copy.deepcopy(module.state_dict())
    (module.weight.sum() * bad).backward()
    with pytest.raises(FloatingPointError):
        optimiser.step(0.1, 1.0)
    assert_close(module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_exactly(dtype, tmp_path):
    whole, first, second = (layer(dtype) for _ in range(3))
    train(whole, MasterAdamW(whole), 9, 1e-3)
    optimiser = MasterAdamW(first)
    train(first, optimiser, 4, 1e-3)
    torch.save(optimiser.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(first.state_dict())  # a float32 weight is its own master
    optimiser = MasterAdamW(second)
    optimiser.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, optimiser, 5, 1e-3)
    assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_tied_weight_is_updated_once():
    model = tiny_model("qwen2", dtype=torch.bfloat16)
    optimiser = MasterAdamW(model)
    assert len({part.index for part in parts_of(optimiser)}) == len(
        {p.data_ptr() for p in model.parameters()}
    )
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids).loss.backward()
    before = model.get_input_embeddings().weight.clone()
    optimiser.step(0.1, 1.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert ((model.get_input_embeddings().weight - before).abs() < 0.11).all()


def test_warm_up_rises_to_one_and_stays():
    assert [warm_up(s, 4, 6) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warm_up(0, 0, 6) == 1
    up_down = [warm_up_and_down(s, 2, 6) for s in range(6)]
    assert up_down == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert all(0 < warm_up_and_down(s, 0, 1) <= 1 for s in range(1))


@pytest.mark.parametrize("schedule", [warm_up, warm_up_and_down])
def test_a_warm_up_below_1_is_a_share_of_all_steps(schedule):
    share, steps = ([schedule(s, warm, 8) for s in range(8)] for warm in (0.5, 4))
    assert share == steps
    assert [schedule(s, 1, 8) for s in range(1)] == [1.0]  # one step, not all of them


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (3, 8), (1, 1)])
def test_an_epoch_shows_every_row_once_and_each_epoch_another_order(count, size):
    steps = -(-count // size)
    epochs = [
        [batch_indices(count, size, e * steps + s, 0, partial=True) for s in range(steps)]
        for e in range(3)
    ]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(count))
        assert all(len(batch) == min(size, count) for batch in epoch[:-1])
    if count > 3:
        assert epochs[0] != epochs[1] != epochs[2]
        assert batch_indices(count, size, 0, 0) != batch_indices(count, size, 0, 1)


def test_without_partial_batches_every_batch_is_full():
    batches = [batch_indices(10, 3, step, 0) for step in range(9)]
    assert {len(b) for b in batches} == {3}
    for epoch in range(3):
        rows = [i for b in batches[3 * epoch : 3 * epoch + 3] for i in b]
        assert len(set(rows)) == 9


def test_a_weight_whose_memory_is_transposed_is_updated():
    model = torch.nn.Linear(3, 2, bias=False)
    model.weight = torch.nn.Parameter(torch.ones(3, 2).t())
    optimiser = MasterAdamW(model)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step(0.1, 1.0)
    assert_close(model.weight.detach(), torch.full((2, 3), 0.9))
