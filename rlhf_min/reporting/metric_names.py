"""Titles and units of metrics, for the plots and the report page."""

METRICS = {  # key in metrics.jsonl → (title, unit)
    "reward/mean": ("Learned reward", "raw score"),
    "reward/gold": ("Gold rating", "1 to 10"),
    "kl/mean": ("KL to the reference model", "nats per answer"),
    "length/mean": ("Answer length", "tokens"),
    "finished/rate": ("Finished answers", "share of answers"),
    "text/distinct_2": ("Variety of bigrams", "share unique"),
    "text/longest_run": ("Repetition", "copies in a row"),
    "loss/held_out": ("Held-out loss", "nats per pair"),
    "accuracy/held_out": ("Held-out accuracy", "share of pairs ranked right"),
}


def key_and_unit(key: str) -> str:
    return f"{key} ({METRICS[key][1]})" if key in METRICS else key


def full_name(key: str) -> str:
    return f"{METRICS[key][0]}: {key_and_unit(key)}" if key in METRICS else key
