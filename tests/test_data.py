"""Data: each format gives the same pairs; each bad row is one sentence with file and row."""

import csv
import gzip
import hashlib
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_min import InputError
from rlhf_min.data.preferences import (
    Pair,
    as_messages,
    draw_items,
    fingerprint,
    hold_out,
    prompt_text,
    read_pairs,
    read_prompts,
    split_by_prompt,
)
from rlhf_min.data.sources import read_rows

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
NONE_DROPPED = {"identical": 0, "duplicate": 0, "different_dialogues": 0, "rated_against": 0}

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real data lies in ../shared/data")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


ROWS = [
    {"prompt": "Wie geht's?", "chosen": 'Gut, "danke"!', "rejected": "Nein.\nWarum?"},
    {"prompt": "a\u2028b, 漢字 🦓", "chosen": "x" * 200_000, "rejected": " y "},
    {"prompt": "what is [1]?", "chosen": '[{"a": 1}]', "rejected": "[{"},
]
PAIRS = [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]


@pytest.fixture
def write(tmp_path):
    """write(rows or text or bytes, name) → the path of the new file, a SPEC."""

    def write(content, name="data.jsonl"):
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        raw = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return str(tmp_path / name)

    return write


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


# Formats


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.json.gz", "D.JSONL"])
def test_json_lines(write, name, ascii_only):
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS)
    assert read_pairs([write(text, name)]) == (PAIRS, NONE_DROPPED)


@pytest.mark.parametrize("name", ["d.json", "d.json.gz"])
def test_json_array(write, name):
    assert read_pairs([write(json.dumps(ROWS, indent=2), name)])[0] == PAIRS


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz"])
def test_csv(write, name):
    assert read_pairs([write(as_csv(ROWS), name)])[0] == PAIRS


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_pairs([str(path)])[0] == PAIRS
    assert [row.columns for row in read_rows(str(path))] == ROWS


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json"])
def test_byte_order_mark_windows_line_ends_and_empty_last_lines(write, name):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    text = as_csv(rows) if name == "d.csv" else json.dumps(rows[0]) + "\r\n"
    assert read_pairs([write("\ufeff" + text + "\r\n\n  \n" * (name != "d.csv"), name)])[0] == [
        Pair("p", "a", "b")
    ]


def test_several_specs_are_concatenated_in_order(write):
    first, second = write(ROWS[:2], "1.jsonl"), write(as_csv(ROWS[2:]), "2.csv")
    assert read_pairs([first, second])[0] == PAIRS
    assert read_pairs([second, first])[0] == PAIRS[2:] + PAIRS[:2]


def test_extra_columns_are_ignored(write):
    path = write([{"id": 1, "source": None, **row} for row in ROWS])
    assert read_pairs([path])[0] == PAIRS
    assert "id" in read_rows(path)[0].columns


def test_importing_preferences_imports_no_large_package():
    code = "import sys, rlhf_min.data.preferences; "
    code += "print({'datasets', 'pyarrow', 'torch'} & set(sys.modules))"
    shell = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shell.stdout == "set()\n", shell.stderr


# The hub


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A dataset in the hub's own layout, columns and split name of HelpSteer2_binarized."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "prompt": f"question {i}",
            "chosen": [
                {"content": f"question {i}", "role": "user"},
                {"content": "good", "role": "assistant"},
            ],
            "rejected": [
                {"content": f"question {i}", "role": "user"},
                {"content": "bad", "role": "assistant"},
            ],
            "chosen_rating": 4.0,
            "rejected_rating": i / 2,
        }
        for i in range(5)
    ]
    folder = tmp_path_factory.mktemp("hub") / "HelpSteer2_binarized"
    name = "data/average_rating_split-00000-of-00001.parquet"
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / name)
    return folder


def test_hub_layout_with_a_split(hub_folder):
    pairs, counts = read_pairs([f"{hub_folder}:average_rating_split"], rating_range=(0, 4))
    assert pairs == [
        Pair(f"question {i}", "good", "bad", 10.0, 1 + 9 * (i / 2) / 4) for i in range(5)
    ]
    assert counts == NONE_DROPPED
    assert read_prompts([f"{hub_folder}:average_rating_split"])[0] == [
        f"question {i}" for i in range(5)
    ]


