"""Read and write small files: JSON, JSON lines, and text that is replaced as a whole."""

import json
from pathlib import Path

from rlhf_min import InputError
from rlhf_min.hardware import disk


def _parse_object(text: str, where: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: repair or delete it") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} should be a JSON object: repair or delete it")
    return value


def read_json(path: Path) -> dict:
    """The JSON object in a file; {} if there is no file.  Raises InputError for other content."""
    return _parse_object(path.read_text("utf-8", "replace"), str(path)) if path.is_file() else {}


def read_jsonl(path: Path) -> list[dict]:
    """The JSON object on each line; [] if there is no file.

    A last line without its end, left by a killed run, is dropped.  Raises InputError for others.
    """
    lines = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_parse_object(line, f"{path}, row {number}"))
        except InputError:
            if number < len(lines):  # the last piece, after the last "\n", is empty or incomplete
                raise
    return rows


def replace_text(path: Path, text: str) -> None:
    """Write a file so that an interruption leaves either the old content or the new one."""
    with disk.replaced(path) as draft:
        draft.write_text(text, encoding="utf-8")
