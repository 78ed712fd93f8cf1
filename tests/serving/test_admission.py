"""The door in front of an engine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from jubal.core.errors import AtCapacity
from jubal.serving.admission import Admission, Place


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


async def test_one_cancelled_in_the_moment_somebody_leaves_is_only_cancelled() -> None:
    door, release, entered = Admission("e", 1, 5), asyncio.Event(), []
    await door.__aenter__()
    second = asyncio.create_task(_hold(door, release, entered, 2))
    await asyncio.sleep(0)
    second.cancel()
    door.leave()
    third = asyncio.create_task(_hold(door, release, entered, 3))
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0)
    assert entered == [3], "it does not wait behind one that is gone"
    release.set()
    await third
    assert (door.running, door.queued) == (0, 0)


async def test_who_comes_behind_one_cancelled_this_moment_is_let_in() -> None:
    door = Admission("e", 1, 5)
    await door.__aenter__()
    second = asyncio.ensure_future(door.enter(background=False))
    await asyncio.sleep(0)
    second.cancel()
    door.leave()
    async with asyncio.timeout(60):
        await door.enter(background=False)
    assert door.running == 1
    await asyncio.gather(second, return_exceptions=True)
    door.leave()
    assert (door.running, door.queued) == (0, 0)


# ---------------------------------------------------------------------------------------------- giving a place back


@dataclass
class Request:
    """One that works at the engine, is away, and works again, when it is told to. done: what it did."""

    name: str
    place: Place
    done: list[str]
    away: asyncio.Event = field(default_factory=asyncio.Event)
    back: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with self.place:
            self.done.append(f"{self.name} began")
            await self.away.wait()
            self.place.rest()
            await self.back.wait()
            await self.place.resume()
            self.done.append(f"{self.name} went on")
            await self.end.wait()


def begin(door: Admission, name: str, done: list[str], *, keep_s: float = 0.0) -> tuple[Request, asyncio.Task[None]]:
    request = Request(name, Place(door, background=False, keep_s=keep_s), done)
    return request, asyncio.create_task(request.run())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


async def test_a_place_that_is_not_needed_serves_others_and_who_began_goes_on_before_newcomers() -> None:
    door, done = Admission("e", 1, 5), list[str]()
    first, one = begin(door, "first", done)
    second, two = begin(door, "second", done)
    third, three = begin(door, "third", done)
    first.away.set()
    await until(lambda: "second began" in done)
    assert (door.running, door.away, door.queued, door.returning) == (1, 1, 1, 0)
    first.back.set()
    await until(lambda: door.returning == 1)
    assert door.queued == 1
    for request in (first, second, third):
        request.away.set()
        request.back.set()
        request.end.set()
    await asyncio.gather(one, two, three)
    assert done.index("first went on") < done.index("third began")
    assert (door.running, door.away, door.queued) == (0, 0, 0)


async def test_a_short_rest_keeps_the_place() -> None:
    door, done = Admission("e", 1, 5), list[str]()
    first, one = begin(door, "first", done, keep_s=600)
    second, two = begin(door, "second", done)
    first.away.set()
    first.back.set()
    await until(lambda: "first went on" in done)
    assert done == ["first began", "first went on"]
    assert (door.running, door.away) == (1, 0)
    for request in (first, second):
        request.away.set()
        request.back.set()
        request.end.set()
    await asyncio.gather(one, two)
    assert (door.running, door.away) == (0, 0)


async def test_who_began_is_never_refused() -> None:
    door, done = Admission("e", 1, 1), list[str]()
    first, one = begin(door, "first", done)
    first.away.set()
    await until(lambda: door.away == 1)
    second, two = begin(door, "second", done)
    third, three = begin(door, "third", done)
    await until(lambda: door.queued == 1)
    with pytest.raises(AtCapacity):
        await door.enter(background=False)
    first.back.set()
    await until(lambda: door.returning == 1)
    for request in (first, second, third):
        request.away.set()
        request.back.set()
        request.end.set()
    await asyncio.gather(one, two, three)
    assert len(done) == 6


@pytest.mark.parametrize("state", ["working", "resting", "away", "returning"])
async def test_a_place_is_given_back_once_in_whatever_state_its_request_is_cut(state: str) -> None:
    door, done = Admission("e", 1, 5), list[str]()
    first, one = begin(door, "first", done, keep_s=600 if state == "resting" else 0)
    await until(lambda: door.running == 1)
    _, two = begin(door, "other", done)
    if state != "working":
        first.away.set()
        await asyncio.sleep(0)
    if state not in ("working", "resting"):
        await until(lambda: "other began" in done)
    if state == "returning":
        first.back.set()
        await until(lambda: door.returning == 1)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    await until(lambda: "other began" in done)
    assert (door.running, door.away, door.queued, door.returning) == (1, 0, 0, 0)
    two.cancel()
    await asyncio.gather(one, two, return_exceptions=True)
    assert (door.running, door.away, door.queued, door.returning) == (0, 0, 0, 0)
    async with asyncio.timeout(60), door:
        assert door.running == 1, "there is a place as before"


async def test_one_cut_in_the_moment_it_is_let_back_in_hands_its_place_on() -> None:
    door, done = Admission("e", 1, 5), list[str]()
    first, one = begin(door, "first", done)
    first.away.set()
    await until(lambda: door.away == 1)
    await door.enter(background=False)
    first.back.set()
    await until(lambda: door.returning == 1)
    door.leave()
    one.cancel()
    assert (door.running, door.returning, door.away) == (1, 0, 1), "it is first's, who does not know yet"
    async with asyncio.timeout(60):
        await door.enter(background=False)
    await asyncio.gather(one, return_exceptions=True)
    assert (door.running, door.away, done) == (1, 0, ["first began"])
    door.leave()
    assert door.running == 0


async def test_no_more_are_begun_than_may_be_away() -> None:
    door, done = Admission("e", 1, 5, away_max=2), list[str]()
    begun = [begin(door, str(number), done) for number in range(4)]
    for number in range(2):
        await until(lambda number=number: f"{number} began" in done)
        begun[number][0].away.set()
        await until(lambda number=number: door.away == number + 1)
    await asyncio.sleep(0.01)
    assert (door.running, door.away, door.queued) == (0, 2, 2)
    begun[0][1].cancel()
    await until(lambda: "2 began" in done)
    assert (door.running, door.away, door.queued) == (1, 1, 1)
    for request, _ in begun:
        request.away.set()
        request.back.set()
        request.end.set()
    await asyncio.gather(*(task for _, task in begun), return_exceptions=True)
    assert "3 went on" in done
    assert (door.running, door.away, door.queued) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(6))
async def test_nobody_is_forgotten_and_no_place_is_lost(seed: int) -> None:
    """Many requests of random lengths that rest, come back, fail and are cancelled at random."""
    dice = random.Random(seed)
    places = dice.randint(1, 4)
    door = Admission("e", places, 500, away_max=dice.choice([1, 3, 100]))
    working = most = 0

    async def work(turns: int, *, fails: bool) -> None:
        nonlocal working, most
        async with Place(door, background=dice.random() < 0.3, keep_s=dice.choice([0, 0.001])) as place:
            for turn in range(turns):
                await place.resume()
                working += 1
                most = max(most, working)
                try:
                    await asyncio.sleep(dice.choice([0, 0, 0.001]))
                finally:
                    working -= 1
                if fails and turn == turns // 2:
                    raise ValueError
                place.rest()
                await asyncio.sleep(dice.choice([0, 0.001, 0.003]))

    tasks = [asyncio.create_task(work(dice.randint(1, 5), fails=dice.random() < 0.2)) for _ in range(150)]
    cut = dice.sample(tasks, 50)
    for task in cut:
        await asyncio.sleep(dice.choice([0, 0, 0.001]))
        task.cancel()
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert most == places
    assert (door.running, door.away, door.queued, door.queued_background, door.returning) == (0, 0, 0, 0, 0)
    assert all(end is None or isinstance(end, ValueError | asyncio.CancelledError) for end in ends), ends