@pytest.mark.parametrize("split", ["", ":wrong"])
def test_wrong_split_lists_the_splits(hub_folder, split):
    with pytest.raises(InputError) as error:
        read_pairs([f"{hub_folder}{split}"])
    text = one_sentence(error)
    assert "average_rating_split" in text and (split[1:] or "train") in text


def test_unreachable_hub_is_one_sentence(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **settings):
        asked.append((name, settings))
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nand a long tail")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as error:
        read_pairs(["owner/name:some_split"])
    text = one_sentence(error)
    assert "owner/name" in text and "Couldn't reach" in text and "long tail" not in text
    assert asked == [("owner/name", {"split": "some_split"})]  # and no trust_remote_code
    with pytest.raises(InputError):
        read_rows("owner/name")
    assert asked[-1] == ("owner/name", {"split": "train"})


# Files that are wrong


def test_a_missing_file_or_a_wrong_name(tmp_path):
    for name in ("no.jsonl", "no.csv.gz", "no.parquet", "no/where.json"):
        with pytest.raises(InputError, match=r"no.*does not exist"):
            read_rows(str(tmp_path / name))
    (tmp_path / "data.txt").write_text("hello")
    with pytest.raises(InputError, match=r"data\.txt.*\.jsonl"):
        read_rows(str(tmp_path / "data.txt"))
    with pytest.raises(InputError, match="'zo' is no data: give zoo"):
        read_rows("zo")
    with pytest.raises(InputError, match="'' is no data: give zoo"):
        read_rows("")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl cannot be read"):
        read_rows(str(tmp_path / "folder.jsonl"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.jsonl", ""),
        ("e.jsonl", "\n \n"),
        ("e.json", "[]"),
        ("e.csv", ""),
        ("e.csv", "prompt,chosen,rejected\n"),
        ("e.jsonl.gz", ""),
    ],
)
def test_an_empty_file(write, name, content):
    with pytest.raises(InputError, match=rf"{name} is empty"):
        read_pairs([write(content, name)])


GOOD = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", GOOD + "{not json}\n", "row 2"),
        ("d.jsonl", GOOD + "\n" + GOOD, "row 2"),  # an empty line in the middle
        ("d.jsonl", GOOD + GOOD.strip() + GOOD, "row 2"),
        ("d.jsonl", GOOD + "[1, 2]\n", "row 2"),
        ("d.jsonl", GOOD + '"text"', "row 2"),
        ("d.jsonl", "[1]\n" + GOOD, "row 1"),
        ("d.json", GOOD + "null", "row 2"),
        ("d.json", "[" + GOOD + ", 7]", "row 2"),
        ("d.json", "[" + GOOD, "JSON"),
        ("d.jsonl", GOOD.encode() + b'{"prompt": "\xff"}\n', "row 2"),
        ("d.jsonl.gz", GOOD.encode() * 2 + b"\xe9\n", "row 3"),
        ("d.csv", b"prompt,chosen,rejected\na,b,c\nd,\xe9,f\n", "line 3"),
        ("d.csv", "prompt,chosen,rejected\na,b,c\nd,e\n", "row 2"),
        ("d.csv", "prompt,chosen,rejected\na,b,c\nd,e,f,g\n", "row 2"),
        ("d.csv", 'prompt,chosen,rejected\na,b,c\nd,"e,f\ng,h,i\n', "row 2"),
        ("d.csv", 'prompt,chosen,rejected\na,b,c\nd,e,"f\ng,h,i\n', "row 2"),
        ("d.parquet", "no parquet", "cannot be read"),
    ],
)
def test_broken_content_names_file_and_row(write, name, content, message):
    with pytest.raises(InputError) as error:
        read_pairs([write(content, name)])
    text = one_sentence(error)
    assert f"{name} " in text and message in text


def test_broken_gzip(write, tmp_path):
    path = Path(write(ROWS, "d.jsonl.gz"))
    for raw in (GOOD.encode(), path.read_bytes()[:-9]):  # no gzip at all, and a broken download
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"d\.jsonl\.gz cannot be read"):
            read_rows(str(path))


