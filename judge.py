"""Let a judge compare the answers of two models; its verdicts are the next reward model's data.

    python judge.py --a runs/zoo-base --b runs/policy                      # the zoo's truth decides
    python judge.py --a DIR --b DIR --judge openai:gpt-4o-mini --data prompts.jsonl
    python judge.py --agreement pairs.jsonl --judge reward-model:runs/rm    # judge the judge

The key of an LLM judge comes from OPENAI_API_KEY; Gemini, vLLM, Ollama, `transformers serve` and
others answer at their --base-url.  `zoo` means training questions (the circle trains on what is
judged here); `--data zoo:held-out` measures.  Left out on purpose: tournaments of many models, Elo.
"""

import random
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from rlhf_min import InputError, command_line
from rlhf_min.command_line import option
from rlhf_min.data import preferences as data
from rlhf_min.data.files import read_json, read_jsonl
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.judging import judges
from rlhf_min.judging.comparisons import (
    Duel,
    Journal,
    comparisons,
    settle,
    summarise,
    write_verdicts,
)
from rlhf_min.judging.human_judge import judge_by_hand
from rlhf_min.models.loading import context_length, load_causal_lm, load_tokenizer
from rlhf_min.models.sampling import answer
from rlhf_min.reporting import report
from rlhf_min.reporting.run_folder import RunLog, check_folder

GIVE_UP = 10  # questions in a row without any reply


@dataclass(frozen=True)
class Config:
    """Let a judge compare the answers of two models, prompt by prompt, in both orders."""

    a: str | None = option(None, "first model: folder or hub id")
    b: str | None = option(None, "second model: folder or hub id; the win rate is that of b")
    judge: str = option("gold", "gold (zoo only), reward-model:DIR, openai:MODEL or human")
    data: list[str] = option(["zoo"], "prompts: zoo, zoo:held-out, files, or hub ids (id:split)")
    agreement: str | None = option(None, "judge the judge: pairs with known winners, no --a, --b")
    limit: int = option(500, "prompts or pairs, drawn by the seed (0: all)")
    out: str = option("runs/judge", "folder of the run")
    seed: int = option(0, "of the prompts, the answers and the order in which they are shown")
    resume: bool = option(False, "go on with the interrupted run in --out, asking nothing twice")
    overwrite: bool = option(False, "replace the run in --out")
    max_new_tokens: int = option(64, "longest answer, in tokens")
    temperature: float = option(1.0, "of the sampling of answers")
    batch_size: int = option(64, "answers sampled at once")
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "what the models compute in")
    base_url: str | None = option(None, "openai: address of a compatible server, http://host/v1")
    concurrency: int = option(4, "openai: questions under way at once")
    timeout: float = option(60.0, "openai: seconds to wait for a reply")
    retries: int = option(5, "openai: further attempts after 429, 5xx, a time-out or a cut line")


def check(config: Config) -> None:
    """Settings that cannot work, each in one sentence."""
    if config.agreement and (config.a or config.b):
        raise InputError("--agreement judges the judge on given pairs: leave --a and --b out")
    if not config.agreement and not (config.a and config.b):
        raise InputError("two models are needed: give --a and --b (or --agreement FILE)")
    if config.resume and config.overwrite:
        raise InputError("--resume goes on with a run, --overwrite replaces it: give one of them")
    lowest = {"limit": 0, "max_new_tokens": 1, "batch_size": 1, "concurrency": 1, "retries": 0}
    for name, least in lowest.items():
        if getattr(config, name) < least:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} must be at least {least}, got {getattr(config, name)}")
    for name in ("temperature", "timeout"):
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"--{name} must be above 0, got {getattr(config, name)}")
    # a run may go on with more patience or more hands than it began with
    before = read_json(Path(config.out) / "run.json").get("config", {})
    patience = {k: before[k] for k in ("concurrency", "timeout", "retries") if k in before}
    check_folder(config.out, replace(config, **patience), config.resume, config.overwrite)


def drawn(config: Config, items: list) -> list:
    return random.Random(config.seed).sample(items, min(len(items), config.limit or len(items)))


def sampled_duels(config: Config) -> list[Duel]:
    """One answer of each model to every prompt."""
    prompts = drawn(config, data.read_prompts(config.data))
    if config.judge == "gold":
        for prompt in prompts:  # before anything is computed: does the zoo know the question?
            judges.gold(prompt, "", "")
    models = {}
    for side, path in (("a", config.a), ("b", config.b)):
        tokenizer = load_tokenizer(path)
        models[side] = load_causal_lm(path, choose_dtype(config.dtype)), tokenizer
        context = context_length(models[side][0])
        if config.max_new_tokens >= context:
            raise InputError(
                f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt in the "
                f"context of {path} ({context} tokens): give less"
            )
    texts, finished = {}, {}
    for number, side in enumerate(models):
        print(f"sampling {len(prompts)} answers of {side}: {getattr(config, side)}", flush=True)
        seed = 2 * config.seed + number  # the same model twice must not give the same answers
        how = config.max_new_tokens, config.temperature, seed, config.batch_size
        texts[side], finished[side] = answer(*models[side], prompts, *how)
    columns = prompts, texts["a"], texts["b"], first_shown(config, len(prompts))
    return [Duel(*row) for row in zip(*columns, finished["a"], finished["b"], strict=True)]


