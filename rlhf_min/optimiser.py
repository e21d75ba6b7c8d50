"""AdamW in float32, whatever the model computes in."""

import torch


class MasterAdamW:
    """AdamW on float32 master weights of a model that may compute in bfloat16.

    A bfloat16 weight near 1 moves in steps of 0.008: an update of 1e-6 would round away.  So the
    update goes to a float32 copy, and the model gets the rounded copy.  Gradients of several
    micro-batches add up in float32 too.  A float32 or float64 model is its own master.
    """

    def __init__(self, model, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.95)):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.masters = []
        for weight in self.weights:
            if weight.dtype in (torch.float32, torch.float64):
                self.masters.append(weight)
                continue
            master = weight.detach().float().clone()
            self.masters.append(master)
            weight.register_post_accumulate_grad_hook(_hand_over_to(master))
        self.adam = torch.optim.AdamW(
            self.masters, betas=betas, weight_decay=weight_decay, fused=True
        )

    @torch.no_grad()
    def step(self, lr: float, max_grad_norm: float) -> float:
        """Clip to max_grad_norm, update with learning rate lr, clear; the norm before clipping.

        Raises FloatingPointError, before any weight changes, when the gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.masters, max_grad_norm).item()
        if norm != norm or norm == float("inf"):
            raise FloatingPointError(f"the gradient's norm is {norm}")
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight is not master:
                weight.copy_(master)
        return norm

    def state_dict(self) -> dict:
        """Masters and moments, for a checkpoint."""
        return {"masters": self.masters, "adam": self.adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Undo of state_dict; the model's own weights follow their masters."""
        self.adam.load_state_dict(state["adam"])
        for weight, master, saved in zip(self.weights, self.masters, state["masters"], strict=True):
            master.copy_(saved)
            weight.copy_(saved)


def _hand_over_to(master):
    def hook(weight):
        gradient = weight.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        weight.grad = None

    return hook


def warm_up(step: int, steps: int) -> float:
    """Factor of the learning rate at 0-based `step`: linear up to 1 over `steps`, then 1."""
    return min(1.0, (step + 1) / max(steps, 1))


def warm_up_and_down(step: int, warm: int, total: int) -> float:
    """Linear warm-up over `warm` steps, then linear down towards 0 at `total`."""
    return warm_up(step, warm) * min(1.0, (total - step) / max(total - warm, 1))
