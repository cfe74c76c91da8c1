"""`gpt2.load` and what it returns: one object with config, tokenizer and weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.checkpoint.adapters import Adapter, base_folder, has_tokenizer, is_adapter, read_adapter
from gpt2.checkpoint.find import find_folder, newest_model
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.packed import is_packed
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.runtime import pick_device, pick_dtype, say
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer

if TYPE_CHECKING:
    from gpt2.checkpoint.packed import PackedModel
    from gpt2.inference.engine import Engine
    from gpt2.inference.rows import Overflow, Prompt, Result
    from gpt2.inference.runners.base import Runner
    from gpt2.model.gpt import GPT


class Model:
    """A GPT that can write: `.config`, `.tokenizer`, and `.module`, the torch module, made on first use.

    A model of a folder writes with the folder's weights: on a processor in the form that `weights` names (`auto`:
    int8, or what a packed folder holds) with keys and values as `kv` says, elsewhere through torch in `dtype`. A model
    of a module in memory writes through that module, as it is.

    `adapter` is folded into the folder's weights as they are read. `adapters` stay beside them, numbered from 1 on:
    `results(prompts, adapter=[0, 1, 2])` writes with several in one batch, 0 being none.
    """

    def __init__(
        self,
        config: GPTConfig,
        tokenizer: Tokenizer,
        module: GPT | None = None,
        folder: Path | None = None,
        device: str = "auto",
        dtype: str = "float32",
        weights: str = "auto",
        kv: str = "auto",
        adapter: Adapter | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        if module is None and folder is None:
            raise ValueError("a Model needs a module or a folder to read it from")
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"{folder or 'model'}: the tokenizer has {tokenizer.vocab_size} tokens, "
                f"the model {config.vocab_size}: they do not belong together"
            )
        self.config, self.tokenizer, self.folder = config, tokenizer, folder
        self.device, self.dtype, self.weights, self.kv = device, dtype, weights, kv
        self.adapter, self.adapters = adapter, tuple(adapters)
        self._module = module
        self._packed: PackedModel | None = None
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    @property
    def module(self) -> GPT:
        """The torch module in evaluation mode; UserError where the folder holds packed weights."""
        if self._module is None:
            from gpt2.checkpoint.packed import is_packed

            assert self.folder is not None
            if is_packed(self.folder):
                raise UserError(f"{self.folder}: its weights are packed, for writing; this needs the float ones")
            self._module = self._placed(packed=False)
        return self._module

    def runner(self, streams: int = 16) -> Runner:
        """What writes: a new runner with room for so many texts of full length. One line on stderr says which."""
        from gpt2.inference.runners import select

        vocab_size = self.tokenizer.vocab_size
        if self.folder is None:
            return select.torch_runner(self.module, streams, vocab_size, self.adapters)
        way = select.choose_path(self.folder, self.device, self.dtype, self.weights, self.kv)
        reason = way.reason
        if way.kernels:
            try:
                return select.cpu_runner(self._read_packed(way.weights), streams, self.kv, vocab_size, self.adapters)
            except select.KernelsFail as error:
                reason = str(error)
        writer = f"torch does, in {pick_dtype(self.dtype, way.device)}"
        say(f"the kernels cannot write here ({reason}): {writer}" if reason else f"torch writes on {way.device}")
        module = self._placed(packed=True) if select.held_weights(self.folder) else self.module
        return select.torch_runner(module, streams, vocab_size, self.adapters)

    def generate(self, prompt: str = "", overflow: Overflow = "slide", adapter: int = 0, **settings: Any) -> str:
        """The prompt's continuation as text; settings are the fields of SamplingParams. `results` gives more."""
        return "".join(self.stream(prompt, overflow, adapter, **settings))

    def results(
        self, prompts: Sequence[Prompt], overflow: Overflow = "slide", adapter: int | Sequence[int] = 0, **settings: Any
    ) -> list[Result]:
        """Every prompt's `n` continuations with tokens, log-probabilities and why they ended; see Result.

        `adapter` is the number of one of `adapters` for all prompts, or one for each; 0 is none.
        """
        from gpt2.inference.sampling import SamplingParams

        params = SamplingParams(**settings)
        return self.engine(len(prompts) * params.n).generate(prompts, params, overflow, adapter)

    def stream(
        self, prompt: str = "", overflow: Overflow = "slide", adapter: int = 0, **settings: Any
    ) -> Iterator[str]:
        """`generate`, piece by piece as it is written."""
        from gpt2.inference.sampling import SamplingParams

        for name in {"n", "logprobs"} & settings.keys():
            raise UserError(f"{name}: this gives one text; model.results([prompt], {name}=...) gives all there is")
        for piece in self.engine(1).stream([prompt], SamplingParams(**settings), overflow, adapter):
            yield piece.text

    def engine(self, texts: int = 16) -> Engine:
        """The engine behind these, for so many texts at a time and at most 16; kept, and made anew when too small."""
        from gpt2.inference.engine import Engine
        from gpt2.inference.scheduler import MAX_STREAMS

        streams = MAX_STREAMS if self._on_processor else max(1, min(texts, MAX_STREAMS))
        with self._lock:
            if self._engine is None or self._engine.max_streams < streams:
                self._engine = Engine(self, streams)
            return self._engine

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder (float32 weights); returns its path."""
        from gpt2.checkpoint.native import write_folder

        path = Path(folder)
        state = {name: tensor.detach().float() for name, tensor in self.module.named_parameters()}
        write_folder(path, self.config, state, self.tokenizer)
        return path

    @property
    def _on_processor(self) -> bool:
        """Whether pages cost no memory before they are written on."""
        if self.folder is None:
            return self.module.wte.weight.device.type == "cpu"
        return pick_device(self.device) == "cpu"

    def _placed(self, packed: bool) -> GPT:
        """The folder's weights as a torch module on the device and in the dtype that were asked for."""
        import torch

        from gpt2.checkpoint.adapters import merge_into
        from gpt2.checkpoint.native import load_module
        from gpt2.inference.runners.select import unpacked_module

        assert self.folder is not None
        device = pick_device(self.device)
        dtype = getattr(torch, pick_dtype(self.dtype, device))
        module = unpacked_module(self.folder) if packed else load_module(self.folder, self.config)
        if self.adapter:
            merge_into(module, self.adapter)
        return module.to(device=device, dtype=dtype)

    def _read_packed(self, weights: str) -> PackedModel:
        """The weights for the kernels, read once; one line where they are not what lies in the folder."""
        from gpt2.inference.runners import select

        assert self.folder is not None
        if self._packed is None:
            if self.weights == "auto" and not select.held_weights(self.folder):
                say(f"{weights} weights for writing; --weights float32 undoes it")
            self._packed = select.read_weights(self.folder, self.config, weights, self.adapter)
        return self._packed

    def __repr__(self) -> str:
        shape = f"{self.config.n_layer} layers of {self.config.n_embd}"
        return f"<gpt2.Model {shape}, vocabulary {self.config.vocab_size}, context {self.config.context_length}>"


