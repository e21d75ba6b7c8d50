"""AdamW in float32, whatever the model computes in."""

import torch
from torch import Tensor

PIECE = 2**20  # numbers updated at a time: what a step needs beside the weights stays in the cache


class MasterAdamW:
    """AdamW on float32 master weights of a model that may compute in bfloat16.

    A bfloat16 weight near 1 moves in steps of 0.008: an update of 1e-6 would round away.  So the
    update goes to a float32 copy, and the model gets the rounded copy.  Gradients of several
    micro-batches add up in float32; a single one waits as it came and is widened piece by piece,
    so that no float32 gradient of the whole model exists.  A float32 or float64 model is its own
    master.
    """

    def __init__(self, model, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.95)):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.gradients: dict[int, Tensor] = {}  # by the weight's number
        self.masters = []
        for number, weight in enumerate(self.weights):
            if weight.dtype in (torch.float32, torch.float64):
                self.masters.append(weight.detach())
            else:
                self.masters.append(weight.detach().float())
                weight.register_post_accumulate_grad_hook(self._taker(number))
        self.adams = []
        for master in self.masters:
            some = [
                torch.optim.AdamW([piece], betas=betas, weight_decay=weight_decay, fused=True)
                for piece in pieces(master)
            ]
            for adam in some:
                (piece,) = adam.param_groups[0]["params"]
                # Made at the first step, they would land in holes between freed activations, and
                # the next activations would find no room there: 0.2 GB more for 135 M weights.
                moments = {name: torch.zeros_like(piece) for name in ("exp_avg", "exp_avg_sq")}
                adam.state[piece] = {"step": torch.zeros((), device=piece.device), **moments}
            self.adams.append(some)

    def _taker(self, number: int):
        def take(weight):
            gradient, weight.grad = weight.grad, None
            before = self.gradients.get(number)
            self.gradients[number] = gradient if before is None else before.float().add_(gradient)

        return take

    @torch.no_grad()
    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clip to max_grad_norm, update with learning rate lr, clear; the norm before clipping.

        Raises FloatingPointError, before any weight changes, when the gradient is not finite.
        """
        for number, weight in enumerate(self.weights):
            if weight.grad is not None:
                self.gradients[number], weight.grad = weight.grad, None
        norm = torch.stack([
            piece.to(self.masters[number].dtype).norm()
            for number, gradient in self.gradients.items()
            for piece in pieces(gradient)
        ]).norm().item()  # fmt: skip
        if norm != norm or norm == float("inf"):
            self.gradients.clear()
            raise FloatingPointError(f"the gradient's norm is {norm}")
        scale = min(1.0, max_grad_norm / (norm + 1e-6))
        for number in list(self.gradients):
            gradient, master = self.gradients.pop(number), self.masters[number]
            for piece, adam in zip(pieces(gradient), self.adams[number], strict=True):
                (group,) = adam.param_groups
                (weight,) = group["params"]
                weight.grad = piece.to(weight.dtype) * scale
                group["lr"] = lr
                adam.step()
                weight.grad = None
            if self.weights[number].dtype != master.dtype:
                self.weights[number].copy_(master)
        return norm

    def state_dict(self) -> dict:
        """Masters and moments, for a checkpoint."""
        adams = [[adam.state_dict() for adam in some] for some in self.adams]
        return {"masters": self.masters, "adams": adams}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Undo of state_dict; the model's own weights follow their masters."""
        for number, weight in enumerate(self.weights):
            self.masters[number].copy_(state["masters"][number])
            weight.copy_(self.masters[number])
            for adam, saved in zip(self.adams[number], state["adams"][number], strict=True):
                adam.load_state_dict(saved)


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat views of at most PIECE numbers each (copies where the tensor is not contiguous)."""
    return tensor.reshape(-1).split(PIECE)


def warm_up(step: int, steps: int) -> float:
    """Factor of the learning rate at 0-based `step`: linear up to 1 over `steps`, then 1."""
    return min(1.0, (step + 1) / max(steps, 1))


def warm_up_and_down(step: int, warm: int, total: int) -> float:
    """Linear warm-up over `warm` steps, then linear down towards 0 at `total`."""
    return warm_up(step, warm) * min(1.0, (total - step) / max(total - warm, 1))
