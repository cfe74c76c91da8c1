"""Scores through a server with /v1/completions that gives log-probabilities of the prompt (`echo` with `logprobs`).

Prompts are sent as token ids, so that what is scored is what our tokenizer makes of a text: the server's model must
have the same vocabulary, which a fixed text that it echoes tells. Written is greedily only. What may pass (a busy
server, a broken connection) is asked again after a pause.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.prefixes import Ids
from gpt2.evaluate.score import Pair, Rolled, Scored, Scores, end_of_text, windows
from gpt2.evaluate.steps import Progress
from gpt2.runtime import say
from gpt2.tokenizer.bpe import Tokenizer

AT_ONCE = 16  # prompts in one request
TIMEOUT = 600.0  # seconds for one request
PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds before a request that failed is sent again: so many times, then the run ends
PASSING = frozenset({408, 429, *range(500, 600)} - {501})  # statuses that may be another one later
DEFAULT_CONTEXT = 1024  # where the server does not say
EDGE = 2
FEWER = (20, 5)  # likeliest tokens that servers give which refuse more: vLLM's limit, OpenAI's
PROBE = (
    "In the winter of 1969 the old ship lay at the end of the harbour, and nobody in the town could say who had "
    "brought her there. def add(a, b): return a + b"
)  # tells models of one name apart


class Refused(UserError):
    """The server is there, but does not do what this request asks (a status of 400, 422 or 501)."""


class Passing(UserError):
    """A failure that may pass: no connection, no whole answer, a server that is busy."""


class Slow(UserError):
    """No answer within TIMEOUT: the same request again would only keep the server busier."""


@dataclass
class RemoteScorer:
    """`Scores` behind a URL.

    The context is two tokens shorter than the server's: the last token that is scored is part of the prompt there,
    and the server wants room for one more. `tops`: more likeliest tokens than these it has refused to give. `at_once`:
    so many prompts in one request; half of them, from then on, where no answer comes.
    """

    url: str
    model: str
    tokenizer: Tokenizer
    context_length: int = DEFAULT_CONTEXT - EDGE
    tops: int | None = None
    at_once: int = AT_ONCE

    def continuations(self, pairs: Sequence[Pair], progress: Progress | None = None) -> list[Scored]:
        """As `Scorer.continuations`; the context is cut on its left where it is too long."""
        asked = [[*context, *after][-self.context_length - 1 :] for context, after in pairs]
        lengths = [len(after) for _, after in pairs]
        if any(length > self.context_length for length in lengths):
            raise UserError(f"a continuation passes what the server reads: {self.context_length} tokens")
        return [
            scored(choice["logprobs"], len(ids), length, self.url)
            for choice, ids, length in zip(
                self._ask(asked, progress, echo=True, logprobs=1), asked, lengths, strict=True
            )
        ]

    def rolling(
        self,
        texts: Sequence[Ids],
        window: int = 0,
        stride: int = 0,
        first: str = "eot",
        progress: Progress | None = None,
    ) -> list[Rolled]:
        """As `Scorer.rolling`."""
        window = window or self.context_length
        stride = stride or window
        found = []
        for text in texts:
            whole = [*end_of_text(self.tokenizer), *text] if first == "eot" else list(text)
            pairs = [
                (part.tokens[: len(part.tokens) - len(part.targets) + 1], part.targets)
                for part in windows(whole, window, stride)
            ]
            scores = self.continuations(pairs, progress)
            total = math.fsum(each.log_likelihood for each in scores)
            kept = "eot" if first == "eot" else "none"
            found.append(Rolled(total, sum(each.tokens for each in scores), window, stride, kept))  # type: ignore[arg-type]
        return found

    def greedy(
        self, prompts: Sequence[Ids], max_new_tokens: int | Sequence[int], stop: Sequence[str] = ()
    ) -> list[str]:
        """As `Scorer.greedy`."""
        most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        texts = []
        for ids, number in zip(prompts, most, strict=True):
            cut = list(ids[-(self.context_length - number) :])
            (choice,) = self._ask([cut], None, max_tokens=number, stop=list(stop)[:4])
            text = str(choice["text"])
            ends = [place for mark in stop if (place := text.find(mark)) >= 0]
            texts.append(text[: min(ends, default=len(text))])
        return texts

    def likeliest(self, contexts: Sequence[Ids], count: int) -> list[list[int]]:
        """The likeliest next tokens; fewer where the server gives fewer, or refuses to give so many."""
        cut = [list(ids[-self.context_length + 1 :]) for ids in contexts]
        found = []
        for choice in self._with_tops(cut, count if self.tops is None else min(count, self.tops)):
            tops = (choice["logprobs"].get("top_logprobs") or [{}])[0]
            ranked = sorted(tops, key=lambda text: -tops[text])
            tokens = [self.tokenizer.encode(text) for text in ranked]
            found.append([ids[0] for ids in tokens if len(ids) == 1])
        return found

    def probe(self) -> list[float]:
        """Log-probabilities of a fixed text's tokens, which say who answers; none where the server gives none.

        UserError where the server reads another text in our tokens.
        """
        ids = self.tokenizer.encode(PROBE)[: self.context_length]
        try:
            (choice,) = self._ask([ids], None, echo=True, logprobs=1)
        except Refused as error:
            say(f"{error}; so nobody can say whether it has the vocabulary of --tokenizer")
            return []
        found = (choice.get("logprobs") or {}).get("token_logprobs") or []
        self._refuse_another_vocabulary(ids, choice.get("text") or "")
        values = found[1 : len(ids)]
        return [round(value, 3) for value in values if isinstance(value, (int, float))]

    def _refuse_another_vocabulary(self, ids: Ids, echoed: str) -> None:
        sent = self.tokenizer.decode(list(ids))
        told = len(echoed) > len(sent) // 2  # some do not echo, or leave the text of tokens out
        if told and not echoed.lstrip().startswith(sent):
            raise UserError(
                f"{self.url}: reads {echoed[:30]!r} where {sent[:30]!r} was sent as tokens: '{self.model}' has another "
                "vocabulary; name a model with the same one by --tokenizer"
            )

    def _with_tops(self, prompts: Sequence[list[int]], count: int) -> list[Any]:
        """Choices with so many likeliest tokens, or as many as the server does not refuse."""
        for number in [count, *(fewer for fewer in FEWER if fewer < count)]:
            try:
                found = self._ask(prompts, None, max_tokens=1, logprobs=number)
            except Refused as error:
                refused = error
                continue
            self.tops = number if number < count else self.tops
            return found
        raise refused

    def _ask(
        self, prompts: Sequence[list[int]], progress: Progress | None, max_tokens: int = 1, **settings: Any
    ) -> list[Any]:
        """The choices for all prompts, in their order."""
        choices: list[Any] = []
        while len(choices) < len(prompts):
            part = list(prompts[len(choices) : len(choices) + self.at_once])
            body = {"model": self.model, "prompt": part, "max_tokens": max_tokens, "temperature": 0, **settings}
            try:
                found = post(f"{self.url}/v1/completions", body, PAUSES).get("choices", [])
            except Slow as error:
                if len(part) == 1:
                    raise
                self.at_once = len(part) // 2
                say(f"{error}; again with {self.at_once} prompts at a time")
                continue
            if len(found) != len(part):
                raise UserError(f"{self.url}: {len(found)} choices for {len(part)} prompts")
            choices += sorted(found, key=lambda choice: choice.get("index", 0))
            if progress:
                progress(len(choices), len(prompts))
        return choices


def scored(logprobs: Any, prompt: int, length: int, url: str) -> Scored:
    """Of the echoed prompt and what comes after it, a token or none: the prompt's last `length` tokens."""
    if not logprobs or not logprobs.get("token_logprobs"):
        raise UserError(f"{url}: gives no log-probabilities of prompts; it must do echo with logprobs")
    values = logprobs["token_logprobs"][:prompt][-length:]
    tops = (logprobs.get("top_logprobs") or [])[:prompt][-length:]
    if len(values) < length or any(value is None for value in values):
        raise UserError(f"{url}: log-probabilities of {len(values)} tokens where {length} were asked for")
    greedy = bool(tops) and all(
        top and value >= max(top.values()) - 1e-6 for top, value in zip(tops, values, strict=True)
    )
    return Scored(math.fsum(values), greedy, length)


