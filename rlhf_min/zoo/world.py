"""The zoo, a small world with known truth: animals, questions, answers, annotators, gold ratings.

A question asks for one to three of the five attributes of an animal.  Answers are made of the
sentences in `SENTENCES`, so any text is rated, in linear time, by looking up its sentences.

An annotator's rating is round(quality + taste + N(0, NOISE²)), clipped to 1..10.  `taste` is +TASTE
or −TASTE, with probability ½ each, when the answer has small talk, else 0.  So the distribution of
the ratings of an answer has a closed form, `gold_distribution`.  The same seed gives the same data
on any machine.
"""

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
# quality = EMPTY + (PLAIN + POLITE · polite) · right − the COST of each defect, where `polite`
# counts opening and closing (0 to 2) and `right` is the share of attributes answered correctly.
EMPTY, PLAIN, POLITE = 2.0, 7.0, 1.0
COST = {
    "wrong fact": 1.5,  # besides lowering `right`
    "wrong animal": 1.5,
    "extra fact": 2.0,
    "rude": 5.0,
    "filler": 3.5,
    "no answer": 1.0,
    "misplaced": 2.5,  # opening not first, closing not last, or a second sentence of small talk
    "unfinished": 3.5,
    "repeated": 6.0,  # for each repetition, so that more is always worse
    "unknown": 12.0,  # not in SENTENCES: even the best answer falls below the scale
}
# defect → relative frequency in random answers
DEFECTS = {"wrong fact": 3, "wrong animal": 1, "incomplete": 3, "extra fact": 3}
DEFECTS |= {"rude": 10, "filler": 10, "unfinished": 6}
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
for _animal, _number, _wording in itertools.product(ANIMALS, (1, 2, 3), WORDINGS):
    for _asked in itertools.combinations(ATTRIBUTES, _number):
        _topics = " and ".join(filter(None, (", ".join(_asked[:-1]), _asked[-1])))
        QUESTIONS[_wording.format(animal=_animal, topics=_topics)] = _animal, _asked


def _held_out(animal: str, asked: tuple[str, ...]) -> bool:
    """True for about a quarter of the combinations of an animal and two or three attributes."""
    key = f"{animal}:{'+'.join(asked)}".encode()
    return len(asked) > 1 and hashlib.sha256(key).digest()[0] % 4 == 0


def prompts(split: str) -> list[str]:
    """All questions of "train" or "held-out"; no combination (animal, attributes) is in both."""
    if split not in ("train", "held-out"):
        raise InputError(f'the zoo has no split "{split}": use "train" or "held-out"')
    return [text for text, combo in QUESTIONS.items() if _held_out(*combo) == (split == "held-out")]


def quality(prompt: str, answer: str) -> tuple[float, bool]:
    """(quality of any text as an answer, at most 11, not clipped; whether it has small talk).

    Raises InputError when `prompt` is not a question of the zoo.
    """
    if prompt not in QUESTIONS:
        raise InputError(f"gold ratings need a question of the zoo, and {prompt[:60]!r} is not one")
    animal, asked = QUESTIONS[prompt]
    subject, right, polite, small_talk, seen, costs = animal, set(), 0, False, set(), []
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
                costs.append("wrong fact")
            elif kind == "right" and topic not in seen:
                right.add(attribute)
        elif kind == "unknown" and last and 0 < len(sentence) < LONGEST:
            if any(whole.startswith(sentence) for whole in SENTENCES):
                kind = "unfinished"
        elif (kind == "opening" and number == 1) or (kind == "closing" and last):
            polite += 1
        elif kind in ("opening", "closing") or (kind == "small talk" and small_talk):
            costs.append("misplaced")
        costs += ["repeated"] * (topic in seen) + [kind] * (kind in COST)
        small_talk |= kind == "small talk"
        seen.add(topic)
    merits = EMPTY + (PLAIN + POLITE * polite) * len(right) / len(asked)
    return merits - sum(COST[cost] for cost in costs), small_talk


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
    sentences = [_sentence("It" if i else f"The {animal}", *fact) for i, fact in enumerate(facts)]
    for kind in ("filler", "rude", "opening"):
        if kind in features:
            sentences.insert(0, rng.choice(PHRASES[kind]))
    if not facts:
        sentences.append(rng.choice(PHRASES["no answer"]))
    for kind in ("small talk", "closing"):
        if kind in features:
            sentences.append(rng.choice(PHRASES[kind]))
    if "unfinished" in features:
        words = sentences[-1].split()
        sentences[-1] = " ".join(words[: rng.randrange(1, len(words))])
    return " ".join(sentences)


def _random_answer(prompt: str, rng: random.Random) -> str:
    """An answer with 0 to 2 defects, often polite, sometimes with small talk."""
    shares = {"opening": 0.5, "closing": 0.45, "small talk": 0.2}
    features = {kind for kind, share in shares.items() if rng.random() < share}
    count = rng.choices((0, 1, 2), (0.3, 0.45, 0.25))[0]
    return compose(prompt, rng, features | set(rng.choices([*DEFECTS], DEFECTS.values(), k=count)))


def demonstrations(count: int, seed: int = 0) -> list[dict]:
    """`count` examples {"prompt", "answer"} of mixed quality, for training questions."""
    rng = random.Random(f"demonstrations {seed}")
    questions = rng.choices(prompts("train"), k=count)
    return [{"prompt": prompt, "answer": _random_answer(prompt, rng)} for prompt in questions]


def pairs(split: str, count: int, seed: int = 0) -> list[dict]:
    """`count` rows {"prompt", "chosen", "rejected", "chosen_rating", "rejected_rating"}.

    One annotator rates both answers.  Pairs of equal quality or equal ratings are drawn again.
    """
    rng, questions, rows = random.Random(f"{split} pairs {seed}"), prompts(split), []
    while len(rows) < count:
        prompt, taste = rng.choice(questions), rng.choice((TASTE, -TASTE))
        answers = [_random_answer(prompt, rng) for _ in range(2)]
        qualities = [quality(prompt, answer) for answer in answers]
        means = [value + taste * small_talk for value, small_talk in qualities]
        ratings = [min(max(round(rng.gauss(mean, NOISE)), 1), 10) for mean in means]
        if qualities[0][0] == qualities[1][0] or ratings[0] == ratings[1]:
            continue
        (low, rejected), (high, chosen) = sorted(zip(ratings, answers, strict=True))
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        rows.append(row | {"chosen_rating": float(high), "rejected_rating": float(low)})
    return rows
