"""Reading and writing small files: JSON objects, JSON lines, text that is replaced whole."""

import json
import os
from pathlib import Path

from rlhf_min import InputError


def _parse(text: str, where: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: repair or delete it") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} should be a JSON object: repair or delete it")
    return value


def read_json(path: Path) -> dict:
    """The JSON object in a file; {} when the file is absent.  Raises InputError when it is none."""
    return _parse(path.read_text("utf-8", "replace"), str(path)) if path.is_file() else {}


def read_jsonl(path: Path) -> list[dict]:
    """One object per line; [] when absent.  A last line cut off by a killed run is dropped."""
    lines = path.read_text("utf-8", "replace").split("\n") if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_parse(line, f"{path}, row {number}"))
        except InputError:
            if number < len(lines):  # a whole line ends in "\n", so the last piece is "" or cut off
                raise
    return rows


def replace_text(path: Path, text: str) -> None:
    """Write a file so that an interruption leaves either the old or the new one."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
