"""Put a question to one or several models; rewards and gold ratings stand beside the answers.

    python -m rlhf_min.try                                  # asks for questions, one per line
    python -m rlhf_min.try "Tell me the food of the bear."  # runs/zoo-base and runs/policy answer
    python -m rlhf_min.try runs/hacked owner/name "Hi!"     # other models: folders or hub ids

Words without a flag are models, but the last one is the prompt, unless it is a folder or has a /
and no white space.  With --prompt all of them are models.
Each question stands alone: a model sees no earlier turns.  A chat of several turns is left out.
"""

import rlhf_min.startup  # noqa: F401  first: signals and threads, before torch

import os.path
import re
from dataclasses import dataclass
from typing import Literal

from rlhf_min.command_line import check_flags, check_ranges, option, run


@dataclass(frozen=True)
class Config:
    """Settings of rlhf_min.try."""

    usage = 'python -m rlhf_min.try [MODEL ...] ["PROMPT"] [flags]'

    models: list[str] | None = option(
        None, "folders or hub ids; without any: runs/zoo-base and runs/policy, if they exist"
    )
    prompt: str | None = option(None, "the question; without it, questions are read from stdin")
    reward_model: str = option("auto", "folder or hub id, none, or auto: runs/rm if it exists")
    max_new_tokens: int = option(64, "longest answer, in tokens", at_least=1)
    temperature: float = option(1.0, "of the sampling distribution", at_least=0.01)
    dtype: Literal["auto", "float32", "bfloat16"] = option("float32", "what the models compute in")
    seed: int = option(0, "of each model's first answer; later ones differ", at_least=0)

    @staticmethod
    def from_words(words: list[str], settings: dict) -> dict:
        """The settings in words that belong to no flag: models, and possibly a last prompt."""
        names_model = os.path.isdir(words[-1]) or re.fullmatch(r"\S*/\S*", words[-1])
        prompt = settings["prompt"]
        if prompt is None and not names_model:
            *words, prompt = words
        return {"models": [*(settings["models"] or []), *words] or None, "prompt": prompt}


if __name__ == "__main__":
    check_flags(Config)  # --help and wrong flags are answered before the slow imports below

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from rlhf_min import InputError
from rlhf_min.data.visible import visible
from rlhf_min.defaults import REWARD_MODEL
from rlhf_min.hardware.decoding import decoding_mode
from rlhf_min.hardware.device import choose_dtype
from rlhf_min.hardware.finite import check_finite
from rlhf_min.models.decoding import make_decoder
from rlhf_min.models.layout import context_length
from rlhf_min.models.loading import load_causal_lm, load_tokenizer
from rlhf_min.models.reward_model import reward_from
from rlhf_min.models.sampling import draw
from rlhf_min.models.scoring import BROKEN, RewardScorer
from rlhf_min.models.tokens import decode_answer, encode_prompt, end_token_ids
from rlhf_min.zoo import world
from rlhf_min.zoo.start_model import CHAT_TEMPLATE, START_MODEL

MODELS = (START_MODEL, "runs/policy")


def is_whole(folder: str) -> bool:
    """Whether a folder holds a model that is saved to its end."""
    return Path(folder, "config.json").is_file()


class Answerer:
    """A language model with its tokenizer and its own random numbers."""

    def __init__(self, path: str, config: Config):
        if Path(path).is_dir() and not is_whole(path):
            raise InputError(f"{path} holds no finished model (no config.json): give another one")
        self.path, self.temperature, self.room = path, config.temperature, config.max_new_tokens
        self.tokenizer = load_tokenizer(path)
        self.model = load_causal_lm(path, choose_dtype(config.dtype))
        self.ends = end_token_ids(self.model, self.tokenizer)
        self.generator = torch.Generator(self.model.device).manual_seed(config.seed)

    def encode(self, prompt: str) -> list[int]:
        """The prompt's token ids.  Raises InputError if it is longer than the context."""
        ids, context = encode_prompt(self.tokenizer, prompt), context_length(self.model)
        if len(ids) + self.room > context:
            raise InputError(
                f"the prompt has {len(ids)} tokens, and with --max-new-tokens {self.room} that is "
                f"more than the context of {self.path} ({context}): shorten it, or give a lower one"
            )
        return ids

    @torch.no_grad()
    def stream(self, prompt: list[int]) -> Iterator[int]:
        """Token ids of one answer, each as soon as it is drawn: the same as those of `sample`."""
        u = torch.rand(self.room, 1, generator=self.generator, device=self.model.device)
        with decoding_mode(self.model, self.room):
            decoder = make_decoder(self.model, [prompt], 1, self.room)
            logits = decoder.logits  # [1, V]
            for t in range(self.room):
                z = logits if self.temperature == 1 else logits.float() / self.temperature
                probabilities = z.softmax(-1, dtype=torch.float32)
                token = draw(probabilities, u[t])
                check_finite(f"a probability of {self.path}", probabilities[0, token], BROKEN)
                yield int(token)
                if int(token) in self.ends or t + 1 == self.room:
                    return
                logits = decoder(token)

    def answer(self, prompt: str) -> tuple[str, list[int]]:
        """An answer and its token ids; it is printed while it is sampled."""
        ids, shown = [], ""
        for token in self.stream(self.encode(prompt)):
            ids.append(token)
            # The end may be part of a character (U+FFFD), or white space that is cut off later.
            text = visible(decode_answer(self.tokenizer, ids)).rstrip("\ufffd").rstrip()
            if text.startswith(shown):
                print(text[len(shown) :], end="", flush=True)
                shown = text
        text = decode_answer(self.tokenizer, ids)
        whole = visible(text)
        again = not whole.startswith(shown)  # the last tokens changed the text before them
        print(f"\n{whole}" if again else whole[len(shown) :] or ("" if whole else "(empty)"))
        return text, ids


