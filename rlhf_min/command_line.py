"""Command lines from frozen dataclasses; a wrong input is one sentence on stderr and exit code 2.

Every field of a settings dataclass is a flag: `max_new_tokens` is `--max-new-tokens` (underscores
work too), a bool is a switch, a `Literal` lists the choices, a list takes several values.  Of
`str | list[str]` one value stays text, and several become a list.
Exit codes: 0 done, 2 a setting or an input is wrong, 130 interrupted by Ctrl-C or SIGTERM.
"""

import argparse
import dataclasses
import difflib
import gc
import math
import operator
import os
import re
import signal
import sys
import typing
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, suppress
from importlib.util import find_spec

from rlhf_min import InputError, startup
from rlhf_min.data.visible import visible

BOUNDS = {"at_least": operator.ge, "above": operator.gt}
BOUNDS |= {"at_most": operator.le, "below": operator.lt}
LARGEST = 10**9  # limit of every number, up and down, that declares no other: more overflows
KINDS = {int: "a whole number", float: "a finite number", str: "text"}


def option(default, text: str, *aliases: str, heading: str = "", **bounds: float):
    """A field of a settings dataclass; text: its help, with the unit; aliases: more flags for it.

    heading: starts a group in --help; bounds: at_least, above, at_most, below (`check_ranges`).
    """
    if unknown := bounds.keys() - BOUNDS.keys():
        raise TypeError(f"unknown bounds {sorted(unknown)}: use {', '.join(BOUNDS)}")
    metadata = {"help": text, "aliases": aliases, "heading": heading, "bounds": bounds}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(name: str) -> str:
    """The flag of a field: "max_new_tokens" → "--max-new-tokens"."""
    return "--" + name.replace("_", "-")


