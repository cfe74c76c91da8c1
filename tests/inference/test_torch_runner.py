"""The torch runner computes what the plain loop computes, however the tokens are cut into steps and laid on pages."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from tiny_models import BYTES, ODD, TINY, make

from gpt2.errors import UserError
from gpt2.inference.choose import Ask, choose_rows
from gpt2.inference.generate import generate
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.runners import graphs
from gpt2.inference.runners.graphs import Decode, shape_of
from gpt2.inference.runners.paged import Flat
from gpt2.inference.runners.torch import TorchRunner, choose_on_device
from gpt2.inference.sampling import SamplingParams
from gpt2.model.gpt import GPT

CLOSE = {"rtol": 0, "atol": 1e-5}
PROMPTS = [b"Once", b"a", b"The sea was very still that morning, and", b"x" * 30, b"\n", b"Q: why?"]
GREEDY = SamplingParams(temperature=0, max_new_tokens=20, ignore_eot=True)


@pytest.fixture(params=[{}, *ODD.values(), {"head_dim": 24, "scale_by_layer": True}], ids=["plain", *ODD, "wide"])
def module(request: pytest.FixtureRequest) -> GPT:
    return make(scale=5.0, **request.param)


class Book:
    """Texts on pages, by hand: page numbers are dealt out shuffled, so that no two of a text lie side by side."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner
        self.blank = list(range(runner.pages))
        random.Random(0).shuffle(self.blank)
        self.pages: dict[int, list[int]] = {}

    def span(self, text: int, tokens: Sequence[int], start: int, outputs: int = 1) -> Span:
        pages = self.pages.setdefault(text, [])
        while len(pages) * PAGE_SIZE < start + len(tokens):
            pages.append(self.blank.pop())
        return Span(list(tokens), start, list(pages), outputs)

    def step(self, *spans: Span) -> torch.Tensor:
        self.runner.step(spans)
        return self.runner.logits


def make_book(module: GPT, pages: int = 40) -> Book:
    return Book(TorchRunner(module, pages))


@torch.no_grad()
def whole(module: GPT, tokens: Sequence[int]) -> torch.Tensor:
    """The logits (T, V) of one text read in one go."""
    return module(torch.tensor([list(tokens)]))[0]


def write_greedily(
    book: Book, prompts: Sequence[bytes], count: int, params: SamplingParams = GREEDY
) -> list[list[int]]:
    """The prompts in one step, then a token for each in each step."""
    texts: list[list[int]] = [[] for _ in prompts]
    streams = [params.random_stream(0) for _ in prompts]
    book.step(*(book.span(row, prompt, 0) for row, prompt in enumerate(prompts)))
    while True:
        asks = [Ask(row, list(prompts[row]), text, params, streams[row]) for row, text in enumerate(texts)]
        for text, choice in zip(texts, book.runner.choose(asks), strict=True):
            text.append(choice.token)
        if len(texts[0]) == count:
            return texts
        book.step(*(book.span(row, text[-1:], len(prompts[row]) + len(text) - 1) for row, text in enumerate(texts)))


def test_a_batch_writes_what_the_plain_loop_writes(module: GPT) -> None:
    plain = generate(module, BYTES, [list(prompt) for prompt in PROMPTS], GREEDY)
    assert write_greedily(make_book(module), PROMPTS, 20) == [result.tokens for result in plain]


def test_sampled_texts_are_the_plain_loops_too() -> None:
    module, params = make(scale=5.0), replace(GREEDY, temperature=1.3, top_k=30, presence_penalty=0.5, seed=4)
    plain = generate(module, BYTES, [list(prompt) for prompt in PROMPTS], params)
    assert write_greedily(make_book(module), PROMPTS, 20, params) == [result.tokens for result in plain]


