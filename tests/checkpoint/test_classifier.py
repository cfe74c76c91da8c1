"""transformers' GPT2ForSequenceClassification and we read a classifier's folder alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.checkpoint.adapters import write_adapter
from gpt2.checkpoint.classifier import (
    LABELS as LABEL_FILE,
)
from gpt2.checkpoint.classifier import (
    Classifier,
    is_classifier,
    read_classifier,
    write_classifier,
    write_classifier_adapter,
)
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.errors import UserError
from gpt2.model.heads import add_head
from gpt2.model.lora import LoRAConfig, apply_lora, lora_parameters
from tests.tiny_models import BYTES, make, state_of, write_model

LABELS = ("austen", "carroll", "chesterton")
TEXTS = [list(b"It is a truth"), list(b"Oh dear!"), list(b"x"), list(b"universally acknowledged")]


def written(folder: Path, **changes: Any) -> Classifier:
    """A classifier with random weights, written to the folder."""
    model = make(**changes)
    add_head(model, len(LABELS))
    write_classifier(folder, model.config, state_of(model), LABELS, BYTES)
    return Classifier(LABELS, model)


@pytest.mark.parametrize("changes", [{}, {"tie_head": False}, {"bias": False}, {"activation": "gelu_erf"}])
def test_transformers_gives_the_same_logits(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = written(tmp_path, **changes).logits(TEXTS)
    theirs, report = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert [theirs.config.id2label[number] for number in range(3)] == list(LABELS)
    alone = torch.cat([theirs(torch.tensor([text])).logits for text in TEXTS])
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


def test_padding_by_end_of_text_does_not_move_the_place_that_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = written(tmp_path).logits(TEXTS)
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path)
    assert theirs.config.pad_token_id == BYTES.eot_id
    padded = torch.full((len(TEXTS), 30), BYTES.eot_id)
    for row, text in enumerate(TEXTS):
        padded[row, : len(text)] = torch.tensor(text)
    torch.testing.assert_close(theirs(padded).logits, ours, rtol=0, atol=1e-5)


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    ours = written(tmp_path)
    back = read_classifier(tmp_path)
    assert back.labels == LABELS
    assert torch.equal(back.logits(TEXTS), ours.logits(TEXTS))


def test_its_card_says_what_it_does(tmp_path: Path) -> None:
    written(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card and "gpt2 classify" in card and ", ".join(LABELS) in card


def test_a_model_beyond_transformers_comes_back_too_and_its_classes_refuse_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = written(tmp_path, attention_pattern=("dense", "banded"), band_width=4)
    assert torch.equal(read_classifier(tmp_path).logits(TEXTS), ours.logits(TEXTS))
    assert is_classifier(tmp_path)
    with pytest.raises(OSError):
        transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path)


def test_what_transformers_saved_is_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    written(tmp_path / "ours")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert is_classifier(tmp_path / "theirs")
    back = read_classifier(tmp_path / "theirs")
    assert back.labels == LABELS
    torch.testing.assert_close(back.logits(TEXTS), read_classifier(tmp_path / "ours").logits(TEXTS))


def test_texts_in_one_batch_or_many_have_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = written(tmp_path)
    together = ours.logits(TEXTS)
    monkeypatch.setattr("gpt2.checkpoint.classifier.BATCH_TOKENS", 14)
    torch.testing.assert_close(ours.logits(TEXTS), together)


def test_a_classifier_is_a_language_model_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = written(tmp_path)
    module = load_module(tmp_path, read_config(tmp_path))
    ids = torch.tensor([TEXTS[0]])
    assert torch.equal(module(ids), ours.module(ids))
    assert "ignored" not in capsys.readouterr().err


def test_what_is_no_classifier_is_refused_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path / "plain")
    assert not is_classifier(tmp_path / "plain") and not is_classifier(tmp_path)
    with pytest.raises(UserError, match="no classifier, it has no score"):
        read_classifier(tmp_path / "plain")
    written(tmp_path / "wrong")
    config = tmp_path / "wrong" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(UserError, match="there are 2 labels and the model's width is 32"):
        read_classifier(tmp_path / "wrong")
    config.write_text(json.dumps(values | {"id2label": {"0": "a", "2": "b"}}))
    with pytest.raises(UserError, match="id2label does not name"):
        read_classifier(tmp_path / "wrong")


def test_texts_that_no_label_can_be_read_from_are_refused(tmp_path: Path) -> None:
    ours = written(tmp_path)
    with pytest.raises(UserError, match="text 2: empty"):
        ours.logits([[1], []])
    with pytest.raises(UserError, match="text 1: 65 tokens do not fit the context of 64"):
        ours.logits([[1] * 65])


def adapted(folder: Path) -> Classifier:
    """A base with a random adapter and head: folder/base and folder/adapter."""
    model = make()
    write_model(folder / "base", model)
    config = LoRAConfig(4, 8.0)
    apply_lora(model, config)
    add_head(model, len(LABELS))
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    write_classifier_adapter(folder / "adapter", config, state, LABELS, str(folder / "base"), BYTES)
    return Classifier(LABELS, model)


def test_an_adapter_with_a_head_comes_back(tmp_path: Path) -> None:
    ours = adapted(tmp_path)
    assert is_classifier(tmp_path / "adapter")
    back = read_classifier(tmp_path / "adapter")
    assert back.labels == LABELS
    torch.testing.assert_close(back.logits(TEXTS), ours.logits(TEXTS), rtol=0, atol=1e-5)


def test_peft_loads_an_adapter_with_a_head(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    ours = adapted(tmp_path)
    base = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=len(LABELS))
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = torch.cat([theirs(input_ids=torch.tensor([text])).logits for text in TEXTS])
    torch.testing.assert_close(found, ours.logits(TEXTS), rtol=0, atol=1e-5)


def test_pefts_adapter_with_a_head_is_read(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    write_model(tmp_path / "base")
    base = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=len(LABELS))
    base.config._name_or_path = str(tmp_path / "base")
    lora = peft.LoraConfig(r=4, task_type="SEQ_CLS", fan_in_fan_out=True, target_modules=["c_attn", "c_proj"])
    theirs = peft.get_peft_model(base, lora).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(tmp_path / "adapter")
    assert is_classifier(tmp_path / "adapter")
    back = read_classifier(tmp_path / "adapter", tmp_path / "base")
    assert back.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with torch.no_grad():
        expected = torch.cat([theirs(input_ids=torch.tensor([text])).logits for text in TEXTS])
    torch.testing.assert_close(back.logits(TEXTS), expected, rtol=0, atol=1e-5)


def test_adapters_that_tell_no_labels_are_refused(tmp_path: Path) -> None:
    model = make()
    apply_lora(model, LoRAConfig(4, 8.0))
    write_adapter(tmp_path / "plain", LoRAConfig(4, 8.0), lora_parameters(model), str(tmp_path))
    assert not is_classifier(tmp_path / "plain")
    with pytest.raises(UserError, match="an adapter without a head for labels"):
        read_classifier(tmp_path / "plain")
    adapted(tmp_path)
    (tmp_path / "adapter" / LABEL_FILE).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_classifier(tmp_path / "adapter")
