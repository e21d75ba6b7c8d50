"""Rows of a SPEC: the zoo, a local file, or a dataset of the Hugging Face hub.

A SPEC is `zoo[:held-out]`, a file with one of ENDINGS, or `NAME[:split]`, a hub id or folder.
Unreadable input raises InputError with file and row (from 1; a CSV header is not counted).
"""

import csv
import gzip
import io
import json
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.zoo import world

Message = dict[str, str]  # "role" and "content"
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


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
        if "Unknown split" in str(error):
            raise InputError(f"{name}: {_reason(error)} Write {name}:SPLIT") from error
        problem = f"{name} is not a file, and the hub dataset cannot be loaded ({_reason(error)})"
        raise InputError(f"{problem}: check the name and the network") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
