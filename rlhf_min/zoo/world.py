"""The zoo, a small world with known truth: animals, questions, answers, annotators, gold ratings.

A question asks for one to three attributes of an animal (world.json).  Answers are made of the
sentences in `SENTENCES`, so any text is rated, in linear time, by looking up its sentences.

An annotator's rating is round(quality + taste + N(0, NOISE²)), clipped to 1..10.  `taste` is +TASTE
or −TASTE, with probability ½ each, when the answer has small talk, else 0.  So an answer's ratings
have a distribution in closed form, `gold_distribution`.  A seed gives the same data anywhere.
"""

import hashlib
import itertools
import json
import random
import re
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist, fmean

from rlhf_min import InputError

WORLD = json.loads(Path(__file__).with_name("world.json").read_text("utf-8"))
ATTRIBUTES = WORLD["attributes"]  # attribute → predicate of its sentences
ANIMALS = WORLD["animals"]  # animal → attribute → value
PHRASES = WORLD["phrases"]  # kind → sentences that state no fact
DEFECTS = WORLD["defects"]  # defect → relative frequency in random answers
COST = WORLD["costs"]  # defect → points off the quality
# quality = EMPTY + (PLAIN + POLITE · polite) · right − the COST of each defect, where `polite`
# counts opening and closing (0 to 2) and `right` is the share of attributes answered correctly.
# Each repetition costs, so that more is always worse.  A sentence that is "unknown" (not in
# SENTENCES) costs so much that even the best answer falls below the scale.
EMPTY, PLAIN, POLITE = 2.0, 7.0, 1.0
TASTE = 2.0  # rating points that an annotator adds or subtracts for small talk
NOISE = 1.4  # standard deviation of an annotator's noise, rating points


def _sentence(subject: str, attribute: str, value: str) -> str:
    return f"{subject} {ATTRIBUTES[attribute].format(value)}."


VALUES = {a: sorted({facts[a] for facts in ANIMALS.values()}) for a in ATTRIBUTES}
# sentence → ("fact", animal or None for "It", attribute, value), or (kind of phrase,)
SENTENCES = {phrase: (kind,) for kind, phrases in PHRASES.items() for phrase in phrases}
for _animal, _attribute in itertools.product((None, *ANIMALS), ATTRIBUTES):
    for _value in VALUES[_attribute]:
        _text = _sentence(f"The {_animal}" if _animal else "It", _attribute, _value)
        SENTENCES[_text] = "fact", _animal, _attribute, _value
LONGEST = max(map(len, SENTENCES))
QUESTIONS = {}  # question → (animal, attributes asked for)
SPLITS = {"train": [], "held-out": []}  # no combination of animal and attributes is in both
for _animal, _number, _wording in itertools.product(ANIMALS, (1, 2, 3), WORLD["wordings"]):
    for _asked in itertools.combinations(ATTRIBUTES, _number):
        _topics = " and ".join(filter(None, (", ".join(_asked[:-1]), _asked[-1])))
        _text = _wording.format(animal=_animal, topics=_topics)
        QUESTIONS[_text] = _animal, _asked
        # Held out: about a quarter of the combinations with two or three attributes.
        _byte = hashlib.sha256(f"{_animal}:{'+'.join(_asked)}".encode()).digest()[0]
        SPLITS["held-out" if _number > 1 and _byte % 4 == 0 else "train"].append(_text)


def prompts(split: str) -> list[str]:
    """All questions of "train" or "held-out"."""
    if split not in SPLITS:
        raise InputError(f'the zoo has no split "{split}": use "train" or "held-out"')
    return SPLITS[split]


def read_answer(prompt: str, answer: str) -> tuple[int, int, bool, dict[str, float]]:
    """What the quality of any text as an answer is made of, in time linear in its length.

    → (attributes answered correctly, `polite` 0 to 2, whether it has small talk, the points off by
    kind of defect).
    """
    if prompt not in QUESTIONS:
        raise InputError(
            f"gold ratings need a question of the zoo, and {prompt[:60]!r} is not one: for other "
            "prompts use another judge, --judge reward-model:DIR, openai:MODEL or human"
        )
    animal, asked = QUESTIONS[prompt]
    subject, right, polite, small_talk, seen = animal, set(), 0, False, set()
    costs: dict[str, float] = {}

    def charge(defect: str) -> None:
        costs[defect] = costs.get(defect, 0.0) + COST[defect]

    sentences = re.split(r"(?<=[.!?]) ", answer)
    for number, sentence in enumerate(sentences, start=1):
        last = number == len(sentences)
        kind, *fact = SENTENCES.get(sentence, ("unknown",))
        topic = sentence
        if kind == "fact":
            subject, attribute, value = fact[0] or subject, *fact[1:]
            topic = subject, attribute  # the same attribute again is a repetition, in any words
            kind = "right" if attribute in asked else "extra fact"
            if subject != animal:
                kind = "wrong animal"
            elif value != ANIMALS[animal][attribute]:
                charge("wrong fact")
            elif kind == "right" and topic not in seen:
                right.add(attribute)
        elif kind == "unknown" and last and 0 < len(sentence) < LONGEST:
            if any(whole.startswith(sentence) for whole in SENTENCES):
                kind = "unfinished"
        elif (kind == "opening" and number == 1) or (kind == "closing" and last):
            polite += 1
        elif kind in ("opening", "closing") or (kind == "small talk" and small_talk):
            charge("misplaced")
        if kind in COST:
            charge(kind)
        if topic in seen:
            charge("repeated")
        small_talk |= kind == "small talk"
        seen.add(topic)
    return len(right), polite, small_talk, costs


