"""Scores: what a text gets alone it gets in any company, whatever the limits; windows predict each token once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fake_runner import EOT, FakeRunner, digest, digest_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import BYTES, TINY, make, state_of, transformers_twin

from gpt2.errors import UserError
from gpt2.evaluate.prefixes import Reading, grow
from gpt2.evaluate.score import Pair, Scored, Scorer, encode_pair, windows
from gpt2.evaluate.steps import read
from gpt2.tokenizer.bpe import Tokenizer

CONTEXT = TINY.context_length
TEXT = [(7 * i * i + i) % 257 for i in range(200)]
QUESTIONS: list[Pair] = [
    *(([*TEXT[:20], *range(question, question + 5)], [*TEXT[30:33], choice, *range(choice)])
      for question in (3, 50, 90) for choice in (1, 2, 6)),
    (TEXT[:20], [TEXT[20]]),  # a single token after what others have in common
    (TEXT[:20], [5]),
    (TEXT[:20], TEXT[20:26]),
    ([EOT], TEXT[:3]),
    (TEXT[:150], TEXT[150:170]),  # its end is read
    (TEXT[:9], TEXT[9 : 9 + CONTEXT]),
    (TEXT[:20], [5]),  # asked twice
]  # fmt: skip
tokens = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def expected(reading: Reading) -> list[float]:
    """What FakeRunner thinks of the targets of a reading."""
    ends = range(reading.silent + 1, len(reading.tokens) + 1)
    return [
        -float(digest(digest_of(reading.tokens[:end]), target) % 1009)
        for end, target in zip(ends, reading.targets, strict=True)
    ]


@given(
    st.lists(st.tuples(tokens, tokens), max_size=12),
    st.integers(6, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([0, 0, 1, 7, 40]),
)
def test_any_readings_are_read_right_within_any_limits(
    pairs: list[tuple[list[int], list[int]]], pages: int, max_tokens: int, max_outputs: int, band: int
) -> None:
    readings = [Reading([*context, *after][:-1], after) for context, after in pairs]
    runner = FakeRunner(pages, 96, max_tokens, max_outputs, band=band)
    found = read(runner, readings, greedy=False)
    assert [one.logprobs for one in found] == [expected(reading) for reading in readings]


@given(st.lists(st.tuples(tokens, tokens), max_size=12))
def test_a_tree_holds_every_reading_along_one_path(pairs: list[tuple[list[int], list[int]]]) -> None:
    readings = [Reading([*context, *after][:-1], after) for context, after in pairs]
    held: dict[tuple[int, ...], list[int]] = {}
    left: list[tuple[Any, list[int]]] = [(root, []) for root in grow(readings)]
    while left:
        part, above = left.pop()
        path = [*above, *part.tokens]
        assert part.start == len(above) and part.tokens
        for place in part.readings:
            assert path == list(readings[place].tokens[: len(path)])
            held.setdefault(tuple(path), []).append(place)
        left += [(other, path) for other in part.after]
    for place, reading in enumerate(readings):
        assert place in held[tuple(reading.tokens)]


def read_tokens(runner: FakeRunner) -> int:
    return sum(len(span.tokens) for step in runner.steps for span in step)


def test_the_choices_of_a_question_share_its_context() -> None:
    runner = FakeRunner(40)
    question, choices = list(range(30)), [list(range(100, 110)), list(range(120, 125)), list(range(130, 141))]
    read(runner, [Reading([*question, *choice][:-1], choice) for choice in choices])
    assert read_tokens(runner) == 30 + sum(len(choice) - 1 for choice in choices)
    assert len(runner.steps) == 2


def test_windows_that_overlap_in_the_middle_share_nothing() -> None:
    runner = FakeRunner(64)
    parts = list(windows(TEXT, 64, 16))
    read(runner, parts, greedy=False)
    assert read_tokens(runner) == sum(len(part.tokens) for part in parts)


def test_progress_counts_what_is_read_once() -> None:
    seen: list[tuple[int, int]] = []
    Scorer((FakeRunner(40), BYTES)).continuations([(list(range(30)), [1, 2]), (list(range(30)), [3])],
                                                  lambda done, total: seen.append((done, total)))  # fmt: skip
    assert seen[-1] == (31, 31)


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 20))
def test_windows_predict_every_token_but_the_first_once_after_a_full_window(length: int, window: int, cut: int) -> None:
    stride = min(cut, window)
    parts = list(windows(range(length), window, stride))
    assert [token for part in parts for token in part.targets] == list(range(1, length))
    for part in parts:
        assert part.tokens[-1] == part.targets[-1] - 1
        assert len(part.tokens) == min(window, length - 1)
        assert len(part.targets) <= (window if part is parts[0] else stride)


@pytest.fixture(scope="module")
def runners() -> Iterator[Any]:
    """Runners of one model, by the words that name them."""
    module = make(scale=5.0)
    made: list[Any] = []

    def runner(kind: str, **limits: int) -> Any:
        made.append(runner_of(module, kind, **limits))
        return made[-1]

    yield runner
    for one in made:
        if hasattr(one, "close"):
            one.close()


def runner_of(module: Any, kind: str, pages: int = 64, **limits: int) -> Any:
    """The torch runner, or the processor's with weights of a kind."""
    cpu = pytest.importorskip("gpt2.inference.runners.cpu")
    from gpt2.checkpoint.packed import pack_state
    from gpt2.inference.runners.torch import TorchRunner

    if kind == "torch":
        return TorchRunner(module, pages, **limits)
    arrays = {name: tensor.numpy()[:257] if name == "wte.weight" else tensor.numpy()
              for name, tensor in state_of(module).items()}  # fmt: skip
    return cpu.CpuRunner(pack_state(module.config, arrays, kind), pages, **limits)


