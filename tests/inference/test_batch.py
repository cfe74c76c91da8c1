"""Files of prompts: what comes out, what a run that ended early leaves, and what is refused with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BYTES, make

from gpt2.errors import UserError
from gpt2.inference import batch
from gpt2.inference.engine import Engine
from gpt2.inference.rows import Result
from gpt2.inference.runners.torch import TorchRunner
from gpt2.inference.sampling import SamplingParams
from gpt2.model.gpt import GPT

PARAMS = SamplingParams(temperature=0, max_new_tokens=9)
LINES = [{"prompt": f"The {n}th", "id": f"no. {n}", "max_new_tokens": 3 + n % 5} for n in range(12)]


@pytest.fixture(scope="module")
def module() -> GPT:
    return make(scale=15.0)


def engine_of(module: GPT) -> Engine:
    return Engine((TorchRunner(module, 40, max_tokens=64), BYTES), 3)


def as_dict(item: batch.Item, result: Result) -> dict[str, Any]:
    return {"index": item.index, "sample": result.sample, "prompt": item.written, "text": result.text}


def write_input(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(module: GPT, path: Path) -> list[dict[str, Any]]:
    items = batch.read_items(path, PARAMS)
    batch.write_all(engine_of(module), items, path.with_name("out.jsonl"), as_dict)
    return texts(path.with_name("out.jsonl"))


def texts(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda one: (one["index"], one["sample"]))


def test_each_prompt_gets_the_text_that_it_gets_alone(module: GPT, tmp_path: Path) -> None:
    found = run(module, write_input(tmp_path, LINES))
    assert [one["index"] for one in found] == list(range(12))
    for line, one in zip(LINES, found, strict=True):
        own = SamplingParams(temperature=0, max_new_tokens=line["max_new_tokens"])
        assert one["text"] == engine_of(module).generate([line["prompt"]], own)[0].text


@pytest.mark.parametrize("cut", [0, 1, 40, 200, 300, 500])
def test_a_run_that_was_cut_off_anywhere_goes_on_and_ends_the_same(
    module: GPT, tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_input(tmp_path, [{**line, "n": 2, "temperature": 1, "seed": 3} for line in LINES])
    whole = run(module, path)
    out = tmp_path / "out.jsonl"
    kept = out.read_bytes()[:cut]
    out.write_bytes(kept)
    capsys.readouterr()
    assert run(module, path) == whole
    assert out.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    done = kept.count(b"\n") // 2
    assert (f"has the texts of {done} of 12" in capsys.readouterr().err) == (done > 0)


def test_what_is_done_is_not_done_again(module: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_input(tmp_path, LINES)
    whole = run(module, path)
    monkeypatch.setattr(Engine, "add", lambda *arguments: pytest.fail("nothing is left to do"))
    assert run(module, path) == whole


def test_ctrl_c_leaves_whole_lines(module: GPT, tmp_path: Path) -> None:
    path, seen = write_input(tmp_path, LINES), []

    def interrupted(item: batch.Item, result: Result) -> dict[str, Any]:
        seen.append(item)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return as_dict(item, result)

    items = batch.read_items(path, PARAMS)
    with pytest.raises(KeyboardInterrupt):
        batch.write_all(engine_of(module), items, tmp_path / "out.jsonl", interrupted)
    assert len(texts(tmp_path / "out.jsonl")) == 4
    assert len(run(module, path)) == 12


def test_a_killed_run_leaves_every_finished_text(tmp_path: Path) -> None:
    with batch.Lines(tmp_path / "out.jsonl") as lines:
        for number in range(3):
            lines.write({"index": number})
            assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == number + 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "line 2: not JSON"),
        ('["a"]', "line 2: expected a JSON object, found a list"),
        ('{"promt": "a"}', 'line 2: has no "prompt"'),
        ('{"prompt": 3}', 'line 2: "prompt" must be a text, or a list of token ids'),
        ('{"prompt": "a", "temprature": 1}', "line 2: \"temprature\" is no setting (did you mean 'temperature'?)"),
        ('{"prompt": "a", "top_p": 3}', "line 2: top_p = 3: must be above 0"),
        ('{"prompt": "a", "stop": 3}', "line 2: "),
        ('{"prompt": "a", "ignore_eot": "no"}', "line 2: ignore_eot = 'no': must be true or false"),
        ('{"prompt": [1, 257]}', "line 2: token id 257 in the prompt"),
        ('{"prompt": "a", "max_new_tokens": 10000}', "line 2: "),
    ],
)
def test_a_bad_line_is_named_before_anything_is_written(module: GPT, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(UserError) as caught:
        items = batch.read_items(path, PARAMS)
        batch.write_all(engine_of(module), items, tmp_path / "out.jsonl", as_dict, "error")
    assert f"{path} {message}" in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "other", ["x\n", "x", '{"index": 0, "sample": 0, "prompt": "another"}\n', '{"index": 12, "sample": 0}\n']
)
def test_a_file_of_something_else_is_refused_and_left_alone(module: GPT, tmp_path: Path, other: str) -> None:
    (tmp_path / "out.jsonl").write_text(other)
    with pytest.raises(UserError, match=r"out\.jsonl line 1: "):
        run(module, write_input(tmp_path, LINES))
    assert (tmp_path / "out.jsonl").read_text() == other


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(
    lambda value: json.dumps({"prompt": value}).encode()))  # fmt: skip
def test_any_bytes_are_prompts_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    try:
        items = batch.read_items(path, PARAMS)
    except UserError as error:
        assert "line" in str(error)
    else:
        assert all(isinstance(item.prompt, (str, list)) for item in items)


def test_progress_says_how_long_it_will_take() -> None:
    ticker = batch.Ticker(Path("out.jsonl"), 100, 20)
    for _ in range(40):
        ticker.tick(50)
    assert ticker.line(10.0) == "out.jsonl: 60 of 100 prompts, 200 tokens/s, 10 s left"


def test_the_command_takes_a_file_and_goes_on_with_it(gpt2: Callable[..., Any], module: GPT, tmp_path: Path) -> None:
    from tiny_models import write_model

    folder, path, out = write_model(tmp_path / "model", module), write_input(tmp_path, LINES), tmp_path / "out.jsonl"
    words = ("generate", "--model", folder, "--temperature", 0, "--input", path, "--output", out)
    done = gpt2(*words)
    assert (done.code, done.out) == (0, "")
    assert "12 of 12 prompts" in done.err
    for number, one in enumerate(texts(out)):
        assert (one["index"], one["id"], one["prompt"]) == (number, f"no. {number}", f"The {number}th")
        assert len(one["tokens"]) == len(one["logprobs"]) <= 3 + number % 5
    before = out.read_bytes()
    assert "has the texts of 12 of 12 prompts" in gpt2(*words).err
    assert out.read_bytes() == before
