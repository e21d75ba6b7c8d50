"""The prompt tree `[prompt | answer 1 | … | answer K]`: its prompt is computed only once.

Position ids restart after the prompt for every answer ("branch"), and a branch sees the prompt and
itself only.  So every token gets the hidden state that it would get in a sequence of its own.
Short trees share a row of the batch, so that fewer positions are padding (shared_rows.py).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlhf_min.models.layout import Layout, tree_mask
from rlhf_min.models.shared_rows import assign_rows, row_lengths, split_trees, tree_length


@dataclass(frozen=True)
class Tree:
    """A batch of prompt trees as tensors: B branches with N tokens, in R rows of L positions.

    A flat index is row·L + column.
    """

    ids: Tensor  # [R, L] tokens
    positions: Tensor  # [R, L] position ids
    mask: Tensor  # [R, 1, L, L] additive, 0 or most negative; for plain rows [R, L] bool
    predictors: Tensor  # [N] flat index of the token before the n-th answer token
    targets: Tensor  # [N] the n-th answer token
    owners: Tensor  # [N] its branch, 0 … B−1
    ends: Tensor  # [B] flat index of each branch's last token
    spans: list = field(default_factory=list)  # of long rows [R][trees]: lengths of the parts


def build_tree(prompts: list[list[int]], branches: list[list[list[int]]], layout: Layout) -> Tree:
    """Lay out prompts [P] and branches [P][K], numbered in this order, as a batch; K may differ."""
    if not all(prompts) or not all(branch for own in branches for branch in own):
        raise ValueError("every prompt and every answer needs at least one token")
    trees = split_trees(prompts, branches, layout)
    lengths = [tree_length(*tree) for tree in trees]
    row_of = assign_rows(lengths, layout)
    used = row_lengths(lengths, row_of)
    width, segment = max(used), 0  # a segment is a prompt or a branch
    rows = ids, positions, segments, roots, spans = [[[] for _ in used] for _ in range(5)]
    flat = predictors, targets, owners, ends = [[] for _ in range(4)]
    for r, (prompt, own) in zip(row_of, trees, strict=True):
        # The prompt's last token predicts the first token of every answer.
        last, root = r * width + len(ids[r]) + len(prompt) - 1, segment
        spans[r].append(tuple(map(len, (prompt, *own))))
        for k, part in enumerate((prompt, *own)):
            start, position = r * width + len(ids[r]), len(prompt) if k else 0
            if k:
                predictors += [last, *range(start, start + len(part) - 1)]
                targets += part
                owners += [len(ends)] * len(part)
                ends.append(start + len(part) - 1)
            ids[r] += part
            positions[r] += range(position, position + len(part))
            segments[r] += [segment] * len(part)
            roots[r] += [root] * len(part)
            segment += 1

    # NumPy reads a list of numbers faster than torch.tensor does (docs/LOG.md).
    tensor = lambda x: torch.from_numpy(np.array(x, np.int64)).to(layout.device)  # noqa: E731
    padded = lambda x, fill: tensor([row + [fill] * (width - len(row)) for row in x])  # noqa: E731
    ids, positions, segments, roots = map(padded, rows[:4], (0, 0, -1, -1))
    mask = tree_mask(segments, roots, layout.dtype) if layout.tree else segments >= 0
    spans = spans if layout.tree and width >= layout.spans_from else []
    return Tree(ids, positions, mask, *map(tensor, flat), spans)


def hidden_states(model, tree: Tree) -> Tensor:
    """Last hidden states of a transformers model with a head: [R·L, H], in the model's dtype."""
    inputs = {"input_ids": tree.ids, "attention_mask": tree.mask, "position_ids": tree.positions}
    spans = {"spans": tree.spans} if tree.spans else {}
    return model.base_model(**inputs, use_cache=False, **spans).last_hidden_state.flatten(0, 1)
