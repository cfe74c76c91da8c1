"""A real labelled set made from the test data (GPT2_ASSETS): which source is a passage from?

Three books, Shakespeare, TinyStories and WikiText-2. Each source is cut into passages of so many words; the last fifth
of every source is held out, so that no passage that is asked for overlaps one that was learned. All are written alike
before: one line, single spaces, WikiText's tokens put together again and its <unk> left out, so that it is words and
manner that tell them apart, not files. Of a long source, passages spread over all of it are taken.

    python benchmarks/sources.py FOLDER         # train.jsonl and held-out.jsonl, {"text", "label"} a line
    gpt2 finetune --model X --data FOLDER/train.jsonl --val FOLDER/held-out.jsonl --out RUN
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt2 import atomic
from gpt2.evaluate.detokenize import WIKITEXT

SOURCES = {
    "austen": "text/austen-persuasion.txt",
    "carroll": "text/carroll-alice.txt",
    "chesterton": "text/chesterton-ball.txt",
    "shakespeare": "text/tinyshakespeare.txt",
    "tinystories": "text/tinystories_sample.txt",
    "wikitext": "benchmarks/wikitext2_valid.txt",
}
LATIN = ("chesterton",)  # the others are UTF-8
WORDS, MOST, HELD_OUT = 25, 1000, 0.2  # words of a passage, passages of a source, share of each source's end

Passages = list[dict[str, str]]


def assets() -> Path:
    """The folder of test data."""
    return Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))


def words_of(source: str) -> list[str]:
    """A source's words in order, punctuation on them."""
    text = (assets() / SOURCES[source]).read_text(encoding="latin-1" if source in LATIN else "utf-8")
    if source == "wikitext":
        text = WIKITEXT.text(text).replace("<unk>", " ")
    return text.replace("<|endoftext|>", " ").split()


def passages(words: Sequence[str], label: str, count: int) -> Passages:
    """Every stretch of WORDS words, or `count` of them, evenly spread."""
    starts = range(0, len(words) - WORDS + 1, WORDS)
    chosen = starts if len(starts) <= count else [starts[number * len(starts) // count] for number in range(count)]
    return [{"text": " ".join(words[start : start + WORDS]), "label": label} for start in chosen]


def labelled_set(most: int = MOST) -> tuple[Passages, Passages]:
    """(to train on, held out): at most so many passages of each source, split by position."""
    train: Passages = []
    held_out: Passages = []
    for source in SOURCES:
        words = words_of(source)
        border = round((1 - HELD_OUT) * len(words))
        train += passages(words[:border], source, round((1 - HELD_OUT) * most))
        held_out += passages(words[border:], source, round(HELD_OUT * most))
    return train, held_out


def write_lines(path: Path, lines: Iterable[object]) -> None:
    """One JSON object a line."""
    atomic.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=MOST, help="passages of a source")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "held-out"), labelled_set(args.most), strict=True):
        write_lines(args.folder / f"{name}.jsonl", part)
        counts = {label: sum(line["label"] == label for line in part) for label in SOURCES}
        print(
            f"{args.folder / name}.jsonl: {len(part):,} passages ({', '.join(f'{k} {v}' for k, v in counts.items())})"
        )


if __name__ == "__main__":
    main()
