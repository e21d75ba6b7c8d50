"""The order of a run's batches: computed from seed and step alone, so that runs can resume."""

from functools import lru_cache

import torch


def batch_indices(count: int, size: int, step: int, seed: int, partial: bool = False) -> list[int]:
    """Indices, below `count`, of the items in the batch of this step (from 0).

    Every epoch is shuffled anew.  partial: use an epoch's last, incomplete batch, too.
    """
    per_epoch = max(1, -(-count // size) if partial else count // size)
    epoch, batch = divmod(step, per_epoch)
    return _shuffled(count, seed * 100_003 + epoch)[batch * size : (batch + 1) * size]


@lru_cache(maxsize=2)  # an epoch's order, which takes longer than a step if there are many items
def _shuffled(count: int, seed: int) -> list[int]:
    """The numbers 0 … count−1 in a random order."""
    shuffle = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=shuffle).tolist()
