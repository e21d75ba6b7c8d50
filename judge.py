"""Let a judge compare the answers of two models; its verdicts train the next reward model.

    python judge.py --a runs/zoo-base --b runs/policy         # the zoo's gold ratings decide
    python judge.py --a DIR --b DIR --judge openai:gpt-4o-mini --data prompts.jsonl
    python judge.py --agreement pairs.jsonl --judge reward-model:runs/rm   # test the judge itself

An openai judge takes its key from OPENAI_API_KEY; Gemini, vLLM, Ollama, `transformers serve` and
others answer at their --base-url.  `--data zoo` means training questions, for more training data;
to measure a model, use `--data zoo:held-out`.
Left out on purpose: tournaments of many models, Elo ratings.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import dataclass
from typing import Literal

from rlhf_min.command_line import check_flags, check_ranges, option, run


@dataclass(frozen=True)
class Config:
    """Settings of judge.py."""

    a: str | None = option(None, "first model: folder or hub id", heading="Models and data")
    b: str | None = option(None, "second model: folder or hub id; the win rate is that of b")
    data: list[str] = option(["zoo"], "prompts: zoo, zoo:held-out, files, or hub ids (id:split)")
    limit: int = option(500, "prompts or pairs, drawn by the seed (0: all)", at_least=0)
    skip_bad_rows: bool = option(False, "drop and count rows that cannot be used")
    agreement: str | None = option(None, "test the judge: pairs with known winners, no --a, --b")
    judge: str = option(
        "gold", "gold (zoo only), reward-model:DIR, openai:MODEL or human", heading="Judge"
    )
    base_url: str | None = option(None, "openai: address of a compatible server, http://host/v1")
    concurrency: int = option(4, "openai: concurrent requests", at_least=1)
    timeout: float = option(60.0, "openai: seconds to wait for a reply", above=0)
    retries: int = option(5, "openai: more attempts after 429, 5xx or a lost reply", at_least=0)
    max_new_tokens: int = option(64, "longest answer, in tokens", heading="Sampling", at_least=1)
    temperature: float = option(1.0, "of the sampling distribution", at_least=0.01)
    batch_size: int = option(64, "answers sampled at once", at_least=1)
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "of the models")
    out: str = option("runs/judge", "folder of the run", heading="Run")
    seed: int = option(0, "of the prompts, the answers and the order they are shown in", at_least=0)
    resume: bool = option(False, "continue the interrupted run in --out, asking nothing twice")
    overwrite: bool = option(False, "replace the run in --out")


if __name__ == "__main__":
    check_flags(Config)  # --help and wrong flags are answered before the slow imports below

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tqdm import tqdm

from rlhf_min import InputError
from rlhf_min.data.bad_rows import report_dropped
from rlhf_min.data.files import read_json
from rlhf_min.data.labelled import read_labelled
from rlhf_min.data.preferences import fingerprint, read_prompts
from rlhf_min.hardware import ranks
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.judging.comparisons import (
    Comparison,
    Outcome,
    Verdict,
    VerdictLog,
    labelled_comparisons,
    read_comparisons,
    settle,
    write_verdicts,
)
from rlhf_min.judging.judges import Judge, gold, judge_by_hand, reward_model_judge
from rlhf_min.judging.llm_judge import OpenAIJudge
from rlhf_min.judging.summary import describe, summarise, training_pairs
from rlhf_min.models.answers import sample_texts
from rlhf_min.models.layout import context_length
from rlhf_min.models.loading import load_causal_lm, load_tokenizer
from rlhf_min.reporting import folder_files
from rlhf_min.reporting.run_folder import RunLog, check_folder, check_not_replaced

GIVE_UP = 10  # questions in a row without a reply that stop the run
SCORING = ("gold", "reward-model")  # judges that score each answer by itself


def check(config: Config) -> None:
    """Raise InputError for settings that cannot work together."""
    if config.agreement and (config.a or config.b):
        raise InputError("--agreement judges the judge on given pairs: leave --a and --b out")
    if not config.agreement and not (config.a and config.b):
        raise InputError("two models are needed: give --a and --b (or --agreement FILE)")
    check_ranges(config)
    judge = config.judge.partition(":")[2]  # a folder if it is a reward model
    check_not_replaced(config.out, [("--a", config.a), ("--b", config.b), ("--judge", judge)])
    check_folder(config, may_differ=("concurrency", "timeout", "retries"))


def choose_judge(config: Config) -> Callable[[list[Comparison], VerdictLog], None]:
    """The function that adds the verdicts of --judge to the log.  Raises InputError."""
    kind, _, model = config.judge.partition(":")
    if config.judge in ("human", "gold"):
        return judge_by_hand if config.judge == "human" else partial(ask, gold)
    if kind == "reward-model" and model:
        return partial(ask, reward_model_judge(model, choose_dtype(config.dtype)))
    if kind == "openai" and model:
        judge = OpenAIJudge(model, config.base_url, config.timeout, config.retries)
        return partial(ask, judge, workers=config.concurrency)
    raise InputError(
        f"--judge {config.judge} is unknown: use gold, reward-model:DIR, openai:MODEL or human"
    )


def make_comparisons(config: Config) -> tuple[list[Comparison], dict]:
    """Answers to compare (with --agreement a is the rejected one); and counts of dropped rows."""
    if config.agreement:
        items, dropped = read_labelled(config.agreement, config.skip_bad_rows)
    else:
        items, dropped = read_prompts(config.data, config.skip_bad_rows)
    report_dropped(dropped, len(items), "pairs" if config.agreement else "prompts")
    items = random.Random(config.seed).sample(items, min(len(items), config.limit or len(items)))
    if config.judge == "gold":
        for item in items:  # raises InputError, before any work, unless the zoo can rate all
            gold(item.prompt if config.agreement else item, "", "")
    first = random.Random(f"shown first {config.seed}").choices("ab", k=len(items))
    if config.agreement:
        comparisons = labelled_comparisons(items, first)
        if isinstance(comparisons[0].a, list) and config.judge.partition(":")[0] not in SCORING:
            raise InputError(
                f"--judge {config.judge} compares two answers, and {config.agreement} has lists "
                "of answers: use gold or reward-model:DIR, which score each answer"
            )
        return comparisons, dropped
    (a, a_finished), (b, b_finished) = sample_answers(config, items)
    columns = zip(items, a, b, first, a_finished, b_finished, strict=True)
    return [Comparison(*values) for values in columns], dropped


def sample_answers(config: Config, prompts: list) -> list[tuple[list[str], list[bool]]]:
    """For each model one answer to every prompt: texts [P], and whether each one ended [P]."""
    models, sampled = [], []
    for path in (config.a, config.b):
        tokenizer = load_tokenizer(path)
        model = load_causal_lm(path, choose_dtype(config.dtype))
        if config.max_new_tokens >= context_length(model):
            raise InputError(
                f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt in the "
                f"context of {path} ({context_length(model)} tokens): give less"
            )
        models.append((model, tokenizer))
    for i, side in enumerate("ab"):
        print(f"sampling {len(prompts)} answers of {side}: {getattr(config, side)}", flush=True)
        seed = 2 * config.seed + i  # differs by side: --a and --b may be the same model
        settings = config.max_new_tokens, config.temperature, seed, config.batch_size
        sampled.append(sample_texts(*models[i], prompts, *settings))
    return sampled


def ask(judge: Judge, comparisons: list[Comparison], log: VerdictLog, workers: int = 1) -> None:
    """Ask about every comparison in both orders; each verdict is logged as soon as it is known.

    A question that has a reply is not asked again.  Raises InputError when the judge never replies.
    """
    keys = [(i, order) for i, c in enumerate(comparisons) if c.a != c.b for order in c.orders]
    keys = [key for key in keys if key not in log.verdicts or log.verdicts[key].no_reply]
    if isinstance(judge, OpenAIJudge):
        print(judge.estimate([comparisons[i].question(order) for i, order in keys]), flush=True)

    def ask_one(i: int, order: int):
        verdict = judge(*comparisons[i].question(order))
        log.add(i, order, verdict)
        return verdict

    pool, tokens, without_reply = ThreadPoolExecutor(workers), 0, 0
    try:
        futures = [pool.submit(ask_one, *key) for key in keys]
        for future in (bar := tqdm(as_completed(futures), total=len(keys), desc="judge")):
            verdict = future.result()
            without_reply = without_reply + 1 if verdict.no_reply else 0
            if without_reply == GIVE_UP:
                raise InputError(
                    f"the judge gave no reply {GIVE_UP} times in a row, last: "
                    f"{verdict.explanation}: cure that, then go on with --resume"
                )
            tokens += verdict.prompt_tokens + verdict.reply_tokens
            if tokens:
                bar.set_postfix(tokens=f"{tokens:,} of {tokens * len(keys) // (bar.n + 1):,}")
    finally:  # questions under way end and are logged; those in the queue are not asked
        pool.shutdown(cancel_futures=True)


def write_results(config: Config, log: RunLog, outcomes: list[Outcome]) -> dict:
    """Write verdicts.csv, comparisons.jsonl, summary.json and the report; returns the summary."""
    summary = {"judge": config.judge, "a": config.a, "b": config.b}
    summary |= summarise(outcomes, bool(config.agreement), config.seed)
    write_verdicts(log.out / "verdicts.csv", outcomes, config.judge)
    if not config.agreement:  # its pairs have their winners already
        pairs = training_pairs(outcomes)
        log.write_rows("comparisons.jsonl", pairs)
        summary["comparisons"] = len(pairs)
    log.finish(summary)
    return summary


@ranks.first_only
@folder_files.exclusive
def main(config: Config) -> dict:
    """Sample answers, ask the judge in both orders, settle, write; returns the summary."""
    check(config)
    judge_all = choose_judge(config)  # before sampling, so that a wrong name costs no time
    answers_path, verdicts_path = (Path(config.out, f"{n}.jsonl") for n in ("answers", "verdicts"))
    if config.resume and answers_path.exists():
        comparisons = read_comparisons(answers_path)
        dropped = read_json(Path(config.out) / "run.json").get("data", {}).get("dropped")
    else:
        comparisons, dropped = make_comparisons(config)
    rows = [asdict(comparison) for comparison in comparisons]
    if config.resume:
        VerdictLog(verdicts_path)  # refuses broken verdicts before anything is written
    run_log = RunLog("judge.py", config, {"fingerprint": fingerprint(rows), "dropped": dropped})
    run_log.write_rows(answers_path.name, rows)
    log = VerdictLog(verdicts_path)
    try:
        judge_all(comparisons, log)
    finally:  # an interrupted run has results too
        waiting, count = Verdict("waiting"), 1 if config.judge == "human" else 2
        outcomes = [
            settle(c, [log.verdicts.get((i, n), waiting) for n in c.orders[:count]])
            for i, c in enumerate(comparisons)
        ]
        summary = write_results(config, run_log, outcomes)
    print(f"{config.out}: {describe(summary, outcomes)}")
    return summary


if __name__ == "__main__":
    run(main, Config)
