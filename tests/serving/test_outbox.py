"""Frames on their way out."""

from __future__ import annotations

import asyncio

import pytest

from jubal.serving.outbox import ROOM_BYTES, Outbox


async def test_what_is_there_leaves_together_and_the_next_at_once() -> None:
    outbox = Outbox()
    outbox.put(b"a")
    outbox.put(b"b")
    assert await outbox.take() == b"ab"
    waiting = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put(b"c")
    assert await waiting == b"c"
    outbox.end()
    assert await outbox.take() == b""


async def test_an_error_comes_after_the_frames_before_it() -> None:
    outbox = Outbox()
    outbox.put(b"a")
    outbox.end(ValueError("x"))
    assert await outbox.take() == b"a"
    with pytest.raises(ValueError, match="x"):
        await outbox.take()


async def test_a_producer_waits_for_a_slow_client() -> None:
    outbox = Outbox()
    outbox.put(b"x" * ROOM_BYTES)
    assert outbox.full
    producer = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    assert not producer.done()
    await outbox.take()
    await asyncio.wait_for(producer, 60)


async def test_a_producer_that_is_cancelled_while_it_waits() -> None:
    outbox = Outbox()
    outbox.put(b"x" * ROOM_BYTES)
    producer = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    producer.cancel()
    await asyncio.gather(producer, return_exceptions=True)
    assert await outbox.take()
