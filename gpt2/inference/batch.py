"""Many prompts from a file of JSON lines, their texts into another; a run that ended early goes on where it was.

Input: one object a line with `prompt` (text, or a list of token ids), maybe `id` (copied to the output), maybe
`adapter` (the folder of one over the model), maybe settings of its own by the names of SamplingParams' fields. Output:
one object a text, in the order in which they are finished, with `index` (the prompt's place in the input, from 0) and
`sample`.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import UserError, did_you_mean
from gpt2.inference.jobs import Job, take
from gpt2.inference.rows import Overflow, Prompt, Result, Text
from gpt2.inference.sampling import SamplingParams
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.inference.engine import Engine

SETTINGS = {field.name for field in fields(SamplingParams)}
AHEAD = 4  # prompts that wait in the engine for each one that it writes
SAVE_EVERY, SAY_EVERY = 1.0, 5.0  # seconds
BEGINNING = b'{"index": '  # of each line of the output
NOT_OURS = "is not of these prompts; name another --output, or remove that file"
Done = set[tuple[int, int]]  # (index, sample)


@dataclass(frozen=True)
class Item:
    """One line of the input."""

    index: int
    where: str  # file and line, for errors
    written: str | list[int]  # the prompt as it stands in the file
    prompt: Prompt  # as the engine takes it
    params: SamplingParams
    id: Any = None
    adapter: str | None = None


def read_items(path: Path, params: SamplingParams) -> list[Item]:
    """All prompts of a file, with `params` where a line has none of its own; empty lines are left out.

    UserError that names file and line for anything that is not as it should be.
    """
    items: list[Item] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            items.append(_item(len(items), f"{path} line {number}", line, params))
    return items


def named_adapters(items: Sequence[Item]) -> list[str]:
    """The folders that the items name, each once; the first is number 1 in the engine."""
    return list(dict.fromkeys(item.adapter for item in items if item.adapter is not None))


def check_items(engine: Engine, items: Sequence[Item], overflow: Overflow) -> None:
    """UserError for the first prompt that the model cannot take, before anything is written."""
    config = engine.runner.config
    for item in items:
        try:
            text = Text(config, engine.tokenizer, item.prompt, item.params, overflow)
            engine.scheduler.check(len(text.prompt), item.params.max_new_tokens, config.context_length)
        except UserError as error:
            raise UserError(f"{item.where}: {error}") from None


def finished(path: Path, items: Sequence[Item]) -> Done:
    """What an earlier run has written; half a line at the end, where it was cut off, is taken away.

    UserError for lines that are not of these prompts.
    """
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines()
    done = {_text_of(line, items, f"{path} line {number}") for number, line in enumerate(lines, 1)}
    if data[whole:].startswith(BEGINNING) or BEGINNING.startswith(data[whole:]):
        os.truncate(path, whole)
        return done
    raise UserError(f"{path} line {len(lines) + 1}: {NOT_OURS}")


def write_all(
    engine: Engine,
    items: Sequence[Item],
    output: Path,
    as_dict: Callable[[Item, Result], dict[str, Any]],
    overflow: Overflow = "slide",
) -> None:
    """Write every text that the output does not have yet; those that may become longest are begun first.

    The engine's adapters are `named_adapters` of all the items, in their order.
    """
    check_items(engine, items, overflow)
    done = finished(output, items)
    left = [item for item in items if any((item.index, sample) not in done for sample in range(item.params.n))]
    if len(left) < len(items):
        say(f"{output}: has the texts of {len(items) - len(left)} of {len(items)} prompts already")
    left.sort(key=lambda item: -item.params.max_new_tokens)
    ticker = Ticker(output, len(items), len(items) - len(left))
    with Lines(output) as lines:
        for item, results in _results(engine, left, overflow, named_adapters(items)):
            for result in results:
                if (item.index, result.sample) not in done:
                    lines.write(as_dict(item, result))
            ticker.tick(sum(len(result.tokens) for result in results))


class Lines:
    """A file that objects are added to, one a line: the system has each at once, the disk a second or so later."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._saved = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._save()
        self._file.close()

    def write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()  # the next one may take long, and a process may be killed meanwhile
        if time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        os.fsync(self._file.fileno())
        self._saved = time.monotonic()


