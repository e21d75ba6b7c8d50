"""Data as people really have them: bad rows, odd files, other columns; nothing passes silently."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from test_bad_input import assert_one_sentence
from test_reward_model import trained_folder
from tiny_models import tiny_folder, tiny_pairs, write_rows

import judge
import train_policy
import train_rm
from rlhf_min import InputError, command_line
from rlhf_min.data.preferences import Pair, hold_out, read_pairs, read_prompts
from rlhf_min.reporting import report
from rlhf_min.zoo import start_model, world

PLAIN = {"prompt": "p", "chosen": "a", "rejected": "b"}
ANSWERS = {"chosen": "a", "rejected": "b"}
CHAT = [{"role": "user", "content": "it's\nme"}, {"role": "assistant", "content": 'say "hi"'}]
OTHER = [CHAT[0], {"role": "assistant", "content": "no"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a reward model and good data."""
    place = tmp_path_factory.mktemp("data")
    base = tiny_folder(place / "base", "smol")
    trained_folder(base, place / "rm", "scalar")
    write_rows(place / "good.jsonl", tiny_pairs(8))
    write_rows(place / "held.jsonl", tiny_pairs(3, "frog"))
    return place


@pytest.fixture(autouse=True)
def in_place(place, tmp_path_factory, monkeypatch):
    """Each test starts in its own folder, which has the contents of `place`."""
    folder = tmp_path_factory.mktemp("work")
    for path in place.iterdir():
        (folder / path.name).symlink_to(path)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(report, "write_report", lambda out: None)


RM = "--model base --eval-data held.jsonl --max-steps 1"
POLICY = (
    "--model base --reward-model rm --eval-data held.jsonl --batch-size 4 --samples 2 --steps 1 "
    "--max-new-tokens 4 --ruler-prompts 2"
)
JUDGE = "--a base --b base --judge reward-model:rm --max-new-tokens 4"
SCRIPTS = {train_rm: RM, train_policy: POLICY, judge: JUDGE}


def start(script, out: Path, words: str) -> int:
    """Exit code of a script with these flags, and its usual ones for the others."""
    usual = "--judge reward-model:rm" if "--agreement" in words else SCRIPTS[script]
    flags = {}
    for piece in f" {usual} {words} --out {out}".split(" --")[1:]:
        name, *values = piece.split()
        flags[name] = values
    try:
        line = [word for name in flags for word in ("--" + name, *flags[name])]
        return command_line.run(script.main, script.Config, line)
    except SystemExit as stop:
        return stop.code


def data_of(out: Path) -> dict:
    """What run.json says about the data."""
    return json.loads((out / "run.json").read_text())["data"]


def refused(name: str, content, read=read_pairs) -> str:
    """The message of InputError for a file with this content (rows, text or bytes)."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as error:
        read([name])
    text = str(error.value)
    assert text.startswith(name) and "\n" not in text and len(text) < 500
    return text


def pairs_of(name: str, content, **settings) -> list[Pair]:
    """The pairs of a file with this content (rows, text or bytes)."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_pairs([name], **settings)[0]


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# Bad rows are counted, listed, and dropped if that is wanted


