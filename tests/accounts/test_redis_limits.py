"""Limits in a real Redis: the same answers as in memory, from any number of gateways, and what happens when it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jubal.accounts.limits import Limiter, MemoryLimiter, Scope, Ticket
from jubal.accounts.redis_limits import RedisLimiter
from jubal.core.errors import StoreUnavailable, TooFast
from jubal.testing.limits import StepClock, ask, check_limiter, how_many
from tests.redis_server import RedisServer, redis_server

ONE = (Scope("{t}:one", "This API key has reached its rate limit", rpm=50, tpm=100_000),)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared: RedisServer) -> Iterator[RedisServer]:
    """With empty counters, and running again afterwards."""
    shared.stop()
    shared.start()
    yield shared
    shared.stop()
    shared.start()


async def test_memory_keeps_the_promise() -> None:
    await check_limiter(MemoryLimiter)


async def test_redis_keeps_the_promise(redis: RedisServer) -> None:
    await check_limiter(lambda clock: RedisLimiter(redis.url, now_us=clock.now_us))


# ------------------------------------------------------------------------------------------ the same as in memory

LIMIT = st.none() | st.integers(1, 30)
SCOPES = st.lists(st.tuples(LIMIT, LIMIT, st.none() | st.integers(1, 500)), min_size=1, max_size=4)
STEP = st.one_of(
    st.tuples(st.just("take"), st.integers(0, 3), st.integers(0, 300)),  # of which scopes, tokens
    st.tuples(st.just("give"), st.integers(0, 5), st.integers(-200, 300)),  # which ticket, unused
    st.tuples(st.just("add"), st.integers(0, 5), st.integers(0, 100)),
    st.tuples(st.just("pass"), st.integers(0, 2), st.integers(0, 70_000_000)),  # microseconds
)
BIG = st.lists(st.tuples(st.none(), st.just(10**6), st.integers(10**6, 10**8)), min_size=1, max_size=2)


def seen(found: Ticket | TooFast) -> tuple[object, ...]:
    if isinstance(found, TooFast):
        return found.message, found.retry_after_s, found.allowance
    return *found.allowance, found.epoch


_runs = iter(range(10**9))


async def play(
    limiter: Limiter, clock: StepClock, scopes: list[Scope], steps: list[tuple[str, int, int]]
) -> list[object]:
    """What a limiter says to a script of takes and gives."""
    said: list[object] = []
    tickets: list[Ticket] = []
    for what, index, number in steps:
        if what == "pass":
            await ask(
                limiter, (Scope("{run}:flush", "", rpm=10**6),)
            )  # what was given back arrives before its time is over
            clock.us += number
        elif what == "take":
            found = await ask(limiter, tuple(scopes[: index + 1]), number)
            said.append(seen(found))
            if isinstance(found, Ticket):
                tickets.append(found)
        elif index < len(tickets):
            (limiter.give_back if what == "give" else limiter.add)(tickets[-1 - index], number)
    return said


@settings(max_examples=60, deadline=None)
@given(SCOPES, st.lists(STEP, max_size=30), st.integers(0, 10**8))
async def test_redis_says_what_memory_says(
    shared: RedisServer, limits: list[tuple[int | None, ...]], steps: list[tuple[str, int, int]], start_us: int
) -> None:
    await agree(shared, limits, steps, start_us)


@settings(max_examples=25, deadline=None)
@given(
    BIG,
    st.lists(st.tuples(st.just("take"), st.just(1), st.integers(0, 3 * 10**7)) | STEP, max_size=20),
    st.integers(0, 10**8),
)
async def test_with_large_numbers_too(
    shared: RedisServer, limits: list[tuple[int | None, ...]], steps: list[tuple[str, int, int]], start_us: int
) -> None:
    await agree(shared, limits, steps, start_us)


async def agree(
    shared: RedisServer, limits: list[tuple[int | None, ...]], steps: list[tuple[str, int, int]], start_us: int
) -> None:
    run = next(_runs)
    scopes = [Scope(f"{{run{run}}}:{n}", f"Scope {n}", *each) for n, each in enumerate(limits)]
    mine, theirs = StepClock(10**15 + start_us), StepClock(10**15 + start_us)
    redis = RedisLimiter(shared.url, now_us=theirs.now_us, timeout_s=60)
    try:
        assert await play(redis, theirs, scopes, steps) == await play(MemoryLimiter(mine), mine, scopes, steps)
    finally:
        await redis.close()


# --------------------------------------------------------------------------------------------------- many gateways


async def test_four_gateways_let_in_what_one_would(redis: RedisServer) -> None:
    clock = StepClock(10**15)
    gateways = [RedisLimiter(redis.url, now_us=clock.now_us, timeout_s=60) for _ in range(4)]
    found = await asyncio.gather(*(ask(gateways[n % 4], ONE, 10) for n in range(200)))
    assert sum(isinstance(one, Ticket) for one in found) == 50
    await asyncio.gather(*(gateway.close() for gateway in gateways))


async def test_what_is_given_back_just_before_the_end_is_not_lost(redis: RedisServer) -> None:
    clock = StepClock(10**15)
    one, two = [RedisLimiter(redis.url, now_us=clock.now_us, timeout_s=60) for _ in range(2)]
    tickets = [await one.take(ONE, 10_000) for _ in range(10)]
    assert isinstance(await ask(two, ONE, 10_000), TooFast)
    for ticket in tickets:
        one.give_back(ticket, 10_000)
    await one.close()
    assert isinstance(await ask(two, ONE, 100_000), Ticket)
    await two.close()


async def test_counters_are_gone_when_nothing_is_spent(redis: RedisServer) -> None:
    import redis as client

    limiter = RedisLimiter(redis.url, timeout_s=60)
    names = ("jubal:limit:{t}:second", "jubal:limit:{t}:one")
    with client.Redis.from_url(redis.url) as raw:
        for _ in range(20):  # the one of a second is soon gone
            await limiter.take(ONE, 10)
            await limiter.take((Scope("{t}:second", "S", rps=1000),), 0)
            left = raw.eval("return {redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2])}", 2, *names)
            times = dict(zip(names, left, strict=True))
            if min(times.values()) > 0:
                break
        assert {key.decode() for key in raw.keys("*")} <= set(names)
    assert 0 < times["jubal:limit:{t}:second"] <= 1100
    assert 0 < times["jubal:limit:{t}:one"] <= 122_000
    await limiter.close()


async def test_a_request_that_is_gone_gives_back_what_it_took(redis: RedisServer) -> None:
    limiter = RedisLimiter(redis.url, timeout_s=60)
    await limiter.take(ONE, 0)
    leaving = [asyncio.ensure_future(limiter.take(ONE, 10_000)) for _ in range(9)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    assert {type(left) for left in await asyncio.gather(*leaving, return_exceptions=True)} == {asyncio.CancelledError}
    await limiter.take(ONE, 0)  # whatever was underway is over
    assert isinstance(await ask(limiter, ONE, 100_000), Ticket)
    await limiter.close()


async def test_scripts_that_were_flushed_are_loaded_again(redis: RedisServer) -> None:
    import redis as client

    limiter = RedisLimiter(redis.url, now_us=StepClock(10**15).now_us, timeout_s=60)
    await limiter.take(ONE, 10)
    with client.Redis.from_url(redis.url) as raw:
        raw.script_flush()
    found = await limiter.take(ONE, 10)
    assert found.allowance.remaining_requests == 48
    await limiter.close()


# ------------------------------------------------------------------------------------------------------------ away


async def until_back(limiter: Limiter) -> Ticket:
    async with asyncio.timeout(60):
        while True:
            try:
                return await limiter.take(ONE, 10)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_while_redis_is_away_nothing_is_let_in_and_it_recovers_by_itself(redis: RedisServer) -> None:
    limiter = RedisLimiter(redis.url)
    ticket = await limiter.take(ONE, 10)
    redis.stop()
    for _ in range(3):
        with pytest.raises(StoreUnavailable) as caught:
            await limiter.take(ONE, 10)
        assert (caught.value.code, caught.value.retry_after_s) == ("limits_unavailable", 1.0)
        assert str(redis.port) not in caught.value.message
    limiter.give_back(ticket, 5)
    redis.start()
    assert (await until_back(limiter)).allowance.remaining_requests == 49
    await limiter.close()


async def test_a_redis_that_hangs_is_away_and_comes_back(redis: RedisServer) -> None:
    limiter = RedisLimiter(redis.url, timeout_s=60)
    await limiter.take(ONE, 10)
    redis.freeze()
    limiter._timeout_s = 0.2
    try:
        found = await asyncio.gather(*(limiter.take(ONE, 10) for _ in range(20)), return_exceptions=True)
        assert {type(one) for one in found} == {StoreUnavailable}
    finally:
        redis.thaw()
        limiter._timeout_s = 60
    await until_back(limiter)
    await limiter.close()


async def test_a_gateway_may_count_for_itself_while_redis_is_away(redis: RedisServer) -> None:
    limiter = RedisLimiter(redis.url, spare=MemoryLimiter(StepClock(10**15)), rest_s=0.01, timeout_s=60)
    redis.stop()
    assert await how_many(limiter, ONE, 10) == 50
    ticket = await limiter.take((Scope("other", "S", tpm=100),), 100)
    assert ticket.spare
    redis.start()
    async with asyncio.timeout(60):
        while (await limiter.take((Scope("more", "S", rpm=10**6),), 0)).spare:
            await asyncio.sleep(0.02)
    assert (await limiter.take(ONE, 10)).allowance.remaining_requests == 49, "Redis counts again"
    limiter.give_back(ticket, 100)
    await limiter.close()


async def test_what_was_given_back_while_it_was_away_is_not_forgotten(redis: RedisServer) -> None:
    limiter = RedisLimiter(redis.url, timeout_s=60, rest_s=0.05)
    tickets = [await limiter.take(ONE, 50_000) for _ in range(2)]
    redis.freeze()
    limiter._timeout_s = 0.2
    with pytest.raises(StoreUnavailable):
        await limiter.take(ONE, 1)
    for ticket in tickets:
        limiter.give_back(ticket, 50_000)
    redis.thaw()
    limiter._timeout_s = 60
    await until_back(limiter)
    assert isinstance(await ask(limiter, ONE, 90_000), Ticket)
    await limiter.close()


async def test_a_closed_limiter_leaves_a_dead_redis_alone(redis: RedisServer) -> None:
    limiter = RedisLimiter(redis.url, timeout_s=0.2)
    ticket = await limiter.take(ONE, 10)
    redis.stop()
    limiter.give_back(ticket, 10)
    async with asyncio.timeout(60):
        await limiter.close()
    redis.start()


def test_no_password_in_what_is_raised() -> None:
    async def take() -> None:
        limiter = RedisLimiter("redis://user:verysecret@127.0.0.1:1/0", timeout_s=0.2)
        try:
            await limiter.take(ONE, 1)
        finally:
            await limiter.close()

    with pytest.raises(StoreUnavailable) as caught:
        asyncio.run(take())
    assert "verysecret" not in repr(caught.value)