# Rows that are wrong

ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = {
    "prompt": "p",
    "chosen": [user("p"), assistant("a")],
    "rejected": [user("p"), assistant("b")],
}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, ["no rejected column", "prompt, chosen"]),
        ({"question": "p", "answer": "a"}, ["no chosen column", "question, answer"]),
        ({}, ["no chosen column"]),
        (ROW | {"chosen": ""}, ["chosen is empty"]),
        (ROW | {"rejected": " \n"}, ["rejected is empty"]),
        (ROW | {"rejected": None}, ["rejected is empty"]),
        (ROW | {"rejected": []}, ["rejected is empty"]),
        (ROW | {"prompt": ""}, ["prompt is empty"]),
        (ROW | {"prompt": None}, ["prompt is empty"]),
        (ROW | {"chosen": 3}, ["chosen must be text or chat messages", "3"]),
        (ROW | {"chosen": {"role": "assistant"}}, ["chosen must be text"]),
        (ROW | {"chosen": "\ud83d"}, ["chosen", "surrogate"]),
        (ROW | {"chosen": [assistant("a")]}, ["one of chosen and rejected is text"]),
        (CHAT | {"chosen": [user("p"), "a"]}, ["chosen holds a message without role"]),
        (CHAT | {"chosen": [user("p"), {"role": "assistant"}]}, ["chosen holds a message without"]),
        (CHAT | {"chosen": [user("p"), assistant(None)]}, ["chosen", "content is null"]),
        (CHAT | {"chosen": [user("p"), assistant(" ")]}, ["chosen is empty"]),
        (CHAT | {"chosen": [user("p"), user("q")]}, ["end with an assistant turn"]),
        (CHAT | {"prompt": "another"}, ["1 turns before the answer", "not those of prompt"]),
        (
            {
                "prompt": [user("p")],
                "chosen": [assistant("a"), user("q"), assistant("b")],
                "rejected": [assistant("c")],
            },
            ["2 turns before the answer", "an answer is one assistant turn"],
        ),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, ["no prompt"]),
        ({"chosen": "same", "rejected": "other"}, ["no prompt column"]),
        (
            {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant:"},
            ["one shared prompt with an answer each"],
        ),
        (ROW | {"chosen_rating": 3.0}, ["chosen_rating only"]),
        (ROW | {"score_rejected": 3.0, "score_chosen": None}, ["score_rejected only"]),
        (ROW | {"chosen_rating": float("nan"), "rejected_rating": 2}, ["chosen_rating", "nan"]),
        (ROW | {"chosen_rating": 2, "rejected_rating": float("inf")}, ["rejected_rating", "inf"]),
        (ROW | {"chosen_rating": 0.5, "rejected_rating": 2}, ["from 1 to 10", "--rating-range"]),
        (ROW | {"chosen_rating": 11, "rejected_rating": 2}, ["from 1 to 10", "11"]),
        (ROW | {"chosen_rating": "good", "rejected_rating": 2}, ["chosen_rating", "'good'"]),
        (ROW | {"chosen_rating": True, "rejected_rating": 2}, ["chosen_rating", "True"]),
        (ROW | {"chosen_rating": [3], "rejected_rating": 2}, ["chosen_rating", "[3]"]),
        (ROW | {"chosen_rating": 10**400, "rejected_rating": 2}, ["chosen_rating"]),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_and_row(write, row, message):
    with pytest.raises(InputError) as error:
        read_pairs([write([ROWS[0], row])])
    text = one_sentence(error)
    for part in ["data.jsonl row 2", *message]:
        assert part in text


def test_a_bad_row_in_csv_counts_rows_not_lines(write):
    rows = [ROWS[0], {"prompt": "p", "chosen": "", "rejected": "b"}]
    assert "\n" in ROWS[0]["rejected"]
    with pytest.raises(InputError, match=r"d\.csv row 2 \(line 4\): chosen is empty"):
        read_pairs([write(as_csv(rows), "d.csv")])


# Chat messages and implicit prompts


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (CHAT, "p"),  # the prompt repeated before the answers (HelpSteer2_binarized)
        (CHAT | {"prompt": " p\n"}, " p\n"),
        (CHAT | {"chosen": [assistant("a")], "rejected": [assistant("b")]}, "p"),
        (CHAT | {"rejected": [assistant("b")]}, "p"),
        (CHAT | {"prompt": [user("p")]}, [user("p")]),
        (CHAT | {"chosen": "a", "rejected": "b", "prompt": [user("p")]}, [user("p")]),
    ],
)
def test_chat_rows(write, row, prompt):
    assert read_pairs([write([row])])[0] == [Pair(prompt, "a", "b")]


