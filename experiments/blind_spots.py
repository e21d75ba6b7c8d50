"""Study: which mistakes of an answer does a reward model see?

    python -m experiments.blind_spots   # 5 seeds: 7 ways to train, last reward models of 2 loops

A *minimal pair* is the best answer to a question and the same answer with one mistake.  A reward
model that cannot see the mistake is right half the time, whatever its accuracy on other pairs.
"""

import random
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments import cures_runs, lab, zoo_runs
from experiments.claims import HEADER, by_variant, claim_row, paired, values
from rlhf_min.judging.judges import reward_model_judge
from rlhf_min.zoo import world

OPENING, CLOSING = "Happy to help!", "I hope this helps!"
DEFECTS = (
    "wrong fact",
    "wrong animal",
    "missing fact",
    "extra fact",
    "rude",
    "filler",
    "repeated",
    "unfinished",
    "no opening",
    "no closing",
)
TRUTH = ("wrong fact", "wrong animal")  # only somebody who knows the world can see these
DEFAULT, SIX = "1 epoch, learning rate 3e-3 (the default)", "6 epochs, 1e-3"
VARIANTS = {  # name → settings of train_rm.py
    DEFAULT: {},
    "1 epoch, 1e-3": {"lr": 1e-3},
    "3 epochs, 3e-3": {"epochs": 3.0},
    "3 epochs, 1e-3": {"epochs": 3.0, "lr": 1e-3},
    "6 epochs, 3e-3": {"epochs": 6.0},
    SIX: cures_runs.SIX_EPOCHS,
    "ratings head, `--earth-mover 1 --label-width 0.5`, 1 epoch": {
        "head": "ratings",
        "earth_mover": 1.0,
        "label_width": 0.5,
    },
}
LOOPS = {  # name → the loop of the study of the cures whose last reward model it is
    "1 epoch, then three rounds of the loop": cures_runs.LOOP,
    "6 epochs, then three rounds of the loop": cures_runs.LONGER,
}
COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#009E73")  # told apart by the colour-blind
KL = 0.2  # weight of the penalty, as in recipes/loop.py
QUICK = {"start": {"steps": 2, "examples": 64}, "rm": {"limit": 64, "max_steps": 2}}
QUICK["policy"] = {"steps": 2, "eval_prompts": 8, "ruler_prompts": 8}


def settings(quick: bool) -> list[dict]:
    """Every variant for every seed, and the last reward models of the loops."""
    names = [DEFAULT, SIX] if quick else [*VARIANTS, *LOOPS]
    seeds = range(1 if quick else 5)
    return [{"variant": name, "seed": seed, "quick": quick} for seed in seeds for name in names]


def run(one: dict) -> dict:
    """Accuracy on held-out pairs and on the minimal pairs of each defect; gold and KL of a policy.

    The last reward model of a loop has no policy here: the study of the cures has those.
    """
    seed, small = one["seed"], QUICK if one["quick"] else {key: {} for key in QUICK}
    start = zoo_runs.start_model(seed, **small["start"])
    if one["variant"] in LOOPS:
        loop = cures_runs.loop_folder(start, seed, LOOPS[one["variant"]])
        reward = loop / f"rm-{cures_runs.ROUNDS}"
        return {"defects": accuracies(reward)}
    flags = VARIANTS[one["variant"]] | small["rm"]
    reward = zoo_runs.reward_model(start, seed=seed, **flags)
    policy = zoo_runs.policy(start, reward, seed=seed, kl=KL, eval_every=0, **small["policy"])
    after = zoo_runs.summary(policy)["after"]
    result = {"accuracy": zoo_runs.summary(reward)["accuracy"], "gold": after["reward/gold"]}
    result |= {"kl": after["kl/mean"]}
    return result | {"defects": accuracies(reward, 8 if one["quick"] else None)}


def accuracies(reward: Path, prompts: int | None = None) -> dict[str, float]:
    """Share of minimal pairs in which the best answer scores higher, by defect; a tie is ½.

    prompts: how many of the held-out questions (None: all).
    """
    scores, found = reward_model_judge(str(reward)).scores, {}
    for defect in DEFECTS:
        wins = []
        for prompt, best, spoiled in minimal_pairs(defect, world.prompts("held-out")[:prompts]):
            high, low = scores(prompt, [best, spoiled])
            wins.append((high > low) + (high == low) / 2)
        found[defect] = round(fmean(wins), 4)
    return found


def minimal_pairs(defect: str, prompts: Iterable[str]) -> list[tuple[str, str, str]]:
    """(question, the best answer, the same answer with one defect), one for each question.

    The same pairs in every call.
    """
    rng, pairs = random.Random("minimal pairs"), []
    for prompt in prompts:
        animal, asked = world.QUESTIONS[prompt]
        facts = [(attribute, world.ANIMALS[animal][attribute]) for attribute in asked]
        best = [OPENING, *_sentences(animal, facts), CLOSING]
        pairs.append((prompt, " ".join(best), _spoiled(defect, animal, facts, rng)))
    return pairs


