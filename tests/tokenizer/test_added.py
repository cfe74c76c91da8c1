"""New tokens in an old vocabulary: found in any text, ids as Hugging Face gives them, old texts unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import BYTES

from gpt2.errors import UserError
from gpt2.tokenizer.added import add_tokens
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer, save_tokenizer

NEW = ["<sep>", "<title>", "naïve"]
GROWN = add_tokens(BYTES, NEW)
TEXTS = st.lists(st.sampled_from([*NEW, "<|endoftext|>", "a b", "é", "<", "\n"]), max_size=6).map("".join)


@given(TEXTS)
def test_new_tokens_are_found_in_any_text_and_others_keep_their_ids(text: str) -> None:
    ids = GROWN.encode(text)
    assert GROWN.decode(ids) == text
    assert [id for id in ids if id < 257] == BYTES.encode("".join(_without(text)))
    assert GROWN.encode_array(text).tolist() == ids == GROWN.encode_arrays([text, "x"])[0].tolist()


def _without(text: str) -> list[str]:
    for token in NEW:
        text = text.replace(token, "")
    return [text]


def test_transformers_finds_them_as_we_do(tmp_path: Path) -> None:
    import transformers

    assert [GROWN.encode(token) for token in NEW] == [[257], [258], [259]]
    save_tokenizer(GROWN, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert ours.hash == GROWN.hash and len(theirs) == ours.vocab_size == 260
    for text in ("a<sep> b", "<title>naïve", "<sep><sep>", "no"):
        assert theirs(text)["input_ids"] == ours.encode(text)


def test_adding_again_changes_nothing_and_a_template_stays() -> None:
    assert add_tokens(GROWN, NEW).hash == GROWN.hash
    assert add_tokens(GROWN.with_template("x"), ["<more>"]).chat_template == "x"
    assert add_tokens(BYTES, ["<|endoftext|>"]).encode("<|endoftext|>") != [256], "what was special stays so"


def test_what_cannot_be_a_new_token_is_refused() -> None:
    for texts, expected in ((["a"], "is a token of this vocabulary already"), ([" "], "no visible character")):
        with pytest.raises(UserError, match=expected):
            add_tokens(BYTES, texts)
    with pytest.raises(UserError, match="given twice"):
        add_tokens(BYTES, ["<x>", "<x>"])
    with pytest.raises(UserError, match="of characters takes none"):
        add_tokens(Tokenizer.from_characters("ab"), ["<x>"])


@given(st.lists(TEXTS | st.text(max_size=300) | st.just("long " * 100), max_size=6))
def test_many_texts_at_once_have_the_ids_that_each_has(texts: list[str]) -> None:
    texts = [*texts, "\ud800"]
    for tokenizer in (BYTES, GROWN, Tokenizer.from_characters("ab ?")):
        assert [ids.tolist() for ids in tokenizer.encode_arrays(texts)] == [tokenizer.encode(text) for text in texts]


def test_many_real_texts_at_once(assets: Path) -> None:
    tokenizer = load_tokenizer(assets / "gpt2-vocab")
    lines = (assets / "text" / "carroll-alice.txt").read_text().splitlines(keepends=True)
    assert [ids.tolist() for ids in tokenizer.encode_arrays(lines)] == [tokenizer.encode(line) for line in lines]
    assert tokenizer.encode_arrays([]) == []
