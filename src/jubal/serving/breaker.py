"""A circuit breaker for each engine: one that keeps failing is left alone for a while, so that nobody waits for it in vain.

closed      every request may ask. So many failures in a row open it.
open        nobody asks before the rest is over.
half_open   one request tries; what comes of it closes the breaker, or opens it for twice as long.

Counted is what happens before the first piece of an answer, and only what tells of the engine (docs/decisions/breaker.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, TypeAlias

from jubal.core.errors import EngineError, EngineUnavailable

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]
FAILURES_MAX: Final = 5
REST_S: Final = 5.0
REST_GROWTH: Final = 2.0
REST_MAX_S: Final = 120.0
TRIED_NOW_S: Final = 1.0
"""Where one request tries at this moment, nobody knows how long it takes: when to ask again."""
NOT_THE_ENGINES: Final = frozenset({"engine_model_not_found"})
"""Codes of failures that tell of one model name, and nothing of the others on the same engine."""


class Breaker:
    """Use as `with breaker.attempt() as attempt:` around an engine's work. Belongs to one event loop.

    failures_max: failures in a row that open it; 0: it never opens. rest_s: the first rest; each failed try doubles it, up to
    two minutes. clock: monotonic seconds. on_change: told of each new state.
    """

    __slots__ = (
        "_clock", "_failures_max", "_first_rest_s", "_on_change", "_rest_s", "_until_s", "failures", "name", "period",
        "state",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        failures_max: int = FAILURES_MAX,
        rest_s: float = REST_S,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[Breaker], None] | None = None,
    ) -> None:
        self.name = name
        self.state: BreakerState = "closed"
        self.failures = 0
        self.period = 0
        """Counts the changes of state: what began in an earlier period says nothing about this one."""
        self._failures_max = failures_max
        self._first_rest_s = self._rest_s = rest_s
        self._until_s = 0.0
        self._clock = clock
        self._on_change = on_change

    def attempt(self) -> Attempt:
        return Attempt(self)

    @property
    def refuses_for_s(self) -> float:
        """Seconds until a request may ask again, as far as can be told; 0: now."""
        if self.state == "closed":
            return 0.0
        left_s = max(0.0, self._until_s - self._clock())
        return min(left_s, TRIED_NOW_S) if self.state == "half_open" else left_s

    @property
    def rests(self) -> bool:
        """Nobody may ask now. Once the rest is over somebody has to, even if no one does."""
        return self.state == "open" and self._clock() < self._until_s

    def enter(self) -> int:
        """The period in which a request begins. Raises `EngineUnavailable` where it must not."""
        if self.state == "closed":
            return self.period
        wait_s = self.refuses_for_s
        if wait_s > 0:
            raise EngineUnavailable(
                f"The engine `{self.name}` failed {self.failures} times in a row and is resting. "
                f"Try again in {math.ceil(wait_s)} s.",
                retry_after_s=wait_s,
            )
        # The one that tries may hang: after another rest the next one does, and what becomes of the first counts no more.
        self._change("half_open", self._rest_s)
        return self.period

    def wake(self) -> None:
        """The engine was seen to answer again: the next request need not wait for the end of the rest."""
        if self.state == "open":
            self._until_s = self._clock()

    def succeeded(self, period: int) -> None:
        if period != self.period:
            return
        self.failures = 0
        if self.state != "closed":
            self._rest_s = self._first_rest_s
            self._change("closed", 0.0)

    def failed(self, period: int) -> None:
        if period != self.period:
            return
        self.failures += 1
        if self.state == "half_open":
            self._rest_s = min(self._rest_s * REST_GROWTH, max(REST_MAX_S, self._first_rest_s))
            self._change("open", self._rest_s)
        elif self._failures_max and self.failures >= self._failures_max:
            self._change("open", self._rest_s)

    def withdrew(self, period: int) -> None:
        """A request ended and nothing was learned: the next one may try at once."""
        if period == self.period and self.state == "half_open":
            self._until_s = self._clock()

    def _change(self, state: BreakerState, for_s: float) -> None:
        self.state = state
        self.period += 1
        self._until_s = self._clock() + for_s
        if self._on_change is not None:
            self._on_change(self)


class Attempt:
    """One request's work at an engine. Entering raises `EngineUnavailable` where the engine rests."""

    __slots__ = ("_breaker", "_over", "_period")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._period = -1
        self._over = False

    def __enter__(self) -> Attempt:
        self._period = self._breaker.enter()
        return self

    def check(self) -> None:
        """Again, after a wait in a queue. Raises `EngineUnavailable`, but not where the answer has begun."""
        if not self._over and self._period != self._breaker.period:
            self._period = self._breaker.enter()

    def answered(self) -> None:
        """The first piece is there: what happens from now on is no longer counted."""
        self._over = True
        self._breaker.succeeded(self._period)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._over:
            return
        self._over = True
        if error is None:
            self._breaker.succeeded(self._period)
        elif isinstance(error, EngineError) and error.code not in NOT_THE_ENGINES:
            self._breaker.failed(self._period)
        else:
            self._breaker.withdrew(self._period)


def never(name: str = "") -> Breaker:
    """One that never opens: for engines that look after themselves."""
    return Breaker(name, failures_max=0)
