"""Rows of a batch of prompt trees: which trees share a row, so that few positions are padding."""

from rlhf_min.models.layout import Layout

SHARED_ROW = 128  # tokens up to which trees share a row; attention in longer rows costs too much


def single_trees(prompts: list[list[int]], branches: list[list[list[int]]], layout: Layout) -> list:
    """Pairs (prompt, its branches); split if longer than `layout.max_row` or if rows are plain."""
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


def shared_rows(lengths: list[int], layout: Layout) -> list[int]:
    """The row of each tree [trees], for trees of these lengths: short ones share a row.

    The plan with the fewest positions (rows × longest row) of: one row for each, rows up to the
    longest tree, rows up to SHARED_ROW.
    """
    plans = [list(range(len(lengths)))]
    for room in (max(lengths), SHARED_ROW):
        if layout.tree and max(lengths) <= room <= layout.max_row:
            plans.append(_first_fit(lengths, room))
    return min(plans, key=lambda rows: positions_of(row_lengths(lengths, rows)))


def positions_of(used: list[int]) -> int:
    """Positions of a batch whose rows have these lengths [R], padding included."""
    return len(used) * max(used)


def row_lengths(lengths: list[int], rows: list[int]) -> list[int]:
    """Tokens in each row, for trees of these lengths [trees] in these rows [trees]."""
    used = [0] * (1 + max(rows))
    for length, row in zip(lengths, rows, strict=True):
        used[row] += length
    return used


def _first_fit(lengths: list[int], room: int) -> list[int]:
    """The row of each tree: the longest first, each in the first row that has room for it."""
    used, rows = [], [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (r for r, length in enumerate(used) if length + lengths[i] <= room)
        rows[i] = next(fits, len(used))
        if rows[i] == len(used):
            used.append(0)
        used[rows[i]] += lengths[i]
    return rows
