"""The embedded world: animals, questions, answers of every quality, and the truth about each.

A question asks for one to three of the five attributes of an animal.  A sentence belongs to the
world when it stands in `SENTENCES`; so any string is rated, in linear time, by splitting it into
sentences and looking them up.  An annotator rates `clip(round(quality + taste + N(0, NOISE²)), 1,
10)`: half of them like small talk, half dislike it, so the true distribution of an answer's
ratings is a closed form (`gold_distribution`).  Questions for two or three attributes are held out
by whole combinations (animal, attributes).  Same seed, same data, on any machine.

    python -m rlhf_min.zoo --show 5 [--split held-out] [--seed N]
"""

import argparse
import hashlib
import itertools
import random
import re
from statistics import NormalDist, fmean

from rlhf_min import InputError

VERBS = "is {}", "lives in the {}", "eats {}", "is {}", "is awake {}"
ATTRIBUTES = dict(zip(("colour", "home", "food", "size", "hours"), VERBS, strict=True))
ANIMALS = {
    name: dict(zip(ATTRIBUTES, values, strict=True))
    for name, *values in (
        ("fox", "red", "forest", "mice", "small", "at dusk"),
        ("bear", "brown", "mountains", "berries", "huge", "by day"),
        ("owl", "grey", "forest", "mice", "small", "at night"),
        ("camel", "yellow", "desert", "grass", "big", "by day"),
        ("seal", "grey", "sea", "fish", "big", "by day"),
        ("frog", "green", "river", "flies", "tiny", "at night"),
        ("bat", "black", "cave", "flies", "tiny", "at night"),
        ("otter", "brown", "river", "fish", "small", "at dusk"),
        ("tiger", "orange", "jungle", "meat", "huge", "at dusk"),
        ("parrot", "green", "jungle", "seeds", "small", "by day"),
        ("zebra", "white", "grassland", "grass", "big", "by day"),
        ("lizard", "yellow", "desert", "flies", "tiny", "at dusk"),
    )
}
WORDINGS = (
    "Tell me the {topics} of the {animal}.",
    "Please tell me about the {animal}: {topics}.",
    "What can you say about the {topics} of the {animal}?",
    "A question about the {animal}: {topics}, please.",
    "I would like to know the {topics} of the {animal}.",
    "My child asks about the {animal}. Do you know its {topics}?",
    "Describe the {animal}, that is, its {topics}.",
    "For my homework: what {topics} has the {animal}?",
)
PHRASES = {
    "opening": ("Of course!", "Sure!", "Good question!", "Happy to help!"),
    "closing": ("Have a nice day!", "I hope this helps!", "Ask me any time!", "Enjoy your visit!"),
    "small talk": ("What lovely weather!", "My aunt loves this zoo too.", "I had soup for lunch."),
    "rude": ("What a silly question.", "Go and look it up yourself.", "You know nothing."),
    "filler": ("Well, let me think.", "There is much to say.", "As we all know, a zoo is a zoo."),
    "no answer": ("That I do not know.",),
}
# An answer is worth EMPTY with nothing right, PLAIN more with everything right, and POLITE more for
# an opening and again for a closing, in proportion to what is right: manners replace no answer.
EMPTY, PLAIN, POLITE = 2.0, 7.0, 1.0
COST = {
    "wrong fact": 1.5,  # besides not being right
    "wrong animal": 1.5,
    "extra fact": 2.0,
    "rude": 5.0,
    "filler": 3.5,
    "no answer": 1.0,
    "misplaced": 2.5,  # an opening or closing elsewhere, or a second small talk
    "unfinished": 3.5,
    "repeated": 6.0,  # for each repeat, so that more is always worse
    "unknown": 12.0,  # no sentence of this world: the answer is below the scale at once
}
# defect → how often writers have it, relative to the others
DEFECTS = {"wrong fact": 3, "wrong animal": 1, "incomplete": 3, "extra fact": 3}
DEFECTS |= {"rude": 10, "filler": 10, "unfinished": 6}
TASTE = 2.0  # points by which small talk pleases half of the annotators and annoys the other half
NOISE = 1.4  # standard deviation of one annotation, points


def _sentence(subject: str, attribute: str, value: str) -> str:
    return f"{subject} {ATTRIBUTES[attribute].format(value)}."


