"""`gpt2 generate`: standard output is text or JSON and nothing else; every flag acts or is refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make, write_model

import gpt2 as library

FIXED = ("--seed", 1, "--max-new-tokens", 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), make(scale=15.0))


@pytest.fixture
def run(gpt2: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    return lambda *words: gpt2("generate", "--model", folder, *words)


def expected(folder: Path, prompt: str = "Once", **settings: Any) -> str:
    return library.load(folder).generate(prompt, **{"seed": 1, "max_new_tokens": 12} | settings)


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes, terminal: bool = False) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    stdin.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stdin)


def test_the_continuation_alone_goes_into_a_pipe(run: Callable[..., Any], folder: Path) -> None:
    done = run(*FIXED, "Once")
    assert (done.code, done.err) == (0, "int8 weights for writing; --weights float32 undoes it\n")
    assert done.out.removesuffix("\n") == expected(folder).removesuffix("\n")
    named = run(*FIXED, "--weights", "int8", "Once")
    assert (named.out, named.err) == (done.out, "")


def test_a_terminal_shows_the_prompt_too(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*FIXED, "--echo", "Once").out.startswith("Once" + expected(folder))
    monkeypatch.setattr("gpt2.cli.generate._echoes", lambda echo: echo is None)
    assert run(*FIXED, "Once").out.startswith("Once" + expected(folder))


@pytest.mark.parametrize("words", [(), ("-",)])
def test_without_a_prompt_it_reads_standard_input(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    type_in(monkeypatch, "né\n".encode())
    assert run(*FIXED, *words).out.startswith(expected(folder, "né"))


def test_without_a_prompt_on_a_terminal_the_model_begins(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"not read", terminal=True)
    assert run(*FIXED).out.startswith(expected(folder, ""))


def test_input_that_is_not_utf8_is_named_with_its_place(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"caf\xe9!")
    done = run()
    assert (done.code, done.out) == (2, "")
    assert "standard input is not UTF-8: byte 3 is 0xe9" in done.err


def test_several_texts_are_printed_in_order_each_under_its_line(run: Callable[..., Any], folder: Path) -> None:
    done = run(*FIXED, "--n", 3, "--ignore-eot", "Once")
    parts = done.out.split("---- ")
    texts = library.load(folder).results(["Once"], n=3, seed=1, max_new_tokens=12, ignore_eot=True)
    for number, (part, result) in enumerate(zip(parts[1:], texts, strict=True)):
        assert part.startswith(f"{number + 1} of 3 ----\n{result.text}")
        assert part.endswith("\n")


def test_json_has_one_object_a_line_with_log_probabilities(run: Callable[..., Any], folder: Path) -> None:
    done = run(*FIXED, "--json", "--n", 2, "--logprobs", 2, "Oncé")
    objects = sorted((json.loads(line) for line in done.out.splitlines()), key=lambda item: item["sample"])
    results = library.load(folder).results(["Oncé"], n=2, seed=1, max_new_tokens=12, logprobs=2)
    for seen, result in zip(objects, results, strict=True):
        assert (seen["prompt"], seen["text"], seen["tokens"]) == ("Oncé", result.text, result.tokens)
        assert seen["logprobs"] == pytest.approx(result.logprobs)
        assert seen["finish_reason"] == result.finish_reason
        assert (seen["prompt_tokens"], seen["prompt_dropped"]) == (5, 0)
        assert len(seen["token_texts"]) == len(seen["top_logprobs"]) == len(seen["tokens"])
        assert {"token", "text", "logprob"} == seen["top_logprobs"][0][0].keys()
    assert "top_logprobs" not in json.loads(run(*FIXED, "--json", "Once").out)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (("--temperature", 0), {"temperature": 0}),
        (("--temperature", 2, "--top-k", 0), {"temperature": 2, "top_k": 0}),
        (("--temperature", 2, "--top_p", 0.5), {"temperature": 2, "top_p": 0.5}),
        (("--temperature", 2, "--min-p", 0.3), {"temperature": 2, "min_p": 0.3}),
        (("--repetition-penalty", 3), {"repetition_penalty": 3.0}),
        (("--presence-penalty", 5), {"presence_penalty": 5.0}),
        (("--frequency-penalty", 5), {"frequency_penalty": 5.0}),
        (("--ignore-eot", "--max-new-tokens", 30), {"ignore_eot": True, "max_new_tokens": 30}),
        (("--seed", 9), {"seed": 9}),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_every_setting_reaches_the_sampler(
    run: Callable[..., Any], folder: Path, flags: tuple[object, ...], settings: dict[str, Any]
) -> None:
    seen = json.loads(run(*FIXED, *flags, "--json", "Once").out)
    assert seen["text"] == expected(folder, **settings)
    assert seen["text"] != expected(folder)


def test_stop_texts_read_backslash_n_and_end_the_text(run: Callable[..., Any], folder: Path) -> None:
    text = expected(folder, max_new_tokens=200, ignore_eot=True)
    stop = next(c for c in text if c.isascii() and c.isprintable())
    done = json.loads(run("--seed", 1, "--ignore-eot", "--json", "--stop", r"\t\n", "--stop", stop, "Once").out)
    assert (done["text"], done["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_special_reads_end_of_text_as_the_token(run: Callable[..., Any]) -> None:
    plain, special = (json.loads(run(*FIXED, "--json", *more, "<|endoftext|>a").out) for more in ((), ("--special",)))
    assert (plain["prompt_tokens"], special["prompt_tokens"]) == (14, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--overflow", "error", "a" * 60), "60 tokens and --max-new-tokens 12 pass the model's context of 64"),
        (("--overflow", "stop", "a" * 64), "leave no room"),
        (("--overflow", "slid", "a"), "did you mean 'slide'"),
        (("--top-p", 3, "a"), "top_p = 3.0: must be above 0 and at most 1"),
        (("--logprobs", 2, "a"), "--json"),
        (("--echo", "--json", "a"), "leave one out"),
        (("--tempratur", 1, "a"), "did you mean '--temperature'"),
        (("--stop", "", "a"), "must be strings that are not empty"),
        (("--dtype", "float7", "a"), "--dtype float7: unknown"),
        (("--weights", "int7", "a"), "--weights int7: unknown"),
        (("--kv", "int4", "a"), "--kv int4: unknown"),
        (("--length-penalty", 1, "a"), "add --beams"),
        (("--beams", 1, "a"), "num_beams = 1: must be at least 2"),
        (("--beams", 2, "--draft", "lookup", "a"), "--draft: beam search takes no guesses"),
        (("--beams", 2, "--top-p", 0.5, "a"), "top_p = 0.5: beam search draws nothing"),
        (("--beams", 2, "--overflow", "slide", "a"), "--overflow slide: beams cannot slide"),
        (("--input", "in.jsonl", "a"), "--input and --output"),
        (("--output", "out.jsonl", "a"), "--input and --output"),
        (("--input", "in.jsonl", "--output", "out.jsonl", "a"), "PROMPT: does not go with --input"),
        (("--input", "in.jsonl", "--output", "out.jsonl", "--json"), "--json: does not go with --input"),
        (("--input", "no.jsonl", "--output", "out.jsonl"), "no.jsonl: no such file"),
        (("--draft", "no/such/place/at/all", "a"), "no/such/place/at/all: no such folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    run: Callable[..., Any], words: tuple[object, ...], message: str
) -> None:
    done = run("--max-new-tokens", 12, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_prompt_past_the_context_goes_on_from_its_end_and_says_so(run: Callable[..., Any], folder: Path) -> None:
    done = run(*FIXED, "--json", "a" * 10 + "b" * 64)
    assert "a prompt of 74 tokens: the model reads the last 64" in done.err
    assert json.loads(done.out)["prompt_dropped"] == 10


def test_a_prompt_alone_means_generate_with_the_newest_model(
    gpt2: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_MODEL", str(folder))
    assert gpt2("Once upon", *FIXED).out.startswith(expected(folder, "Once upon"))


def test_the_closing_line_on_a_terminal_names_model_and_speed(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = run(*FIXED, "--ignore-eot", "Once")
    assert f"[{folder}: 12 tokens in " in done.err
    assert "tokens/s]" in done.err


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4", "int4-head"])
def test_weights_keys_and_values_are_as_asked_for(run: Callable[..., Any], folder: Path, weights: str) -> None:
    done = run(*FIXED, "--weights", weights, "--kv", "int8", "--json", "Once")
    seen, model = json.loads(done.out), library.load(folder, weights=weights, kv="int8")
    (result,) = model.results(["Once"], seed=1, max_new_tokens=12)
    assert (seen["tokens"], seen["logprobs"]) == (result.tokens, result.logprobs)
    assert done.err == ""


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_guesses_change_no_text_and_are_counted(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    words = ("--seed", 1, "--max-new-tokens", 50, "--ignore-eot", "--temperature", temperature, "abcabcabcabcabc")
    plain = run(*words)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for draft in ("lookup", folder):
        done = run(*words, "--draft", draft)
        assert done.out == plain.out
        if draft is folder or temperature == 0:  # chance may write what repeats nothing
            assert "guesses right]" in done.err


def test_a_smaller_model_must_have_the_same_tokenizer(run: Callable[..., Any], tmp_path: Path) -> None:
    from gpt2.tokenizer.bpe import Tokenizer

    other = write_model(tmp_path, make(vocab_size=128), Tokenizer.from_characters([chr(c) for c in range(128)]))
    done = run(*FIXED, "--draft", other, "Once")
    assert done.code == 2
    assert "its tokenizer is another than the model's" in done.err


def test_nothing_is_printed_before_a_refusal(run: Callable[..., Any]) -> None:
    for words in (("--beams", 2, "--n", 3), ("--n", 3, "--weights", "int5"), ("--n", 3, "--draft", "no/such/folder")):
        done = run(*words, "--echo", "Once")
        assert (done.code, done.out) == (2, ""), done.err


def test_beam_search_prints_the_best_texts(run: Callable[..., Any], folder: Path) -> None:
    from gpt2.inference.beam import BeamParams, beam_search

    done = run("--beams", 3, "--length-penalty", 1, "--n", 2, "--max-new-tokens", 8, "--json", "Once")
    model = library.load(folder)
    results = beam_search(model.runner(3), model.tokenizer, ["Once"],
                          library.SamplingParams(max_new_tokens=8, n=2), BeamParams(3, 1.0))  # fmt: skip
    assert [json.loads(line)["tokens"] for line in done.out.splitlines()] == [result.tokens for result in results]
    plain = run("--beams", 3, "--length-penalty", 1, "--max-new-tokens", 8, "Once")
    assert plain.out.removesuffix("\n") == results[0].text.removesuffix("\n")
