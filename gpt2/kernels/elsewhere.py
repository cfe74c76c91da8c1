"""Compiling in another process, so that a kernel has the same bits when it is new as when it is read from the disk.

Where a kernel is compiled its parts are in memory twice: each by itself, and once more in the whole, where LLVM has
optimised them anew and may have put sums in another order. The process that compiled runs the former, every later one
the latter: the first run ever on a machine would differ in last bits from what goes on with it. So nobody runs what he
compiled: a second process does it (decision 0021), and everybody reads.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = "GPT2_COMPILES_HERE"  # in the environment of the process that compiles


def compile_elsewhere(dispatcher: Any) -> Any:
    """The dispatcher, whose cache asks the other process for what it does not hold; as it was where that is no use."""
    function = dispatcher.py_func
    if os.environ.get(HERE) or "<locals>" in function.__qualname__:
        return dispatcher
    cache = dispatcher._cache
    read = cache.load_overload

    def load_overload(signature: Any, context: Any) -> Any:
        found = read(signature, context)
        if found is None and _compiler.compile(function.__module__, function.__qualname__, signature):
            found = read(signature, context)
        return found

    cache.load_overload = load_overload
    return dispatcher


class _Compiler:
    """The other process: started with the first kernel that is missing, ended with this one."""

    def __init__(self) -> None:
        self.owner, self.process = 0, None

    process: subprocess.Popen[bytes] | None

    def compile(self, module: str, name: str, signature: Any) -> bool:
        """Whether the kernel is in the cache now; where it is not, it is compiled here."""
        try:
            if self.process is None or self.owner != os.getpid():  # a forked process wants one of its own
                self.owner, self.process = os.getpid(), _start()
            assert self.process.stdin and self.process.stdout
            pickle.dump((module, name, signature), self.process.stdin)
            self.process.stdin.flush()
            return self.process.stdout.readline() == b"done\n"
        except (OSError, pickle.PicklingError):
            return False


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from gpt2.kernels.elsewhere import serve; serve()"]
    ours = str(Path(__file__).resolve().parents[2])  # this very package, wherever Python would look
    path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {HERE: "1", "PYTHONHASHSEED": "0", "PYTHONPATH": path}
    # a session of its own: Ctrl-C is not for it
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )


_compiler = _Compiler()


def serve() -> None:
    """Compile what comes over standard input into the cache, until it ends; a line of output for each."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever numba prints is no answer
    while True:
        try:
            module, name, signature = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        done = b"failed\n"  # the other side then meets the same error, and tells it
        with contextlib.suppress(Exception):
            dispatcher = getattr(importlib.import_module(module), name)
            dispatcher.compile(signature)
            done = b"done\n"
        answers.write(done)
