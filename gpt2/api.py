"""`gpt2.load` and what it returns: one object with config, tokenizer and weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.checkpoint.find import find_folder, newest_model
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module, write_folder
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.runtime import pick_device, pick_dtype
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer

if TYPE_CHECKING:
    from gpt2.inference.generate import Overflow, Prompt, Result
    from gpt2.model.gpt import GPT


class Model:
    """A GPT that can write: `.config`, `.tokenizer`, and `.module`, the torch module, made on first use."""

    def __init__(
        self,
        config: GPTConfig,
        tokenizer: Tokenizer,
        module: GPT | None = None,
        folder: Path | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        if module is None and folder is None:
            raise ValueError("a Model needs a module or a folder to read it from")
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{folder or 'model'}: the tokenizer has {tokenizer.vocab_size} tokens, "
                f"the model {config.vocab_size}: they do not belong together"
            )
        self.config, self.tokenizer, self.folder = config, tokenizer, folder
        self.device, self.dtype = device, dtype
        self._module = module

    @property
    def module(self) -> GPT:
        """The torch module in evaluation mode."""
        if self._module is None:
            import torch

            assert self.folder is not None
            device = pick_device(self.device)
            dtype = getattr(torch, pick_dtype(self.dtype, device))
            self._module = load_module(self.folder, self.config).to(device=device, dtype=dtype)
        return self._module

    def generate(self, prompt: str = "", overflow: Overflow = "slide", **settings: Any) -> str:
        """The prompt's continuation as text; settings are the fields of SamplingParams. `results` gives more."""
        return "".join(self.stream(prompt, overflow, **settings))

    def results(self, prompts: Sequence[Prompt], overflow: Overflow = "slide", **settings: Any) -> list[Result]:
        """Every prompt's `n` continuations with tokens, log-probabilities and why they ended; see Result."""
        from gpt2.inference.generate import generate
        from gpt2.inference.sampling import SamplingParams

        return generate(self.module, self.tokenizer, prompts, SamplingParams(**settings), overflow)

    def stream(self, prompt: str = "", overflow: Overflow = "slide", **settings: Any) -> Iterator[str]:
        """`generate`, piece by piece as it is written."""
        from gpt2.inference.generate import stream
        from gpt2.inference.sampling import SamplingParams

        for name in {"n", "logprobs"} & settings.keys():
            raise UserError(f"{name}: this gives one text; model.results([prompt], {name}=...) gives all there is")
        for piece in stream(self.module, self.tokenizer, [prompt], SamplingParams(**settings), overflow):
            yield piece.text

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder (float32 weights); returns its path."""
        path = Path(folder)
        state = {name: tensor.detach().float() for name, tensor in self.module.named_parameters()}
        write_folder(path, self.config, state, self.tokenizer)
        return path

    def __repr__(self) -> str:
        shape = f"{self.config.n_layer} layers of {self.config.n_embd}"
        return f"<gpt2.Model {shape}, vocabulary {self.config.vocab_size}, context {self.config.context_length}>"


def load(name: str | Path | None = None, device: str = "auto", dtype: str = "float32") -> Model:
    """Load a model folder, a run folder, or a Hugging Face id; without a name, the newest model here.

    Nothing heavy is read before `.module` is used. Raises UserError if it cannot be found or does not fit.
    """
    folder = find_folder(name) if name is not None else newest_model()
    return Model(read_config(folder), load_tokenizer(folder), folder=folder, device=device, dtype=dtype)
