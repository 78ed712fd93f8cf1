"""Holds: what a request may cost at most is set aside before it begins, in memory, out of a reserve of this gateway.

A transaction for each hold would cost every request a wait for the store. So a gateway takes credit in larger parts
(`credits.take`) and cuts holds from them. At every moment, for each reserve, as the store has it:

    reserve >= free + the sum of open holds

and the sum of all gateways' reserves is at most what the team has. A hold ends with its request's usage row, whose transaction
takes the real cost off balance and reserve alike; the rest is free again.

Where the fate of a transaction is unknown (the store went away in the middle), the reserve is retired: nothing more is held in
it, and it is given back as a whole when its last request has ended. So memory may believe in less than the store, never in more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from jubal.accounts import credits
from jubal.accounts.credits import Terms
from jubal.accounts.presence import Presence
from jubal.accounts.store import Store
from jubal.core.errors import JubalError, OutOfCredit, StoreUnavailable
from jubal.core.money import exact_usd

log = structlog.get_logger("jubal.credit")

LEASE_S: Final = 60.0
IDLE_S: Final = 3.0
"""How long a reserve is kept that nobody draws on: other gateways may need it."""
TICK_S: Final = 1.0
SWEEP_S: Final = 30.0
WAIT_S: Final = 5.0
"""How long a request waits for others of its team to end and free what they did not use, before it is refused."""
WAITING_MAX: Final = 1000
SAFE_SHARE: Final = 2 / 3
"""For how much of its lease a reserve is used: the rest is for clocks that differ."""
RENEW_SHARE: Final = 1 / 4
REFUSED_S: Final = 0.2
"""How long a refusal is believed: a team without credit that asks on and on must not keep the store busy."""


def boot_s() -> float:
    """Monotonic seconds in which a machine that sleeps grows older too: its leases do, as other gateways see them.

    On Linux `time.monotonic` stands still meanwhile; on macOS CLOCK_MONOTONIC does not, and there is no other.
    """
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Reserve:
    """Credit of one team, set aside by this gateway. free, held: ticks. safe_until_s: on our clock; nothing is held after it."""

    __slots__ = (
        "free", "fresh", "held", "holds", "id", "retired", "safe_until_s", "taking", "team_id", "trip", "used_s",
    )  # fmt: skip

    def __init__(self, team_id: str, now_s: float) -> None:
        self.id = str(uuid.uuid4())
        self.team_id = team_id
        self.free = 0
        self.held = 0
        self.holds = 0
        self.safe_until_s = now_s
        self.used_s = now_s
        self.retired = False
        self.fresh = True  # the store has never heard of it
        self.taking = 0
        self.trip: asyncio.Future[int] | None = None  # the last way to the store, on which it is enlarged


@dataclass(slots=True, eq=False)
class Hold:
    """`ticks` that one request may cost, until it is settled or released."""

    request_id: str
    ticks: int
    reserve: _Reserve
    open: bool = True

    @property
    def reserve_id(self) -> str:
        return self.reserve.id

    def drawn(self, cost_ticks: int) -> int:
        """What a request of this cost takes from the reserve."""
        return max(0, min(cost_ticks, self.ticks))


class Credit:
    """One gateway's holds. Belongs to one event loop; `start` before use, `close` when all requests are settled.

    clock: monotonic seconds. now_us: microseconds since 1970; gateways' clocks may differ by a third of `lease_s`. presence: how
    gateways of one machine know of each other's death before their leases end; None: they don't.
    """

    def __init__(
        self,
        store: Store,
        *,
        lease_s: float = LEASE_S,
        idle_s: float = IDLE_S,
        tick_s: float = TICK_S,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = boot_s,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        presence: Presence | None = None,
    ) -> None:
        self._store = store
        self._presence = presence
        self._lease_s = lease_s
        self._idle_s = idle_s
        self._tick_s = tick_s
        self._wait_s = wait_s
        self._clock = clock
        self._now_us = now_us
        self._gateway = str(uuid.uuid4())
        self._reserves: dict[str, _Reserve] = {}  # by team
        self._retired: set[_Reserve] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._freed: dict[str, deque[asyncio.Future[None]]] = {}
        self._open: dict[str, int] = {}  # requests that run here, by team
        self._refused: dict[str, tuple[int, float]] = {}  # what was available, and until when that is believed
        self._waiting = 0
        self._keeper: asyncio.Task[None] | None = None
        self._sweep_at_s = 0.0
        self._renew_at_s = 0.0

    # --------------------------------------------------------------------------------------------------- for requests

    def try_hold(self, team_id: str, wanted: int, request_id: str) -> Hold | None:
        """A hold of `wanted` ticks, where the reserve covers it; None decides nothing: ask `hold`."""
        reserve = self._reserves.get(team_id)
        if reserve is None or reserve.free < wanted or reserve.retired:
            return None
        now = self._clock()
        if now >= reserve.safe_until_s:
            return None
        return self._cut(reserve, wanted, request_id, now)

    async def hold(
        self,
        team_id: str,
        terms: Terms,
        wanted: int,
        request_id: str,
        *,
        least: int | None = None,
        patient: bool = True,
    ) -> Hold:
        """A hold of `wanted` ticks, or of any number from `least` on, where that is given and all there is.

        While others of the team's requests run here, it waits a while for what they leave, if it is patient. Raises
        `OutOfCredit`, `StoreUnavailable`.
        """
        least = wanted if least is None else min(least, wanted)
        give_up_at = self._clock() + self._wait_s
        waited = False
        while True:
            found, available = await self._enlarge(team_id, terms, wanted, least, request_id)
            if found is not None:
                if waited:
                    self._wake(team_id)  # there may be enough for the next one too
                return found
            if not (patient and await self._freed_before(team_id, give_up_at)):
                raise _out_of_credit(available, least)
            waited = True

    def release(self, hold: Hold) -> None:
        """Its request costs nothing."""
        self.settled(hold, 0)

    def settled(self, hold: Hold, cost_ticks: int, *, certain: bool = True) -> None:
        """Its request is charged. certain: False where the transaction may or may not have happened. Only the first call counts."""
        if not hold.open:
            return
        hold.open = False
        reserve = hold.reserve
        reserve.held -= hold.ticks
        reserve.holds -= 1
        self._open[reserve.team_id] -= 1
        reserve.used_s = self._clock()
        reserve.free += hold.ticks - hold.drawn(cost_ticks)
        if not certain:
            self._retire(reserve)
        self._wake(reserve.team_id, everyone=not self._open[reserve.team_id])

    def _cut(self, reserve: _Reserve, ticks: int, request_id: str, now_s: float) -> Hold:
        reserve.free -= ticks
        reserve.held += ticks
        reserve.holds += 1
        self._open[reserve.team_id] = self._open.get(reserve.team_id, 0) + 1
        reserve.used_s = now_s
        return Hold(request_id, ticks, reserve)

    async def _enlarge(
        self, team_id: str, terms: Terms, wanted: int, least: int, request_id: str
    ) -> tuple[Hold | None, int]:
        """A hold, by way of the store where that is needed; or None and what is available.

        One trip of a team at a time: whoever waited for it looks first at what it brought.
        """
        async with self._locks.setdefault(team_id, asyncio.Lock()):
            await self._trip_ended(team_id)
            if (found := self.try_hold(team_id, wanted, request_id)) is not None:
                return found, 0
            reserve = self._usable(team_id)
            available, known_until_s = self._refused.get(team_id, (0, 0.0))
            if self._clock() >= known_until_s or least - reserve.free <= available:
                reserve.trip = asyncio.ensure_future(
                    self._take(reserve, terms, max(1, least - reserve.free), max(1, wanted - reserve.free))
                )
                available = await asyncio.shield(reserve.trip)
            # Requests on the fast path may have taken of it meanwhile, so this looks at it afresh.
            now = self._clock()
            if reserve.free >= least and not reserve.retired and now < reserve.safe_until_s:
                return self._cut(reserve, min(wanted, reserve.free), request_id, now), 0
            return None, available + reserve.free

    async def _trip_ended(self, team_id: str) -> None:
        """Waits for a trip whose request has left, and with it the lock. Two at once would make the same reserve twice."""
        reserve = self._reserves.get(team_id)
        if reserve is not None and reserve.trip is not None and not reserve.trip.done():
            await asyncio.wait({reserve.trip})

    async def _take(self, reserve: _Reserve, terms: Terms, least: int, wanted: int) -> int:
        """Enlarges a reserve, and returns what is available beside it. Runs to its end even if nobody waits for it any more."""
        asked_s = self._clock()
        reserve.taking += 1
        try:
            taken = await self._store.run(
                credits.take,
                reserve_id=reserve.id,
                team_id=reserve.team_id,
                gateway=self._gateway,
                fresh=reserve.fresh,
                least=least,
                wanted=wanted,
                terms=terms,
                now_us=self._now_us(),
                lease_us=int(self._lease_s * 1e6),
            )
        except JubalError:
            self._retire(reserve)  # it may have happened
            raise
        finally:
            reserve.taking -= 1
        if taken.lost:
            self._retire(reserve)
        elif taken.ticks:
            reserve.fresh = False
            reserve.free += taken.ticks
            reserve.safe_until_s = asked_s + self._lease_s * SAFE_SHARE
            self._refused.pop(reserve.team_id, None)
        else:
            self._refused[reserve.team_id] = (taken.available, self._clock() + REFUSED_S)
        return max(0, taken.available - taken.ticks)

    def _usable(self, team_id: str) -> _Reserve:
        """The reserve that new holds of a team come from."""
        reserve = self._reserves.get(team_id)
        if reserve is not None and (reserve.fresh or self._clock() < reserve.safe_until_s):
            return reserve
        if reserve is not None:
            self._retire(reserve)
        made = self._reserves[team_id] = _Reserve(team_id, self._clock())
        return made

    async def _freed_before(self, team_id: str, give_up_at: float) -> bool:
        """Waits for the end of another request of the team's. False at once where none runs here, and when the time is over."""
        left_s = give_up_at - self._clock()
        if not self._open.get(team_id) or left_s <= 0 or self._waiting >= WAITING_MAX:
            return False
        freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._freed.setdefault(team_id, deque())
        queue.append(freed)
        self._waiting += 1
        try:
            async with asyncio.timeout(left_s):
                await freed
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if freed.done() and not freed.cancelled():
                self._wake(team_id)  # it was ours to use; the next one shall have it
            raise
        finally:
            self._waiting -= 1
            with contextlib.suppress(ValueError):
                queue.remove(freed)
        return True

    def _wake(self, team_id: str, *, everyone: bool = False) -> None:
        """Lets the request go on that waits longest. everyone: all of them, as there is nobody left to wait for."""
        queue = self._freed.get(team_id)
        while queue:
            freed = queue.popleft()
            if not freed.done():
                freed.set_result(None)
                if not everyone:
                    return

    def _retire(self, reserve: _Reserve) -> None:
        """Nothing more is held in this reserve, and it goes back as a whole when its last request has ended."""
        reserve.retired = True
        if self._reserves.get(reserve.team_id) is reserve:
            del self._reserves[reserve.team_id]
        self._retired.add(reserve)

    # ------------------------------------------------------------------------------------------------------ upkeep

    def start(self) -> None:
        if self._presence is not None:
            try:
                self._presence.begin(self._gateway)
            except OSError as error:
                log.info(
                    "should this process be killed, its reserved credit comes back a minute later", error=str(error)
                )
        self._keeper = asyncio.ensure_future(self._keep())

    async def close(self) -> None:
        """Gives everything back. Requests that are still open are not covered any more."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        mine = [reserve.id for reserve in (*self._reserves.values(), *self._retired)]
        self._reserves.clear()
        self._retired.clear()
        given_back = False
        try:
            await self._store.run(credits.close, mine)
            given_back = True
        except StoreUnavailable as error:
            log.warning("reserved credit comes back when its lease ends", error=error.message)
        if self._presence is not None:
            self._presence.end(clean=given_back)

    async def _keep(self) -> None:
        while True:
            try:
                await self.upkeep()
            except StoreUnavailable as error:
                log.warning("reserves of credit can't be kept up", error=error.message)
            except Exception:
                log.exception("the upkeep of credit failed by a fault of ours")
            await asyncio.sleep(self._tick_s)

    async def upkeep(self) -> None:
        """One round: renews leases, gives back what nobody uses, sweeps what others left behind. Raises `StoreUnavailable`."""
        now = self._clock()
        if now >= self._renew_at_s:
            await self._renew()
            self._renew_at_s = now + self._lease_s * RENEW_SHARE
        for reserve in list(self._reserves.values()):
            if now - reserve.used_s < self._idle_s or reserve.taking:
                continue
            if not reserve.holds:
                self._retire(reserve)
            elif reserve.free:
                await self._give_back(reserve)
        ended = [reserve for reserve in self._retired if not reserve.holds and not reserve.taking]
        if ended:
            await self._store.run(credits.close, [reserve.id for reserve in ended])
            self._retired.difference_update(ended)
            for team_id in {reserve.team_id for reserve in ended}:
                self._refused.pop(team_id, None)
                self._wake(team_id)
        if now >= self._sweep_at_s:
            await self._store.run(credits.sweep, self._now_us())
            await self._bury()
            self._sweep_at_s = now + SWEEP_S
        for team_id in [team_id for team_id, lock in self._locks.items() if team_id not in self._reserves]:
            if not self._locks[team_id].locked() and not self._open.get(team_id):
                self._locks.pop(team_id)
                self._freed.pop(team_id, None)
                self._open.pop(team_id, None)
                self._refused.pop(team_id, None)

    async def _renew(self) -> None:
        """Retired reserves too: requests still run on them."""
        kept = [reserve for reserve in (*self._reserves.values(), *self._retired) if not reserve.fresh]
        if not kept:
            return
        asked_s = self._clock()
        renewed = await self._store.run(
            credits.renew,
            [reserve.id for reserve in kept],
            now_us=self._now_us(),
            lease_us=int(self._lease_s * 1e6),
        )
        for reserve in kept:
            if reserve.id in renewed:
                reserve.safe_until_s = asked_s + self._lease_s * SAFE_SHARE
            else:
                log.warning("a reserve of credit was lost", team_id=reserve.team_id, ticks=reserve.held)
                self._retire(reserve)

    async def _bury(self) -> None:
        """Gives back what gateways of this machine had reserved that were killed. Raises `StoreUnavailable`."""
        if self._presence is None:
            return
        if buried := await asyncio.to_thread(self._presence.bury, self._close_gateway):
            log.info("credit is back that gateways had reserved that were killed", gateways=buried)

    def _close_gateway(self, gateway: str) -> None:
        self._store.transact(credits.close_gateway, gateway)

    async def _give_back(self, reserve: _Reserve) -> None:
        ticks, reserve.free = reserve.free, 0
        try:
            await self._store.run(credits.give_back, reserve.id, ticks)
        except StoreUnavailable:
            self._retire(reserve)
            raise


def _out_of_credit(available: int, needed: int) -> OutOfCredit:
    error = OutOfCredit(
        "Your team has used up its credit, or reached its spending limit: this request may cost up to "
        f"{exact_usd(needed)} USD, and {exact_usd(available)} USD is available. Add credit with `jubal credits add`, look at the "
        "limit with `jubal credits show`, ask for a shorter answer with `max_tokens`, or wait until other requests of your team "
        "have ended.",
        code="insufficient_quota",
    )
    error.available_ticks = available
    return error
