"""The prompt tree: one row `[prompt | answer 1 | … | answer K]`, the prompt is computed once.

Position ids restart after the prompt for every answer ("branch"), and a branch sees the prompt and
itself only.  So every token gets the hidden state that it would get in a row of its own.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlhf_min.models.layout import Layout, tree_mask


@dataclass(frozen=True)
class Tree:
    """B branches in R rows of L positions, with N answer tokens; *flat index*: row·L + column."""

    ids: Tensor  # [R, L] tokens
    positions: Tensor  # [R, L] position ids
    mask: Tensor  # [R, 1, L, L] additive, 0 or most negative; for plain rows [R, L] bool
    predictors: Tensor  # [N] flat index of the token before the n-th answer token
    targets: Tensor  # [N] the n-th answer token
    owners: Tensor  # [N] its branch, 0 … B−1
    ends: Tensor  # [B] flat index of each branch's last token
    spans: list = field(default_factory=list)  # of long rows: lengths of prompt, branches, padding


def tree_rows(prompts: list[list[int]], branches: list[list[list[int]]], layout: Layout) -> list:
    """Rows of a tree, within `layout.max_row` if possible: pairs (prompt, its branches)."""
    rows = []
    for prompt, own in zip(prompts, branches, strict=True):
        rows.append((prompt, []))
        for branch in own:
            full = row_length(*rows[-1]) + len(branch) > layout.max_row
            if rows[-1][1] and (full or not layout.tree):
                rows.append((prompt, []))
            rows[-1][1].append(branch)
    return rows


def row_length(prompt: list[int], branches: list[list[int]]) -> int:
    """Tokens of a row with this prompt and these branches."""
    return len(prompt) + sum(map(len, branches))


def build_tree(prompts: list[list[int]], branches: list[list[list[int]]], layout: Layout) -> Tree:
    """Lay out prompts [P] and branches [P][K], numbered in this order, as a batch; K may differ."""
    if not all(prompts) or not all(branch for own in branches for branch in own):
        raise ValueError("every prompt and every answer needs at least one token")
    rows = tree_rows(prompts, branches, layout)
    width = max(row_length(*row) for row in rows)
    lists = ids, positions, segments, predictors, targets, owners, ends = [[] for _ in range(7)]
    for r, (prompt, own) in enumerate(rows):
        row, own_positions, parts = [*prompt], [*range(len(prompt))], [0] * len(prompt)
        for k, branch in enumerate(own, 1):
            # The prompt's last token predicts the first answer token.
            columns = [len(prompt) - 1, *range(len(row), len(row) + len(branch) - 1)]
            predictors += [r * width + column for column in columns]
            targets += branch
            owners += [len(ends)] * len(branch)
            row += branch
            own_positions += range(len(prompt), len(prompt) + len(branch))
            parts += [k] * len(branch)
            ends.append(r * width + len(row) - 1)
        padding = width - len(row)
        ids.append(row + [0] * padding)
        positions.append(own_positions + [0] * padding)
        segments.append(parts + [-1] * padding)  # 0 is the prompt, k the k-th branch

    # NumPy reads a list of numbers faster than torch.tensor does (docs/LOG.md).
    tensors = (torch.from_numpy(np.array(x, np.int64)).to(layout.device) for x in lists)
    ids, positions, segments, *flat = tensors
    mask = tree_mask(segments, layout.dtype) if layout.tree else segments >= 0
    spans = []
    if layout.tree and width >= layout.spans_from:
        spans = [(len(p), *map(len, own), width - row_length(p, own)) for p, own in rows]
    return Tree(ids, positions, mask, *flat, spans)


def hidden_states(model, tree: Tree) -> Tensor:
    """Last hidden states of a transformers model with a head: [R·L, H], in the model's dtype."""
    inputs = {"input_ids": tree.ids, "attention_mask": tree.mask, "position_ids": tree.positions}
    spans = {"spans": tree.spans} if tree.spans else {}
    return model.base_model(**inputs, use_cache=False, **spans).last_hidden_state.flatten(0, 1)