def test_the_longer_of_prompt_column_and_dialogue_is_the_prompt(write):
    system = {"role": "system", "content": "be kind"}
    dialogue = [user("p"), assistant("x"), user("q")]
    answers = {"chosen": [*dialogue, assistant("a")], "rejected": [*dialogue, assistant("b")]}
    for column, prompt in (
        ("p", dialogue),
        ([system, *dialogue], [system, *dialogue]),
        (dialogue, dialogue),
    ):
        row = {"prompt": column, **answers}
        assert read_pairs([write([row])])[0] == [Pair(prompt, "a", "b")]


def test_only_role_and_content_of_messages_are_kept(write):
    messages = [{"content": "p", "role": "user", "id": 7}]
    row = {"prompt": messages, "chosen": "a", "rejected": "b"}
    assert read_pairs([write([row])])[0][0].prompt == [user("p")]


def test_implicit_prompt_in_messages(write):
    before = [user("p"), assistant("x"), user("q")]
    row = {"chosen": [*before, assistant("a")], "rejected": [*before, assistant("b")]}
    assert read_pairs([write([row])])[0] == [Pair(before, "a", "b")]
    assert read_prompts([write([row])])[0] == [before]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Human: hi\n\nAssistant:", "Hello.", "Go."),
        ("Human: hi\n\nAssistant:", "The cat sat.", "The cat ran."),  # same first words
        ("Human: hi\n\nAssistant:", "Yes", "Yes, sir"),  # one is the start of the other
        ("Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "d", "e"),
        ("Human: hi\n\nAssistant:", "x\n\nHuman: no\n\nAssistant: y", "x\n\nHuman: yes"),
    ],
)
def test_implicit_prompt_in_hh_text(write, prompt, chosen, rejected):
    row = {"chosen": f"\n\n{prompt} {chosen}", "rejected": f"\n\n{prompt} {rejected}"}
    assert read_pairs([write([row])])[0] == [Pair(prompt, chosen, rejected)]


def test_implicit_prompt_without_assistant_ends_at_a_whole_word(write):
    row = {"chosen": "Q: 1+1? carrot", "rejected": "Q: 1+1? carpet"}
    assert read_pairs([write([row])])[0] == [Pair("Q: 1+1?", "carrot", "carpet")]
    row = {"chosen": "say: the cat", "rejected": "say: the"}  # no answer may become empty
    assert read_pairs([write([row])])[0] == [Pair("say:", "the cat", "the")]


def test_messages_as_json_in_csv(write):
    row = {name: json.dumps(CHAT[name]) for name in ("chosen", "rejected")}
    for extra in ({"prompt": "p"}, {"prompt": json.dumps([user("p")])}):
        path = write(as_csv([extra | row]), "d.csv")
        assert as_messages(read_pairs([path])[0][0].prompt) == [user("p")]
        assert read_pairs([path])[0][0].chosen == "a"


def test_json_in_a_text_answer_stays_text(write):
    text = json.dumps(CHAT["chosen"])
    assert read_pairs([write([ROW | {"chosen": text}])])[0][0].chosen == text
    for cell in ('[{"a": 1}]', "[{", '[{"role": 1}, 2]'):
        assert read_pairs([write(as_csv([ROW | {"chosen": cell}]), "d.csv")])[0][0].chosen == cell


def test_explicit_answers_are_never_changed(write):
    row = {"prompt": " p ", "chosen": "\n a \n", "rejected": " b"}
    assert read_pairs([write([row])])[0] == [Pair(" p ", "\n a \n", " b")]


# Ratings and counts


