"""Reserves and holds: several gateways on one store can never spend more than there is."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from jubal.accounts import credits, usage
from jubal.accounts.credits import Standing, Terms
from jubal.accounts.holds import Credit, Hold
from jubal.accounts.store import GroupCommit, Store
from jubal.accounts.usage import UsageRow
from jubal.core.errors import OutOfCredit, StoreUnavailable
from tests.accounts.conftest import NOW_US, Clock, usage_row

PREPAID = Terms()
TEAM = "team"


class Gateway:
    """Holds and settles as the pipeline does. Time passes when it is told to."""

    def __init__(self, store: Store, clock: Clock, **options: float) -> None:
        self.store = store
        self.clock = clock
        self.log = GroupCommit(store, usage.record)
        now_us = lambda: NOW_US + int((clock.now - 1000) * 1e6)  # noqa: E731
        self.credit = Credit(store, clock=clock, now_us=now_us, **{"wait_s": 0, **options})  # type: ignore[arg-type]

    async def hold(self, ticks: int, *, least: int | None = None, terms: Terms = PREPAID) -> Hold:
        found = self.credit.try_hold(TEAM, ticks, "r")
        return found or await self.credit.hold(TEAM, terms, ticks, "r", least=least)

    async def settle(self, hold: Hold, request_id: object, cost: int) -> None:
        await self.log.commit(charged(hold, request_id, cost))
        self.credit.settled(hold, cost)

    async def request(self, request_id: object, ceiling: int, cost: int) -> None:
        hold = await self.hold(ceiling)
        await asyncio.sleep(0)
        await self.settle(hold, request_id, cost)


def charged(hold: Hold, request_id: object, cost: int) -> UsageRow:
    return usage_row(
        request_id, cost_in_usd_ticks=cost, team_id=TEAM, reserve_id=hold.reserve_id, drawn_ticks=hold.drawn(cost)
    )


@asynccontextmanager
async def gateway(store: Store, clock: Clock, **options: float) -> AsyncIterator[Gateway]:
    made = Gateway(store, clock, **options)
    try:
        yield made
    finally:
        await made.log.close()
        await made.credit.close()


def add(store: Store, ticks: int) -> None:
    store.transact(credits.book, "add", team_id=TEAM, ticks=ticks, now_us=NOW_US)


def standing(store: Store, clock: Clock) -> Standing:
    return store.transact(credits.standing, TEAM, now_us=NOW_US + int((clock.now - 1000) * 1e6))


def in_order(store: Store) -> None:
    assert store.read(credits.reconcile, NOW_US) == []


@pytest.mark.parametrize("cost", [10, 7, 1])
async def test_two_gateways_and_fifty_requests_on_credit_for_ten(url: str, clock: Clock, cost: int) -> None:
    with Store.open(url) as first, Store.open(url) as second:
        add(first, 100)
        async with gateway(first, clock) as one, gateway(second, clock) as two:
            tries = [(one, two)[n % 2].request(n, 10, cost) for n in range(50)]
            ends = await asyncio.gather(*tries, return_exceptions=True)
        good = ends.count(None)
        assert {type(end) for end in ends} == {type(None), OutOfCredit}
        assert good <= 100 // cost
        if cost == 10:
            assert good == 10
        left = standing(first, clock)
        assert (left.balance.prepaid, left.balance.receivable, left.reserved) == (100 - good * cost, 0, 0)
        in_order(first)


async def test_those_who_wait_a_little_use_all_of_it(url: str, clock: Clock) -> None:
    """Ceilings are far above the cost: what each leaves lets the next one in."""
    with Store.open(url) as store:
        add(store, 100)
        async with gateway(store, clock, wait_s=60) as one:
            ends = await asyncio.gather(*(one.request(n, 40, 2) for n in range(60)), return_exceptions=True)
            assert ends.count(None) == 31, "the ceiling of the next is not covered by 100 - 31 * 2"
            assert sum(isinstance(end, OutOfCredit) for end in ends) == 29
        assert standing(store, clock).balance.prepaid == 38
        in_order(store)


async def test_a_request_runs_on_what_there_is_if_it_can(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 30)
    async with gateway(sqlite_store, clock) as one:
        hold = await one.hold(100, least=20)
        assert hold.ticks == 30
        with pytest.raises(OutOfCredit):
            await one.hold(100, least=1)
        one.credit.release(hold)
        assert (await one.hold(100, least=30)).ticks == 30


async def test_the_refusal_tells_balance_need_and_what_to_do(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 25_000_000)
    async with gateway(sqlite_store, clock) as one:
        with pytest.raises(OutOfCredit) as caught:
            await one.hold(30_000_000)
    for words in ("0.003 USD", "0.0025 USD", "jubal credits add", "max_tokens"):
        assert words in caught.value.message


async def test_most_holds_ask_no_store(sqlite_store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    add(sqlite_store, 8_000_000)
    async with gateway(sqlite_store, clock) as one:
        await one.settle(await one.hold(100), 0, 100)
        for n in range(1, 1000):
            hold = one.credit.try_hold(TEAM, 100, str(n))
            assert hold is not None
            one.credit.settled(hold, 100)
        assert standing(sqlite_store, clock).reserved == 1_000_000 - 100


async def test_many_who_come_at_once_share_trips(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 80_000)
    takes = []
    async with gateway(sqlite_store, clock) as one:
        real = one.credit._take

        async def counted(*args: object) -> int:
            takes.append(args)
            return await real(*args)  # type: ignore[arg-type]

        one.credit._take = counted  # type: ignore[assignment, method-assign]
        holds = await asyncio.gather(*(one.hold(100) for _ in range(100)))
        assert len(holds) == 100
        assert len(takes) == 1


async def test_who_leaves_in_the_first_trip_disturbs_nobody(url: str, clock: Clock) -> None:
    """The trip goes on without its request. The next one of the team must not begin a second one for the same new reserve."""
    with Store.open(url) as store:
        add(store, 8_000)
        async with gateway(store, clock) as one:
            entered, go_on = threading.Event(), threading.Event()

            def slowly(conn: Connection) -> None:
                entered.set()
                go_on.wait(60)

            real = store.run

            async def run(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
                if fn is credits.take:
                    await real(slowly)
                return await real(fn, *args, **kwargs)

            store.run = run  # type: ignore[method-assign]
            first = asyncio.ensure_future(one.hold(100))
            await asyncio.to_thread(entered.wait, 10)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            second = asyncio.ensure_future(one.hold(100))
            await asyncio.sleep(0)
            go_on.set()
            assert (await second).ticks == 100
            one.credit.release(await second)
            assert standing(store, clock).reserved == 1_000, "one trip was enough for both"
        assert standing(store, clock).reserved == 0


async def test_idle_credit_goes_to_the_gateway_that_needs_it(url: str, clock: Clock) -> None:
    with Store.open(url) as store:
        add(store, 80)
        async with gateway(store, clock) as one, gateway(store, clock) as two:
            await one.request("a", 10, 1)
            assert standing(store, clock).reserved == 9
            with pytest.raises(OutOfCredit):
                await two.hold(75)
            clock.pass_s(4)
            await one.credit.upkeep()
            assert standing(store, clock).reserved == 0
            assert (await two.hold(79)).ticks == 79


async def test_what_is_free_goes_back_while_a_long_request_runs(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 800)
    async with gateway(sqlite_store, clock) as one:
        long = await one.hold(30)
        assert standing(sqlite_store, clock).reserved == 100
        clock.pass_s(4)
        await one.credit.upkeep()
        assert standing(sqlite_store, clock).reserved == 30
        await one.settle(long, "long", 20)
        assert standing(sqlite_store, clock).reserved == 10
    assert standing(sqlite_store, clock).reserved == 0
    in_order(sqlite_store)


async def test_the_credit_of_a_gateway_that_died_comes_back(url: str, clock: Clock) -> None:
    with Store.open(url) as store:
        add(store, 10)
        dead = Gateway(store, clock)
        await dead.hold(10)
        async with gateway(store, clock) as one:
            clock.pass_s(59)
            with pytest.raises(OutOfCredit):
                await one.hold(10)
            clock.pass_s(2)
            assert (await one.hold(10)).ticks == 10
        clock.pass_s(600)
        assert store.transact(credits.sweep, NOW_US + 700_000_000) == 0
        await dead.log.close()


async def test_a_living_gateway_keeps_its_reserve(url: str, clock: Clock) -> None:
    with Store.open(url) as store:
        add(store, 10)
        async with gateway(store, clock) as one, gateway(store, clock) as two:
            long = await one.hold(10)
            for _ in range(30):
                clock.pass_s(10)
                await one.credit.upkeep()
                await two.credit.upkeep()
                with pytest.raises(OutOfCredit):
                    await two.hold(1)
            await one.settle(long, "long", 10)
        assert standing(store, clock).balance.prepaid == 0
        in_order(store)


async def test_nothing_is_held_in_a_reserve_that_could_not_be_renewed(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 800)
    async with gateway(sqlite_store, clock) as one:
        first = await one.hold(10)
        clock.pass_s(41)  # of 60
        assert one.credit.try_hold(TEAM, 10, "r") is None
        second = await one.hold(10)
        assert second.reserve_id != first.reserve_id
        one.credit.release(first)
        one.credit.release(second)


async def test_a_reserve_that_was_lost_is_not_believed_in(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 800)
    async with gateway(sqlite_store, clock) as one:
        hold = await one.hold(10)
        sqlite_store.transact(credits.close, [hold.reserve_id])
        await one.credit.upkeep()
        assert one.credit.try_hold(TEAM, 10, "r") is None
        await one.settle(hold, "a", 10)
        assert standing(sqlite_store, clock).balance.prepaid == 790
    in_order(sqlite_store)


async def test_a_settlement_of_unknown_fate_retires_its_reserve(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 80)
    async with gateway(sqlite_store, clock) as one:
        hold = await one.hold(10)
        one.credit.settled(hold, 10, certain=False)
        assert one.credit.try_hold(TEAM, 1, "r") is None
        assert standing(sqlite_store, clock).reserved == 10
        await one.credit.upkeep()
        assert standing(sqlite_store, clock).reserved == 0


async def test_the_store_is_away(url: str, clock: Clock) -> None:
    store = Store.open(url)
    add(store, 80)
    one = Gateway(store, clock)
    hold = await one.hold(5)
    await one.log.close()
    store.close()
    with pytest.raises(StoreUnavailable):
        await one.hold(50)
    one.credit.settled(hold, 5, certain=False)
    await one.credit.close()


async def test_only_the_first_end_of_a_hold_counts(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 80)
    async with gateway(sqlite_store, clock) as one:
        hold = await one.hold(10)
        one.credit.settled(hold, 4)
        one.credit.release(hold)
        assert hold.reserve.free == 6
        assert hold.reserve.held == 0


async def test_who_gives_up_waiting_loses_nothing(sqlite_store: Store, clock: Clock) -> None:
    add(sqlite_store, 10)
    async with gateway(sqlite_store, clock, wait_s=60) as one:
        first = await one.hold(10)
        waiting = [asyncio.create_task(one.hold(10)) for _ in range(3)]
        await asyncio.sleep(0.05)
        waiting[0].cancel()
        one.credit.release(first)
        second = await waiting[1]
        assert not waiting[2].done()
        one.credit.release(second)
        one.credit.release(await waiting[2])
        assert standing(sqlite_store, clock).reserved == 10


async def test_a_monthly_grant_and_a_cap(sqlite_store: Store, clock: Clock) -> None:
    terms = Terms(monthly_grant=30, cap=20)
    async with gateway(sqlite_store, clock) as one:
        for n, cost in enumerate((30, 15)):
            await one.settle(await one.hold(cost, terms=terms), n, cost)
        with pytest.raises(OutOfCredit):
            await one.hold(6, terms=terms)
        await one.settle(await one.hold(5, terms=terms), "last", 5)
        left = standing(sqlite_store, clock).balance
        assert (left.grant, left.receivable) == (0, -20)
    in_order(sqlite_store)


async def test_at_random_three_gateways_never_overspend(url: str, clock: Clock) -> None:
    """Costs up to the ceiling, failures, cancellations, upkeep and gateways that die, for a while."""
    dice = random.Random(7)
    stores = [Store.open(url) for _ in range(3)]
    add(stores[0], 3000)
    gateways = [Gateway(store, clock, wait_s=0.01) for store in stores]

    async def one_request(n: int) -> None:
        which = dice.randrange(3)
        ceiling = dice.randint(1, 120)
        hold = await gateways[which].hold(ceiling, least=dice.choice([None, 1]))
        await asyncio.sleep(dice.random() / 100)
        fate = dice.random()
        if fate < 0.2:
            gateways[which].credit.release(hold)
            return
        cost = dice.randint(0, hold.ticks)
        try:
            await gateways[which].log.commit(charged(hold, n, cost))
        except StoreUnavailable:
            return  # its gateway was killed
        gateways[which].credit.settled(hold, cost, certain=fate < 0.9)

    for round_ in range(12):
        ends = await asyncio.gather(*(one_request(f"{round_} {n}") for n in range(25)), return_exceptions=True)  # type: ignore[arg-type]
        assert all(end is None or isinstance(end, OutOfCredit) for end in ends), ends
        clock.pass_s(dice.choice([0.5, 5, 20]))
        for one in gateways:
            await one.credit.upkeep()
        if round_ % 4 == 3:  # one dies with what it has reserved, and another takes its place
            which = dice.randrange(3)
            await gateways[which].log.close()
            gateways[which] = Gateway(stores[which], clock, wait_s=0.01)
        now = standing(stores[0], clock)
        assert now.balance.credit >= 0
        assert now.balance.credit >= now.reserved
        assert stores[0].read(credits.reconcile, NOW_US) == []
    assert standing(stores[0], clock).balance.revenue > 2000
    for one in gateways:
        await one.log.close()
        await one.credit.close()
    clock.pass_s(100)
    assert standing(stores[0], clock).reserved == 0
    for store in stores:
        store.close()
