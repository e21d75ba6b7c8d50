"""The zoo's start model: a byte-level tokenizer and a tiny Llama, trained in plain sight.

Left out: validation, checkpoints, mixed precision: it takes half a minute.
"""

import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_min import InputError
from rlhf_min.zoo.world import demonstrations

PAD, USER, ASSISTANT, END = SPECIAL = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
VOCABULARY, CONTEXT = 512, 256  # tokens
# A system turn is one more user turn: the tiny model has learnt no other voice.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens: every text, in any script, comes back as it was."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, examples: list[dict]) -> list[tuple[list[int], int]]:
    """(ids of prompt, answer and end token; number of prompt ids) of each example."""
    user = [[{"role": "user", "content": e["prompt"]}] for e in examples]
    whole = [
        [*u, {"role": "assistant", "content": e["answer"]}]
        for u, e in zip(user, examples, strict=True)
    ]
    heads = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
    rows = tokenizer.apply_chat_template(whole, return_dict=False)
    return [(row, len(head)) for row, head in zip(rows, heads, strict=True)]


def batches(rows: list[tuple[list[int], int]], size: int, rng: random.Random):
    """Endless batches of `size` rows of like length (less padding), each epoch in another order."""
    while True:
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]), rng.random()))
        cuts = [order[i : i + size] for i in range(0, len(order), size)]
        rng.shuffle(cuts)
        for cut in cuts:
            yield [rows[i] for i in cut]


def collate(batch: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Rows → ids [B, T], padded right with 0, and targets [B, T−1]: the next id, or −100.

    −100 stands wherever the next id is no token of the answer (its end token is one).
    """
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in batch])
    place = torch.arange(1, width)
    start = torch.tensor([head for _, head in batch])[:, None]
    end = torch.tensor([len(row) for row, _ in batch])[:, None]
    return ids, torch.where((place >= start) & (place < end), ids[:, 1:], -100)


def train(
    model: LlamaForCausalLM,
    rows: list[tuple[list[int], int]],
    steps: int,
    size: int,
    lr: float,
    seed: int,
):
    """Maximum likelihood of the answers, end token included: AdamW, linear warm-up and -down."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    source = batches(rows, size, random.Random(seed))
    for step in (bar := tqdm(range(steps), desc="start model", unit="step")):
        ids, targets = collate(next(source))
        # Pads stand right of everything: causal attention alone keeps them out.
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        counted = targets != -100
        loss = F.cross_entropy(model.lm_head(hidden[counted]), targets[counted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(
                (step + 1) / (0.05 * steps + 1), (steps - step) / (0.5 * steps), 1.0
            )
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def build(
    out: str | Path,
    examples: list[dict],
    seed: int = 0,
    steps: int = 500,
    size: int = 64,
    lr: float = 4e-3,
) -> None:
    """Train tokenizer and start model on rows "prompt", "answer"; save both in the folder `out`.

    The caller's random state is left alone.  Raises InputError when `out` holds
    something already; an interruption leaves no half-written `out`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} is not empty: remove it or choose another folder for the start model"
        )
    tokenizer = train_tokenizer([e[side] for e in examples for side in ("prompt", "answer")])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
        special["pad_token_id"] = tokenizer.pad_token_id
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            **special,
        )
        model = LlamaForCausalLM(config)
        train(model, encode(tokenizer, examples), steps, size, lr, seed)
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, **special)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        model.save_pretrained(Path(scratch) / "model")
        tokenizer.save_pretrained(Path(scratch) / "model")
        (Path(scratch) / "model").rename(out)  # one step: `out` is whole or absent


def build_base(out: str | Path, seed: int = 0, steps: int = 500, examples: int = 20_000) -> None:
    """Train the start model on `examples` demonstrations; save it, tokenizer too, in `out`."""
    build(out, demonstrations(examples, seed), seed=seed, steps=steps)
