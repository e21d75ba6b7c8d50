"""Rows of a SPEC, and the prompt, answers and ratings in a row.

A SPEC is `zoo[:held-out]`, a file with one of ENDINGS, or `NAME[:split]`, a hub id or folder.
Unusable input raises InputError with file and row (from 1; a CSV header is not counted).
"""

import csv
import gzip
import io
import json
import math
import re
from itertools import takewhile
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.zoo import world

Message = dict[str, str]  # "role" and "content"
Prompt = str | list[Message]

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
RATING_COLUMNS = (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"))
# As far as the last "Assistant:" (the text dialogues of Anthropic/hh-rlhf), else the last space.
SHARED_PROMPT = re.compile(r"(?s).*\n\nAssistant:|.*\s|")


def read_rows(spec: str) -> list[dict]:
    """The rows of one SPEC, in order; at least one."""
    name, _, split = spec.partition(":")
    if name == "zoo":
        return world.pairs(split or "train", count=20_000)
    is_file = spec.lower().endswith(ENDINGS) or Path(spec).is_file()
    rows = _read_file(Path(spec)) if is_file else _read_hub(name, split or "train")
    if not rows:
        raise InputError(f"{spec} is empty: it holds no rows")
    return rows


def _read_file(path: Path) -> list[dict]:
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise InputError(f"{path} is not a data file: its name must end in {', '.join(ENDINGS)}")
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet

            return pyarrow.parquet.ParquetFile(path).read().to_pylist()
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name given to --data") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        unit = "row" if ".jsonl" in name else "line"
        raise InputError(f"{path} {unit} {line} is not UTF-8: save the file as UTF-8") from None
    except Exception as error:  # pyarrow, zlib and the file system raise many types
        raise InputError(f"{path} cannot be read ({_reason(error)}): check the file") from error
    return _parse_csv(text, path) if name.endswith((".csv", ".csv.gz")) else _parse_json(text, path)


def _parse_json(text: str, path: Path) -> list[dict]:
    """One array of objects, or one object per line (common in .json files, too)."""
    where, rows = path, []
    try:
        if text.lstrip().startswith("[") and ".jsonl" not in path.name.lower():
            rows = json.loads(text)
        elif text.strip():
            for number, line in enumerate(text.rstrip().split("\n"), 1):
                where = f"{path} row {number}"
                rows.append(json.loads(line))
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON ({error}): correct or remove it") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path} row {number} must be a JSON object, not {row!r:.40}")
    return rows


def _parse_csv(text: str, path: Path) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is too small for long answers
    rows = []
    try:  # strict: a quote that is never closed is an error, not one very long cell
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            if None in row or None in row.values():
                raise csv.Error("more or fewer cells than the header")
            rows.append({name: _parse_cell(cell) for name, cell in row.items()})
    except csv.Error as error:
        raise InputError(f"{path} row {len(rows) + 1} is not valid CSV: {error}") from None
    return rows


def _parse_cell(cell: str) -> str | list[Message]:
    """The chat messages that a CSV cell holds as JSON; any other cell unchanged."""
    try:
        turns = json.loads(cell) if cell.startswith("[{") else []
    except ValueError:
        return cell
    is_chat = turns and all(isinstance(turn, dict) and "role" in turn for turn in turns)
    return turns if is_chat else cell


