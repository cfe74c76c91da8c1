"""Guesses: where they come from, how many there are, and when they stop."""

from __future__ import annotations

import random

import pytest
from fake_runner import BYTES, FakeRunner, plain

from gpt2.inference.engine import Engine
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.speculate import LONGEST, Gate, Lookup, PromptLookup, SmallerModel

PARAMS = SamplingParams(max_new_tokens=60, temperature=0, ignore_eot=True)


def lookup(text: str) -> Lookup:
    found = Lookup()
    found.push([ord(letter) for letter in text])
    return found


def guess(text: str, most: int = LONGEST) -> str:
    return "".join(map(chr, lookup(text).guess(most)))


def test_a_text_is_guessed_to_go_on_as_it_did_last_time() -> None:
    assert guess("the cat sat. the cat ") == "sat. the cat sat"
    assert guess("abcde, abcdf, abcd", 1) == "f"
    assert guess("no such thi") == ""


def test_the_longest_run_wins_over_the_latest() -> None:
    assert guess("12345a; 45b; 12345", 1) == "a"


def test_a_longer_match_is_worth_more_guesses() -> None:
    assert len(guess("xy0123456789zz xy")) == 3
    assert len(guess("wxy0123456789zz wxy")) == 6
    assert len(guess("uvwxy0123456789zz uvwxy")) == LONGEST
    assert len(guess("uvwxy0123456789zz uvwxy", 5)) == 5


def test_a_text_that_repeats_its_own_end_goes_on_into_the_guess() -> None:
    assert guess("abababab", 6) == "ababab"
    assert guess("aaaaaaa", 4) == "aaaa"


def test_a_copy_is_followed_from_its_place_even_if_its_words_come_again() -> None:
    text = "one two three four; two three five; one two three"
    assert guess(text, 5) == " four"


def test_a_tokens_work_does_not_grow_with_the_text() -> None:
    found = lookup("".join(random.Random(1).choices("abcdefgh", k=5000)))
    assert sum(len(table) for table in found._last) <= 3 * 5000
    before = len(found.tokens)
    found.push([97])
    assert len(found.tokens) == before + 1


def test_the_gate_doubles_while_all_is_right_and_shrinks_to_what_was() -> None:
    gate = Gate(4)
    gate.learn(4, 4)
    assert gate.length == 8
    gate.learn(8, 2)
    assert gate.length == 4
    gate.learn(4, 0)
    assert gate.length == 2


def test_wrong_guesses_are_followed_by_longer_and_longer_pauses_until_one_pays() -> None:
    gate, asked = Gate(), []
    for token in range(300):
        if gate.open():
            asked.append(token)
            gate.learn(4, 0)
    assert len(asked) <= 9
    gate.learn(4, 1)
    gate.learn(4, 0)
    assert [gate.open() for _ in range(2)] == [False, True]


def test_where_many_write_guesses_must_be_right_more_often() -> None:
    gate = Gate()
    gate.learn(8, 2, price=0.5)
    assert not gate.open()
    gate.learn(8, 5, price=0.5)
    assert [gate.open() for _ in range(2)] != [False, False]


def test_text_that_repeats_is_written_in_fewer_steps_and_the_rate_is_counted() -> None:
    prompt = list(b"abcde" * 6)
    runner = FakeRunner(20, context_length=256)
    engine = Engine((runner, BYTES), drafter=PromptLookup())
    assert engine.generate([prompt], PARAMS) == plain(runner.config, prompt, PARAMS)
    stats = engine.stats
    assert 0 < stats.accepted < stats.drafted
    assert stats.acceptance == stats.accepted / stats.drafted
    assert stats.steps == stats.tokens - stats.accepted < 60


def test_nothing_is_guessed_behind_a_texts_last_token() -> None:
    runner = FakeRunner(20, context_length=256)
    for count in range(1, 12):
        Engine((runner, BYTES), drafter=SmallerModel(FakeRunner(20, 256))).generate(
            [list(b"abcde" * 6)], SamplingParams(max_new_tokens=count, temperature=0, ignore_eot=True)
        )
        assert max(span.start + len(span.tokens) for span in runner.steps[-1]) == 30 + count - 1


@pytest.mark.parametrize("context_length", [200, 48])
def test_a_smaller_model_that_is_as_good_is_always_right_and_its_pages_come_back(context_length: int) -> None:
    larger, smaller = FakeRunner(60, context_length), FakeRunner(60, context_length)
    drafter = SmallerModel(smaller, price=0.0)
    engine = Engine((larger, BYTES), drafter=drafter)
    prompts = [list(b"abc" * 5), list(b"e" * 30)]
    expected = [
        result for place, prompt in enumerate(prompts) for result in plain(larger.config, prompt, PARAMS, place=place)
    ]
    assert engine.generate(prompts, PARAMS) == expected
    assert engine.stats.acceptance == 1 and engine.stats.accepted > 60
    assert drafter.room.pages.free == 60 and not drafter._readings


def test_a_smaller_model_without_room_guesses_nothing_and_harms_nothing() -> None:
    engine = Engine((FakeRunner(60), BYTES), drafter=SmallerModel(FakeRunner(2, context_length=40)))
    prompts = [list(b"abc" * 10), list(b"e" * 30), list(b"d" * 50)]
    expected = [r for place, p in enumerate(prompts) for r in plain(engine.runner.config, p, PARAMS, place=place)]
    assert engine.generate(prompts, PARAMS) == expected