def plainly(module: Any, pair: Pair) -> Scored:
    """One pair through transformers, by itself."""
    import torch

    whole = [*pair[0], *pair[1]][-CONTEXT - 1 :]
    with torch.no_grad():
        logits = module(torch.tensor([whole[:-1]])).logits[0, -len(pair[1]) :].double()
    own = logits.log_softmax(-1)[range(len(pair[1])), list(pair[1])]
    return Scored(float(own.sum()), logits.argmax(-1).tolist() == list(pair[1]), len(pair[1]))


def close(found: Sequence[Scored], wanted: Sequence[Scored], within: float) -> bool:
    same = all(one.greedy == other.greedy and one.tokens == other.tokens
               for one, other in zip(found, wanted, strict=True))  # fmt: skip
    return same and all(abs(one.log_likelihood - other.log_likelihood) < within
                        for one, other in zip(found, wanted, strict=True))  # fmt: skip


@pytest.mark.parametrize("kind", ["float32", "torch"])
def test_scores_are_those_of_transformers_one_pair_at_a_time(runners: Any, kind: str) -> None:
    scorer = Scorer((runners(kind, max_tokens=64, max_outputs=16), BYTES))
    twin = transformers_twin(make(scale=5.0))
    pairs = [*QUESTIONS, *((TEXT[:20], [token]) for token in range(257))]  # one of these is the likeliest
    assert close(scorer.continuations(pairs), [plainly(twin, pair) for pair in pairs], 1e-3)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_on_a_processor_company_changes_no_bit(runners: Any, kind: str) -> None:
    together = Scorer((runners(kind, max_tokens=48, max_outputs=8), BYTES)).continuations(QUESTIONS)
    alone = Scorer((runners(kind), BYTES))
    assert together == [one for pair in QUESTIONS for one in alone.continuations([pair])]


@pytest.mark.parametrize("kind", ["float32", "torch"])
def test_banded_layers_score_as_the_whole_text_read_plainly(kind: str) -> None:
    import torch

    module = make(replace(TINY, attention_pattern=("dense", "banded"), band_width=5), scale=5.0)
    runner = runner_of(module, kind, max_tokens=24, max_outputs=8)
    found = Scorer((runner, BYTES)).continuations(QUESTIONS)
    for (context, after), one in zip(QUESTIONS, found, strict=True):
        whole = [*context, *after][-CONTEXT - 1 :]
        with torch.no_grad():
            logits = module(torch.tensor([whole[:-1]]))[0, -len(after) :].double().log_softmax(-1)
        assert one.log_likelihood == pytest.approx(float(logits[range(len(after)), list(after)].sum()), abs=1e-3)
    if kind != "torch":
        runner.close()