def _read_hub(name: str, split: str) -> list[dict]:
    if "/" not in name and not Path(name).is_dir():
        raise InputError(f"{name!r} is no data: give zoo, a file ({ENDINGS[0]}, …) or owner/name")
    import datasets  # since version 4 it never runs a dataset's own code

    try:
        return datasets.load_dataset(name, split=split).to_list()
    except Exception as error:  # the network, the hub and the parsers raise many types
        advice = "write NAME:SPLIT" if "Unknown split" in str(error) else "check name and network"
        problem = f"{name} is no data file, and no hub dataset that can be loaded"
        raise InputError(f"{problem} ({_reason(error)}): {advice}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_messages(prompt: Prompt) -> list[Message]:
    """The prompt as chat messages; a text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def prompt_of(row: dict, where: str) -> Prompt | None:
    """The prompt of a row; None if `pair_of` drops the row."""
    if "prompt" in row:
        return _content(row, "prompt", where)
    if "messages" not in row and "chosen" in row:
        parts = pair_of(row, where)
        return None if isinstance(parts, str) else parts[0]
    turns = _content(row, "messages", where, wanted="prompt or messages")
    if isinstance(turns, str) or turns[0]["role"] == "assistant":
        raise InputError(f"{where}: messages must be chat messages that start with a prompt")
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def pair_of(row: dict, where: str) -> tuple[Prompt, str, str] | str:
    """(prompt, chosen, rejected) of a row; "identical" or "different_dialogues" if it is dropped.

    Without a `prompt` column the prompt is the beginning that both answers share.
    """
    prompt = _content(row, "prompt", where) if "prompt" in row else None
    chosen, rejected = (_content(row, side, where) for side in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise InputError(f"{where}: one of chosen and rejected is text, the other chat messages")
    if isinstance(chosen, str) and not prompt:
        return _split_texts(chosen.strip(), rejected.strip(), where)
    if chosen == rejected:
        return "identical"
    if isinstance(chosen, str):
        return prompt, chosen, rejected
    if not chosen[-1]["role"] == rejected[-1]["role"] == "assistant":
        raise InputError(f"{where}: chosen and rejected must each end with an assistant turn")
    before, other = chosen[:-1], rejected[:-1]
    if before and other and before != other:
        return "different_dialogues"
    before = before or other
    turns = as_messages(prompt or [])
    column, dialogue = ([(t["role"], t["content"].strip()) for t in x] for x in (turns, before))
    if not column or column[len(column) - len(dialogue) :] != dialogue:
        if not dialogue or not set(column) <= set(dialogue):
            raise InputError(
                f"{where}: no prompt, or another one than the turns before the answers"
            )
        prompt = before  # it contains the prompt column
    answers = chosen[-1]["content"], rejected[-1]["content"]
    return "identical" if answers[0] == answers[1] else (prompt, *answers)


def _split_texts(chosen: str, rejected: str, where: str) -> tuple[str, str, str] | str:
    """(prompt, chosen, rejected) of two texts that begin with the same prompt; or "identical"."""
    if chosen == rejected:
        return "identical"
    equal = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
    end = SHARED_PROMPT.match("".join(letter for letter, _ in equal)).end()
    parts = chosen[:end].strip(), chosen[end:].lstrip(), rejected[end:].lstrip()
    if not all(parts):
        raise InputError(f"{where}: no prompt column, nor one shared prompt with an answer each")
    return parts


def _content(row: dict, name: str, where: str, wanted: str = "") -> str | list[Message]:
    """The text or the chat messages (role and content only) in a column; never empty."""
    if name not in row:
        columns = ", ".join(map(str, row))
        raise InputError(f"{where} has no {wanted or name} column: its columns are {columns}")
    value = row[name] or ""
    if isinstance(value, list):
        try:
            value = [{"role": turn["role"], "content": turn["content"]} for turn in value]
        except (TypeError, KeyError):
            raise InputError(f"{where}: {name} holds a message without role and content") from None
    texts = [t for turn in value for t in turn.values()] if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{where}: {name} must be text or chat messages, got {text!r:.40}")
        if text.encode(errors="ignore").decode() != text:
            raise InputError(f"{where}: {name} holds half a surrogate pair, which is not text")
    if not texts[-1].strip():
        raise InputError(f"{where}: {name} is empty: fill it or remove the row")
    return value


def ratings_of(row: dict, where: str, low: float, high: float) -> list[float | None]:
    """[chosen, rejected] ratings, mapped from low..high to 1..10; [None, None] if not rated."""
    for names in RATING_COLUMNS:
        given = {name: row[name] for name in names if row.get(name) not in (None, "")}
        if len(given) == 1:
            raise InputError(f"{where} has a {next(iter(given))} only: rate both answers or none")
        ratings = []
        for name, value in given.items():
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not low <= number <= high or isinstance(value, bool):  # always true for NaN
                wrong = f"{name} must be a number from {low:g} to {high:g}, got {value!r:.40}"
                raise InputError(f"{where}: {wrong}: correct it, or give the data's --rating-range")
            ratings.append(1 + 9 * (number - low) / (high - low))
        if ratings:
            return ratings
    return [None, None]