def quality(prompt: str, answer: str) -> tuple[float, bool]:
    """(quality of any text as an answer, at most 11, not clipped; whether it has small talk)."""
    right, polite, small_talk, costs = read_answer(prompt, answer)
    gained = (PLAIN + POLITE * polite) * right / len(QUESTIONS[prompt][1])
    return EMPTY + gained - sum(costs.values()), small_talk


def losses(prompt: str, answer: str) -> dict[str, float]:
    """Points by which the quality is below the best, 11, by cause; their sum is 11 − quality.

    The causes are the kinds of COST, "missing fact" (attributes not answered correctly) and "no
    manners" (no opening or closing, or none that counts since facts are missing).
    """
    right, polite, _, costs = read_answer(prompt, answer)
    share = right / len(QUESTIONS[prompt][1])
    gaps = {"missing fact": PLAIN * (1 - share), "no manners": POLITE * (2 - polite * share)}
    return gaps | costs


def gold_distribution(prompt: str, answer: str) -> list[float]:
    """True probabilities of the ratings 1..10 [10]: a mixture of normals, rounded and clipped."""
    mean, small_talk = quality(prompt, answer)
    tastes = (TASTE, -TASTE) if small_talk else (0.0,)
    normals = [NormalDist(mean + taste, NOISE) for taste in tastes]
    cdf = [fmean(normal.cdf(rating + 0.5) for normal in normals) for rating in range(1, 10)]
    return [high - low for low, high in itertools.pairwise([0.0, *cdf, 1.0])]


def gold_rating(prompt: str, answer: str) -> float:
    """The mean of `gold_distribution`: the true rating, in [1, 10], of any text as an answer."""
    return sum(k * p for k, p in enumerate(gold_distribution(prompt, answer), start=1))


def compose(prompt: str, rng: random.Random, features: set[str]) -> str:
    """An answer with exactly these features: "opening", "closing", "small talk" or DEFECTS."""
    animal, asked = QUESTIONS[prompt]
    if "wrong animal" in features:
        animal = rng.choice([a for a in ANIMALS if a != animal])
    facts = {attribute: ANIMALS[animal][attribute] for attribute in asked}
    if "wrong fact" in features:
        wrong = rng.choice(asked)
        facts[wrong] = rng.choice([value for value in VALUES[wrong] if value != facts[wrong]])
    if "incomplete" in features:
        del facts[rng.choice(asked)]
    if "extra fact" in features:
        extra = rng.choice([a for a in ATTRIBUTES if a not in asked])
        facts[extra] = ANIMALS[animal][extra]
    subjects = [f"The {animal}", *["It"] * len(facts)]
    sentences = list(map(_sentence, subjects, facts.keys(), facts.values()))
    before = [rng.choice(PHRASES[k]) for k in ("filler", "rude", "opening") if k in features]
    sentences = before[::-1] + (sentences or [rng.choice(PHRASES["no answer"])])
    sentences += [rng.choice(PHRASES[k]) for k in ("small talk", "closing") if k in features]
    if "unfinished" in features:
        words = sentences[-1].split()
        sentences[-1] = " ".join(words[: rng.randrange(1, len(words))])
    return " ".join(sentences)


def random_answer(prompt: str, rng: random.Random) -> str:
    """An answer with 0 to 2 defects, often polite, sometimes with small talk."""
    shares = {"opening": 0.5, "closing": 0.45, "small talk": 0.2}
    features = {kind for kind, share in shares.items() if rng.random() < share}
    count = rng.choices((0, 1, 2), (0.3, 0.45, 0.25))[0]
    return compose(prompt, rng, features | set(rng.choices([*DEFECTS], DEFECTS.values(), k=count)))


def demonstrations(count: int, seed: int = 0) -> list[dict]:
    """`count` examples {"prompt", "answer"} of mixed quality, for training questions."""
    rng = random.Random(f"demonstrations {seed}")
    questions = rng.choices(prompts("train"), k=count)
    return [{"prompt": prompt, "answer": random_answer(prompt, rng)} for prompt in questions]


@lru_cache(maxsize=4)  # in the demo, policy and reward model read the same pairs
def pairs(split: str, count: int, seed: int = 0) -> list[dict]:
    """`count` pairs of answers, each rated by one annotator; none of equal quality or ratings."""
    rng, questions, rows = random.Random(f"{split} pairs {seed}"), prompts(split), []
    while len(rows) < count:
        prompt, taste = rng.choice(questions), rng.choice((TASTE, -TASTE))
        answers = [random_answer(prompt, rng) for _ in range(2)]
        qualities = [quality(prompt, answer) for answer in answers]
        means = [value + taste * small_talk for value, small_talk in qualities]
        ratings = [min(max(round(rng.gauss(mean, NOISE)), 1), 10) for mean in means]
        if qualities[0][0] != qualities[1][0] and ratings[0] != ratings[1]:
            (low, rejected), (high, chosen) = sorted(zip(ratings, answers, strict=True))
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            rows.append(row | {"chosen_rating": float(high), "rejected_rating": float(low)})
    return rows
