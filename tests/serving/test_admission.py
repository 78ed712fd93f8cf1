"""The door in front of an engine."""

from __future__ import annotations

import asyncio

import pytest

from jubal.core.errors import AtCapacity
from jubal.serving.admission import Admission


async def _hold(door: Admission, release: asyncio.Event, entered: list[int], number: int) -> None:
    async with door:
        entered.append(number)
        await release.wait()


async def test_first_come_first_served_and_the_rest_is_refused() -> None:
    door, release, entered = Admission("e", 2, 3), asyncio.Event(), []
    tasks = [asyncio.create_task(_hold(door, release, entered, n)) for n in range(5)]
    await asyncio.sleep(0)
    assert (door.running, door.queued, entered) == (2, 3, [0, 1])
    with pytest.raises(AtCapacity) as caught:
        await door.__aenter__()
    assert caught.value.retry_after_s
    release.set()
    await asyncio.gather(*tasks)
    assert entered == [0, 1, 2, 3, 4]
    assert (door.running, door.queued) == (0, 0)


async def test_one_that_gives_up_waiting_leaves_no_hole() -> None:
    door, release, entered = Admission("e", 1, 5), asyncio.Event(), []
    tasks = [asyncio.create_task(_hold(door, release, entered, n)) for n in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert door.queued == 2
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered == [0, 2, 3]
    assert (door.running, door.queued) == (0, 0)


async def test_one_cancelled_in_the_moment_it_is_let_in_hands_its_place_on() -> None:
    door, release, entered = Admission("e", 1, 5), asyncio.Event(), []
    first = asyncio.create_task(_hold(door, release, entered, 0))
    second = asyncio.create_task(_hold(door, asyncio.Event(), entered, 1))
    third = asyncio.create_task(_hold(door, release, entered, 2))
    await asyncio.sleep(0)
    release.set()
    await first  # its place is second's now, who has not run yet
    second.cancel()
    await asyncio.gather(second, third, return_exceptions=True)
    assert 2 in entered
    assert (door.running, door.queued) == (0, 0)


async def test_no_limit_is_no_queue() -> None:
    door, release, entered = Admission("e", None, 0), asyncio.Event(), []
    tasks = [asyncio.create_task(_hold(door, release, entered, n)) for n in range(50)]
    await asyncio.sleep(0)
    assert door.running == 50
    release.set()
    await asyncio.gather(*tasks)
    assert door.running == 0


async def test_priority_goes_first_and_leaves_one_place_in_eight_to_others() -> None:
    door, entered = Admission("e", 1, 20), []
    release = asyncio.Event()

    async def work(name: str) -> None:
        kind = {"background": name[0] == "b", "priority": name[0] == "p"}
        async with door.door(**kind):
            entered.append(name)
            await release.wait()

    names = ["n0", "b0", "n1", "n2", *(f"p{n}" for n in range(10))]
    tasks = [asyncio.create_task(work(name)) for name in names]
    await asyncio.sleep(0)
    assert (door.running, door.queued, door.queued_background) == (1, 12, 1)
    release.set()
    await asyncio.gather(*tasks)
    first = [f"p{n}" for n in range(7)]
    assert entered == ["n0", *first, "n1", "p7", "p8", "p9", "n2", "b0"]
    assert (door.running, door.queued) == (0, 0)


async def test_a_full_queue_refuses_its_own_class_only() -> None:
    door, release = Admission("e", 1, 1), asyncio.Event()
    entered: list[int] = []
    tasks = [asyncio.create_task(_hold(door, release, entered, n)) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(AtCapacity):
        await door.__aenter__()
    paying = asyncio.create_task(door.door(priority=True).__aenter__())
    await asyncio.sleep(0)
    assert door.queued == 2
    with pytest.raises(AtCapacity):
        await door.door(priority=True).__aenter__()
    release.set()
    await paying
    await door.__aexit__(None, None, None)
    await asyncio.gather(*tasks)
    assert (entered, door.running) == ([0, 1], 0)


async def test_work_that_nobody_waits_for_gives_way() -> None:
    door, entered = Admission("e", 1, 5), []
    first, rest = asyncio.Event(), asyncio.Event()

    async def work(background: bool, number: int) -> None:
        async with door.door(background=background):
            entered.append(number)
            await (first if number == 0 else rest).wait()

    tasks = [asyncio.create_task(work(background, n)) for n, background in enumerate([True, True, True, False, False])]
    await asyncio.sleep(0)
    assert (entered, door.queued, door.queued_background) == ([0], 2, 2)
    rest.set()
    first.set()
    await asyncio.gather(*tasks)
    assert entered == [0, 3, 4, 1, 2]
    assert (door.running, door.queued, door.queued_background) == (0, 0, 0)


async def test_background_work_never_takes_a_place_in_the_queue_of_others() -> None:
    door, release = Admission("e", 1, 2), asyncio.Event()

    async def work(background: bool) -> None:
        async with door.door(background=background):
            await release.wait()

    tasks = [asyncio.create_task(work(True)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(AtCapacity):
        await work(True)
    tasks += [asyncio.create_task(work(False)) for _ in range(2)]
    await asyncio.sleep(0)
    assert (door.queued, door.queued_background) == (2, 2)
    release.set()
    await asyncio.gather(*tasks)


async def test_who_is_refused_is_told_how_fast_the_queue_drains() -> None:
    now = [0.0]
    door = Admission("e", 1, 1, clock=lambda: now[0])
    leave = asyncio.Queue[None]()

    async def work() -> None:
        async with door:
            await leave.get()

    async def refused() -> float:
        with pytest.raises(AtCapacity) as caught:
            await work()
        return caught.value.retry_after_s or 0

    tasks = []
    for _ in range(3):
        tasks += [asyncio.create_task(work()), asyncio.create_task(work())]
        await asyncio.sleep(0)
        now[0] += 7
        leave.put_nowait(None)
        await asyncio.sleep(0.001)
        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0)
        now[0] += 7
        leave.put_nowait(None)
        await asyncio.sleep(0.001)
        now[0] += 7
        leave.put_nowait(None)
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(work()), asyncio.create_task(work())]
    await asyncio.sleep(0)
    assert [await refused() for _ in range(3)] == [7, 14, 21], "one after the other: each departure makes one place"
    for _ in range(2):
        leave.put_nowait(None)
    await asyncio.gather(*tasks, return_exceptions=True)