@pytest.mark.parametrize(
    ("low", "high", "given", "expected"),
    [
        (1, 10, 7.5, 7.5),
        (0, 4, 0, 1),
        (0, 4, 4, 10),
        (0, 4, 2, 5.5),
        (-1, 1, 0, 5.5),
        (1, 5, 2, 3.25),
    ],
)
@pytest.mark.parametrize(
    "names", [("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected")]
)
def test_ratings_are_mapped_to_one_to_ten(write, low, high, given, expected, names):
    path = write([ROW | dict(zip(names, (high, given), strict=True))])
    pair = read_pairs([path], rating_range=(low, high))[0][0]
    assert pair.chosen_rating == pytest.approx(10) and pair.rejected_rating == pytest.approx(
        expected
    )


def test_absent_ratings_are_none(write):
    path = write(as_csv([ROW | {"chosen_rating": "", "rejected_rating": ""}]), "d.csv")
    rows = [ROW, ROW | {"prompt": "q", "chosen_rating": None, "rejected_rating": None}]
    for pair in read_pairs([path])[0] + read_pairs([write(rows)])[0]:
        assert pair.chosen_rating is None and pair.rejected_rating is None
    path = write(as_csv([ROW | {"chosen_rating": "7", "rejected_rating": "2.5"}]), "d.csv")
    assert read_pairs([path])[0] == [Pair("p", "a", "b", 7.0, 2.5)]


@pytest.mark.parametrize("bad", [(4, 0), (1, 1), (float("nan"), 4), (0, float("inf"))])
def test_a_wrong_rating_range(write, bad):
    with pytest.raises(InputError, match="--rating-range"):
        read_pairs([write([ROW])], rating_range=bad)


def test_trap_14_identical_pairs_are_dropped_and_counted(write):
    same_chat = CHAT | {
        "prompt": "s",
        "chosen": [assistant("a")],
        "rejected": [user("s"), assistant("a")],
    }
    rows = [ROW, ROW | {"rejected": "a"}, {"chosen": "one", "rejected": "one"}, same_chat]
    rows += [{"chosen": "one two ", "rejected": "one two"}, CHAT | {"rejected": CHAT["chosen"]}]
    assert read_pairs([write(rows)]) == ([Pair("p", "a", "b")], NONE_DROPPED | {"identical": 5})


def test_whole_duplicate_rows_are_dropped_and_counted(write):
    rated = ROW | {"chosen_rating": 5, "rejected_rating": 4}
    reordered = dict(reversed(ROW.items()))
    first, second = [ROW, rated, reordered, ROW], [ROW, ROWS[0]]
    pairs, counts = read_pairs([write(first), write(second, "2.jsonl")])
    assert pairs == [Pair("p", "a", "b"), Pair("p", "a", "b", 5.0, 4.0), PAIRS[0]]
    assert counts == NONE_DROPPED | {"duplicate": 3}


def test_pairs_with_different_dialogues_are_dropped_and_counted(write):
    row = {
        "chosen": [user("p"), assistant("x"), user("q"), assistant("a")],
        "rejected": [user("p"), assistant("y"), user("q"), assistant("b")],
    }
    assert read_pairs([write([row, ROW])])[1] == NONE_DROPPED | {"different_dialogues": 1}
    assert read_prompts([write([row, ROW])])[0] == ["p"]
    assert read_prompts([write([row, ROW])])[1]["no_shared_prompt"] == 1


def test_pairs_with_a_higher_rated_rejected_answer_are_kept_and_counted(write):
    rows = [
        ROW | {"prompt": f"{i}", "chosen_rating": c, "rejected_rating": r}
        for i, (c, r) in enumerate([(5, 4), (4, 5), (5, 5), (1, 10)])
    ]
    pairs, counts = read_pairs([write(rows)])
    assert len(pairs) == 4 and counts == NONE_DROPPED | {"rated_against": 2, "equal_ratings": 1}


def test_no_usable_pair_is_an_error(write):
    with pytest.raises(InputError, match=r"no usable pair.*identical"):
        read_pairs([write([ROW | {"rejected": "a"}])])


# Prompts


