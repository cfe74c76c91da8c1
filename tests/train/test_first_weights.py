"""The first weights of a model on a mesh: those of a lone process, and never whole in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import make, write_model

from gpt2.checkpoint.native import load_module
from gpt2.distributed.estimate import fake_processes
from gpt2.distributed.mesh import MeshSizes, make_mesh
from gpt2.distributed.parallelize import parallelize
from gpt2.distributed.shards import part
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.grow import grow_vocabulary
from gpt2.train.entries import entries
from gpt2.train.first_weights import Source, drawn, filler, skeleton, stored

MESHES = [MeshSizes(dp_shard=4), MeshSizes(tp=2), MeshSizes(dp_shard=2, tp=2), MeshSizes(dp_replicate=2, dp_shard=2)]


def laid_out(config: GPTConfig, sizes: MeshSizes, source: Source) -> dict[str, torch.Tensor]:
    """What the first process of a mesh gets."""
    with fake_processes(sizes.world_size):
        model = parallelize(skeleton(config), make_mesh(sizes, "cpu"), fill=filler(config, source))
        assert (model.lm_head.weight is model.wte.weight) == config.tie_head
        return {name: part(parameter) for name, parameter in model.named_parameters()}


def first_of(model: GPT, own: dict[str, torch.Tensor]) -> None:
    """The first process has the first rows, and the first columns, of everything."""
    whole = dict(entry for name, tensor in model.named_parameters() for entry in entries(name, tensor))
    assert own.keys() == whole.keys()
    for name, tensor in own.items():
        corner = whole[name][tuple(slice(size) for size in tensor.shape)]
        assert torch.equal(tensor, corner), name


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_drawn_weights_are_those_of_a_lone_process(sizes: MeshSizes, tied: bool) -> None:
    config = make(n_embd=32, n_head=4, vocab_size=333, tie_head=tied, head_bias=not tied).config
    torch.manual_seed(7)
    alone = GPT(config)
    dice = torch.get_rng_state()
    torch.manual_seed(7)
    own = laid_out(config, sizes, drawn(config))
    assert torch.equal(torch.get_rng_state(), dice)  # dropout goes on from the same numbers
    first_of(alone, own)
    assert sum(tensor.numel() for tensor in own.values()) < sum(p.numel() for p in alone.parameters())


def test_stored_weights_are_those_of_the_folder(tmp_path: Path) -> None:
    model = make(n_embd=32, n_head=4, vocab_size=333)
    write_model(tmp_path, model)
    own = laid_out(model.config, MESHES[2], stored(tmp_path, model.config))
    first_of(load_module(tmp_path, model.config), own)


@pytest.mark.parametrize("tied", [True, False])
def test_a_base_gets_the_same_new_rows_on_a_mesh(tmp_path: Path, tied: bool) -> None:
    base = make(n_embd=32, n_head=4, vocab_size=333, tie_head=tied, head_bias=not tied).config
    write_model(tmp_path, GPT(base))
    alone = load_module(tmp_path, base)
    grow_vocabulary(alone, 400, seed=5)
    assert alone.config.padded_vocab_size > base.padded_vocab_size
    first_of(alone, laid_out(alone.config, MESHES[2], stored(tmp_path, base, 400, seed=5)))


MEASURE = """
import sys
from pathlib import Path
from test_first_weights import laid_out
from gpt2.distributed.mesh import MeshSizes
from gpt2.model.config import GPTConfig
from gpt2.train.first_weights import drawn

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

def lay_out(layers):
    config = GPTConfig(n_layer=layers, n_head=8, n_embd=1024, vocab_size=1000, context_length=128)
    laid_out(config, MeshSizes(dp_shard=16), drawn(config))

lay_out(1)
before = peak()
lay_out(24)
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_no_process_holds_a_whole_model() -> None:
    here = Path(__file__).parent
    path = f"{here}:{here.parent}:{here.parents[1]}"
    found = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=here,
        env={"PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "1000000"},  # what is freed goes back: no holes in a heap
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    megabytes = float(found.stdout)  # a sixteenth of 1,152, and one block of 50 more than once
    assert megabytes < 250, megabytes
