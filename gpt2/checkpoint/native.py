"""A model folder is a Hugging Face folder: config.json, model.safetensors (HF's names and orientation), tokenizer.

What transformers' GPT-2 cannot express (a head bias, an attention width of its own, banded layers) is written
under `model_type: gpt2-extended` with the weights in weights.safetensors, a name no GPT-2 reader looks for.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import atomic
from gpt2.checkpoint.card import model_card
from gpt2.checkpoint.hf_config import config_to_hf, hf_can_express
from gpt2.checkpoint.names import CONV1D, EXTENDED_WEIGHTS, PACKED_WEIGHTS, fitting, weight_files
from gpt2.checkpoint.write_weights import remove_weights, write_weights
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.model.gpt import GPT
    from gpt2.tokenizer.bpe import Tokenizer


def read_weights(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """The folder's tensors under our names, in `nn.Linear` orientation, float32, vocabulary padded.

    Missing tensors and wrong shapes raise one UserError; unexpected ones are named on stderr and left out.
    """
    return {name: in_memory(name, tensor, config) for name, tensor in fitting(folder, config, stored_tensors(folder))}


def weight_reader(folder: Path, config: GPTConfig) -> Callable[[str], Tensor]:
    """The same one by one, by name, in any order: until it is asked for a tensor lies in its mapped file."""
    stored = dict(fitting(folder, config, stored_tensors(folder)))
    return lambda name: in_memory(name, stored[name], config)


def load_module(folder: Path, config: GPTConfig) -> GPT:
    """The folder's weights in a GPT, in float32 on the processor and in evaluation mode."""
    import torch

    from gpt2.model.gpt import GPT

    with torch.device("meta"):
        module = GPT(config)
    module.load_state_dict(read_weights(folder, config), assign=True, strict=False)
    if config.tie_head:
        module.lm_head.weight = module.wte.weight
    return module.eval()


def write_folder(
    folder: Path,
    config: GPTConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    notes: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder from our names and orientation; each file is replaced atomically, config.json last.

    `settings` are further keys of config.json, or other values for its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, other = ("model.safetensors", EXTENDED_WEIGHTS)[:: 1 if hf_can_express(config) else -1]
    write_weights(folder, name, hf_tensors(config, state))
    if tokenizer is not None:
        from gpt2.tokenizer.files import save_tokenizer

        save_tokenizer(tokenizer, folder)
    eot_id = tokenizer.eot_id if tokenizer else None
    values = config_to_hf(config, eot_id) | dict(settings or {})
    generation = {"bos_token_id": eot_id, "eos_token_id": eot_id, "do_sample": True}
    atomic.write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    atomic.write_text(folder / "README.md", model_card(config, notes or {}, list(values.get("id2label", {}).values())))
    atomic.write_text(folder / "config.json", json.dumps(values, indent=2) + "\n")
    remove_weights(folder, other)  # of a model that was here before
    (folder / PACKED_WEIGHTS).unlink(missing_ok=True)


def hf_tensors(config: GPTConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our tensors as HF stores them: `transformer.` names, Conv1D orientation, no padding rows, zero biases added."""
    import torch

    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_head:
            continue
        if name in ("wte.weight", "lm_head.weight", "lm_head.bias"):
            tensor = tensor[: config.vocab_size]
        stored = tensor.T if name.endswith(CONV1D) else tensor
        prefix = "" if name.startswith(("lm_head.", "score.")) else "transformer."
        yield prefix + name, stored.contiguous().cpu()
        if not config.bias and name.endswith(".weight") and (".ln_" in f".{name}" or name.endswith(CONV1D)):
            yield prefix + name.removesuffix("weight") + "bias", torch.zeros(tensor.shape[0])


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight file of a folder, one tensor in memory at a time where the format allows."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  (not a dict)
                        yield name, file.get_tensor(name)
            except SafetensorError as error:
                raise UserError(f"{path}: damaged or not safetensors ({error}); fetch or save it again") from None
        else:
            yield from pickled_tensors(path).items()


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """A PyTorch weight file, of today's form or that of 2019, without running what else a pickle may hold."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a plain PyTorch weight file ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path}: not a plain PyTorch weight file (it is no table of names and tensors)")
    return state


def in_memory(name: str, tensor: Tensor, config: GPTConfig) -> Tensor:
    """A stored tensor as a model holds it: float32, row after row, vocabulary padded."""
    import torch

    return pad_vocabulary(name, tensor.to(torch.float32).contiguous(), config)


def pad_vocabulary(name: str, tensor: Tensor, config: GPTConfig) -> Tensor:
    """Rows of zeros behind the vocabulary, as memory holds it."""
    if name not in ("wte.weight", "lm_head.weight", "lm_head.bias"):
        return tensor
    padded = tensor.new_zeros(config.padded_vocab_size, *tensor.shape[1:])
    padded[: config.vocab_size] = tensor
    return padded
