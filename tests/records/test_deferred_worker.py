"""Workers for deferred requests, one and several on one store, with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from jubal.accounts import keys, tables, teams, usage
from jubal.accounts.keys import Caller, KeyRing
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.store import GroupCommit, Store
from jubal.core.errors import AtCapacity, EngineUnavailable, NotFound
from jubal.core.events import EngineEvent, TextDelta, TurnEnded
from jubal.core.generation import Generation
from jubal.core.model import Catalogue, Model
from jubal.core.money import Price
from jubal.core.usage import Usage
from jubal.records import answers
from jubal.records import deferred as records
from jubal.serving.admission import Admission
from jubal.serving.breaker import Breaker, never
from jubal.serving.deferred import ATTEMPTS_MAX, Deferred, PlainLine
from jubal.serving.pipeline import Pipeline, Served
from jubal.testing import Hang, ScriptedEngine
from jubal.wire.openai_chat import OpenAIChat
from tests.accounts.conftest import NOW_US

GOOD = (TextDelta("a"), TurnEnded(("stop",), Usage(10, 2, 4)))
DIALECT = OpenAIChat()


class Now:
    """Microseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.us = NOW_US

    def __call__(self) -> int:
        return self.us


@dataclass
class Gateway:
    store: Store
    pipeline: Pipeline
    admission: Admission
    jobs: Deferred
    caller: Caller

    async def submit(self, text: str = "hi", caller: Caller | None = None) -> str:
        fields = {"model": "grok-4", "messages": [{"role": "user", "content": text}], "deferred": True}
        body = json.dumps(fields).encode()
        request_id = str(uuid.uuid4())
        generation = DIALECT.parse(body).generation
        await self.jobs.submit(
            self.pipeline.admit(caller or self.caller, "chat", generation, request_id=request_id), "chat", body
        )
        return request_id

    async def fetch(self, request_id: str, timeout_s: float = 60) -> tuple[int, bytes]:
        async with asyncio.timeout(timeout_s):
            while True:
                status, body = await self.jobs.fetch(self.caller, "chat", request_id)
                if status != 202:
                    return status, body
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway(
    store: Store,
    engine: ScriptedEngine,
    *,
    now: Callable[[], int],
    working: bool = True,
    breaker: Breaker | None = None,
    **options: float,
) -> AsyncGenerator[Gateway, None]:
    """A pipeline and a worker that polls fast. One key is made where there is none."""
    if not store.read(keys.listing):
        team = store.read(teams.default)
        store.transact(keys.create, team_id=team.id, name="k", now_us=NOW_US)
    caller = store.read(keys.caller_of, store.read(keys.listing)[0].id, NOW_US)
    admission = Admission(engine.name, None, 5)
    log = GroupCommit(store, answers.settle)
    model = Model("grok-4", engine.name, "up", price=Price(3, 1, 5))
    pipeline = Pipeline(
        Catalogue.of([model]),
        {engine.name: Served(engine, admission, breaker or never())},
        KeyRing(store),
        MemoryLimiter(),
        log,
    )
    jobs = Deferred(
        store,
        pipeline,
        {"chat": lambda: PlainLine(DIALECT)},
        now_us=now,
        **{"poll_s": 0.02, "lease_s": 60.0, **options},
    )  # type: ignore[arg-type]
    if working:
        jobs.start()
    try:
        yield Gateway(store, pipeline, admission, jobs, caller)
    finally:
        await jobs.stop()
        await pipeline.drain()
        await log.close()


class Counting(ScriptedEngine):
    """Says the prompt back, slowly, and counts how often and how many at once each is asked."""

    def __init__(self, asked: Counter[str], open_: Counter[str], most: Counter[str]) -> None:
        super().__init__(GOOD)
        self._asked, self._open, self._most = asked, open_, most

    async def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        text = turn.messages[-1].text
        self._asked[text] += 1
        self._open[text] += 1
        self._most[text] = max(self._most[text], self._open[text])
        try:
            await asyncio.sleep(0.01)
            yield TextDelta(text)
            yield TurnEnded(("stop",), Usage(1, 1, 0))
        finally:
            self._open[text] -= 1


