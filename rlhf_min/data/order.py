"""Which rows come when: an order made from seed and step alone, so that runs can resume."""

import torch


def batch_indices(count: int, size: int, step: int, seed: int, partial: bool = False) -> list[int]:
    """Rows of the 0-based step out of `count` rows, each epoch in a new random order.

    partial: whether the rest of an epoch that does not fill a batch is a (smaller) batch of its own
    or is left out.
    """
    per_epoch = max(1, -(-count // size) if partial else count // size)
    epoch, at = divmod(step, per_epoch)
    shuffle = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(count, generator=shuffle)[at * size : (at + 1) * size].tolist()
