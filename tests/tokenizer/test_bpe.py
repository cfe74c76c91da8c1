"""Encoding and decoding: round trips, special tokens, streams, very long runs, characters."""

from __future__ import annotations

import json
import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.tokenizer import bpe
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer
from gpt2.tokenizer.train import train_bpe, train_char
from gpt2.tokenizer.vocabulary import to_printable

TEXT = "the cat sat on the mat; the dog's 12 fleas didn't.   It is 1999!\n\n\tThat cat, that mat. naïve café 🦙🦙\n"
SMALL = train_bpe([TEXT] * 3, 300)
ANY_TEXT = st.text(st.characters()) | st.text(st.sampled_from("ath e\n\t'19🦙\u3000\x00\x1c\ud83e\udd99"))
LLAMA = "🦙".encode()


@pytest.fixture(scope="module")
def gpt2_tokenizer(assets: Path) -> Tokenizer:
    return load_tokenizer(assets / "gpt2-vocab" / "gpt2.tiktoken")


def well_formed(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@given(ANY_TEXT)
def test_any_text_comes_back_lone_surrogates_as_replacement_characters(text):
    assert SMALL.decode(SMALL.encode(text)) == well_formed(text)


@given(ANY_TEXT)
def test_encode_array_is_encode(text):
    array = SMALL.encode_array(text)
    assert array.dtype == np.uint32
    assert array.tolist() == SMALL.encode(text)


@given(st.binary() | st.lists(st.sampled_from([b"the ", LLAMA, LLAMA[:2], b"\xff", b"\xed\xa0\x80"])).map(b"".join))
def test_any_bytes_come_back(data):
    assert SMALL.decode_bytes(SMALL.encode_bytes(data)) == data


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_a_text_encode_as_the_text(text):
    assert SMALL.encode_bytes(text.encode()) == SMALL.encode(text)


@given(st.lists(st.integers(-2, SMALL.vocab_size + 70)))
def test_ids_outside_the_vocabulary_decode_to_nothing(ids):
    inside = [id for id in ids if 0 <= id < SMALL.vocab_size]
    assert SMALL.decode_bytes(ids) == SMALL.decode_bytes(inside) == b"".join(map(SMALL.token_bytes, inside))


def test_arrays_and_tensors_of_ids_decode():
    import torch

    ids = SMALL.encode(TEXT)
    assert SMALL.decode(np.array(ids)) == SMALL.decode(torch.tensor(ids)) == TEXT


def test_merges_are_used():
    assert len(SMALL.encode(TEXT)) < len(TEXT.encode()) / 1.5


@given(st.lists(st.integers(0, SMALL.vocab_size)))
def test_streaming_equals_decoding_at_once(ids):
    stream = SMALL.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == SMALL.decode(ids)


def test_a_stream_holds_back_half_a_character_and_shows_the_rest_at_once():
    tokenizer = Tokenizer.bytes_only()
    stream = tokenizer.stream()
    assert [stream.push(id) for id in LLAMA] == ["", "", "", "🦙"]
    assert (stream.push(LLAMA[0]), stream.finish(), stream.finish()) == ("", "\ufffd", "")
    assert stream.push(ord("a")) == "a"


def test_special_tokens_typed_by_a_user_are_text():
    ids = SMALL.encode("a<|endoftext|>b")
    assert SMALL.eot_id not in ids
    assert SMALL.eot_id not in SMALL.encode_array("<|endoftext|>")
    assert SMALL.decode(ids) == "a<|endoftext|>b"


@pytest.mark.parametrize("allowed", ["all", ["<|endoftext|>"], {"<|endoftext|>"}, "<|endoftext|>"])
def test_special_tokens_are_found_where_allowed(allowed):
    ids = SMALL.encode("the<|endoftext|><|endoftext|> cat", allowed_special=allowed)
    assert ids == [*SMALL.encode("the"), SMALL.eot_id, SMALL.eot_id, *SMALL.encode(" cat")]
    assert SMALL.decode(ids) == "the<|endoftext|><|endoftext|> cat"


def test_of_two_special_tokens_at_one_place_the_longer_wins():
    tokenizer = train_bpe([TEXT], 280, special_tokens=("<|a|>", "<|a|><|b|>"))
    assert tokenizer.encode("<|a|><|b|><|a|>", "all") == [tokenizer.special_tokens[t] for t in ("<|a|><|b|>", "<|a|>")]


def test_an_unknown_special_token_is_an_error():
    with pytest.raises(UserError, match=r"'<\|endoftxt\|>' is not a special token .*did you mean '<\|endoftext\|>'"):
        SMALL.encode("", allowed_special=["<|endoftxt|>"])


@given(st.text(st.sampled_from(" \n\u3000ax"), max_size=60))
def test_cutting_at_long_runs_of_white_space_changes_no_id(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "LONG_RUN", 4)
        parts = list(bpe.split_long_runs(text))
    assert "".join(parts) == text
    assert [id for part in parts for id in SMALL.encode(part)] == SMALL.encode(text)
    inner = [run for part in parts if part.strip(bpe.WHITE_SPACE) for run in re.split("[ax]", part)]
    assert all(len(run) < 4 for run in inner)  # what is left in the other parts is short


def test_every_long_run_before_other_text_is_cut_out():
    text = "x".join(" " * n for n in range(bpe.LONG_RUN - 3, bpe.LONG_RUN + 3)) + "x"
    assert sum(part.isspace() for part in bpe.split_long_runs(text)) == 3


MILLIONS = {
    "a": "a" * 10**6,
    "space": " " * 10**6,
    "space before text": " " * 10**6 + "x",
    "newline": "\n" * 10**6 + "x",
    "tabs and spaces": "\t " * 500_000 + "x",
    "ideographic space": "\u3000" * 10**6 + "x",
    "digits": "1" * 10**6,
    "punctuation": "=" * 10**6,
    "accents": "e\u0301" * 500_000,
    "emoji": "🦙" * 10**6,
    "nul": "\x00" * 10**6,
    "lone surrogates": "\ud800" * 10**6,
    "two letters": "ab" * 500_000,
    "mixed": "a" * 300_000 + " " * 300_000 + "\n" * 300_000 + "1" * 100_000,
}


@pytest.mark.parametrize("name", MILLIONS)
def test_a_million_repeated_characters_encode_in_under_two_seconds(gpt2_tokenizer, name):
    gpt2_tokenizer.encode("warm")
    start = time.process_time()  # of the processor: other work on the machine does not count
    ids = gpt2_tokenizer.encode(MILLIONS[name])
    assert time.process_time() - start < 2
    assert gpt2_tokenizer.decode(ids) == well_formed(MILLIONS[name])


def test_the_long_runs_have_the_ids_that_gpt2s_pattern_gives(gpt2_tokenizer):
    from tokenizers import ByteLevelBPETokenizer  # its engine keeps its stack on the heap

    vocabulary = gpt2_tokenizer.vocabulary
    vocab = {to_printable(data): id for data, id in vocabulary.tokens.items()}
    merges = [(to_printable(a), to_printable(b)) for a, b in vocabulary.merge_pairs]
    other = ByteLevelBPETokenizer(vocab, merges)
    for run in (" ", "\n", " \n", "\t", "\u3000"):
        text = f"word{run * 9000}word{run * 5000} {run * 10000}"
        assert gpt2_tokenizer.encode(text) == other.encode(text).ids


def test_vectors_of_six_projects(gpt2_tokenizer, assets):
    vectors = json.loads((assets / "tokenizer_vectors.json").read_text(encoding="utf-8"))
    assert len(vectors) == 51
    for vector in vectors:
        assert gpt2_tokenizer.encode(vector["text"]) == vector["ids"]
        assert gpt2_tokenizer.encode_array(vector["text"]).tolist() == vector["ids"]
        assert gpt2_tokenizer.decode(vector["ids"]) == vector["text"]


def test_threads_and_other_processes_get_the_same_ids():
    copy = pickle.loads(pickle.dumps(SMALL))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(copy.encode, [TEXT] * 8)) == [SMALL.encode(TEXT)] * 8
    assert copy.hash == SMALL.hash


