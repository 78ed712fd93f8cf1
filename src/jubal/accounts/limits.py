"""Requests and tokens per minute, and requests per second, of everyone who shares in a request: its key, its team, its model.

A limit is a bucket that holds one period's worth and empties evenly: a minute's worth can be spent at once, and then it goes on
at the limit's rate. So in any stretch of time there is at most the limit plus the limit's share of that stretch.

A request takes from every scope that applies to it (accounts/scopes.py), from all or from none. Tokens are an estimate when it
begins, so it takes the most it may use, and gives back the rest when it has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from jubal.core.errors import TooFast
from jubal.core.rates import Allowance

ENTRIES_BEFORE_SWEEP: Final = 1024
SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class Scope:
    """One of the limits that a request has to keep. None: no limit of this kind.

    key: who shares it; the same on all gateways. words: the subject of a refusal, "This API key has reached its rate limit".
    rps: requests per second. rpm, tpm: requests and tokens per minute.
    """

    key: str
    words: str
    rps: int | None = None
    rpm: int | None = None
    tpm: int | None = None


ScopeSet: TypeAlias = tuple[Scope, ...]


Left: TypeAlias = tuple[int, int, int]
"""Requests of this second and of this minute, and tokens, that could be taken of a scope now."""
NO_LIMITS: Final = Allowance()


@dataclass(slots=True)
class Ticket:
    """A request that was let in. allowance: of its tightest scopes; what remains is what could be taken there then.

    scopes, tokens: what it holds of whose limits until
    it is given back (`open`), since the minute `epoch`. added: tokens that were taken later. spare: taken from a substitute.
    """

    allowance: Allowance = NO_LIMITS
    scopes: ScopeSet = ()
    tokens: int = 0
    epoch: int = 0
    added: int = 0
    open: bool = False
    spare: bool = False


UNLIMITED: Final = Ticket()


class Limiter(Protocol):
    """Lets requests in, or not. Only `take` waits, and only where the counters are not in this process.

    testing.check_limiter is this promise as checks.
    """

    def try_take(self, scopes: ScopeSet, tokens: int) -> Ticket | None:
        """As `take`, where that needs no waiting; None where it does: then nothing is taken yet. Raises `TooFast`."""
        ...

    async def take(self, scopes: ScopeSet, tokens: int) -> Ticket:
        """One request, and the most tokens that it may use, from all scopes, or from none.

        Raises `TooFast` for the limit that takes longest to let it in, with its allowance. Its `retry_after_s` is when the same
        request will be let in if no other is before; None where it asks for more than the limit ever allows. Raises
        `StoreUnavailable` where the counters can't be reached.
        """
        ...

    def add(self, ticket: Ticket, tokens: int) -> None:
        """Tokens that a running request has used beyond what it took: they count at once, and nobody asks whether they may."""
        ...

    def give_back(self, ticket: Ticket, unused_tokens: int) -> None:
        """What the request did not use of the tokens that it took and were added; a negative number is what it used on top.

        Only the first call counts."""
        ...

    async def close(self) -> None:
        """Returns when everything that was given back is where it is counted."""
        ...


class MemoryLimiter:
    """A `Limiter` for one process. clock: monotonic seconds. Needs no lock: it belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meters: dict[str, _Meter] = {}
        self._sweep_at = ENTRIES_BEFORE_SWEEP

    def try_take(self, scopes: ScopeSet, tokens: int) -> Ticket:
        if not scopes:
            return UNLIMITED
        now_us = round(self._clock() * 1e6)
        tokens = max(0, tokens)
        meters = [self._meter(scope, now_us) for scope in scopes]
        for meter in meters:
            if not meter.fits(tokens):
                raise _refusal(scopes, meters, tokens)
        left = [meter.take(tokens) for meter in meters]
        return ticket(scopes, left, tokens, now_us // MINUTE_US)

    async def take(self, scopes: ScopeSet, tokens: int) -> Ticket:
        return self.try_take(scopes, tokens)

    def add(self, ticket: Ticket, tokens: int) -> None:
        if ticket.open:
            ticket.added += tokens
            self._settle(ticket, 0, tokens)

    def give_back(self, ticket: Ticket, unused_tokens: int) -> None:
        if ticket.open:
            ticket.open = False
            self._settle(ticket, ticket.tokens, max(0, ticket.tokens - unused_tokens))

    async def close(self) -> None:
        """At once: nothing is underway."""

    def held(self, key: str) -> int:
        """Tokens that requests have taken of a scope and not given back yet."""
        meter = self._meters.get(key)
        return 0 if meter is None else meter.held + meter.held_before

    def _settle(self, ticket: Ticket, took: int, used: int) -> None:
        now_us = round(self._clock() * 1e6)
        for scope in ticket.scopes:
            if scope.tpm is not None:
                self._meter(scope, now_us).settle(ticket.epoch, took, used)

    def _meter(self, scope: Scope, now_us: int) -> _Meter:
        """The meter of a scope, as it stands now."""
        meter = self._meters.get(scope.key)
        if meter is None:
            if len(self._meters) >= self._sweep_at:
                self._sweep(now_us)
            meter = self._meters[scope.key] = _Meter(scope)
        meter.turn_to(now_us, scope)
        return meter

    def _sweep(self, now_us: int) -> None:
        """Forgets whom nothing was spent of for a while. At most every second entry is new, so a `take` stays O(1)."""
        self._meters = {key: kept for key, kept in self._meters.items() if not kept.is_idle(now_us)}
        self._sweep_at = max(ENTRIES_BEFORE_SWEEP, 2 * len(self._meters))


class _Meter:
    """What is spent of one scope. accounts/redis_limits.py says the same in Lua: change both, or none.

    Buckets (GCRA) are in units of which a period has limit * period, so `limit` of them leave each microsecond and one request or
    token is as many as the period has microseconds. Whole numbers: no rounding lets a token more through, or keeps one back.

    What requests have really used is known only when they end. Two buckets are never below it: `taken`, where each request
    counts with all it took, when it took it; and `used` plus what is held, where it counts with what it used, when it ended, and
    until then with all it took. The lower of the two decides. So tokens that are given back can be taken at once, and never let in
    more than the limit, whatever has left the buckets meanwhile. (To take them off `taken` would: what they stand for may have
    left already.)

    What is held is that for the minute `epoch` that it was taken in and the next one, and then counts as used. So a gateway that
    died before it could give anything back holds nothing for longer than three minutes.
    """

    __slots__ = ("at_us", "epoch", "held", "held_before", "minute", "scope", "second", "taken", "used")

    def __init__(self, scope: Scope) -> None:
        self.at_us = 0
        self.epoch = 0
        self.second = self.minute = self.taken = self.used = 0
        self.held = self.held_before = 0
        self.scope = scope

    def turn_to(self, now_us: int, scope: Scope) -> None:
        """Empties the buckets by what has left since they were last looked at. Where a limit is gone, so is what it counted."""
        began_us = self.at_us
        if now_us < began_us:
            now_us = began_us
        self.at_us = now_us
        self.scope = scope
        passed_us = now_us - began_us
        if self.second:
            self.second = _less(self.second, passed_us, scope.rps)
        if self.minute:
            self.minute = _less(self.minute, passed_us, scope.rpm)
        tpm, epoch = scope.tpm, now_us // MINUTE_US
        if tpm is None:
            self.taken = self.used = self.held = self.held_before = 0
            self.epoch = epoch
            return
        if self.epoch < epoch:
            began_us = self._turn_minutes(epoch, began_us, now_us, tpm)
        used = self.used = _less(self.used, now_us - began_us, tpm)
        taken = _less(self.taken, passed_us, tpm)
        counted = used + (self.held + self.held_before) * MINUTE_US
        self.taken = taken if taken < counted else counted

    def _turn_minutes(self, epoch: int, began_us: int, now_us: int, tpm: int) -> int:
        """What was held for a minute counts as used after the next one. Returns up to when `used` has been emptied."""
        while self.epoch < epoch:
            self.epoch += 1
            turned_us = self.epoch * MINUTE_US
            self.used = _less(self.used, turned_us - began_us, tpm) + self.held_before * MINUTE_US
            self.held_before, self.held, began_us = self.held, 0, turned_us
            if not (self.used or self.held_before):
                self.epoch, began_us = epoch, now_us
        return began_us

    def fits(self, tokens: int) -> bool:
        """One more request of so many tokens can be taken now."""
        scope = self.scope
        rps, rpm, tpm = scope.rps, scope.rpm, scope.tpm
        return (
            (rps is None or self.second <= (rps - 1) * SECOND_US)
            and (rpm is None or self.minute <= (rpm - 1) * MINUTE_US)
            and (tpm is None or self.taken <= (tpm - tokens) * MINUTE_US)
        )

    def take(self, tokens: int) -> Left:
        """What is left afterwards."""
        scope = self.scope
        if scope.rps is not None:
            self.second += SECOND_US
        if scope.rpm is not None:
            self.minute += MINUTE_US
        if scope.tpm is not None:
            self.taken += tokens * MINUTE_US
            self.held += tokens
        return self.left()

    def settle(self, epoch: int, took: int, used: int) -> None:
        """A request that took some tokens in the minute `epoch` has ended, and used fewer or more."""
        over = used - took if used > took else 0
        if epoch == self.epoch:
            self.held = self.held - took if self.held > took else 0
        elif epoch == self.epoch - 1:
            self.held_before = max(0, self.held_before - took)
        else:  # what it took counts as used already
            used = over
        self.used += used * MINUTE_US
        self.taken += over * MINUTE_US

    def left(self) -> Left:
        """0 where more was used than the limit, or there is none."""
        scope = self.scope
        rps, rpm, tpm = scope.rps, scope.rpm, scope.tpm
        return (
            0 if rps is None else _less(rps * SECOND_US, self.second, 1) // SECOND_US,
            0 if rpm is None else _less(rpm * MINUTE_US, self.minute, 1) // MINUTE_US,
            0 if tpm is None else _less(tpm * MINUTE_US, self.taken, 1) // MINUTE_US,
        )

    def is_idle(self, now_us: int) -> bool:
        self.turn_to(now_us, self.scope)
        return not (self.second or self.minute or self.taken or self.used or self.held or self.held_before)


def _less(spent: int, passed_us: int, rate: int | None) -> int:
    """What has not left a bucket yet; nothing where its limit is gone."""
    left = 0 if rate is None else spent - passed_us * rate
    return left if left > 0 else 0  # `max` would take three times as long, and this runs two dozen times a request


def _refusal(scopes: ScopeSet, meters: list[_Meter], tokens: int) -> TooFast:
    """By the limit that takes longest to let this in; of equals, by the first. One of them at least does not let it in now."""
    longest: float = 0
    worst = (scopes[0], 0)
    for scope, meter in zip(scopes, meters, strict=True):
        for kind, wait_us in enumerate(
            (
                _wait_us(meter.second, 1, scope.rps, SECOND_US),
                _wait_us(meter.minute, 1, scope.rpm, MINUTE_US),
                _wait_us(meter.taken, tokens, scope.tpm, MINUTE_US),
            )
        ):
            if wait_us > longest:
                longest, worst = wait_us, (scope, kind)
    left = [meter.left() for meter in meters]
    return refusal(scopes, left, scopes.index(worst[0]), worst[1], tokens, longest)


def _wait_us(spent: int, count: int, limit: int | None, one: int) -> float:
    """How long until `count` more fit, in whole microseconds; 0: now. Infinite for more than the limit."""
    if limit is None:
        return 0
    over = spent + (count - limit) * one
    if over <= 0:
        return 0
    return math.inf if count > limit else -(-over // limit)


def refusal(scopes: ScopeSet, left: Sequence[Left], which: int, kind: int, tokens: int, wait_us: float) -> TooFast:
    """The refusal by the limit of one scope, `which`. kind: 0 requests per second, 1 requests per minute, 2 tokens per minute.

    No wait is promised where none helps (an infinite one).
    """
    scope = scopes[which]
    limit = (scope.rps, scope.rpm, scope.tpm)[kind]
    what = ("requests per second", "requests per minute", "tokens per minute")[kind]
    if wait_us == math.inf:
        retry_after_s, then = None, "Ask for fewer: a shorter prompt, or a lower bound on the answer."
    else:
        retry_after_s = (wait_us // 1000 + 1) / 1000  # the next whole millisecond: never a moment too early
        then = f"Try again in {retry_after_s:.3f} s."
    others = allowance(scopes, left)
    if kind == 2:
        told = others._replace(limit_tokens=limit, remaining_tokens=left[which][kind])
    else:
        told = others._replace(limit_requests=limit, remaining_requests=left[which][kind])
    error = TooFast(
        f"{scope.words} of {limit} {what}; this request needs {tokens if kind == 2 else 1}. {then}",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )
    error.allowance = told
    return error


def ticket(scopes: ScopeSet, left: Sequence[Left], tokens: int, epoch: int) -> Ticket:
    """What was let in. left: of each scope, afterwards."""
    return Ticket(allowance(scopes, left), scopes=scopes, tokens=tokens, epoch=epoch, open=True)


def allowance(scopes: ScopeSet, left: Sequence[Left]) -> Allowance:
    """Of several limits the one with the least left, of requests and of tokens each. One per second is told of only where no
    scope has one per minute: what is left of a second says little."""
    requests = requests_left = tokens = tokens_left = None
    by_second = True
    for scope, (second, minute, token_count) in zip(scopes, left, strict=True):
        if scope.rpm is not None and (by_second or requests_left is None or minute < requests_left):
            requests, requests_left, by_second = scope.rpm, minute, False
        elif by_second and scope.rps is not None and (requests_left is None or second < requests_left):
            requests, requests_left = scope.rps, second
        if scope.tpm is not None and (tokens_left is None or token_count < tokens_left):
            tokens, tokens_left = scope.tpm, token_count
    return Allowance(requests, requests_left, tokens, tokens_left)
