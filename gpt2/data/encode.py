"""The second reading: text to ids, in threads, into shards that a killed run can go on with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gpt2.data.options import Options
from gpt2.data.parallel import Workers, batches
from gpt2.data.progress import progress
from gpt2.data.resume import Work
from gpt2.data.scan import utf8_length
from gpt2.data.shards import LLMC_SHARD_TOKENS, ShardWriter, dtype_for
from gpt2.data.splitting import Part

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

JOURNAL_BATCHES = 32
SIDES: tuple[Literal["train", "val"], ...] = ("train", "val")


@dataclass
class Side:
    """What was written of one side so far: its part of the journal."""

    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0


@dataclass(frozen=True)
class _Encoded:
    ids: npt.NDArray[Any]
    documents: int
    text_bytes: int


def encode_parts(
    parts: Iterable[Part],
    text_bytes: int,
    tokenizer: Tokenizer,
    eot_id: int | None,
    options: Options,
    work: Work,
    workers: Workers,
) -> dict[str, tuple[list[str], Side]]:
    """Write all parts to shards in `work`; the files' names and counts of each side.

    Batches are numbered. The journal says how many are safe on disk, and how long the shards were then: a resumed
    run cuts them to that length, passes over so many batches, and goes on.
    """
    journal = work.read("journal") or {"batches": 0}
    done: int = journal["batches"]
    sides = {side: Side(**journal.get(side, {})) for side in SIDES}
    writers = {side: _writer(work, side, sides[side].tokens, tokenizer, options) for side in SIDES}
    numbered = batches(parts)
    for _ in zip(range(done), numbered, strict=False):
        pass
    encode = partial(_encode, tokenizer=tokenizer, eot_id=eot_id, dtype=dtype_for(tokenizer.vocab_size))
    with progress("encoding", text_bytes) as update:
        for encoded in workers.map(encode, numbered):
            for side in SIDES:
                writers[side].write(encoded[side].ids)
                sides[side].tokens += len(encoded[side].ids)
                sides[side].documents += encoded[side].documents
                sides[side].text_bytes += encoded[side].text_bytes
            done += 1
            if done % JOURNAL_BATCHES == 0:
                _checkpoint(work, done, sides, writers)
            update(sum(side.text_bytes for side in sides.values()))
    for writer in writers.values():
        writer.close()
    _checkpoint(work, done, sides, writers)
    return {side: (writers[side].files, sides[side]) for side in SIDES}


def _writer(work: Work, side: str, position: int, tokenizer: Tokenizer, options: Options) -> ShardWriter:
    shard_tokens = options.shard_tokens
    if shard_tokens is None and options.format == "llmc":
        shard_tokens = LLMC_SHARD_TOKENS
    return ShardWriter(work.folder, side, dtype_for(tokenizer.vocab_size), options.format, shard_tokens, position)


def _checkpoint(work: Work, done: int, sides: dict[Any, Side], writers: dict[Any, ShardWriter]) -> None:
    for writer in writers.values():
        writer.sync()
    work.write("journal", {"batches": done, **{name: vars(side) for name, side in sides.items()}})


def _encode(batch: list[Part], tokenizer: Tokenizer, eot_id: int | None, dtype: str) -> dict[str, _Encoded]:
    end = np.array([] if eot_id is None else [eot_id], np.uint32)
    encoded: dict[str, _Encoded] = {}
    for side in SIDES:
        parts = [part for part in batch if part.split == side]
        ids = [array for part in parts for array in (tokenizer.encode_array(part.text), end)[: 1 + part.ends]]
        encoded[side] = _Encoded(
            np.concatenate([np.empty(0, np.uint32), *ids]).astype(dtype),
            sum(part.ends for part in parts),
            sum(utf8_length(part.text) for part in parts),
        )
    return encoded
