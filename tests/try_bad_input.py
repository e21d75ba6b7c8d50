"""Try bad flags, data, models, run folders and judges' replies on the three scripts.

python tests/try_bad_input.py 2000                      # cases in all, the same number of each kind
python tests/try_bad_input.py 500 --kind models --seed 7

Every case must end with exit code 0, or with 2 and one sentence that names the cause, and a run
that cannot start must change no file.  A failure is shown as the smallest case that hypothesis
finds; the same seed finds it again.
"""

import argparse
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import typing
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import datasets
import huggingface_hub
import pytest
import torch
from fault_server import Fault, serving, verdict
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_damaged_data import VALUES, damaged_file
from test_reward_model import trained_folder
from test_run_folder_and_resume import interrupt_at
from tiny_models import tiny_folder, tiny_pairs, write_rows

import judge
import train_policy
import train_rm
from rlhf_min import command_line
from rlhf_min.data.visible import visible
from rlhf_min.reporting import report

SHARED = {"data": "good.jsonl", "eval-data": "held.jsonl", "save-every": 1, "out": "out"}
FLAGS = {  # correct and small: everything wrong comes from a case
    "train_rm": {**SHARED, "model": "base", "max-steps": 3, "batch-size": 2},
    "train_policy": {
        **SHARED, "model": "base", "reward-model": "rm", "steps": 3, "batch-size": 4, "samples": 2,
        "max-new-tokens": 4, "eval-prompts": 2, "ruler-prompts": 2,
    },
    "agreement": {"agreement": "good.jsonl", "judge": "reward-model:rm", "out": "out"},
    "judge": {
        "a": "base", "b": "base", "data": "good.jsonl", "judge": "reward-model:rm",
        "max-new-tokens": 4, "limit": 3, "out": "out",
    },
}  # fmt: skip
ODD = ["", " ", "\0", "\x1b[31mred", "\u202e", "\udcff", "🦓", "-", "--", "a\nb", "../..", "/", "~"]
ODD += ["x" * 5000, "=1+1", "$(id)", "nan", "٣", "zoo:nowhere", "a:b:c", "None", "{}", "%s%n"]
TEXT = st.sampled_from(ODD) | st.text(max_size=20)
NUMBER = [
    "",
    " ",
    "nan",
    "-inf",
    "1e400",
    "9" * 5000,
    "0x10",
    "1,5",
    "one",
    "1e",
    "\0",
    "--",
    "1 2",
]
JSON_VALUES = [1, 2, 3, 7, -7, 10**6, 1e-9, 0.5, ["x"] * 3, *VALUES]
MODEL_TYPES = ["t5", "bert", "mamba", "vit", "whisper", "gpt2", "bloom", "qwen2_vl", "x", ""]
TEMPLATES = ["{{", "{% for %}", "{{ 1 / 0 }}", "{{ messages.x.y }}", "{{ raise_exception('no') }}"]
TEMPLATES += ["{% for i in range(10**9) %}x{% endfor %}", "", "x", "{{ messages }}", "{{ ''.x }}"]
TEMPLATES += ["{{ messages[5].content }}", "\x1b[31m", "{{ 'x' * 10**12 }}", "{{ [1] + 'x' }}"]
ROLES = {  # of a damaged model: flags, the healthy folder
    "train_rm": ({"model": "hostile"}, "base"),
    "train_policy": ({"model": "hostile"}, "base"),
    "train_policy reward": ({"reward-model": "hostile"}, "rm"),
    "train_policy reference": ({"reference": "hostile"}, "base"),
    "agreement": ({"judge": "reward-model:hostile"}, "rm"),
    "judge": ({"a": "hostile"}, "base"),
}


@dataclasses.dataclass
class Case:
    """A command line; its error message must contain one of `names`."""

    script: str  # a key of FLAGS
    flags: dict
    names: list[str]
    words: tuple[str, ...] = ()  # further ones
    surely_bad: bool = False
    healthy: Path | None = None  # a finished run: if accepted, this one must give the same weights

    @property
    def main(self):
        """The script's module."""
        return {"train_rm": train_rm, "train_policy": train_policy}.get(self.script, judge)

    @property
    def line(self) -> list[str]:
        """The words of the command line; `words` replace flags of the same name."""
        given = {word.partition("=")[0] for word in self.words}
        flags = {f"--{name}": value for name, value in (FLAGS[self.script] | self.flags).items()}
        return [*(f"{k}={v}" for k, v in flags.items() if k not in given), *self.words]