def _sentences(animal: str, facts: list[tuple[str, str]]) -> list[str]:
    subjects = [f"The {animal}", *["It"] * len(facts)]
    return [
        f"{subject} {world.ATTRIBUTES[attribute].format(value)}."
        for subject, (attribute, value) in zip(subjects, facts, strict=False)
    ]


def _spoiled(defect: str, animal: str, facts: list, rng: random.Random) -> str:
    """The best answer with this defect."""
    facts, opening, closing = list(facts), [OPENING], [CLOSING]
    place = rng.randrange(len(facts))
    attribute, value = facts[place]
    if defect == "wrong fact":
        others = [other for other in world.VALUES[attribute] if other != value]
        facts[place] = attribute, rng.choice(others)
    elif defect == "wrong animal":
        animal = rng.choice([other for other in world.ANIMALS if other != animal])
        facts = [(attribute, world.ANIMALS[animal][attribute]) for attribute, _ in facts]
    elif defect == "missing fact":
        del facts[place]
    elif defect == "extra fact":
        asked = {attribute for attribute, _ in facts}
        extra = rng.choice([a for a in world.ATTRIBUTES if a not in asked])
        facts.append((extra, world.ANIMALS[animal][extra]))
    elif defect in ("rude", "filler"):
        opening.append(rng.choice(world.PHRASES[defect]))
    elif defect == "repeated":
        facts.append(facts[-1])
    elif defect == "no opening":
        opening = []
    elif defect == "no closing":
        closing = []
    text = " ".join([*opening, *_sentences(animal, facts), *closing])
    if defect == "unfinished":
        words = text.split()
        text = " ".join(words[: -rng.randrange(1, len(CLOSING.split()))])
    return text


def report(rows: list[dict], out: Path) -> str:
    """A table of accuracies by defect, claims, and a figure."""
    found = by_variant(rows)
    by_defect = {
        name: {seed: result["defects"] for seed, result in own.items()}
        for name, own in found.items()
    }
    lines = []
    for name, own in found.items():
        cells = [_plain(values(own, "accuracy"), 3), _plain(values(own, "gold"))]
        cells += [_plain(values(own, "kl"), 1)]
        cells += [_plain(values(by_defect[name], defect)) for defect in DEFECTS]
        lines.append([name, *cells])
    header = ["reward model", "accuracy on held-out pairs", "gold of a policy", "its KL", *DEFECTS]
    text = (
        "Means over seeds; a coin has 0.5. All reward models are asked about the same pairs, one "
    )
    text += f"to each held-out question. Gold: of a policy trained with KL weight {KL:g} (–: none)."
    parts = [lab.table(header, lines), text]
    parts.append(lab.table(HEADER, _claims(found, by_defect)))
    _draw(by_defect, out / "blind_spots.png")
    parts.append("![Accuracy by mistake and reward model](figures/blind_spots.png)")
    return "\n\n".join(parts)


def _plain(numbers: list[float], digits: int = 2) -> str:
    return f"{fmean(numbers):.{digits}f}" if numbers else "–"


def _claims(found: dict, by_defect: dict) -> list[list[str]]:
    """What the defaults do not see, and what six epochs change, with intervals over seeds."""
    usual, longer = by_defect.get(DEFAULT, {}), by_defect.get(SIX, {})
    lines = []
    for defect in TRUTH:
        above = [value - 0.5 for value in values(usual, defect)]
        claim = f"the default reward model tells a {defect} from the truth better than a coin"
        lines.append(claim_row(claim, above, "accuracy minus 0.5", 2))
        claim = f"six epochs tell a {defect} from the truth better than the default"
        lines.append(claim_row(claim, paired(longer, usual, defect), "six minus one epoch", 2))
    gains = paired(found.get(SIX, {}), found.get(DEFAULT, {}), "gold")
    claim = f"a policy trained with the reward model of six epochs has more gold (KL weight {KL:g})"
    lines.append(claim_row(claim, gains, "six minus one epoch", 2))
    return lines


def _draw(by_defect: dict, file: Path) -> None:
    """Bars: the accuracy on each defect, a dot per seed."""
    shown = [name for name in (DEFAULT, SIX, *LOOPS) if name in by_defect]
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(shown)
    for place, (name, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        at = [x + (place - (len(shown) - 1) / 2) * width for x in range(len(DEFECTS))]
        every = [values(by_defect[name], defect) for defect in DEFECTS]
        axes.bar(at, [fmean(one) for one in every], width, color=colour, alpha=0.6, label=name)
        for x, one in zip(at, every, strict=True):
            axes.plot([x] * len(one), one, ".", color="black", markersize=3)
    axes.axhline(0.5, color="black", lw=0.8, ls=":")
    axes.set_xticks(range(len(DEFECTS)), DEFECTS, rotation=20, ha="right")
    axes.set(ylabel="right order (dotted: a coin)", ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    lab.main("blind_spots", settings, run, report)
