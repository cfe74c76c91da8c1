"""A process that has imported everything and forks for each command it is told: a start costs no seconds.

Tests that start a command many times, to kill it, would else spend most of their time on imports.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from io import RawIOBase
from pathlib import Path
from typing import cast


class Command:
    """One command line that runs; what subprocess.Popen calls poll, send_signal and wait."""

    _code: int | None = None

    def __init__(self, pid: int, ends: RawIOBase) -> None:
        self.pid, self._ends = pid, ends

    def poll(self) -> int | None:
        """Its exit code, the negative signal if one ended it, None while it runs."""
        return self.wait() if self._code is None and select.select([self._ends], [], [], 0)[0] else self._code

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self._code is None:
            self._code = read_number(self._ends)
        return self._code

    def send_signal(self, number: int) -> None:
        """To a process that is there until the next one is started: its number is nobody else's."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Commands:
    """Starts `gpt2` with any words, one at a time; `with` ends what still runs, and the process that forks."""

    _running: Command | None = None

    def __enter__(self) -> Commands:
        self._told_by_all = tempfile.TemporaryFile()
        script = [sys.executable, str(Path(__file__).resolve())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._told_by_all}
        # unbuffered, so that `select` sees every line that was not read
        self._server = subprocess.Popen(script, **pipes, bufsize=0)  # type: ignore[call-overload]
        self._words, self._ends = (cast(RawIOBase, pipe) for pipe in (self._server.stdin, self._server.stdout))
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.send_signal(signal.SIGKILL)
        self._words.close()
        self._server.wait()
        self._ends.close()
        self._told_by_all.close()

    def start(self, *words: str) -> Command:
        """Run `gpt2 WORDS`; what it prints to standard output is thrown away."""
        self._words.write(json.dumps(words).encode() + b"\n")
        self._running = Command(read_number(self._ends), self._ends)
        return self._running

    def run(self, *words: str) -> None:
        """`start` and wait; AssertionError with what was said on standard error unless it ends well."""
        if self.start(*words).wait() != 0:
            self._told_by_all.seek(0)
            raise AssertionError(self._told_by_all.read().decode(errors="replace")[-3000:])


def read_number(ends: RawIOBase) -> int:
    line = ends.readline()
    assert line, "the process that forks has ended"
    return int(line)


def load() -> None:
    """Import and settle here what the forked would each import and measure.

    No run in this process: OpenMP's threads do not outlive a fork. The machine's peak, which no test looks at, is no
    longer measured.
    """
    import matplotlib.figure
    import numba
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401

    from gpt2 import hardware
    from gpt2.kernels import fused, parts, passes, peak  # noqa: F401
    from gpt2.train import finetune, pretrain  # noqa: F401

    numba.njit(lambda x: x)(1)  # what its first compilation loads
    matplotlib.figure.Figure().savefig(os.devnull, format="png")  # fonts
    hardware.gemm_peak = peak._own_rate = lambda *_: 1e11


def serve() -> None:
    """For each line of words: fork, print the child's process id, and its exit code when it has ended.

    It is buried only when the next line comes: as long as anybody may send it a signal its id is its own.
    """
    load()
    pid = 0
    for line in sys.stdin:
        if pid:
            os.waitpid(pid, 0)
        pid = os.fork()
        if not pid:
            run(json.loads(line))
        print(pid, flush=True)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)


def run(words: list[str]) -> None:
    from gpt2.cli.main import main

    code = 99
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):
            os.dup2(nowhere, stream)
        code = main(words)
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
