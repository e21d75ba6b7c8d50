"""Which prompt trees share a row of a batch, so that few positions are padding."""

from rlhf_min.models.layout import Layout

SHARED_ROW = 128  # tokens of a row that short trees share; in longer rows attention costs too much


def split_trees(prompts: list[list[int]], branches: list[list[list[int]]], layout: Layout) -> list:
    """The trees as pairs (prompt, its branches), for prompts [P] and branches [P][K].

    A tree that is longer than `layout.max_row` becomes several; of plain rows each has one branch.
    """
    trees = []
    for prompt, own in zip(prompts, branches, strict=True):
        trees.append((prompt, []))
        for branch in own:
            full = tree_length(*trees[-1]) + len(branch) > layout.max_row
            if trees[-1][1] and (full or not layout.tree):
                trees.append((prompt, []))
            trees[-1][1].append(branch)
    return trees


def tree_length(prompt: list[int], branches: list[list[int]]) -> int:
    """Tokens of a tree with this prompt and these branches."""
    return len(prompt) + sum(map(len, branches))


def assign_rows(lengths: list[int], layout: Layout) -> list[int]:
    """The number of each tree's row, from 0, for trees of these lengths in tokens.

    Three plans are tried: a row for each tree, rows as long as the longest tree, and rows of
    SHARED_ROW tokens.  The batch with the fewest positions wins.
    """
    plans = [list(range(len(lengths)))]
    for room in (max(lengths), SHARED_ROW):
        if layout.tree and max(lengths) <= room <= layout.max_row:
            plans.append(_first_fit(lengths, room))
    return min(plans, key=lambda row_of: batch_positions(row_lengths(lengths, row_of)))


def batch_positions(used: list[int]) -> int:
    """Positions of a batch, padding included: rows × longest row; used: tokens in each row."""
    return len(used) * max(used)


def row_lengths(lengths: list[int], row_of: list[int]) -> list[int]:
    """Tokens in each row, for trees of these lengths in these rows."""
    used = [0] * (1 + max(row_of))
    for length, row in zip(lengths, row_of, strict=True):
        used[row] += length
    return used


def _first_fit(lengths: list[int], room: int) -> list[int]:
    """The row of each tree: the longest first, each in the first row that has room for it."""
    used, row_of = [], [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        with_room = (r for r, length in enumerate(used) if length + lengths[i] <= room)
        row_of[i] = next(with_room, len(used))
        if row_of[i] == len(used):
            used.append(0)
        used[row_of[i]] += lengths[i]
    return row_of