def known_duels(config: Config) -> list[Duel]:
    """Pairs with known winners as duels: a is the rejected answer, b the chosen one."""
    pairs = drawn(config, data.read_pairs([config.agreement])[0])
    shown = first_shown(config, len(pairs))
    return [Duel(p.prompt, p.rejected, p.chosen, s) for p, s in zip(pairs, shown, strict=True)]


def first_shown(config: Config, n: int) -> list[str]:
    return random.Random(f"shown first {config.seed}").choices("ab", k=n)


def ask(judge: judges.Judge, duels: list[Duel], journal: Journal, workers: int) -> None:
    """Ask every question without a reply, `workers` at once; each verdict is on disk when known."""
    known = {key for key, verdict in journal.known.items() if not verdict.unheard}
    different = [i for i, duel in enumerate(duels) if duel.a != duel.b]
    keys = [(i, order) for i in different for order in (0, 1) if (i, order) not in known]
    if hasattr(judge, "estimate"):
        print(judge.estimate([duels[i].question(order) for i, order in keys]), flush=True)

    def one(key: tuple[int, int]) -> judges.Verdict:
        verdict = judge(*duels[key[0]].question(key[1]))
        journal.add(*key, verdict)
        return verdict

    pool, tokens, silent = ThreadPoolExecutor(workers), 0, 0
    try:
        futures = [pool.submit(one, key) for key in keys]
        for future in (bar := tqdm(as_completed(futures), total=len(keys), desc="judge")):
            verdict = future.result()
            silent = silent + 1 if verdict.unheard else 0
            if silent == GIVE_UP:
                raise InputError(
                    f"the judge gave no reply {GIVE_UP} times in a row, last: "
                    f"{verdict.explanation}: cure that, then go on with --resume"
                )
            tokens += verdict.prompt_tokens + verdict.reply_tokens
            if tokens:
                bar.set_postfix(tokens=f"{tokens:,} of {tokens * len(keys) // (bar.n + 1):,}")
    finally:  # what is under way is waited for and kept; what waits in the queue is not asked
        pool.shutdown(cancel_futures=True)


def write_results(config: Config, log: RunLog, duels: list[Duel], journal: Journal) -> dict:
    """verdicts.csv, comparisons.jsonl, summary.json and the report, of what is known so far."""
    orders = (0,) if config.judge == "human" else (0, 1)
    outcomes = [settle(d, [journal.known.get((i, o)) for o in orders]) for i, d in enumerate(duels)]
    summary = {"judge": config.judge, "a": config.a, "b": config.b}
    summary |= summarise(duels, outcomes, journal, bool(config.agreement), config.seed)
    write_verdicts(log.out / "verdicts.csv", duels, outcomes, config.judge)
    if not config.agreement:  # else they would be the given pairs, relabelled
        rows = comparisons(duels, outcomes, journal)
        log.write_rows("comparisons.jsonl", rows)
        summary["comparisons"] = len(rows)
    log.finish(summary)
    report.write_report(log.out)
    return summary


def show(config: Config, found: dict) -> None:
    share = {k: f"{v:.1%}" if isinstance(v, float) else "none" for k, v in found.items()}
    name = "agreement" if config.agreement else "win_rate"
    print(
        f"{config.out}: {'agreement' if config.agreement else 'win rate of b'} {share[name]} "
        f"[{share[name + '_low']}, {share[name + '_high']}], at equal length "
        f"{share['length_controlled_rate']}; {found['pairs']} pairs, {found['ties']} ties "
        f"({found['identical']} identical), {found['failures']} failures\n"
        f"  the order changes the verdict on {share['position_disagreement']}; "
        f"the first wins {share['first_shown_wins']}, the longer {share['longer_wins']}"
        + (f" (in the data {share['longer_wins_data']})" if config.agreement else "")
    )


def main(config: Config) -> dict:
    """Sample, ask, settle, write; returns the summary."""
    check(config)
    settings = {k: getattr(config, k) for k in ("base_url", "timeout", "retries")}
    judge = judges.build(config.judge, config.dtype, **settings)
    stored, verdicts = Path(config.out) / "duels.jsonl", Path(config.out) / "verdicts.jsonl"
    if config.resume and stored.exists():
        duels = [Duel(**row) for row in read_jsonl(stored)]
    else:
        duels = known_duels(config) if config.agreement else sampled_duels(config)
    about = {"fingerprint": data.fingerprint([asdict(duel) for duel in duels])}
    if config.overwrite:  # first of all: old verdicts must never meet new duels
        verdicts.unlink(missing_ok=True)
    log = RunLog(config.out, "judge.py", config, about, overwrite=config.overwrite)
    log.write_rows(stored.name, [asdict(duel) for duel in duels])
    journal = Journal(verdicts)
    try:
        if judge:
            workers = config.concurrency if config.judge.startswith("openai:") else 1
            ask(judge, duels, journal, workers)
        elif not judge_by_hand(duels, journal):
            print(f"saved in {config.out}: go on with --resume")
            raise KeyboardInterrupt
    finally:
        journal.close()
        summary = write_results(config, log, duels, journal)
    show(config, summary)
    return summary


if __name__ == "__main__":
    command_line.run(main, Config)
