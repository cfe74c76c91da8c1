"""A model folder is a Hugging Face folder, both ways; what does not fit says so in one line."""

from __future__ import annotations

import json
import math
import os
import pickle
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import BYTES, ODD, TINY, make, state_of, transformers_twin, write_model

from gpt2.checkpoint import hf_config, names, native, write_weights
from gpt2.errors import UserError
from gpt2.model.config import ATTENTION_KINDS, GPTConfig
from gpt2.model.gpt import GPT

TOKENS = torch.tensor([[5, 200, 7, 31, 0, 90]])
EXPRESSIBLE = {**{name: changes for name, changes in ODD.items() if name != "head_bias"}, "plain": {}}
EXPRESSIBLE |= {"by_layer": {"scale_by_layer": True}, "inner": {"n_inner": 100}}
EXTENDED = {"head_bias": {"head_bias": True}, "wide": {"head_dim": 24}}
EXTENDED |= {"banded": {"attention_pattern": ("dense", "banded"), "band_width": 8}}
EXTENDED |= {"strided": {"attention_pattern": ("strided", "banded"), "band_width": 8, "attention_stride": 8}}


def load(folder: Path) -> GPT:
    return native.load_module(folder, hf_config.read_config(folder))


def rewrite(folder: Path, change) -> None:
    """Change the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def same(one: GPT, other: GPT) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("name", [*EXPRESSIBLE, *EXTENDED])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    module = make(**(EXPRESSIBLE | EXTENDED)[name])
    write_model(tmp_path, module)
    again = load(tmp_path)
    assert again.config == module.config
    assert same(module, again)
    assert not again.training
    assert (again.lm_head.weight is again.wte.weight) == module.config.tie_head
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in again.parameters())


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_transformers_reads_our_folder_with_no_key_missing_unexpected_or_mismatched(tmp_path: Path, name: str) -> None:
    module = make(scale=5.0, **EXPRESSIBLE[name])
    write_model(tmp_path, module)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    torch.testing.assert_close(theirs(TOKENS).logits, module(TOKENS), rtol=0, atol=2e-5)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) is transformers.GPT2LMHeadModel


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_we_read_the_folder_that_transformers_writes(tmp_path: Path, name: str) -> None:
    twin = transformers_twin(make(scale=5.0, **EXPRESSIBLE[name]))
    twin.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path)(TOKENS), twin(TOKENS).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("reader", ["GPT2LMHeadModel", "GPT2Model", "AutoModelForCausalLM"])
@pytest.mark.parametrize("name", EXTENDED)
def test_what_transformers_would_compute_wrongly_it_refuses(tmp_path: Path, name: str, reader: str) -> None:
    write_model(tmp_path, make())  # an expressible model was here before
    write_model(tmp_path, make(**EXTENDED[name]))
    with pytest.raises((OSError, ValueError)):
        getattr(transformers, reader).from_pretrained(tmp_path)
    assert load(tmp_path).config == make(**EXTENDED[name]).config


def test_an_expressible_model_over_an_extended_one_is_read_as_itself(tmp_path: Path) -> None:
    write_model(tmp_path, make(head_bias=True))
    write_model(tmp_path, make(seed=1))
    assert same(load(tmp_path), make(seed=1))
    assert not (tmp_path / names.EXTENDED_WEIGHTS).exists()


def test_names_and_shapes_are_those_of_the_published_gpt2(assets: Path) -> None:
    published = json.loads((assets / "gpt2_124M_tensor_sha256.json").read_text(encoding="utf-8"))["tensors"]
    with torch.device("meta"):
        module = GPT(GPTConfig())
    written = {name: list(shape) for name, shape in shapes_as_stored(module).items()}
    assert written == {name: entry["shape"] for name, entry in published.items()}
    assert {names.plain_name(name) for name in published} == set(names.expected_shapes(GPTConfig()))


def shapes_as_stored(module: GPT) -> dict[str, torch.Size]:
    """hf_tensors on the meta device, whose `.cpu()` cannot be."""
    small = GPT(GPTConfig(n_layer=module.config.n_layer, n_head=12, n_embd=12, vocab_size=70, context_length=9))
    stored = [name for name, _ in native.hf_tensors(small.config, state_of(small))]
    state = state_of(module)
    shapes = {}
    for name in stored:
        plain = names.plain_name(name)
        shape = state[plain].shape if plain != "wte.weight" else torch.Size((module.config.vocab_size, 768))
        shapes[name] = shape[::-1] if plain.endswith(names.CONV1D) else shape
    return shapes


@pytest.mark.parametrize("prefix", ["", "transformer.", "_orig_mod.", "_orig_mod.transformer.", "module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    write_model(tmp_path)
    rewrite(tmp_path, lambda tensors: {prefix + name.removeprefix("transformer."): t for name, t in tensors.items()})
    assert same(load(tmp_path), make())


def test_mask_buffers_and_a_stored_tied_head_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path)
    extra = {
        "h.0.attn.bias": torch.ones(1, 1, 64, 64),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
        "lm_head.weight": torch.zeros(257, 32),
    }
    rewrite(tmp_path, lambda tensors: tensors | extra)
    assert same(load(tmp_path), make())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "2019"])
def test_an_old_pickled_weight_file_is_read(tmp_path: Path, zipped: bool) -> None:
    write_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (tmp_path / "model.safetensors").unlink()
    assert same(load(tmp_path), make())


class Trap:
    """Runs a command when it is unpickled with code enabled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "2019", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "it ran"
    content = {"wte.weight": torch.zeros(2), "trap": Trap(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(UserError, match="not a plain PyTorch weight file"):
        load(tmp_path)
    assert not mark.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists()  # the trap works


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no table of names and tensors"):
        load(tmp_path)


def shard(folder: Path) -> list[Path]:
    """Split model.safetensors in two, as transformers splits large models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where: dict[str, str] = {}
    for number in range(2):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        part = {key: tensor for place, (key, tensor) in enumerate(tensors.items()) if place % 2 == number}
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    return sorted(folder.glob("model-*.safetensors"))


def test_sharded_weights_are_read_by_their_index(tmp_path: Path) -> None:
    write_model(tmp_path)
    shards = shard(tmp_path)
    assert same(load(tmp_path), make())
    shards[0].unlink()
    with pytest.raises(UserError, match=f"missing {shards[0].name} beside it"):
        load(tmp_path)


@pytest.mark.parametrize("config", [TINY, replace(TINY, head_bias=True)], ids=["expressible", "extended"])
def test_a_large_model_is_written_in_several_files_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: GPTConfig
) -> None:
    model = make(config)
    largest = 4 * max(parameter.numel() for parameter in model.parameters())
    with monkeypatch.context() as patch:
        patch.setattr(write_weights.write_weights, "__defaults__", (largest,))
        write_model(tmp_path, model)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and all(path.stat().st_size < largest + 4096 for path in files)
    assert same(load(tmp_path), model)
    if not config.head_bias:
        theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
        assert torch.allclose(theirs(TOKENS).logits, model(TOKENS), atol=1e-5)
    write_model(tmp_path, make(seed=1))  # a small one in its place leaves nothing of it
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert same(load(tmp_path), make(seed=1))
    model = make(config, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(write_weights.write_weights, "__defaults__", (largest,))
        write_model(tmp_path, model)
    assert same(load(tmp_path), model)


def test_a_save_in_several_files_that_breaks_off_leaves_the_model_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 4 * max(parameter.numel() for parameter in make().parameters())
    monkeypatch.setattr(write_weights.write_weights, "__defaults__", (largest,))
    mine = [tmp_path / "model-fp16.safetensors", tmp_path / "weights-old.safetensors"]
    for path in mine:
        path.write_text("a file of the user's")
    write_model(tmp_path, make())
    before = {path.name for path in tmp_path.iterdir()}

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(3):
            yield str(number), torch.ones(largest // 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_weights.write_weights(tmp_path, "model.safetensors", broken())
    assert {path.name for path in tmp_path.iterdir()} == before
    assert same(load(tmp_path), make())
    for seed in (1, 2, 3):
        write_model(tmp_path, make(seed=seed))
        assert same(load(tmp_path), make(seed=seed))
        assert len(list(tmp_path.glob("model-*"))) == len([name for name in before if name.startswith("model-")])
    assert all(path.read_text() == "a file of the user's" for path in mine)


def test_tensors_that_come_one_by_one_are_not_held_together(tmp_path: Path) -> None:
    """As of a checkpoint of many processes: no more of them is alive than one file has."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(40):
            tensor = torch.ones(1000)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield str(number), tensor

    write_weights.write_weights(tmp_path, "model.safetensors", tensors(), most=5 * 4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 8
    assert most <= 6  # and the one that had no room


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "outside its folder"),
        ("{}", "damaged"),
        ("[1]", "damaged"),
        ('{"weight_map": {}}', "lists no file"),
        ("no", "damaged"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def without(name: str):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def test_missing_and_wrong_tensors_are_named_in_one_line(tmp_path: Path) -> None:
    write_model(tmp_path)
    name = "transformer.h.1.mlp.c_fc.weight"
    rewrite(tmp_path, lambda tensors: without("transformer.ln_f.bias")(tensors) | {name: torch.zeros(32, 64)})
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: the weights do not fit config.json: missing ln_f.bias; wrong shape {name} ")
    assert message.endswith("(64, 32) instead of (128, 32)")
    assert "\n" not in message


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    write_model(tmp_path)
    rewrite(tmp_path, lambda tensors: {"transformer.wte.weight": tensors["transformer.wte.weight"]})
    with pytest.raises(UserError, match=r"missing wpe.weight, .* and 24 more$"):
        load(tmp_path)


def test_unexpected_tensors_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"summary.weight": torch.zeros(2, 32)})
    assert same(load(tmp_path), make())
    assert "ignored tensors that are no part of the model: summary.weight" in capsys.readouterr().err


def test_biases_of_a_model_without_are_left_out_where_they_are_zero_and_refused_where_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, make(bias=False))
    load(tmp_path)
    assert capsys.readouterr().err == ""
    rewrite(tmp_path, lambda tensors: tensors | {"transformer.ln_f.bias": torch.ones(32)})
    with pytest.raises(UserError, match=r"not zero though bias = false transformer\.ln_f\.bias"):
        load(tmp_path)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    write_model(tmp_path)
    rewrite(tmp_path, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.float32}


