"""Every form a GPT-2 vocabulary has on disk, read and written.

Hugging Face: tokenizer.json, or vocab.json + merges.txt (with tokenizer_config.json and its like beside them).
OpenAI: encoder.json + vocab.bpe. tiktoken: lines of `base64(token) rank`. All give the same ids, or a UserError.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from pathlib import Path
from typing import Any

from gpt2.atomic import write_text
from gpt2.errors import UserError, did_you_mean
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.tokenizer_json import parse_added, parse_tokenizer_json, tokenizer_json
from gpt2.tokenizer.vocabulary import EOT, Vocabulary, to_printable

FORMS = "tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe, or a .tiktoken file"
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
TEMPLATE_FILE = "chat_template.jinja"  # where transformers 4.52 and later write it; they read tokenizer_config.json too
SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GPT2_REPO = "openai-community/gpt2"
GPT2_HASH = "d8f56ff9a79ba50e2c0b14697222ffbde256e44b47af3251a57ca6b1a32947b9"


def get_tokenizer(name: str) -> Tokenizer:
    """`gpt2` (OpenAI's vocabulary), `byte` (256 bytes and end-of-text), or the path of a folder or file.

    GPT-2's comes from the folder in $GPT2_TOKENIZER if that is set, else from the Hugging Face cache or hub.
    Raises UserError where it cannot be had, saying which files to put where.
    """
    if name == "byte":
        return Tokenizer.bytes_only()
    if name in GPT2_NAMES:
        return _gpt2()
    if Path(name).exists():
        return load_tokenizer(name)
    hint = did_you_mean(name, ["gpt2", "byte"])
    raise UserError(f"tokenizer {name!r}: no such file or folder, and not gpt2 or byte{hint}")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a folder in any known form (the first of FORMS that is there) or one file of it.

    Raises UserError that names the file, and the line where there is one, for anything missing or malformed.
    """
    path = Path(path)
    if path.is_dir():
        template = _chat_template(path)
        return _load_folder(path) if template is None else _load_folder(path).with_template(template)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; a tokenizer is {FORMS}")
    if path.suffix == ".json" and isinstance((data := _read_json(path)).get("model"), dict):
        return Tokenizer(parse_tokenizer_json(data, {}, str(path)))
    for vocab, merges in PAIRS:
        for mine in (vocab, merges):
            if path.name.endswith(mine):
                stem = path.name.removesuffix(mine)
                return load_merges(path.with_name(stem + vocab), path.with_name(stem + merges))
    return load_tiktoken(path)


def load_merges(vocab: str | Path, merges: str | Path) -> Tokenizer:
    """Read vocab.json + merges.txt, or OpenAI's names for the same, with what lies beside them on special tokens."""
    vocab, merges = Path(vocab), Path(merges)
    ids = _read_json(vocab)
    first, pairs = _read_merges(merges)
    added = _declared(vocab.parent)
    return Tokenizer(Vocabulary.from_merges(ids, pairs, added, str(vocab), lambda n: f"{merges} line {first + n}"))


def load_tiktoken(path: str | Path) -> Tokenizer:
    """Read ranks. The form has no special tokens: end-of-text gets the first id that no rank takes (GPT-2: 50256)."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read_text(Path(path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{path} line {number}: expected 'base64(token) rank', found {line[:40]!r}") from None
    return Tokenizer(Vocabulary.from_ranks(ranks, None, str(path)))


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write Hugging Face's files, so that transformers' AutoTokenizer gives the same ids.

    A character vocabulary has no merges; its form is tokenizer.json alone (with the two files on special tokens).
    Raises UserError if the vocabulary cannot be written as merges.
    """
    vocabulary, folder = tokenizer.vocabulary, Path(folder)
    document = tokenizer_json(vocabulary)  # before anything is written: it may refuse
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.kind == "bpe":
        _write_json(folder / "vocab.json", document["model"]["vocab"])
        write_text(folder / "merges.txt", _merges_text(vocabulary))
    _write_json(folder / "tokenizer.json", document)
    eot = EOT if tokenizer.eot_id is not None else None
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), eot)
    _write_json(folder / "special_tokens_map.json", roles if eot else {})
    config: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "errors": "replace"}
    if tokenizer.kind == "char":
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    flags = {token["id"]: token for token in document["added_tokens"]}
    config |= roles | {"clean_up_tokenization_spaces": False, "added_tokens_decoder": flags}
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    (folder / TEMPLATE_FILE).unlink(missing_ok=True)  # of a tokenizer that was here before
    _write_json(folder / "tokenizer_config.json", config)


