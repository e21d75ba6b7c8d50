"""Raw rows of a SPEC: the zoo, a local file, or a dataset of the Hugging Face hub.

A SPEC is `zoo`; a local .jsonl, .json, .csv (also .gz) or .parquet file; or a hub id or dataset
folder, optionally `id:split` (`zoo:held-out` too).  Whatever is wrong is an InputError that names
file and row (from 1, a CSV header not counted).  No code of a dataset is run: `datasets` has no way
to since version 4.
"""

import csv
import gzip
import io
import json
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.zoo import world

Message = dict[str, str]

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
ZOO_PAIRS = 20_000


def read_rows(spec: str) -> list[dict]:
    """The raw rows of one SPEC, in their order; at least one."""
    name, _, split = spec.partition(":")
    if name == "zoo":
        return world.pairs(split or "train", ZOO_PAIRS)
    local = spec.lower().endswith(ENDINGS) or Path(spec).is_file()
    rows = _read_file(Path(spec)) if local else _read_hub(name, split or "train")
    if not rows:
        raise InputError(f"{spec} is empty: it holds no rows")
    return rows


def _read_file(path: Path) -> list[dict]:
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise InputError(f"{path} is no data file: its name must end in {', '.join(ENDINGS)}")
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet

            return pyarrow.parquet.ParquetFile(path).read().to_pylist()
        raw = path.read_bytes()
        raw = (gzip.decompress(raw) if name.endswith(".gz") else raw).removeprefix(b"\xef\xbb\xbf")
        text = raw.decode()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name given to --data") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        unit = "row" if ".jsonl" in name else "line"
        raise InputError(f"{path} {unit} {line} is not UTF-8: save the file as UTF-8") from None
    except Exception as error:  # the many reasons of pyarrow, zlib and the system
        raise InputError(f"{path} cannot be read ({_reason(error)}): check the file") from error
    return _parse_csv(text, path) if ".csv" in name[-7:] else _parse_json(text, path)


def _parse_json(text: str, path: Path) -> list[dict]:
    """One array of objects, or one object per line (which .json files, too, often hold)."""
    where, rows = path, []
    try:
        if text.lstrip().startswith("[") and ".jsonl" not in path.name.lower():
            rows, text = json.loads(text), ""
        for number, line in enumerate(text.rstrip().split("\n") if text.strip() else [], 1):
            where = f"{path} row {number}"
            rows.append(json.loads(line))
    except ValueError as error:
        raise InputError(f"{where} is no valid JSON ({error}): correct or remove it") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path} row {number} is no JSON object with named columns: {row!r:.40}"
            )
    return rows


def _parse_csv(text: str, path: Path) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some answers
    rows = []
    try:  # strict: a quote that is never closed is an error, not one enormous cell
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            if None in row or None in row.values():
                raise csv.Error("more or fewer cells than the header")
            rows.append({name: _unpack(cell) for name, cell in row.items()})
    except csv.Error as error:
        raise InputError(f"{path} row {len(rows) + 1} is no valid CSV: {error}") from None
    return rows


def _unpack(cell: str) -> str | list[Message]:
    """Chat messages that a CSV cell holds as JSON; any other cell as it is."""
    try:
        turns = json.loads(cell) if cell.startswith("[{") else []
    except ValueError:
        return cell
    chat = turns and all(isinstance(turn, dict) and "role" in turn for turn in turns)
    return turns if chat else cell


def _read_hub(name: str, split: str) -> list[dict]:
    if "/" not in name and not Path(name).is_dir():
        raise InputError(f"{name!r} is no data: give zoo, a file ({ENDINGS[0]}, …) or owner/name")
    import datasets

    try:
        return datasets.load_dataset(name, split=split).to_list()
    except Exception as error:  # network, hub and parsers raise some twenty kinds
        if "Unknown split" in str(error):
            raise InputError(f"{name}: {_reason(error)} Write {name}:SPLIT") from error
        hint = f"no file, and as a hub dataset it cannot be loaded ({_reason(error)})"
        raise InputError(f"{name} is {hint}: check the name and the network") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
