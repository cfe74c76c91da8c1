"""The small public surface: these names and no others, each found, none loaded before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2

NAMES = {
    "Engine",
    "GPT",
    "GPTConfig",
    "Model",
    "SamplingParams",
    "Tokenizer",
    "UserError",
    "__version__",
    "load",
    "prepare",
    "pretrain",
}
HEAVY = {"torch", "numpy", "numba", "tokenizers", "tiktoken", "rich", "matplotlib", "huggingface_hub", "click"}


def test_the_public_names_are_these() -> None:
    assert set(gpt2.__all__) == NAMES == set(dir(gpt2))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_resolves(name: str) -> None:
    value = getattr(gpt2, name)
    assert isinstance(value, (str, type)) or callable(value)


def test_the_names_for_type_checkers_are_the_lazy_ones() -> None:
    tree = ast.parse(Path(gpt2.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == gpt2._WHERE


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="lod"):
        _ = gpt2.lod


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, gpt2; print(sorted({HEAVY} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
