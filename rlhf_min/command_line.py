"""Command lines from frozen dataclasses; whatever a user got wrong is one sentence and exit code 2.

A field is a flag (`max_new_tokens`: `--max-new-tokens`; underscores work too).  Its metadata holds
`help`, with the unit, and `aliases`, as ["--short"]; `Literal` lists choices, a bool is a switch.
Exit codes: 0 done, 2 a setting or input is wrong, 130 interrupted.
"""

import argparse
import difflib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import field
from typing import TypeVar

from transformers.hf_argparser import HfArgumentParser, string_to_bool

from rlhf_min import InputError
from rlhf_min.hardware.device import keep_freed_memory

Config = TypeVar("Config")


def option(default, text: str, *aliases: str):
    """A field of a settings dataclass: its default, its help with the unit, other flags for it."""
    metadata = {"help": text, "aliases": list(aliases)} if aliases else {"help": text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def run(
    main: Callable[[Config], object], config_class: type[Config], argv: list[str] | None = None
):
    """main(settings); returns 0, or ends the process with one line on stderr and an exit code."""
    keep_freed_memory()
    try:
        main(parse(config_class, argv))
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        how = ": --resume goes on" if hasattr(config_class, "resume") else ""
        message, code = f"interrupted{how}", 130
    except BrokenPipeError:  # `… | head`: nobody reads on, and Python's last flush must not say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        message, code = f"error: {reason}: check the path, its rights and the disk", 2
    except FloatingPointError as error:
        message, code = f"error: {error}: lower --lr", 2
    except ValueError as error:
        if not isinstance(error, InputError) and not _ours(error, main):
            raise  # a library's: more likely our mistake than the user's, so with its traceback
        message, code = f"error: {error}", 2
    print(" ".join(message.splitlines()), file=sys.stderr)
    raise SystemExit(code)


def _ours(error: Exception, main: Callable) -> bool:
    """Was it raised by the project itself, say by a maths room, or by the script of `main`?"""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    name = frame.f_globals.get("__name__", "")
    return name.startswith("rlhf_min") or name == main.__module__


def parse(config_class: type[Config], argv: list[str] | None = None) -> Config:
    """The settings that a command line (by default this process's own) gives.

    Raises InputError for an unknown flag, a missing one, a wrong value, or a list given twice.
    """
    about = (sys.modules[config_class.__module__].__doc__ or "").split("\n\n")[0]
    layout = argparse.HelpFormatter
    parser = _Parser(config_class, allow_abbrev=False, description=about, formatter_class=layout)
    known, lists, words = parser._option_string_actions, [], []
    for word in sys.argv[1:] if argv is None else argv:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
            if flag not in known:
                near = difflib.get_close_matches(flag, known, n=1)
                hint = f"did you mean {near[0]}?" if near else "see --help for all flags"
                raise InputError(f"unknown flag {flag}: {hint}")
            if known[flag].nargs == "+":
                lists.append(known[flag].dest)
        words.append(flag + equals + value)
    for name in lists:
        if lists.count(name) > 1:  # argparse would forget the first
            raise InputError(
                f"--{name.replace('_', '-')} is given twice: put all values behind one"
            )
    config, rest = parser.parse_args_into_dataclasses(
        words, look_for_args_file=False, return_remaining_strings=True
    )
    if rest:
        raise InputError(f"{rest[0]!r} belongs to no flag: see --help for all flags")
    return config


class _Parser(HfArgumentParser):
    """HfArgumentParser with dashes, defaults in its help, and InputError for its usage dump."""

    def add_argument(self, *flags: str, **settings) -> argparse.Action:
        flags = tuple(dict.fromkeys(flag.replace("_", "-") for flag in flags))
        default = settings.get("default")
        if settings.get("type") is string_to_bool:  # `--resume`, not `--resume yes`
            text = settings.get("help", "")
            settings = {"action": "store_true", "default": default, "help": text}
        elif "type" in settings:
            settings["type"] = _checked(settings["type"], settings.get("choices"))
        if settings.get("action") != "help":
            shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
            shown = {"None": "none", "True": "on", "False": "off"}.get(shown, shown)
            ending = "(required)" if settings.get("required") else f"(default: {shown})"
            settings["help"] = f"{settings.get('help', '')} {ending}".strip().replace("%", "%%")
        return super().add_argument(*flags, **settings)

    def error(self, message: str):
        message = re.sub(r"^argument ([^\s/:]+)\S*: ", r"\1: ", message)
        message = re.sub(r"^the following .* required: (.*)", r"missing: \1: see --help", message)
        raise InputError(re.sub(r"ignored explicit argument .*", "takes no value", message))


def _checked(kind: Callable, choices: tuple | None) -> Callable:
    """A reader of one value that says what it must be."""
    kinds = {int: "a whole number", float: "a finite number", str: "text"}
    wanted = f"one of {', '.join(map(str, choices))}" if choices else kinds.get(kind, str(kind))

    def read(text: str):
        try:
            value = kind(text)
            if value not in (choices or [value]) or (kind is float and not math.isfinite(value)):
                raise ValueError
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}") from None
        return value

    return read
