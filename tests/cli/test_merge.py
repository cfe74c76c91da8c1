"""gpt2 merge makes one folder of base and adapter; --adapter and adapter folders load wherever a model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BYTES, make, write_model

from gpt2 import api
from gpt2.checkpoint.adapters import write_adapter
from gpt2.cli.main import main
from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.lora import LoRAConfig, apply_lora, lora_parameters

IDS = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(1))
LORA = LoRAConfig(rank=4, alpha=8)
GREEDY: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0.0, "ignore_eot": True}


def write(folder: Path, base: str, seed: int = 3, **shape: Any) -> tuple[Path, GPT]:
    """An adapter that does something, and the base with it."""
    module = make(scale=3.0, **shape)
    torch.manual_seed(seed)
    apply_lora(module, LORA)
    for parameter in lora_parameters(module).values():
        torch.nn.init.normal_(parameter, std=0.3)
    write_adapter(folder, LORA, dict(lora_parameters(module)), base)
    return folder, module


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", make(scale=3.0))


@torch.no_grad()
def test_a_merged_folder_computes_the_same_here_and_in_transformers(base: Path, tmp_path: Path) -> None:
    import transformers

    adapter, module = write(tmp_path / "adapter", str(base))
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    merged = api.load(tmp_path / "merged")
    torch.testing.assert_close(merged.module(IDS), module(IDS), rtol=0, atol=1e-5)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(theirs.eval()(IDS).logits, module(IDS), rtol=0, atol=1e-5)
    assert merged.tokenizer.hash == BYTES.hash


@torch.no_grad()
def test_an_adapters_folder_loads_over_the_base_that_it_names(base: Path, tmp_path: Path) -> None:
    adapter, module = write(tmp_path / "adapter", "../base")
    for model in (api.load(adapter), api.load(base, adapter=adapter), api.load(adapter=adapter)):
        torch.testing.assert_close(model.module(IDS), module(IDS), rtol=0, atol=1e-5)
        assert model.folder is not None and model.folder.resolve() == base.resolve()


def test_all_ways_to_load_an_adapter_write_the_same(base: Path, tmp_path: Path) -> None:
    one, _ = write(tmp_path / "one", str(base))
    two, _ = write(tmp_path / "two", str(base), seed=4)
    alone = [api.load(base, weights="float32", adapter=a).generate("abc", **GREEDY) for a in (None, one, two)]
    assert len(set(alone)) == 3
    several = api.load(base, weights="float32", adapter=[one, two])
    together = several.results(["abc"] * 3, adapter=[0, 1, 2], **GREEDY)
    assert [result.text for result in together] == alone
    assert several.generate("abc", adapter=2, **GREEDY) == alone[2]


def test_a_file_of_prompts_may_name_an_adapter_for_each(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (str(write(tmp_path / name, str(base), seed)[0]) for seed, name in ((3, "one"), (4, "two")))
    lines = [{"prompt": "abc", **({"adapter": name} if name else {}), "id": name} for name in (None, one, two)]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "texts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [
        "--weights",
        "float32",
        "--temperature",
        "0",
        "--max-new-tokens",
        "10",
        "--ignore-eot",
        "--model",
        str(base),
    ]
    assert main(["generate", *flags, "--input", str(prompts), "--output", str(out)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    texts = {line.get("adapter"): line["text"] for line in found}
    for name in (None, one, two):
        assert texts[name] == api.load(base, weights="float32", adapter=name).generate("abc", **GREEDY)
    assert main(["generate", *flags, "--adapter", one, "--input", str(prompts), "--output", str(out)]) == 2
    assert "adapters of their own" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_quantised_and_inspected_models_have_the_adapter_in_them(weights: str, base: Path, tmp_path: Path) -> None:
    adapter, _ = write(tmp_path / "adapter", str(base))
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    for source, out in ((adapter, "a"), (tmp_path / "merged", "b")):
        assert main(["quantize", str(source), str(tmp_path / out), "--tokens", "64"]) == 0
    left, right = ((tmp_path / name / "quantized.safetensors").read_bytes() for name in "ab")
    assert abs(len(left) - len(right)) == 0 and sum(a != b for a, b in zip(left, right, strict=True)) < len(left) / 100


def test_what_cannot_be_merged_or_loaded_is_a_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, _ = write(tmp_path / "adapter", str(base))
    out = str(tmp_path / "out")
    wide = write_model(tmp_path / "wide", make(n_embd=64, head_dim=0, n_inner=0))
    nowhere, _ = write(tmp_path / "nowhere", "")
    lost, _ = write(tmp_path / "lost", "/no/such/base")
    nested, _ = write(tmp_path / "nested", str(adapter))
    assert main(["quantize", str(base), str(tmp_path / "int8"), "--tokens", "64"]) == 0
    capsys.readouterr()
    for words, message in (
        (["merge", str(base), out], "no adapter"),
        (["merge", str(adapter), str(base)], "not empty"),
        (["merge", str(adapter), out, "--base", str(wide)], "does not fit this base"),
        (["merge", str(adapter), out, "--base", str(tmp_path / "int8")], "packed"),
        (["merge", str(nowhere), out], "does not say what model it belongs to"),
        (["merge", str(lost), out], "its base is not here"),
        (["merge", str(nested), out], "is an adapter too"),
        (["generate", "--model", str(adapter), "--adapter", str(adapter), "a"], "an adapter itself"),
        (["generate", "--model", str(wide), "--adapter", str(adapter), "a"], "does not fit this base"),
        (["generate", "--model", str(base), "--adapter", str(base), "a"], "no adapter"),
    ):
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    assert not Path(out).exists()
    with pytest.raises(UserError, match="does not fit this base"):
        api.load(wide, adapter=[adapter])


@torch.no_grad()
def test_a_classifiers_adapter_is_merged_with_its_head(base: Path, tmp_path: Path) -> None:
    from gpt2.checkpoint.classifier import read_classifier, write_classifier_adapter

    module = make(scale=3.0)
    apply_lora(module, LORA)
    state = {name: torch.randn_like(p) * 0.1 for name, p in lora_parameters(module).items()}
    state["score.weight"] = torch.randn(3, module.config.n_embd)
    write_classifier_adapter(tmp_path / "a", LORA, state, ["x", "y", "z"], str(base))
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "merged")]) == 0
    texts = [[1, 2, 3], [4, 5]]
    merged, apart = read_classifier(tmp_path / "merged"), read_classifier(tmp_path / "a")
    assert merged.labels == ("x", "y", "z")
    torch.testing.assert_close(merged.logits(texts), apart.logits(texts), rtol=0, atol=1e-5)