class Ticker:
    """How far it has come, on stderr now and then."""

    def __init__(self, output: Path, total: int, done: int) -> None:
        self.output, self.total, self.done, self.begun_with = output, total, done, done
        self.tokens = 0
        self.begun = self.said = time.monotonic()

    def tick(self, tokens: int) -> None:
        """One more prompt is done."""
        self.done, self.tokens = self.done + 1, self.tokens + tokens
        now = time.monotonic()
        if now - self.said >= SAY_EVERY or self.done == self.total:
            self.said = now
            say(self.line(now - self.begun))

    def line(self, seconds: float) -> str:
        left = (self.total - self.done) * seconds / (self.done - self.begun_with)
        rate = self.tokens / max(seconds, 1e-9)
        return f"{self.output}: {self.done} of {self.total} prompts, {rate:,.0f} tokens/s, {left:.0f} s left"


def _results(
    engine: Engine, items: Sequence[Item], overflow: Overflow, adapters: Sequence[str]
) -> Iterator[tuple[Item, list[Result]]]:
    """Each item with its results, as they are finished; a few wait in the engine, the rest here."""
    waiting, numbers = deque(items), {name: number for number, name in enumerate(adapters, 1)}
    live: dict[Job, tuple[Item, list[Result]]] = {}
    try:
        while waiting or live:
            while waiting and len(live) < AHEAD * engine.max_streams:
                item = waiting.popleft()
                number = 0 if item.adapter is None else numbers[item.adapter]
                live[engine.add(item.prompt, item.params, overflow, number)] = (item, [])
            engine.step()
            for job, (item, results) in tuple(live.items()):
                results += _taken(job, item)
                if len(results) == job.rows:
                    del live[job]
                    yield item, results
    finally:
        for job in live:
            engine.cancel(job)


def _taken(job: Job, item: Item) -> list[Result]:
    """The results that have come."""
    results: list[Result] = []
    while job.inbox:
        try:
            piece = take(job.inbox)
        except UserError as error:
            raise UserError(f"{item.where}: {error}") from None
        if piece.result:
            results.append(piece.result)
    return results


def _item(index: int, where: str, line: bytes, params: SamplingParams) -> Item:
    values = _object(line, where)
    if "prompt" not in values:
        raise UserError(f'{where}: has no "prompt"')
    written, name, adapter = values.pop("prompt"), values.pop("id", None), values.pop("adapter", None)
    if not (adapter is None or isinstance(adapter, str)):
        raise UserError(f'{where}: "adapter" must be the name of a folder')
    ids = isinstance(written, list) and all(type(token) is int for token in written)
    if not (isinstance(written, str) or ids):
        raise UserError(f'{where}: "prompt" must be a text, or a list of token ids')
    for key in values:
        if key not in SETTINGS:
            raise UserError(f'{where}: "{key}" is no setting{did_you_mean(key, SETTINGS)}')
    try:
        own = replace(params, **values)
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    return Item(index, where, written, written, own, name, adapter)


def _text_of(line: bytes, items: Sequence[Item], where: str) -> tuple[int, int]:
    """Which text a line of the output is."""
    values = _object(line, where)
    index: Any = values.get("index")
    sample: Any = values.get("sample")
    whole = isinstance(index, int) and isinstance(sample, int) and 0 <= index < len(items)
    if not whole or items[index].written != values.get("prompt"):
        raise UserError(f"{where}: {NOT_OURS}")
    return index, sample


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({str(error)[:80]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, found a {type(values).__name__}")
    return values
