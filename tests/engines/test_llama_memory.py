"""The owner of local models' memory, over models that only record what is done to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from jubal.core.errors import EngineUnavailable
from jubal.engines.llama_cpp.memory import MIB, ModelMemory, Size


class Recorded:
    """A model of so many MiB. log: shared by all models of a test."""

    def __init__(self, name: str, mib: int, log: list[str]) -> None:
        self.name = name
        self.mib: int | None = mib
        self.log = log
        self.real_mib: int | None = None
        self.slow_end = asyncio.Event()
        self.slow_end.set()
        self.fault: OSError | None = None

    async def estimate(self) -> Size | None:
        return None if self.mib is None else Size(self.mib * MIB, 0, 0, 1, 512)

    async def load(self) -> None:
        if self.fault:
            raise self.fault
        self.log.append(f"+{self.name}")

    async def unload(self) -> None:
        await self.slow_end.wait()
        self.log.append(f"-{self.name}")

    def measured(self) -> int | None:
        return None if self.real_mib is None else self.real_mib * MIB


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def use_once(memory: ModelMemory, name: str, timeout_s: float = 60) -> None:
    async with memory.use(name, timeout_s):
        await asyncio.sleep(0)


async def test_models_are_loaded_in_order_while_they_fit_and_the_rest_on_demand() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    models = [Recorded(name, mib, log) for name, mib in (("a", 40), ("b", 40), ("c", 40), ("d", 10))]
    for model in models:
        memory.join(model, preload=True)
    assert memory.place("c") == "undecided"
    assert [await memory.decided(model.name) for model in models] == ["loaded", "loaded", "unloaded", "unloaded"]
    assert log == ["+a", "+b"]
    await use_once(memory, "b")
    await use_once(memory, "c")
    assert log == ["+a", "+b", "-a", "+c"]
    await asyncio.gather(*map(memory.leave, models))
    assert sorted(log[4:]) == ["-b", "-c"]
    assert [task for task in asyncio.all_tasks() if task.get_name() == "model memory" and not task.done()] == []


async def test_who_finds_no_room_waits_until_the_busy_one_is_idle_and_others_do_not_overtake() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    a, b = Recorded("a", 80, log), Recorded("b", 80, log)
    for model in (a, b):
        memory.join(model, preload=False)
    async with memory.use("a", 60):
        wants_b = asyncio.create_task(use_once(memory, "b"))
        await settled(lambda: memory._closed == {"a"})
        wants_a = asyncio.create_task(use_once(memory, "a"))
        await asyncio.sleep(0.02)
        assert not wants_b.done()
        assert not wants_a.done()
        assert log == ["+a"]
    await asyncio.wait_for(wants_b, 60)
    await asyncio.wait_for(wants_a, 60)
    assert log == ["+a", "-a", "+b", "-b", "+a"]
    await asyncio.gather(memory.leave(a), memory.leave(b))


async def test_the_wait_is_bounded_and_leaves_no_trace() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    a, b = Recorded("a", 80, log), Recorded("b", 80, log)
    for model in (a, b):
        memory.join(model, preload=False)
    async with memory.use("a", 60):
        with pytest.raises(
            EngineUnavailable, match=r"no room in memory for the model of the engine `b` within 0\.05 s"
        ):
            await use_once(memory, "b", 0.05)
        cancelled = asyncio.create_task(use_once(memory, "b"))
        await settled(lambda: memory._closed == {"a"})
        cancelled.cancel()
        await settled(lambda: not memory._closed)
        await asyncio.wait_for(use_once(memory, "a"), 60)
    assert log == ["+a"]
    await asyncio.gather(memory.leave(a), memory.leave(b))


async def test_who_leaves_in_the_moment_it_is_let_in_holds_nothing() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    a, b = Recorded("a", 80, log), Recorded("b", 80, log)
    for model in (a, b):
        memory.join(model, preload=False)
    async with memory.use("a", 60):
        waits = asyncio.create_task(use_once(memory, "b"))
        await settled(lambda: memory._closed == {"a"})
    await settled(lambda: memory._members["b"].running == 1)
    waits.cancel()
    await settled(lambda: memory._members["b"].running == 0)
    await use_once(memory, "a")
    await asyncio.gather(memory.leave(a), memory.leave(b))


async def test_no_model_is_loaded_before_the_other_is_gone() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    a, b = Recorded("a", 80, log), Recorded("b", 80, log)
    for model in (a, b):
        memory.join(model, preload=False)
    await use_once(memory, "a")
    a.slow_end.clear()
    wants_b = asyncio.create_task(use_once(memory, "b"))
    await asyncio.sleep(0.02)
    assert log == ["+a"]
    a.slow_end.set()
    await wants_b
    assert log == ["+a", "-a", "+b"]
    await asyncio.gather(memory.leave(a), memory.leave(b))


async def test_what_can_never_fit_is_refused_with_both_sizes_and_let_in_when_the_file_is_mended() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    big = Recorded("big", 300, log)
    (told,) = await memory.refusals([big, Recorded("small", 99, log)])
    assert "`big` takes about 300 MiB" in told
    assert "all models together may take 100 MiB" in told
    memory.join(big, preload=True)
    assert await memory.decided("big") == "refused"
    with pytest.raises(EngineUnavailable, match="300 MiB"):
        await use_once(memory, "big")
    big.mib = 50
    await use_once(memory, "big")
    assert log == ["+big"]
    await memory.leave(big)


async def test_models_that_grow_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    a, b = Recorded("a", 40, log), Recorded("b", 40, log)
    for model in (a, b):
        memory.join(model, preload=True)
    await memory.decided("b")
    await use_once(memory, "a")
    b.real_mib = 90
    await use_once(memory, "a")  # looks again
    await settled(lambda: log == ["+a", "+b", "-b"])
    b.real_mib = None
    await use_once(memory, "b")
    assert log == ["+a", "+b", "-b", "-a", "+b"], "it is remembered"
    b.real_mib = 200
    await use_once(memory, "b")
    assert memory.place("b") == "loaded", "a single one is left alone"
    await asyncio.gather(memory.leave(a), memory.leave(b))


async def test_a_start_that_fails_is_told_and_tried_again_at_the_next_request() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    model = Recorded("a", 40, log)
    model.fault = OSError(28, "No space left on device")
    memory.join(model, preload=False)
    with pytest.raises(EngineUnavailable, match="No space left on device"):
        await use_once(memory, "a")
    model.fault = None
    await use_once(memory, "a")
    assert log == ["+a"]
    await memory.leave(model)


async def test_leaving_turns_away_who_waits() -> None:
    log: list[str] = []
    memory = ModelMemory(100 * MIB)
    a, b = Recorded("a", 80, log), Recorded("b", 80, log)
    for model in (a, b):
        memory.join(model, preload=False)
    async with memory.use("a", 60):
        waits = asyncio.create_task(use_once(memory, "b"))
        await settled(lambda: memory._closed == {"a"})
        await memory.leave(b)
        with pytest.raises(EngineUnavailable, match="is stopped"):
            await waits
        await memory.leave(a)
        with pytest.raises(EngineUnavailable, match="not started"):
            await use_once(memory, "a")
    assert log == ["+a", "-a"]
    await memory.leave(a)
