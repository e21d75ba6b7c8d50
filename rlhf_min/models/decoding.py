"""A model at the end of many rows: the prompts once, then one token in, the next logits out."""

import functools
import warnings
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_min.models.loading import slides
from rlhf_min.models.prompt_tree import tree_mask

PACK_FROM = 16  # new tokens: packing costs what some ten of them save


class Decoder:
    """P prompts run through the model once, their cache is shared out to K samples each.

    `logits` [B, V], B = P·K: what follows each prompt.  Calling it with a token per row gives what
    follows that; the result holds until the next call.
    """

    leave_at = 0.75  # finished rows leave at this share of running ones: moving a cache has a price

    def __init__(self, model, prompts: list[list[int]], samples: int, room: int):
        """prompts [P][tokens], `samples` K, room for how many new tokens."""
        self.model = model
        self.width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), self.width, dtype=torch.long)
        segments = torch.full((len(prompts), self.width), -1)  # as in the prompt tree: 0 is prompt
        for p, prompt in enumerate(prompts):  # padded on the left: the last slot is the last token
            ids[p, self.width - len(prompt) :] = torch.tensor(prompt)
            segments[p, self.width - len(prompt) :] = 0
        ids, segments = ids.to(model.device), segments.to(model.device)
        positions = ((segments == 0).cumsum(-1) - 1).clamp_min(0)
        # A model with a sliding window makes its own mask from a 2-D one; a 4-D one would undo it.
        self.slides = slides(model, self.width + room)
        self.cache = DynamicCache(config=model.config)
        seen = (segments == 0).long() if self.slides else tree_mask(segments, model.dtype)
        logits = self._forward(ids, seen, positions)
        for i, layer in enumerate(self.cache.layers):
            if type(layer) is DynamicLayer:
                self.cache.layers[i] = self._roomy(layer, samples, room)
            else:  # sliding windows, recurrent states: transformers knows how
                layer.batch_repeat_interleave(samples)
        self.logits = logits.repeat_interleave(samples, 0)
        self.position = positions[:, -1:].repeat_interleave(samples, 0)
        shown = F.pad((segments == 0).long(), (0, room), value=1)
        if not self.slides:
            unseen = torch.zeros_like(shown, dtype=model.dtype)
            shown = unseen.masked_fill_(shown == 0, torch.finfo(model.dtype).min)[:, None, None]
        self.mask = shown.repeat_interleave(samples, 0)

    def _roomy(self, layer: DynamicLayer, samples: int, room: int) -> DynamicLayer:
        return RoomyLayer(layer, samples, room)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def __call__(self, token: Tensor) -> Tensor:
        """The next token of each row [B] → the logits after it [B, V]."""
        self.width += 1
        self.position = self.position + 1
        return self._forward(token[:, None], self.mask[..., : self.width], self.position)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.position, self.mask = self.position[rows], self.mask[rows]


