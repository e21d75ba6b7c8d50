"""Tiny random models and tokenizers, tiny data, and an oracle for log-probs."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_min.hardware.attention import NAME

VOCABULARY = 23


def _llama_like(config_class, **extra):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 128}
    return config_class(
        vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **{**sizes, **extra},
    )  # fmt: skip


def _config(family: str, **extra):
    if family == "llama":
        return _llama_like(LlamaConfig, **extra)
    if family == "mistral":
        return _llama_like(MistralConfig, **{"sliding_window": None, **extra})
    if family == "qwen2":
        return _llama_like(Qwen2Config, tie_word_embeddings=True, **extra)
    if family == "qwen3":
        return _llama_like(Qwen3Config, head_dim=8, tie_word_embeddings=True, **extra)
    if family == "gemma3":  # local layers and global ones
        layers = ["sliding_attention", "full_attention"]
        sizes = {"head_dim": 8, "sliding_window": 8, "layer_types": layers}
        return _llama_like(Gemma3TextConfig, **{**sizes, **extra})
    if family == "lfm2":  # a convolution, then attention
        return _llama_like(Lfm2Config, layer_types=["conv", "full_attention"], **extra)
    if family == "bloom":  # positions by alibi, from a 2-D mask
        return BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, **extra)
    if family == "falcon":  # as of Falcon-RW
        return FalconConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            alibi=True, **extra,
        )  # fmt: skip
    if family == "mamba":  # recurrent
        return MambaConfig(
            vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, **extra
        )
    if family == "gemma2":  # caps its logits; head_dim is not hidden_size / heads
        return _llama_like(Gemma2Config, head_dim=8, final_logit_softcapping=2.0, **extra)
    if family == "granite":
        return _llama_like(GraniteConfig, logits_scaling=3.0, **extra)
    if family == "cohere":
        return _llama_like(CohereConfig, logit_scale=0.3, **extra)
    if family == "gpt_neox":
        return GPTNeoXConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=128, **extra,
        )  # fmt: skip
    if family == "gpt_neo":
        # One global and one local layer; the local window counts positions in the row.
        return GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2, **{"window_size": 100, **extra},
        )  # fmt: skip
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128,
            bos_token_id=1, eos_token_id=2, **extra,
        )  # fmt: skip
    raise ValueError(family)


# Every family with each of its attention implementations.
MODELS = [
    (family, attention)
    for family in ("llama", "qwen2", "gpt_neox", "gpt2")
    for attention in ("sdpa", "eager", NAME)
] + [(family, "eager") for family in ("gpt_neo", "gemma2", "granite", "cohere")]


def tolerance(family: str, dtype=torch.float64) -> dict[str, float]:
    """Tolerances for two correct results: only GPT-2 computes everything in the weights' dtype.

    The other families compute norms, rotary embeddings or softmax in float32.
    """
    close = {"gpt2": 1e-10}.get(family, 2e-5) if dtype == torch.float64 else 3e-4
    return {"atol": close, "rtol": close}


def tiny_model(family: str, attention: str = "sdpa", dtype=torch.float64, seed: int = 0, **extra):
    """A causal language model of a few thousand random parameters, without dropout.

    The weights are large enough for logits of order 1 that differ at every position.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        _config(family, **extra), attn_implementation=attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def loop_token_log_probs(model, prompts, branches, temperature: float = 1.0) -> list[Tensor]:
    """Oracle: one unpadded sequence at a time, one token at a time → a [T] tensor per branch."""
    result = []
    for prompt, answers in zip(prompts, branches, strict=True):
        for answer in answers:
            logits = model(torch.tensor([prompt + answer]), use_cache=False).logits[0]
            log_probs = []
            for t, token in enumerate(answer):
                z = logits[len(prompt) + t - 1] / temperature
                log_probs.append(z[token] - z.exp().sum().log())
            result.append(torch.stack(log_probs))
    return result


def loop_answer_log_probs(model, prompts, branches, temperature: float = 1.0) -> Tensor:
    """Oracle: the sums of `loop_token_log_probs`, one per branch: [B]."""
    return torch.stack(
        [t.sum() for t in loop_token_log_probs(model, prompts, branches, temperature)]
    )


def parameter_gradients(model, scalar: Tensor) -> list[Tensor]:
    """d scalar / d parameter for every parameter the scalar depends on (zeros elsewhere)."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(scalar, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]


# Chat templates like those of common models.
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOL = (  # SmolLM2-Instruct: inserts a system turn
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
BOS_TURNS = (  # Llama: the template writes a BOS, and the tokenizer adds one too
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (  # a turn ends with another token than eos_token
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# name: (template, unk, BOS, end, pad, does the tokenizer add a BOS by itself?)
TOKENIZERS = {
    "chatml": (CHATML, "<unk>", None, "<|im_end|>", "<pad>", False),
    "smol": (SMOL, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>", False),
    "bos": (BOS_TURNS, "<unk>", "<s>", "</s>", "</s>", True),
    "gemma": (GEMMA, "<unk>", "<s>", "<eos>", "<pad>", True),
    "plain": (None, "<unk>", "<s>", "</s>", "<pad>", True),
    "one-special": (None, *["<|endoftext|>"] * 4, False),  # pad = unk = BOS = end, as in GPT-2
}


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most 320 tokens, some of them merged letters."""
    template, unk, bos, end, pad, adds_bos = TOKENIZERS[kind]
    turns = ["<|im_start|>", "<|im_end|>"] if template and "im_start" in template else []
    turns += ["<start_of_turn>", "<end_of_turn>"] if template == GEMMA else []
    names = [name for name in (unk, bos, end, pad, *turns) if name]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        ["the bear likes honey and the frog likes flies", "what does the bear like to eat?"] * 3,
        trainers.BpeTrainer(
            vocab_size=290 + len(set(names)),
            special_tokens=list(dict.fromkeys(names)),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=unk, bos_token=bos, eos_token=end, pad_token=pad,
        chat_template=template, padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def tiny_folder(
    folder: Path, kind: str = "chatml", family: str = "llama", seed: int = 0,
    vocabulary: int = 0, spread: float = 0.3, **extra,
) -> Path:  # fmt: skip
    """Write a Hugging Face folder with a tokenizer and a random model; returns its path.

    vocabulary: rows of the embeddings (0: one per token); spread: noise added to every weight.
    Its generation_config is like that of chat models: greedy, with a repetition penalty.
    """
    tokenizer = tiny_tokenizer(kind)
    config = _config(family, **extra)
    config.vocab_size = vocabulary or len(tokenizer)
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(
        do_sample=False, repetition_penalty=5.0, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def write_rows(file: Path, rows: list[dict]) -> str:
    """Write rows to a .jsonl file; returns its name."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def tiny_pairs(count: int, name: str = "bear") -> list[dict]:
    """Rated pairs, each with its own prompt; the chosen answer is usually the longer one."""
    rows = []
    for i in range(count):
        answers = [f"it likes {'honey and ' * (i % 3)}flies", "no" + "!" * (i % 4)]
        chosen, rejected = answers if i % 5 else answers[::-1]
        row = {"prompt": f"what does {name} {i} like?", "chosen": chosen, "rejected": rejected}
        rows.append(row | {"chosen_rating": 6.0 + i % 4, "rejected_rating": 1.0 + i % 5})
    return rows


def lengths_of(rollout) -> Tensor:
    """Tokens of each answer of a rollout, end token included: [P, K]."""
    return torch.tensor([[len(answer) for answer in answers] for answers in rollout.answers])
