"""Overlap of test and training sets: as a plain count of n-grams has it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.data.readers import Piece
from gpt2.evaluate import overlap
from gpt2.evaluate.overlap import BloomFilter, Hasher, gpt3_n, ngrams, words_of

TRAIN = "The quick brown fox jumps over the lazy dog while seven tired sailors sing of the stormy northern sea."


def test_words_are_lower_case_and_alphanumeric() -> None:
    assert words_of("It's 3.5 m—Naïve_X!") == ["it", "s", "3", "5", "m", "naïve", "x"]


def test_n_grams_of_hashes_are_n_grams_of_words() -> None:
    dice = random.Random(1)
    words = [dice.choice("abc") for _ in range(300)]
    found = ngrams(Hasher().words(words), 4)
    plain = [tuple(words[n : n + 4]) for n in range(297)]
    assert len(set(plain)) == len(set(found.tolist()))
    places = {gram: n for n, gram in enumerate(plain)}
    assert all(found[n] == found[places[gram]] for n, gram in enumerate(plain))
    assert len(ngrams(Hasher().words(words[:3]), 4)) == 0
    assert (Hasher().words(["a"]) == Hasher().words(["a"])).all()


def test_the_filter_has_all_members_and_hardly_a_stranger() -> None:
    dice = np.random.default_rng(3)
    values = dice.integers(0, 2**63, 40_000).astype(np.uint64)
    strict, loose = BloomFilter(20_000), BloomFilter(20_000, 0.01)
    for made in (strict, loose):
        made.add(values[:20_000])
        assert made.has(values[:20_000]).all()
    assert strict.has(values[20_000:]).sum() == 0 and strict.probes == 27
    assert 0.005 < loose.has(values[20_000:]).mean() < 0.02


def test_n_is_the_fifth_percentile_of_lengths_between_8_and_13() -> None:
    assert gpt3_n([3] * 50) == 8 and gpt3_n([100] * 50) == 13
    assert gpt3_n([10] * 10 + [50] * 90) == 10


@pytest.mark.parametrize("batch", [4, 1 << 20])
def test_figures_are_those_of_a_plain_count(
    tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(overlap, "BATCH", batch)
    dice = random.Random(4)
    train = [" ".join(dice.choice("abcdefgh") for _ in range(dice.randint(5, 60))) for _ in range(60)]
    tests = [" ".join(dice.choice("abcdefgh") for _ in range(dice.randint(9, 40))) for _ in range(25)]
    tests += [train[7][:50], train[9].upper() + "!", "z y x"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in train))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"q": text, "n": 3}) + "\n" for text in tests))
    (found,) = json.loads(gpt2("overlap", tmp_path / "train.jsonl", tmp_path / "test.jsonl", "--json").out)

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        words = words_of(text)
        return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]

    seen = {n: {gram for text in train for gram in grams(text, n)} for n in range(1, 14)}
    eights = [gram for text in tests for gram in grams(text, 8)]
    assert found["8-grams"] == len(eights)
    assert found["8-grams in training"] == sum(gram in seen[8] for gram in eights) > 0
    sizes = [min(found["N"], len(words_of(text))) for text in tests]
    dirty = [n for n, text in enumerate(tests) if any(gram in seen[sizes[n]] for gram in grams(text, sizes[n]))]
    assert found["dirty"] == dirty and {25, 26} <= set(dirty) and 27 not in dirty
    assert found["dirty %"] == pytest.approx(100 * len(dirty) / 28)


class Measured(np.ndarray):  # type: ignore[type-arg]
    """Words that count how often somebody asks how many they are."""

    times = 0

    def __len__(self) -> int:
        Measured.times += 1
        return int(self.shape[0])


def test_short_documents_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Hasher):
        def words(self, words: Sequence[str]) -> Any:
            return super().words(words).view(Measured)

    pieces = [Piece("a short one", True, True) for _ in range(300)]
    monkeypatch.setattr(Measured, "times", 0)
    (words,) = overlap.batches(pieces, Counting())
    assert len(words) == 300 * 4 and Measured.times <= 2 * 300
    monkeypatch.setattr(overlap, "BATCH", 100)
    parts = list(overlap.batches(pieces, Hasher()))
    assert len(parts) > 10 and all(len(part) < 100 + 4 for part in parts)


def test_no_n_gram_reaches_from_one_document_into_the_next(tmp_path: Path, gpt2: Callable[..., Any]) -> None:
    half = TRAIN.split()
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": " ".join(part)}) + "\n" for part in (half[:9], half[9:]))
    )
    (tmp_path / "test.txt").write_text(TRAIN + "\n")
    (found,) = json.loads(gpt2("overlap", tmp_path / "train.jsonl", tmp_path / "test.txt", "--json").out)
    assert found["8-grams in training"] == (9 - 7) + (len(half) - 9 - 7)
    assert found["N"] == 13 and found["dirty"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.txt"], "give both"),
        (["train.txt", "empty.txt"], "empty.txt: empty"),
        (["train.txt", "dots.txt"], "dots.txt: no words in it"),
        (["dots.txt", "train.txt"], "the training set has no words"),
        (["-", "train.txt"], "standard input is read once only"),
        (["train.txt", "bad.jsonl"], "bad.jsonl line 1: not JSON"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"train.txt": TRAIN, "empty.txt": "", "dots.txt": "... !\n", "bad.jsonl": "{\n"}.items():
        (tmp_path / name).write_text(text)
    ran = gpt2("overlap", *words)
    assert (ran.code, ran.out) == (2, "") and message in ran.err
