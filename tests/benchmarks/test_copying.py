"""The weights that copying.py makes by hand do what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.model.gpt import GPT

IDS = np.random.default_rng(0).integers(50_256, size=60).tolist()
GIVEN = 8  # tokens of the copy, before the model goes on alone


@pytest.fixture(autouse=True)
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")


def said(weights: dict[str, np.ndarray], ids: list[int]) -> list[int]:
    """The likeliest token after each, by the torch model."""
    from peers.copier import CONFIG, in_memory

    module = GPT(CONFIG).eval()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in in_memory(weights).items()})
    with torch.no_grad():
        tokens: list[int] = module(torch.tensor([ids]))[0].argmax(-1).tolist()
    return tokens


@pytest.mark.slow
def test_the_copier_copies_with_other_names() -> None:
    from peers.copier import copier

    new = {IDS[20]: 7, IDS[40]: 11}
    edited = [new.get(token, token) for token in IDS]
    tokens = said(copier(new), [*IDS, *edited])
    assert tokens[len(IDS) + GIVEN - 1 : -1] == edited[GIVEN:]


@pytest.mark.slow
def test_the_prompter_says_its_text_whatever_it_has_read() -> None:
    from peers.copier import prompter

    text = [5, 4, 3, 2, 1] * 4
    tokens = said(prompter(text, prompt=len(IDS)), [*IDS, *reversed(text)])
    assert tokens[len(IDS) - 1 : -1] == text
