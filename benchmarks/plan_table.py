"""The table of docs/scaling.md: GB on each device for four sizes of model, by `rlhf_min.plan`.

python benchmarks/plan_table.py
"""

import tempfile
from dataclasses import replace

import timing  # noqa: F401  finds rlhf_min
from transformers import LlamaConfig

from rlhf_min import plan

SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, key heads, tied
    "135 M": (49152, 576, 1536, 30, 9, 3, True),
    "360 M": (49152, 960, 2560, 32, 15, 5, True),
    "1.7 B": (49152, 2048, 8192, 24, 32, 32, True),
    "8 B": (128256, 4096, 14336, 32, 32, 8, False),
}
NAMES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
NAMES += ["num_attention_heads", "num_key_value_heads", "tie_word_embeddings"]


def main() -> None:
    print("| model | trained | script | 1 device | with checkpointing | 2 devices | 8 devices |")
    print("|---|---|---|---|---|---|---|")
    for size, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = dict(zip(NAMES, shape, strict=True))
            LlamaConfig(max_position_embeddings=2048, **config).save_pretrained(folder)
            for rank in (0, 16):
                settings = plan.Config(model=folder, lora_rank=rank)
                plans = [
                    plan.memory_plan(replace(settings, **changes))
                    for changes in (
                        {},
                        {"gradient_checkpointing": True},
                        {"gradient_checkpointing": True, "devices": 2},
                        {"gradient_checkpointing": True, "devices": 8},
                    )
                ]
                for script in ("train_rm.py", "train_policy.py"):
                    cells = " | ".join(f"{p[script]['peak']:.1f}" for p in plans)
                    print(f"| {size} | {f'LoRA {rank}' if rank else 'all'} | {script} | {cells} |")


if __name__ == "__main__":
    main()
