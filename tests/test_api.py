"""`gpt2.load` and the object it returns."""

from __future__ import annotations

import os
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


def written(folder: Path, **settings: str) -> tuple[str, type]:
    model = gpt2.load(folder, **settings)
    return model.generate("Once", temperature=0, max_new_tokens=30), type(model.engine().runner)


def test_float32_weights_write_what_the_plain_loop_writes(folder: Path) -> None:
    from gpt2.inference.generate import generate
    from gpt2.inference.runners.cpu import CpuRunner

    text, runner = written(folder, weights="float32")
    params = gpt2.SamplingParams(temperature=0, max_new_tokens=30)
    assert text == generate(gpt2.load(folder).module, BYTES, ["Once"], params)[0].text
    assert runner is CpuRunner


def test_auto_is_int8_and_says_so_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gpt2.load(folder)
    model.generate("Once", max_new_tokens=2)
    model.results(["Once"] * 20, max_new_tokens=2)
    assert capsys.readouterr().err == "int8 weights for writing; --weights float32 undoes it\n"
    assert written(folder)[0] == written(folder, weights="int8")[0]
    capsys.readouterr()
    assert written(folder, dtype="bfloat16")[0] == written(folder, weights="bfloat16")[0]
    assert capsys.readouterr().err == "bfloat16 weights for writing; --weights float32 undoes it\n"


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8"])
def test_keys_and_values_are_kept_as_asked_for(folder: Path, kv: str) -> None:
    runner = gpt2.load(folder, weights="int8", kv=kv).runner(2)
    assert runner.kv == kv  # type: ignore[attr-defined]
    assert runner.pages == 2 * 4


def test_a_packed_folder_writes_as_it_is_and_has_no_module(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpt2.checkpoint.packed import pack_folder, write_packed

    write_packed(tmp_path / "packed", pack_folder(folder, TINY, "int4"), BYTES)
    model = gpt2.load(tmp_path / "packed")
    assert model.generate("Once", temperature=0, max_new_tokens=30) == written(folder, weights="int4")[0]
    assert capsys.readouterr().err == ""
    with pytest.raises(gpt2.UserError, match="its weights are packed"):
        _ = model.module
    with pytest.raises(gpt2.UserError, match=r"--weights int8: .* holds int4 only"):
        gpt2.load(tmp_path / "packed", weights="int8").generate("x")


def test_names_that_are_none_are_refused(folder: Path) -> None:
    for settings, message in (
        ({"weights": "int7"}, "--weights int7: unknown .did you mean"),
        ({"kv": "int4"}, "--kv int4: unknown"),
        ({"dtype": "float7"}, "--dtype float7: unknown"),
        ({"dtype": "float16", "weights": "int4"}, "--weights int4: does not go with --dtype float16"),
        ({"dtype": "float16", "kv": "int8"}, "--kv int8: does not go with --dtype float16"),
    ):
        with pytest.raises(gpt2.UserError, match=message):
            gpt2.load(folder, **settings).generate("x")


@pytest.mark.parametrize("packed", [False, True])
def test_where_the_kernels_fail_torch_takes_over_and_says_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    from gpt2.checkpoint.packed import pack_folder, write_packed
    from gpt2.inference.runners import select
    from gpt2.inference.runners.cpu import CpuRunner
    from gpt2.inference.runners.torch import TorchRunner

    expected = written(folder, weights="float32")[0]
    if packed:
        write_packed(tmp_path, pack_folder(folder, TINY, "float32"), BYTES)
        folder = tmp_path
    monkeypatch.setattr(CpuRunner, "step", lambda self, spans: 1 / 0)
    assert written(folder, weights="float32") == (expected, TorchRunner)
    line = "the kernels cannot write here (ZeroDivisionError: division by zero): torch does, in float32\n"
    assert capsys.readouterr().err.endswith(line)
    monkeypatch.setattr(select, "kernels_problem", lambda: "numba is not installed")
    assert written(folder, weights="float32") == (expected, TorchRunner)
    assert capsys.readouterr().err == "the kernels cannot write here (numba is not installed): torch does, in float32\n"


def test_numba_that_may_not_compile_leaves_writing_to_torch(folder: Path) -> None:
    code = f"import gpt2; gpt2.load({str(folder)!r}, kv='float32').generate('Once', max_new_tokens=2)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "(ImportError: NUMBA_DISABLE_JIT is set): torch does, in float32" in found.stderr


def test_a_module_in_memory_writes_as_it_is() -> None:
    from gpt2.inference.generate import generate

    module = make(scale=15.0).bfloat16()
    params = gpt2.SamplingParams(temperature=0, max_new_tokens=20)
    text = gpt2.Model(TINY, BYTES, module).generate("Once", temperature=0, max_new_tokens=20)
    assert text == generate(module, BYTES, ["Once"], params)[0].text


def test_an_engine_is_made_of_a_model(folder: Path) -> None:
    engine = gpt2.Engine(gpt2.load(folder, weights="float32"))
    results = engine.generate(["Once", "a"], gpt2.SamplingParams(temperature=0, max_new_tokens=30))
    assert results[0].text == written(folder, weights="float32")[0]


def test_writing_on_a_processor_needs_no_torch(folder: Path) -> None:
    code = f"""
import sys
from gpt2.cli.main import main
assert main(["generate", "--model", {str(folder)!r}, "--device", "cpu", "--max-new-tokens", "5", "Once"]) == 0
sys.exit(str(set(sys.modules) & {{"torch", "transformers", "matplotlib", "huggingface_hub", "rich"}} or ""))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[1:] in ([], [""]), done.stderr