def check_ranges(config) -> None:
    """Raise InputError for the first number outside the bounds declared beside its field.

    Numbers with no bound of their own lie between -LARGEST and LARGEST; NaN is refused everywhere,
    and so is text with characters that cannot be printed: file names end up in messages.
    """
    for field in dataclasses.fields(config):
        value, bounds = getattr(config, field.name), field.metadata.get("bounds", {})
        bounds, flag = {"at_least": -LARGEST, "at_most": LARGEST} | bounds, flag_of(field.name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and not item.isprintable():
                raise InputError(f"{flag} holds characters that cannot be printed: {item!r}")
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                continue
            if not math.isfinite(item):
                raise InputError(f"{flag} must be a finite number, got {item}")
            for bound, limit in bounds.items():
                if not BOUNDS[bound](item, limit):
                    raise InputError(
                        f"{flag} must be {bound.replace('_', ' ')} {limit}, got {item}"
                    )


def check_needs(config, needs: dict[str, str]) -> None:
    """Raise InputError for a setting that is not at its default but would have no effect.

    needs: field → "field value", the other setting without which it has none.  A run of before
    can be resumed with such settings.
    """
    if config.resume:
        return
    for field in dataclasses.fields(config):
        if field.name in needs and getattr(config, field.name) != field.default:
            other, wanted = needs[field.name].split()
            if (value := getattr(config, other)) != wanted:
                need = f"{flag_of(field.name)} needs {flag_of(other)} {wanted}"
                raise InputError(f"{need}, but {flag_of(other)} is {value}")


def run(main: Callable, config_class: type, argv: list[str] | None = None) -> int:
    """Call main(settings) and return 0, or exit with one line on stderr and an exit code.

    That line is for InputError, OSError and FloatingPointError (training diverged); every other
    error is a bug and keeps its traceback.
    """
    if not gc.isenabled() and not gc.get_freeze_count():
        gc.freeze()  # garbage collection skips what the imports made, which stays until the end
    gc.enable()
    try:
        startup.install(signal.default_int_handler)  # it raises KeyboardInterrupt
        main(parse(config_class, argv))
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        words = sys.argv if argv is None else argv
        flag = "" if "--resume" in words else " with --resume"
        flag += " instead of --overwrite" if "--overwrite" in words else ""
        how = f": the same command{flag} goes on" if hasattr(config_class, "resume") else ""
        message, code = f"interrupted{how}", 130
    except BrokenPipeError:  # as in `… | head`: Python's last flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (InputError, FloatingPointError) as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        message, code = f"error: {reason}: check the path, its rights and the disk", 2
    print(visible(re.sub(r"\S{400,}", _shortened, " ".join(message.splitlines()))), file=sys.stderr)
    raise SystemExit(code)


def _shortened(word: re.Match) -> str:
    """The two ends of a very long word, such as a value that was pasted by mistake."""
    return f"{word[0][:100]}…{word[0][-100:]}"


def check_flags(config_class: type) -> None:
    """Answer --help and wrong flags, and exit; return if the flags of this process are right."""
    with nullcontext() if startup.FIRST else redirect_stderr(sys.stdout):  # one process says it
        run(_check_ranges_and_torch, config_class)
    startup.install(startup.leave)
    gc.disable()  # during the imports, which create much and free nothing; `run` enables it


def _check_ranges_and_torch(config) -> None:
    check_ranges(config)
    if find_spec("torch") is None:
        raise InputError(
            "torch is not installed for this Python: activate the virtual environment "
            "(. .venv/bin/activate); `make demo` makes one"
        )


def parse(config_class: type, argv: list[str] | None = None):
    """The settings given on a command line (by default this process's own).  Raises InputError."""
    about = (sys.modules[config_class.__module__].__doc__ or "").split("\n\n")[0]
    settings = {"allow_abbrev": False, "exit_on_error": False, "add_help": False}
    usage = getattr(config_class, "usage", "%(prog)s [flags]")
    parser = argparse.ArgumentParser(usage=usage, description=about, **settings)
    flags = {"--help": parser.add_argument("-h", "--help", action="help", help="show this help")}
    hints, group = typing.get_type_hints(config_class), parser
    for field in dataclasses.fields(config_class):
        if field.metadata.get("heading"):
            group = parser.add_argument_group(field.metadata["heading"])
        names = [flag_of(field.name), *field.metadata.get("aliases", ())]
        action = group.add_argument(*names, dest=field.name, **_argument(field, hints[field.name]))
        flags |= dict.fromkeys(action.option_strings, action)
    words, seen = [], []
    for word in sys.argv[1:] if argv is None else argv:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
            if flag not in flags:
                near = difflib.get_close_matches(flag, flags, n=1)
                hint = f"did you mean {near[0]}?" if near else "see --help for all flags"
                raise InputError(f"unknown flag {flag}: {hint}")
            action = flags[flag]
            if equals and action.nargs == 0:
                raise InputError(f"{flag}: takes no value")
            if value == "--":  # argparse would take it for the end of the flags
                raise InputError(f"{flag}: -- is no value")
            # argparse would forget the first; where one value is usual, the last one counts.
            if action.nargs == "+" and action in seen and not isinstance(action.default, str):
                raise InputError(f"{flag} is given twice: put all values behind one")
            seen.append(action)
        words.append(flag + equals + value)
    try:
        given, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        flag = (error.argument_name or "").split("/")[0]
        raise InputError(f"{flag}: {error.message}") from None
    given = vars(given)
    for name, kind in hints.items():
        if _one_or_several(kind) and isinstance(value := given.get(name), list):
            given[name] = value[0] if len(value) == 1 else value
    if rest and not hasattr(config_class, "from_words"):
        raise InputError(f"'{rest[0]}' belongs to no flag: see --help for all flags")
    given |= config_class.from_words(rest, given) if rest else {}
    for name, value in given.items():
        if value is dataclasses.MISSING:
            raise InputError(f"missing: {flag_of(name)}: see --help")
    return config_class(**given)


def _one_or_several(kind) -> bool:
    """Whether a field's type is `str | list[str]`."""
    return set(typing.get_args(kind)) == {str, list[str]}


def _argument(field: dataclasses.Field, kind) -> dict:
    """The arguments of `add_argument` for a field of type `kind`."""
    has_factory = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if has_factory else field.default
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    shown = shown or "none"
    shown = {"None": "none", "True": "on", "False": "off"}.get(shown, shown)
    ending = "(required)" if default is dataclasses.MISSING else f"(default: {shown})"
    text = f"{field.metadata.get('help', '')} {ending}".replace("%", "%%")
    settings = {"default": default, "help": text}
    if kind is bool:
        return settings | {"action": argparse.BooleanOptionalAction if default else "store_true"}
    if type(None) in typing.get_args(kind):  # X | None
        kind = typing.get_args(kind)[0]
    if _one_or_several(kind):
        kind = list[str]
    if typing.get_origin(kind) is list:
        kind, settings["nargs"] = typing.get_args(kind)[0], "+"
    choices = typing.get_args(kind)  # of a Literal
    wanted = f"one of {', '.join(choices)}" if choices else KINDS[kind]

    def read(text: str):
        with suppress(ValueError):
            value = text if choices else kind(text)
            finite = kind is not float or math.isfinite(value)
            if finite and (not choices or value in choices):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")

    return settings | {"type": read, "choices": choices or None}