def load(
    name: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    weights: str = "auto",
    kv: str = "auto",
    adapter: str | Path | Sequence[str | Path] | None = None,
) -> Model:
    """Load a model folder, a run folder, or a Hugging Face id; without a name, the newest model here.

    `adapter` names a LoRA adapter in PEFT's form, which is folded into the weights; a list of them stays beside, to
    write with several at once (see Model). A name that is itself an adapter is loaded over the base that it names, and
    so is `adapter` where there is no name.

    `weights` and `kv` (keys and values) are for writing on a processor: auto, float32, bfloat16, int8, and for
    weights int4 and int4-head too. Nothing heavy is read before `.module` is used or something written. Raises
    UserError if the model cannot be found or does not fit.
    """
    one = isinstance(adapter, str | Path)
    folder, adapters = with_base(name, [adapter] if one else adapter or ())  # type: ignore[list-item, arg-type]
    folded = adapters.pop() if one or (adapters and not adapter) else None
    config = read_config(folder)
    for each in [folded, *adapters]:
        if each is not None:
            check_adapter(each, folder, config)
    speaker = folded.folder if folded and folded.folder and has_tokenizer(folded.folder) else folder
    words = load_tokenizer(speaker)
    return Model(config, words, None, folder, device, dtype, weights, kv, adapter=folded, adapters=adapters)


def with_base(name: str | Path | None, names: Sequence[str | Path]) -> tuple[Path, list[Adapter]]:
    """The folder of the base, and the adapters over it: those of these names, or `name` itself where it is one."""
    adapters = [read_adapter(find_folder(each)) for each in names]
    if name is None:
        folder = base_folder(adapters[0]) if adapters else newest_model()
    else:
        folder = find_folder(name)
    if not is_adapter(folder):
        return folder, adapters
    if adapters:
        raise UserError(f"{name or folder}: an adapter itself; name the base of both, or leave --adapter out")
    adapters = [read_adapter(folder)]
    return base_folder(adapters[0]), adapters


def check_adapter(adapter: Adapter, folder: Path, config: GPTConfig) -> None:
    """UserError for an adapter that does not fit the base, or a base that cannot take one."""
    if is_packed(folder):
        raise UserError(
            f"{folder}: its weights are packed; an adapter goes over the float ones that they were made from"
        )
    adapter.check(config)
