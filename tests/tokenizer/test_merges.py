"""Merge lists and ranks: either encoded exactly as Hugging Face's BPE does, or refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Peer
from tokenizers import models

from gpt2.errors import UserError
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.train import train_bpe
from gpt2.tokenizer.vocabulary import BYTE_TO_CHAR, Vocabulary, from_printable, to_printable

BYTES = list(BYTE_TO_CHAR.values())


def build(pairs, ids=None, added=None):
    texts = [*BYTES, *dict.fromkeys(a + b for a, b in pairs)]
    vocab = dict(zip(texts, ids or range(len(texts)), strict=True))
    return vocab, Vocabulary.from_merges(vocab, pairs, added or {}, "v", lambda n: f"m line {n + 2}")


@st.composite
def merge_lists(draw):
    """Merges of tokens that exist already, sensible or not: many of these lists no training could have made."""
    tokens, pairs = ["a", "b", "c"], []
    for _ in range(draw(st.integers(0, 8))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if pair not in pairs:
            pairs.append(pair)
            tokens.append("".join(pair))
    return pairs


@given(merge_lists(), st.lists(st.text("abc", max_size=40), min_size=8, max_size=8), st.randoms(use_true_random=False))
def test_any_merge_list_is_encoded_as_hugging_face_does_or_refused(pairs, texts, rng):
    ids = list(range(256 + len({a + b for a, b in pairs})))
    rng.shuffle(ids)  # ids in no order at all
    try:
        vocab, vocabulary = build(pairs, ids)
    except UserError as error:
        assert "line" in str(error)
        return
    peer = Peer(models.BPE(vocab, pairs))
    for text in texts:
        assert Tokenizer(vocabulary).encode(text) == peer.encode(text).ids


@given(merge_lists())
def test_pairs_are_recovered_from_ranks(pairs):
    try:
        _, vocabulary = build(pairs)
    except UserError:
        return
    again = Vocabulary.from_ranks(vocabulary.tokens, {}, "ranks")
    assert again.merge_pairs == vocabulary.merge_pairs
    assert again.hash == vocabulary.hash


def test_a_list_that_ranks_cannot_follow_is_refused_by_its_line():
    pairs = [("b", "c"), ("a", "b"), ("ab", "c")]  # in "abc" b and c merge first, so ab never meets c
    with pytest.raises(UserError, match="m line 4: earlier merges keep 'ab' and 'c' from meeting"):
        build(pairs)


def test_of_three_equal_letters_the_left_two_merge():
    build([("a", "a"), ("aa", "a")])
    with pytest.raises(UserError, match="line 3"):
        build([("a", "a"), ("a", "aa")])


def test_a_second_way_to_a_token_changes_nothing():
    pairs = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
    vocab, vocabulary = build(pairs)
    text = "abcbcabacbabc"
    assert Tokenizer(vocabulary).encode(text) == Peer(models.BPE(vocab, pairs)).encode(text).ids


def test_ranks_that_no_merges_make_cannot_be_written_as_merges():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    vocabulary = Vocabulary.from_ranks(ranks, None, "ranks")
    assert Tokenizer(vocabulary).encode("abc") == [256]  # tiktoken takes a whole piece as it is
    with pytest.raises(UserError, match="not made by merges"):
        _ = vocabulary.merge_pairs


def test_added_tokens_in_the_middle_keep_their_ids():
    texts = [*BYTES[:100], "<|mid|>", *BYTES[100:], "ab"]
    vocab = {text: id for id, text in enumerate(texts)}
    added = {"<|mid|>": (100, True), "<|end|>": (None, True)}
    tokenizer = Tokenizer(Vocabulary.from_merges(vocab, [("a", "b")], added, "v", str))
    assert tokenizer.special_tokens == {"<|mid|>": 100, "<|end|>": 258}
    assert tokenizer.encode("ab<|mid|>b", "all") == [257, 100, vocab["b"]]


def test_a_token_that_no_merge_makes_is_decoded_and_never_encoded():
    vocab = {text: id for id, text in enumerate([*BYTES, "zzz"])}
    tokenizer = Tokenizer(Vocabulary.from_merges(vocab, [], {}, "v", str))
    assert tokenizer.encode("zzz") == [vocab["z"]] * 3
    assert tokenizer.decode([256]) == "zzz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": "x"}, "has id 'x', not a whole number"),
        ({"a": -1}, "has id -1"),
        ({"a": True}, "has id True"),
        ({"a": 1.5}, "has id 1.5"),
        ({"a": 2**40}, "not a whole number from 0"),
        ({"new": 5}, "id 5 is given to both"),
    ],
)
def test_wrong_ids_are_errors(change, message):
    vocab = {text: id for id, text in enumerate(BYTES)} | change
    with pytest.raises(UserError, match=message):
        Vocabulary.from_merges(vocab, [], {}, "v", str)


def test_a_vocabulary_without_all_bytes_is_refused():
    with pytest.raises(UserError, match="v: 1 of the 256 bytes have no token"):
        Vocabulary.from_merges({text: id for id, text in enumerate(BYTES[1:])}, [], {}, "v", str)


@given(st.binary())
def test_printable_spelling_comes_back(data):
    assert from_printable(to_printable(data)) == data


@pytest.mark.parametrize("text", [" ", "\n", "\xad", "\x7f", "漢", "🦙"])
def test_characters_outside_the_printable_alphabet_spell_nothing(text):
    assert from_printable(text) is None


def test_a_permuted_real_vocabulary_gives_the_same_pieces():
    text = "the cat sat on the mat; that cat, that mat\n" * 3
    small = train_bpe([text], 280)
    ids = list(range(small.vocab_size))
    random.Random(1).shuffle(ids)
    old = small.vocabulary
    vocab = {to_printable(data): ids[id] for data, id in old.tokens.items()}
    pairs = [(to_printable(a), to_printable(b)) for a, b in old.merge_pairs]
    other = Tokenizer(Vocabulary.from_merges(vocab, pairs, {}, "v", str))
    assert other.encode(text) == other.encode_array(text).tolist() == [ids[id] for id in small.encode(text)]
    assert other.hash != small.hash
