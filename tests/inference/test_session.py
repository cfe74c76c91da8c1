"""A text that goes on over turns is the text written at once, and each token is read once."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from tiny_models import TINY, make

from gpt2.errors import UserError
from gpt2.inference.generate import generate
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.session import Session
from gpt2.model.gpt import GPT
from gpt2.model.kv_cache import KVCache
from gpt2.tokenizer.bpe import Tokenizer

ASCII = Tokenizer.from_characters([chr(point) for point in range(128)])
GREEDY = SamplingParams(temperature=0, max_new_tokens=8, ignore_eot=True)


@pytest.fixture(scope="module")
def module() -> GPT:
    return make(scale=15.0, vocab_size=128)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass reads."""
    counts: list[int] = []
    begin = KVCache.begin
    monkeypatch.setattr(KVCache, "begin", lambda self, ids, c: counts.append(ids.numel()) or begin(self, ids, c))
    return counts


def continuation(module: GPT, tokens: list[int], params: SamplingParams = GREEDY) -> list[int]:
    return generate(module, ASCII, [tokens], params)[0].tokens


def test_each_turn_goes_on_from_the_whole_transcript(module: GPT) -> None:
    session, transcript = Session(module, ASCII), []
    for line in ("Once", " and", "", "x"):
        transcript += ASCII.encode(line)
        transcript += continuation(module, transcript)
        said = "".join(session.stream(line, GREEDY))
        assert said == ASCII.decode(transcript[-8:])
        assert session.tokens == transcript


def test_a_turn_reads_only_what_is_new(read: list[int]) -> None:
    session = Session(make(vocab_size=128), ASCII)
    params = SamplingParams(temperature=0, max_new_tokens=3, ignore_eot=True)
    list(session.stream("abcd", params))
    list(session.stream("ef", params))
    assert read == [4, 1, 1, 3, 1, 1]


def test_a_stop_string_is_no_part_of_the_transcript(module: GPT) -> None:
    first = continuation(module, list(b"Once"))
    stop = ASCII.decode(first[3:5])
    session = Session(module, ASCII)
    said = "".join(session.stream("Once", SamplingParams(temperature=0, max_new_tokens=8, stop=(stop,))))
    assert ASCII.decode(first).startswith(said) and stop not in said
    assert session.tokens == [*b"Once", *ASCII.encode(said)]
    after = continuation(module, [*session.tokens, *b"go"])
    assert "".join(session.stream("go", GREEDY)) == ASCII.decode(after)


def test_an_answer_that_is_closed_or_fails_ends_with_what_was_shown(module: GPT) -> None:
    session = Session(module, ASCII)
    with closing(session.stream("Once", GREEDY)) as pieces:
        shown = next(pieces) + next(pieces)
    assert session.tokens == [*b"Once", *ASCII.encode(shown)]
    after = continuation(module, [*session.tokens, *b"!"])
    assert "".join(session.stream("!", GREEDY)) == ASCII.decode(after)


@pytest.mark.parametrize("place", range(6))
def test_ctrl_c_anywhere_in_a_pass_leaves_a_sound_session(
    module: GPT, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    session = Session(module, ASCII)
    "".join(session.stream("a" * 50, GREEDY))
    passes, attend = iter(range(10**6)), KVCache.attend

    def interrupted(self: KVCache, *arguments: object) -> torch.Tensor:
        if next(passes) == 7 + place:  # around the pass that slides
            raise KeyboardInterrupt
        return attend(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(KVCache, "attend", interrupted)
        "".join(session.stream("bcd", SamplingParams(temperature=0, max_new_tokens=30, ignore_eot=True)))
    tokens = session.tokens
    assert "".join(session.stream("!", GREEDY))
    assert session.tokens[: len(tokens) + 1] == [*tokens, ord("!")]
    window = session._reader.windows[0]
    seen = session._reader.read([[65]])[0]  # what the cache holds is what the window says
    torch.testing.assert_close(seen, module(torch.tensor([window]))[0, -1].detach(), rtol=0, atol=1e-4)


def test_a_transcript_past_the_context_slides(module: GPT) -> None:
    session = Session(module, ASCII)
    for _ in range(12):
        assert "".join(session.stream("hello there", GREEDY))
    assert len(session.tokens) > TINY.context_length
    window = session._reader.windows[0]
    assert session.tokens[session._reader.starts[0] :][: len(window)] == window


def test_stop_and_error_hold_for_the_whole_transcript(module: GPT) -> None:
    session = Session(module, ASCII, "stop")
    list(session.stream("a" * 55, SamplingParams(max_new_tokens=100, ignore_eot=True, seed=1)))
    with pytest.raises(UserError, match="leave no room"):
        list(session.stream("b" * 10, GREEDY))
    session.reset()
    assert list(session.stream("b" * 10, GREEDY))


def test_the_first_turn_may_be_empty(module: GPT) -> None:
    said = "".join(Session(module, ASCII).stream("", GREEDY))
    assert said == generate(module, ASCII, [""], GREEDY)[0].text
