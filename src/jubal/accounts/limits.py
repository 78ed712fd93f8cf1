"""Requests and tokens per minute of each key.

A limit is a bucket that holds one minute's worth and empties evenly: a key may spend a minute's worth at once, and then goes
on at its rate. So in any stretch of time it gets at most the limit plus the limit's share of that stretch.

Tokens are an estimate when a request begins, so it takes the most it may use, and gives back the rest when it has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from jubal.accounts.keys import Caller
from jubal.core.errors import TooFast

ENTRIES_BEFORE_SWEEP: Final = 1024


@dataclass(slots=True)
class Ticket:
    """A request that was let in. limit_*: per minute; remaining_*: what could be taken right after it; None: no limit.

    key_id, tokens: what it holds of whose limit, until it is given back (`open`).
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    key_id: str = ""
    tokens: int = 0
    open: bool = False


UNLIMITED: Final = Ticket()


class Limiter(Protocol):
    """Lets requests in, or not. Neither method blocks."""

    def take(self, caller: Caller, tokens: int) -> Ticket:
        """One request, and the most tokens that it may use, from the caller's limits: both or nothing.

        Raises `TooFast`. Its `retry_after_s` is when the same request will be let in if no other is before; None where it asks
        for more than the limit ever allows.
        """
        ...

    def give_back(self, ticket: Ticket, unused_tokens: int) -> None:
        """What the request did not use of its tokens; a negative number is what it used on top. Only the first call counts."""
        ...


