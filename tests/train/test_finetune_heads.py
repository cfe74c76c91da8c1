"""`finetune` on labels and preferences: how often the reference is asked, and which data is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.train.finetune import finetune, resume
from gpt2.train.metrics import read_metrics
from tests.tiny_models import write_model


def write_lines(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    model = write_model(folder / "base")
    return {
        "model": str(model),
        "out": str(folder / "run"),
        "device": "cpu",
        "dtype": "float32",
        "quiet": True,
    } | changes


def test_the_reference_reads_each_pair_once_whatever_the_number_of_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Counter[str] = Counter()
    body = GPT.body

    def counted(self: GPT, input_ids: torch.Tensor, context: Any = None) -> torch.Tensor:
        rows["learned" if torch.is_grad_enabled() else "read"] += len(input_ids)
        return body(self, input_ids, context)

    monkeypatch.setattr(GPT, "body", counted)
    train = write_lines(
        tmp_path / "train.jsonl", [{"prompt": f"{n}:", "chosen": " yes", "rejected": " no"} for n in range(24)]
    )
    val = write_lines(
        tmp_path / "val.jsonl", [{"prompt": f"{n}?", "chosen": " yes", "rejected": " no"} for n in range(8)]
    )
    changes = {"data": train, "val": val, "epochs": 4.0, "batch_examples": 8, "eval_every": 4, "patience": 0}
    tuned = finetune(**settings(tmp_path, **changes))
    evaluations = sum("val/loss" in line for line in read_metrics(tuned.folder))
    assert rows["learned"] == 4 * 24
    assert rows["read"] == 24 + 8 + evaluations * 8
    rows.clear()
    resume(tuned.folder, quiet=True)
    assert rows["read"] + rows["learned"] == 0


LABELLED = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)]


def test_a_label_of_the_validation_file_that_training_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "train.jsonl", LABELLED)
    val = write_lines(tmp_path / "val.jsonl", [LABELLED[0], {"text": "text 99", "label": "c"}])
    with pytest.raises(UserError, match=r"val\.jsonl line 2: label 'c'; expected one of a, b") as caught:
        finetune(**settings(tmp_path, data=data, val=val))
    assert "\n" not in str(caught.value)


def test_a_label_that_no_text_has_is_named(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "train.jsonl", LABELLED)
    with pytest.raises(UserError, match="label 'c': no training text has it"):
        finetune(**settings(tmp_path, data=data, labels=("a", "b", "c")))
    assert not (tmp_path / "run").exists()