class StaticDecoder(Decoder):
    """The same with tensors that never change their shape or place, so that one token is one graph.

    A CUDA graph replays some thousand kernels at once where Python would launch them one by one.
    The whole cache is read, the mask hides what is not written yet.  On a CPU, or where a model
    cannot be captured (a warning says so), the step runs as it is.
    """

    leave_at = 0.5  # a new graph each time

    def __init__(self, model, prompts: list[list[int]], samples: int, room: int):
        self.slot = torch.zeros(1, dtype=torch.long, device=model.device)
        room += -(max(map(len, prompts)) + room) % 16  # fused attention wants aligned masks
        super().__init__(model, prompts, samples, room)
        self.slot += self.width
        self.mask[..., self.width :] = torch.finfo(model.dtype).min
        self.token = torch.zeros_like(self.position)
        self.graph, self.capturable = None, model.device.type == "cuda"

    def _roomy(self, layer: DynamicLayer, samples: int, room: int) -> DynamicLayer:
        return StaticLayer(layer, samples, room, self.slot)

    def _one_step(self) -> Tensor:
        return self._forward(self.token, self.mask, self.position)

    def __call__(self, token: Tensor) -> Tensor:
        """The next token of each row [B] → the logits after it [B, V]."""
        self.token.copy_(token[:, None])
        self.position += 1
        self.mask.index_fill_(-1, self.slot, 0)
        if self.graph is None and self.capturable:
            self.graph = captured(self._one_step, self.token.device)
            self.capturable = self.graph is not None
        logits = self._one_step() if self.graph is None else self.graph()
        self.slot += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in a graph of their own."""
        super().keep(rows)
        self.token, self.graph = self.token[rows], None


@functools.cache
def side_stream(device: torch.device):
    """One stream for all captures: every stream that multiplies gets a workspace of its own."""
    return torch.cuda.Stream(device)


def captured(step, device: torch.device):
    """A CUDA graph of `step` (no arguments, always the same tensors): what replays it.

    None, with a warning, where a step waits for the GPU or copies from the CPU.  Source: PyTorch's
    notes on CUDA graphs: first runs on a side stream, then the capture, which computes nothing.
    """
    with torch.cuda.device(device):
        caller, side = torch.cuda.current_stream(), side_stream(device)
        strictness = torch.cuda.get_sync_debug_mode()
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(caller)
        try:
            with torch.cuda.stream(side):
                step()  # whatever is done once only
                torch.cuda.set_sync_debug_mode("error")
                step()  # a failed capture harms the allocator: fail before it
                torch.cuda.set_sync_debug_mode(strictness)
            caller.wait_stream(side)
            with torch.cuda.graph(graph, stream=side):
                output = step()
        except RuntimeError as error:
            reason = str(error.__context__ or error)  # the error itself would keep the cache alive
            warnings.warn(f"sampling without a CUDA graph, slower: {reason}", stacklevel=2)
            return None
        finally:
            torch.cuda.set_sync_debug_mode(strictness)
            torch.cuda.set_stream(caller)  # a failed capture leaves its own in place

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class RoomyLayer(DynamicLayer):
    """A cache layer that writes new tokens into room set aside for them: no copy of the old.

    Keys lie transposed, [B, heads, size, tokens]: a product with one query reads them so, and need
    not copy them first.  What `update` returns is a view in the usual order.
    """

    def __init__(self, layer: DynamicLayer, samples: int, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.length = layer.keys.shape[-2]
        prompts, heads, _, size = layer.keys.shape
        room += self.length
        self.key_store = layer.keys.new_zeros(prompts * samples, heads, size, room)
        self.value_store = layer.values.new_zeros(prompts * samples, heads, room, size)
        self.key_store[..., : self.length] = layer.keys.mT.repeat_interleave(samples, 0)
        self.value_store[:, :, : self.length] = layer.values.repeat_interleave(samples, 0)
        self._show()

    def _show(self) -> None:
        self.keys = self.key_store[..., : self.length].mT
        self.values = self.value_store[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Append the states of new tokens [B, heads, new, size]; returns all keys and values."""
        begin, self.length = self.length, self.length + key_states.shape[-2]
        self.key_store[..., begin : self.length] = key_states.mT
        self.value_store[:, :, begin : self.length] = value_states
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.key_store, self.value_store = self.key_store[indices], self.value_store[indices]
        self._show()


class StaticLayer(DynamicLayer):
    """A cache layer that shows all its room, and writes where the tensor `slot` [1] says.

    Keys lie in the usual order: torch's fused kernels on a GPU take no other.
    """

    def __init__(self, layer: DynamicLayer, samples: int, room: int, slot: Tensor):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.slot = slot
        self.keys, self.values = (
            F.pad(x, (0, 0, 0, room)).repeat_interleave(samples, 0)
            for x in (layer.keys, layer.values)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Write the states of one new token [B, heads, 1, size]; returns the whole room."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys, self.values


def make_decoder(model, prompts: list[list[int]], samples: int, room: int) -> Decoder:
    """A static decoder on a GPU, where the model can take one; a growing one elsewhere."""
    static = model.device.type == "cuda" and can_be_static(model)
    return (StaticDecoder if static else Decoder)(model, prompts, samples, room)


def can_be_static(model) -> bool:
    """Whether every layer sees all of a row: no sliding window, no recurrent state.

    Nor GPT-Neo's window, which counts slots; its attention copies a number from the CPU besides.
    """
    window = getattr(model.config.get_text_config(), "window_size", None)
    layers = DynamicCache(config=model.config).layers
    return window is None and all(type(layer) is DynamicLayer for layer in layers)


@contextmanager
def ready_to_decode(model, new_tokens: int):
    """Meanwhile the model is in evaluation mode, with packed weights.

    Under gradient checkpointing a model in training mode would switch its cache off.
    """
    was_training = model.training
    model.eval()
    try:
        with packed_weights(model, new_tokens):
            yield
    finally:
        model.train(was_training)


@contextmanager
def packed_weights(model, new_tokens: int):
    """Meanwhile the model's bfloat16 linear layers multiply with weights in oneDNN's own order.

    Otherwise each product of a few rows puts the whole weight in that order first.  Costs a copy of
    the weights for as long.  Nothing happens elsewhere than on a CPU, nor for a few tokens.
    """
    layers = []
    if model.device.type == "cpu" and new_tokens >= PACK_FROM and multiplies_packed():
        layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)]
        layers = [m for m in layers if m.weight.dtype == torch.bfloat16]
    try:
        for layer in layers:
            layer.forward = packed(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def multiplies_packed() -> bool:
    """Whether this torch and this CPU can (torch.compile asks the same)."""
    mkldnn = torch.backends.mkldnn
    return mkldnn.is_available() and mkldnn.enabled and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed(layer: nn.Linear):
    """The layer's forward on a packed copy of its weight (the operators behind torch.compile)."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    bias = layer.bias

    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward
