"""One thread for small work on a CPU: waking a second one would take longer than it saves."""

from contextlib import contextmanager

import torch

# Weights × rows of one token, below which one thread samples faster than two (docs/speed.md).
ALONE_BELOW = 2**26


@contextmanager
def few_threads(model, rows: int):
    """Context manager: one CPU thread if decoding a token of `rows` rows is little work."""
    threads, weights = torch.get_num_threads(), sum(p.numel() for p in model.parameters())
    if model.device.type == "cpu" and weights * rows < ALONE_BELOW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
