"""The prompt tree: one row `[prompt | branch 1 | … | branch K]`, the prompt computed once.

Position ids restart after the prompt for every branch, and a branch sees the prompt and itself
only, so every branch gets the very hidden states it would get in a row of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SPANS_FROM = 256  # slots from which a tree's attention goes block by block (attention.py)


@dataclass(frozen=True)
class Layout:
    """How one model takes its rows.

    `tree`: False for models that cannot take a 4-D mask; they get a row per branch.  `max_row`: the
    longest row in tokens.  `dtype`: of the additive mask, the model's own.
    """

    tree: bool
    max_row: int
    dtype: torch.dtype
    device: torch.device

    @property
    def micro_tokens(self) -> int:
        """Slots of one forward and backward at most.

        On a CPU fewer are faster and take less memory (docs/LOG.md).
        """
        return 2**11 if self.device.type == "cpu" else 2**13


@dataclass(frozen=True)
class Tree:
    """A batch of B branches in R rows of L slots, with N answer tokens in all.

    ids, positions [R, L]; mask [R, 1, L, L] additive float (0 or most negative), or [R, L] bool for
    plain rows; predictors [N]: flat slot (row·L + column) whose output predicts the n-th answer
    token; targets [N]: that token; owners [N]: its branch in 0..B−1; ends [B]: flat slot of each
    branch's last token.  `padding`: share of the slots that hold no token.

    A long tree's mask has an attribute `spans` for attention.py: by row the lengths of prompt,
    branches and padding.  Models hand masks on as they are; not all hand on further arguments.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    ends: Tensor
    padding: float


def build_tree(prompts: list[list[int]], branches: list[list[list[int]]], layout: Layout) -> Tree:
    """Lay out prompts [P] and, for each, its branches (token ids, each with at least one token).

    Branch numbers (owners, ends) count through the branches in the order given.  A row that would
    be longer than `layout.max_row` is split into several, the prompt repeated.  Raises ValueError
    for an empty prompt or answer: no token to predict from, or none to predict.
    """
    if not all(prompts) or not all(answer for answers in branches for answer in answers):
        raise ValueError("every prompt and every answer needs at least one token")
    rows = []  # (prompt, first branch number, branches)
    number = 0
    for prompt, answers in zip(prompts, branches, strict=True):
        open_row: list[list[int]] = []
        for answer in answers:
            length = len(prompt) + sum(map(len, open_row)) + len(answer)
            if open_row and (not layout.tree or length > layout.max_row):
                rows.append((prompt, number - len(open_row), open_row))
                open_row = []
            open_row = [*open_row, answer]
            number += 1
        rows.append((prompt, number - len(open_row), open_row))

    width = max(len(prompt) + sum(map(len, answers)) for prompt, _, answers in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segments = torch.full((len(rows), width), -1)  # 0 is the prompt, k the k-th branch, -1 nothing
    predictors, targets, owners, ends = [], [], [], [0] * number
    for r, (prompt, first, answers) in enumerate(rows):
        row, row_positions, row_segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for k, answer in enumerate(answers):
            begin = len(row)
            slots = [len(prompt) - 1, *range(begin, begin + len(answer) - 1)]
            predictors += [r * width + slot for slot in slots]
            targets += answer
            owners += [first + k] * len(answer)
            row += answer
            row_positions += range(len(prompt), len(prompt) + len(answer))
            row_segments += [k + 1] * len(answer)
            ends[first + k] = r * width + len(row) - 1
        ids[r, : len(row)] = torch.tensor(row)
        positions[r, : len(row)] = torch.tensor(row_positions)
        segments[r, : len(row)] = torch.tensor(row_segments)

    to = {"device": layout.device}
    mask = tree_mask(segments.to(layout.device), layout.dtype) if layout.tree else segments >= 0
    mask = mask.to(**to)
    if layout.tree and width >= SPANS_FROM:
        mask.spans = [
            (len(prompt), *map(len, answers), width - len(prompt) - sum(map(len, answers)))
            for prompt, _, answers in rows
        ]
    return Tree(
        ids=ids.to(**to),
        positions=positions.to(**to),
        mask=mask,
        predictors=torch.tensor(predictors, **to),
        targets=torch.tensor(targets, **to),
        owners=torch.tensor(owners, **to),
        ends=torch.tensor(ends, **to),
        padding=(segments < 0).float().mean().item(),
    )


def tree_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Who sees whom: earlier slots of the prompt (segment 0) and of one's own segment.

    segments [R, L] → [R, 1, L, L] additive: 0 where the query (third axis) sees the key (fourth),
    most negative elsewhere.  Additive, because a boolean 4-D mask is right under `sdpa` and
    silently wrong under `eager` attention.  Empty slots see each other, so
    that no row of the softmax is empty.
    """
    own = segments[:, :, None] == segments[:, None, :]
    prompt = (segments == 0)[:, None, :]
    causal = torch.ones(own.shape[1:], dtype=torch.bool, device=segments.device).tril()
    mask = torch.zeros(own.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~((own | prompt) & causal), torch.finfo(dtype).min)[:, None]


def hidden_states(model, tree: Tree) -> Tensor:
    """Last hidden states of a transformers model with a head: [R·L, H], in the model's dtype."""
    output = model.base_model(
        input_ids=tree.ids, attention_mask=tree.mask, position_ids=tree.positions, use_cache=False
    )
    return output.last_hidden_state.flatten(0, 1)


def length_batches(lengths: list[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Group rows of like length: indices into lengths [rows], longest group first.

    No group has more than max_rows rows, nor more than max_tokens slots after padding (a single
    longer row is a group of its own).  Longest first, so memory runs out at the start or never.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = groups and len(groups[-1]) < max_rows
        if fits and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