def test_prompts_are_unique_in_order_and_the_prompt_column_comes_first(write):
    rows = [
        {"prompt": "b", "messages": [user("no")], "other": 1},
        {"prompt": "a"},
        {"prompt": "b"},
        {"messages": [user("c"), assistant("x"), user("d"), assistant("e")]},
        {"messages": [user("c"), assistant("x"), user("d")]},  # the same prompt, without an answer
        {"messages": [user("a")], "chosen": "no", "rejected": "never"},
        {"prompt": [user("a")]},
        {"chosen": "\n\nHuman: h\n\nAssistant: x", "rejected": "\n\nHuman: h\n\nAssistant: y"},
    ]
    prompts, counts = read_prompts(
        [write(rows), write([{"prompt": "a"}, {"prompt": "z"}], "2.jsonl")]
    )
    assert counts == {"prompt repeated (used once)": 4}
    assert prompts == [
        "b",
        "a",
        [user("c"), assistant("x"), user("d")],
        [user("a")],
        "Human: h\n\nAssistant:",
        "z",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no prompt or messages column: its columns are text"),
        ({"prompt": ""}, "prompt is empty"),
        ({"messages": "text"}, "chat messages"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [assistant("a")]}, "start with a prompt"),
        ({"chosen": "x"}, "no rejected column"),
    ],
)
def test_rows_without_a_prompt(write, row, message):
    with pytest.raises(InputError, match=message) as error:
        read_prompts([write([{"prompt": "p"}, row])])
    assert "data.jsonl row 2" in one_sentence(error)


def test_messages_and_text_of_a_prompt():
    assert as_messages("hi") == [user("hi")]
    assert as_messages([user("a"), assistant("b")]) == [user("a"), assistant("b")]
    assert prompt_text("hi") == prompt_text([user("hi")]) == "hi"
    assert prompt_text([user("a"), assistant("b"), user("c")]) == "user: a\nassistant: b\nuser: c"
    assert prompt_text([assistant("a")]) == "assistant: a"


# Split


def random_pairs(rng, count, prompts):
    names = [rng.choice([f"prompt {i}", [user(f"prompt {i}")]]) for i in range(prompts)]
    return [Pair(rng.choice(names), f"a{i}", f"b{i}") for i in range(count)]


def held_out_by_hand(items, fraction):
    """An independent form: the bytes of each hash, read as digits of a number in [0, 1)."""

    def number(prompt):
        digest = hashlib.sha256(prompt.strip().encode()).digest()
        return sum(byte / 256 ** (i + 1) for i, byte in enumerate(digest))

    text = lambda item: prompt_text(item.prompt if isinstance(item, Pair) else item)  # noqa: E731
    prompts = sorted({text(item) for item in items}, key=number)
    chosen = [p for p in prompts[:-1] if number(p) < fraction] or prompts[:1]
    return [item for item in items if text(item) in chosen]


@pytest.mark.parametrize("seed", range(20))
def test_trap_15_a_prompt_is_never_in_both_lists(seed):
    rng = random.Random(seed)
    items = random_pairs(rng, rng.randrange(20, 200), rng.randrange(3, 60))
    fraction = rng.uniform(0.05, 0.95)
    train, held_out = split_by_prompt(items, fraction)
    assert not {prompt_text(p.prompt) for p in train} & {prompt_text(p.prompt) for p in held_out}
    assert train and held_out
    assert held_out == held_out_by_hand(items, fraction)
    assert sorted(train + held_out, key=items.index) == items  # each item once
    assert train == sorted(train, key=items.index)  # order kept


def test_trap_15_reward_model_and_policy_hold_out_the_same_prompts():
    """Whatever their seeds and limits, and whether their data are pairs or prompts."""
    rng = random.Random(0)
    pairs = [Pair(f"p{rng.randrange(500)}", f"{i}", "x") for i in range(2000)]
    trained_on, evaluated = hold_out(pairs, no_read, settings(["d"], [], 3), 0.1, 50)[:2]
    prompts = sorted({pair.prompt for pair in pairs} | {f"new {i}" for i in range(500)})
    policy_held_out = hold_out(prompts, no_read, settings(["d"], [], 8), 0.1, 40)[1]
    assert len(evaluated) == 50 and len(policy_held_out) == 40
    assert not {pair.prompt for pair in trained_on} & set(policy_held_out)