@pytest.fixture
def with_bad_rows():
    """A file with 12 rows, of which 3, 5, 6, 8 and 11 are bad; nothing in it is good for all."""
    rows = [json.dumps(row) for row in tiny_pairs(12)]
    rows[2] = rows[4] = json.dumps(PLAIN | {"prompt": ""})
    rows[5] = '{"prompt": oops'
    rows[7] = json.dumps({"prompt": [CHAT[1]], **ANSWERS})
    rows[10] = "[1]"
    Path("bad.jsonl").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_bad_rows_are_counted_and_the_first_are_shown(script, with_bad_rows, tmp_path, capfd):
    assert start(script, tmp_path / "out", "--data bad.jsonl") == 2
    causes = ["bad.jsonl row 3: prompt is empty; row 5: the same; row 6: is not valid JSON"]
    assert_one_sentence(2, capfd.readouterr().err, [*causes, "5 of 12", "--skip-bad-rows"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_rows_are_dropped_printed_and_recorded(script, with_bad_rows, tmp_path, capfd):
    assert start(script, tmp_path / "out", "--data bad.jsonl --skip-bad-rows") == 0
    shown = capfd.readouterr().out
    assert "skipped: bad.jsonl row 3: prompt is empty" in shown and "5 of 12" in shown
    assert "dropped: bad rows" in shown
    data = data_of(tmp_path / "out")
    assert data["dropped"]["bad_rows"] == 5
    assert data.get("pairs/train", 7) == data.get("prompts/train", 7) == 7


@pytest.mark.parametrize("script", [train_rm, train_policy])
def test_bad_held_out_rows_are_dropped_printed_and_recorded(script, tmp_path, capfd):
    write_rows(Path("part.jsonl"), [*tiny_pairs(3, "frog"), {"prompt": "", **ANSWERS}])
    flags = "--data good.jsonl --eval-data part.jsonl"
    assert start(script, tmp_path / "out", flags) == 2
    assert_one_sentence(2, capfd.readouterr().err, ["part.jsonl row 4", "1 of 4"])
    assert start(script, tmp_path / "out", f"{flags} --skip-bad-rows") == 0
    assert "1 held-out p" in capfd.readouterr().out
    assert data_of(tmp_path / "out")["dropped/held_out"]["bad_rows"] == 1


def test_dropped_held_out_pairs_are_printed(tmp_path, capfd):
    rows = tiny_pairs(4, "frog")
    rows[0] |= {"rejected": rows[0]["chosen"]}
    rows[1] |= {"chosen": "honey " * 100}
    write_rows(Path("part.jsonl"), rows)
    assert start(train_rm, tmp_path / "out", "--data good.jsonl --eval-data part.jsonl") == 0
    shown = capfd.readouterr().out
    assert "1 held-out pairs dropped: identical" in shown
    assert "1 held-out pairs dropped: answer longer" in shown
    assert data_of(tmp_path / "out")["dropped/held_out"]["identical"] == 1


@pytest.mark.parametrize(("count", "warns"), [(29, True), (30, False)])
def test_few_pairs_are_a_warning(count, warns, tmp_path, capfd):
    write_rows(Path("some.jsonl"), tiny_pairs(count))
    assert start(train_rm, tmp_path / "out", "--data some.jsonl") == 0
    shown = capfd.readouterr().out
    assert (f"only {count} training pairs" in shown) == warns
    assert "only 3 held-out pairs" in shown


def test_a_resumed_judge_run_still_records_what_was_dropped(with_bad_rows, tmp_path):
    flags = "--data bad.jsonl --skip-bad-rows"
    assert start(judge, tmp_path / "out", flags) == 0
    assert start(judge, tmp_path / "out", f"{flags} --resume") == 0
    assert data_of(tmp_path / "out")["dropped"]["bad_rows"] == 5


def test_a_file_without_any_good_row_is_refused_in_any_case():
    text = refused("none.jsonl", [PLAIN | {"chosen": ""}] * 5)
    assert "row 1: chosen is empty; row 2: the same" in text and "5 of 5" in text
    with pytest.raises(InputError, match="no row can be used"):
        read_pairs(["none.jsonl"], skip_bad_rows=True)


def test_equal_ratings_are_counted_and_the_chosen_column_decides(tmp_path, capfd):
    rows = tiny_pairs(8)
    rows[3] |= {"chosen_rating": 4, "rejected_rating": 4.0}
    write_rows(Path("equal.jsonl"), rows)
    assert start(train_rm, tmp_path / "out", "--data equal.jsonl") == 0
    assert "1 training pairs noted: equal ratings" in capfd.readouterr().out
    data = data_of(tmp_path / "out")
    assert data["dropped"]["equal_ratings"] == 1 and data["pairs/train"] == 8


def test_a_row_that_two_files_share_is_used_once(tmp_path):
    Path("copy.jsonl").write_text(Path("good.jsonl").read_text())
    assert start(train_rm, tmp_path / "out", "--data good.jsonl copy.jsonl") == 0
    data = data_of(tmp_path / "out")
    assert data["dropped"]["duplicate"] == 8 and data["pairs/train"] == 8


def test_a_judge_does_not_read_ratings(tmp_path):
    rows = [row | {"chosen_rating": -1, "rejected_rating": "n/a"} for row in tiny_pairs(4)]
    write_rows(Path("odd.jsonl"), rows)
    assert start(judge, tmp_path / "out", "--agreement odd.jsonl") == 0


# Chat messages in the cells of a CSV file

NUMPY = f"[{CHAT[0]!r}\n {CHAT[1]!r}]"  # as pandas writes a column of numpy arrays


@pytest.mark.parametrize(
    "chosen",
    [json.dumps(CHAT), json.dumps(CHAT, indent=1), repr(CHAT), f" {CHAT!r} ", NUMPY],
    ids=["json", "indented json", "python", "python with spaces", "numpy"],
)
def test_chat_cells_of_a_csv_are_chat_messages(chosen):
    table = as_csv([{"chosen": chosen, "rejected": repr(OTHER)}])
    assert pairs_of("d.csv", table) == [Pair(CHAT[:1], 'say "hi"', "no")]


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': 'cut o",
        "[{'role': 'user', 'content': open('x')}]",  # code is never run
        '[{"role": "user", "content": "a"}] and more',
        "[{'from': 'human', 'value': 'hello'}]",
        "[{'role': 'user', 'content': " + "(" * 5000,
        "[{'role': " + "[" * 100_000,
    ],
    ids=["cut", "call", "json and more", "other keys", "brackets", "many brackets"],
)
def test_a_chat_cell_that_cannot_be_read_is_refused(cell):
    text = refused("d.csv", as_csv([PLAIN, PLAIN | {"chosen": cell, "prompt": "q"}]))
    assert "d.csv row 2 (line 3)" in text
    assert "chat messages" in text or "role and content" in text


