"""The rows of a SPEC: `zoo[:held-out]`, a file with one of ENDINGS, or `NAME[:split]` of the hub.

A file that cannot be read raises InputError; a single bad row is returned with its problem, so that
all of them can be counted.
"""

import ast
import csv
import gzip
import io
import json
import re
import warnings
from pathlib import Path
from typing import NamedTuple

from rlhf_min import InputError
from rlhf_min.data.rows import Message, shown_names
from rlhf_min.zoo import world

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
# How a list of chat messages begins, as JSON or as Python writes it (pandas does in CSV).
CHAT_CELL = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
HUB_NAME = re.compile(r"[\w.-]*\w/[\w.-]*\w")


class Row(NamedTuple):
    """A row of the data: its place ("row 3"), and its columns or the problem with it."""

    place: str
    columns: dict
    problem: str = ""


def read_rows(spec: str) -> list[Row]:
    """The rows of one SPEC, in order, numbered from 1; at least one."""
    name, colon, split = spec.partition(":")
    if name == "zoo":
        count = 5_000 if split == "held-out" else 10_000  # at most 1 000 are evaluated
        return _numbered(world.pairs(split or "train", count))
    if spec.lower().endswith(ENDINGS) or Path(spec).is_file():
        rows = _read_file(Path(spec))
    elif colon and name.lower().endswith(ENDINGS):
        raise InputError(f"{spec}: a file has no splits, so give {name} alone")
    else:
        rows = _numbered(_read_hub(name, split or "train"))
    if not rows:
        raise InputError(f"{spec} is empty: it holds no rows")
    return rows


def _numbered(values: list) -> list[Row]:
    """Rows of values that should each be one object."""
    rows = []
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            rows.append(Row(f"row {number}", value))
        else:
            problem = f"must be a JSON object, not {type(value).__name__}"
            rows.append(Row(f"row {number}", {}, problem))
    return rows


def _read_file(path: Path) -> list[Row]:
    name = path.name.lower()
    if path.is_dir():
        raise InputError(f"{path} cannot be read: it is a folder, so name a file in it")
    if not name.endswith(ENDINGS):
        raise InputError(f"{path} is not a data file: its name must end in {', '.join(ENDINGS)}")
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet

            return _numbered(pyarrow.parquet.ParquetFile(path).read().to_pylist())
        raw = path.read_bytes()
        if name.endswith(".gz") or raw.startswith(b"\x1f\x8b"):  # the first bytes of gzip
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name") from None
    except Exception as error:  # pyarrow, zlib and the file system raise many types
        raise InputError(f"{path} cannot be read ({_reason(error)}): check the file") from error
    # Bytes that are not UTF-8 become lone surrogates, which make only their own row a bad one.
    text = raw.decode("utf-8-sig", "surrogateescape")
    return _parse_csv(text, path) if name.endswith((".csv", ".csv.gz")) else _parse_json(text, path)


