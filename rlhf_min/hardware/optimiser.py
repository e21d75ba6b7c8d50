"""AdamW with float32 master weights, gradient clipping, and learning-rate schedules."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import precise
from rlhf_min.hardware.finite import NonFiniteError

MOMENTS = ("exp_avg", "exp_avg_sq")  # their names in torch.optim.AdamW
PIECE = 2**20  # numbers updated at once: what one update needs beside the weights fits in the cache


@dataclass
class Part:
    """At most PIECE numbers of a weight."""

    index: int  # of the weight
    number: int  # among the pieces of that weight
    weight: Tensor  # a flat view of the model's weight
    master: Tensor | None = None  # of the owner; a float32 weight is its own master


@dataclass
class Bucket:
    """Parts with at most PIECE numbers in all, which one rank, the owner, updates at once."""

    parts: list[Part]
    owner: int = 0
    adam: torch.optim.AdamW | None = None  # of the owner


class MasterAdamW:
    """AdamW on float32 copies ("masters") of the weights of a model that may compute in bfloat16.

    A bfloat16 weight near 1 moves in steps of 0.008, so an update of 1e-6 would round away.  The
    update goes to the master, and the model gets the rounded master.  The gradients of several
    micro-batches are summed in float32; a single one is converted to float32 in pieces, so that no
    float32 gradient of the whole model is in memory.  Float32 and float64 models have no copies.

    With several ranks, each owns a share of the masters and moments (ZeRO stage 1, Rajbhandari et
    al. 2020): the owner of a bucket gets the sum of all ranks' gradients, updates the weights and
    sends them to all.

    weight_decay, betas: as in torch.optim.AdamW (Loshchilov and Hutter 2019).
    """

    def __init__(self, model, weight_decay: float = 0.0, betas: tuple = (0.9, 0.95)):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.gradients: dict[int, Tensor] = {}  # by the weight's index
        parts = []
        for index, weight in enumerate(self.weights):
            weight.data = weight.data.contiguous()  # `pieces` of another order would be copies
            if weight.dtype != precise(weight.dtype):
                weight.register_post_accumulate_grad_hook(partial(self._collect, index))
            parts += [Part(index, n, piece) for n, piece in enumerate(pieces(weight.detach()))]
        settings = {"betas": betas, "weight_decay": weight_decay, "fused": True}
        self.buckets = [Bucket(group) for group in grouped(parts)]
        load = [0] * ranks.size()  # numbers that each rank owns
        for bucket in self.buckets:
            bucket.owner = load.index(min(load))
            load[bucket.owner] += sum(part.weight.numel() for part in bucket.parts)
            if bucket.owner == ranks.rank():
                masters = [part.weight.to(precise(part.weight.dtype)) for part in bucket.parts]
                bucket.adam = torch.optim.AdamW(masters, **settings)
                # Allocated in the first step, the moments would fill holes between activations, and
                # the next activations would need more memory: 0.2 GB for 135 M weights.
                for part, part.master in zip(bucket.parts, masters, strict=True):
                    state = {name: torch.zeros_like(part.master) for name in MOMENTS}
                    state["step"] = torch.zeros((), device=part.master.device)
                    bucket.adam.state[part.master] = state

    def _collect(self, index: int, weight: Tensor) -> None:
        """Add a weight's gradient to `self.gradients` as soon as backward has computed it."""
        gradient, weight.grad = weight.grad, None
        if index in self.gradients:
            gradient = self.gradients[index].float().add_(gradient)
        self.gradients[index] = gradient

    def _summed_gradients(self) -> list[tuple[Bucket, list[Part], list[Tensor]]]:
        """Of each bucket of this rank: the parts with a gradient on any rank, and its sums."""
        for index, weight in enumerate(self.weights):
            if weight.grad is not None:
                self.gradients[index], weight.grad = weight.grad, None
        has_gradient = ranks.all_sum(
            *(float(i in self.gradients) for i in range(len(self.weights)))
        )
        summed = []
        for bucket in self.buckets:
            parts = [part for part in bucket.parts if has_gradient[part.index]]
            gradients = [self._take_gradient(part) for part in parts]
            if parts and ranks.size() > 1:
                flat = torch.cat([gradient.to(precise(gradient.dtype)) for gradient in gradients])
                ranks.reduce_to(bucket.owner, flat)
                gradients = flat.split([len(gradient) for gradient in gradients])
            if parts and bucket.adam:
                summed.append((bucket, parts, gradients))
        return summed

    def _take_gradient(self, part: Part) -> Tensor:
        """The gradient of a part; after a weight's last part its whole gradient is freed."""
        if part.index not in self.gradients:  # this rank had no prompt in the step
            return torch.zeros_like(part.weight)
        gradients = pieces(self.gradients[part.index])
        if part.number + 1 == len(gradients):
            del self.gradients[part.index]
        return gradients[part.number]

    @torch.no_grad()
    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clip the gradient, update the weights; returns the norm before clipping.

        Raises NonFiniteError, before any weight changes, if that norm is NaN or infinite.
        """
        summed, norms = self._summed_gradients(), []
        for _, parts, gradients in summed:
            norms += torch._foreach_norm(in_dtype_of_masters(gradients, parts))
        squares = torch.stack(norms).double().square().sum().item() if norms else 0.0
        norm = math.sqrt(ranks.all_sum(squares)[0])
        if not norm < float("inf"):
            raise NonFiniteError(f"the gradient's norm is {norm}")
        scale = min(1.0, max_grad_norm / (norm + 1e-6))
        while summed:
            bucket, parts, gradients = summed.pop()  # so that each gradient is freed after its use
            scaled = torch._foreach_mul(in_dtype_of_masters(gradients, parts), scale)
            for part, gradient in zip(parts, scaled, strict=True):
                part.master.grad = gradient
            bucket.adam.param_groups[0]["lr"] = lr
            bucket.adam.step()
            bucket.adam.zero_grad()
        for bucket in self.buckets:
            weights = [part.weight for part in bucket.parts]
            if bucket.adam:
                torch._foreach_copy_(weights, [part.master for part in bucket.parts])
            ranks.broadcast_from(bucket.owner, weights)
        return norm

    def _stored(self, bucket: Bucket, part: Part) -> dict[str, Tensor]:
        """What a checkpoint holds of a part; on a rank that does not own it, room for that."""
        master, step = part.master, torch.zeros((), device=part.weight.device)
        if master is None:
            master = torch.empty_like(part.weight, dtype=precise(part.weight.dtype))
            state = {"step": step} | {name: torch.empty_like(master) for name in MOMENTS}
        else:
            state = bucket.adam.state[master]
        stored = {name: state[name] for name in ("step", *MOMENTS)}
        return stored if master.dtype == part.weight.dtype else stored | {"master": master}

    def state_dict(self) -> dict:
        """Masters and moments of all parts, on rank 0, for a checkpoint; all ranks must call it.

        A float32 weight is its own master, which the model's state holds.
        """
        states = []
        for bucket in self.buckets:
            for part in bucket.parts if bucket.adam or ranks.is_first() else ():
                stored = self._stored(bucket, part)
                for tensor in stored.values():
                    ranks.to_first(bucket.owner, tensor)
                states.append(stored if bucket.adam else {k: t.cpu() for k, t in stored.items()})
        return {"parts": states}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restore masters and moments from `state_dict()`; the weights are in the model's state."""
        parts = [(bucket, part) for bucket in self.buckets for part in bucket.parts]
        for (bucket, part), saved in zip(parts, state["parts"], strict=True):
            for name, tensor in self._stored(bucket, part).items() if bucket.adam else ():
                tensor.copy_(saved[name])


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat views of at most PIECE numbers each (copies where the tensor is not contiguous)."""
    return tensor.reshape(-1).split(PIECE)


def grouped(parts: list[Part]) -> Iterator[list[Part]]:
    """Yields groups of consecutive parts: of one dtype, and at most PIECE numbers in all."""
    group: list[Part] = []
    for part in parts:
        numbers = sum(other.weight.numel() for other in group) + part.weight.numel()
        if group and (numbers > PIECE or part.weight.dtype != group[0].weight.dtype):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def in_dtype_of_masters(gradients: list[Tensor], parts: list[Part]) -> list[Tensor]:
    """Gradients in float32 (float64 for float64 weights), in which their norm is computed."""
    return [g.to(part.master.dtype) for g, part in zip(gradients, parts, strict=True)]


def warm_up(step: int, warm: float, total: int) -> float:
    """Factor of the learning rate in 0-based `step` of `total`: rises linearly to 1, then stays.

    warm: steps of the rise, or, below 1, their share of all steps.
    """
    return min(1.0, (step + 1) / max(warm_steps(warm, total), 1))


def warm_up_and_down(step: int, warm: float, total: int) -> float:
    """Factor of the learning rate: rises as in `warm_up`, then falls linearly to 0 at `total`."""
    down = (total - step) / max(total - warm_steps(warm, total), 1)
    return warm_up(step, warm, total) * min(1.0, down)


def warm_steps(warm: float, total: int) -> float:
    """Steps of the warm-up: `warm` itself, or, below 1, that share of `total`."""
    return warm if warm >= 1 else round(warm * total)
