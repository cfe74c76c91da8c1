"""The benchmark's other engines get our model whole: their logits are ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import BYTES, TINY, make, state_of

from gpt2.checkpoint.native import write_folder
from gpt2.model.config import GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=4, n_embd=256, vocab_size=257, context_length=64)
IDS = list(b"The same weights go to every engine.")


@pytest.fixture(autouse=True)
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    module = make(CONFIG, scale=3.0)
    write_folder(tmp_path / "model", CONFIG, state_of(module), BYTES)
    return tmp_path / "model"


def ours() -> np.ndarray:
    with torch.no_grad():
        return make(CONFIG, scale=3.0)(torch.tensor([IDS]))[0, :, : CONFIG.vocab_size].numpy()


def distance(theirs: np.ndarray) -> float:
    return float(np.linalg.norm(theirs - ours()) / np.linalg.norm(ours()))


@pytest.mark.parametrize(("kind", "most"), [("f32", 0.002), ("bf16", 0.02), ("q8_0", 0.03), ("q4_0", 0.3)])
def test_llama_cpp_reads_our_weights(folder: Path, kind: str, most: float) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from peers.gguf_file import write_gguf
    from peers.llama import Llama

    engine = Llama(write_gguf(folder, folder / f"{kind}.gguf", kind), threads=1)
    assert distance(engine.logits(IDS)) < most
    engine.close()


def test_llama_cpps_four_bits_have_a_head_of_six(folder: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from peers.gguf_file import tensor_kinds, write_gguf

    kinds = tensor_kinds(write_gguf(folder, folder / "q4_0.gguf", "q4_0"))
    assert (kinds["token_embd.weight"], kinds["blk.0.attn_qkv.weight"]) == ("Q6_K", "Q4_0")
    assert not (folder / "q4_0.whole.gguf").exists()


@pytest.mark.parametrize(("kind", "most"), [("float32", 1e-5), ("int8", 0.05)])
def test_ctranslate2_reads_our_weights(folder: Path, kind: str, most: float) -> None:
    pytest.importorskip("ctranslate2")
    from peers.ct2 import CTranslate2
    from peers.ctranslate2_folder import write_ctranslate2

    engine = CTranslate2(write_ctranslate2(folder, folder / kind, kind), 1, kind)
    assert distance(engine.logits(IDS)) < most


def test_all_engines_write_the_same_tokens(folder: Path) -> None:
    for name in ("llama_cpp", "gguf", "ctranslate2"):
        pytest.importorskip(name)
    from peers.ct2 import CTranslate2
    from peers.ctranslate2_folder import write_ctranslate2
    from peers.gguf_file import write_gguf
    from peers.hf import Transformers
    from peers.llama import Llama

    engines = (
        Llama(write_gguf(folder, folder / "f32.gguf"), threads=1),
        CTranslate2(write_ctranslate2(folder, folder / "ct2"), 1, "float32"),
        Transformers(folder, 1, "float32"),
    )
    alone = []
    for engine in engines:
        tokens, times = engine.decode(IDS[:8], 20)
        texts, _ = engine.streams([IDS[:8], IDS[8:16]], 20)
        assert len(times) == 20
        assert texts[0] == tokens
        alone.append(tokens)
    assert alone[0] == alone[1] == alone[2]


def test_only_gpt2_as_published_goes_to_the_peers(tmp_path: Path) -> None:
    from peers.model_folder import read_arrays

    module = make(TINY, tie_head=False)
    write_folder(tmp_path / "untied", module.config, state_of(module), BYTES)
    with pytest.raises(AssertionError, match="published"):
        read_arrays(tmp_path / "untied")