def answer_all(prompt: str, answerers: list[Answerer], scorer: RewardScorer | None) -> list[dict]:
    """Print the answer of every model with its reward and gold rating; returns those."""
    for answerer in answerers:
        answerer.encode(prompt)  # a prompt that one model cannot take is refused before any answer
    results = []
    for answerer in answerers:
        print(f"── {answerer.path}")
        text, ids = answerer.answer(prompt)
        finished = ids[-1] in answerer.ends
        facts = {}
        if scorer:
            outputs = scorer.text_outputs([prompt], [[text]], [[finished]])
            check_finite("the reward", outputs, BROKEN)
            facts["reward"] = reward_from(outputs, "mean").item()
        if prompt in world.QUESTIONS:
            facts["gold"] = world.gold_rating(prompt, text)
        shown = [f"{name} {value:.2f}" for name, value in facts.items()]
        cut = "" if finished else ", cut off at --max-new-tokens"
        print("   " + "; ".join([*shown, f"{len(ids)} tokens{cut}"]), flush=True)
        results.append({"model": answerer.path, "answer": text, "finished": finished} | facts)
    from_zoo = any(a.tokenizer.chat_template == CHAT_TEMPLATE for a in answerers)
    if from_zoo and prompt not in world.QUESTIONS:
        example = world.prompts("held-out")[0]
        print(f"   no gold rating: this is no question of the zoo, such as “{example}”")
    return results


def read_prompts() -> Iterator[str]:
    """Questions from stdin, one per line, until an empty line or the end of the input."""
    at_terminal = sys.stdin.isatty()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            prompt = input("\n> " if at_terminal else "").strip()
        except EOFError:
            print()  # what follows begins on its own line
            return
        if not prompt:
            return
        if not at_terminal:
            print(f"\n> {visible(prompt)}")
        yield prompt


def main(config: Config) -> list[dict]:
    """Answer --prompt, or every question on stdin; returns the last answers with their scores."""
    check_ranges(config)
    if config.prompt is not None and not config.prompt.strip():
        raise InputError("the prompt is empty: ask a question, or leave it out")
    paths = config.models or [path for path in MODELS if is_whole(path)]
    if not paths:
        train = "train it with `python train_policy.py`, or name a model"
        raise InputError(f"neither {MODELS[0]} nor {MODELS[1]} holds a model: {train}")
    reward_model = config.reward_model
    if reward_model == "auto":
        reward_model = REWARD_MODEL if is_whole(REWARD_MODEL) else "none"
    answerers = [Answerer(path, config) for path in paths]
    dtype = choose_dtype(config.dtype)
    scorer = None if reward_model == "none" else RewardScorer(reward_model, dtype)
    print(f"reward model: {reward_model}; temperature {config.temperature:g}, seed {config.seed}")
    if config.prompt is not None:
        return answer_all(config.prompt, answerers, scorer)
    print("One question per line; an empty line or Ctrl-D ends.")
    results = []
    for prompt in read_prompts():
        try:
            results = answer_all(prompt, answerers, scorer)
        except InputError as error:  # about this question only
            print(f"error: {visible(str(error))}", file=sys.stderr)
    return results


if __name__ == "__main__":
    run(main, Config)