def mistakes(config_class):
    """A strategy: wrong words for a command line, and whether they must be refused."""
    hints, strategies = typing.get_type_hints(config_class), []
    for field in dataclasses.fields(config_class):
        flag, hint = command_line.flag_of(field.name), hints[field.name]
        kinds = {hint, *typing.get_args(hint)}
        strategies.append(TEXT.map(lambda text, flag=flag: ([f"{flag}x{text}"], True)))
        if hint is bool:
            strategies.append(TEXT.map(lambda text, flag=flag: ([f"{flag}={text}"], True)))
            continue
        strategies.append(st.just(([flag, "--resume"], True)))
        if kinds & {int, float}:
            numbers = st.sampled_from(NUMBER)
            strategies.append(numbers.map(lambda text, flag=flag: ([f"{flag}={text}"], True)))
        elif typing.get_origin(hint) is typing.Literal:
            texts = TEXT.filter(lambda text, kinds=kinds: text not in kinds)
            strategies.append(texts.map(lambda text, flag=flag: ([f"{flag}={text}"], True)))
        else:
            strategies.append(TEXT.map(lambda text, flag=flag: ([f"{flag}={text}"], False)))
            strategies.append(TEXT.map(lambda text, flag=flag: ([flag, text], False)))
        if typing.get_origin(hint) is list:
            strategies.append(st.just(([flag, "1", flag, "2"], True)))
    strategies.append(TEXT.map(lambda text: (["--resume", f"stray{text}"], True)))
    return st.one_of(strategies)


MISTAKES = {script: mistakes(Case(script, {}, []).main.Config) for script in FLAGS}


def flags(draw) -> Case:
    """One to three mistakes in a command line."""
    script = draw(st.sampled_from(list(FLAGS)))
    wrong = draw(st.lists(MISTAKES[script], min_size=1, max_size=3))
    words = [word for some, _ in wrong for word in some]
    names = [piece for word in words for piece in (word, *word.partition("=")[::2])]
    return Case(script, {}, names, tuple(words), any(sure for _, sure in wrong))


def data(draw) -> Case:
    """A damaged data file; in two of three cases the run ends before training in any case."""
    script = draw(st.sampled_from(["train_rm", "train_policy", "agreement", "judge"]))
    name = damaged_file(draw(st.integers(0, 10**9)))
    flag = "data" if script == "judge" else draw(st.sampled_from(["data", "eval-data"]))
    flags = {"agreement" if script == "agreement" else flag: name}
    words = draw(st.sampled_from([(), ("--skip-bad-rows",)]))
    names = [name, "--data", "--eval-data", "held out", "--batch-size", "no-model"]
    if draw(st.integers(0, 2)):
        role = {"agreement": {"out": "file.txt"}, "judge": {"a": "./no-model"}}
        flags |= role.get(script, {"model": "./no-model"})
    return Case(script, flags, [*names, "file.txt"], words)