def test_trap_15_white_space_around_a_prompt_does_not_make_it_another_one():
    train, held_out = split_by_prompt(["a", "b"], 0.5)
    again = split_by_prompt([f" {p}\n" for p in ("a", "b")], 0.5)
    assert [[p.strip() for p in side] for side in again] == [train, held_out]
    found = hold_out(["a ", "c"], lambda specs: (["a"], {}), settings(["d"], ["e"]), 0.1, 5)
    assert found[0] == ["c"]


def test_a_prompt_stays_on_its_side_when_pairs_are_removed():
    rng = random.Random(0)
    items = random_pairs(rng, 300, 100)
    held_out = split_by_prompt(items, 0.3)[1]
    half = rng.sample(items, 150)
    assert split_by_prompt(half, 0.3)[1] == [item for item in half if item in held_out]


def test_the_split_has_about_its_fraction():
    held_out = split_by_prompt([f"p{i}" for i in range(4000)], 0.25)[1]
    assert 900 < len(held_out) < 1100  # 1000 ± 3.6 standard deviations


def test_with_two_prompts_each_list_gets_one():
    for fraction in (0.01, 0.99):
        train, held_out = split_by_prompt(["a", "b"], fraction)
        assert len(train) == len(held_out) == 1


def test_a_split_that_cannot_be_made():
    same = [Pair("p", f"{i}", "x") for i in range(5)]
    for items in (same, ["p", [user("p")]], []):
        with pytest.raises(InputError, match=r"same prompt.*--eval-data"):
            split_by_prompt(items, 0.5)


def test_several_files_are_drawn_from_alike_and_one_file_from_its_beginning():
    items = [f"a{i}" for i in range(400)] + [f"b{i}" for i in range(400)]
    assert draw_items(items, 100, ["one"]) == items[:100]
    drawn = draw_items(items, 100, ["one", "two"])
    assert len(set(drawn)) == 100 and 30 < sum(name[0] == "a" for name in drawn) < 70
    assert drawn == draw_items(items, 100, ["one", "two"])
    assert draw_items(items, 800, ["one", "two"]) == items


# Held-out data


def settings(data, eval_data, seed=0):
    return SimpleNamespace(data=data, eval_data=eval_data, seed=seed)


def no_read(specs):
    raise AssertionError(f"{specs} should not be read")


def test_hold_out_splits_by_prompt_when_no_held_out_data_exist():
    items = random_pairs(random.Random(1), 100, 30)
    train, held_out = split_by_prompt(items, 0.3)
    found = hold_out(items, no_read, settings(["d.jsonl"], [], 7), 0.3, 5)
    assert found == (train, held_out[:5], {}, {}) and len(held_out) > 5
    with pytest.raises(InputError, match=r"same prompt.*--eval-data"):
        hold_out(["p", "p"], no_read, settings(["d.jsonl"], []), 0.3, 20)


def test_hold_out_reads_held_out_data_and_drops_their_prompts_from_the_training_data():
    """A prompt is the same as text and as one user turn; the fraction and the seed are not used."""
    items = [Pair("a", "x", "y"), Pair([user("b")], "x", "y"), Pair("c", "x", "y")]
    items += [Pair("a", "v", "w")]
    other = [Pair([user("a")], "1", "2"), Pair("z", "1", "2"), Pair("b", "1", "2")]
    eval_data = []

    def read(specs):
        eval_data.append(specs)
        return list(other), {"identical": 4}

    dropped = {"prompt is held out": 3}
    found = hold_out(items, read, settings(["d.jsonl"], ["e"]), 9, 2)
    assert found == (items[2:3], other[:2], dropped, {"identical": 4})
    found = hold_out(items, read, settings(["d", "zoo"], []), 9, 10)
    assert found == (items[2:3], other, dropped, {"identical": 4})
    assert hold_out(items, read, settings(["zoo"], ["e", "f"]), 9, 10)[0] == items[2:3]
    assert eval_data == [["e"], ["zoo:held-out"], ["e", "f"]]
    prompts, config = ["a", [user("q")], "c"], settings(["d"], ["e"])
    found = hold_out(prompts, lambda specs: (["q"], {}), config, 9, 5)
    assert found == (["a", "c"], ["q"], {"prompt is held out": 1}, {})
    found = hold_out(prompts, lambda specs: (["r"], {}), config, 9, 5)
    assert found == (prompts, ["r"], {"prompt is held out": 0}, {})


