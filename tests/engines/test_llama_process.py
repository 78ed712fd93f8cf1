"""The owner of a child: what it does, in order, with the world replaced by a recording fake."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from jubal.core.errors import EngineUnavailable
from jubal.engines.llama_cpp.process import Process
from jubal.engines.llama_cpp.scheduler import Policy

POLICY = Policy(load_s=60, probe_every_s=2, silent_s=15, settled_s=30)


class FakeChild:
    """A process that ends when a test says so, or by a signal."""

    def __init__(self, effects: FakeEffects) -> None:
        self._effects = effects
        self._gone = asyncio.Event()
        self.said: str | None = None

    async def wait(self) -> None:
        await self._gone.wait()

    def signal(self, number: int) -> None:
        self._effects.done.append(signal.Signals(number).name)
        if number == signal.SIGKILL or not self._effects.ignores_term:
            self._gone.set()

    def last_words(self) -> str | None:
        return self.said

    def die(self, words: str | None = None) -> None:
        self.said = words
        self._effects.well = False
        self._gone.set()


class FakeEffects:
    """Records what was done. Time passes in `advance` only."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.children: list[FakeChild] = []
        self.trouble: str | None = None
        self.fails_to_spawn = False
        self.well: bool | None = False  # None: does not answer
        self.ignores_term = False
        self._now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def problem(self) -> str | None:
        return self.trouble

    async def spawn(self) -> FakeChild:
        self.done.append("spawn")
        if self.fails_to_spawn:
            raise OSError("out of memory")
        self.children.append(FakeChild(self))
        return self.children[-1]

    async def healthy(self, timeout_s: float) -> bool:
        if self.well is None:
            await self.sleep(timeout_s)
        return bool(self.well)

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, woken))
        await woken

    async def clean(self) -> None:
        self.done.append("clean")

    async def advance(self, seconds: float) -> None:
        end = self._now + seconds
        await settle()
        while due := sorted((at, woken) for at, woken in self._sleepers if at <= end and not woken.done()):
            at, woken = due[0]
            self._now = max(self._now, at)
            woken.set_result(None)
            await settle()
        self._sleepers = [(at, woken) for at, woken in self._sleepers if not woken.done()]
        self._now = end


async def settle() -> None:
    """Everything that can run has run."""
    for _ in range(30):
        await asyncio.sleep(0)


Make = Callable[[], Awaitable[tuple[Process, FakeEffects]]]


@pytest.fixture
async def world() -> AsyncIterator[FakeEffects]:
    return FakeEffects()


@pytest.fixture
async def process(world: FakeEffects) -> AsyncIterator[Process]:
    heard: list[tuple[str, str | None]] = []
    process = Process(world, POLICY, lambda state, reason: heard.append((state, reason)))
    process.heard = heard  # type: ignore[attr-defined]
    yield process
    world.ignores_term = False
    await process.close()


async def test_it_is_ready_when_the_child_says_so(process: Process, world: FakeEffects) -> None:
    process.start()
    waiting = asyncio.create_task(process.ready())
    await world.advance(1)
    assert process.state == "starting"
    assert not waiting.done()
    world.well = True
    await world.advance(0.1)
    assert process.state == "ready"
    assert await waiting == 1


async def test_stopping_before_starting_and_twice(process: Process, world: FakeEffects) -> None:
    await process.close()
    assert process.state == "stopped"
    with pytest.raises(EngineUnavailable):
        await process.ready(1)


