"""`gpt2 generate --task`: solved examples before the item, as evaluate/prompts.py puts them together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make, write_model

PAIRS = {"sea": "mer", "cat": "chat", "dog": "chien", "bread": "pain"}
TASK = r"English: {input}\nFrench:"
FIXED = ("--max-new-tokens", 4, "--seed", 5, "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), make(context_length=128, scale=15.0))


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    path = tmp_path / "shots.jsonl"
    path.write_text("".join(json.dumps({"input": e, "output": f}) + "\n" for e, f in PAIRS.items()))
    return path


@pytest.fixture
def run(gpt2: Callable[..., Any], model: Path) -> Callable[..., Any]:
    return lambda *words: gpt2("generate", "--model", model, *words)


def written(text: str) -> dict[str, str]:
    """English to French in a prompt."""
    pairs = [part.removeprefix("English: ").split("\nFrench:") for part in text.split("\n\n")]
    return {english: french.strip() for english, french in pairs}


def test_examples_come_before_the_item_and_their_number_is_told(run: Callable[..., Any], shots: Path) -> None:
    done = run("--task", TASK, "--shots", shots, *FIXED, "cat")
    prompt = json.loads(done.out)["prompt"]
    assert prompt.endswith("\n\nEnglish: cat\nFrench:")
    assert written(prompt) == {**{e: f for e, f in PAIRS.items() if e != "cat"}, "cat": ""}
    assert "3 of 4 examples in a prompt of 103 tokens; the context holds 128, of them 4 for the answer" in done.err


def test_k_instruction_separator_and_seed_make_the_prompt(run: Callable[..., Any], shots: Path) -> None:
    words = ("--task", TASK, "--shots", shots, "--separator", r"\n", "--instruction", "Translate.", *FIXED)
    one = json.loads(run(*words, "--k", 1, "man").out)["prompt"].split("\n")
    assert one[0] == "Translate." and len(one) == 5 and one[3:] == ["English: man", "French:"]
    zero = json.loads(run(*words, "--k", 0, "man").out)["prompt"]
    assert zero == "Translate.\nEnglish: man\nFrench:"
    others = {json.loads(run(*words, "--k", 1, "--seed", seed, "man").out)["prompt"] for seed in range(8)}
    assert len(others) > 1


def test_what_does_not_fit_beside_the_answer_is_left_out_whole(run: Callable[..., Any], shots: Path) -> None:
    done = run("--task", TASK, "--shots", shots, *FIXED, "--max-new-tokens", 80, "man")
    found = written(json.loads(done.out)["prompt"])
    assert len(found) == 2 and found.items() - {("man", "")} <= PAIRS.items()
    assert "1 of 4 examples" in done.err
    full = run("--task", TASK, *FIXED, "--max-new-tokens", 120, "man")
    assert full.code == 2 and "an item of 20 tokens with its answer and room for 120 more do not fit" in full.err


def test_the_answer_ends_where_the_next_example_would_begin(run: Callable[..., Any], shots: Path) -> None:
    words = ("--task", TASK, *FIXED, "--max-new-tokens", 60, "man")
    free = json.loads(run(*words, "--stop", "no such text").out)["text"]
    assert len(free) > 3
    cut = json.loads(run(*words, "--separator", free[2]).out)
    assert cut["text"] == free[: free.index(free[2])] and cut["finish_reason"] == "stop"


def test_several_fields_come_as_json_and_an_answer_may_have_another_name(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text('{"a": 1, "b": 2, "sum": 3}\n')
    words = ("--task", "{a}+{b}=", "--shots", path, "--answer-field", "sum", *FIXED)
    assert json.loads(run(*words, '{"a": 4, "b": 5}').out)["prompt"] == "1+2= 3\n\n4+5="
    wrong = run(*words, "4")
    assert wrong.code == 2 and "PROMPT (a JSON object with a, b): 4; expected an object of fields" in wrong.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "x.jsonl"], "--shots: only a task has it; add --task"),
        (["--k", 0], "--k: only a task has it"),
        (["--instruction", "Do."], "--instruction: only a task has it"),
        (["--task", "{a}", "--k", 2], "--k: of which examples? add --shots FILE"),
        (["--task", "{a}", "--answer-field", "b"], "--answer-field: of which examples?"),
        (["--task", "no field"], "the task 'no field' names no field"),
        (["--task", "{a}", "--shots", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--task", "{a}", "--input", "x", "--output", "y"], "--task: does not go with --input"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(run: Callable[..., Any], words: list[Any], message: str) -> None:
    done = run(*words, *FIXED[:4], *([] if "--input" in words else ["Hi"]))
    assert (done.code, done.out) == (2, "") and message in done.err
