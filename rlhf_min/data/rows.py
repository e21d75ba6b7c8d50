"""The columns of one row: prompt, answers, ratings.  InputError gives the reason of a bad row."""

import math
import re
from itertools import takewhile

from rlhf_min import InputError

Message = dict[str, str]  # "role" and "content"
Prompt = str | list[Message]

ROLES = ("system", "developer", "user", "assistant", "tool")
RATING_COLUMNS = (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"))
# Columns of other data sets: prompt ("": both dialogues begin with it), answer 1, answer 2, label;
# then label value → column of the better answer ("": a tie).
JUDGEBENCH = {"A>B": "response_A", "B>A": "response_B", "A=B": ""}
VOTES = {"a": "response_a", "b": "response_b", "tie": ""}  # your own
ARENA = {"model_a": "conversation_a", "model_b": "conversation_b"}  # Chatbot Arena, MT-Bench
ARENA |= dict.fromkeys(("tie", "tie (bothbad)", "both_bad"), "")
OTHER_NAMES = (
    ("input", "output_1", "output_2", "label", {"1": "output_1", "2": "output_2"}),  # LLMBar
    ("history", "human_ref_A", "human_ref_B", "labels", {"1": "human_ref_A", "0": "human_ref_B"}),
    ("question", "response_A", "response_B", "label", JUDGEBENCH),
    ("prompt", "response_a", "response_b", "winner", VOTES),
    ("", "conversation_a", "conversation_b", "winner", ARENA),
)  # the second is SHP
QUESTIONS = ("question", "instruction", "input", "history", "query", "context")
# As far as the last "Assistant:" (the text dialogues of Anthropic/hh-rlhf), else the last space.
SHARED_PROMPT = re.compile(r"(?s).*\n\nAssistant:|.*\s|")


def as_messages(prompt: Prompt) -> list[Message]:
    """The prompt as chat messages; a text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_of(row: dict) -> Prompt | None:
    """The prompt of a row; None if `pair_of` drops the row."""
    row, _ = _with_our_names(row)
    if "prompt" in row:
        return _usable_prompt(_content(row, "prompt"))
    if "messages" not in row and "chosen" in row:
        parts = pair_of(row)
        return None if isinstance(parts, str) else parts[0]
    turns = _content(row, "messages", wanted="prompt or messages")
    if isinstance(turns, str) or turns[0]["role"] == "assistant":
        raise InputError("messages must be chat messages that start with a prompt")
    return _usable_prompt(turns[:-1] if turns[-1]["role"] == "assistant" else turns)


def pair_of(row: dict) -> tuple[Prompt, str, str] | str:
    """(prompt, chosen, rejected) of a row; the reason if it is dropped: "identical", "tied_vote" …

    Without a `prompt` column the prompt is the beginning that both answers share.
    """
    row, tied = _with_our_names(row)
    parts = _parts(row)
    return "tied_vote" if tied and not isinstance(parts, str) else parts


def labelled_of(row: dict) -> tuple[Prompt, list[str], list[str], bool] | str:
    """(prompt, chosen answers, rejected answers, whether they tie); or as `pair_of` the reason.

    chosen and rejected may be lists of texts; text or chat messages are one answer.
    """
    row, tied = _with_our_names(row)
    values = [row.get(name) for name in ("chosen", "rejected")]
    if not any(map(_is_answer_list, values)):
        parts = _parts(row)
        return parts if isinstance(parts, str) else (parts[0], [parts[1]], [parts[2]], tied)
    for name, value in zip(("chosen", "rejected"), values, strict=True):
        if not isinstance(value, list):
            raise InputError("one of chosen and rejected is a list of answers, the other is not")
        if not value:
            raise InputError(f"{name} is an empty list: it needs at least one answer")
        for number, text in enumerate(value, 1):
            _check_text(text, f"{name} (answer {number})")
    chosen, rejected = values
    prompt = _usable_prompt(_content(row, "prompt"))
    return "identical" if set(chosen) & set(rejected) else (prompt, chosen, rejected, False)


def _is_answer_list(value) -> bool:
    """Whether a value is a list of texts; a list of chat messages holds objects."""
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    return str in kinds and dict not in kinds


def _parts(row: dict) -> tuple[Prompt, str, str] | str:
    """(prompt, chosen, rejected) of a row with our columns; or the reason why it is dropped."""
    prompt = _content(row, "prompt") if "prompt" in row else None
    chosen, rejected = _content(row, "chosen"), _content(row, "rejected")
    if type(chosen) is not type(rejected):
        raise InputError("one of chosen and rejected is text, the other chat messages")
    if isinstance(chosen, list):
        return _split_dialogues(prompt, chosen, rejected)
    if not prompt:
        if names := [name for name in QUESTIONS if name in row]:
            raise InputError(f"no prompt column: rename {names[0]} to prompt")
        return _split_texts(chosen.strip(), rejected.strip())
    return "identical" if chosen == rejected else (_usable_prompt(prompt), chosen, rejected)


def _with_our_names(row: dict) -> tuple[dict, bool]:
    """The row with the columns prompt, chosen and rejected, where OTHER_NAMES has its columns.

    Second: whether the row says that its answers are equally good.
    """
    for prompt, first, second, label, better in OTHER_NAMES:
        names = {prompt, first, second, label} - {""}
        if names <= row.keys() and not {"prompt", "chosen"} & (row.keys() - {prompt}):
            value = str(row[label]).removesuffix(".0")
            if value not in better:
                wrong = f"{label} must be {' or '.join(better)}, got {row[label]!r:.40}"
                raise InputError(f"{wrong}: it says which answer is better")
            chosen, rejected = (second, first) if better[value] == second else (first, second)
            ours = {"chosen": row[chosen], "rejected": row[rejected]}
            return ({"prompt": row[prompt]} if prompt else {}) | ours, not better[value]
    return row, False


def _split_dialogues(prompt: Prompt | None, chosen: list[Message], rejected: list[Message]):
    """`pair_of` for chat messages: the last turns are the answers, those before them the prompt."""
    if chosen == rejected:
        return "identical"
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise InputError("chosen and rejected must each end with an assistant turn")
    before, other = chosen[:-1], rejected[:-1]
    if before and other and before != other:
        return "different_dialogues"
    before = before or other
    turns = as_messages(prompt or [])
    column, dialogue = ([(t["role"], t["content"].strip()) for t in x] for x in (turns, before))
    if not column or column[len(column) - len(dialogue) :] != dialogue:
        if not dialogue:
            raise InputError("there is no prompt: add a prompt column, or begin both with it")
        if not set(column) <= set(dialogue):
            raise InputError(
                f"chosen and rejected hold {len(dialogue)} turns before the answer that are not "
                "those of prompt: an answer is one assistant turn, so add the others to prompt"
            )
        prompt = before  # it contains the prompt column
    answers = chosen[-1]["content"], rejected[-1]["content"]
    return "identical" if answers[0] == answers[1] else (_usable_prompt(prompt), *answers)


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str] | str:
    """(prompt, chosen, rejected) of two texts that begin with the same prompt; or "identical"."""
    if chosen == rejected:
        return "identical"
    equal = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
    end = SHARED_PROMPT.match("".join(letter for letter, _ in equal)).end()
    parts = chosen[:end].strip(), chosen[end:].lstrip(), rejected[end:].lstrip()
    if not all(parts):
        raise InputError("no prompt column, nor one shared prompt with an answer each")
    return parts


def _content(row: dict, name: str, wanted: str = "") -> str | list[Message]:
    """The text or the chat messages (role and content only) in a column; never empty."""
    if name not in row:
        known = "prompt" if wanted else "prompt, chosen (the better answer) and rejected"
        found = f"its columns are {shown_names(row) or 'none'}"
        raise InputError(f"no {wanted or name} column: {found}, needed are {known}")
    value = row[name] or ""
    if _is_answer_list(value):
        only = "which only judge.py --agreement reads"
        raise InputError(f"{name} is a list of answers, {only}: give one, as text or chat messages")
    if isinstance(value, list):
        try:
            value = [{"role": turn["role"], "content": turn["content"]} for turn in value]
        except (TypeError, KeyError):
            raise InputError(f"{name} holds a message without role and content") from None
        if None in (turn["content"] for turn in value):
            raise InputError(f"{name} holds a message whose content is null: only texts are used")
    texts = [t for turn in value for t in turn.values()] if isinstance(value, list) else [value]
    for text in texts[:-1]:
        _check_text(text, name, may_be_empty=True)
    _check_text(texts[-1], name)
    for role in texts[:-1:2]:
        if role not in ROLES:
            raise InputError(f"{name} has the role {role!r:.40}: use {', '.join(ROLES)}")
    return value


def _check_text(text, name: str, may_be_empty: bool = False) -> None:
    """Raise InputError for a value in column `name` that is not text."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be text or chat messages, got {text!r:.40}")
    if text.encode(errors="ignore").decode() != text:
        raise InputError(f"{name} holds half a surrogate pair or bytes that are not UTF-8")
    if "\0" in text:
        raise InputError(f"{name} holds a NUL character, which is not text")
    if not may_be_empty and not text.strip():
        raise InputError(f"{name} is empty")


