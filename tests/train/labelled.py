"""Small sets of labelled texts and of preference pairs in memory, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gpt2.data.encoded import Encodings, Pairs
from gpt2.data.examples import ExampleSet
from gpt2.data.packing import fill_row
from gpt2.train.loop import Batch

EOT = 256


def encodings(texts: Sequence[tuple[bytes, bytes]], labels: Sequence[int] | None = None) -> Encodings:
    """(not learned, learned) of each example, byte for byte, with end-of-text behind."""
    ids = np.concatenate([np.array([*prompt, *answer, EOT], np.int32) for prompt, answer in texts])
    wanted = np.concatenate([np.arange(len(p) + len(a) + 1) >= max(1, len(p)) for p, a in texts])
    ends = np.cumsum([len(prompt) + len(answer) + 1 for prompt, answer in texts])
    starts = np.concatenate([[0], ends[:-1]])
    numbers = np.array([-1] * len(texts) if labels is None else labels, np.int32)
    return Encodings(ids, wanted, starts, ends, numbers)


def labelled(texts: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> ExampleSet:
    """Texts that are learned whole, with their labels."""
    examples = encodings([(b"", text) for text in texts], labels)
    return ExampleSet("label", "made", examples, np.arange(len(texts), dtype=np.uint64), tuple(names))


def preferences(triples: Sequence[tuple[bytes, bytes, bytes]]) -> Pairs:
    """(prompt, chosen, rejected) as pairs."""
    chosen = encodings([(prompt, good) for prompt, good, _ in triples])
    return Pairs(chosen, encodings([(prompt, bad) for prompt, _, bad in triples]))


def label_batch(texts: Encodings, rows: Sequence[Sequence[int]], room: int) -> Batch:
    """These texts in these rows, as example_batches.py says a batch of labelled texts looks."""
    filled = [fill_row([texts[number] for number in row], room) for row in rows]
    most = max(map(len, rows))
    labels, ends = np.full((2, len(rows), most), -1)
    for place, row in enumerate(rows):
        labels[place, : len(row)] = texts.labels[list(row)]
        ends[place, : len(row)] = np.cumsum([texts[number].positions for number in row]) - 1
    inputs, targets, segments = (torch.from_numpy(np.stack(part)) for part in zip(*filled, strict=True))
    return Batch(inputs, targets, segments, {"labels": torch.from_numpy(labels), "ends": torch.from_numpy(ends)})


def pair_batch(pairs: Pairs, numbers: Sequence[int], reference: np.ndarray, room: int) -> Batch:
    """These pairs, one a row."""
    filled = [fill_row([pair.chosen, pair.rejected], room) for pair in map(pairs.__getitem__, numbers)]
    inputs, targets, segments = (torch.from_numpy(np.stack(part)) for part in zip(*filled, strict=True))
    return Batch(inputs, targets, segments, {"reference": torch.from_numpy(reference[list(numbers)])})
