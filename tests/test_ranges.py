"""Every numeric flag of every script: out of its range it is one sentence, and nothing happens."""

import dataclasses
import math
import typing

import pytest

import judge
import train_policy
import train_rm
from rlhf_min import InputError
from rlhf_min.command_line import check_ranges, flag_of, run

SCRIPTS = (train_rm, train_policy, judge)
NEGATIVE = {  # flags for which -1 is a correct value
    "--max-steps": "by --epochs",
    "--answer-entropy": "rewards narrow distributions",
    "--rating-range": "a data set may rate from -1 to 1",
}
JUDGE = ["--a", "x", "--b", "y"]  # the two flags that judge.py requires


def numeric_flags(script) -> list[tuple[str, type]]:
    """The flags of a script that take numbers, and whether these are int or float."""
    flags, hints = [], typing.get_type_hints(script.Config)
    for field in dataclasses.fields(script.Config):
        kinds = {hints[field.name], *typing.get_args(hints[field.name])}
        flags += [(flag_of(field.name), kind) for kind in (int, float) if kind in kinds]
    return flags


CASES = [
    (script, flag, value)
    for script in SCRIPTS
    for flag, kind in numeric_flags(script)
    for value in ("nan", "inf", "-inf", "1e308", "-1", "9" * 30, "-" + "9" * 30)
    if not (value in ("-1", "-inf") and flag in NEGATIVE)
]


def test_the_walk_meets_the_flags_of_all_three_scripts():
    flags = {(script.__name__, flag) for script, flag, _ in CASES}
    assert {("train_rm", "--rating-range"), ("judge", "--timeout")} <= flags
    assert {("train_policy", "--clip"), ("train_policy", "--batch-size")} <= flags


@pytest.mark.parametrize(
    ("script", "flag", "value"), CASES, ids=[f"{s.__name__} {f} {v}" for s, f, v in CASES]
)
def test_a_number_out_of_range_is_one_sentence(tmp_path, monkeypatch, capsys, script, flag, value):
    monkeypatch.chdir(tmp_path)
    words = [flag, value, "5"] if flag == "--rating-range" else [f"{flag}={value}"]
    line = [*(JUDGE if script is judge else []), *words]
    with pytest.raises(SystemExit) as stop:
        run(script.main, script.Config, line)
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert flag in errors and (value in errors or f"{float(value)}" in errors)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_a_program_s_own_settings_are_checked_too(script, value):
    """Settings that no command line has read."""
    for flag, kind in numeric_flags(script):
        name = flag[2:].replace("-", "_")
        if kind is float:
            wrong = [value, 5.0] if name == "rating_range" else value
            with pytest.raises(InputError, match=f"^{flag} must be"):
                check_ranges(script.Config(**{name: wrong}))


@pytest.mark.parametrize(
    ("script", "line", "limit"),
    [
        (train_policy, "--max-grad-norm 0", "above 0"),  # neither "off" nor "train nothing"
        (train_rm, "--max-grad-norm 0", "above 0"),
        (train_policy, "--clip 0", "above 0"),
        (train_policy, "--clip 1.5", "at most 1"),
        (train_rm, "--eval-fraction 0", "above 0"),
        (train_rm, "--eval-fraction 1", "below 1"),
        (train_policy, "--ema-decay 1", "below 1"),
        (train_policy, "--lr 2", "at most 1"),
        (train_policy, "--temperature 1e-30", "at least 0.01"),
        (judge, "--temperature 1e-30", "at least 0.01"),
        (train_rm, "--label-width 1e-30", "at least 0.01"),
    ],
)
def test_limits_other_than_zero(tmp_path, monkeypatch, capsys, script, line, limit):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(script.main, script.Config, [*(JUDGE if script is judge else []), *line.split()])
    flag = line.split()[0]
    assert f"error: {flag} must be {limit}, got " in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["out\x1b[31m", "a\nb", "\udcff", "\u202e"])