def test_bytes_only_gives_each_byte_its_value():
    tokenizer = Tokenizer.bytes_only()
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.encode("né") == list("né".encode())


def test_characters_have_nanogpts_ids():
    tokenizer = train_char(["hello", " world\n"])
    characters = sorted(set("hello world\n"))
    assert tokenizer.encode("hello") == [characters.index(char) for char in "hello"]
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot_id) == ("char", len(characters), None)
    assert tokenizer.decode(tokenizer.encode("low\n")) == "low\n"


@given(st.text(st.characters()), st.binary())
def test_a_character_vocabulary_never_raises(text, data):
    tokenizer = Tokenizer.from_characters(list("?abé🦙"))
    expected = "".join(char if char in "?abé🦙" else "?" for char in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    tokenizer.decode(tokenizer.encode_bytes(data))


@pytest.mark.parametrize(
    ("characters", "unknown"), [("a?\ufffd", "\ufffd"), ("a?\n", "?"), ("a\n ", " "), ("a\n", "\n"), ("ba", "b")]
)
def test_which_character_stands_for_unknown_ones(characters, unknown):
    tokenizer = Tokenizer.from_characters(list(characters))
    assert tokenizer.decode(tokenizer.encode("aZ\ud800")) == "a" + unknown * 2


@pytest.mark.parametrize("characters", [[], ["ab"], ["a", "a"], [""], ["\ud800"]])
def test_what_is_no_character_vocabulary_is_refused(characters):
    with pytest.raises(UserError, match="character vocabulary"):
        Tokenizer.from_characters(characters)