async def test_two_workers_on_one_store_share_the_jobs_and_run_none_twice(url: str) -> None:
    counters: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
    now = Now()
    with Store.open(url) as first_store, Store.open(url) as second_store:
        async with (
            gateway(first_store, first := Counting(*counters), now=now) as one,
            gateway(second_store, second := Counting(*counters), now=now) as two,
        ):
            assert first is not second
            ids = [await (one, two)[n % 2].submit(f"job {n}") for n in range(40)]
            answers = [json.loads((await one.fetch(request_id))[1]) for request_id in ids]
        asked, _, most = counters
        assert [answer["choices"][0]["message"]["content"] for answer in answers] == [f"job {n}" for n in range(40)]
        assert set(asked.values()) == {1}
        assert set(most.values()) == {1}
        rows = first_store.read(usage.listing)
    assert sorted(row.request_id for row in rows) == sorted(ids)
    assert {row.status for row in rows} == {"ok"}


async def test_a_job_begins_when_it_is_submitted_and_not_at_the_next_look(sqlite_store: Store) -> None:
    async with gateway(sqlite_store, ScriptedEngine(GOOD, GOOD, GOOD), now=Now(), poll_s=3600) as one:
        for _ in range(3):
            await asyncio.sleep(0.1)  # it has nothing to do, and waits
            assert (await one.fetch(await one.submit(), timeout_s=60))[0] == 200


async def test_what_another_gateway_took_in_is_found(sqlite_store: Store) -> None:
    now = Now()
    async with gateway(sqlite_store, ScriptedEngine(GOOD), now=now, working=False) as idle:
        async with gateway(sqlite_store, ScriptedEngine(GOOD), now=now) as worker:
            assert (await worker.fetch(await idle.submit()))[0] == 200


async def test_a_bounded_number_runs_at_a_time(sqlite_store: Store) -> None:
    engine = ScriptedEngine((TextDelta("a"), Hang()))
    async with gateway(sqlite_store, engine, now=Now(), running_max=2) as one:
        for _ in range(5):
            await one.submit()
        async with asyncio.timeout(60):
            while engine.running < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert engine.running == 2
    assert engine.running == 0


async def test_a_stop_gives_back_and_leaves_no_row(store: Store) -> None:
    now = Now()
    engine = ScriptedEngine((TextDelta("a"), Hang()), GOOD)
    async with gateway(store, engine, now=now) as one:
        request_id = await one.submit()
        while not engine.running:
            await asyncio.sleep(0.01)
    assert (engine.cut, store.read(usage.listing)) == (1, [])
    async with gateway(store, engine, now=now) as one:
        status, body = await one.fetch(request_id)
        assert status == 200
    [row] = store.read(usage.listing)
    assert (row.request_id, row.status) == (request_id, "ok")
    assert row.cost_in_usd_ticks == json.loads(body)["usage"]["cost_in_usd_ticks"]


async def test_a_request_that_never_ends_well_is_given_up_after_three_attempts(sqlite_store: Store) -> None:
    """Each claim below is a server that was killed."""
    now = Now()
    engine = ScriptedEngine(GOOD)
    async with gateway(sqlite_store, engine, now=now, working=False) as one:
        request_id = await one.submit()
    for attempt in range(ATTEMPTS_MAX):
        [job] = sqlite_store.transact(
            records.claim, dialects=["chat"], jobs_max=1, lease=str(attempt), lease_us=1, now_us=now.us
        )
        assert job.attempts == attempt + 1
        now.us += 1
    async with gateway(sqlite_store, engine, now=now) as one:
        status, body = await one.fetch(request_id)
    assert (status, json.loads(body)["error"]["code"]) == (500, "deferred_given_up")
    assert (engine.turns, sqlite_store.read(usage.listing)) == ([], [])


