"""The order of a run's batches: computed from seed and step alone, so that runs can resume."""

from functools import lru_cache

import torch

GROUPED = 16  # batches whose items are sorted by length together


def batch_indices(
    count: int, size: int, step: int, seed: int, partial: bool = False, lengths: list | None = None
) -> list[int]:
    """Indices, below `count`, of the items in the batch of this step (from 0).

    Every epoch is shuffled anew.  partial: use an epoch's last, incomplete batch, too.
    lengths [count]: every 16 batches are sorted by length together, so that a batch needs less
    padding; then they come in a random order.
    """
    per_epoch = max(1, -(-count // size) if partial else count // size)
    epoch, batch = divmod(step, per_epoch)
    order = _shuffled(count, seed * 100_003 + epoch)
    if lengths is None:
        return order[batch * size : (batch + 1) * size]
    first = batch - batch % GROUPED
    last = min(first + GROUPED, per_epoch)
    pool = sorted(order[first * size : last * size], key=lengths.__getitem__)
    place = _shuffled(last - first, seed * 100_003 + epoch)[batch - first]
    return pool[place * size : (place + 1) * size]


@lru_cache(maxsize=4)  # the order of an epoch and of its groups
def _shuffled(count: int, seed: int) -> list[int]:
    """The numbers 0 … count−1 in a random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).tolist()
