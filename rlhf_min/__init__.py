"""RLHF from scratch in plain PyTorch: reward model, policy gradient, judge, and round again."""


class InputError(ValueError):
    """A setting or an input is wrong; the message is one sentence: what, where, what to do."""
