"""Places in an engine's queue: so many requests at a time, so many more may wait, the rest is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

from jubal.core.errors import AtCapacity

RETRY_AFTER_S: Final = 2.0
"""Where nothing is known yet of how long the engine's work takes."""
RETRY_AFTER_MAX_S: Final = 60.0
PRIORITY_MAX: Final = 7
"""Places in a row that go to priority while others wait."""
LATEST: Final = 0.2
"""How much the last interval between two departures counts in their mean."""


class Admission:
    """First come, first served, but who has priority goes before the others, and work that nobody waits for
    only when nobody else wants in.

    Use as `async with admission:` around the engine's work, or `admission.door(…)` in its place. running_max: None for no limit.
    queued_max: how many may wait, of each class. clock: monotonic seconds.
    """

    def __init__(
        self, name: str, running_max: int | None, queued_max: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._running_max = running_max
        self._queued_max = queued_max
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._priority: deque[asyncio.Future[None]] = deque()
        self._background: deque[asyncio.Future[None]] = deque()
        self._in_a_row = 0  # places that went to priority while somebody else waited
        self._pace = _Pace()
        self.running = 0

    @property
    def queued(self) -> int:
        """Requests that wait and that somebody waits for."""
        return len(self._waiting) + len(self._priority)

    @property
    def bounded(self) -> bool:
        """Requests can be in each other's way here."""
        return self._running_max is not None

    @property
    def queued_background(self) -> int:
        return len(self._background)

    def door(self, *, background: bool = False, priority: bool = False) -> Admission | _SideDoor:
        """The way in. background: nobody waits for the answer. priority: before those who have none."""
        if background:
            return _SideDoor(self, self._background)
        return _SideDoor(self, self._priority) if priority else self

    async def __aenter__(self) -> None:
        """Raises `AtCapacity` where the queue is full."""
        await self._enter(self._waiting)

    async def _enter(self, queue: deque[asyncio.Future[None]]) -> None:
        free = self._running_max is None or self.running < self._running_max
        if free and not (self._waiting or self._priority or self._background):
            self.running += 1
            return
        if len(queue) >= self._queued_max:
            raise AtCapacity(
                f"Capacity exceeded: the engine `{self._name}` is busy and its queue of {self._queued_max} is full. "
                "Retry after a delay.",
                code="capacity_exceeded",
                retry_after_s=self._pace.refuse(),
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn  # whoever leaves hands the place over: `running` does not change
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                queue.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._pace.leave(self._clock(), busy=bool(self._waiting or self._priority or self._background))
        for queue in self._order():
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self.running -= 1

    def _order(self) -> tuple[deque[asyncio.Future[None]], ...]:
        """Whose turn it is. Priority is not everything: of so many places one goes to whoever waits longest without it, so that
        a team that always asks for priority can't keep all others out."""
        if not (self._priority and self._waiting):
            self._in_a_row = 0
        elif self._in_a_row < PRIORITY_MAX:
            self._in_a_row += 1
        else:
            self._in_a_row = 0
            return self._waiting, self._priority, self._background
        return self._priority, self._waiting, self._background


class _SideDoor:
    """The way in for another class of work."""

    __slots__ = ("_admission", "_queue")

    def __init__(self, admission: Admission, queue: deque[asyncio.Future[None]]) -> None:
        self._admission = admission
        self._queue = queue

    async def __aenter__(self) -> None:
        """Raises `AtCapacity` where as many of its class wait already as may."""
        await self._admission._enter(self._queue)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._leave()


class _Pace:
    """How fast a queue drains, and how many were sent away and will come again.

    Each departure makes one place in the queue. So the n-th that is refused is told n intervals between departures: they come back
    one after the other, not all for the one place.
    """

    __slots__ = ("_interval_s", "_left_s", "_refused")

    def __init__(self) -> None:
        self._interval_s: float | None = None
        self._left_s: float | None = None
        self._refused = 0

    def leave(self, now_s: float, *, busy: bool) -> None:
        """busy: somebody waits, so that the interval to the next departure tells how fast the engine works."""
        if self._left_s is not None:
            interval_s = now_s - self._left_s
            mean_s = self._interval_s
            self._interval_s = interval_s if mean_s is None else mean_s + LATEST * (interval_s - mean_s)
        self._left_s = now_s if busy else None
        self._refused = max(0, self._refused - 1) if busy else 0

    def refuse(self) -> float:
        """Seconds after which it is worth to come again."""
        self._refused += 1
        if self._interval_s is None:
            return RETRY_AFTER_S
        return min(RETRY_AFTER_MAX_S, self._interval_s * self._refused)
