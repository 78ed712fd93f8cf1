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