def test_a_damaged_weight_file_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load(tmp_path)


def test_a_folder_without_weights_names_what_was_looked_for(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights \(looked for model.safetensors, .*pytorch_model.bin\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "relu"}, "'relu' is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights = false"),
        ({"add_cross_attention": True}, "cross attention"),
        ({"n_layer": "2"}, "n_layer = '2': must be a whole number"),
        ({"n_layer": 0}, "n_layer = 0"),
    ],
)
def test_configs_of_other_architectures_are_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hf_config.config_from_hf(hf_config.config_to_hf(TINY) | change, "config.json")


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "not a table"), ("{}", "'n_layer'")])
def test_a_damaged_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        hf_config.read_config(tmp_path)


def test_configs_that_transformers_writes_are_read() -> None:
    values = transformers.GPT2Config(n_layer=3, activation_function="gelu", resid_pdrop=0.2).to_dict()
    config = hf_config.config_from_hf(values, "config.json")
    assert config == GPTConfig(n_layer=3, activation="gelu_erf", dropout=0.2)


CONFIGS = st.builds(
    lambda heads, width, pattern, band, stride, **others: GPTConfig(
        n_head=heads,
        n_embd=heads * width,
        attention_pattern=pattern,
        band_width=band if "banded" in pattern else 0,
        attention_stride=stride if "strided" in pattern else 0,
        **others,
    ),
    heads=st.integers(1, 8),
    width=st.integers(1, 64),
    n_layer=st.integers(1, 96),
    n_inner=st.integers(0, 500),
    head_dim=st.integers(0, 200),
    vocab_size=st.integers(1, 60000),
    context_length=st.integers(1, 4096),
    dropout=st.floats(0, 0.99),
    bias=st.booleans(),
    norm_eps=st.floats(1e-8, 1e-3),
    activation=st.sampled_from(["gelu_tanh", "gelu_erf"]),
    tie_head=st.booleans(),
    head_bias=st.booleans(),
    init_std=st.floats(1e-4, 1),
    scale_by_layer=st.booleans(),
    pattern=st.lists(st.sampled_from(ATTENTION_KINDS), min_size=1, max_size=3).map(tuple),
    band=st.integers(1, 5000),
    stride=st.integers(1, 5000),
)


