"""Who works for a client hears once that it left."""

from __future__ import annotations

import asyncio

from jubal.serving.peer import Peer


async def test_those_who_watch_are_told_once() -> None:
    peer, told = Peer(), []
    watches = [lambda: told.append("a"), lambda: told.append("b"), lambda: told.append("never")]
    for watch in watches:
        peer.watch(watch)
    peer.unwatch(watches[2])
    peer.leave()
    assert peer.gone
    assert sorted(told) == ["a", "b"]
    peer.leave()
    assert len(told) == 2


async def test_one_that_has_left_already_is_told_of_soon() -> None:
    """Not at once: whoever begins to watch is still busy with it."""
    peer, told = Peer(), []
    peer.leave()
    peer.watch(lambda: told.append(1))
    assert told == []
    await asyncio.sleep(0)
    assert told == [1]


async def test_who_ended_meanwhile_is_not_told() -> None:
    peer, told = Peer(), []
    peer.leave()
    tell = lambda: told.append(1)  # noqa: E731
    peer.watch(tell)
    peer.unwatch(tell)
    await asyncio.sleep(0)
    assert told == []


async def test_all_requests_of_a_connection_have_one_peer() -> None:
    peer = Peer()
    scope = {"type": "http", "extensions": peer.extensions()}
    assert Peer.of(scope) is peer
    assert not Peer.of({"type": "http"}).gone
