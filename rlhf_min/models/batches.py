"""Micro-batches of prompt trees, grouped by length, in a layout that the model supports."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlhf_min import InputError
from rlhf_min.hardware import ranks
from rlhf_min.hardware.attention import NAME
from rlhf_min.hardware.last_layer import last_layer_at
from rlhf_min.models.layout import Layout, context_length, needs_plain_rows, slides
from rlhf_min.models.prompt_tree import Tree, build_tree, hidden_states
from rlhf_min.models.shared_rows import (
    assign_rows,
    batch_positions,
    row_lengths,
    split_trees,
    tree_length,
)

SMALL = 1e6  # weights
SPANS_FROM = 256  # row length from which attention branch by branch is faster

_layouts: WeakKeyDictionary = WeakKeyDictionary()  # model → its layout


def tree_batches(
    model, prompts: list, branches: list, max_prompts: int, forward: bool = False
) -> Iterator[tuple[list[int], Tree]]:
    """Yields, longest first, the indices [p] of a micro-batch's prompts and its prompt trees.

    A micro-batch has at most max_prompts prompts, and, unless a single prompt needs more, at most
    `max_positions` of the model's layout (`forward_positions` with forward=True, which is for
    passes without gradients).  With several processes, only the prompts of this rank come.
    """
    layout, own = layout_of(model), ranks.own(len(prompts))
    lengths = [_positions(*pair, layout) for pair in zip(prompts, branches, strict=True)]
    own_lengths = [lengths[i] for i in own]
    limit = layout.forward_positions if forward else layout.max_positions
    for group in length_batches(own_lengths, max_prompts, limit):
        indices = [own[j] for j in group]
        batch = [prompts[i] for i in indices], [branches[i] for i in indices]
        yield indices, build_tree(*batch, layout)


def padding_share(model, prompts: list, branches: list, max_prompts: int) -> float:
    """Share of positions without a token in `tree_batches` of the same arguments on one device."""
    layout, positions, tokens = layout_of(model), 0, 0
    lengths = [_positions(*pair, layout) for pair in zip(prompts, branches, strict=True)]
    for indices in length_batches(lengths, max_prompts, layout.max_positions):
        batch = [prompts[i] for i in indices], [branches[i] for i in indices]
        tree_lengths = [tree_length(*tree) for tree in split_trees(*batch, layout)]
        used = row_lengths(tree_lengths, assign_rows(tree_lengths, layout))
        positions, tokens = positions + batch_positions(used), tokens + sum(used)
    return 1 - tokens / positions


def _positions(prompt: list[int], branches: list[list[int]], layout: Layout) -> int:
    """Positions of one prompt with its branches: plain rows repeat the prompt."""
    return batch_positions([tree_length(*x) for x in split_trees([prompt], [branches], layout)])


def length_batches(lengths: list[int], max_rows: int, max_positions: int) -> list[list[int]]:
    """Indices into lengths, in groups of like length; the longest come first.

    A group has at most max_rows items and max_positions positions (items × longest item), or it
    is a single longer item.
    """
    groups: list[list[int]] = []
    # The longest first, so that memory runs out at the start or never.
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = groups and len(groups[-1]) < max_rows
        if fits and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_positions:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def layout_of(model) -> Layout:
    """The model's layout, found by `choose_layout` when it is first asked for."""
    return _layouts.get(model) or _layouts.setdefault(model, choose_layout(model))


@torch.no_grad()
def choose_layout(model, say=print) -> Layout:
    """The fastest layout that gives this model the same hidden states as plain rows.

    Short sliding windows, recurrent models and some attention kernels cannot take a tree.  Raises
    InputError for a model that cannot take plain rows either.
    """
    config, context = model.config.get_text_config(), context_length(model)
    # GPT-Neo's window counts positions in the row, not position ids: no row may be longer.
    longest = min(context, getattr(config, "window_size", None) or sys.maxsize)
    reason = needs_plain_rows(model)
    cache = slides(model, context) and not reason
    if cache:
        reason = "it attends to a sliding window"  # which a 4-D mask would switch off
    small = model.num_parameters() < SMALL
    plain = Layout(False, context, model.dtype, model.device, cache=cache, small=small)
    trees = [Layout(True, longest, model.dtype, model.device, small=small)]
    if config._attn_implementation == NAME:
        trees.insert(0, replace(trees[0], spans_from=0))
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
    for layout in [] if reason else trees:
        try:
            # Two rows with padding, too; by itself the layout puts all into one row.
            two_rows = replace(layout, max_row=min(13, longest))
            states = [_probe_states(model, x) for x in (plain, layout, two_rows)]
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = _first_line(error)
            continue
        if not states[0].any():
            raise InputError(
                f"{model.name_or_path} gives hidden states that are all 0: its weights overflow or "
                "its file is damaged, give another model"
            )
        gaps = [(x - states[0]).abs().max().item() for x in states]
        if (gap := max(gaps) / states[0].abs().max().item()) < tolerance:
            ends_only = _last_layer_at_ends_fits(model, layout, states[1], tolerance)
            spans_from = max(layout.spans_from, SPANS_FROM)
            return replace(layout, spans_from=spans_from, ends_only=ends_only)
        reason = f"states differ by {gap:.1e}"
    name, slower = type(model).__name__, "" if cache else ", and sampling without a KV cache"
    try:
        _probe_states(model, plain)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = _first_line(error)
        raise InputError(f"{name} is no decoder language model ({reason}): take one") from error
    say(f"{name} cannot take a prompt tree ({reason}): one row per answer instead{slower}")
    return plain


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _last_layer_at_ends_fits(model, layout: Layout, states: Tensor, tolerance: float) -> bool:
    """Whether `last_layer_at` changes nothing in the `_probe_states` of this layout [4, H]."""
    gaps = []
    for max_row in (layout.max_row, 1):  # several branches in a row; a single one
        try:
            ends = _probe_states(model, replace(layout, max_row=max_row, ends_only=True))
        except Exception:  # nobody can list the ways in which models use masks and KV caches
            return False
        gaps.append((ends - states).abs().max().item() / states.abs().max().item())
    return max(gaps) < tolerance / 4


def _probe_states(model, layout: Layout) -> Tensor:
    """Last hidden states of four short random branches [4, H], float32."""
    vocabulary = model.config.get_text_config().vocab_size
    probe = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (22,), generator=probe).tolist()
    prompts, branches = [ids[:5], ids[5:8]], [[ids[8:11], ids[11:16]], [ids[16:20], ids[20:22]]]
    tree = build_tree(prompts, branches, layout)
    return end_states(model, tree, layout).float()


def end_states(model, tree: Tree, layout: Layout | None = None) -> Tensor:
    """Last hidden states of each branch's last token: [B, H]; layout: by default the model's."""
    if not (layout or layout_of(model)).ends_only:
        return hidden_states(model, tree)[tree.ends]
    with last_layer_at(model, tree.ends, tree.ids.shape):
        return hidden_states(model, tree)[tree.ends]