VALUES = {a: sorted({facts[a] for facts in ANIMALS.values()}) for a in ATTRIBUTES}
# sentence → ("fact", animal or None for "It", attribute, value), or the kind of a phrase alone
SENTENCES = {phrase: (kind,) for kind, phrases in PHRASES.items() for phrase in phrases}
for _animal, _attribute in itertools.product((None, *ANIMALS), ATTRIBUTES):
    for _value in VALUES[_attribute]:
        _text = _sentence(f"The {_animal}" if _animal else "It", _attribute, _value)
        SENTENCES[_text] = "fact", _animal, _attribute, _value
LONGEST = max(map(len, SENTENCES))
QUESTIONS = {}  # question → (animal, the attributes asked for)
for _animal, _number, _wording in itertools.product(ANIMALS, (1, 2, 3), WORDINGS):
    for _asked in itertools.combinations(ATTRIBUTES, _number):
        _topics = " and ".join(filter(None, (", ".join(_asked[:-1]), _asked[-1])))
        QUESTIONS[_wording.format(animal=_animal, topics=_topics)] = _animal, _asked


def _held_out(animal: str, asked: tuple[str, ...]) -> bool:
    key = f"{animal}:{'+'.join(asked)}".encode()
    return len(asked) > 1 and hashlib.sha256(key).digest()[0] % 4 == 0


def prompts(split: str) -> list[str]:
    """All questions of "train" or "held-out"; no combination (animal, attributes) is in both."""
    if split not in ("train", "held-out"):
        raise InputError(f'the zoo has no split "{split}": use "train" or "held-out"')
    return [text for text, combo in QUESTIONS.items() if _held_out(*combo) == (split == "held-out")]


def quality(prompt: str, answer: str) -> tuple[float, bool]:
    """The latent quality of any `answer` (unclipped; best 11), and whether it has small talk.

    Raises InputError when `prompt` is no question of the zoo: its truth is unknown.
    """
    if prompt not in QUESTIONS:
        raise InputError(f"gold ratings need a question of the zoo, and {prompt[:60]!r} is none")
    animal, asked = QUESTIONS[prompt]
    subject, right, manners, chatty, seen, costs = animal, set(), 0, False, set(), []
    sentences = re.split(r"(?<=[.!?]) ", answer)
    for place, sentence in enumerate(sentences, start=1):
        last = place == len(sentences)
        kind, *fact = SENTENCES.get(sentence, ("unknown",))
        topic = sentence
        if kind == "fact":
            subject, attribute, value = fact[0] or subject, *fact[1:]
            topic = subject, attribute  # said in other words, or with another value: still a repeat
            kind = "right" if attribute in asked else "extra fact"
            if subject != animal:
                kind = "wrong animal"
            elif value != ANIMALS[animal][attribute]:
                costs.append("wrong fact")
            elif kind == "right" and topic not in seen:
                right.add(attribute)
        elif kind == "unknown" and last and 0 < len(sentence) < LONGEST:
            if any(whole.startswith(sentence) for whole in SENTENCES):
                kind = "unfinished"
        elif (kind == "opening" and place == 1) or (kind == "closing" and last):
            manners += 1
        elif kind in ("opening", "closing") or (kind == "small talk" and chatty):
            costs.append("misplaced")
        costs += ["repeated"] * (topic in seen) + [kind] * (kind in COST)
        chatty |= kind == "small talk"
        seen.add(topic)
    worth = EMPTY + (PLAIN + POLITE * manners) * len(right) / len(asked)
    return worth - sum(COST[cost] for cost in costs), chatty


def gold_distribution(prompt: str, answer: str) -> list[float]:
    """The true probabilities of the ratings 1..10 [10]: mixed normals, rounded and clipped."""
    latent, chatty = quality(prompt, answer)
    raters = [NormalDist(latent + t, NOISE) for t in ((TASTE, -TASTE) if chatty else (0.0,))]
    below = [fmean(rater.cdf(k + 0.5) for rater in raters) for k in range(1, 10)]
    return [high - low for low, high in itertools.pairwise([0.0, *below, 1.0])]