@pytest.mark.parametrize("cuts", [[45], [1] * 45, [17, 28], [16, 16, 13], [30, 1, 5, 1, 8]], ids=str)
def test_logits_do_not_depend_on_the_cuts(module: GPT, cuts: list[int]) -> None:
    tokens, book, place, parts = list(random.Random(1).randbytes(45)), make_book(module), 0, []
    for cut in cuts:
        parts.append(book.step(book.span(0, tokens[place : place + cut], place, outputs=cut)))
        place += cut
    torch.testing.assert_close(torch.cat(parts), whole(module, tokens), **CLOSE)


def test_prompts_chunks_drafts_and_single_tokens_share_a_step(module: GPT) -> None:
    """Each row of logits is that of the text alone, and the rows come in the spans' order."""
    book, rng = make_book(module), random.Random(2)
    texts = [list(rng.randbytes(60)) for _ in range(8)]
    read = [0, 20, 5, 40, 0, 33, 16, 0]  # tokens read before the step
    new = [30, 25, 1, 4, 1, 1, 4, 2]
    outputs = [1, 0, 1, 4, 1, 1, 3, 2]
    for text, count in enumerate(read):
        if count:
            book.step(book.span(text, texts[text][:count], 0, outputs=0))
    spans = [book.span(row, texts[row][read[row] : read[row] + new[row]], read[row], outputs[row]) for row in range(8)]
    logits = book.step(*spans)
    expected = [
        whole(module, text[: start + count])[start + count - wanted :]
        for text, start, count, wanted in zip(texts, read, new, outputs, strict=True)
    ]
    torch.testing.assert_close(logits, torch.cat(expected), **CLOSE)


def test_a_text_rolled_back_goes_on_as_if_nothing_had_been() -> None:
    module = make(scale=5.0)
    book = make_book(module)
    right, wrong = list(b"It was a fine day in June"), list(b"zzzzzzzz")
    book.step(book.span(0, right[:14] + wrong, 0))
    logits = book.step(book.span(0, right[14:], 14, outputs=3))
    torch.testing.assert_close(logits, whole(module, right)[-3:], **CLOSE)


def test_texts_share_the_pages_of_what_they_have_in_common_and_copy_a_half_filled_one() -> None:
    module = make(scale=5.0)
    book = make_book(module)
    common = list(b"It was a fine day in June, and the")  # two full pages and two tokens
    book.step(book.span(0, common, 0))
    first = book.pages[0]
    book.pages[1] = [*first[:2], book.blank.pop()]
    book.runner.copy_pages([(first[2], book.pages[1][2])])
    book.runner.copy_pages([])
    ends = [list(b" sun shone"), list(b" rain fell on")]
    logits = book.step(*(book.span(row, end, len(common)) for row, end in enumerate(ends)))
    torch.testing.assert_close(logits, torch.stack([whole(module, common + end)[-1] for end in ends]), **CLOSE)
    assert book.pages[0][:2] == book.pages[1][:2]


def test_pages_that_lie_side_by_side_are_read_where_they_are(module: GPT) -> None:
    runner, tokens = TorchRunner(module, 8), list(random.Random(3).randbytes(40))
    runner.step([Span(tokens[:20], 0, [3, 4, 5], 0)])
    runner.step([Span(tokens[20:39], 20, [3, 4, 5], 0)])
    runner.step([Span(tokens[39:], 39, [3, 4, 5])])
    torch.testing.assert_close(runner.logits, whole(module, tokens)[-1:], **CLOSE)


def test_what_other_texts_left_on_a_page_is_not_looked_at() -> None:
    """Not even if it is no number, as one overflowing text in float16 leaves it."""
    module = make(scale=5.0)
    runner = TorchRunner(module, 8)
    runner.pool.full.keys.fill_(float("nan"))
    runner.pool.full.values.fill_(float("nan"))
    texts = [list(b"It was a fine day in June"), list(b"a")]
    pages = [[5, 2], [7]]
    runner.step([Span(text[:-1] or text, 0, own) for text, own in zip(texts, pages, strict=True)])
    runner.step([Span(text[-1:], len(text) - 1, own) for text, own in zip(texts, pages, strict=True)])
    torch.testing.assert_close(runner.logits, torch.stack([whole(module, text)[-1] for text in texts]), **CLOSE)


