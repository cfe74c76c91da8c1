"""The plain loop: what it writes, how it ends, and that nothing around a text changes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from tiny_models import BYTES, TINY, make

from gpt2.errors import UserError
from gpt2.inference.generate import Result, generate, stream
from gpt2.inference.sampling import SamplingParams
from gpt2.model.gpt import GPT
from gpt2.model.kv_cache import KVCache
from gpt2.tokenizer.bpe import Tokenizer

EOT = 256
DEFAULTS = {"max_new_tokens": 40, "seed": 5}
PROMPTS = ["Once", "a", "", "The sea was very still", "x" * 30, "\n", "one two", "Q: why?"]


@pytest.fixture(scope="module")
def module() -> GPT:
    """It writes something, and something else for each prompt."""
    return make(scale=15.0)


def scripted(ids: Sequence[int], **changes: int) -> GPT:
    """A model that writes these ids whatever it reads: position t's embedding points at the t-th of them.

    The embeddings are orthogonal, the blocks add nothing.
    """
    module = make(TINY, n_embd=512, n_head=1, tie_head=False, noise=0.0, **changes)
    with torch.no_grad():
        for parameter in module.h.parameters():
            parameter.zero_()
        module.wte.weight.zero_()
        module.wpe.weight.zero_()
        module.lm_head.weight.zero_()
        for position, token in enumerate(ids):
            module.wpe.weight[position, token] = 30.0
        module.lm_head.weight.copy_(torch.eye(*module.lm_head.weight.shape))
    return module


def write(
    module: GPT, prompts: Sequence[str | Sequence[int]], overflow: str = "slide", **settings: object
) -> list[Result]:
    return generate(module, BYTES, prompts, SamplingParams(**DEFAULTS | settings), overflow)


def uncached(module: GPT, prompt: list[int], count: int) -> list[int]:
    """Greedy, the whole text read again for every token; past the context its last half stays."""
    window, written = list(prompt), []
    for _ in range(count):
        if len(window) > TINY.context_length:
            window = window[-(TINY.context_length // 2) :]
        written.append(int(module(torch.tensor([window]))[0, -1].argmax()))
        window.append(written[-1])
    return written


def test_scripted_models_write_their_script() -> None:
    (result,) = write(scripted(b"hello"), ["x"], max_new_tokens=5, temperature=0)
    assert result.text == "hello"


def test_a_cached_text_equals_the_text_read_again_for_every_token(module: GPT) -> None:
    for prompt in (b"Once upon", b"a"):
        (result,) = write(module, [list(prompt)], temperature=0, ignore_eot=True)
        assert result.tokens == uncached(module, list(prompt), 40)
        assert len(set(result.tokens)) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_ragged_batch_of_8_equals_the_8_alone(module: GPT, temperature: float) -> None:
    together = write(module, PROMPTS, temperature=temperature, logprobs=2)
    for prompt, result in zip(PROMPTS, together, strict=True):
        (alone,) = write(module, [prompt], temperature=temperature, logprobs=2)
        assert (result.text, result.tokens, result.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert result.prompt_tokens == alone.prompt_tokens


def test_a_ragged_batch_that_slides_at_different_times_equals_its_rows_alone(module: GPT) -> None:
    together = write(module, PROMPTS, temperature=0, ignore_eot=True, max_new_tokens=150)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert result.tokens == write(module, [prompt], temperature=0, ignore_eot=True, max_new_tokens=150)[0].tokens


def test_several_samples_differ_and_each_is_the_same_as_in_a_smaller_batch(module: GPT) -> None:
    many = write(module, ["Once", "Twice"], n=4, temperature=1.2)
    assert [(result.prompt, result.sample) for result in many] == [(p, s) for p in (0, 1) for s in range(4)]
    assert len({result.text for result in many}) == 8
    assert [result.text for result in write(module, ["Twice"], n=2, temperature=1.2)] == [many[4].text, many[5].text]


def test_samples_of_a_prompt_share_its_reading(module: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    begin = KVCache.begin
    monkeypatch.setattr(
        KVCache, "begin", lambda self, ids, config: seen.append(tuple(ids.shape)) or begin(self, ids, config)
    )
    write(module, ["Once", "Twice"], n=3, ignore_eot=True, max_new_tokens=3)
    assert seen == [(2, 5), (6, 1), (6, 1)]


def test_only_last_positions_go_through_the_head(module: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: Counter[tuple[int, ...]] = Counter()
    head = module.head
    monkeypatch.setattr(module, "head", lambda hidden: shapes.update([tuple(hidden.shape)]) or head(hidden))
    write(module, PROMPTS, ignore_eot=True, max_new_tokens=4)
    assert shapes == {(8, TINY.n_embd): 4}


def test_the_same_seed_gives_the_same_text_and_none_a_new_one(module: GPT) -> None:
    assert write(module, ["Once"])[0] == write(module, ["Once"])[0]
    assert write(module, ["Once"], seed=None)[0].text != write(module, ["Once"], seed=None)[0].text


def test_end_of_text_ends_and_is_not_in_the_text_unless_ignored() -> None:
    module = scripted([*b"ab", EOT, *b"cd"])
    (ended,) = write(module, ["x"], temperature=0)
    assert (ended.text, ended.tokens, ended.finish_reason) == ("ab", [*b"ab", EOT], "eot")
    assert len(ended.logprobs) == 3
    (went_on,) = write(module, ["x"], temperature=0, ignore_eot=True, max_new_tokens=5)
    assert (went_on.text, went_on.finish_reason) == ("ab<|endoftext|>cd", "length")


def test_a_stop_string_over_several_tokens_ends_the_text_and_is_not_shown() -> None:
    shown: list[str] = []
    params = SamplingParams(temperature=0, stop=("\nQ:", "zzz"))
    (result,) = generate(scripted(b"one\n\nQ: two"), BYTES, ["x"], params, on_text=lambda row, text: shown.append(text))
    assert (result.text, result.finish_reason) == ("one\n", "stop")
    assert "".join(shown) == "one\n"
    assert bytes(result.tokens) == b"one\n\nQ:"


def test_what_only_began_a_stop_string_is_shown_at_the_end() -> None:
    (result,) = write(scripted(b"one\nQ"), ["x"], temperature=0, stop="\nQ:", max_new_tokens=5)
    assert (result.text, result.finish_reason) == ("one\nQ", "length")


def test_half_a_character_is_held_back_and_at_the_end_replaced() -> None:
    shown: list[str] = []
    params = SamplingParams(temperature=0, max_new_tokens=4)
    script = "é€".encode()
    (result,) = generate(scripted(script), BYTES, ["x"], params, on_text=lambda row, text: shown.append(text))
    assert shown == ["é", "\ufffd"]
    assert result.text == "é\ufffd"


def test_streamed_pieces_make_up_each_rows_text_and_its_last_has_the_result(module: GPT) -> None:
    texts = Counter[int]()
    pieces: dict[int, list[str]] = {row: [] for row in range(6)}
    results: dict[int, Result] = {}
    for piece in stream(module, BYTES, ["Once", "ab", ""], SamplingParams(n=2, seed=1, max_new_tokens=20, stop="e")):
        assert piece.row not in results
        texts[piece.row] += 1
        pieces[piece.row].append(piece.text)
        if piece.result:
            results[piece.row] = piece.result
    assert {row: "".join(parts) for row, parts in pieces.items()} == {row: r.text for row, r in results.items()}


def test_an_empty_prompt_starts_from_end_of_text_or_else_from_a_line_end(module: GPT) -> None:
    assert write(module, [""])[0].tokens == write(module, [[EOT]])[0].tokens
    characters = Tokenizer.from_characters(["\n", "a", "b"])
    params = SamplingParams(max_new_tokens=10, seed=1)
    from_line_end = generate(make(vocab_size=3, scale=8.0), characters, ["", "\n"], params)
    assert from_line_end[0].tokens == from_line_end[1].tokens


def test_special_tokens_spelled_in_a_prompt_are_text(module: GPT) -> None:
    assert write(module, ["<|endoftext|>"])[0].prompt_tokens == 13


def test_ids_that_the_tokenizer_lacks_are_never_written() -> None:
    module = scripted([300, *b"ab"], vocab_size=400)
    (result,) = write(module, ["x"], temperature=2.0, top_k=0, max_new_tokens=60)
    assert max(result.tokens) <= EOT


@pytest.mark.parametrize("token", [-1, 257])
def test_ids_outside_the_vocabulary_are_refused(module: GPT, token: int) -> None:
    with pytest.raises(UserError, match=f"token id {token} in the prompt"):
        write(module, [[1, token]])


def test_a_bare_string_as_prompts_is_refused(module: GPT) -> None:
    with pytest.raises(TypeError, match="list"):
        generate(module, BYTES, "Once")


def test_no_prompts_give_no_results(module: GPT) -> None:
    assert write(module, []) == []


def test_logprobs_are_those_of_one_uncached_pass(module: GPT) -> None:
    (result,) = write(module, ["Once"], temperature=1.0, logprobs=3)
    tokens = [*b"Once", *result.tokens]
    own = module(torch.tensor([tokens[:-1]]))[0, 3:].log_softmax(-1).detach()
    assert result.logprobs == pytest.approx([float(own[t, token]) for t, token in enumerate(result.tokens)], abs=1e-4)
    ids = own.topk(3).indices
    assert [[token for token, _ in top] for top in result.top_logprobs] == ids.tolist()
    assert len(result.top_logprobs) == len(result.logprobs) == len(result.tokens)
    assert write(module, ["Once"])[0].top_logprobs == []


def test_past_the_context_slide_keeps_the_last_half_and_goes_on(module: GPT) -> None:
    (result,) = write(module, ["Once upon"], temperature=0, ignore_eot=True, max_new_tokens=200)
    assert result.finish_reason == "length"
    assert result.tokens == uncached(module, list(b"Once upon"), 200)


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_the_shortest_contexts_slide_too(context_length: int) -> None:
    (result,) = write(make(context_length=context_length), ["abc"], max_new_tokens=12, ignore_eot=True)
    assert len(result.tokens) == 12


def test_slide_reads_the_end_of_a_prompt_past_the_context_and_says_so(
    module: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "b" * 40 + "".join(chr(97 + n % 26) for n in range(64))
    (result,) = write(module, [long], max_new_tokens=5)
    assert (result.prompt_tokens, result.prompt_dropped) == (64, 40)
    assert "104 tokens: the model reads the last 64" in capsys.readouterr().err
    assert result.tokens == write(module, [long[40:]], max_new_tokens=5)[0].tokens


def test_stop_ends_where_the_context_is_full(module: GPT) -> None:
    results = write(module, ["a" * 60, "a" * 20], overflow="stop", ignore_eot=True, max_new_tokens=10)
    assert [(len(r.tokens), r.finish_reason) for r in results] == [(4, "overflow"), (10, "length")]
    with pytest.raises(UserError, match="64 tokens leave no room in the model's context of 64"):
        write(module, ["a" * 64], overflow="stop")


def test_error_refuses_before_the_first_token(module: GPT) -> None:
    shown: list[str] = []
    params = SamplingParams(max_new_tokens=5)
    with pytest.raises(UserError, match="60 tokens and --max-new-tokens 5 pass the model's context of 64"):
        generate(module, BYTES, ["a", "a" * 60], params, "error", lambda row, text: shown.append(text))
    assert shown == []
    assert len(generate(module, BYTES, ["a" * 59], params, "error")) == 1


def test_an_unknown_overflow_names_the_nearest(module: GPT) -> None:
    with pytest.raises(UserError, match=r"--overflow slid: unknown \(did you mean 'slide'\?\)"):
        write(module, ["a"], overflow="slid")


def test_a_model_in_training_writes_without_dropout_and_goes_back_to_training() -> None:
    module = make(scale=8.0, dropout=0.5)
    expected = write(module, ["Once"])[0].text
    assert write(module.train(), ["Once"])[0].text == expected
    assert module.training


def test_penalties_change_what_is_written() -> None:
    module = scripted(b"aaaaaaaa")
    with torch.no_grad():
        module.wpe.weight[:, ord("b")] = 29.0
    assert write(module, ["x"], temperature=0, max_new_tokens=4)[0].text == "aaaa"
    assert write(module, ["x"], temperature=0, max_new_tokens=4, presence_penalty=2.0)[0].text == "abaa"
    assert write(module, ["x"], temperature=0, max_new_tokens=4, frequency_penalty=2.0)[0].text == "abab"
    assert write(module, ["xa"], temperature=0, max_new_tokens=2, repetition_penalty=1.5)[0].text != "aa"
