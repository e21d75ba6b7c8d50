"""Study: should the weights of a new reward head begin at 0, or be drawn at random?

    RLHF_MIN_REAL=FOLDER python -m experiments.reward_head     # 5 tasks, 3 values, 3 to 5 seeds

transformers and TRL draw them with std 0.02; Stiennon et al. (2020, appendix B) with 1/√(d + 1),
which is 0.09 to 0.1 for the models here.  FOLDER: as in experiments/ratings_real.py.
"""

from pathlib import Path

from experiments import lab, ratings_real, real_pairs, zoo_runs
from experiments.claims import HEADER, claim_row, paired, plain, values
from experiments.ratings import rounded

STDS = (0.0, 0.02, 0.1)
HH = {"max_length": 256, "lr": 1e-4, "batch_size": 4, "micro_batch": 2, "save_every": 10**6}
TASKS = {  # name → (seeds, settings of train_rm.py)
    "zoo, scalar": (5, {}),
    "zoo, ratings": (5, {"head": "ratings"}),
    "hh_helpful, scalar": (5, HH),
    "hh_helpful, scalar, lr 1e-5": (3, HH | {"lr": 1e-5}),
    "ultrafeedback, scalar": (3, ratings_real.TRAIN),
}
CLAIMS = {"accuracy": "accuracy", "loss": "loss", "gold": "gold of a policy"}
COLUMNS = {"accuracy": 3, "loss": 3, "calibration_error": 3, "gold": 2}


def settings(quick: bool) -> list[dict]:
    """Every task with every std for every seed (quick: tiny runs in the zoo)."""
    return settings_of("head_std", STDS, quick)


def settings_of(name: str, tried: tuple, quick: bool) -> list[dict]:
    """Every task with each of the `tried` values of a setting of train_rm.py, for every seed."""
    small = {"limit": 64, "max_steps": 2} if quick else {}
    tasks = {task: own for task, own in TASKS.items() if not quick or task == "zoo, scalar"}
    return [
        {"seed": seed, "task": task, "train": train | small | {name: value}, "quick": quick}
        for task, (seeds, train) in tasks.items()
        for seed in range(1 if quick else seeds)
        for value in tried
    ]


def run(settings: dict) -> dict:
    """Held-out accuracy, loss and calibration; for the zoo's scalar head a policy's gold too."""
    seed, task, quick = settings["seed"], settings["task"], settings["quick"]
    train = settings["train"] | {"seed": seed}
    if task.startswith("zoo"):
        start = zoo_runs.start_model(seed, **({"steps": 2, "examples": 64} if quick else {}))
    else:
        real = ratings_real.folder()
        start = real / "models/tinystories-chat-3m"
        if task.startswith("hh"):
            data = real_pairs.fitting_pairs(0, real)
            train |= {"data": [f"{data}/train.jsonl"], "eval_data": [f"{data}/test.jsonl"]}
        else:
            files = [f"{real}/data/ultrafeedback/{n}.jsonl.gz" for n in ratings_real.FILES]
            train |= {"data": files}
    reward = zoo_runs.reward_model(start, **train)
    summary = zoo_runs.summary(reward)
    result = {name: summary[name] for name in COLUMNS if name != "gold"}
    result |= {"train": summary["pairs/train"], "held_out": summary["pairs/held_out"]}
    if task == "zoo, scalar":
        own = {"steps": 2, "eval_prompts": 8, "ruler_prompts": 8} if quick else {}
        policy = zoo_runs.policy(start, reward, seed=seed, **own)
        result["gold"] = zoo_runs.summary(policy)["after"]["reward/gold"]
    return rounded(result)


def report(rows: list[dict], out: Path) -> str:
    """The section of the study: one line per task and std, and claims."""
    return report_of(rows, "head_std", "std", 0.0)


def by_task(rows: list[dict], name: str) -> dict[tuple[str, float], dict[int, dict]]:
    """Results by (task, value of the setting) and seed."""
    found: dict[tuple[str, float], dict[int, dict]] = {}
    for row in rows:
        one = row["settings"]
        found.setdefault((one["task"], one["train"][name]), {})[one["seed"]] = row["result"]
    return found


def report_of(rows: list[dict], name: str, label: str, base: float) -> str:
    """One line per task and value of a setting, and claims: is a value better than `base`?

    label: the setting's name in the tables.
    """
    found = by_task(rows, name)
    lines = []
    for (task, value), own in found.items():
        cells = [plain(values(own, measure), digits) for measure, digits in COLUMNS.items()]
        counts = sorted({f"{one['train']}, {one['held_out']}" for one in own.values()})
        lines.append([task, "; ".join(counts), f"{value:g}", str(len(own)), *cells])
    header = ["data, head", "pairs: training, held-out", label, "seeds", "accuracy", "loss"]
    header += ["calibration error", "gold of a policy"]
    verdicts = []
    for task, value in found:
        usual = found.get((task, base), {})
        for measure, what in CLAIMS.items():
            gain = paired(found[task, value], usual, measure)
            if value != base and gain:
                claim = f"{task}: {label} {value:g} is better than {base:g} in {what}"
                order = f"{value:g} minus {base:g}"
                if measure == "loss":  # smaller is better
                    gain, order = [-one for one in gain], f"{base:g} minus {value:g}"
                verdicts.append(claim_row(claim, gain, order))
    return "\n\n".join([lab.table(header, lines), lab.table(HEADER, verdicts)])


if __name__ == "__main__":
    lab.main("reward_head", settings, run, report)
