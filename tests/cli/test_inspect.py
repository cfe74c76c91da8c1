"""`gpt2 inspect`: the model's parts, and what it makes of a text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY, make, transformers_twin, write_model

from gpt2.cli.inspect import table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), make(scale=5.0))


@pytest.fixture
def run(gpt2: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    return lambda *words: gpt2("inspect", "--model", folder, *words)


def test_the_parameter_table_adds_up(run: Callable[..., Any]) -> None:
    report = json.loads(run("--json").out)
    assert sum(row["parameters"] for row in report["tensors"]) == report["parameters"] == make().parameter_count()
    rows = {row["name"]: row for row in report["tensors"]}
    assert rows["wte.weight"]["shape"] == [257, 32]
    assert rows["h.*.attn.c_attn.weight"] == {
        "name": "h.*.attn.c_attn.weight", "shape": [96, 32], "count": 2, "parameters": 2 * 96 * 32,
    }  # fmt: skip
    assert report["config"]["n_layer"] == 2


def test_tables_for_people_show_the_same(run: Callable[..., Any]) -> None:
    out = run("Once").out
    assert f"{make().parameter_count():,}" in out
    assert "h.*.mlp.c_fc.weight" in out and "2 x (128, 32)" in out
    assert "'O'" in out and "mean loss" in out and "probability" in out


def test_losses_and_next_tokens_are_the_models(run: Callable[..., Any]) -> None:
    report = json.loads(run("--json", "--top", 3, "Once").out)
    logprobs = make(scale=5.0)(torch.tensor([list(b"Once")]))[0].log_softmax(-1).detach()
    losses = [entry["loss"] for entry in report["tokens"]]
    assert losses[0] is None
    assert losses[1:] == pytest.approx([float(-logprobs[t, b"Once"[t + 1]]) for t in range(3)], abs=1e-4)
    assert report["loss"] == pytest.approx(sum(losses[1:]) / 3)
    values, ids = logprobs[-1].exp().topk(3)
    assert [entry["token"] for entry in report["next"]] == ids.tolist()
    assert [entry["probability"] for entry in report["next"]] == pytest.approx(values.tolist(), abs=1e-5)


def test_eot_before_the_text_gives_its_first_token_a_loss(run: Callable[..., Any]) -> None:
    report = json.loads(run("--json", "--eot", "Once").out)
    assert [entry["token"] for entry in report["tokens"]] == [256, *b"Once"]
    assert math.isfinite(report["tokens"][1]["loss"])


def test_a_text_of_one_token_has_no_loss_but_a_next_token(run: Callable[..., Any]) -> None:
    report = json.loads(run("--json", "a").out)
    assert report["loss"] is None and len(report["next"]) == 10
    assert run("a").code == 0


def test_saved_activations_are_those_of_transformers(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("--json", "--save", tmp_path / "seen.npz", "Once upon")
    assert done.code == 0 and "hidden_states (3, 9, 32), attention (2, 2, 9, 9)" in done.err
    seen = np.load(tmp_path / "seen.npz")
    assert seen["tokens"].tolist() == list(b"Once upon")
    twin = transformers_twin(make(scale=5.0))
    theirs = twin(torch.tensor([list(b"Once upon")]), output_hidden_states=True, output_attentions=True)
    np.testing.assert_allclose(seen["hidden_states"], torch.cat(theirs.hidden_states).detach(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(seen["attention"], torch.cat(theirs.attentions).detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--save", "x.npz"), "--save: there is no text"),
        (("--eot",), "--eot: there is no text"),
        (("--save", "x.txt", "a"), "must end in .npz"),
        (("--top", -1, "a"), "--top -1"),
        (("",), "no text to look at"),
        (("a" * (TINY.context_length + 1),), "the text has 65 tokens, the model's context is 64"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run: Callable[..., Any], words: tuple[object, ...], message: str
) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1


def test_columns_line_up() -> None:
    assert table(["a", "bb"], [["ccc", "d"]]) == "a    bb\nccc   d"