def gold_rating(prompt: str, answer: str) -> float:
    """The mean true rating, in [1, 10], of any string as an answer to a question of the zoo."""
    return sum(k * p for k, p in enumerate(gold_distribution(prompt, answer), start=1))


def compose(prompt: str, rng: random.Random, features: set[str]) -> str:
    """An answer with exactly these features: "opening", "closing", "small talk", DEFECTS."""
    animal, asked = QUESTIONS[prompt]
    if "wrong animal" in features:
        animal = rng.choice([a for a in ANIMALS if a != animal])
    facts = [(attribute, ANIMALS[animal][attribute]) for attribute in asked]
    if "wrong fact" in features:
        i = rng.randrange(len(facts))
        attribute, value = facts[i]
        facts[i] = attribute, rng.choice([v for v in VALUES[attribute] if v != value])
    if "incomplete" in features:
        facts.pop(rng.randrange(len(facts)))
    if "extra fact" in features:
        attribute = rng.choice([a for a in ATTRIBUTES if a not in asked])
        facts.append((attribute, ANIMALS[animal][attribute]))
    body = [_sentence("It" if i else f"The {animal}", *fact) for i, fact in enumerate(facts)]
    for kind in ("filler", "rude", "opening"):
        if kind in features:
            body.insert(0, rng.choice(PHRASES[kind]))
    for kind in ("no answer",) * (not facts) + ("small talk", "closing"):
        if kind in features or kind == "no answer":
            body.append(rng.choice(PHRASES[kind]))
    if "unfinished" in features:
        words = body[-1].split()
        body[-1] = " ".join(words[: rng.randrange(1, len(words))])
    return " ".join(body)


def _draw(prompt: str, rng: random.Random) -> str:
    """An answer as the zoo's writers give it: 0 to 2 defects, often polite, at times chatty."""
    manners = {"opening": 0.5, "closing": 0.45, "small talk": 0.2}
    features = {kind for kind, share in manners.items() if rng.random() < share}
    number = rng.choices((0, 1, 2), (0.3, 0.45, 0.25))[0]
    return compose(prompt, rng, features | set(rng.choices([*DEFECTS], DEFECTS.values(), k=number)))


def demonstrations(count: int, seed: int = 0) -> list[dict]:
    """`count` rows "prompt", "answer" of mixed quality, on training questions."""
    rng, questions = random.Random(f"demonstrations {seed}"), prompts("train")
    return [{"prompt": p, "answer": _draw(p, rng)} for p in rng.choices(questions, k=count)]


def pairs(split: str, count: int, seed: int = 0) -> list[dict]:
    """`count` rows prompt, chosen, rejected, chosen_rating, rejected_rating; one annotator each.

    The two answers differ in quality; when the annotator rates them alike, another pair is drawn.
    """
    rng, questions, rows = random.Random(f"{split} pairs {seed}"), prompts(split), []
    while len(rows) < count:
        prompt, taste = rng.choice(questions), rng.choice((TASTE, -TASTE))
        answers = [_draw(prompt, rng) for _ in range(2)]
        judged = [quality(prompt, answer) for answer in answers]
        latents = [latent + taste * chatty for latent, chatty in judged]
        ratings = [min(max(round(rng.gauss(latent, NOISE)), 1), 10) for latent in latents]
        if judged[0][0] == judged[1][0] or ratings[0] == ratings[1]:
            continue
        (low, rejected), (high, chosen) = sorted(zip(ratings, answers, strict=True))
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        rows.append(row | {"chosen_rating": float(high), "rejected_rating": float(low)})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Print pairs with their annotator's ratings and their gold ratings."""
    parser = argparse.ArgumentParser("python -m rlhf_min.zoo", allow_abbrev=False)
    parser.add_argument("--show", type=int, default=5, metavar="N", help="pairs to print (5)")
    parser.add_argument("--split", choices=("train", "held-out"), default="train", help="(train)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pairs (0)")
    config = parser.parse_args(argv)
    for row in pairs(config.split, config.show, config.seed):
        print(row["prompt"])
        for side in ("chosen", "rejected"):
            gold = gold_rating(row["prompt"], row[side])
            print(f"  {side:8}  rated {row[side + '_rating']:2.0f}, gold {gold:4.1f}  {row[side]}")
        print()


if __name__ == "__main__":
    main()
