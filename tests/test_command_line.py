"""Command lines: what a user types, and what a user reads when it is wrong."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from rlhf_min import InputError, command_line
from rlhf_min.command_line import check_flags, check_ranges, option, parse, run
from rlhf_min.defaults import run_script

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    data: list[str] = field(default_factory=lambda: ["zoo"], metadata={"help": "SPECs to read"})
    model: str = field(default="runs/zoo-base", metadata={"help": "folder or hub id"})
    max_new_tokens: int = field(default=48, metadata={"help": "longest answer, tokens"})
    learning_rate: float = field(default=3e-4, metadata={"help": "step size", "aliases": ["--lr"]})
    batch_size: int = field(default=64, metadata={"help": "sequences per step"})
    baseline: Literal["moving-average", "leave-one-out", "none"] = field(
        default="moving-average", metadata={"help": "what is subtracted"}
    )
    max_steps: int | None = field(default=None, metadata={"help": "steps, at most"})
    rating_range: list[float] = field(
        default_factory=lambda: [1.0, 10.0], metadata={"help": "lowest and highest rating"}
    )
    resume: bool = field(default=False, metadata={"help": "go on"})
    overwrite: bool = field(default=False, metadata={"help": "replace"})
    plots: bool = field(default=True, metadata={"help": "draw 100 % of the plots"})

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Needy:
    first: str = field(metadata={"help": "folder or hub id"})
    second_one: int = field(metadata={"help": "count"})


def parsed(line: str) -> Config:
    return parse(Config, line.split())


def sentence(capsys, main, argv=(), config_class=Config, code=2) -> str:
    """What `run` prints for this command line, checked to be one line and to exit with `code`."""
    with pytest.raises(SystemExit) as stop:
        run(main, config_class, None if argv is None else list(argv))
    output = capsys.readouterr()
    assert stop.value.code == code
    assert output.out == ""
    assert output.err.count("\n") == 1 and output.err.endswith("\n")
    assert "usage" not in output.err and "Traceback" not in output.err
    return output.err


def test_no_flag_gives_the_defaults():
    assert parse(Config, []) == Config()


def test_values_reach_their_fields_with_their_types():
    config = parsed("--data a.csv b.jsonl --max-new-tokens 7 --baseline none --lr 1e-5 --resume")
    assert config == Config(
        data=["a.csv", "b.jsonl"],
        max_new_tokens=7,
        baseline="none",
        learning_rate=1e-5,
        resume=True,
    )
    assert isinstance(config.max_new_tokens, int) and isinstance(config.learning_rate, float)


@pytest.mark.parametrize(
    "line",
    ["--max-new-tokens 7", "--max_new_tokens 7", "--max-new-tokens=7", "--max_new_tokens=7"],
)
def test_dashes_underscores_and_equals_signs_all_work(line):
    assert parsed(line) == replace(Config(), max_new_tokens=7)


def test_only_the_flag_is_rewritten_never_the_value():
    assert parsed("--model=a_b/c_d=e_f").model == "a_b/c_d=e_f"
    assert parsed("--model a_b").model == "a_b"


def test_optional_and_negative_and_repeated_values():
    assert parsed("--max-steps 3").max_steps == 3
    assert parsed("--lr -0.5").learning_rate == -0.5
    assert parsed("--lr=-5e-1").learning_rate == -0.5
    assert parsed("--lr 1 --learning-rate 2").learning_rate == 2  # as in every shell: the last
    assert parsed("--rating-range 0 4").rating_range == [0.0, 4.0]


def test_switches_take_no_word():
    assert parsed("--resume").resume is True
    assert parsed("--no-plots").plots is False and parsed("--no_plots").plots is False
    assert parsed("--plots").plots is True
    with pytest.raises(InputError, match=r"^--resume: takes no value$"):
        parsed("--resume=yes")
    with pytest.raises(InputError, match="'False' belongs to no flag"):
        parsed("--resume False")


def test_the_defaults_are_not_shared_between_two_command_lines():
    parsed("").data.append("more")
    assert parsed("").data == ["zoo"]


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        parsed("").resume = True


def test_argv_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--batch-size", "2"])
    assert parse(Config).batch_size == 2


def test_no_args_file_is_read(tmp_path, monkeypatch):
    (tmp_path / "script.args").write_text("--batch-size 2")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "script.py")])
    assert parse(Config).batch_size == 64


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--bach-size 2", ["unknown flag --bach-size", "--batch-size?"]),
        ("--max_new_token 2", ["unknown flag --max-new-token", "--max-new-tokens?"]),
        ("--max-new 2", ["unknown flag --max-new", "--max-new-tokens?"]),  # no abbreviations
        ("--dat zoo", ["unknown flag --dat", "--data?"]),
        ("--qqqq=4", ["unknown flag --qqqq:", "--help"]),
        ("--", ["unknown flag --"]),
        ("-z 3", ["'-z'", "--help"]),
        ("stray", ["'stray'"]),
        ("--baseline mean", ["--baseline", "moving-average, leave-one-out, none", "'mean'"]),
        ("--batch-size 2.5", ["--batch-size", "whole number", "'2.5'"]),
        ("--lr fast", ["--learning-rate", "finite number", "'fast'"]),
        ("--lr nan", ["--learning-rate", "finite number", "'nan'"]),
        ("--lr inf", ["--learning-rate", "finite number", "'inf'"]),
        ("--max-steps x", ["--max-steps", "whole number", "'x'"]),
        ("--rating-range 0 four", ["--rating-range", "finite number", "'four'"]),
        ("--batch-size", ["--batch-size: expected one argument"]),
        ("--data", ["--data: expected at least one argument"]),
        ("--data a --data b", ["--data is given twice"]),
        ("--batch-size 0", ["--batch-size must be at least 1, got 0"]),
    ],
)
def test_a_wrong_command_line_is_one_sentence_with_flag_and_value(capsys, line, told):
    def main(config):
        raise AssertionError("main must not start")

    message = sentence(capsys, main, line.split())
    assert message.startswith("error: ")
    for part in told:
        assert part in message


def test_missing_required_flags_are_named(capsys):
    message = sentence(capsys, print, ["--first", "x"], Needy)
    assert "--second-one" in message and "--first" not in message
    assert parse(Needy, ["--first", "x", "--second_one", "3"]) == Needy("x", 3)


def test_help_shows_every_flag_with_dashes_alias_default_and_choices(capsys):
    with pytest.raises(SystemExit) as stop:
        run(print, Config, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for shown in (
        "what a user types",  # the script's own docstring
        "SPECs to read (default: zoo)",
        "--max-new-tokens MAX_NEW_TOKENS longest answer, tokens (default: 48)",
        "--lr",
        "(default: 0.0003)",
        "{moving-average,leave-one-out,none} what is subtracted (default: moving-average)",
        "steps, at most (default: none)",
        "lowest and highest rating (default: 1.0 10.0)",
        "--resume go on (default: off)",
        "draw 100 % of the plots (default: on)",
    ):
        assert shown in text
    assert "--max_new_tokens" not in text and "--no_plots" not in text


def test_help_marks_required_flags(capsys):
    with pytest.raises(SystemExit):
        run(print, Needy, ["-h"])
    assert "count (required)" in " ".join(capsys.readouterr().out.split())


def test_run_calls_main_with_the_settings_and_returns_zero():
    seen = []
    assert run(seen.append, Config, ["--resume"]) == 0
    assert seen == [Config(resume=True)]


def test_input_error_of_main_is_a_sentence(capsys):
    def main(config):
        raise InputError("data.jsonl row 3 is empty:\nremove it")

    assert sentence(capsys, main) == "error: data.jsonl row 3 is empty: remove it\n"


def test_a_very_long_word_is_shown_by_its_two_ends(capsys):
    message = sentence(capsys, print, ["--model", "x", "--unknown-" + "y" * 5000 + "z"])
    assert message.startswith("error: unknown flag --unknown-yyy") and "y…y" in message
    assert "yz: see --help" in message and len(message) < 300


def test_control_characters_of_a_data_file_do_not_reach_the_terminal(capsys):
    def main(config):
        raise InputError("row 3 has the role \x1b]0;owned\x07\u202e: remove it")

    assert "role <U+001B>]0;owned<U+0007><U+202E>: remove" in sentence(capsys, main)


def test_only_an_input_error_is_a_sentence_any_other_is_a_bug_and_keeps_its_traceback():
    def ours(config):
        raise ValueError("batch not divisible")

    def library(config):
        textwrap.fill("words", width=0)

    with pytest.raises(ValueError, match="not divisible"):
        run(ours, Config, [])
    with pytest.raises(ValueError, match="invalid width"):
        run(library, Config, [])


def test_other_errors_are_not_hidden():
    def main(config):
        return {}["missing"]

    with pytest.raises(KeyError):
        run(main, Config, [])


def test_file_errors_name_the_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")

    def missing(config):
        (tmp_path / "nowhere" / "x").write_text("")

    def directory(config):
        tmp_path.open("w")

    def inside_a_file(config):
        (tmp_path / "file" / "x").mkdir()

    for main, name in ((missing, "nowhere"), (directory, tmp_path.name), (inside_a_file, "file")):
        message = sentence(capsys, main)
        assert message.startswith("error: ") and name in message


def test_a_full_disk_is_a_sentence(capsys):
    def main(config):
        raise OSError(28, "No space left on device")

    assert "No space left on device" in sentence(capsys, main)


def test_interrupt_is_130(capsys, monkeypatch):
    def main(config):
        raise KeyboardInterrupt

    how = "interrupted: the same command with --resume goes on\n"
    assert sentence(capsys, main, code=130) == how
    # The loop has no --resume itself but gives it to its scripts.
    monkeypatch.setattr(sys, "argv", ["script.py", "--resume"])
    again = "interrupted: the same command goes on\n"
    assert sentence(capsys, main, argv=None, code=130) == again
    anew = "interrupted: the same command with --resume instead of --overwrite goes on\n"
    assert sentence(capsys, main, ["--overwrite"], code=130) == anew


SCRIPT = '''
"""A script."""
import sys, time
from dataclasses import dataclass, field
from rlhf_min.command_line import run

@dataclass(frozen=True)
class Config:
    lines: int = field(default=1, metadata={"help": "lines"})
    wait: bool = field(default=False, metadata={"help": "wait"})

def main(config):
    print("\\n".join(["line"] * config.lines), flush=config.wait)
    if config.wait:
        time.sleep(30)

if __name__ == "__main__":
    run(main, Config)
'''


@pytest.fixture
def script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}

    def start(*flags, stdout=subprocess.PIPE):
        command = [sys.executable, str(tmp_path / "script.py"), *flags]
        settings = {"stderr": subprocess.PIPE, "text": True, "env": environment}
        return subprocess.Popen(command, stdout=stdout, **settings)

    return start


def test_through_the_shell(script):
    right, wrong, help_ = script("--lines", "2"), script("--linse", "2"), script("--help")
    assert right.communicate(timeout=60) == ("line\nline\n", "") and right.returncode == 0
    expected = "error: unknown flag --linse: did you mean --lines?\n"
    assert wrong.communicate(timeout=60) == ("", expected) and wrong.returncode == 2
    out, err = help_.communicate(timeout=60)
    assert "A script." in out and "--lines" in out and err == "" and help_.returncode == 0


def test_control_c_through_the_shell(script):
    process = script("--wait")
    assert process.stdout.readline() == "line\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130


@pytest.mark.parametrize("lines", ["1", "200000"])  # less and more than a pipe holds
def test_a_reader_that_leaves_is_no_error_message(script, lines):
    nobody, stdout = os.pipe()
    os.close(nobody)
    process = script("--lines", lines, stdout=stdout)
    os.close(stdout)
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 141


# Bounds declared beside the fields, headings, and scripts that run scripts.


@dataclass(frozen=True)
class Bounded:
    count: int = option(4, "answers", heading="Sampling", at_least=1)
    share: float = option(0.5, "of the rest", at_least=0, below=1)
    rate: float = option(1e-3, "step size", "--lr", heading="Optimisation", above=0)
    most: int | None = option(None, "at most", at_most=9)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"count": 0}, "--count must be at least 1, got 0"),
        ({"share": 1.0}, "--share must be below 1, got 1.0"),
        ({"share": -0.1}, "--share must be at least 0, got -0.1"),
        ({"share": float("nan")}, "--share must be a finite number, got nan"),
        ({"rate": 0.0}, "--rate must be above 0, got 0.0"),
        ({"most": 10}, "--most must be at most 9, got 10"),
    ],
)
def test_a_setting_out_of_its_bounds_is_named_with_its_value(settings, sentence):
    with pytest.raises(InputError) as error:
        check_ranges(Bounded(**settings))
    assert str(error.value) == sentence


def test_settings_on_their_bounds_pass():
    check_ranges(Bounded(count=1, share=0.0, rate=1e-9, most=9))
    check_ranges(Bounded())


def test_a_bound_that_does_not_exist_is_a_mistake_in_the_script():
    with pytest.raises(TypeError, match="at_last"):
        option(1, "count", at_last=1)


def test_help_groups_settings_under_their_headings(capsys):
    with pytest.raises(SystemExit):
        run(print, Bounded, ["--help"])
    text = capsys.readouterr().out
    places = [text.index(x) for x in ("Sampling:", "--count", "--share", "Optimisation:", "--rate")]
    assert places == sorted(places)


def test_a_script_runs_another_as_its_command_line_would(tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.py"
    other.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["first.py", "--mine"])
    run_script(other, "--lines", "2")
    assert capsys.readouterr().out == "line\nline\n"
    assert sys.argv == ["first.py", "--mine"]
    with pytest.raises(SystemExit) as stop:
        run_script(other, "--linse", "2")
    assert stop.value.code == 2 and "--lines" in capsys.readouterr().err


def test_a_flag_whose_value_is_two_dashes_is_refused(capsys):
    """argparse would give an empty list."""
    assert "--batch-size: -- is no value" in sentence(
        capsys, lambda config: None, ["--batch-size=--"]
    )


def test_no_garbage_collection_during_imports_but_again_when_the_script_runs(monkeypatch):
    monkeypatch.setattr(command_line.startup, "install", lambda handler: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    gc.unfreeze()  # another test of this process may have run a script
    try:
        check_flags(Config)
        assert not gc.isenabled() and not gc.get_freeze_count()
        seen = []
        assert run(lambda config: seen.append(gc.isenabled()), Config, []) == 0
        assert seen == [True] and gc.isenabled()
        # What the imports made is out of its way.  A second script in this process, as in the
        # loop, must not set aside what the first one left: that may be garbage.
        frozen = gc.get_freeze_count()
        assert frozen
        check_flags(Config)
        assert run(lambda config: None, Config, []) == 0
        assert gc.get_freeze_count() <= frozen and gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_without_torch_a_script_says_what_to_activate(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["train_rm.py"])
    with pytest.raises(SystemExit) as stopped:
        check_flags(Config)
    gc.enable()
    assert stopped.value.code == 2
    assert "torch is not installed for this Python: activate" in capsys.readouterr().err
