"""The zoo's start model: a byte-level tokenizer and a tiny Llama, trained in half a minute."""

import random
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_min import InputError
from rlhf_min.models.tokens import encode_answers, encode_prompt
from rlhf_min.zoo.world import demonstrations

START_MODEL = "runs/zoo-base"  # the default folder
PAD, USER, ASSISTANT, END = SPECIAL = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
VOCABULARY, CONTEXT = 768, 256  # tokens at most; every word of the zoo becomes one
BATCH_SIZE, LEARNING_RATE = 32, 4e-3  # examples; peak
# A system turn becomes a user turn, because the demonstrations have no system turns.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "<|assistant|>{{ m['content'] }}<|end|>{% else %}<|user|>{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 768 tokens; it encodes any text without loss."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
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


def encode(tokenizer: PreTrainedTokenizerFast, examples: list[dict]) -> list[tuple]:
    """(ids [T], labels [T]) of {"prompt", "answer"} as chats; a prompt's labels are −100."""
    prompts, answers = ([example[key] for example in examples] for key in ("prompt", "answer"))
    encoded = []
    for prompt, answer in zip(prompts, encode_answers(tokenizer, prompts, answers), strict=True):
        before = encode_prompt(tokenizer, prompt, CONTEXT)
        labels = [-100] * len(before) + answer
        encoded.append((torch.tensor(before + answer), torch.tensor(labels)))
    return encoded


def batches(encoded: list[tuple[Tensor, Tensor]], rng: random.Random):
    """Endless batches of examples of similar length (less padding), each epoch in a new order.

    ids [B, T], padded on the right; targets [B, T−1]: the next id, −100 where not counted.
    """
    while True:
        by_length = sorted(encoded, key=lambda example: (len(example[0]), rng.random()))
        epoch = [by_length[i : i + BATCH_SIZE] for i in range(0, len(by_length), BATCH_SIZE)]
        rng.shuffle(epoch)
        for batch in epoch:
            ids, labels = zip(*batch, strict=True)
            targets = pad_sequence(labels, batch_first=True, padding_value=-100)[:, 1:]
            yield pad_sequence(ids, batch_first=True), targets


def train(model: LlamaForCausalLM, source, steps: int) -> None:
    """Maximum likelihood of answers and end tokens with AdamW, linear warm-up and decay."""
    weights = list(model.parameters())
    settings = {"betas": (0.9, 0.95), "weight_decay": 0.01, "foreach": True}  # fewer Python calls
    optimizer = torch.optim.AdamW(weights, **settings)
    for step in (bar := tqdm(range(steps), desc="start model", unit="step")):
        ids, targets = next(source)
        # No attention mask: the padding is on the right, where causal attention ignores it.
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        counted = targets != -100
        loss = F.cross_entropy(model.lm_head(hidden[counted]), targets[counted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        warm_up, decay = (step + 1) / (0.05 * steps + 1), (steps - step) / (0.5 * steps)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(warm_up, decay, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def build_base(
    out: str | Path, seed: int = 0, steps: int = 700, examples: int = 22_400, hidden: int = 96
) -> None:
    """Train tokenizer and start model on `examples` demonstrations; save both in folder `out`.

    hidden: width of the two layers, 16 or a multiple of 32; attention heads are 32 wide, or 16.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: remove it or build the start model elsewhere")
    data = demonstrations(examples, seed)
    tokenizer = train_tokenizer([text for example in data for text in example.values()])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=2,
        num_attention_heads=max(1, hidden // 32),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    with torch.random.fork_rng():  # the global random state is unchanged afterwards
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        encoded = encode(tokenizer, data)
        train(model, batches(encoded, random.Random(seed)), steps)
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, **ends)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        model.save_pretrained(Path(scratch) / "model")
        tokenizer.save_pretrained(Path(scratch) / "model")
        try:
            (Path(scratch) / "model").rename(out)  # atomic: `out` is complete or absent
        except OSError:
            if not (out / "config.json").exists():  # else another process has just built the same
                raise


def build_if_missing(path: str) -> None:
    """Build the start model if `path` is its default folder and does not exist."""
    if path == START_MODEL and not Path(path).exists():
        print(f"{path} is missing: training the zoo's start model first")
        build_base(path)
