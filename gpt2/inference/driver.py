"""Steps in a thread, for as long as there is work, while coroutines wait for what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Driver:
    """Calls `step` again and again until it says that nothing is left; one event loop at a time."""

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._task: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []

    async def step(self) -> None:
        """Wait until a step is done; raises what it raised."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task, self._waiting = loop.create_task(self._drive()), []
        future = loop.create_future()
        self._waiting.append(future)
        await future

    async def _drive(self) -> None:
        more = True
        while more:
            error: Exception | None = None
            try:
                more = await asyncio.to_thread(self._step)
            except Exception as caught:
                error = caught
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if future.done():  # its consumer has gone away
                    continue
                future.set_exception(error) if error else future.set_result(None)
            if error:
                return
