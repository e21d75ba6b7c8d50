"""A language model as judge, over any OpenAI-compatible endpoint (OpenAI, Gemini, vLLM, Ollama, …).

An answer may try to dictate the verdict (prompt injection).  Two defences: each answer stands
between marker lines with a random code, and spaces break up everything in it that looks like such a
marker or a token of a chat template; and a reply is accepted only if it holds exactly one verdict.
"""

import json
import os
import re
import secrets
from functools import partial
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from rlhf_min import InputError
from rlhf_min.data.preferences import Prompt, prompt_text
from rlhf_min.judging.comparisons import Verdict

REQUEST = Template(Path(__file__).with_name("request.txt").read_text("utf-8").strip())
MARKERS = re.compile(r"<{3,}|>{3,}|<\||\|>|</?s>|\[/?INST\]|</?(?:start|end)_of_turn>", re.I)
REPLY_TOKENS = 512
# Request parameters, most specific first: some servers refuse JSON mode, temperature or max_tokens.
PARAMETERS = (
    {"temperature": 0, "max_tokens": REPLY_TOKENS, "response_format": {"type": "json_object"}},
    {"temperature": 0, "max_tokens": REPLY_TOKENS},
    {"max_completion_tokens": 8 * REPLY_TOKENS},  # for models that reason before they answer
)
TOO_LONG = re.compile(r"context.(length|window|size)|too (long|large)|maximum.*tokens", re.I)
WINNERS = {"1": "first", "2": "second", "tie": "tie"}
PAIRS = json.JSONDecoder(object_pairs_hook=list)  # a dict would hide the first of two winners


def question(prompt: Prompt, first: str, second: str, code: str) -> str:
    """The request, as one user message: not every chat template has a system message."""
    texts = {"prompt": prompt_text(prompt), "first": first, "second": second}
    for name, text in texts.items():  # spaces inside everything that looks like a marker
        texts[name] = MARKERS.sub(lambda match: " ".join(match[0]), text)
    return REQUEST.substitute(texts, code=code)


def read_verdict(reply: str) -> tuple[str, str]:
    """Winner and explanation of a reply; the winner is "failed" unless it holds one verdict.

    A verdict is a JSON object whose "winner" is 1, 2 or tie; other text is ignored, as is a <think>
    part at the start.  Two winners are refused, because one may be quoted from an answer.
    """
    text = re.sub(r"\A\s*<think>.*?</think>", "", reply, flags=re.DOTALL)[:20_000]
    verdicts, end = [], 0
    while (start := text.find("{", end)) >= 0:
        try:
            pairs, end = PAIRS.raw_decode(text, start)
            names = [name for name, _ in pairs]
            verdicts += [json.loads(text[start:end])] * names.count("winner")
        except ValueError:
            end = start + 1
        except RecursionError:
            return "failed", "the reply is nested too deeply"
    if len(verdicts) != 1:
        return "failed", f"{len(verdicts)} verdicts in the reply, one was asked for"
    winner = str(verdicts[0]["winner"]).strip().lower()
    if winner not in WINNERS:
        return "failed", f"{winner[:40]!r} is no verdict"
    return WINNERS[winner], str(verdicts[0].get("explanation", "")).strip()


class OpenAIJudge:
    """A model behind an OpenAI-compatible server.

    The client repeats a request after 429, 5xx, a time-out or a lost connection, with exponential
    back-off or as Retry-After says.  The key is sent to the server only, and cut from its replies.
    """

    def __init__(self, model: str, base_url: str | None, timeout: float, retries: int):
        """timeout: seconds per attempt; retries: further attempts.  Raises InputError."""
        try:
            import openai
        except ImportError:
            raise InputError("--judge openai:… needs pip install 'rlhf-min[judge]'") from None
        url = urlsplit(base_url or "https://api.openai.com")
        if url.scheme not in ("http", "https") or url.username or url.query:
            raise InputError(
                "--base-url must be http(s)://host/path, with no name, password or query in it: "
                "the key comes from OPENAI_API_KEY"
            )
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self.key and not base_url:
            raise InputError("--judge openai:… needs a key: set OPENAI_API_KEY, or give --base-url")
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError("OPENAI_API_KEY holds a character that no key has: set it again")
        self.openai, self.model, self.level = openai, model, 0  # level: index into PARAMETERS
        key = self.key or "none"
        client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=retries)
        self.create = partial(client.chat.completions.create, model=model)

    def __call__(self, prompt: Prompt, first: str, second: str) -> Verdict:
        """The verdict; "failed" when there is none.  Raises InputError for a wrong key or model.

        A text too long for the judge is a failure with a reply: --resume does not ask it again.
        """
        try:
            completion = self._complete(question(prompt, first, second, secrets.token_hex(8)))
            reply = self._without_key(completion.choices[0].message.content)
        except (self.openai.AuthenticationError, self.openai.PermissionDeniedError) as error:
            raise InputError(
                f"the server refuses the key ({error.status_code}): set OPENAI_API_KEY and --resume"
            ) from None
        except self.openai.NotFoundError:
            raise InputError(
                f"the server knows no model {self.model!r} (404): check --judge and --base-url"
            ) from None
        except self.openai.APIError as error:
            status = getattr(error, "status_code", None)
            message = self._without_key(str(error))[:200] if status else ""
            if status == 413 or (status in (400, 422) and TOO_LONG.search(message)):
                return Verdict("failed", f"too long for the judge: {message}", reply=message)
            return Verdict("failed", f"no reply: {type(error).__name__} {message}".strip())
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
            # the client does not check that the body is a chat completion
            return Verdict("failed", "no reply: the server's answer is no chat completion")
        winner, explanation = read_verdict(reply)
        used = [getattr(completion.usage, f"{k}_tokens", 0) for k in ("prompt", "completion")]
        return Verdict(winner, explanation, reply, *(n if type(n) is int else 0 for n in used))

    def _complete(self, text: str):
        """The chat completion, with the most specific parameters that the server accepts."""
        message = {"role": "user", "content": text}
        for level in range(self.level, len(PARAMETERS)):
            try:
                completion = self.create(messages=[message], **PARAMETERS[level])
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError):
                if level + 1 == len(PARAMETERS):
                    raise
            else:  # remembered after a success only: a refusal may be about this one text
                self.level = level
                return completion

    def _without_key(self, text: str) -> str:
        """The text, with the key replaced by [key].  Raises TypeError if it is not a text."""
        return str.replace(text, self.key, "[key]" if self.key else "")

    def estimate(self, questions: list[tuple[Prompt, str, str]]) -> str:
        """One line with the tokens that these questions will take, at 4 characters per token."""
        prompt_tokens = sum(len(question(*q, "0" * 16)) for q in questions) // 4
        return (
            f"{len(questions)} questions to {self.model}: about {prompt_tokens:,} tokens to read "
            f"and at most {len(questions) * REPLY_TOKENS:,} to write (more if it thinks first)"
        )