def write_openai(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write OpenAI's encoder.json + vocab.bpe. Special tokens must look like `<|name|>`: the form cannot mark others.

    Raises UserError where reading the files back would not give this vocabulary.
    """
    vocabulary, folder = tokenizer.vocabulary, Path(folder)
    lost = [text for text in vocabulary.special if not (text.startswith("<|") and text.endswith("|>"))]
    if tokenizer.kind != "bpe" or lost or vocabulary.always:
        raise UserError(
            f"OpenAI's form holds byte-level BPE and special tokens like {EOT}, not {lost or tokenizer.kind}"
        )
    document = tokenizer_json(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "encoder.json", document["model"]["vocab"])
    write_text(folder / "vocab.bpe", _merges_text(vocabulary))


def write_tiktoken(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write tiktoken's ranks. Raises UserError where reading the file back would not give this vocabulary."""
    vocabulary = tokenizer.vocabulary
    if tokenizer.kind != "bpe" or not vocabulary.in_merge_order or vocabulary.unreachable:
        raise UserError(f"{path}: ranks hold byte-level BPE with ids in the order of the merges; save a folder instead")
    if Vocabulary.from_ranks(vocabulary.tokens, None, str(path)).hash != vocabulary.hash:
        raise UserError(f"{path}: ranks hold no special tokens but {EOT} at the first free id; save a folder instead")
    by_id = sorted(vocabulary.tokens.items(), key=lambda item: item[1])
    write_text(path, "".join(f"{base64.b64encode(data).decode()} {id}\n" for data, id in by_id))


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").exists():
        path = folder / "tokenizer.json"
        return Tokenizer(parse_tokenizer_json(_read_json(path), _declared(folder), str(path)))
    for vocab, merges in PAIRS:
        if (folder / vocab).exists() or (folder / merges).exists():
            return load_merges(folder / vocab, folder / merges)
    ranks = sorted(folder.glob("*.tiktoken"))
    if len(ranks) == 1:
        return load_tiktoken(ranks[0])
    raise UserError(f"{folder}: {'several .tiktoken files' if ranks else 'no tokenizer'} here; looked for {FORMS}")


def _declared(folder: Path) -> dict[str, tuple[int | None, bool]]:
    """Added and special tokens that the files beside a vocabulary name: text -> (id if given, special?)."""
    added: dict[str, tuple[int | None, bool]] = {}
    config = folder / "tokenizer_config.json"
    settings = _read_json(config) if config.exists() else {}
    if settings.get("add_prefix_space"):
        raise UserError(f"{config}: add_prefix_space is not supported, ids would differ from GPT-2's")
    if (folder / "added_tokens.json").exists():
        added |= {text: (id, True) for text, id in _read_json(folder / "added_tokens.json").items()}
    listed = settings.get("added_tokens_decoder") or {}
    added |= parse_added([{**entry, "id": id} for id, entry in listed.items()], str(config))
    special_map = folder / "special_tokens_map.json"
    for names in (_read_json(special_map) if special_map.exists() else {}, settings):
        roles = [names.get(role) for role in SPECIAL_ROLES] + (names.get("additional_special_tokens") or [])
        for token in roles:
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str) and text:
                added.setdefault(text, (None, True))
    return added


def _chat_template(folder: Path) -> str | None:
    """The Jinja source of chat_template.jinja, else of tokenizer_config.json (of several the default), if any."""
    if (folder / TEMPLATE_FILE).exists():
        return _read_text(folder / TEMPLATE_FILE)
    config = folder / "tokenizer_config.json"
    found = _read_json(config).get("chat_template") if config.exists() else None
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _read_merges(path: Path) -> tuple[int, list[tuple[str, str]]]:
    """The line number of the first pair, and the pairs."""
    lines = _read_text(path).split("\n")
    first = 2 if lines[0].startswith("#version") else 1
    while lines and not lines[-1].strip():
        lines.pop()
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines[first - 1 :], first):
        left, space, right = line.rstrip("\r").partition(" ")
        if not (left and space and right) or " " in right:
            raise UserError(f"{path} line {number}: expected two symbols with one space between, found {line[:40]!r}")
        pairs.append((left, right))
    return first, pairs


def _merges_text(vocabulary: Vocabulary) -> str:
    pairs = [f"{to_printable(a)} {to_printable(b)}" for a, b in vocabulary.merge_pairs]
    return "\n".join(["#version: 0.2", *pairs, ""])


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a tokenizer is {FORMS}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); is it the right file?") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({str(error)[:80]})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def _write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, ensure_ascii=False, indent=None if len(data) > 100 else 1) + "\n")


def _gpt2() -> Tokenizer:
    place = os.environ.get("GPT2_TOKENIZER")
    tokenizer = load_tokenizer(place or _download())
    if tokenizer.hash != GPT2_HASH:
        raise UserError(
            f"{place or GPT2_REPO}: a tokenizer, but not GPT-2's; unset GPT2_TOKENIZER, or name it by its path"
        )
    return tokenizer


def _download() -> Path:
    """The folder of GPT-2's vocab.json and merges.txt: the Hugging Face cache, filled from the hub if need be."""
    import huggingface_hub

    names = PAIRS[0]
    found = [huggingface_hub.try_to_load_from_cache(GPT2_REPO, name) for name in names]
    if all(isinstance(path, str) for path in found):
        return Path(str(found[0])).parent
    try:
        paths = [Path(huggingface_hub.hf_hub_download(GPT2_REPO, name)) for name in names]
    except Exception as error:  # its errors come from several libraries, and each means: not to be had
        raise UserError(
            "GPT-2's vocabulary is not in the Hugging Face cache, and the hub cannot be reached "
            f"({type(error).__name__}): put vocab.json + merges.txt (or encoder.json + vocab.bpe) into a folder "
            "and set GPT2_TOKENIZER to that folder"
        ) from None
    return paths[0].parent
