"""Adapters are PEFT's files: both ways, to 1e-5; what PEFT can and we cannot is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from gpt2.checkpoint.adapters import DEFAULTS, READ, SILENT, is_adapter, read_adapter, write_adapter
from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.lora import LoRAConfig, apply_lora, load_lora, lora_parameters, merge_lora
from tests.tiny_models import TINY, make, transformers_twin

IDS = torch.randint(0, TINY.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
SHAPES = [
    LoRAConfig(rank=4, alpha=8),
    LoRAConfig(rank=3, alpha=7.5, target_modules=("c_attn",)),
    LoRAConfig(rank=2, alpha=4, target_modules=("c_proj",), rslora=True),
    LoRAConfig(rank=5, target_modules=("attn.c_proj", "mlp.c_fc")),
]


def adapted(config: LoRAConfig, seed: int = 3) -> GPT:
    """The tiny model with an adapter that does something."""
    module = make(scale=3.0)
    torch.manual_seed(seed)
    apply_lora(module, config)
    for parameter in lora_parameters(module).values():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def write(folder: Path, module: GPT, config: LoRAConfig, base: str = "base") -> Path:
    write_adapter(folder, config, dict(lora_parameters(module)), base)
    return folder


def loaded(folder: Path) -> GPT:
    """Our model with a folder's adapter on it."""
    adapter = read_adapter(folder)
    adapter.check(TINY)
    module = make(scale=3.0)
    apply_lora(module, adapter.config)
    load_lora(module, {name: torch.from_numpy(array) for name, array in adapter.state.items()})
    return module


def peft_model(**settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    twin = transformers_twin(make(scale=3.0))
    model = get_peft_model(twin, LoraConfig(fan_in_fan_out=True, task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("config", SHAPES, ids=lambda config: "+".join(config.target_modules))
def test_peft_computes_the_same_with_our_adapter(config: LoRAConfig, tmp_path: Path) -> None:
    from peft import PeftModel

    module = adapted(config)
    folder = write(tmp_path / "a", module, config)
    theirs = PeftModel.from_pretrained(transformers_twin(make(scale=3.0)), folder).eval()
    torch.testing.assert_close(theirs(IDS).logits, module(IDS), rtol=0, atol=1e-5)
    assert (make(scale=3.0)(IDS) - module(IDS)).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn"]},
        {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj", "c_fc"], "use_rslora": True},
        {"r": 2, "target_modules": ["mlp.c_proj"], "lora_dropout": 0.1},
        {"r": 2, "target_modules": r".*\.1\.(attn|mlp)\.c_proj"},
        {"r": 2, "target_modules": ["c_fc"], "layers_to_transform": [1]},
        {"r": 3, "target_modules": "all-linear"},
    ],
    ids=str,
)
def test_we_compute_the_same_with_pefts_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = peft_model(**settings)
    theirs.save_pretrained(tmp_path)
    ours = loaded(tmp_path)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)
    merge_lora(ours)
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_merged_in_numpy_is_merged_in_torch(tmp_path: Path) -> None:
    module = adapted(SHAPES[0])
    adapter = read_adapter(write(tmp_path / "a", module, SHAPES[0]))
    plain = dict(make(scale=3.0).named_parameters())
    merge_lora(module)
    for name, tensor in module.named_parameters():
        np.testing.assert_allclose(adapter.merged(name, plain[name].numpy()), tensor.numpy(), atol=1e-6)


def test_an_adapter_comes_back_as_it_was_written(tmp_path: Path) -> None:
    config = LoRAConfig(rank=3, alpha=7.5, dropout=0.25, target_modules=("c_attn", "mlp.c_proj"), rslora=True)
    module = adapted(config)
    adapter = read_adapter(write(tmp_path / "a", module, config, "openai-community/gpt2"))
    assert is_adapter(tmp_path / "a") and not is_adapter(tmp_path)
    assert adapter.config == config and adapter.base == "openai-community/gpt2"
    assert list(adapter.state) == sorted(lora_parameters(module))
    assert all(np.array_equal(adapter.state[n], p.detach().numpy()) for n, p in lora_parameters(module).items())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["wte"]}, "modules_to_save"),
        ({"rank_pattern": {"h.0.attn.c_attn": 3}}, "rank_pattern"),
        ({"alpha_pattern": {"h.0.attn.c_attn": 3}}, "alpha_pattern"),
        ({"lora_bias": True, "bias": "none"}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
    ids=str,
)
def test_what_peft_can_and_we_cannot_is_refused_by_name(settings: dict[str, Any], named: str, tmp_path: Path) -> None:
    peft_model(r=4, target_modules=["c_attn"], **settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=named) as error:
        read_adapter(tmp_path)
    assert "\n" not in str(error.value)


def test_a_target_that_no_block_has_is_passed_over_as_peft_does(tmp_path: Path) -> None:
    peft_model(r=4, target_modules=["c_attn", "q_proj"]).save_pretrained(tmp_path)
    assert read_adapter(tmp_path).config.target_modules == ("c_attn",)


def test_an_adapter_may_have_its_base_s_config_beside_it(tmp_path: Path) -> None:
    peft_model(r=4, target_modules=["c_attn"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert is_adapter(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert not is_adapter(tmp_path), "a model that an adapter lies beside"


@pytest.mark.parametrize("targets", [["wte"], ["lm_head"]])
def test_adapters_of_embeddings_are_refused(targets: list[str], tmp_path: Path) -> None:
    peft_model(r=4, target_modules=targets).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not supported"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": "four"}, "r = 'four'"),
        ({"some_new_thing": 3}, "some_new_thing = 3 is not supported"),
        ({"r": 5}, "h.0.attn.c_attn.lora_A is"),
        ({"target_modules": ["c_attn", "c_fc"]}, "h.0.mlp.c_fc.lora_A is missing"),
        ({"target_modules": ["q_proj"]}, "'q_proj' is no matrix"),
        ({"target_modules": ["q\n"]}, r"'q\n' is no matrix"),
        ({"base_model_name_or_path": 3}, "is no text"),
    ],
    ids=str,
)
def test_a_config_that_does_not_belong_is_a_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, adapted(SHAPES[1]), SHAPES[1])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3} | change))
    with pytest.raises(UserError) as error:
        read_adapter(tmp_path).check(TINY)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [{"n_embd": 64}, {"n_layer": 1}, {"n_layer": 3}, {"n_inner": 64}])
def test_a_base_of_another_shape_is_a_line(shape: dict[str, Any], tmp_path: Path) -> None:
    adapter = read_adapter(write(tmp_path / "a", adapted(SHAPES[0]), SHAPES[0], "runs/my"))
    other = replace(TINY, **{"head_dim": 0, "n_inner": 0} | shape)
    with pytest.raises(UserError, match=r"does not fit this base.*it was made for runs/my") as error:
        adapter.check(other)
    assert "\n" not in str(error.value)


def test_damaged_files_are_a_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", adapted(SHAPES[0]), SHAPES[0])
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged"):
        read_adapter(folder)
    weights.unlink()
    with pytest.raises(UserError, match="is missing beside"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_adapter(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = sorted(READ | SILENT | set(DEFAULTS) | {"use_dora", "rank_pattern", "modules_to_save"})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"), adapted(SHAPES[1]), SHAPES[1])


@effort(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_whatever_a_config_says_it_is_read_or_refused_in_one_line(changes: dict[str, Any], sound: Path) -> None:
    path = sound / "adapter_config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | changes))
        read_adapter(sound).check(TINY)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_text(before)
