"""A text that goes on over turns is the text written at once, and little of it is read twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest
from tiny_models import TINY, make

from gpt2.errors import UserError
from gpt2.inference.engine import Engine
from gpt2.inference.generate import generate
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.rows import Overflow
from gpt2.inference.runners.torch import TorchRunner
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.session import Session, slide
from gpt2.model.gpt import GPT
from gpt2.tokenizer.bpe import Tokenizer

ASCII = Tokenizer.from_characters([chr(point) for point in range(128)])
GREEDY = SamplingParams(temperature=0, max_new_tokens=8, ignore_eot=True)


@pytest.fixture(scope="module")
def module() -> GPT:
    return make(scale=15.0, vocab_size=128)


def session_of(module: GPT, overflow: Overflow = "slide") -> Session:
    return Session(Engine((TorchRunner(module, TINY.context_length // PAGE_SIZE), ASCII), 1), overflow)


def continuation(module: GPT, tokens: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return generate(module, ASCII, [tokens], params)[0].tokens


def test_each_turn_goes_on_from_the_whole_transcript(module: GPT) -> None:
    session, transcript = session_of(module), []
    for line in ("Once", " and", "", "x"):
        transcript += ASCII.encode(line)
        transcript += continuation(module, transcript)
        said = "".join(session.stream(line, GREEDY))
        assert said == ASCII.decode(transcript[-8:])
        assert session.tokens == transcript


def test_a_turn_reads_what_is_new_and_less_than_a_page_of_the_rest(module: GPT) -> None:
    session = session_of(module)
    params = SamplingParams(temperature=0, max_new_tokens=3, ignore_eot=True)
    list(session.stream("a" * 38, params))
    assert session.engine.stats.read == 38 + 2
    list(session.stream("ef", params))
    assert session.engine.stats.read - 40 == (38 + 3 - 32) + 2 + 2


def test_a_stop_string_is_no_part_of_the_transcript(module: GPT) -> None:
    first = continuation(module, list(b"Once"))
    stop = ASCII.decode(first[3:5])
    session = session_of(module)
    said = "".join(session.stream("Once", SamplingParams(temperature=0, max_new_tokens=8, stop=(stop,))))
    assert ASCII.decode(first).startswith(said) and stop not in said
    assert session.tokens == [*b"Once", *ASCII.encode(said)]
    after = continuation(module, [*session.tokens, *b"go"])
    assert "".join(session.stream("go", GREEDY)) == ASCII.decode(after)


def test_an_answer_that_is_closed_or_fails_ends_with_what_was_shown(module: GPT) -> None:
    session = session_of(module)
    with closing(session.stream("Once", GREEDY)) as pieces:
        shown = next(pieces) + next(pieces)
    assert session.tokens == [*b"Once", *ASCII.encode(shown)]
    after = continuation(module, [*session.tokens, *b"!"])
    assert "".join(session.stream("!", GREEDY)) == ASCII.decode(after)


@pytest.mark.parametrize("place", range(6))
def test_ctrl_c_in_any_step_leaves_a_sound_session(module: GPT, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    session = session_of(module)
    "".join(session.stream("a" * 50, GREEDY))
    steps, step = iter(range(10**6)), session.engine.runner.step

    def interrupted(spans: Sequence[Span]) -> None:
        step(spans)
        if next(steps) == place:  # around the one that slides
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(session.engine.runner, "step", interrupted)
        "".join(session.stream("bcd", SamplingParams(temperature=0, max_new_tokens=30, ignore_eot=True)))
    tokens = [*session.tokens, ord("!")]
    start = slide(session.start, len(tokens), TINY.context_length)
    said = "".join(session.stream("!", GREEDY))
    assert said == ASCII.decode(continuation(module, tokens[start:]))
    assert session.tokens == tokens + ASCII.encode(said)


def test_a_transcript_past_the_context_goes_on_with_its_last_half(module: GPT) -> None:
    session = session_of(module)
    for turn in range(12):
        start = session.start
        transcript = session.tokens + ASCII.encode("hello there")
        if len(transcript) - start > TINY.context_length:
            start = len(transcript) - TINY.context_length // 2
        assert "".join(session.stream("hello there", GREEDY)) == ASCII.decode(continuation(module, transcript[start:]))
        assert (session.start > 0) == (turn >= 3)
    assert len(session.tokens) - session.start <= TINY.context_length


def test_of_a_long_first_text_the_model_reads_the_end(module: GPT) -> None:
    session, text = session_of(module), "abc" * 30
    assert "".join(session.stream(text, GREEDY)) == ASCII.decode(continuation(module, ASCII.encode(text)))
    assert len(session.tokens) == 98
    assert session.start == 91 - TINY.context_length // 2


def test_stop_and_error_hold_for_the_whole_transcript(module: GPT) -> None:
    session = session_of(module, "stop")
    list(session.stream("a" * 55, SamplingParams(max_new_tokens=100, ignore_eot=True, seed=1)))
    with pytest.raises(UserError, match="leave no room"):
        list(session.stream("b" * 10, GREEDY))
    session.reset()
    assert list(session.stream("b" * 10, GREEDY))


def test_the_first_turn_may_be_empty(module: GPT) -> None:
    said = "".join(session_of(module).stream("", GREEDY))
    assert said == generate(module, ASCII, [""], GREEDY)[0].text
