"""llama.cpp through llama-cpp-python's bindings of its C interface: `llama_decode` and an argmax, nothing between."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

Array = np.ndarray
CONTEXT, CHUNK = 1024, 512


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """What llama.cpp says goes nowhere."""


def hush() -> None:
    """Stop llama.cpp's log, which else fills stderr."""
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))


class Llama:
    """One GGUF file, greedy. Times are those of `time.perf_counter`."""

    def __init__(self, path: Path, threads: int) -> None:
        hush()
        llama_cpp.llama_backend_init()
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.contexts: dict[int, ctypes.c_void_p] = {}
        self.batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)

    def close(self) -> None:
        """Give the memory back."""
        for context in self.contexts.values():
            llama_cpp.llama_free(context)
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_model_free(self.model)

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds to read the prompt, logits after its last token only."""
        context = self._context(1)
        start = time.perf_counter()
        self._read(context, [(0, ids)], 0, last_only=True)
        self._logits(context, 0).argmax()
        return time.perf_counter() - start

    def decode(self, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """The next `count` tokens and the time at which each was there."""
        context = self._context(1)
        self._read(context, [(0, prompt)], 0, last_only=True)
        tokens: list[int] = [int(self._logits(context, 0).argmax())]
        times = [time.perf_counter()]
        while len(tokens) < count:
            self._read(context, [(0, tokens[-1:])], len(prompt) + len(tokens) - 1, last_only=True)
            tokens.append(int(self._logits(context, 0).argmax()))
            times.append(time.perf_counter())
        return tokens, times

    def streams(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[list[list[int]], float]:
        """Continue all prompts (of one length) together, one sequence each; the texts and the seconds of it all."""
        context = self._context(len(prompts))
        start = time.perf_counter()
        self._read(context, list(enumerate(prompts)), 0, last_only=True)
        texts = [[self._best(context, row)] for row in range(len(prompts))]
        for position in range(len(prompts[0]), len(prompts[0]) + count - 1):
            self._read(context, [(row, text[-1:]) for row, text in enumerate(texts)], position, last_only=True)
            for row, text in enumerate(texts):
                text.append(self._best(context, row))
        return texts, time.perf_counter() - start

    def logits(self, ids: Sequence[int]) -> Array:
        """Logits after each token, (T, V)."""
        context = self._context(1)
        self._read(context, [(0, ids)], 0, last_only=False)
        return np.stack([self._logits(context, row) for row in range(len(ids))])

    def _context(self, sequences: int) -> ctypes.c_void_p:
        """An empty context for so many sequences, made on first use."""
        if sequences not in self.contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx = CONTEXT if sequences == 1 else sequences * 256
            params.n_batch = params.n_ubatch = CHUNK if sequences == 1 else max(CHUNK, sequences)
            params.n_seq_max = sequences
            params.n_threads = params.n_threads_batch = self.threads
            self.contexts[sequences] = llama_cpp.llama_init_from_model(self.model, params)
        context = self.contexts[sequences]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        return context

    def _read(
        self, context: ctypes.c_void_p, rows: Sequence[tuple[int, Sequence[int]]], position: int, last_only: bool
    ) -> None:
        batch, place = self.batch, 0
        for sequence, ids in rows:
            for offset, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, position + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = not last_only or offset == len(ids) - 1
                place += 1
        batch.n_tokens = place
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def _best(self, context: ctypes.c_void_p, output: int) -> int:
        return int(self._logits(context, output).argmax())

    def _logits(self, context: ctypes.c_void_p, output: int) -> Array:
        """Logits of the output-th row that was asked for; a copy, as the next read overwrites them."""
        place = [i for i in range(self.batch.n_tokens) if self.batch.logits[i]][output]
        pointer = llama_cpp.llama_get_logits_ith(context, place)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,)).copy()