def test_what_greedy_decoding_writes_is_greedy(runners: Any) -> None:
    scorer = Scorer((runners("float32"), BYTES))
    written = [one.greedy for one in scorer.continuations([(TEXT[:20], [token]) for token in range(257)])]
    assert written.count(True) == 1
    best = written.index(True)
    after = [one.greedy for one in scorer.continuations([(TEXT[:20], [best, token]) for token in range(257)])]
    text = scorer.greedy([TEXT[:20]], 2)
    assert after.count(True) == 1 and text == [BYTES.decode([best, after.index(True)])]


def test_generation_stops_before_a_stop_string_and_is_the_same_between_scores(runners: Any) -> None:
    scorer = Scorer((runners("torch"), BYTES))
    prompts = [TEXT[start : start + 20] for start in range(20)]
    prompt, whole = max(zip(prompts, scorer.greedy(prompts, 12), strict=True), key=lambda found: len(set(found[1])))
    scorer.continuations(QUESTIONS)
    stopped, short = scorer.greedy([prompt, prompt], [12, 3], [whole[6:8]])
    assert len(stopped) > 0 and stopped == whole[: whole.find(whole[6:8])] and short in whole
    assert scorer.greedy([TEXT[:150]], 10) == scorer.greedy([TEXT[150 - CONTEXT + 10 : 150]], 10)
    with pytest.raises(UserError, match="max_new_tokens 64"):
        scorer.greedy([TEXT[:5]], CONTEXT)


def test_rolling_sums_each_token_once_and_says_how_it_was_cut(runners: Any) -> None:
    scorer = Scorer((runners("float32"), BYTES))
    short, long = scorer.rolling([TEXT[:10], TEXT])
    assert short.log_likelihood == scorer.continuations([([EOT], TEXT[:10])])[0].log_likelihood
    parts = windows([EOT, *TEXT], CONTEXT, CONTEXT)
    pairs = [(part.tokens[: part.silent + 1], part.targets) for part in parts]
    assert long.log_likelihood == pytest.approx(sum(one.log_likelihood for one in scorer.continuations(pairs)))
    assert (long.tokens, long.window, long.stride, long.first) == (200, 64, 64, "eot")
    (strided,) = scorer.rolling([TEXT], window=32, stride=8, first="none")
    assert (strided.tokens, strided.window, strided.stride, strided.first) == (199, 32, 8, "none")
    assert strided.log_likelihood != long.log_likelihood
    assert long.perplexity(50) == pytest.approx(math.exp(-long.log_likelihood / 50))
    assert long.bits_per(50) == pytest.approx(-long.log_likelihood / 50 / math.log(2))


def test_what_cannot_be_scored_is_named(runners: Any) -> None:
    scorer = Scorer((runners("torch"), BYTES))
    for pair, said in [(([], [1]), "context has no"), (([1], []), "continuation has no"), (([1], [1] * 65), "65 tok")]:
        with pytest.raises(UserError, match=rf"pair 1: .*{said}"):
            scorer.continuations([([1], [2]), pair])
    with pytest.raises(UserError, match="stride 65"):
        scorer.rolling([TEXT], stride=65)
    with pytest.raises(UserError, match="no end-of-text"):
        Scorer((runners("torch"), Tokenizer.from_characters("abc"))).rolling([[1, 2]])


def test_pairs_are_cut_as_the_harness_cuts_them() -> None:
    assert encode_pair(BYTES, "a b ", "c") == (list(b"a b"), list(b" c"))
    assert encode_pair(BYTES, "", "c") == ([EOT], [99])
    assert encode_pair(BYTES, " ", "c") == ([EOT], list(b" c"))
