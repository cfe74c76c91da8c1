"""Which engines there are, in which formats; each runs in a process of its own that sleeps between its turns."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = {
    "gpt2": ("float32", "bfloat16", "int8", "int4", "int4-head"),
    "transformers": ("float32", "bfloat16"),
    "CTranslate2": ("float32", "int8"),
    "llama.cpp": ("f32", "bf16", "q8_0", "q4_0", "q4_K_M"),
}
NEEDS = {
    "gpt2": ("numba",),
    "transformers": ("transformers",),
    "CTranslate2": ("ctranslate2",),
    "llama.cpp": ("llama_cpp", "gguf"),
}
BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Format:
    """An engine and the form of its weights, such as llama.cpp's q8_0."""

    engine: str
    kind: str

    def __str__(self) -> str:
        return f"{self.engine} {self.kind}"

    def missing(self) -> list[str]:
        """Packages that it needs and that are not installed."""
        return [name for name in NEEDS[self.engine] if importlib.util.find_spec(name) is None]

    def write(self, folder: Path, files: Path) -> Path:
        """The model folder in this format, below `files`; written if it is not there yet."""
        if self.engine == "transformers":
            return folder
        path = files / f"{self.engine}-{self.kind}{'.gguf' if self.engine == 'llama.cpp' else ''}"
        if not path.exists():
            part = path.with_name(f"part-{path.name}")
            self._write(folder, part)
            part.rename(path)
        return path

    def streamed_bytes(self, folder: Path, path: Path) -> int:
        """Bytes of weights that one token reads."""
        if self.engine == "gpt2":
            from peers import ours

            return ours.streamed_bytes(path)
        if self.engine == "llama.cpp":
            from peers import gguf_file

            return gguf_file.streamed_bytes(path)
        from peers.model_folder import streamed_bytes

        return streamed_bytes(folder, self.kind)

    def open(self, path: Path, threads: int) -> Any:
        """The engine, in this process."""
        if self.engine == "gpt2":
            from peers.ours import Ours

            return Ours(path, threads)
        if self.engine == "transformers":
            from peers.hf import Transformers

            return Transformers(path, threads, self.kind)
        if self.engine == "CTranslate2":
            from peers.ct2 import CTranslate2

            return CTranslate2(path, threads, self.kind)
        from peers.llama import Llama

        return Llama(path, threads)

    def _write(self, folder: Path, path: Path) -> None:
        if self.engine == "gpt2":
            from gpt2.checkpoint.hf_config import read_config
            from gpt2.checkpoint.packed import pack_folder, write_packed
            from gpt2.tokenizer.files import load_tokenizer

            write_packed(path, pack_folder(folder, read_config(folder), self.kind), load_tokenizer(folder))
        elif self.engine == "CTranslate2":
            from peers.ctranslate2_folder import write_ctranslate2

            write_ctranslate2(folder, path, self.kind)
        else:
            from peers.gguf_file import write_gguf

            write_gguf(folder, path, self.kind)


class Worker:
    """A process with one engine in it. Between calls it waits for a line and takes no processor time."""

    def __init__(self, format: Format, path: Path, threads: int) -> None:
        self.format = format
        environment = os.environ | {"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "peers.worker", format.engine, format.kind, str(path), str(threads)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a method of worker.Turns there; its result."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.format}: its process ended at {name} (exit code {self.process.wait()})")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