class MemoryLimiter:
    """A `Limiter` for one process. clock: monotonic seconds. Needs no lock: it belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}
        self._sweep_at = ENTRIES_BEFORE_SWEEP

    def take(self, caller: Caller, tokens: int) -> Ticket:
        if caller.rpm is None and caller.tpm is None:
            return UNLIMITED
        now_ns = int(self._clock() * 1e9)
        return self._allowance(caller, now_ns).take(max(0, tokens), now_ns)

    def give_back(self, ticket: Ticket, unused_tokens: int) -> None:
        if not ticket.open:
            return
        ticket.open = False
        allowance = self._allowances.get(ticket.key_id)
        if allowance is not None:
            allowance.settle(ticket.tokens, max(0, ticket.tokens - unused_tokens), int(self._clock() * 1e9))

    def _allowance(self, caller: Caller, now_ns: int) -> _Allowance:
        allowance = self._allowances.get(caller.key_id)
        if allowance is None:
            if len(self._allowances) >= self._sweep_at:
                self._sweep(now_ns)
            allowance = self._allowances[caller.key_id] = _Allowance(caller.key_id)
        if allowance.rpm != caller.rpm or allowance.tpm != caller.tpm:
            allowance.change(caller.rpm, caller.tpm, now_ns)
        return allowance

    def _sweep(self, now_ns: int) -> None:
        """Forgets keys that have spent nothing for a minute. At most every second entry is new, so a `take` stays O(1)."""
        self._allowances = {key: kept for key, kept in self._allowances.items() if not kept.is_idle(now_ns)}
        self._sweep_at = max(ENTRIES_BEFORE_SWEEP, 2 * len(self._allowances))


_ONE: Final = 60_000_000_000
"""One token or request, in the unit of `_Bucket`: with a limit of n per minute, n of them leave in 6e10 ns."""


class _Bucket:
    """How much of a limit is spent, as the moment when all of it will have left (GCRA), in 1/limit ns.

    Whole numbers: no rounding lets a token more through, or keeps one back.
    """

    __slots__ = ("empty_at", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.empty_at = 0

    def spent(self, now_ns: int) -> int:
        """In units: `_ONE` for each token."""
        return max(0, self.empty_at - now_ns * self.limit)

    def set_spent(self, units: int, now_ns: int) -> None:
        self.empty_at = now_ns * self.limit + units

    def add(self, count: int, now_ns: int) -> None:
        self.set_spent(self.spent(now_ns) + count * _ONE, now_ns)

    def left(self, now_ns: int) -> int:
        """Whole tokens that can be taken now; 0 where more was used than the limit."""
        return max(0, self.limit * _ONE - self.spent(now_ns)) // _ONE

    def wait_ns(self, count: int, now_ns: int) -> float:
        """How long until `count` more fit, in whole ns; 0: now. Infinite for more than the limit."""
        if count > self.limit:
            return math.inf
        over = self.spent(now_ns) + count * _ONE - self.limit * _ONE
        return -(-over // self.limit) if over > 0 else 0


class _Allowance:
    """The limits of one key.

    What its requests have really used is known only when they end. Two buckets are never below it: `taken`, where each
    request counts with all it took, when it took it; and `used` plus `held`, where it counts with what it used, when it ended,
    and until then with all it took. The lower of the two decides. So tokens that are given back can be taken at once, and
    never let in more than the limit, whatever has left the buckets meanwhile. (To take them off `taken` would: what they stand
    for may have left already.)
    """

    __slots__ = ("held", "key_id", "requests", "taken", "used")

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.requests: _Bucket | None = None
        self.taken: _Bucket | None = None
        self.used: _Bucket | None = None
        self.held = 0

    @property
    def rpm(self) -> int | None:
        return None if self.requests is None else self.requests.limit

    @property
    def tpm(self) -> int | None:
        return None if self.taken is None else self.taken.limit

    def change(self, rpm: int | None, tpm: int | None, now_ns: int) -> None:
        """New limits; what is spent stays spent."""
        self.requests = _changed(self.requests, rpm, now_ns)
        self.taken = _changed(self.taken, tpm, now_ns)
        self.used = _changed(self.used, tpm, now_ns)

    def take(self, tokens: int, now_ns: int) -> Ticket:
        """Raises `TooFast`."""
        requests, taken = self.requests, self.taken
        if taken is not None and self.used is not None:
            taken.set_spent(min(taken.spent(now_ns), self.used.spent(now_ns) + self.held * _ONE), now_ns)
        self._check(tokens, now_ns)
        if taken is not None:
            taken.add(tokens, now_ns)
            self.held += tokens
        if requests is not None:
            requests.add(1, now_ns)
        return Ticket(
            limit_requests=None if requests is None else requests.limit,
            remaining_requests=None if requests is None else requests.left(now_ns),
            limit_tokens=None if taken is None else taken.limit,
            remaining_tokens=None if taken is None else taken.left(now_ns),
            key_id=self.key_id,
            tokens=0 if taken is None else tokens,
            open=True,
        )

    def _check(self, tokens: int, now_ns: int) -> None:
        """Raises `TooFast` for the limit that takes longest to let this in."""
        waits: list[tuple[float, str, int, int]] = []
        if self.requests is not None:
            waits.append((self.requests.wait_ns(1, now_ns), "requests", self.requests.limit, 1))
        if self.taken is not None:
            waits.append((self.taken.wait_ns(tokens, now_ns), "tokens", self.taken.limit, tokens))
        wait_ns, what, limit, asked = max(waits)
        if wait_ns:
            raise _too_fast(what, limit, asked, wait_ns)

    def settle(self, took: int, used: int, now_ns: int) -> None:
        """A request that took some tokens has ended, and used fewer or more."""
        self.held = max(0, self.held - took)
        if self.taken is not None and self.used is not None:
            self.used.add(used, now_ns)
            self.taken.add(max(0, used - took), now_ns)

    def is_idle(self, now_ns: int) -> bool:
        buckets = (self.requests, self.taken, self.used)
        return not self.held and not any(bucket.spent(now_ns) for bucket in buckets if bucket is not None)


def _changed(bucket: _Bucket | None, limit: int | None, now_ns: int) -> _Bucket | None:
    if limit is None:
        return None
    changed = _Bucket(limit)
    changed.set_spent(0 if bucket is None else bucket.spent(now_ns), now_ns)
    return changed


def _too_fast(what: str, limit: int, asked: int, wait_ns: float) -> TooFast:
    """The refusal by one limit. No wait is promised where none helps."""
    if wait_ns == math.inf:
        retry_after_s, then = None, "Ask for fewer: a shorter prompt, or a lower bound on the answer."
    else:
        retry_after_s = (wait_ns // 1_000_000 + 1) / 1000  # the next whole millisecond: never a moment too early
        then = f"Try again in {retry_after_s:.3f} s."
    return TooFast(
        f"This API key has reached its rate limit of {limit} {what} per minute; this request needs {asked}. {then}",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )
