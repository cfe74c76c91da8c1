"""The first reading of a corpus: how much it is, and which draw each document has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2.atomic import sync
from gpt2.data.parallel import Workers, batches
from gpt2.data.progress import progress
from gpt2.data.readers import Corpus, Piece
from gpt2.data.splitting import Grouper, Sketches, sketch


class Scan(NamedTuple):
    """Counts of the whole corpus (characters, UTF-8 bytes), and the least and greatest draw."""

    documents: int = 0
    chars: int = 0
    text_bytes: int = 0
    lowest: int = 2**64 - 1
    highest: int = 0


class _Counted(NamedTuple):
    documents: int
    chars: int
    text_bytes: int
    sketches: Sketches


def scan_corpus(corpus: Corpus, workers: Workers, seed: int, draws: Path) -> Scan:
    """Read all of it once; write the documents' draws (uint64 each, in order) to the file `draws`."""
    grouper, total = Grouper(), Scan()
    with draws.open("wb") as file, progress("reading", corpus.size) as update:
        for counted in workers.map(partial(_count, seed=seed), batches(corpus.pieces())):
            values = grouper.draws(counted.sketches)
            file.write(values.tobytes())
            total = Scan(
                total.documents + counted.documents,
                total.chars + counted.chars,
                total.text_bytes + counted.text_bytes,
                min(total.lowest, int(values.min(initial=2**64 - 1))),
                max(total.highest, int(values.max(initial=0))),
            )
            update(corpus.read)
    sync(draws)
    return total


def read_draws(path: Path) -> Iterator[int]:
    """The draws that `scan_corpus` wrote, in order."""
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 16), b""):
            yield from np.frombuffer(block, np.uint64).tolist()


def _count(batch: list[Piece], seed: int) -> _Counted:
    # The beginning of a document stands for it: the first piece is at most a mebibyte, most documents are less.
    beginnings = [piece.text for piece in batch if piece.starts]
    return _Counted(
        sum(piece.ends for piece in batch),
        sum(len(piece.text) for piece in batch),
        sum(utf8_length(piece.text) for piece in batch),
        sketch(beginnings, seed),
    )


def utf8_length(text: str) -> int:
    """Bytes of the text as UTF-8; a lone surrogate, which JSON can spell, counts three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
