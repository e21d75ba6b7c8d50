"""AdamW with float32 master weights, gradient clipping, and learning-rate schedules."""

import itertools
from functools import partial

import torch
from torch import Tensor

from rlhf_min.hardware.finite import NonFiniteError

PIECE = 2**20  # numbers updated at once: what one update needs beside the weights fits in the cache


class MasterAdamW:
    """AdamW on float32 copies ("masters") of the weights of a model that may compute in bfloat16.

    A bfloat16 weight near 1 moves in steps of 0.008, so an update of 1e-6 would round away.  The
    update goes to the master, and the model gets the rounded master.  The gradients of several
    micro-batches are summed in float32; a single one is converted to float32 in pieces, so that no
    float32 gradient of the whole model is in memory.  Float32 and float64 models have no copies.
    """

    def __init__(self, model, weight_decay: float = 0.0):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.gradients: dict[int, Tensor] = {}  # by the weight's index
        self.masters, self.adams = [], []  # adams: one AdamW for every piece of every master
        settings = {"betas": (0.9, 0.95), "weight_decay": weight_decay, "fused": True}
        for index, weight in enumerate(self.weights):
            weight.data = weight.data.contiguous()  # `pieces` of another order would be copies
            master = weight.detach()
            if weight.dtype not in (torch.float32, torch.float64):
                master = master.float()
                weight.register_post_accumulate_grad_hook(partial(self._collect, index))
            self.masters.append(master)
            self.adams.append([torch.optim.AdamW([p], **settings) for p in pieces(master)])
        for adam in itertools.chain(*self.adams):
            (piece,) = adam.param_groups[0]["params"]
            # Allocated in the first step, the moments would fill holes between activations, and
            # the next activations would need more memory: 0.2 GB for 135 M weights.
            moments = {name: torch.zeros_like(piece) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[piece] = {"step": torch.zeros((), device=piece.device), **moments}

    def _collect(self, index: int, weight: Tensor) -> None:
        """Add a weight's gradient to `self.gradients` as soon as backward has computed it."""
        gradient, weight.grad = weight.grad, None
        if index in self.gradients:
            gradient = self.gradients[index].float().add_(gradient)
        self.gradients[index] = gradient

    @torch.no_grad()
    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clip the gradient, update the weights; returns the norm before clipping.

        Raises NonFiniteError, before any weight changes, if that norm is NaN or infinite.
        """
        for index, weight in enumerate(self.weights):
            if weight.grad is not None:
                self.gradients[index], weight.grad = weight.grad, None
        norm = torch.stack([
            piece.to(self.masters[index].dtype).norm()
            for index, gradient in self.gradients.items()
            for piece in pieces(gradient)
        ]).norm().item()  # fmt: skip
        if not norm < float("inf"):
            self.gradients.clear()
            raise NonFiniteError(f"the gradient's norm is {norm}")
        scale = min(1.0, max_grad_norm / (norm + 1e-6))
        for index in list(self.gradients):
            gradient, master = self.gradients.pop(index), self.masters[index]
            for piece, adam in zip(pieces(gradient), self.adams[index], strict=True):
                (group,) = adam.param_groups
                (weight,) = group["params"]
                weight.grad = piece.to(weight.dtype) * scale
                group["lr"] = lr
                adam.step()
                weight.grad = None
            if self.weights[index].dtype != master.dtype:
                self.weights[index].copy_(master)
        return norm

    def state_dict(self) -> dict:
        """Masters and moments, for a checkpoint."""
        adams = [[adam.state_dict() for adam in adams] for adams in self.adams]
        return {"masters": self.masters, "adams": adams}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restore masters, moments and the model's weights from `state_dict()`."""
        for index, weight in enumerate(self.weights):
            self.masters[index].copy_(state["masters"][index])
            weight.copy_(self.masters[index])
            for adam, saved in zip(self.adams[index], state["adams"][index], strict=True):
                adam.load_state_dict(saved)


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