def test_log_probabilities_of_given_tokens_are_the_models() -> None:
    module, tokens = make(scale=5.0), list(b"It was a fine day")
    book = make_book(module)
    book.step(book.span(0, tokens[:-1], 0, outputs=16))
    expected = whole(module, tokens[:-1]).log_softmax(-1)[range(16), tokens[1:]]
    assert book.runner.logprobs(tokens[1:]) == pytest.approx(expected.tolist(), abs=1e-5)


def test_rows_of_different_settings_are_chosen_in_one_call() -> None:
    book = make_book(make(scale=5.0))
    book.step(*(book.span(row, prompt, 0) for row, prompt in enumerate(PROMPTS[:3])))
    settings = [GREEDY, SamplingParams(seed=1, logprobs=3), replace(GREEDY, max_new_tokens=3)]
    choices = book.runner.choose([Ask(row, [], [], one, one.random_stream(0)) for row, one in enumerate(settings)])
    assert [len(choice.top) for choice in choices] == [0, 3, 0]
    assert choices[0].token == int(book.runner.logits[0].argmax())
    assert choices[2].token == int(book.runner.logits[2].argmax())


def test_choosing_on_a_device_is_choosing_on_the_processor() -> None:
    logits = 3 * torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    kinds = [GREEDY, SamplingParams(seed=1, logprobs=2), SamplingParams(top_k=0, top_p=0.9), replace(GREEDY, stop="a")]

    def asks() -> list[Ask]:
        return [Ask(row * 5 % 6, [1], [2], kinds[row % 4], random.Random(row)) for row in range(12)]

    for one, other in zip(choose_on_device(logits, asks()), choose_rows(logits.numpy(), asks(), 300), strict=True):
        assert (one.token, [token for token, _ in one.top]) == (other.token, [token for token, _ in other.top])
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_tokens_past_the_tokenizers_vocabulary_are_not_chosen() -> None:
    module = make(scale=5.0, head_bias=True)
    with torch.no_grad():
        module.lm_head.bias[200] = 1000.0
    runner = TorchRunner(module, 2, vocab_size=200)
    runner.step([Span([1, 2, 3], 0, [0])])
    (choice,) = runner.choose([Ask(0, [], [], GREEDY, random.Random())])
    assert choice.token < 200 and choice.logprob > -20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_dtypes_run_and_stay_near_float32(dtype: torch.dtype) -> None:
    tokens = list(b"It was a fine day in June, and the")
    exact = whole(make(scale=2.0), tokens)[-1]
    runner = TorchRunner(make(scale=2.0).to(dtype), 8)
    runner.step([Span(tokens[:20], 0, [4, 1, 6], 0)])
    runner.step([Span(tokens[20:-1], 20, [4, 1, 6], 0), Span(tokens[:5], 0, [2])])
    runner.step([Span(tokens[-1:], 33, [4, 1, 6])])
    assert runner.logits.dtype == torch.float32
    torch.testing.assert_close(runner.logits[0], exact, rtol=0, atol=0.05)


def test_a_model_in_training_is_asked_without_dropout_and_goes_on_training() -> None:
    module = make(scale=5.0, dropout=0.5)
    expected = whole(module, b"Once")[-1]
    module.train()
    runner = TorchRunner(module, 2)
    runner.step([Span(list(b"Once"), 0, [0])])
    torch.testing.assert_close(runner.logits[0], expected, **CLOSE)
    assert module.training and module.h[0].mlp.training


