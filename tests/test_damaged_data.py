"""Randomly damaged data files: read, or refused in one sentence; never a traceback.

python tests/test_damaged_data.py 6000        # more seeds; each is four reads of one file
"""

import csv
import gzip
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_models import tiny_pairs

from rlhf_min import InputError
from rlhf_min.data.labelled import read_labelled
from rlhf_min.data.preferences import read_pairs, read_prompts

ASKED = {"role": "user", "content": "x"}
ANSWERED = {"role": "assistant", "content": "y"}
CHAT = [ASKED, ANSWERED]
VALUES = [
    "", " ", None, 0, -1, 1e400, float("nan"), True, 10**400, "7", "good", [], {}, [[]], [{}],
    [None], ["x", "y"], ["x", 5], CHAT, CHAT[:1], CHAT[1:], [CHAT], ASKED, str(CHAT),
    json.dumps(CHAT),
    f"[{ASKED}\n {ANSWERED}]",
    [ASKED | {"role": None}], [ASKED | {"role": [""]}], [ASKED | {"content": ["x"]}], [ASKED, "y"],
    "\0", "\x1b[31m", "\ud800", "\u202e", "🦓", "=1+1", "x" * 100_000,
]  # fmt: skip
COLUMNS = ["prompt", "chosen", "rejected", "messages", "chosen_rating", "rejected_rating"]
COLUMNS += [
    "subset",
    "winner",
    "score_chosen",
    "input",
    "output_1",
    "output_2",
    "label",
    "question",
    "data",
    "",
]
PIECES = [b'"', b"\n", b"[", b"{", b",", b"\0", b"\xff\xfe", b"\r\n", b"[" * 3000]
PIECES += [b"[{'role': " * 500, b"\xef\xbb\xbf", b"\xe2\x80\xa8"]


READERS = (
    lambda name, skip: read_pairs([name], skip_bad_rows=skip),
    lambda name, skip: read_prompts([name], skip_bad_rows=skip),
    read_labelled,
)


def text_of(rows: list[dict], kind: str) -> str:
    """Rows as the text of a file of one kind."""
    if kind == "csv":
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows(rows)
        return text.getvalue()
    if kind == "lines":
        return "".join(json.dumps(row) + "\n" for row in rows)
    return json.dumps(
        {"data": rows} if kind == "wrapped" else rows, indent=random.choice([None, 1])
    )


def damaged_file(seed: int) -> str:
    """Write a file of four good rows with damage in values and bytes; returns its name."""
    random.seed(seed)
    rows = tiny_pairs(4)
    for _ in range(random.randrange(3)):
        row, name = random.choice(rows), random.choice(COLUMNS)
        row[name] = random.choice(VALUES)
        if random.random() < 0.3:
            del row[name]
    kind = random.choice(["lines", "array", "wrapped", "csv"])
    raw = bytearray(text_of(rows, kind).encode("utf-8", "surrogatepass"))
    for _ in range(random.choice([0, 0, 1, 3])):
        at = random.randrange(len(raw) + 1)
        raw[at : at + random.choice([0, 1, 30])] = random.choice([b"", *PIECES])
    if random.random() < 0.1:
        del raw[random.randrange(len(raw) + 1) :]
    ending = "csv" if kind == "csv" else random.choice(["json", "jsonl"])
    ending = random.choice([ending] * 9 + ["parquet", "csv", "jsonl"])
    if random.random() < 0.2:
        raw, ending = gzip.compress(raw), ending.removesuffix(".gz") + ".gz"
        raw = raw[: random.choice([len(raw)] * 3 + [len(raw) // 2])]
    Path(f"seed{seed}.{ending}").write_bytes(raw)
    return f"seed{seed}.{ending}"


def check_seeds(seeds: range) -> int:
    """Read each seed's file in six ways; returns how many reads were refused."""
    refused = 0
    for seed in seeds:
        name = damaged_file(seed)
        for read, skip in ((r, s) for r in READERS for s in (False, True)):
            try:
                read(name, skip)
            except InputError as error:
                refused += 1
                text = str(error)
                assert text.startswith(name) and text.isprintable() and len(text) < 500, text
        Path(name).unlink()
    return refused


def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = check_seeds(range(300))
    assert 450 < refused < 1350  # so damage is neither rare nor fatal to every file


if __name__ == "__main__":
    count = int(sys.argv[1])
    os.chdir(tempfile.mkdtemp())
    print(f"{check_seeds(range(count))} of {6 * count} reads refused, each in one sentence")
