"""Prompts and answers as token ids: all scripts build their rows here."""

import sys
from dataclasses import dataclass

from rlhf_min import InputError


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt (text or chat messages) and its token ids."""

    prompt: str | list[dict]
    ids: list[int]


def end_token_ids(model, tokenizer) -> list[int]:
    """Token ids that end an answer: from the tokenizer and from the generation config."""
    extra = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    extra = extra if isinstance(extra, list) else [extra]
    return sorted({tokenizer.eos_token_id, *(i for i in extra if i is not None)})


def encode_prompt(tokenizer, prompt: str | list[dict], max_tokens: int) -> list[int]:
    """Prompt text or chat messages → token ids, up to where the answer begins.

    A chat template brings its special tokens and the generation prompt; the tokenizer adds special
    tokens only where there is no template, so that none comes twice.  A longer prompt is cut on the
    left to max_tokens; a leading BOS stays.
    """
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            _messages(prompt), tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False).input_ids
    else:
        text = prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
        ids = tokenizer(text).input_ids
        if ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1:
            ids = ids[:-1]  # some tokenizers close every text
    if not ids:
        bos = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if bos is None else bos]
    if len(ids) <= max_tokens:
        return ids
    if ids[0] == tokenizer.bos_token_id and max_tokens > 1:
        return [ids[0], *ids[len(ids) - max_tokens + 1 :]]
    return ids[len(ids) - max_tokens :]


def encode_prompts(tokenizer, prompts: list, max_tokens: int) -> tuple[list[EncodedPrompt], int]:
    """All prompts with their token ids, and how many were cut on the left, which is also printed.

    Raises InputError when there is no prompt or no room, or when every prompt is too long.
    """
    if not prompts:
        raise InputError("no prompt is left: give more --data, or other --eval-data")
    if max_tokens < 1:
        raise InputError(
            "--max-new-tokens leaves no room for the prompt in the model's context: lower it"
        )
    whole = [len(encode_prompt(tokenizer, prompt, sys.maxsize)) for prompt in prompts]
    cut = sum(length > max_tokens for length in whole)
    if cut == len(prompts):
        raise InputError(
            f"every prompt is longer than the context: the shortest has {min(whole)} tokens, there "
            f"is room for {max_tokens}; take a model with a longer context or shorten the prompts"
        )
    if cut:
        print(f"{cut} of {len(prompts)} prompts were cut on the left to fit {max_tokens} tokens")
    return [EncodedPrompt(p, encode_prompt(tokenizer, p, max_tokens)) for p in prompts], cut


def encode_answer(tokenizer, prompt: str | list[dict], answer: str, end: bool = True) -> list[int]:
    """Answer text → token ids of an assistant turn in the chat template, with the end token.

    The answer is encoded without the prompt, so that a prompt's tokens do not depend on its answer.
    Text that the template adds after the end token is left out, because rollouts do not have it.
    """
    if tokenizer.chat_template:
        messages = _messages(prompt)
        head = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        full = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": answer}], tokenize=False
        )
        if full.startswith(head):
            body = full[len(head) :]
            cut = body.rfind(tokenizer.eos_token)
            answer = body[:cut] if cut >= 0 else body
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    return [*ids, tokenizer.eos_token_id] if end else ids


def same_tokens(tokenizer, other) -> bool:
    """Whether two tokenizers have the same vocabulary and chat template, so that ids can be shared.

    A pad token that `separate_pad` added to the second does not count.
    """
    vocabulary, others = tokenizer.get_vocab(), other.get_vocab()
    if "<|pad|>" not in vocabulary:
        others.pop("<|pad|>", None)
    return vocabulary == others and tokenizer.chat_template == other.chat_template


def _messages(prompt: str | list[dict]) -> list[dict]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def decode_answer(tokenizer, ids: list[int]) -> str:
    """Token ids of an answer → text, without special tokens and outer white space."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
