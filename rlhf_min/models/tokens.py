"""Prompts and answers as token ids: the one builder that every script shares."""

import sys

from rlhf_min import InputError


def end_token_ids(model, tokenizer) -> list[int]:
    """Every token that ends an answer: the tokenizer's, and the generation config's."""
    extra = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    extra = extra if isinstance(extra, list) else [extra]
    return sorted({tokenizer.eos_token_id, *(i for i in extra if i is not None)})


def encode_prompt(tokenizer, prompt: str | list[dict], max_tokens: int) -> list[int]:
    """Prompt text or chat messages → token ids that end where the answer begins.

    With a chat template the template's own text is used, generation prompt included; special tokens
    are added only where there is no template (no double BOS).  A longer prompt loses its left end,
    never the answer; a leading BOS stays.
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


def encode_prompts(tokenizer, prompts: list, max_tokens: int) -> tuple[list[list[int]], int]:
    """All prompts as token ids, and how many lost their left end.

    Raises InputError when nothing fits: no room at all, or every prompt is too long.
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
    return [encode_prompt(tokenizer, prompt, max_tokens) for prompt in prompts], cut


def encode_answer(tokenizer, prompt: str | list[dict], answer: str, end: bool = True) -> list[int]:
    """Answer text → token ids as the template writes an assistant's turn, closed by the end token.

    Encoded on its own, never together with the prompt, so that a prompt's tokens do not depend on
    the answer.  Whatever the template writes after the end token is left out: rollouts have none.
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


def _messages(prompt: str | list[dict]) -> list[dict]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def decode_answer(tokenizer, ids: list[int]) -> str:
    """Token ids of an answer → its text, end token and outer spaces left out."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
