"""Prompts and answers as token ids: all scripts build their rows here."""

import json
import sys
from dataclasses import dataclass
from functools import lru_cache

from rlhf_min import InputError

TEXTS = 256  # encoded by one call: more are not faster, and need memory until all are encoded


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt (text or chat messages) and its token ids."""

    prompt: str | list[dict]
    ids: list[int]


def end_token_ids(model, tokenizer) -> list[int]:
    """Token ids that end an answer: from tokenizer, chat template and generation config.

    Raises InputError for ids that the model does not have.
    """
    check_vocabulary(tokenizer, model)
    extra = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    extra = extra if isinstance(extra, list) else [extra]
    rows = range(model.get_input_embeddings().num_embeddings)
    if wrong := [i for i in extra if i is not None and (type(i) is not int or i not in rows)]:
        raise InputError(
            f"{model.name_or_path}/generation_config.json: eos_token_id {wrong[0]!r} is no token "
            f"id from 0 to {len(rows) - 1}: correct it"
        )
    return sorted({tokenizer.eos_token_id, turn_end(tokenizer)[0], *extra} - {None})


def check_vocabulary(tokenizer, model) -> None:
    """Raise InputError if a text can have tokens for which the model has no embedding.

    Special tokens that no text here gets may lack one: Gemma 3 has one for images.
    """
    rows = model.get_input_embeddings().num_embeddings
    used = tokenizer.eos_token_id, tokenizer.bos_token_id, turn_end(tokenizer)[0]
    unused = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} - {*used}
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= rows and i not in unused}
    if beyond:
        token, text = min(beyond.items())
        raise InputError(
            f"{model.name_or_path} has {rows} embeddings, but its tokenizer gives {text!r:.50} the "
            f"id {token}: model and tokenizer do not belong together, or a file of them is damaged"
        )


def plain_text(prompt: str | list[dict]) -> str:
    """A prompt for a model without a chat template: chat messages become paragraphs."""
    return prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)


def chat_text(tokenizer, prompt: str | list[dict], answer: str | None = None) -> str:
    """The chat template's text: up to where the answer begins, or with this answer.

    Raises InputError when the template refuses the messages (Gemma: no system turn).
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    settings = {"tokenize": False, "add_generation_prompt": answer is None}
    if answer is not None:
        messages = [*messages, {"role": "assistant", "content": answer}]
    try:
        return tokenizer.apply_chat_template(messages, **settings)
    except Exception as error:  # a template is a program, whose errors are of any type
        reason = str(error) or type(error).__name__
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses the prompt {prompt!r:.200} "
            f"({reason}): change the prompt's turns, or take another model"
        ) from error


def encode_prompt(tokenizer, prompt: str | list[dict], max_tokens: int = sys.maxsize) -> list[int]:
    """Prompt text or chat messages → token ids, up to where the answer begins.

    The tokenizer adds special tokens only where there is no chat template, so that none comes
    twice.  A longer prompt is cut on the left to max_tokens; a leading BOS stays.
    """
    if max_tokens < 1:
        raise InputError("--max-new-tokens leaves no room for the prompt in the context: lower it")
    bos = tokenizer.bos_token_id
    ids = _uncut_ids(tokenizer, tokenizer.chat_template, json.dumps(prompt))
    ids = ids or [tokenizer.eos_token_id if bos is None else bos]
    cut = max(0, len(ids) - max_tokens)
    kept = int(ids[0] == bos and max_tokens > 1)
    return ids[:kept] + ids[kept + cut :]


# Prompts come again with each of their answers, so their text and ids are remembered.  The template
# is an argument because a tokenizer's template may be changed.
@lru_cache(maxsize=2**13)
def _chat_start(tokenizer, template: str, prompt: str) -> str:
    return chat_text(tokenizer, json.loads(prompt))


@lru_cache(maxsize=2**13)
def _uncut_ids(tokenizer, template: str | None, prompt: str) -> list[int]:
    if template:
        text = _chat_start(tokenizer, template, prompt)
        return tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(plain_text(json.loads(prompt))).input_ids
    # some tokenizers close every text
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def encode_prompts(tokenizer, prompts: list, max_tokens: int) -> tuple[list[EncodedPrompt], int]:
    """All prompts with their token ids, and how many were cut on the left."""
    if not prompts:
        raise InputError("no prompt is left: give more --data, or other --eval-data")
    encoded = [EncodedPrompt(p, encode_prompt(tokenizer, p, max_tokens)) for p in prompts]
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    cut = sum(length > max_tokens for length in lengths)
    if cut == len(prompts):
        raise InputError(
            f"every prompt is longer than the context: the shortest has {min(lengths)} tokens, "
            f"there is room for {max_tokens}; take a model with a longer context or shorter prompts"
        )
    if cut:
        print(f"{cut} of {len(prompts)} prompts were cut on the left to fit {max_tokens} tokens")
    return encoded, cut


def encode_answer(tokenizer, prompt: str | list[dict], answer: str, end: bool = True) -> list[int]:
    """Answer text → token ids of an assistant turn in the chat template, with the end token.

    It is encoded without the prompt, whose tokens must not depend on it.  What the template adds
    after the end token is left out, because rollouts do not have it.
    """
    ids = encode_answers(tokenizer, [prompt], [answer])[0]
    return ids if end else ids[:-1]


def encode_answers(tokenizer, prompts: list, answers: list[str]) -> list[list[int]]:
    """`encode_answer` of many answers [B] to prompts [B], in less time: token ids [B]."""
    end_id, after = turn_end(tokenizer)
    if template := tokenizer.chat_template:
        texts = []
        for prompt, answer in zip(prompts, answers, strict=True):
            before = _chat_start(tokenizer, template, json.dumps(prompt))
            whole = chat_text(tokenizer, prompt, answer)
            if whole.startswith(before):
                answer = whole.removeprefix(before).removesuffix(after)
            texts.append(answer)
        answers = texts
    ids = []
    for i in range(0, len(answers), TEXTS):
        part = answers[i : i + TEXTS]
        ids += tokenizer(part, add_special_tokens=False, return_attention_mask=False).input_ids
    return [[*own, end_id] for own in ids]


def turn_end(tokenizer) -> tuple[int, str]:
    """The token id that ends an answer, and the chat template's text from that token on.

    It is the first special token that the template writes after an answer: Gemma's <end_of_turn>
    is not its eos_token.  Without a template, or such a token, it is eos_token.
    """
    return _turn_end(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=16)
def _turn_end(tokenizer, template: str | None) -> tuple[int, str]:
    if template:
        after = chat_text(tokenizer, "question", "\u2063").partition("\u2063")[2]
        special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        for i in tokenizer(after, add_special_tokens=False).input_ids:
            if i in special:
                return i, after[after.find(special[i]) :]
    return tokenizer.eos_token_id, ""


def same_vocabulary(tokenizer, other) -> bool:
    """Whether each token has the same id in both tokenizers."""
    vocabulary, others = tokenizer.get_vocab(), other.get_vocab()
    if "<|pad|>" not in vocabulary:
        others.pop("<|pad|>", None)  # which `separate_pad` added
    return vocabulary == others


def same_tokens(tokenizer, other) -> bool:
    """Whether two models can share token ids: same vocabulary and chat template."""
    same_template = tokenizer.chat_template == other.chat_template
    return same_template and same_vocabulary(tokenizer, other)


def decode_answer(tokenizer, ids: list[int]) -> str:
    """Token ids of an answer → text, without special tokens and outer white space."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
