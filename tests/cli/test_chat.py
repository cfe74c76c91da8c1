"""`gpt2 chat`: a prompt that goes on, line by line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import BYTES, make, write_model

import gpt2 as library
from gpt2.cli.chat import Turns
from gpt2.inference.session import Session
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.chat_template import DEFAULT_TEMPLATE

GREEDY = ("--temperature", 0, "--max-new-tokens", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ascii_only = Tokenizer.from_characters([chr(point) for point in range(32, 127)] + ["\n"])
    module = make(scale=15.0, vocab_size=ascii_only.vocab_size)
    return write_model(tmp_path_factory.mktemp("model"), module, ascii_only)


@pytest.fixture
def chat(gpt2: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(lines: str, *words: object) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return gpt2("chat", "--model", folder, *GREEDY, *words)

    return run


def continuation(folder: Path, transcript: str) -> str:
    return library.load(folder).generate(transcript, temperature=0, max_new_tokens=6)


def test_each_line_goes_on_from_all_before(chat: Callable[..., Any], folder: Path) -> None:
    first = continuation(folder, "Once")
    second = continuation(folder, f"Once{first}\nand")
    third = continuation(folder, f"Once{first}\nand{second}")
    done = chat("Once\nand\n\n")
    assert (done.code, done.out) == (0, f"{first}\n{second}\n{third}\n")


def test_reset_forgets_and_quit_ends(chat: Callable[..., Any], folder: Path) -> None:
    first = continuation(folder, "Once")
    done = chat("Once\n/reset\nOnce\n/quit\nOnce\n")
    assert done.out == f"{first}\n{first}\n"
    assert "forgotten" in done.err


def test_an_unknown_slash_word_says_what_there_is(chat: Callable[..., Any]) -> None:
    done = chat("/help\n")
    assert done.out == ""
    assert "/reset" in done.err and "Ctrl-D" in done.err


def test_a_template_surrounds_each_line(chat: Callable[..., Any], folder: Path) -> None:
    turns = Turns("Q: {}\nA:")
    assert turns.text_of("why?", first=True) == "Q: why?\nA:"
    assert turns.text_of("why?", first=False) == "\nQ: why?\nA:"
    assert turns.text_of("", first=False) == ""
    assert chat("why?\n", "--template", r"Q: {}\nA:").out == continuation(folder, "Q: why?\nA:") + "\n"
    assert "has no {}" in chat("why?\n", "--template", "Q:").err


def test_ctrl_c_stops_the_answer_and_the_next_line_goes_on(
    chat: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Session.stream

    def interrupted(self: Session, text: str, params: Any) -> Any:
        for number, piece in enumerate(stream(self, text, params)):
            if text == "Once" and number == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(Session, "stream", interrupted)
    done = chat("Once\nand\n")
    answer = done.out.split("\n")[0]
    assert done.code == 0
    assert "[stopped]" in done.err
    assert answer == continuation(folder, "Once")[:3]
    assert len(done.out) > len(answer) + 6


def test_an_overflow_from_a_pipe_is_an_error(chat: Callable[..., Any]) -> None:
    done = chat("a" * 70 + "\n", "--overflow", "stop")
    assert done.code == 2
    assert "leave no room" in done.err
    assert "did you mean 'stop'" in chat("a\n", "--overflow", "stp").err


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes that carries the default chat template."""
    return write_model(tmp_path_factory.mktemp("tuned"), make(scale=15.0), BYTES.with_template(DEFAULT_TEMPLATE))


def test_a_model_with_a_chat_template_answers_by_it(
    tuned: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(*words: str) -> list[Any]:
        asked: list[Any] = []

        def stream(self: Session, text: Any, params: Any) -> Any:
            asked.append(text if isinstance(text, str) else BYTES.decode(text))
            self.tokens = [1]
            yield "!"

        monkeypatch.setattr(Session, "stream", stream)
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\nAnd <|endoftext|>?\n/reset\nHi\n"))
        assert gpt2("chat", "--model", tuned, *words).out == "!\n!\n!\n!\n"
        return asked

    first = "### User:\nHi\n\n### Assistant:\n"
    assert texts() == [first, "", "<|endoftext|>\n\n### User:\nAnd <|endoftext|>?\n\n### Assistant:\n", first]
    assert texts("--template", "{}:")[0] == "Hi:"


def test_an_answer_by_the_chat_template_is_the_continuation_of_its_prompt(
    tuned: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    text = library.load(tuned).generate("### User:\nHi\n\n### Assistant:\n", temperature=0, max_new_tokens=6)
    assert gpt2("chat", "--model", tuned, *GREEDY).out == text + "\n"
