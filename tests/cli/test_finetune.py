"""`gpt2 finetune` reads its command line as the other commands read theirs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_model

from gpt2.cli.finetune import as_typed
from gpt2.train.tune_config import compose


def test_a_template_has_the_line_ends_that_the_verbs_read_in_it() -> None:
    typed = ("--template", r"Q: {prompt}\nA:")
    assert as_typed(compose(None, typed), typed).template == "Q: {prompt}\nA:"
    assert as_typed(compose(template="Q\n\\n"), ()).template == "Q\n\\n"  # a file's or a program's is what it is


@pytest.mark.parametrize("missing", [False, True])
def test_labels_are_told_side_by_side_with_a_bag_of_words_on_standard_output(
    gpt2: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "sklearn.pipeline", None)
    model, kinds = write_model(tmp_path / "model"), {"sea": "ship sail wave", "land": "horse road field"}
    rows = [{"text": f"{word} {n}", "label": kind} for kind in kinds for word in kinds[kind].split() for n in range(9)]
    data, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    val.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows[::4], {"text": "ship road", "label": "land"}]))
    words = ("finetune", "--model", model, "--data", data, "--val", val, "--out", tmp_path / "run", "--max_steps", 2)
    done = gpt2(*words, "--device", "cpu", "--dtype", "float32")
    assert done.code == 0, done.err
    heading, columns, ours, *others = done.out.splitlines()
    assert heading == f"{len(rows[::4]) + 1} held-out texts, 2 labels"
    assert columns.split() == ["accuracy", "macro-F1"] and ours.startswith("this model")
    assert [line.split("  ")[0] for line in others] == (
        ["the commonest label", "bag of words: needs scikit-learn (pip install scikit-learn)"]
        if missing
        else ["bag of words, logistic regression", "the commonest label"]
    )
    if not missing:
        assert float(others[0].split()[-2].rstrip("%")) >= 90 > float(others[1].split()[-2].rstrip("%"))
