"""A reward of one's own: answers of ten to fifteen words that end like a sentence.

python train_policy.py --reward-function recipes/own_reward.py:reward --out runs/own-reward
"""


def reward(prompts: list, answers: list[str]) -> list[float]:
    """One number per answer; prompts and answers have the same length."""
    words = [len(answer.split()) for answer in answers]
    misses = [max(10 - n, n - 15, 0) for n in words]
    ends = [answer.endswith((".", "!", "?")) for answer in answers]
    return [end - miss / 5 for miss, end in zip(misses, ends, strict=True)]
