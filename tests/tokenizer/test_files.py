"""Every form on disk gives the same ids, also to transformers; broken files are errors of one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.tokenizer import files
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import (
    get_tokenizer,
    load_merges,
    load_tiktoken,
    load_tokenizer,
    save_tokenizer,
    write_openai,
    write_tiktoken,
)
from gpt2.tokenizer.train import train_bpe, train_char
from gpt2.tokenizer.vocabulary import BYTE_TO_CHAR, Vocabulary, to_printable

TEXT = "the cat sat on the mat; the dog's 12 fleas didn't.   It is 1999!\n\n\tThat cat, that mat. naïve café 🦙🦙\n"
SMALL = train_bpe([TEXT] * 3, 300)
GPT2_FORMS = [
    "encoder.json + vocab.bpe",
    "gpt2.tiktoken",
    "vocab.json + merges.txt",
    "tokenizer.json",
    "tokenizer.json with pairs",
    "our folder",
    "our encoder.json + vocab.bpe",
    "our ranks",
]


@pytest.fixture(scope="module")
def written(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's vocabulary in every form: those that the assets lack are written from those that they have."""
    here = tmp_path_factory.mktemp("forms")
    source = assets / "gpt2-vocab"
    ranks_only = load_tokenizer(source / "gpt2.tiktoken")  # the poorest form: merges have to be recovered
    save_tokenizer(ranks_only, here / "our folder")
    write_openai(ranks_only, here / "our encoder.json + vocab.bpe")
    write_tiktoken(load_merges(source / "encoder.json", source / "vocab.bpe"), here / "our ranks")
    copies = {
        "encoder.json + vocab.bpe": (source, ["encoder.json", "vocab.bpe"]),
        "gpt2.tiktoken": (source, ["gpt2.tiktoken"]),
        "vocab.json + merges.txt": (here / "our folder", ["vocab.json", "merges.txt"]),
        "tokenizer.json": (here / "our folder", ["tokenizer.json"]),
        "tokenizer.json with pairs": (here / "our folder", ["tokenizer.json"]),
    }
    for name, (folder, names) in copies.items():
        (here / name).mkdir()
        for file in names:
            shutil.copyfile(folder / file, here / name / file)
    document = json.loads((here / "tokenizer.json" / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["merges"] = [merge.split(" ") for merge in document["model"]["merges"]]
    (here / "tokenizer.json with pairs" / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return here


@pytest.fixture(scope="module")
def vectors(assets: Path) -> list[dict]:
    return json.loads((assets / "tokenizer_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", GPT2_FORMS)
def test_all_vectors_from_every_form(written, vectors, form):
    tokenizer = load_tokenizer(written / form)
    assert len(vectors) == 51
    for vector in vectors:
        assert tokenizer.encode(vector["text"]) == vector["ids"]
        assert tokenizer.decode(vector["ids"]) == vector["text"]
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (50257, 50256)
    assert tokenizer.hash == files.GPT2_HASH


def test_openais_own_files_come_back_to_the_byte(written, assets):
    source, ours = assets / "gpt2-vocab", written / "our encoder.json + vocab.bpe"
    assert json.loads((ours / "encoder.json").read_bytes()) == json.loads((source / "encoder.json").read_bytes())
    assert (ours / "vocab.bpe").read_bytes().split() == (source / "vocab.bpe").read_bytes().split()
    assert (written / "our ranks").read_bytes() == (source / "gpt2.tiktoken").read_bytes()


@pytest.mark.parametrize("form", ["our folder", "vocab.json + merges.txt", "tokenizer.json"])
def test_transformers_gives_the_same_ids(written, vectors, form):
    from transformers import AutoTokenizer, GPT2TokenizerFast

    readers = [AutoTokenizer, GPT2TokenizerFast] if form == "our folder" else [GPT2TokenizerFast]
    for reader in readers:
        theirs = reader.from_pretrained(written / form)
        assert [theirs(vector["text"])["input_ids"] for vector in vectors] == [vector["ids"] for vector in vectors]
        assert len(theirs) == 50257
        assert (theirs.eos_token_id, theirs.bos_token_id) == (50256, 50256)
        assert theirs.decode([464, 3290, 50256]) == "The dog<|endoftext|>"


def special_first() -> Tokenizer:
    vocab = {"<|endoftext|>": 0} | {to_printable(data): id + 1 for data, id in SMALL.vocabulary.tokens.items()}
    return Tokenizer(Vocabulary.from_merges(vocab, spelled_pairs(), {}, "v", str))


def ids_reversed() -> Tokenizer:
    vocab = {to_printable(data): 299 - id for data, id in SMALL.vocabulary.tokens.items()}
    return Tokenizer(Vocabulary.from_merges(vocab, spelled_pairs(), {"<|endoftext|>": (0, True)}, "v", str))


def with_added_text() -> Tokenizer:
    """As CodeGen's and Phi's vocabularies: runs of spaces past the end, added but not special."""
    vocab = {to_printable(data): id for data, id in SMALL.vocabulary.tokens.items()}
    added = {"<|endoftext|>": (299, True), "    ": (300, False), "  ": (301, False), "<|im end|>": (None, True)}
    return Tokenizer(Vocabulary.from_merges(vocab, spelled_pairs(), added, "v", str))


def spelled_pairs() -> list[tuple[str, str]]:
    return [(to_printable(a), to_printable(b)) for a, b in SMALL.vocabulary.merge_pairs]


KINDS = {
    "small": lambda: SMALL,
    "bytes": Tokenizer.bytes_only,
    "special first": special_first,
    "ids reversed": ids_reversed,
    "added text": with_added_text,
    "no special": lambda: train_bpe([TEXT] * 3, 290, special_tokens=()),
    "characters": lambda: train_char([TEXT]),
    "characters in another order": lambda: Tokenizer.from_characters(sorted(set(TEXT), reverse=True)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_comes_back_and_transformers_agrees(tmp_path, kind):
    from transformers import AutoTokenizer

    tokenizer = KINDS[kind]()
    save_tokenizer(tokenizer, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.hash == tokenizer.hash
    assert again.special_tokens == tokenizer.special_tokens
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.eot_id
    for text in (TEXT, "", "that's\n     the  cat 🦙"):
        ids = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids == again.encode(text)
        assert theirs.decode(ids) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["small", "bytes", "special first", "ids reversed"])
def test_every_form_of_other_vocabularies_comes_back_or_is_refused(tmp_path, kind):
    tokenizer = KINDS[kind]()
    write_openai(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).hash == tokenizer.hash
    save_tokenizer(tokenizer, tmp_path / "hf")
    assert load_merges(tmp_path / "hf" / "vocab.json", tmp_path / "hf" / "merges.txt").hash == tokenizer.hash
    if kind == "ids reversed":
        with pytest.raises(UserError, match="ids in the order of the merges"):
            write_tiktoken(tokenizer, tmp_path / "ranks.tiktoken")
    else:
        write_tiktoken(tokenizer, tmp_path / "ranks.tiktoken")
        assert load_tiktoken(tmp_path / "ranks.tiktoken").hash == tokenizer.hash


def test_what_a_form_cannot_hold_is_refused(tmp_path):
    for kind in ("characters", "added text"):
        with pytest.raises(UserError, match="OpenAI's form holds"):
            write_openai(KINDS[kind](), tmp_path)
        with pytest.raises(UserError, match="save a folder instead"):
            write_tiktoken(KINDS[kind](), tmp_path / "x.tiktoken")
    with pytest.raises(UserError, match="no special tokens but"):
        write_tiktoken(KINDS["no special"](), tmp_path / "x.tiktoken")
    with pytest.raises(UserError, match="spelled like ordinary token"):
        save_tokenizer(train_bpe([TEXT], 280, special_tokens=("a",)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_added_tokens_that_are_not_special_are_found_in_any_text():
    tokenizer = with_added_text()
    assert tokenizer.encode("a      b")[1:-1] == tokenizer.encode_array("a      b").tolist()[1:-1] == [300, 301]


def test_special_tokens_declared_beside_the_vocabulary_are_known(tmp_path):
    save_tokenizer(SMALL, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    roles = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "[PAD]", "additional_special_tokens": ["[X]"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    (tmp_path / "added_tokens.json").write_text('{"[X]": 300}')
    expected = {"<|endoftext|>": 299, "[X]": 300, "[PAD]": 301}
    assert load_tokenizer(tmp_path).special_tokens == expected


def test_bos_that_a_post_processor_adds_is_not_part_of_the_texts_ids(tmp_path):
    save_tokenizer(SMALL, tmp_path)
    edit(tmp_path / "tokenizer.json", lambda data: data.update(post_processor={"type": "TemplateProcessing"}))
    assert load_tokenizer(tmp_path).encode(TEXT) == SMALL.encode(TEXT)


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


REFUSED = {
    "model type WordPiece": lambda d: d["model"].update(type="WordPiece"),
    "model.vocab must be an object": lambda d: d["model"].update(vocab=[]),
    "model.dropout = 0.1": lambda d: d["model"].update(dropout=0.1),
    "model.end_of_word_suffix": lambda d: d["model"].update(end_of_word_suffix="</w>"),
    "model.byte_fallback": lambda d: d["model"].update(byte_fallback=True),
    "normalizer NFC": lambda d: d.update(normalizer={"type": "NFC"}),
    "pre-tokenizer Whitespace": lambda d: d.update(pre_tokenizer={"type": "Whitespace"}),
    "pre-tokenizer none": lambda d: d.update(pre_tokenizer=None),
    "ByteLevel with add_prefix_space": lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
    "without its pattern": lambda d: d["pre_tokenizer"].update(use_regex=False),
    "with lstrip": lambda d: d["added_tokens"][0].update(lstrip=True),
    "lacks an id or content": lambda d: d["added_tokens"].append({}),
    "id 5 is given to both": lambda d: d["added_tokens"].append({"id": 5, "content": "<x>"}),
    "merge 1: expected a pair": lambda d: d["model"]["merges"].__setitem__(1, "a"),
    "merge 2: expected a pair": lambda d: d["model"]["merges"].__setitem__(2, ["a", 1]),
    "merge 3: merge 'é' \\+ 'é' makes no token": lambda d: d["model"]["merges"].__setitem__(3, ["é", "é"]),
    "ignore_merges": lambda d: (d["model"].update(ignore_merges=True), d["model"]["vocab"].update(zzzz=999)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_tokenizer_json_that_would_give_other_ids_is_refused(tmp_path, message):
    save_tokenizer(SMALL, tmp_path)
    edit(tmp_path / "tokenizer.json", REFUSED[message])
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_add_prefix_space_beside_the_vocabulary_is_refused(tmp_path):
    save_tokenizer(SMALL, tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda data: data.update(add_prefix_space=True))
    with pytest.raises(UserError, match=r"tokenizer_config.json: add_prefix_space is not supported"):
        load_tokenizer(tmp_path)


BROKEN = {
    ("merges.txt", b"#version: 0.2\na b\nabc\n"): "merges.txt line 3: expected two symbols",
    ("merges.txt", b"a b c\n"): "merges.txt line 1: expected two symbols",
    ("merges.txt", b"#version: 0.2\n\na b\n"): "merges.txt line 2: expected two symbols",
    ("merges.txt", b"#version: 0.2\nx y\n"): "merges.txt line 2: merge 'x' \\+ 'y' makes no token",
    ("merges.txt", b"\xff\xfe"): "merges.txt: not UTF-8 text \\(byte 0\\)",
    ("merges.txt", None): "merges.txt: no such file; a tokenizer is tokenizer.json, vocab.json",
    ("vocab.json", None): "vocab.json: no such file",
    ("vocab.json", b"{"): "vocab.json: not JSON",
    ("vocab.json", b""): "vocab.json: not JSON",
    ("vocab.json", b"[" * 100_000): "vocab.json: not JSON",
    ("vocab.json", b"[1]"): "vocab.json: expected a JSON object, found a list",
    ("vocab.json", b"{}"): "vocab.json: 256 of the 256 bytes have no token",
    ("vocab.json", b'{"a": "b"}'): "vocab.json: token 'a' has id 'b'",
    ("special_tokens_map.json", b"nonsense"): "special_tokens_map.json: not JSON",
}


@pytest.mark.parametrize(("name", "content"), BROKEN)
def test_broken_files_are_errors_of_one_line_that_name_the_file(tmp_path, name, content):
    save_tokenizer(SMALL, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=BROKEN[name, content]) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["IQ==", "IQ== x", "!!! 3", "IQ== 1 2", "SVE9 1.5"])
def test_a_broken_rank_is_an_error_with_its_line(tmp_path, line):
    write_tiktoken(SMALL, tmp_path / "x.tiktoken")
    with (tmp_path / "x.tiktoken").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"x.tiktoken line 300: expected 'base64\(token\) rank'"):
        load_tokenizer(tmp_path)


def test_windows_line_ends_are_read(tmp_path):
    save_tokenizer(SMALL, tmp_path)
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert load_merges(tmp_path / "vocab.json", merges).hash == SMALL.hash


def test_a_folder_without_a_tokenizer_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer here; looked for tokenizer.json, vocab.json \+ merges.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such file or folder; a tokenizer is"):
        load_tokenizer(tmp_path / "absent")


def test_one_file_is_enough_to_name_a_vocabulary(written):
    for form, name in [("our folder", n) for n in ("vocab.json", "merges.txt", "tokenizer.json")] + [
        (".", "our ranks")
    ]:
        assert load_tokenizer(written / form / name).hash == files.GPT2_HASH


def test_gpt2_is_taken_from_the_folder_in_the_environment(written, monkeypatch):
    monkeypatch.setenv("GPT2_TOKENIZER", str(written / "our folder"))
    assert get_tokenizer("gpt2").hash == get_tokenizer("gpt2-xl").hash == files.GPT2_HASH


def test_another_vocabulary_is_not_passed_off_as_gpt2s(tmp_path, monkeypatch):
    save_tokenizer(SMALL, tmp_path)
    monkeypatch.setenv("GPT2_TOKENIZER", str(tmp_path))
    with pytest.raises(UserError, match=r"not GPT-2's"):
        get_tokenizer("gpt2")


def test_without_network_the_error_says_which_files_to_put_where(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.delenv("GPT2_TOKENIZER", raising=False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"put vocab.json \+ merges.txt .* into a folder and set GPT2_TOKENIZER"):
        get_tokenizer("gpt2")


def test_names_of_tokenizers(tmp_path):
    save_tokenizer(SMALL, tmp_path)
    assert get_tokenizer("byte").vocab_size == 257
    assert get_tokenizer(str(tmp_path)).hash == SMALL.hash
    with pytest.raises(UserError, match=r"tokenizer 'gtp2': no such file or folder.*did you mean 'gpt2'"):
        get_tokenizer("gtp2")


def test_all_forms_need_every_byte_character():
    assert len(set(BYTE_TO_CHAR.values())) == 256