def _object(pairs: list[tuple]) -> dict:
    """A JSON object; json.loads calls this.  Raises ValueError for a key that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _parse_json(text: str, path: Path) -> list[Row]:
    """One array of objects, {"data": array}, one object, or one object per line."""
    try:
        whole = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        first_line = text.lstrip().partition("\n")[0].strip()
        is_array = first_line.startswith("[") and ".jsonl" not in path.name.lower()
        if is_array or first_line in ("[", "{"):
            raise InputError(f"{path} is not valid JSON ({_reason(error)}): correct it") from None
        return _parse_lines(text)
    if isinstance(whole, dict) and whole.keys() == {"data"} and isinstance(whole["data"], list):
        whole = whole["data"]
    if isinstance(whole, dict) and whole and all(map(_is_column, whole.values())):
        raise InputError(
            f"{path} holds one list for each column, but one object for each row is needed: "
            'with pandas, write it by to_json(path, orient="records", lines=True)'
        )
    return _numbered(whole if isinstance(whole, list) else [whole])


def _is_column(value) -> bool:
    """Whether a value of a JSON object is a whole column: {"0": …, "1": …} or a list of texts."""
    if isinstance(value, dict):
        return bool(value) and all(key.isdecimal() for key in value)
    return isinstance(value, list) and bool(value) and not isinstance(value[0], dict)


def _parse_lines(text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.rstrip().split("\n") if text.strip() else [], 1):
        try:
            (row,) = _numbered([json.loads(line, object_pairs_hook=_object)])
        except (ValueError, RecursionError) as error:
            problem = (
                f"is not valid JSON ({_reason(error)})" if line.strip() else "is an empty line"
            )
            row = Row("", {}, problem)
        if re.search("[\udc80-\udcff]", line):
            row = Row("", {}, "is not UTF-8: save the file as UTF-8")
        rows.append(row._replace(place=f"row {number}"))
    return rows


def _parse_csv(text: str, path: Path) -> list[Row]:
    """The rows below the header, which is not counted; a place names the row's first line, too."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is too small for long answers
    table = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: quotes must be closed
    rows: list[Row] = []
    line = 1
    try:
        header = [name.strip() for name in next(table, [])]
        if twice := {name for name in header if name and header.count(name) > 1}:
            names = shown_names(sorted(twice))
            raise InputError(f"{path}: two columns have the same name, {names}: rename one")
        if len(header) == 1 and (found := [mark for mark in ";\t|" if mark in header[0]]):
            wrong = f"{path}: its columns are separated by {found[0]!r}"
            raise InputError(f"{wrong}: save it with commas between them")
        line = table.line_num + 1
        for cells in table:
            if cells:
                row = _csv_row(header, cells)
                rows.append(row._replace(place=f"row {len(rows) + 1} (line {line})"))
            line = table.line_num + 1
    except csv.Error as error:  # what follows cannot be told into rows
        place = f"row {len(rows) + 1} (line {line})"
        raise InputError(f"{path} {place} is not valid CSV ({error}): correct it") from None
    return rows


def _csv_row(header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row("", {}, f"has {len(cells)} cells, but the header has {len(header)}")
    try:
        return Row("", {name: _cell(cell) for name, cell in zip(header, cells, strict=True)})
    except InputError as error:
        return Row("", {}, str(error))


def _cell(cell: str) -> str | list[Message]:
    """The chat messages that a CSV cell holds, as JSON or Python writes them; else the cell."""
    if not CHAT_CELL.match(cell):
        return cell
    turns = None
    try:
        turns = json.loads(cell)
    except (ValueError, RecursionError):
        # Of numpy arrays, pandas leaves out the commas.  No string in them has a raw line break.
        literal = re.sub(r"\}\s*\n\s*\{", "}, {", cell.strip())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes such as "\d"
                turns = ast.literal_eval(literal)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise InputError(
                f"{cell[:20]!r}… looks like chat messages, but is neither JSON nor a Python list"
            ) from None
    return turns if all(isinstance(turn, dict) for turn in turns) else cell


def _read_hub(name: str, split: str) -> list[dict]:
    folder = Path(name)
    if name and folder.is_dir():  # `datasets` would search all that lies below it
        if not any([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
            raise InputError(f"{name} is a folder, not data: name a file in it")
    elif not HUB_NAME.fullmatch(name):
        known = f"zoo, a file ({ENDINGS[0]}, …) or owner/name"
        raise InputError(f"{name!r} is no data: give {known}")
    import datasets  # since version 4 it never runs a dataset's own code

    try:
        return datasets.load_dataset(name, split=split).to_list()
    except Exception as error:  # the network, the hub and the parsers raise many types
        advice = "write NAME:SPLIT" if "Unknown split" in str(error) else "check name and network"
        problem = f"{name} is no data file, and no hub dataset that can be loaded"
        raise InputError(f"{problem} ({_reason(error)}): {advice}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