def test_hold_out_of_every_prompt_is_an_error():
    with pytest.raises(InputError, match=r"every prompt is held out.*--eval-data"):
        hold_out(["a", "b"], lambda specs: (["b", "c", "a"], {}), settings(["d"], ["e"]), 0.1, 5)


# Fingerprint


def test_the_fingerprint_depends_on_contents_and_not_on_the_order_of_keys():
    assert fingerprint([ROW]) == fingerprint([dict(reversed(ROW.items()))])
    different = [
        [],
        [ROW],
        [ROW, ROW],
        [ROWS[0]],
        [ROW, ROWS[0]],
        [ROWS[0], ROW],
        PAIRS,
        ["p"],
        [[user("p")]],
    ]
    assert len({fingerprint(items) for items in different}) == len(different)
    assert all(len(fingerprint(items)) == 16 for items in different)
    assert fingerprint(PAIRS) == fingerprint([Pair(p.prompt, p.chosen, p.rejected) for p in PAIRS])
    assert fingerprint([Pair("p", "a", "b", 1.0, 2.0)]) != fingerprint([Pair("p", "a", "b")])


# The zoo, and real data


def test_the_zoo_is_a_spec():
    from rlhf_min.zoo import world as zoo

    pairs, counts = read_pairs(["zoo"])
    assert len(pairs) + sum(counts.values()) - counts["rated_against"] == 10_000
    assert set(read_prompts(["zoo"])[0]) <= set(zoo.prompts("train"))
    assert set(read_prompts(["zoo:held-out"])[0]) <= set(zoo.prompts("held-out"))
    assert all(1 <= pair.rejected_rating <= 10 for pair in pairs)
    with pytest.raises(InputError):
        read_rows("zoo:nothing")


def plain_rows(name):
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@needs_shared
@pytest.mark.parametrize(("part", "rows"), [("train", 1682), ("test", 300)])
def test_hh_helpful_read_fully_explicit_and_implicit(write, part, rows):
    raw = plain_rows(f"hh_helpful/{part}.jsonl.gz")
    pairs, counts = read_pairs([str(SHARED / f"hh_helpful/{part}.jsonl.gz")])
    assert len(raw) == rows == len(pairs) + counts["identical"] + counts["duplicate"]
    assert {(p.prompt, p.chosen, p.rejected) for p in pairs} == {
        (r["prompt"], r["chosen"], r["rejected"]) for r in raw if r["chosen"] != r["rejected"]
    }
    implicit = [
        {side: f"\n\n{pair.prompt} {getattr(pair, side)}" for side in ("chosen", "rejected")}
        for pair in pairs
    ]
    assert read_pairs([write(implicit)])[0] == pairs


@needs_shared
@pytest.mark.parametrize(("part", "rows"), [("train", 994), ("test", 199)])
def test_ultrafeedback_read_fully_with_ratings(part, rows):
    raw = plain_rows(f"ultrafeedback/{part}.jsonl.gz")
    pairs, counts = read_pairs([str(SHARED / f"ultrafeedback/{part}.jsonl.gz")])
    assert len(raw) == rows == len(pairs) + counts["identical"] + counts["duplicate"]
    assert counts["rated_against"] == sum(r["chosen_rating"] < r["rejected_rating"] for r in raw)
    expected = {(r["prompt"], r["chosen"], r["chosen_rating"], r["rejected_rating"]) for r in raw}
    assert {(p.prompt, p.chosen, p.chosen_rating, p.rejected_rating) for p in pairs} <= expected


@needs_shared
@pytest.mark.parametrize("name", ["soda_chat.jsonl", "mt_bench_80.jsonl"])
def test_real_prompts(name):
    lines = (SHARED / "prompts" / name).read_text(encoding="utf-8").split("\n")
    expected = [json.loads(line)["prompt"] for line in lines if line]
    assert read_prompts([str(SHARED / "prompts" / name)])[0] == list(dict.fromkeys(expected))
