"""Decoding on a GPU with tensors of fixed size, so that every token replays one CUDA graph."""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from rlhf_min.hardware.decoding import Decoder, allows_unwritten_places, next_logits


def use_static(model) -> bool:
    """Whether `StaticDecoder` can decode: on a GPU, without sliding window or recurrent state."""
    return model.device.type == "cuda" and allows_unwritten_places(model)


class StaticLayer(DynamicLayer):
    """A cache layer of fixed size that writes at the position held by the tensor `write_at` [1]."""

    def __init__(self, layer: DynamicLayer, samples: int, room: int, write_at: Tensor):
        """As GrowingLayer; room: new tokens at most; write_at is shared by all layers."""
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.write_at = write_at
        padded = (F.pad(x, (0, 0, 0, room)) for x in (layer.keys, layer.values))
        self.keys, self.values = (x.repeat_interleave(samples, 0) for x in padded)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Write the states of one new token [B, heads, 1, size]; returns the whole cache."""
        self.keys.index_copy_(2, self.write_at, key_states)
        self.values.index_copy_(2, self.write_at, value_states)
        return self.keys, self.values


class StaticDecoder(Decoder):
    """A decoder with tensors that keep their size and place.

    A CUDA graph replays about a thousand kernels at once that Python would launch one by one.
    Every step reads the whole cache; the mask hides positions that are not written yet.  On a CPU,
    or where the capture fails (a warning says so), the same step runs without a graph.
    """

    compact_below = 0.5  # share of running rows; lower than in Decoder: each change needs a capture

    def __init__(self, *state, write_at: Tensor):
        """state: as Decoder; write_at [1]: where the next token goes, shared with StaticLayers."""
        super().__init__(*state)
        self.write_at = write_at
        self.token = torch.zeros_like(self.position)
        self.graph, self.capturable = None, self.model.device.type == "cuda"

    def _step(self) -> Tensor:
        return next_logits(self.model, self.cache, self.token, self.mask, self.position)

    def __call__(self, token: Tensor) -> Tensor:
        self.token.copy_(token[:, None])
        self.position += 1
        self.mask.index_fill_(-1, self.write_at, 0)
        if self.graph is None and self.capturable:
            self.graph = captured(self._step, self.token.device)
            self.capturable = self.graph is not None
        logits = self._step() if self.graph is None else self.graph()
        self.write_at += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.token, self.graph = self.token[rows], None  # the next step captures a new graph


@functools.cache
def side_stream(device: torch.device):
    """One stream for all captures, because every stream gets its own workspace for products."""
    return torch.cuda.Stream(device)


def captured(step, device: torch.device):
    """A function that replays `step` (no arguments, fixed tensors) as a CUDA graph.

    None, with a warning, when the step waits for the GPU or copies from the CPU.  Source: PyTorch's
    notes on CUDA graphs: first runs on a side stream, then the capture, which computes nothing.
    """
    with torch.cuda.device(device):
        caller, side = torch.cuda.current_stream(), side_stream(device)
        sync_debug_mode = torch.cuda.get_sync_debug_mode()
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(caller)
        try:
            with torch.cuda.stream(side):
                step()  # initialises what is initialised once only
                torch.cuda.set_sync_debug_mode("error")
                step()  # fails here rather than in the capture, which would harm the allocator
                torch.cuda.set_sync_debug_mode(sync_debug_mode)
            caller.wait_stream(side)
            with torch.cuda.graph(graph, stream=side):
                output = step()
        except RuntimeError as error:
            reason = str(error.__context__ or error)  # keeping `error` would keep the cache alive
            warnings.warn(f"sampling without a CUDA graph, slower: {reason}", stacklevel=2)
            return None
        finally:
            torch.cuda.set_sync_debug_mode(sync_debug_mode)
            torch.cuda.set_stream(caller)  # a failed capture leaves its own stream active

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