def connect(url: str, tokenizer: str | None) -> tuple[Callable[[], Scores], dict[str, Any]]:
    """A scorer for the server's model and what results say of it; UserError where there is none."""
    from gpt2.checkpoint.find import find_folder
    from gpt2.tokenizer.files import load_tokenizer

    base = url.rstrip("/").removesuffix("/v1")
    listed = get(f"{base}/v1/models").get("data") or [{}]
    model = str(listed[0].get("id", "default"))
    context = next((int(listed[0][key]) for key in ("max_model_len", "context_length") if listed[0].get(key)), 0)
    words = load_tokenizer(find_folder(tokenizer or "gpt2"))
    scorer = RemoteScorer(base, model, words, (context or DEFAULT_CONTEXT) - EDGE)
    about = {"name": f"{model} at {base}", "sha256": None, "tokenizer": words.hash, "parameters": None}
    length, probe = scorer.context_length, scorer.probe()
    return lambda: scorer, about | {"context_length": length, "server": base, "model": model, "probe": probe}


def post(url: str, body: dict[str, Any], pauses: Sequence[float] = ()) -> dict[str, Any]:
    """`answer`, asked for again after each of these pauses (seconds) as long as what fails may pass."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for pause in pauses:
        try:
            return answer(request)
        except Passing as error:
            say(f"{error}; again in {pause:g} s")
            time.sleep(pause)
    try:
        return answer(request)
    except Passing as error:
        raise UserError(f"{error}; when the server is well again, the same command goes on from here") from None


def get(url: str) -> dict[str, Any]:
    """`answer`, asked for once: it comes first, and whoever mistook an address is to know at once."""
    try:
        return answer(urllib.request.Request(url))
    except Passing as error:
        raise UserError(f"{error}; is the server running there?") from None


def answer(request: urllib.request.Request) -> dict[str, Any]:
    """The JSON object that comes back; UserError of one line for whatever else does."""
    url = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            found = json.loads(response.read())
    except urllib.error.HTTPError as error:
        kind = Refused if error.code in (400, 422, 501) else Passing if error.code in PASSING else UserError
        raise kind(f"{url}: {error.code}: {said_with(error)}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError) and reason.errno is None:  # else the network's own, of a connection
            raise Slow(f"{url}: no answer within {TIMEOUT:g} s") from None
        raise Passing(f"{url}: {' '.join(str(reason).split()) or type(reason).__name__}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; expected JSON, as /v1/completions gives it") from None
    if not isinstance(found, dict):
        raise UserError(f"{url}: expected a JSON object")
    return found


def said_with(error: urllib.error.HTTPError) -> str:
    """What came with a status: the beginning, on one line."""
    try:
        return " ".join(error.read(300).decode("utf-8", "replace").split()) or str(error.reason)
    except (OSError, http.client.HTTPException):
        return str(error.reason)