class Waiting(ScriptedEngine):
    """Says nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__(GOOD)
        self.asked = 0
        self.go = asyncio.Event()

    async def stream(self, turn: Generation) -> AsyncGenerator[EngineEvent, None]:
        self.asked += 1
        await self.go.wait()
        for event in GOOD:
            yield event


async def test_a_lease_is_renewed_while_its_job_runs(sqlite_store: Store) -> None:
    """A third of it passes after each renewal, so that three of them are longer than one lease."""
    engine = Waiting()
    now = Now()

    def ends_us() -> int:
        found: int = sqlite_store.read(lambda conn: conn.scalar(sa.select(tables.deferred.c.lease_until_us)))
        return found

    async with gateway(sqlite_store, engine, now=now, lease_s=0.3) as one:
        async with gateway(sqlite_store, engine, now=now, lease_s=0.3):
            request_id = await one.submit()
            async with asyncio.timeout(60):
                while not engine.asked:
                    await asyncio.sleep(0.01)
                while now.us < NOW_US + 900_000:
                    if ends_us() >= now.us + 300_000:
                        now.us += 100_000
                    await asyncio.sleep(0.01)
            engine.go.set()
            assert (await one.fetch(request_id))[0] == 200
    assert engine.asked == 1


async def test_a_lost_lease_cuts_the_attempt(sqlite_store: Store) -> None:
    now = Now()
    engine = ScriptedEngine((TextDelta("a"), Hang()))
    async with gateway(sqlite_store, engine, now=now, lease_s=0.3) as one:
        await one.submit()
        while not engine.running:
            await asyncio.sleep(0.01)
        now.us += 300_000
        [job] = sqlite_store.transact(
            records.claim, dialects=["chat"], jobs_max=1, lease="other", lease_us=10**9, now_us=now.us
        )
        assert job.attempts == 2
        async with asyncio.timeout(60):
            while engine.running:
                await asyncio.sleep(0.01)
    assert sqlite_store.transact(records.finish, job, records.Ended("done", 200, b"other's"))
    assert sqlite_store.read(usage.listing) == []


async def test_an_engine_that_fails_is_the_answer(sqlite_store: Store) -> None:
    async with gateway(sqlite_store, ScriptedEngine((EngineUnavailable("away"),)), now=Now()) as one:
        request_id = await one.submit()
        status, body = await one.fetch(request_id)
        assert (status, json.loads(body)["error"]["message"]) == (503, "away")
        with pytest.raises(NotFound):
            await one.fetch(request_id)
    [row] = sqlite_store.read(usage.listing)
    assert (row.request_id, row.status, row.cost_in_usd_ticks) == (request_id, "failed", 0)


async def test_jobs_wait_while_others_wait_for_the_engine(sqlite_store: Store) -> None:
    engine = ScriptedEngine(GOOD)
    now = Now()
    async with gateway(sqlite_store, engine, now=now) as one:
        queue: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one.admission._waiting.append(queue)
        request_id = await one.submit()
        await asyncio.sleep(0.2)
        assert engine.turns == []
        assert (await one.jobs.fetch(one.caller, "chat", request_id))[0] == 202
        one.admission._waiting.clear()
        now.us += 2_000_000
        assert (await one.fetch(request_id))[0] == 200


@pytest.mark.parametrize("gone", ["deleted", "disabled", "expired", "narrowed"])
async def test_a_key_is_asked_for_again_when_its_job_runs(store: Store, gone: str) -> None:
    now = Now()
    engine = ScriptedEngine(GOOD)
    async with gateway(store, engine, now=now, working=False) as one:
        expires_us = NOW_US + 5 if gone == "expired" else None
        key, _ = store.transact(
            keys.create, team_id=one.caller.team_id, name="other", now_us=NOW_US + 1, expires_us=expires_us
        )
        request_id = await one.submit(caller=store.read(keys.caller_of, key.id, NOW_US))
    match gone:
        case "deleted":
            store.transact(keys.delete, key.id)
        case "disabled":
            store.transact(keys.disable, key.id, now_us=NOW_US)
        case "expired":
            now.us += 5
        case _:
            store.transact(lambda conn: keys._change(conn, key.id, NOW_US, acls='["api-key:endpoint:chat"]'))
    async with gateway(store, engine, now=now) as one:
        status, body = await one.fetch(request_id)
    assert status == 403
    code = "model_not_allowed" if gone == "narrowed" else f"key_{gone}"
    assert json.loads(body)["error"]["code"] == code
    assert engine.turns == []


async def test_the_worker_sweeps_what_has_expired(sqlite_store: Store) -> None:
    now = Now()
    async with gateway(sqlite_store, ScriptedEngine(GOOD), now=now) as one:
        request_id = await one.submit()
        async with asyncio.timeout(60):
            while sqlite_store.read(records.state, request_id, one.caller.team_id, "chat", now.us) != "done":
                await asyncio.sleep(0.01)
        now.us += records.LIFE_US
        with pytest.raises(NotFound):
            await one.jobs.fetch(one.caller, "chat", request_id)
        count = sa.select(sa.func.count()).select_from(tables.deferred)
        async with asyncio.timeout(60):
            while sqlite_store.read(lambda conn: conn.scalar(count)):
                await asyncio.sleep(0.01)


def held_tokens(one: Gateway, caller: Caller) -> int:
    limiter = one.pipeline._limiter
    assert isinstance(limiter, MemoryLimiter)
    return limiter.held(f"{{{caller.team_id}}}:key:{caller.key_id}")


async def test_tokens_are_not_held_for_ever_for_a_job_that_may_run_elsewhere(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(sqlite_store, ScriptedEngine(GOOD), now=Now(), working=False, tokens_count_s=0.2) as one:
        limited = Caller(one.caller.key_id, one.caller.team_id, one.caller.acl, tpm=600)
        monkeypatch.setattr(records, "WAITING_MAX", 1)
        await one.submit(caller=limited)
        for _ in range(5):  # refused: their tokens are given back, or the third would be too fast
            with pytest.raises(AtCapacity):
                await one.submit(caller=limited)
        assert held_tokens(one, limited) > 0
        async with asyncio.timeout(60):
            while held_tokens(one, limited):
                await asyncio.sleep(0.02)


async def test_a_stop_leaves_no_tokens_held(sqlite_store: Store) -> None:
    async with gateway(sqlite_store, ScriptedEngine(GOOD), now=Now(), working=False) as one:
        limited = Caller(one.caller.key_id, one.caller.team_id, one.caller.acl, tpm=600)
        await one.submit(caller=limited)
        await one.jobs.stop()
        assert held_tokens(one, limited) == 0


async def test_tokens_that_a_job_did_not_use_are_given_back_when_it_has_ended(sqlite_store: Store) -> None:
    async with gateway(sqlite_store, ScriptedEngine(GOOD), now=Now()) as one:
        limited = Caller(one.caller.key_id, one.caller.team_id, one.caller.acl, tpm=600)
        for _ in range(6):  # each takes 261 at first and uses 12
            request_id = await one.submit(caller=limited)
            assert (await one.fetch(request_id))[0] == 200
            async with asyncio.timeout(60):
                while held_tokens(one, limited):
                    await asyncio.sleep(0.01)


async def test_jobs_wait_for_an_engine_that_rests(sqlite_store: Store) -> None:
    """They used to be asked of it one after the other; with a breaker that fails at once, all of them would be lost in a moment."""
    engine = ScriptedEngine((EngineUnavailable("away"),), (EngineUnavailable("away"),), GOOD)
    now, clock = Now(), [0.0]
    breaker = Breaker(engine.name, failures_max=2, rest_s=5, clock=lambda: clock[0])
    async with gateway(sqlite_store, engine, now=now, breaker=breaker) as one:
        lost = [await one.submit("lost"), await one.submit("lost")]
        assert [(await one.fetch(request_id))[0] for request_id in lost] == [503, 503]
        assert breaker.state == "open"
        kept = await one.submit("kept")
        await asyncio.sleep(0.1)
        assert len(engine.turns) == 2
        clock[0] += 5
        async with asyncio.timeout(60):
            while True:
                now.us += 3_000_000  # past the pause of a job that was given back
                status, body = await one.jobs.fetch(one.caller, "chat", kept)
                if status != 202:
                    break
                await asyncio.sleep(0.02)
        assert status == 200, body
        assert len(engine.turns) == 3