def damage_bytes(draw, file: Path) -> None:
    """Flip, cut, empty or delete a file, or put a folder in its place."""
    raw = bytearray(file.read_bytes())
    kind = draw(st.sampled_from(["flip", "flip", "cut", "empty", "delete", "folder", "other"]))
    if kind == "flip" and raw:
        for _ in range(draw(st.sampled_from([1, 1, 5]))):
            at = draw(st.integers(0, min(len(raw), draw(st.sampled_from([200, 10**9]))) - 1))
            raw[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del raw[draw(st.integers(0, len(raw))) :]
    elif kind in ("empty", "other"):
        raw = bytearray({"empty": b"", "other": b"\x1b[31m\x00{}"}[kind])
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind != "delete":
        file.write_bytes(raw)


def damaged_value(draw, value):
    """A JSON value with one part of it, found at random, replaced, removed or added."""
    if isinstance(value, (dict, list)) and value and draw(st.integers(0, 4)):
        value = value.copy()
        key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
        if draw(st.integers(0, 5)):
            value[key] = damaged_value(draw, value[key])
        else:
            del value[key]
        return value
    return draw(st.sampled_from(JSON_VALUES))


def damage_json(draw, file: Path, **further) -> None:
    """Change one value somewhere in a JSON file, or one of `further` at its top."""
    content = json.loads(file.read_text())
    name = draw(st.sampled_from([None, None, *further]))
    if name and isinstance(content, dict):
        content[name] = draw(st.sampled_from(further[name]))
    else:
        content = damaged_value(draw, content)
    file.write_text(json.dumps(content))


def damage_weights(draw, file: Path) -> None:
    """Change, remove or add one tensor."""
    weights = load_file(file)
    name = draw(st.sampled_from(sorted(weights)))
    kind = draw(st.sampled_from(["nan", "shape", "dtype", "remove", "rename", "huge"]))
    weight = weights.pop(name)
    if kind == "shape":
        weight = torch.zeros([n + 1 for n in weight.shape])
    elif kind == "dtype":
        weight = weight.to(draw(st.sampled_from([torch.int8, torch.float64, torch.bool])))
    elif kind in ("nan", "huge"):
        weight = weight * (1e30 if kind == "huge" else float("nan"))
    if kind != "remove":
        weights[name + "x" * (kind == "rename")] = weight
    save_file(weights, file, metadata={"format": "pt"})


def models(draw) -> Case:
    """A damaged model folder in one of the places where the scripts take a model."""
    role = draw(st.sampled_from(list(ROLES)))
    flags, healthy = ROLES[role]
    folder = Path(shutil.copytree(healthy, "hostile"))
    for _ in range(draw(st.sampled_from([1, 1, 1, 3]))):
        names = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
        names += ["model.safetensors", "chat_template.jinja"]
        file = folder / draw(st.sampled_from(names))
        how = draw(st.sampled_from(["bytes", "content", "content"]))
        if not file.is_file():
            continue
        if how == "bytes" or not (raw := file.read_bytes()):
            damage_bytes(draw, file)
        elif file.suffix == ".jinja":
            file.write_text(draw(st.sampled_from(TEMPLATES)))
        elif file.suffix == ".safetensors":
            with suppress(Exception):  # it was damaged before
                damage_weights(draw, file)
        else:
            with suppress(ValueError):
                json.loads(raw)
                damage_json(
                    draw, file, model_type=MODEL_TYPES, eos_token_id=[-1, 10**6, [], "x", [None]],
                    pad_token_id=[-1, 10**6, "x"], vocab_size=[1, 10, 10**6], eos_token=["no", 3],
                    auto_map=[{"AutoConfig": "x.Y"}], quantization_config=[{}, {"x": 1}],
                )  # fmt: skip
    names = ["hostile", "context", "step 1:", "before the first step:", "sampling:"]
    return Case(role.split()[0], flags, names)


def damage_checkpoint(draw, file: Path) -> None:
    """Change or remove one entry of a checkpoint, as another version might have written it."""
    state = torch.load(file, weights_only=True)
    name = draw(st.sampled_from(sorted(state)))
    if draw(st.booleans()):
        others = [value for value in (1, "x", None, {}, []) if type(value) is not type(state[name])]
        state[name] = draw(st.sampled_from(others))
    else:
        del state[name]
    torch.save(state, file)


def runs(draw) -> Case:
    """A damaged folder of an interrupted run, to be resumed."""
    script = draw(st.sampled_from(["train_rm", "train_policy", "agreement", "judge"]))
    folder = Path(shutil.copytree(f"begun-{script}", "begun"))
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        files = sorted(f for f in folder.glob("*.*") if f.is_file() and f.suffix[:5] != ".html")
        file = draw(st.sampled_from(files))
        if draw(st.booleans()):
            damage_bytes(draw, file)
        elif file.suffix == ".pt":
            with suppress(Exception):  # it was damaged before
                damage_checkpoint(draw, file)
        elif file.suffix == ".json":
            with suppress(ValueError):
                damage_json(draw, file)
        elif file.suffix == ".jsonl":
            lines = file.read_text(errors="replace").splitlines()
            at = draw(st.integers(0, max(0, len(lines) - 1)))
            with suppress(ValueError, IndexError):
                value = damaged_value(draw, json.loads(lines[at]))
                lines[at : at + draw(st.integers(0, 1))] = [json.dumps(value)]
            file.write_text("\n".join(lines) + "\n")
    healthy = Path(f"whole-{script}") if script.startswith("train") else None
    return Case(script, {"out": "begun"}, ["begun"], ("--resume",), healthy=healthy)


def replies(draw) -> Case:
    """A judge behind a server whose replies are damaged or hostile."""
    good = json.dumps({"choices": [{"message": {"role": "assistant", "content": verdict(1)}}]})
    bodies = []
    for _ in range(draw(st.integers(1, 3))):
        body = draw(st.sampled_from([verdict(1), verdict("tie"), verdict([]), *ODD]) | TEXT)
        if draw(st.booleans()):
            status = draw(st.sampled_from([200, 200, 200, 400, 401, 404, 413, 422, "cut"]))
            value = damaged_value(draw, json.loads(good))
            texts = json.dumps(value), good[: draw(st.integers(0, len(good)))], good
            text = draw(st.sampled_from(texts))
            body = Fault(status, text.encode("utf-8", "replace").decode())
        bodies.append(body)
    SERVER.behave = lambda _, number: bodies[number % len(bodies)]
    flags = {"judge": "openai:m", "base-url": SERVER.url, "retries": 0, "concurrency": 1}
    return Case("agreement", flags, ["server", "gave no reply"])


SERVER = None  # of `replies`, while inputs are prepared
KINDS = {kind.__name__: kind for kind in (flags, data, models, runs, replies)}


def contents(place: Path) -> dict:
    """The bytes of every file below a folder."""
    return {str(f): f.read_bytes() if f.is_file() else None for f in sorted(place.rglob("*"))}


def run_line(case: Case) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, in this process; a traceback is code 1."""
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    stderr = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)

    def too_slow(*_):
        raise TimeoutError(f"{case} took more than a minute")

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(60)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = command_line.run(case.main.main, case.main.Config, case.line)
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, *(stream.buffer.getvalue().decode() for stream in (stdout, stderr))


def forms(name: str) -> set[str]:
    """How a message may show a name: as it is, quoted, or its beginning."""
    name = " ".join(name.splitlines())
    shown = visible(name), repr(name), repr(name)[1:-1], visible(name.replace("_", "-"))
    return {form[:40] for form in shown if form.strip()}


def outcome(case: Case, place: Path) -> str:
    """Run a case; "accepted" or "refused".  Raises AssertionError where a promise is broken."""
    before = contents(place)
    code, out, err = run_line(case)
    for text in (out, err):
        assert visible(text.replace("\r", "")) == text.replace("\r", ""), f"raw: {text!r}"
    lines = err.replace("\r", "\n").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 0:
        assert not errors and not case.surely_bad, f"accepted: {out}{err}"
        if case.healthy:
            ours, whole = (f / "model.safetensors" for f in (Path(case.flags["out"]), case.healthy))
            assert ours.read_bytes() == whole.read_bytes(), f"other weights: {out}{err}"
        return "accepted"
    assert code == 2, f"exit code {code}: {err}"
    assert errors and errors == lines[-1:] and err.endswith("\n"), f"not one last line: {err}"
    assert len(errors[0]) < 600, f"long: {errors[0]}"
    assert any(form in errors[0] for name in case.names for form in forms(name)), (
        f"names none of {case.names}: {errors[0]}"
    )
    after = contents(place)
    for name in before if "--resume" in case.words else ():
        # run.json says anew when, metrics are the checkpoint's, the previous one replaces a damaged
        if Path(name).parent.name == "begun" and name.endswith((".json", ".jsonl", ".pt")):
            after[name] = before[name]
    started = any(line.startswith(("reward model:", "policy:", "judge:")) for line in lines)
    assert started or after == before, f"changed {after.keys() ^ before.keys() or 'bytes'}: {err}"
    return "refused"


def make_inputs() -> None:
    """Correct models and data, finished runs and interrupted ones, in the current folder."""
    base = tiny_folder(Path("base"), "smol")
    trained_folder(base, Path("rm"), "scalar")
    write_rows(Path("good.jsonl"), tiny_pairs(6))
    write_rows(Path("held.jsonl"), tiny_pairs(3, "frog"))
    Path("file.txt").write_text("x")
    for script in FLAGS:
        whole, begun = f"whole-{script}", f"begun-{script}"
        code, _, errors = run_line(Case(script, {"out": whole}, []))
        assert code == 0, errors
        if script.startswith("train"):
            with pytest.MonkeyPatch.context() as patch:
                interrupt_at(patch, 2)
                code, _, errors = run_line(Case(script, {"out": begun}, []))
            assert code == 130, errors
        else:
            shutil.copytree(whole, begun)
            verdicts = Path(begun, "verdicts.jsonl").read_text().splitlines(keepends=True)
            Path(begun, "verdicts.jsonl").write_text("".join(verdicts[:3]))
            Path(begun, "summary.json").unlink()
        shutil.copytree(begun, "begun")  # a folder without damage goes on
        code, _, errors = run_line(Case(script, {"out": "begun"}, [], ("--resume",)))
        assert code == 0, errors
        shutil.rmtree("begun")


@contextmanager
def prepared():
    """Context manager: a folder of inputs; no network, no report pages, which are slow."""
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as scratch,
        pytest.MonkeyPatch.context() as patch,
        serving(None) as server,
    ):
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(report, "write_report", lambda out: None)
        patch.setenv("OPENAI_API_KEY", "key")
        patch.setattr(sys.modules[__name__], "SERVER", server)
        place = Path(scratch, "inputs")
        place.mkdir()
        try:
            os.chdir(place)
            make_inputs()
            yield place
        finally:
            os.chdir(here)


def described(error: BaseException) -> str:
    """What failed, the innermost calls, and the draws of the smallest case that fails so."""
    calls = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"  {call.filename}:{call.lineno} {call.name}" for call in calls]
    lines = [f"{type(error).__name__}: {error}", *places, *getattr(error, "__notes__", [])]
    return "\n".join(line[:500] for line in lines)


def try_kind(kind: str, count: int, number: int, inputs: Path) -> tuple[Counter, str]:
    """Try `count` cases of a kind; how many had which outcome, and the smallest failure if any."""
    outcomes = Counter()

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.data())
    def try_one(drawn):
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(shutil.copytree(inputs, f"{scratch}/one/two/place"))
            os.chdir(place)
            try:
                outcomes[outcome(KINDS[kind](drawn.draw), place)] += 1
            finally:
                os.chdir(inputs)

    try:
        try_one()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a group of several different ones; a panic of Rust code
        return outcomes, "\n".join(map(described, getattr(error, "exceptions", [error])))
    return outcomes, ""


def try_all(count: int, kinds: list[str], number: int = 0) -> tuple[dict, list[str]]:
    """Try `count` cases, in batches of 100 with seeds from `number` on; prints a table.

    Returns the outcomes of each kind, and failures.  A batch ends at its first failure, with
    smaller cases instead of further ones.
    """
    outcomes, failures = {kind: Counter() for kind in kinds}, []
    print(f"{'kind':<10}{'tried':>7}{'refused':>9}{'accepted':>10}{'failures':>10}{'seconds':>9}")
    with prepared() as inputs:
        for kind in kinds:
            begin, total, left = time.perf_counter(), outcomes[kind], -(-count // len(kinds))
            for step, start in enumerate(range(0, left, 100)):
                some, failure = try_kind(kind, min(100, left - start), number + step, inputs)
                total.update(some)
                if failure:
                    total["failures"] += 1
                    failures.append(f"--kind {kind} --seed {number + step}:\n{failure}")
            seconds = time.perf_counter() - begin
            counts = "".join(f"{total[name]:>10}" for name in ("accepted", "failures"))
            print(f"{kind:<10}{total.total():>7}{total['refused']:>9}{counts}{seconds:>9.0f}")
    return outcomes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int, help="cases in all")
    parser.add_argument("--kind", choices=KINDS, help="this kind only")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch of 100")
    given = parser.parse_args()
    torch.set_num_threads(1)  # tiny models are slower with more
    _, failures = try_all(given.count, [given.kind] if given.kind else list(KINDS), given.seed)
    if failures:
        raise SystemExit("\n\n".join(failures))


if __name__ == "__main__":
    main()
