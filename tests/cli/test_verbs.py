"""summarize, translate, answer, write and classify from the command line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BYTES, make, state_of, write_model

from gpt2.checkpoint.classifier import read_classifier, with_head, write_classifier, write_classifier_adapter
from gpt2.model.lora import apply_lora, lora_parameters
from gpt2.model.lora_config import LoRAConfig
from gpt2.tokenizer.chat_template import DEFAULT_TEMPLATE

TEXT = "The ship went out to sea. Men sang of it. Nobody knows why. It came back late.\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), make(context_length=256, scale=15.0))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run(gpt2: Callable[..., Any], model: Path) -> Callable[..., Any]:
    return lambda verb, *words: gpt2(verb, "--model", model, *words)


def typed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


SHORT = ("--max-new-tokens", 12, "--seed", 1)


def test_a_summary_is_the_same_again_with_a_seed_and_from_a_file_or_a_pipe(
    run: Callable[..., Any], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("summarize", text, *SHORT)
    assert done.code == 0 and done.out.endswith("\n") and "TL;DR" not in done.out
    typed(monkeypatch, TEXT.encode())
    assert run("summarize", "-", *SHORT).out == done.out
    typed(monkeypatch, TEXT.encode())
    assert run("summarize", *SHORT).out == done.out


def test_a_long_text_is_cut_or_walked_and_that_is_said(run: Callable[..., Any], text: Path) -> None:
    text.write_text(TEXT * 9)
    cut = run("summarize", text, *SHORT)
    assert "does not fit the model's context of 256 tokens: its beginning is read" in cut.err
    walked = run("summarize", text, *SHORT, "--long", "walk")
    assert walked.out.count("\n") == 4 and "it is, in 4 pieces, read" in walked.err
    refused = run("summarize", text, *SHORT, "--long", "error")
    assert (refused.code, refused.out) == (2, "") and "use --long cut or walk" in refused.err


def test_a_translation_has_the_lines_of_its_text(run: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    text.write_text("The sea. A ship.\n\nMen.\n")
    done = run("translate", "--from", "en", "--to", "fr", text, *SHORT)
    assert done.code == 0 and done.out.count("\n") == 3 and done.out.split("\n")[1] == ""
    path = tmp_path / "shots.jsonl"
    path.write_text('{"en": "sea", "it": "mare"}\n')
    assert run("translate", "--from", "en", "--to", "it", text, "--shots", path, *SHORT).code == 0


def test_a_template_of_the_user_is_the_whole_prompt(run: Callable[..., Any], text: Path) -> None:
    """The built-in sentences are in the paper's words: they do not stand before another's, nor are they missed."""
    done = run("translate", "--from", "en", "--to", "ro", text, "--template", r"{source}\nRomanian:", *SHORT)
    assert done.code == 0


def test_an_answer_is_one_line_from_a_text_or_from_memory(run: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text('{"question": "Who?", "answer": "men"}\n')
    for words in ((), ("--context", text), ("--context", text, "--shots", path), ("--shots", path)):
        done = run("answer", *words, *SHORT, "What went out?")
        assert done.code == 0 and done.out.count("\n") == 1, words
        assert ("1 of 1 examples beside it" in done.err) == ("--shots" in words)


def test_write_draws_among_forty_for_half_the_context(run: Callable[..., Any]) -> None:
    done = run("write", "--seed", 3, "The ship")
    same = run(
        "generate", "--seed", 3, "--top-k", 40, "--temperature", 1, "--max-new-tokens", 128, "--no-echo", "The ship"
    )
    assert done.code == 0 and done.out == same.out


def test_write_learns_from_examples_as_generate_does_for_a_task(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text('{"input": "A", "output": "B"}\n')
    words = ("--shots", path, *SHORT, "--top-k", 40, "--temperature", 1, "The ship")
    same = run("generate", "--task", "{input}", "--no-echo", *words)
    assert same.code == 0 and run("write", *words).out == same.out


def test_labels_come_one_a_text_or_one_a_line_with_values_as_json(run: Callable[..., Any], text: Path) -> None:
    text.write_text("A ship.\n\nMen sang.\n")
    one = run("classify", "--labels", "sea,land", text)
    assert one.code == 0 and one.out.strip() in ("sea", "land")
    lines = run("classify", "--labels", "sea, land", "--lines", "--json", "--by", "answer", text)
    found = [json.loads(line) for line in lines.out.splitlines()]
    assert len(found) == 2 and all(set(one["scores"]) == {"sea", "land"} for one in found)
    assert all(one["label"] == max(one["scores"], key=one["scores"].get) for one in found)


def test_long_lines_and_sentences_are_not_cut_in_silence(run: Callable[..., Any], text: Path) -> None:
    text.write_text("A ship.\n" + "word " * 200 + "\nMen sang.\n")
    found = run("classify", "--labels", "sea,land", "--lines", text)
    assert found.code == 0 and "1 of 3 texts do not fit the model's context: their beginnings are read" in found.err
    found = run("translate", "--from", "en", "--to", "fr", "--max-new-tokens", "2", text)
    assert found.code == 0 and "1 of 3 sentences do not fit the model's context" in found.err


def test_a_tuned_classifier_uses_its_head(gpt2: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    module = with_head(make(), torch.randn(2, 32))
    write_classifier(tmp_path / "c", module.config, state_of(module), ["sea", "land"], BYTES)
    done = gpt2("classify", "--model", tmp_path / "c", "--json", text)
    assert done.code == 0
    scores = json.loads(done.out)["scores"]
    expected = module.body(torch.tensor([BYTES.encode(TEXT.strip())[:64]]))[0, -1] @ module.score.weight.T  # type: ignore[operator, union-attr]
    assert list(scores.values()) == pytest.approx(expected.log_softmax(0).tolist(), abs=1e-5)
    assert "1 of 1 texts pass the model's context of 64 tokens: their beginnings are read (--long)" in done.err
    wrong = gpt2("classify", "--model", tmp_path / "c", "--labels", "a,b", text)
    assert wrong.code == 2 and "was tuned for sea, land; leave --labels out" in wrong.err
    useless = gpt2("classify", "--model", tmp_path / "c", "--by", "sum", text)
    assert useless.code == 2 and "--by:" in useless.err and "no use for it" in useless.err


def test_an_adapter_with_a_head_uses_it_over_its_base(gpt2: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    module = make()
    base = write_model(tmp_path / "base", module)
    apply_lora(module, LoRAConfig(rank=2))
    state = {name: torch.randn_like(tensor) for name, tensor in lora_parameters(module).items()}
    state["score.weight"] = torch.randn(2, 32)
    write_classifier_adapter(tmp_path / "a", LoRAConfig(rank=2), state, ["sea", "land"], str(base), BYTES)
    done = gpt2("classify", "--model", tmp_path / "a", "--json", text)
    assert done.code == 0, done.err
    expected = read_classifier(tmp_path / "a").logits([BYTES.encode(TEXT.strip())[:64]])[0].log_softmax(0)
    assert list(json.loads(done.out)["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_model_with_a_chat_template_is_asked_in_turns(gpt2: Callable[..., Any], text: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", make(context_length=256, scale=15.0), BYTES.with_template(DEFAULT_TEMPLATE))
    for words in (
        ("summarize", text),
        ("translate", "--from", "en", "--to", "it", text),
        ("answer", "--context", text, "Who?"),
        ("write", "A story"),
    ):
        done = gpt2(*words, "--model", folder, *SHORT)
        assert done.code == 0 and "asked in turns" in done.err, done.err
    told = gpt2("summarize", text, "--model", folder, *SHORT, "--template", r"{input}\nTL;DR:")
    plain = gpt2(
        "summarize", text, "--model", write_model(tmp_path / "p", make(context_length=256, scale=15.0)), *SHORT
    )
    assert "asked in turns" not in told.err and told.out == plain.out
    labelled = gpt2("classify", "--labels", "a,b", text, "--model", folder)
    assert labelled.code == 0 and "asked in turns" in labelled.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["summarize", "missing.txt"], "missing.txt: no such file"),
        (["summarize", "empty.txt"], "empty.txt: empty"),
        (["summarize", "binary.txt"], "binary.txt line 1: not UTF-8: byte 0xff"),
        (["summarize", "zero.txt"], "zero.txt: not a text, it holds a zero byte"),
        (["summarize", "."], "is a directory"),
        (["summarize", "text.txt", "--k", 2], "--k: of which examples? add --shots FILE"),
        (["summarize", "text.txt", "--max-new-tokens", 250], "has no room for a text beside the rest"),
        (["summarize", "text.txt", "--template", "none"], "names no field"),
        (["translate", "--from", "en", "--to", "EN", "text.txt"], "the same language"),
        (["translate", "--from", "en", "--to", "it", "text.txt"], "it: no example sentences in Italian here"),
        (["translate", "--from", "en", "text.txt"], "Missing option '--to'"),
        (["answer", " "], "QUESTION: empty"),
        (["answer", "--long", "walk", "Who?"], "--long: of which text? add --context FILE"),
        (["answer", "--context", "empty.txt", "Who?"], "empty.txt: empty"),
        (["write", "--shots", "empty.txt", "A"], "empty.txt: empty; expected examples"),
        (["classify", "text.txt"], "--labels: which?"),
        (["classify", "--labels", "a,b", "--seed", 1, "text.txt"], "--seed: nothing is drawn without examples"),
        (["classify", "--labels", "one", "text.txt"], "at least two names"),
        (["classify", "--labels", "a,,b", "text.txt"], "at least two names"),
        (["classify", "--labels", "a,b,a", "text.txt"], "one of them is there twice"),
        (
            ["classify", "--labels", "a,b", "--shots", "shots.jsonl", "text.txt"],
            "shots.jsonl line 1: 'c' is none of a, b",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"text": TEXT.encode(), "empty": b" \n", "binary": b"\xff\xfe\x00", "zero": b"PK\x00\x03"}
    for name, data in files.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    (tmp_path / "shots.jsonl").write_text('{"text": "T", "label": "c"}\n')
    done = run(*words)
    assert (done.code, done.out) == (2, "") and message in done.err and done.err.count("\n") == 1, done.err


def test_an_empty_pipe_is_refused(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, b"\n")
    done = run("classify", "--labels", "a,b")
    assert done.code == 2 and "standard input: empty" in done.err