def test_a_name_that_cannot_be_printed_is_refused(tmp_path, monkeypatch, capsys, script, name):
    """Names of files and folders end up in messages; the terminal must not obey them."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(script.main, script.Config, [*(JUDGE if script is judge else []), "--out", name])
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1
    assert errors.startswith(f"error: --out holds characters that cannot be printed: {name!r}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_defaults_and_the_negative_values_that_mean_something_pass(script):
    check_ranges(script.Config())
    for flag, kind in numeric_flags(script):
        if flag in NEGATIVE:
            value = [-1.0, 1.0] if flag == "--rating-range" else kind(-1)
            check_ranges(script.Config(**{flag[2:].replace("-", "_"): value}))


BOUNDS = {  # written by hand from the meaning of each flag; {}: no limit of its own
    train_policy: {
        "ensemble_weight": {"at_least": 0},
        "function_weight": {"at_least": 0},
        "updates": {"at_least": 1},
        "clip": {"above": 0, "at_most": 1},
        "ema_decay": {"at_least": 0, "below": 1},
        "kl": {"at_least": 0},
        "missing_end_penalty": {"at_least": 0},
        "entropic_b": {"at_least": 0.01},
        "samples": {"at_least": 1, "at_most": 1_000_000},
        "batch_size": {"at_least": 1, "at_most": 1_000_000},
        "max_new_tokens": {"at_least": 1, "at_most": 1_000_000},
        "temperature": {"at_least": 0.01},
        "steps": {"at_least": 1},
        "lr": {"above": 0, "at_most": 1},
        "lora_rank": {"at_least": 0, "at_most": 4096},
        "lora_alpha": {"above": 0},
        "warm_up": {"at_least": 0},
        "max_grad_norm": {"above": 0},
        "micro_batch": {"at_least": 1},
        "seed": {"at_least": 0},
        "eval_prompts": {"at_least": 1},
        "eval_every": {"at_least": 0},
        "ruler_prompts": {"at_least": 2},
        "save_every": {"at_least": 1},
    },
    train_rm: {
        "eval_fraction": {"above": 0, "below": 1},
        "eval_limit": {"at_least": 1},
        "limit": {"at_least": 0},
        "rating_range": {},
        "max_length": {"at_least": 2},
        "head_std": {"at_least": 0},
        "margin": {"at_least": 0},
        "centring": {"at_least": 0},
        "batch_sum": {"at_least": 0},
        "soft_labels": {"at_least": 0},
        "label_width": {"at_least": 0.01},
        "earth_mover": {"at_least": 0},
        "answer_entropy": {},
        "marginal_entropy": {"at_least": 0},
        "roughness": {"at_least": 0},
        "epochs": {"above": 0},
        "max_steps": {"at_least": -1},
        "batch_size": {"at_least": 1},
        "micro_batch": {"at_least": 1},
        "lr": {"above": 0, "at_most": 1},
        "lora_rank": {"at_least": 0, "at_most": 4096},
        "lora_alpha": {"above": 0},
        "warm_up": {"at_least": 0},
        "weight_decay": {"at_least": 0, "at_most": 1},
        "adam_beta2": {"at_least": 0, "below": 1},
        "max_grad_norm": {"above": 0},
        "seed": {"at_least": 0},
        "eval_every": {"at_least": 1},
        "save_every": {"at_least": 1},
    },
}


@pytest.mark.parametrize("script", BOUNDS)
def test_each_bound_is_where_the_table_says(script):
    """At the bound and just beside it, both ways; each number without a bound ends at a billion."""
    kinds = {flag[2:].replace("-", "_"): kind for flag, kind in numeric_flags(script)}
    assert kinds.keys() == BOUNDS[script].keys()
    for name, bounds in BOUNDS[script].items():
        lowest = {} if bounds.keys() & {"at_least", "above"} else {"at_least": -(10**9)}
        highest = {} if bounds.keys() & {"at_most", "below"} else {"at_most": 10**9}
        limits = bounds | lowest | highest
        for bound, limit in limits.items():
            step = -1 if bound in ("at_least", "above") else 1
            beside = limit + step, limit - step  # outside, inside
            if kinds[name] is float:
                beside = math.nextafter(limit, step * math.inf), math.nextafter(limit, beside[1])
            wrong, right = [beside[0]], [beside[1]]
            (right if bound.startswith("at") else wrong).append(limit)
            for value in right + wrong:
                config = script.Config(**{name: [value] if name == "rating_range" else value})
                if value in right:
                    check_ranges(config)
                    continue
                message = f"^{flag_of(name)} must be {bound.replace('_', ' ')} {limit}, got "
                with pytest.raises(InputError, match=message):
                    check_ranges(config)
