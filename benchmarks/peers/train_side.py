"""The benchmark's handle of one side: starts its process, with the same allocator settings and threads for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.train_plain import Shape

BENCHMARKS = Path(__file__).resolve().parents[1]
HUGE = 2**36
# glibc: large tensors from the heap, the heap never trimmed and backed by huge pages.
KEEP = (
    f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={HUGE}:"
    f"glibc.malloc.mmap_threshold={HUGE}"
)


class Side:
    """A process with one loop in it. Between calls it waits for a line and takes no processor time."""

    def __init__(
        self, kind: str, shape: Shape, device: str, data: Path, options: dict[str, Any], allocator: str
    ) -> None:
        self.kind, self.seen = kind, []
        environment = os.environ | {"PYTHONPATH": f"{BENCHMARKS}:{BENCHMARKS.parent}"}
        if allocator == "keep" and device == "cpu":
            environment["GLIBC_TUNABLES"] = KEEP
        words = [json.dumps(word) for word in (kind, asdict(shape), device, str(data), options)]
        command = [sys.executable, "-m", "peers.train_worker", *words]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a method of train_worker.Side there; its result."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.kind}: its process ended at {name} (exit code {self.process.wait()})")
        result = json.loads(line)
        if name == "steps":
            self.seen += result["losses"]
        return result

    def losses(self, steps: int) -> list[float]:
        """The losses of its first `steps` steps; it takes those that are still missing."""
        if len(self.seen) < steps:
            self("steps", steps - len(self.seen))
        return self.seen[:steps]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Visitor:
    """A side whose process lives for one call: on a GPU not all of them fit beside each other."""

    def __init__(
        self, kind: str, shape: Shape, device: str, data: Path, options: dict[str, Any], allocator: str, warm_up: int
    ) -> None:
        self.words, self.warm_up = (kind, shape, device, data, options, allocator), warm_up

    def __call__(self, name: str, *arguments: Any) -> Any:
        """As Side's, after `warm_up` steps."""
        side = Side(*self.words)
        try:
            side("steps", self.warm_up)
            return side(name, *arguments)
        finally:
            side.close()

    def losses(self, steps: int) -> list[float]:
        """The losses of its first `steps` steps."""
        side = Side(*self.words)
        try:
            return side.losses(steps)
        finally:
            side.close()

    def close(self) -> None:
        """Nothing is left open."""
