"""Places in an engine's queue: so many requests at a time, so many more may wait, the rest is refused at once."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Final

from jubal.core.errors import AtCapacity

RETRY_AFTER_S: Final = 2.0


class Admission:
    """First come, first served. Use as `async with admission:` around the engine's work.

    running_max: None for no limit. queued_max: how many may wait.
    """

    def __init__(self, name: str, running_max: int | None, queued_max: int) -> None:
        self._name = name
        self._running_max = running_max
        self._queued_max = queued_max
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def queued(self) -> int:
        return len(self._waiting)

    async def __aenter__(self) -> None:
        """Raises `AtCapacity` where the queue is full."""
        if self._running_max is None or (self.running < self._running_max and not self._waiting):
            self.running += 1
            return
        if len(self._waiting) >= self._queued_max:
            raise AtCapacity(
                f"Capacity exceeded: the engine `{self._name}` is busy and its queue of {self._queued_max} is full. "
                "Retry after a delay.",
                code="capacity_exceeded",
                retry_after_s=RETRY_AFTER_S,
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever leaves hands the place over: `running` does not change
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                self._waiting.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