@given(CONFIGS)
def test_every_config_survives_the_way_through_config_json(config: GPTConfig) -> None:
    values = json.loads(json.dumps(hf_config.config_to_hf(config, 0)))
    again = hf_config.config_from_hf(values, "config.json")
    if hf_config.hf_can_express(config):  # there the pattern can only be dense throughout
        assert again.attention_pattern == ("dense",)
        config = GPTConfig(**{**config.__dict__, "attention_pattern": ("dense",)})
    assert again == config


@pytest.mark.parametrize("changes", [{}, {"head_bias": True}], ids=["gpt2", "extended"])
def test_a_folder_holds_card_and_tokenizer_and_nothing_half_written(tmp_path: Path, changes: dict[str, bool]) -> None:
    module = make(**changes)
    native.write_folder(tmp_path, module.config, state_of(module), BYTES, {"Steps": 12})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "| Steps | 12 |" in card and f"{module.parameter_count():,}" in card
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "README.md", "vocab.json", "merges.txt", "tokenizer.json"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert hf_config.read_config(tmp_path) == module.config


def test_config_json_names_end_of_text_and_the_true_vocabulary(tmp_path: Path) -> None:
    write_model(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (values["bos_token_id"], values["eos_token_id"], values["vocab_size"]) == (256, 256, 257)
    assert load_file(tmp_path / "model.safetensors")["transformer.wte.weight"].shape == (257, 32)


def test_transformers_own_pipeline_of_tokenizer_and_model_writes_what_ours_writes(tmp_path: Path) -> None:
    import gpt2

    write_model(tmp_path, make(scale=15.0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = tokenizer("Once", return_tensors="pt")
    model.generation_config.eos_token_id = None
    written = model.generate(**prompt, do_sample=False, max_new_tokens=30, pad_token_id=0)
    exact = gpt2.load(tmp_path, weights="float32")
    (ours,) = exact.results(["Once"], temperature=0, max_new_tokens=30, ignore_eot=True)
    assert written[0, 4:].tolist() == ours.tokens


def test_a_full_disk_leaves_the_old_file_and_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors
    import safetensors.torch

    def full(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    write_model(tmp_path)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_model(tmp_path, make(seed=1))
    assert same(load(tmp_path), make())
    assert math.isfinite(float(load(tmp_path)(TOKENS).detach().sum()))
