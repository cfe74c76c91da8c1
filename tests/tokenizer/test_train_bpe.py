"""Training: the published reference, a plain version as oracle, GPT-2's pattern."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from gpt2.errors import UserError
from gpt2.tokenizer import train
from gpt2.tokenizer.files import load_merges
from gpt2.tokenizer.train import count_pieces, learn_merges, train_bpe
from gpt2.tokenizer.vocabulary import to_printable

WORDS = st.dictionaries(st.text("ab ", min_size=1, max_size=12).map(str.encode), st.integers(1, 9), max_size=12)


def plain_merges(words, room, min_frequency):
    """The definition, recounting everything for every merge."""
    split = {word: [bytes([byte]) for byte in word] for word in words}
    merges = []
    while len(merges) < room:
        counts = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        if not counts or max(counts.values()) < min_frequency:
            break
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(pair)
        for word, parts in split.items():
            merged = []
            while parts:
                take = 2 if tuple(parts[:2]) == pair else 1
                merged.append(b"".join(parts[:take]))
                parts = parts[take:]
            split[word] = merged
    return merges


@given(WORDS, st.integers(0, 30), st.integers(1, 4))
def test_training_equals_the_plain_version(words, room, min_frequency):
    assert learn_merges(Counter(words), room, min_frequency) == plain_merges(words, room, min_frequency)


def test_training_equals_the_published_reference(assets):
    folder = assets / "bpe-training"
    tokenizer = train_bpe([(folder / "corpus.en").read_bytes().decode()], 500)
    merges = (folder / "train-bpe-reference-merges.txt").read_bytes().decode().splitlines()
    ours = [f"{to_printable(a)} {to_printable(b)}" for a, b in tokenizer.vocabulary.merge_pairs]
    assert ours == merges
    # the reference puts <|endoftext|> first; GPT-2 and this package put it last
    vocab = json.loads((folder / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    assert vocab.pop("<|endoftext|>") == 0
    assert {to_printable(data): id + 1 for data, id in tokenizer.vocabulary.tokens.items()} == vocab
    assert tokenizer.eot_id == 499


def test_the_references_own_files_are_read_special_token_first(assets):
    folder = assets / "bpe-training"
    tokenizer = load_merges(folder / "train-bpe-reference-vocab.json", folder / "train-bpe-reference-merges.txt")
    assert (tokenizer.vocab_size, tokenizer.special_tokens) == (500, {"<|endoftext|>": 0})
    text = (folder / "corpus.en").read_bytes().decode()
    assert tokenizer.encode(text) == [id + 1 for id in train_bpe([text], 500).encode(text)]


# unassigned characters (Cn) are left out: the two libraries may know different versions of Unicode
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"])) | st.text(st.sampled_from("a1½ \n\x1c\x85_'s𝟘𐐀!é")))
def test_pieces_are_those_of_gpt2s_pattern(text):
    peer = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert {to_printable(k): n for k, n in count_pieces([text]).items()} == Counter(piece for piece, _ in peer)


def test_a_long_text_is_cut_only_where_no_piece_crosses(monkeypatch):
    text = "It's  12 o'clock,\n\n now!  \t x\u3000y \x1c z " * 50
    whole = count_pieces([text])
    for size in (1, 7, 64):
        monkeypatch.setattr(train, "BLOCK", size)
        assert count_pieces([text]) == whole


def test_no_token_reaches_across_documents_and_specials_come_last():
    tokenizer = train_bpe(["ab"] * 5 + ["cd"] * 5, 300, special_tokens=("<|endoftext|>", "<|pad|>"))
    assert [bytes(a + b) for a, b in tokenizer.vocabulary.merge_pairs] == [b"cd", b"ab"]
    assert tokenizer.special_tokens == {"<|endoftext|>": 258, "<|pad|>": 259}


@pytest.mark.parametrize("texts", [[], [""], ["\ud800"]])
def test_with_nothing_to_learn_the_256_bytes_remain(texts):
    tokenizer = train_bpe(texts, 400)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode("any ÿ text")) == "any ÿ text"


@pytest.mark.parametrize(("size", "frequency"), [(256, 2), (0, 2), (500, 0)])
def test_impossible_sizes_are_refused(size, frequency):
    with pytest.raises(UserError, match="vocab_size must be 257 or more"):
        train_bpe(["abc"], size, min_frequency=frequency)


def test_training_is_the_same_every_time():
    text = "one two three two one three two " * 20
    assert train_bpe([text], 290).hash == train_bpe(iter([text]), 290).hash
