"""Write a small Llama with random weights, and a byte-level BPE tokenizer trained on a data file.

    python recipes/small_model.py --data pairs.jsonl.gz --out runs/small

For trying real data, with its lengths and its Unicode, without a pretrained model.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

from dataclasses import MISSING, dataclass

from rlhf_min.command_line import check_flags, check_ranges, option, run

HEADS = 4


@dataclass(frozen=True)
class Config:
    """Settings of recipes/small_model.py."""

    data: list[str] = option(MISSING, "pairs: zoo, files, or hub ids (id:split)")
    out: str = option(MISSING, "folder of the model: new, or empty")
    skip_bad_rows: bool = option(False, "drop and count rows that cannot be used")
    vocabulary: int = option(4096, "tokens, 256 bytes and 5 special included", at_least=261)
    layers: int = option(2, "transformer blocks", at_least=1)
    hidden: int = option(128, f"width, a multiple of {2 * HEADS}", at_least=2 * HEADS)
    context: int = option(1024, "tokens of prompt and answer, at most", at_least=2)
    seed: int = option(0, "of the random weights", at_least=0)


if __name__ == "__main__":
    check_flags(Config)  # --help and wrong flags are answered before the slow imports below

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_min import InputError
from rlhf_min.data import preferences as data
from rlhf_min.data.bad_rows import report_dropped

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def main(config: Config) -> None:
    """Train the tokenizer, draw the weights, and write both."""
    check_ranges(config)
    if config.hidden % (2 * HEADS):
        raise InputError(f"--hidden must be a multiple of {2 * HEADS}, got {config.hidden}")
    out = Path(config.out)
    if not config.out or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"--out {config.out!r} must be a new or empty folder: give another one")
    pairs, counts = data.read_pairs(config.data, None, config.skip_bad_rows)
    report_dropped(counts, len(pairs), "pairs")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (t for p in pairs for t in (data.prompt_text(p.prompt), p.chosen, p.rejected))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(config.seed)
    model = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=config.hidden,
        intermediate_size=config.hidden * 5 // 2,
        num_hidden_layers=config.layers,
        num_attention_heads=HEADS,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(model).save_pretrained(out)
    fast.save_pretrained(out)


if __name__ == "__main__":
    run(main, Config)
