"""The order of a run's batches: computed from seed and step alone, so that runs can resume."""

import torch


def batch_indices(count: int, size: int, step: int, seed: int, partial: bool = False) -> list[int]:
    """Indices of the 0-based step's batch out of `count` items; every epoch is shuffled anew.

    partial: whether an epoch's last, incomplete batch is used or dropped.
    """
    per_epoch = max(1, -(-count // size) if partial else count // size)
    epoch, batch = divmod(step, per_epoch)
    shuffle = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(count, generator=shuffle).tolist()
    return order[batch * size : (batch + 1) * size]
