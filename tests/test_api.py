"""`gpt2.load` and the object it returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import BYTES, TINY, make, write_model

import gpt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), make(scale=15.0))


def test_load_and_generate_a_text(folder: Path) -> None:
    model = gpt2.load(folder)
    text = model.generate("Once", seed=1, max_new_tokens=20)
    assert isinstance(text, str) and text
    assert (
        text
        == model.generate("Once", seed=1, max_new_tokens=20)
        == "".join(model.stream("Once", seed=1, max_new_tokens=20))
    )
    assert (model.config, model.tokenizer.hash) == (TINY, BYTES.hash)


def test_results_give_all_there_is(folder: Path) -> None:
    results = gpt2.load(folder).results(["Once", "a"], n=2, logprobs=3, seed=1, max_new_tokens=5, ignore_eot=True)
    assert [len(result.logprobs) for result in results] == [5] * 4
    assert all(len(top) == 3 for result in results for top in result.top_logprobs)


@pytest.mark.parametrize("setting", [{"n": 3}, {"logprobs": 2}])
def test_what_one_text_cannot_show_is_refused_and_not_ignored(folder: Path, setting: dict[str, int]) -> None:
    with pytest.raises(gpt2.UserError, match=r"model\.results"):
        gpt2.load(folder).generate("Once", **setting)


def test_unknown_and_impossible_settings_are_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="temprature"):
        gpt2.load(folder).generate("Once", temprature=1)
    with pytest.raises(gpt2.UserError, match="top_p = 3"):
        gpt2.load(folder).generate("Once", top_p=3)
    with pytest.raises(gpt2.UserError, match="pass the model's context of 64"):
        gpt2.load(folder).generate("Once", overflow="error")


def test_save_and_load_again_gives_the_same_model(folder: Path, tmp_path: Path) -> None:
    model = gpt2.load(folder)
    again = gpt2.load(model.save(tmp_path / "copy"))
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.module(tokens), again.module(tokens))
    assert again.generate("x", seed=2) == model.generate("x", seed=2)


def test_the_module_is_made_on_first_use_and_torch_is_not_needed_before(folder: Path) -> None:
    code = (
        f"import sys, gpt2; m = gpt2.load({str(folder)!r}); print(m, m.tokenizer.encode('ab'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "<gpt2.Model 2 layers of 32, vocabulary 257, context 64> [97, 98] False"


def test_device_and_dtype_are_taken_or_refused(folder: Path) -> None:
    model = gpt2.load(folder, device="cpu", dtype="bfloat16")
    assert model.module.wte.weight.dtype == torch.bfloat16
    assert model.generate("Once", seed=1, max_new_tokens=5)
    with pytest.raises(gpt2.UserError, match="--dtype float8: unknown"):
        _ = gpt2.load(folder, dtype="float8").module
    with pytest.raises(gpt2.UserError, match="--device tpu: unknown"):
        _ = gpt2.load(folder, device="tpu").module


def test_a_tokenizer_larger_than_the_model_does_not_belong_to_it() -> None:
    with pytest.raises(gpt2.UserError, match="257 tokens, the model 100: they do not belong together"):
        gpt2.Model(gpt2.GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=100), BYTES, make())


def test_a_model_needs_weights_from_somewhere() -> None:
    with pytest.raises(ValueError, match="a module or a folder"):
        gpt2.Model(TINY, BYTES)