def _usable_prompt(prompt: Prompt) -> Prompt:
    """The prompt itself.  Raises InputError unless a user asks and an answer is still to come."""
    roles = [turn["role"] for turn in as_messages(prompt)]
    if "user" not in roles:
        raise InputError(f"the prompt has no user turn, only {', '.join(dict.fromkeys(roles))}")
    if roles[-1] == "assistant":
        raise InputError("the prompt ends with an assistant turn: the answer would follow another")
    return prompt


def shown_names(names) -> str:
    """Names of columns for an error: printable, the first ten, each cut to 20 characters."""
    names = ["".join(c if c.isprintable() else "�" for c in str(name)[:20]) for name in names]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def ratings_of(row: dict, low: float, high: float) -> list[float | None]:
    """[chosen, rejected] ratings, mapped from low..high to 1..10; [None, None] if not rated."""
    for names in RATING_COLUMNS:
        given = {name: row[name] for name in names if row.get(name) not in (None, "")}
        if len(given) == 1:
            raise InputError(f"has a {next(iter(given))} only: rate both answers or none")
        ratings = []
        for name, value in given.items():
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not low <= number <= high or isinstance(value, bool):  # always true for NaN
                wrong = f"{name} must be a number from {low:g} to {high:g}, got {value!r:.40}"
                raise InputError(f"{wrong} (--rating-range gives the data's scale)")
            ratings.append(1 + 9 * (number - low) / (high - low))
        if ratings:
            return ratings
    return [None, None]
