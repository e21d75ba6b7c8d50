"""AdamW with float32 master weights, gradient clipping, and learning-rate schedules."""

import itertools
import math
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
    """At most PIECE numbers of a weight; one rank, the owner, holds their master and moments."""

    index: int  # of the weight
    weight: Tensor  # a flat view of the model's weight
    owner: int
    master: Tensor | None = None  # of the owner; a float32 weight is its own master
    adam: torch.optim.AdamW | None = None  # of the owner


class MasterAdamW:
    """AdamW on float32 copies ("masters") of the weights of a model that may compute in bfloat16.

    A bfloat16 weight near 1 moves in steps of 0.008, so an update of 1e-6 would round away.  The
    update goes to the master, and the model gets the rounded master.  The gradients of several
    micro-batches are summed in float32; a single one is converted to float32 in pieces, so that no
    float32 gradient of the whole model is in memory.  Float32 and float64 models have no copies.

    With several ranks, each owns a share of the masters and moments (ZeRO stage 1, Rajbhandari et
    al. 2020): the owner of a part gets the sum of all ranks' gradients, updates the weights and
    sends them to all.

    weight_decay, betas: as in torch.optim.AdamW (Loshchilov and Hutter 2019).
    """

    def __init__(self, model, weight_decay: float = 0.0, betas: tuple = (0.9, 0.95)):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.gradients: dict[int, Tensor] = {}  # by the weight's index
        self.parts: list[Part] = []
        settings = {"betas": betas, "weight_decay": weight_decay, "fused": True}
        load = [0] * ranks.size()  # numbers that each rank owns
        for index, weight in enumerate(self.weights):
            weight.data = weight.data.contiguous()  # `pieces` of another order would be copies
            if weight.dtype != precise(weight.dtype):
                weight.register_post_accumulate_grad_hook(partial(self._collect, index))
            for piece in pieces(weight.detach()):
                part = Part(index, piece, owner=load.index(min(load)))
                load[part.owner] += piece.numel()
                self.parts.append(part)
        for part in self.parts:
            if part.owner != ranks.rank():
                continue
            part.master = part.weight.to(precise(part.weight.dtype))
            part.adam = torch.optim.AdamW([part.master], **settings)
            # Allocated in the first step, the moments would fill holes between activations, and
            # the next activations would need more memory: 0.2 GB for 135 M weights.
            moments = {name: torch.zeros_like(part.master) for name in MOMENTS}
            step = torch.zeros((), device=part.master.device)
            part.adam.state[part.master] = {"step": step, **moments}

    def _collect(self, index: int, weight: Tensor) -> None:
        """Add a weight's gradient to `self.gradients` as soon as backward has computed it."""
        gradient, weight.grad = weight.grad, None
        if index in self.gradients:
            gradient = self.gradients[index].float().add_(gradient)
        self.gradients[index] = gradient

    def _summed_gradients(self) -> list[tuple[Part, Tensor]]:
        """This rank's parts of the weights that have a gradient on any rank, and its sum."""
        for index, weight in enumerate(self.weights):
            if weight.grad is not None:
                self.gradients[index], weight.grad = weight.grad, None
        has_gradient = ranks.all_sum(
            *(float(i in self.gradients) for i in range(len(self.weights)))
        )
        summed = []
        for index, parts in itertools.groupby(self.parts, lambda part: part.index):
            if not has_gradient[index]:
                continue
            gradient = self.gradients.pop(index, None)
            if gradient is None:  # this rank had no prompt in the step
                gradient = torch.zeros_like(self.weights[index])
            for part, piece in zip(parts, pieces(gradient), strict=True):
                if ranks.size() > 1:
                    piece = piece.to(precise(piece.dtype))
                    ranks.reduce_to(part.owner, piece)
                if part.owner == ranks.rank():
                    summed.append((part, piece))
        return summed

    @torch.no_grad()
    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clip the gradient, update the weights; returns the norm before clipping.

        Raises NonFiniteError, before any weight changes, if that norm is NaN or infinite.
        """
        summed = self._summed_gradients()
        norms = [piece.to(part.master.dtype).norm().double() for part, piece in summed]
        squares = torch.stack(norms).square().sum().item() if norms else 0.0
        norm = math.sqrt(ranks.all_sum(squares)[0])
        if not norm < float("inf"):
            raise NonFiniteError(f"the gradient's norm is {norm}")
        scale = min(1.0, max_grad_norm / (norm + 1e-6))
        while summed:
            part, piece = summed.pop()  # so that each gradient is freed after its use
            part.master.grad = piece.to(part.master.dtype) * scale
            part.adam.param_groups[0]["lr"] = lr
            part.adam.step()
            part.master.grad = None
        for part in self.parts:
            if part.adam:
                part.weight.copy_(part.master)
            ranks.broadcast_from(part.owner, part.weight)
        return norm

    def _stored(self, part: Part) -> dict[str, Tensor]:
        """What a checkpoint holds of a part; on a rank that does not own it, room for that."""
        master, step = part.master, torch.zeros((), device=part.weight.device)
        if master is None:
            master = torch.empty_like(part.weight, dtype=precise(part.weight.dtype))
            state = {"step": step} | {name: torch.empty_like(master) for name in MOMENTS}
        else:
            state = part.adam.state[master]
        stored = {name: state[name] for name in ("step", *MOMENTS)}
        return stored if master.dtype == part.weight.dtype else stored | {"master": master}

    def state_dict(self) -> dict:
        """Masters and moments of all parts, on rank 0, for a checkpoint; all ranks must call it.

        A float32 weight is its own master, which the model's state holds.
        """
        states = []
        for part in self.parts:
            if part.adam or ranks.is_first():
                stored = self._stored(part)
                for tensor in stored.values():
                    ranks.to_first(part.owner, tensor)
                states.append(stored if part.adam else {k: t.cpu() for k, t in stored.items()})
        return {"parts": states}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restore masters and moments from `state_dict()`; the weights are in the model's state."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            for name, tensor in self._stored(part).items() if part.adam else ():
                tensor.copy_(saved[name])


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat views of at most PIECE numbers each (copies where the tensor is not contiguous)."""
    return tensor.reshape(-1).split(PIECE)


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