def test_what_cannot_be_is_refused() -> None:
    runner = TorchRunner(make(), 8, max_tokens=20, max_outputs=2)
    with pytest.raises(UserError, match="adapter 2"):
        runner.step([Span([1], 0, [0], adapter=2)])
    with pytest.raises(UserError, match="do not fit the model's context"):
        runner.step([Span([1], TINY.context_length, list(range(5)))])
    for spans in (
        [],
        [Span([1] * 21, 0, [0, 1])],
        [Span([1] * 5, 0, [0], 3)],
        [Span([1], 16, [0])],
        [Span([], 0, [0])],
    ):
        with pytest.raises(ValueError):
            runner.step(spans)


@pytest.mark.parametrize(("batch", "seen"), [(3, 48), (8, 64), (4, 64)])
def test_the_step_of_fixed_shape_is_the_plain_one(module: GPT, batch: int, seen: int) -> None:
    """What CUDA records, run eagerly: several steps in the same tensors, with fewer texts than rows in the later."""
    book, rng = make_book(module), random.Random(5)
    texts, lengths = [list(rng.randbytes(47)) for _ in range(3)], [45, 1, 16]
    book.step(*(book.span(row, texts[row][:length], 0) for row, length in enumerate(lengths)))
    decode = Decode(module, book.runner.pool, batch, seen)
    before = book.runner.pool.full.keys.clone()
    for more, rows in ((0, [0, 1, 2]), (1, [2, 0])):
        spans = [book.span(row, texts[row][lengths[row] + more :][:1], lengths[row] + more) for row in rows]
        with torch.inference_mode():
            decode.fill(spans)
            hidden = decode.run()[: len(rows)]
            logits = module.head(hidden)
            context = Flat(book.runner.pool, spans)
            plain = module.body(context.input_ids, context)[0, context.outputs]
        torch.testing.assert_close(hidden, plain, **CLOSE)
        expected = [whole(module, texts[row][: lengths[row] + more + 1])[-1] for row in rows]
        torch.testing.assert_close(logits, torch.stack(expected), **CLOSE)
    touched = (book.runner.pool.full.keys != before).flatten(2).any(2).any(0).nonzero()[:, 0] // PAGE_SIZE
    own = {page for row in range(3) for page in book.pages[row]}
    assert set(touched.tolist()) <= own | {book.runner.pool.full.scratch}


def test_fixed_shapes_are_few_and_large_enough() -> None:
    def spans(count: int, start: int) -> list[Span]:
        return [Span([1], start, [])] * count

    assert shape_of(spans(1, 0), 1024) == (1, 128)
    assert shape_of(spans(3, 127), 1024) == (4, 128)
    assert shape_of(spans(64, 128), 1024) == (64, 256)
    assert shape_of(spans(5, 1023), 1024) == (8, 1024)
    assert shape_of(spans(5, 999), 1000) == (8, 1000)
    assert shape_of(spans(5, 3), 64) == (8, 64)


def test_each_shape_is_recorded_once_and_other_steps_go_the_plain_way(
    module: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bookkeeping around the recording, with steps that run eagerly in its place."""
    recorded: list[tuple[int, int]] = []

    def eagerly(decode: Decode) -> Callable[[], torch.Tensor]:
        recorded.append((len(decode.tokens), decode.table.size(1) * PAGE_SIZE))
        return decode.run

    monkeypatch.setattr(graphs, "record", eagerly)
    plain = write_greedily(make_book(module), PROMPTS, 20)
    book = make_book(module)
    book.runner._graphs = graphs.Graphs(module, book.runner.pool)
    assert write_greedily(book, PROMPTS, 20) == plain
    assert recorded == [(8, 64)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recorded_steps_on_cuda_are_the_plain_ones(dtype: torch.dtype) -> None:
    module = make(scale=5.0).to("cuda", dtype)
    runs = []
    for recorded in (True, False):
        runner = TorchRunner(module, 40, graphs=recorded)
        runs.append(write_greedily(Book(runner), PROMPTS, 20))
        assert runner.logits.device.type == "cuda"
    assert runs[0] == runs[1]