async def test_close_ends_the_child_and_cleans_up(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(1)
    await process.close()
    assert world.done == ["spawn", "SIGTERM", "clean"]
    assert process.state == "stopped"
    await process.close()


async def test_close_kills_a_child_that_will_not_end(process: Process, world: FakeEffects) -> None:
    world.well, world.ignores_term = True, True
    process.start()
    await world.advance(1)
    closing = asyncio.create_task(process.close())
    await world.advance(2.9)
    assert not closing.done()
    assert process.state == "stopping"
    await world.advance(0.2)
    assert closing.done()
    assert world.done == ["spawn", "SIGTERM", "SIGKILL", "clean"]


async def test_close_while_loading_and_while_pausing(process: Process, world: FakeEffects) -> None:
    world.well = None  # does not even answer
    process.start()
    await world.advance(1)
    await asyncio.wait_for(process.close(), 60)
    assert world.done == ["spawn", "SIGTERM", "clean"]


async def test_a_caller_of_close_that_is_cancelled_does_not_stop_the_end(process: Process, world: FakeEffects) -> None:
    world.well, world.ignores_term = True, True
    process.start()
    await world.advance(1)
    closing = asyncio.create_task(process.close())
    await settle()
    closing.cancel()
    await world.advance(5)
    assert process.state == "stopped"
    assert "SIGKILL" in world.done


async def test_a_dead_child_is_started_again_after_a_pause(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(1)
    world.children[0].die("killed by signal 9.")
    await settle()
    assert process.state == "starting"
    assert process.reason == "It ended: killed by signal 9."
    await world.advance(0.4)
    assert len(world.children) == 1
    world.well = True
    await world.advance(0.2)
    assert len(world.children) == 2
    assert process.state == "ready"
    assert process.reason is None
    assert await process.ready() == 2


async def test_who_waits_is_told_why_when_time_is_up(process: Process, world: FakeEffects) -> None:
    process.start()
    await world.advance(1)
    world.children[0].die("out of memory")
    await settle()
    with pytest.raises(EngineUnavailable, match="out of memory"):
        await process.ready(timeout_s=0.01)


async def test_it_fails_after_children_that_were_never_ready_and_recovers(process: Process, world: FakeEffects) -> None:
    process.start()
    for _ in range(3):
        await world.advance(0.1)
        world.children[-1].die("bad file")
        await world.advance(1.1)
    assert process.state == "failed"
    with pytest.raises(EngineUnavailable, match="bad file"):
        await process.ready()
    world.well = True
    await world.advance(30)
    assert process.state == "ready"
    assert await process.ready() == 4


async def test_while_failed_a_new_try_lets_nobody_wait(process: Process, world: FakeEffects) -> None:
    world.trouble = "There is no model file."
    process.start()
    await settle()
    assert (process.state, process.reason) == ("failed", "There is no model file.")
    assert world.done == []
    world.trouble = None
    await world.advance(POLICY.recheck_s)
    assert world.done == ["spawn"]
    assert process.state == "failed"
    world.well = True
    await world.advance(1)
    assert process.state == "ready"


async def test_a_process_that_cannot_be_made_is_tried_again(process: Process, world: FakeEffects) -> None:
    world.fails_to_spawn = True
    process.start()
    await settle()
    assert process.state == "starting"
    assert "out of memory" in (process.reason or "")
    world.fails_to_spawn, world.well = False, True
    await world.advance(1)
    assert process.state == "ready"


async def test_a_child_that_loads_for_ever_is_killed(process: Process, world: FakeEffects) -> None:
    process.start()
    await world.advance(59)
    assert world.done == ["spawn"]
    await world.advance(2)
    assert world.done[:2] == ["spawn", "SIGKILL"]
    assert process.reason == "It was not ready after 60 s."


async def test_a_hung_child_is_killed_and_started_again(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(10)
    world.well = None
    await world.advance(14)
    assert process.state == "ready"
    await world.advance(8)
    assert world.done[1] == "SIGKILL", "a hung child gets no time to say goodbye"
    assert process.state == "starting"
    world.well = True
    await world.advance(POLICY.probe_timeout_s + 1)
    assert process.state == "ready"
    assert await process.ready() == 2


async def test_a_child_that_works_is_not_hung_whatever_its_health_says(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(10)
    world.well = None
    for _ in range(30):
        process.progressed()
        await world.advance(2)
    assert world.done == ["spawn"]


async def test_an_accused_child_is_killed_at_once_and_a_new_one_is_not(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(1)
    process.accuse(1, "It answered nothing for 600 s.")
    await settle()
    assert world.done == ["spawn", "SIGKILL"]
    assert process.reason == "It answered nothing for 600 s."
    await world.advance(1)
    assert await process.ready() == 2
    process.accuse(1, "late news of the first")
    await world.advance(5)
    assert world.done == ["spawn", "SIGKILL", "spawn"]


async def test_news_of_a_death_are_waited_for(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(1)
    assert not await process.over(1, within_s=0.01)
    asking = asyncio.create_task(process.over(1, within_s=5))
    await settle()
    world.children[0].die()
    assert await asking


async def test_pauses_grow_until_a_child_stays(process: Process, world: FakeEffects) -> None:
    process.start()
    pauses = []
    for _ in range(4):
        world.well = True
        await world.advance(0.1)
        while process.state != "ready":
            await world.advance(0.05)
        before = world.now()
        world.children[-1].die()
        count = len(world.children)
        await settle()
        while len(world.children) == count:
            await world.advance(0.05)
        pauses.append(round(world.now() - before, 1))
    assert pauses == [pytest.approx(wanted, abs=0.11) for wanted in (0.5, 1, 2, 4)]


async def test_changes_are_told(process: Process, world: FakeEffects) -> None:
    world.well = True
    process.start()
    await world.advance(1)
    await process.close()
    heard = process.heard  # type: ignore[attr-defined]
    assert heard == [("starting", None), ("ready", None), ("stopping", None), ("stopped", None)]
