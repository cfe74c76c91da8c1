"""Which runner writes with a model: the processor's kernels where they can, else torch, with a line that says so."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import UserError, did_you_mean
from gpt2.inference.pages import pages_for
from gpt2.inference.request import Span
from gpt2.model.config import GPTConfig
from gpt2.runtime import check_jit, pick_device, pick_dtype, say

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter
    from gpt2.checkpoint.packed import PackedModel
    from gpt2.inference.runners.cpu import CpuRunner
    from gpt2.inference.runners.torch import TorchRunner
    from gpt2.model.gpt import GPT

KV = ("auto", "float32", "bfloat16", "int8")
DEFAULT = "int8"  # the weights that `auto` makes of float ones
COMPILING = "compiling the kernels for this processor, once, about 25 s"


class KernelsFail(Exception):
    """The processor's kernels were tried and do not work here."""


@dataclass(frozen=True)
class Way:
    """How a model writes here: by the kernels with `weights`, or by torch (on a processor for a `reason`)."""

    device: str
    kernels: bool
    weights: str = ""
    reason: str = ""


def choose_path(folder: Path, device: str, dtype: str, weights: str, kv: str) -> Way:
    """What the user's settings come to here; UserError for those that are unknown or contradict each other."""
    check_names(dtype, weights, kv)
    device = pick_device(device)
    held = held_weights(folder)
    if device != "cpu":
        _refuse_elsewhere(device, weights, kv)
        return Way(device, kernels=False)
    if held and weights not in ("auto", held):
        raise UserError(f"--weights {weights}: {folder} holds {held} only; name the folder that it was made from")
    if dtype in ("float16", "fp16"):
        _refuse_beside_float16(weights, kv)
        return Way(device, kernels=False, reason="they have no float16")
    reason = kernels_problem()
    named = {"bfloat16": "bfloat16", "bf16": "bfloat16"}.get(dtype, DEFAULT) if weights == "auto" else weights
    return Way(device, not reason, held or named, reason)


def check_names(dtype: str, weights: str, kv: str) -> None:
    """UserError for a name that is none of a dtype, of weights, or of keys and values."""
    if dtype != "auto":
        pick_dtype(dtype, "cpu")
    if weights != "auto":
        from gpt2.checkpoint.packed import check_format

        check_format(weights)
    if kv not in KV:
        raise UserError(f"--kv {kv}: unknown{did_you_mean(kv, KV)}; choose {', '.join(KV)}")


def held_weights(folder: Path) -> str:
    """The format of a packed folder's weights; empty for a folder of floats."""
    from gpt2.checkpoint.packed import is_packed, read_packed

    return read_packed(folder).weights if is_packed(folder) else ""


@functools.cache
def kernels_problem() -> str:
    """Why the processor's kernels cannot be used here, as far as that shows without running one; else empty."""
    try:
        check_jit()
        import gpt2.inference.runners.cpu  # noqa: F401
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # a numba that does not fit numpy fails in many ways
        return f"{type(error).__name__}: {error}"
    return ""


def compiled() -> bool:
    """Whether the kernels were compiled before."""
    from gpt2.kernels import cache

    return any(cache.folder().glob("*/cpu.take_part*.nbc"))


def read_weights(folder: Path, config: GPTConfig, weights: str, adapter: Adapter | None = None) -> PackedModel:
    """The model as the kernels read it: mapped where the folder holds it so, else packed now, an adapter within."""
    from gpt2.checkpoint.packed import is_packed, pack_folder, read_packed

    if not compiled():
        say(COMPILING)
    return read_packed(folder) if is_packed(folder) else pack_folder(folder, config, weights, adapter=adapter)


def cpu_runner(
    model: PackedModel, streams: int, kv: str, vocab_size: int, adapters: Sequence[Adapter] = ()
) -> CpuRunner:
    """The processor's runner, with room for so many texts of full length; KernelsFail if one token is too much for it.

    That token also brings the weights into memory; the compiler, which it loads, may then leave it.
    """
    from gpt2.inference.runners.cpu import CpuRunner
    from gpt2.kernels.memory import let_go_of_compiler

    pages = streams * pages_for(model.config.context_length)
    try:
        runner = CpuRunner(model, pages, None if kv == "auto" else kv, vocab_size=vocab_size, adapters=adapters)
        runner.step([Span([0], 0, [0], ring=range(runner.rings.each))])
        let_go_of_compiler()
    except UserError:
        raise
    except Exception as error:
        raise KernelsFail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return runner


def torch_runner(module: GPT, streams: int, vocab_size: int, adapters: Sequence[Adapter] = ()) -> TorchRunner:
    """The runner through the model's own lines, with room for so many texts of full length."""
    from gpt2.inference.runners.torch import TorchRunner

    pages = streams * pages_for(module.config.context_length)
    return TorchRunner(module, pages, vocab_size=vocab_size, adapters=adapters)


def unpacked_module(folder: Path) -> GPT:
    """A packed folder's weights in a torch module, for where the kernels cannot be used."""
    import torch

    from gpt2.checkpoint.native import pad_vocabulary
    from gpt2.checkpoint.packed import read_packed, unpack_state
    from gpt2.model.gpt import GPT

    model = read_packed(folder)
    module = GPT(model.config)
    state = {name: pad_vocabulary(name, torch.tensor(array), model.config) for name, array in unpack_state(model)}
    module.load_state_dict(state, strict=False)
    return module.eval()


def _refuse_beside_float16(weights: str, kv: str) -> None:
    """On a processor only torch has float16, and it knows neither of these."""
    for flag, value in (("--weights", weights), ("--kv", kv)):
        if value != "auto":
            raise UserError(f"{flag} {value}: does not go with --dtype float16; leave one out")


def _refuse_elsewhere(device: str, weights: str, kv: str) -> None:
    """On a GPU torch writes, in the dtype that was named."""
    for flag, value in (("--weights", weights), ("--kv", kv)):
        if value not in ("auto", "float32"):
            raise UserError(f"{flag} {value}: only a processor has it; on {device} take --dtype, or --device cpu")
