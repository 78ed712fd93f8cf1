"""Places at an engine: so many requests at a time, so many more may wait, the rest is refused at once. A request that began gives
its place back while it does other work, and takes it again before newcomers (docs/decisions/places.md)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, TypeAlias

from jubal.core.errors import AtCapacity

RETRY_AFTER_S: Final = 2.0
"""Where nothing is known yet of how long the engine's work takes."""
RETRY_AFTER_MAX_S: Final = 60.0
AWAY_MAX: Final = 256
"""Requests that may be away from one engine's places: each holds its tools' sessions and its conversation."""
KEEP_S: Final = 0.05
PRIORITY_MAX: Final = 7
"""Places in a row that go to priority while others wait."""
LATEST: Final = 0.2
"""How much the last interval between two departures counts in their mean."""

_Queue: TypeAlias = deque[asyncio.Future[None]]


class Admission:
    """Those who began first, then who has priority, then first come, first served; work that nobody waits for only when nobody
    else wants in.

    Use as `async with admission.door(…) as place:` around a request's work, which may give its place back for a while
    and take it again, or as `async with admission:` around work that does not. running_max: None for no limit. queued_max: how
    many newcomers may wait, of each class. away_max: how many that began may be away from their places; newcomers wait while
    there are more. keep_s: a rest that is shorter keeps the place. clock: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        running_max: int | None,
        queued_max: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        away_max: int = AWAY_MAX,
        keep_s: float = KEEP_S,
    ) -> None:
        self._name = name
        self._running_max = running_max
        self._queued_max = queued_max
        self._away_max = away_max
        self._keep_s = keep_s
        self._clock = clock
        self._returning: _Queue = deque()
        self._waiting: _Queue = deque()
        self._priority: _Queue = deque()
        self._background: _Queue = deque()
        self._in_a_row = 0  # places that went to priority while somebody else waited
        self._pace = _Pace()
        self.running = 0
        self.away = 0
        """Requests that gave their place back for a while, those that wait to take it again included."""

    @property
    def queued(self) -> int:
        """Newcomers that wait and that somebody waits for."""
        return len(self._waiting) + len(self._priority)

    @property
    def bounded(self) -> bool:
        """Requests can be in each other's way here."""
        return self._running_max is not None

    @property
    def queued_background(self) -> int:
        return len(self._background)

    @property
    def returning(self) -> int:
        """Requests that began and wait to go on."""
        return len(self._returning)

    def door(self, *, background: bool = False, priority: bool = False) -> Place:
        """The way in, for one request. background: nobody waits for the answer. priority: before newcomers who have none."""
        return Place(self, background=background, priority=priority, keep_s=self._keep_s)

    async def __aenter__(self) -> None:
        """Raises `AtCapacity` where the queue is full."""
        await self.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    async def enter(self, *, background: bool = False, priority: bool = False) -> None:
        """Takes a place for a newcomer. Raises `AtCapacity` where as many of its class wait already as may."""
        if self._free and not (self._returning or self._newcomers):
            self.running += 1
            return
        queue = self._background if background else self._priority if priority else self._waiting
        if len(queue) >= self._queued_max:
            raise AtCapacity(
                f"Capacity exceeded: the engine `{self._name}` is busy and its queue of {self._queued_max} is full. "
                "Retry after a delay.",
                code="capacity_exceeded",
                retry_after_s=self._pace.refuse(),
            )
        await self._wait(queue)

    def leave(self) -> None:
        """Gives a place back for good."""
        self.running -= 1
        if not self._returning:  # else the queue of newcomers gets no shorter by it
            self._pace.leave(self._clock(), busy=self._newcomers)
        self._let_in()

    def step_out(self) -> None:
        """Gives a place back for a while."""
        self.away += 1
        self.leave()

    async def come_back(self) -> None:
        """Takes a place again, before all newcomers. It is never refused."""
        if self._room and not self._returning:
            self.running += 1
        else:
            await self._wait(self._returning)
        self.away -= 1

    def stay_away(self) -> None:
        """One that stepped out does not come back."""
        self.away -= 1
        self._let_in()

    @property
    def _room(self) -> bool:
        return self._running_max is None or self.running < self._running_max

    @property
    def _free(self) -> bool:
        """There is a place for a newcomer."""
        return self._running_max is None or (self.running < self._running_max and self.away < self._away_max)

    @property
    def _newcomers(self) -> bool:
        """Some wait."""
        return bool(self._waiting or self._priority or self._background)

    async def _wait(self, queue: _Queue) -> None:
        """Until whoever leaves hands a place over: it is counted as taken by then."""
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self._let_in()  # all that wait before it may have been cancelled this moment
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave()
            else:
                queue.remove(turn)
            raise

    def _let_in(self) -> None:
        if not (self._returning or self._newcomers):
            return
        while (turn := self._next()) is not None:
            self.running += 1
            turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        """Who is let in now; None: nobody. A turn that is done was cancelled this moment, and leaves the queue by itself."""
        if self._room and (turn := _first(self._returning)) is not None:
            return turn
        if self._free:
            for queue in self._order():
                if (turn := _first(queue)) is not None:
                    self._count(queue)
                    return turn
        return None

    def _order(self) -> tuple[_Queue, ...]:
        """Whose turn it is among newcomers. Priority is not everything: of so many places one goes to whoever waits longest without
        it, so that a team that always asks for priority can't keep all others out."""
        if self._in_a_row < PRIORITY_MAX:
            return self._priority, self._waiting, self._background
        return self._waiting, self._priority, self._background

    def _count(self, queue: _Queue) -> None:
        """A newcomer of `queue` was let in."""
        self._in_a_row = self._in_a_row + 1 if queue is self._priority and self._waiting else 0


def _first(queue: _Queue) -> asyncio.Future[None] | None:
    """Takes the first turn out that is not done."""
    for turn in queue:
        if not turn.done():
            queue.remove(turn)
            return turn
    return None


class Place:
    """One request's place at an engine: taken on entering, given back exactly once, however the request ends.

    In between it may be given back for a while: `rest` where work begins that is not the engine's, `resume` before the engine's
    goes on. keep_s: a rest that is shorter keeps the place: others could do little with it, and whoever gives it up waits for the
    next one. One task at a time uses it.
    """

    __slots__ = ("_admission", "_background", "_keep_s", "_leaving", "_priority", "_state")

    def __init__(
        self, admission: Admission, *, background: bool = False, priority: bool = False, keep_s: float
    ) -> None:
        self._admission = admission
        self._background = background
        self._priority = priority
        self._keep_s = keep_s
        self._leaving: asyncio.TimerHandle | None = None
        self._state: Literal["outside", "inside", "away"] = "outside"

    async def __aenter__(self) -> Place:
        """Raises `AtCapacity` where the queue is full."""
        await self._admission.enter(background=self._background, priority=self._priority)
        self._state = "inside"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stay()
        state, self._state = self._state, "outside"
        if state == "inside":
            self._admission.leave()
        elif state == "away":
            self._admission.stay_away()

    def rest(self) -> None:
        """The engine has nothing to do for this request until `resume`."""
        if self._state == "inside" and self._leaving is None:
            self._leaving = asyncio.get_running_loop().call_later(self._keep_s, self._step_out)

    async def resume(self) -> None:
        """The place is there again. Whoever began is served before newcomers, and is not refused."""
        self._stay()
        if self._state == "away":
            await self._admission.come_back()
            self._state = "inside"

    def _step_out(self) -> None:
        self._leaving = None
        self._state = "away"
        self._admission.step_out()

    def _stay(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None


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
