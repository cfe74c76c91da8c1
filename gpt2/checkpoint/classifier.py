"""A model with a head for labels, on disk as transformers' GPT2ForSequenceClassification has it.

`score.weight` (labels, width) lies among the weights, the labels' names are config.json's `id2label`. transformers
reads a text's label from its last token that is not `pad_token_id`: we write the end-of-text token there, and read the
label where the text ends, so that both look at the same place whether or not an end-of-text token follows.

An adapter that was trained with a head is PEFT's, of its task SEQ_CLS: the head lies among its tensors. PEFT does not
keep the labels' names; they stand beside it in labels.json, as `id2label`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2 import atomic
from gpt2.checkpoint.adapters import (
    CONFIG,
    Adapter,
    base_folder,
    is_adapter,
    merge_into,
    read_adapter,
    write_adapter,
)
from gpt2.checkpoint.find import find_folder
from gpt2.checkpoint.hf_config import hf_can_express, read_config
from gpt2.checkpoint.names import SCORE, plain_name
from gpt2.checkpoint.native import load_module, stored_tensors, write_folder
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.lora_config import LoRAConfig

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.model.gpt import GPT
    from gpt2.tokenizer.bpe import Tokenizer

ARCHITECTURE = "GPT2ForSequenceClassification"
LABELS = "labels.json"  # beside an adapter
BATCH_TOKENS = 8192  # of texts, with their padding, that are read at a time


@dataclass(frozen=True)
class Classifier:
    """`labels` by number, and a module in evaluation mode with the head beside its own."""

    labels: tuple[str, ...]
    module: GPT

    def logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of texts (N) -> (N, labels), float32, on the processor.

        UserError where a text is empty or longer than the context.
        """
        import torch

        from gpt2.model.heads import last_logits

        config, device = self.module.config, self.module.wte.weight.device
        check_texts(texts, config)
        found = torch.empty(len(texts), len(self.labels))
        for start, stop in spans([len(text) for text in texts]):
            part = [torch.tensor(text) for text in texts[start:stop]]
            lengths = torch.tensor([len(text) for text in part], device=device)
            ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
            found[start:stop] = last_logits(self.module, ids.to(device), lengths).cpu()
        return found


class Head(NamedTuple):
    """A classifier's last matrix (labels, width), and what its rows mean."""

    labels: tuple[str, ...]
    weight: Tensor


def read_head(folder: Path) -> Head | None:
    """The head of a model folder; None where it is no classifier's."""
    if is_adapter(folder) or not is_classifier(folder):
        return None
    found = next((tensor for name, tensor in stored_tensors(folder) if plain_name(name) == SCORE), None)
    if found is None:
        return None
    labels = read_labels(folder / "config.json", found.size(0))
    check_head(folder, found, labels, read_config(folder))
    return Head(labels, found)


def check_texts(texts: Sequence[Sequence[int]], config: GPTConfig) -> None:
    for number, text in enumerate(texts, 1):
        if not 0 < len(text) <= config.context_length:
            fault = f"{len(text)} tokens do not fit the context of {config.context_length}" if len(text) else "empty"
            raise UserError(f"text {number}: {fault}; a label is read from 1 to {config.context_length} tokens")


def spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Texts in their order, cut into runs of about BATCH_TOKENS with padding."""
    found, start = [], 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * max(lengths[start : stop + 1]) > BATCH_TOKENS:
            found.append((start, stop))
            start = stop
    return found


def write_classifier(
    folder: Path,
    config: GPTConfig,
    state: Mapping[str, Tensor],
    labels: Sequence[str],
    tokenizer: Tokenizer | None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder whose `state` holds score.weight too; transformers' classifier loads it."""
    if tuple(state[SCORE].shape) != (len(labels), config.n_embd):
        raise ValueError(f"score.weight {tuple(state[SCORE].shape)} for {len(labels)} labels and width {config.n_embd}")
    settings = label_settings(labels) | {"pad_token_id": tokenizer.eot_id if tokenizer else None}
    if hf_can_express(config):
        settings["architectures"] = [ARCHITECTURE]
    write_folder(folder, config, state, tokenizer, notes, settings)


def write_classifier_adapter(
    folder: Path,
    config: LoRAConfig,
    state: Mapping[str, Tensor],
    labels: Sequence[str],
    base: str,
    tokenizer: Tokenizer | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter whose `state` holds score.weight too; see write_adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / LABELS, json.dumps(label_settings(labels), indent=2) + "\n")
    write_adapter(folder, config, state, base, tokenizer, notes)


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """The labels as transformers' config.json names them."""
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def is_classifier(folder: Path) -> bool:
    """Whether the folder holds a model, or an adapter, with a head for labels. Reads no weights."""
    adapted = is_adapter(folder)
    try:
        values = json.loads((folder / (CONFIG if adapted else "config.json")).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(values, dict):
        return False
    if adapted:
        return values.get("task_type") == "SEQ_CLS"
    return values.get("architectures") == [ARCHITECTURE] or (
        "id2label" in values and "problem_type" in values and "architectures" not in values
    )


def read_classifier(folder: Path, base: str | Path | None = None) -> Classifier:
    """The model with its head, float32 on the processor; of an adapter, merged with its base, or with this one.

    UserError where the folder holds no whole classifier.
    """
    if is_adapter(folder):
        return adapted_classifier(read_adapter(folder), folder, base)
    config = read_config(folder)
    head = next((tensor for name, tensor in stored_tensors(folder) if plain_name(name) == SCORE), None)
    if head is None:
        raise UserError(f"{folder}: no classifier, it has no {SCORE}; make one with gpt2 finetune on labelled texts")
    labels = read_labels(folder / "config.json", head.size(0))
    check_head(folder, head, labels, config)
    return Classifier(labels, with_head(load_module(folder, config), head))


def adapted_classifier(adapter: Adapter, folder: Path, base: str | Path | None) -> Classifier:
    """An adapter's head over its base with the adapter in it."""
    import torch

    if adapter.head is None:
        raise UserError(
            f"{folder}: an adapter without a head for labels; make one with gpt2 finetune on labelled texts"
        )
    head = torch.from_numpy(adapter.head)
    base = find_folder(base) if base is not None else base_folder(adapter)
    config = read_config(base)
    labels = read_labels(folder / LABELS, head.size(0))
    check_head(folder, head, labels, config)
    adapter.check(config)
    module = load_module(base, config)
    merge_into(module, adapter)
    return Classifier(labels, with_head(module, head))


def check_head(folder: Path, head: Tensor, labels: Sequence[str], config: GPTConfig) -> None:
    if tuple(head.shape) != (len(labels), config.n_embd):
        raise UserError(
            f"{folder}: {SCORE} is {tuple(head.shape)}, but there are {len(labels)} labels and the model's width is "
            f"{config.n_embd}: they do not belong together"
        )


def with_head(module: GPT, head: Tensor) -> GPT:
    """The module with this head (labels, width) hung onto it."""
    import torch

    from gpt2.model.heads import add_head

    with torch.no_grad():
        add_head(module, head.size(0)).weight.copy_(head)
    return module.eval()


def read_labels(path: Path, count: int) -> tuple[str, ...]:
    """Label names in the order of their numbers; transformers' own names where the file has none, or is not there."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        values = {}
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    names = values.get("id2label") if isinstance(values, dict) else values
    if names is None:
        return tuple(f"LABEL_{number}" for number in range(count))
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))}:
        raise UserError(f"{path}: id2label does not name the labels 0, 1, 2 and so on")
    return tuple(str(names[str(number)]) for number in range(len(names)))
