"""Stop at the first number that is NaN or infinite, and say where it came from and why."""

from collections.abc import Callable
from contextlib import contextmanager

from torch import Tensor

CAUSE = "the weights have become too large, lower --lr (in the first step: try --dtype float32)"


class NonFiniteError(FloatingPointError):
    """A number is NaN or infinite; row: its prompt's place in the batch, None if unknown."""

    def __init__(self, what: str, cause: str = CAUSE, row: int | None = None):
        super().__init__(f"{what}: {cause}")
        self.what, self.cause, self.row = what, cause, row


def check_finite(
    what: str, values: Tensor, cause: str = CAUSE, rows=None, text_of: Callable | None = None
) -> None:
    """Raise NonFiniteError for the first NaN or infinite number in values, [P, ...] or a scalar.

    rows [P]: places of the prompts in the batch, if not 0, 1, …; text_of(p, k): the answer at
    values[p, k], which the error then names.
    """
    finite = values.detach().isfinite()
    if finite.all():
        return
    place = tuple((~finite).nonzero()[0].tolist())
    shown = f"{what} is {values[place].item()}"
    if text_of:
        shown += f" for the answer {text_start(text_of(*place[:2]))}"
    row = place[0] if len(place) else None
    raise NonFiniteError(shown, cause, row if rows is None else int(rows[row]))


def text_start(text) -> str:
    """The first 60 characters of a text or chat messages, quoted, with control characters shown."""
    text = str(text)
    return repr(text[:60] + "…" * (len(text) > 60))


@contextmanager
def naming(under_way: dict):
    """Context manager: NonFiniteError errors name the step and the prompt.

    under_way: read when the error comes: "place", such as "step 3", and "prompts" of the batch.
    """
    try:
        yield
    except NonFiniteError as error:
        prompt = ""
        if error.row is not None:
            prompt = f" (prompt {text_start(under_way['prompts'][error.row])})"
        place = under_way.get("place", "before the first step")
        raise FloatingPointError(f"{place}: {error.what}{prompt}: {error.cause}") from error