# Roles and prompts


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([{"role": "", "content": "a"}], "the role ''"),
        ([{"role": "human", "content": "a"}], "the role 'human': use system"),
        ([{"role": "User", "content": "a"}], "the role 'User'"),
        ([{"role": "assistant", "content": "a"}], "no user turn, only assistant"),
        ([{"role": "system", "content": "a"}], "no user turn, only system"),
        ([CHAT[0], CHAT[1]], "ends with an assistant turn"),
        ("a\0b", "NUL"),
    ],
)
def test_a_prompt_that_nobody_asked_is_refused(prompt, reason):
    for read in (read_pairs, read_prompts):
        text = refused("d.jsonl", [PLAIN, PLAIN | {"prompt": prompt}], read)
        assert "d.jsonl row 2" in text and reason in text
    if isinstance(prompt, list):
        row = {"chosen": [*prompt, CHAT[1]], "rejected": [*prompt, OTHER[1]]}
        assert reason in refused("d.jsonl", [row])


# Files


def test_each_common_form_of_json_is_read():
    rows, wanted = tiny_pairs(3), [row["prompt"] for row in tiny_pairs(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, content in (
        ("array.jsonl", json.dumps(rows)),
        ("indented.jsonl", json.dumps(rows, indent=2)),
        ("wrapped.json", json.dumps({"data": rows})),
        ("wrapped_indented.json", json.dumps({"data": rows}, indent=2)),
        ("windows.json", lines.replace("\n", "\r\n")),
        ("mark.jsonl", "\ufeff" + lines),
        ("no_ending.jsonl", gzip.compress(lines.encode())),
    ):
        assert [pair.prompt for pair in pairs_of(name, content)] == wanted, name
    assert pairs_of("one.json", json.dumps(rows[0], indent=2))[0].prompt == wanted[0]
    columns = ("prompt", "chosen", "rejected")
    messages = {name: [{"role": "assistant", "content": rows[0][name]}] for name in columns}
    messages["prompt"][0]["role"] = "user"  # one row of chat messages is no table of columns
    assert pairs_of("one.json", json.dumps(messages))[0].chosen == rows[0]["chosen"]


GOOD = json.dumps(PLAIN) + "\n"


WRONG_FILES = [
    ("deep.jsonl", GOOD + "[" * 5000 + "]" * 5000, ["row 2", "nested too deeply"]),
    ("deep.jsonl", GOOD + '{"a":' * 5000 + "1" + "}" * 5000, ["row 2", "too deeply"]),
    ("deep.json", "[" + '{"a":' * 5000 + "1" + "}" * 5000 + "]", ["too deeply"]),
    ("extra.jsonl", f'{GOOD}{GOOD[:-2]}, "x": {"[" * 970}{"]" * 970}}}\n', ["row 2", "deeply"]),
    ("deep.jsonl", f'{GOOD}{{"prompt": {"[" * 950}{"]" * 950}}}\n', ["row 2"]),
    ("twice.jsonl", GOOD + '{"prompt": "a", "prompt": "b"}', ["row 2", "twice"]),
    ("object.json", '{\n  "prompt": "a"\n  "chosen": "b"}', ["not valid JSON", "line 3"]),
    ("array.json", "[\n" + GOOD, ["not valid JSON"]),
    ("wrapped.json", '{"rows": []}', ["row 1", "its columns are rows"]),
    ("utf16.jsonl", GOOD.encode("utf-16"), ["UTF-8"]),
    ("latin.jsonl", GOOD.encode() + b'{"prompt": "\xe9"}\n', ["row 2", "UTF-8"]),
    ("cut.jsonl.gz", gzip.compress(GOOD.encode() * 50)[:-12], ["cannot be read"]),
    ("lines.parquet", GOOD, ["cannot be read"]),
    ("nul.jsonl", GOOD.encode() + b"\0\0\0\n", ["row 2"]),
    ("twice.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n", ["same name", "chosen"]),
    ("ragged.csv", 'prompt,chosen,rejected\na,"b\nb",c\na,b\na,b,c,d\n', ["row 2 (line 4)"]),
    ("ragged.csv", "prompt,chosen,rejected\na,b,c\na,b\na,b,c,d\n", ["2 of 3"]),
    (
        "quote.csv",
        'prompt,chosen,rejected\na,b,c\na,"b,c\n',
        ["row 2 (line 3)", "not valid CSV"],
    ),
    ("quote.csv", 'prompt,chosen,"rejected\na,b,c\n', ["(line 1)", "not valid CSV"]),
    ("tabs.csv", "prompt\tchosen\trejected\na\tb\tc\n", [r"separated by '\t'", "commas"]),
    ("excel.csv", "prompt;chosen;rejected\na;b,c;d\n", ["separated by ';'", "commas"]),
    ("pandas.json", json.dumps({k: {"0": v, "1": v} for k, v in PLAIN.items()}), ["each column"]),
    ("columns.json", json.dumps({k: [v, v] for k, v in PLAIN.items()}), ["each column", "records"]),
    ("escape.csv", "\x1b[2Jprompt\na\n", ["its columns are �[2Jprompt"]),
]


@pytest.mark.parametrize(
    ("name", "content", "causes"),
    WRONG_FILES,
    ids=[f"{name} {causes[0]}" for name, _, causes in WRONG_FILES],
)
def test_a_wrong_file_is_refused(name, content, causes):
    text = refused(name, content)
    for cause in causes:
        assert cause in text
    assert text.isprintable()


def test_a_space_in_the_header_of_a_csv_does_not_matter():
    assert pairs_of("d.csv", "prompt, chosen, rejected\na,b,c\n") == [Pair("a", "b", "c")]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("spec", "causes"),
    [
        (".", ["folder", "name a file"]),
        ("base", ["base", "folder", "name a file"]),
        ("/", ["folder", "name a file"]),
        ("good.jsonl:train", ["good.jsonl:train", "no splits", "good.jsonl"]),
        ("absent.jsonl:train", ["absent.jsonl:train", "no splits"]),
        ("absent/in/here", ["absent/in/here", "zoo, a file"]),
        ("/absent/here", ["/absent/here", "zoo, a file"]),
        ("zoo:test", ["zoo", "test", "held-out"]),
    ],
)
def test_a_spec_that_is_no_data_is_refused_at_once(script, spec, causes, tmp_path, capfd):
    assert start(script, tmp_path / "out", f"--data {spec}") == 2
    assert_one_sentence(2, capfd.readouterr().err, causes)
    assert not any(tmp_path.iterdir())


def test_a_negative_limit_is_refused(tmp_path, capfd):
    for script in (train_rm, judge):
        assert start(script, tmp_path / "out", "--data good.jsonl --limit -1") == 2
        assert_one_sentence(2, capfd.readouterr().err, ["--limit", "-1"])


# Columns of other data sets


def test_the_columns_of_llmbar_and_shp_are_read():
    llmbar = {"input": "q", "output_1": "x", "output_2": "y"}
    rows = [llmbar | {"label": label} for label in (1, 2, "1", 2.0)]
    expected = [("x", "y"), ("y", "x"), ("x", "y"), ("y", "x")]
    rows = [row | {"input": f"q{i}"} for i, row in enumerate(rows)]
    found = pairs_of("llmbar.json", json.dumps(rows, indent=1))
    assert [(pair.chosen, pair.rejected) for pair in found] == expected
    shp = {"history": "h", "human_ref_A": "x", "human_ref_B": "y", "score_A": 3, "score_B": 1}
    rows = [shp | {"labels": label, "history": f"h{label}"} for label in (1, 0)]
    assert pairs_of("shp.jsonl", rows) == [Pair("h1", "x", "y"), Pair("h0", "y", "x")]
    assert read_prompts(["shp.jsonl"])[0] == ["h1", "h0"]
    assert "label must be 1 or 2" in refused("llmbar.jsonl", [llmbar | {"label": 0}])


@pytest.mark.parametrize(
    "columns",
    [
        "instruction input response1 response2 annotator1 annotator2 annotator3",  # PandaLM
        "prompt response helpfulness correctness coherence complexity verbosity",  # HelpSteer2
    ],
)
def test_other_columns_are_listed_with_those_that_are_known(columns):
    text = refused("d.jsonl", [dict.fromkeys(columns.split(), "x")])
    assert columns.replace(" ", ", ") in text and "prompt, chosen" in text and "rejected" in text


def test_a_question_under_another_name_is_not_guessed_from_the_answers():
    """Without the prompt column, "The bear eats" would be taken for the prompt."""
    row = {"question": "?", "chosen": "The bear eats fish.", "rejected": "The bear eats hay."}
    assert "rename question to prompt" in refused("d.jsonl", [row])


def test_long_and_many_column_names_are_cut():
    row = {"x" * 10_000 + str(i): 1 for i in range(100)}
    assert "…" in refused("d.jsonl", [row])


# The zoo


@pytest.fixture(scope="module")
def zoo_models(tmp_path_factory):
    """A start model of the zoo, and a reward model from it."""
    folder = tmp_path_factory.mktemp("zoo")
    start_model.build_base(folder / "base", seed=0, steps=2, examples=300)
    trained_folder(folder / "base", folder / "rm", "scalar")
    return folder


def test_gold_is_measured_only_where_training_and_held_out_prompts_are_the_zoos(
    zoo_models, tmp_path
):
    flags = f"--model {zoo_models / 'base'} --reward-model {zoo_models / 'rm'} --eval-prompts 3 "
    flags += "--data zoo:train --eval-data "
    for eval_data, has_gold in (("held.jsonl", False), ("zoo:held-out", True)):
        out = tmp_path / eval_data
        assert start(train_policy, out, flags + eval_data) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert ("reward/gold" in summary["after"]) == has_gold


def test_zoo_train_holds_out_the_same_combinations_as_zoo():
    """Among other data, too.  Another wording of a held-out question would be a leak."""
    data = ["good.jsonl", "zoo:train"]
    prompts, _ = read_prompts(data)
    found = hold_out(prompts, read_prompts, train_rm.Config(data=data), 0.1, 50)
    train, held_out = found[:2]
    asked = {world.QUESTIONS[prompt] for prompt in train if prompt in world.QUESTIONS}
    assert len(asked) > 50 and len(held_out) == 50
    assert not asked & {world.QUESTIONS[prompt] for prompt in held_out}


def test_the_held_out_questions_of_the_zoo_are_no_training_data():
    prompts, _ = read_prompts(["zoo:held-out"])
    with pytest.raises(InputError, match="every prompt is held out"):
        hold_out(prompts, read_prompts, train_rm.Config(data=["zoo:held-out"]), 0.1, 50)
