"""What a connection does between requests and around their bodies: on a transport that keeps what it is given, by a clock of the
test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast
from unittest.mock import Mock

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from jubal.serving.connection import LINGER_S, Connection, Deadlines
from tests.serving.test_cycle import Transport, body, start

App = Callable[[Any, Any, Any], Awaitable[None]]
KEEP_ALIVE_S = 5
OK = (start((b"content-length", b"2")), body(b"ok"))


class Clock:
    """Of an event loop what a connection uses of it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Mock:
        timer = self.now_s + delay_s, callback
        self.timers.append(timer)
        return Mock(cancel=lambda: self.timers.remove(timer))

    def pass_s(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while due := [timer for timer in self.timers if timer[0] <= end_s]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now_s = first[0]
            first[1]()
        self.now_s = end_s


class Socket(Transport):
    """paused: it is not read. protocol: who took the place of the connection. ended: nothing more is written."""

    paused = False
    ended = False
    protocol: Any = None

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def said(self) -> bytes:
        return b"".join(self.writes)


def connected(app: App, clock: Clock) -> tuple[Connection, Socket]:
    config = Config(app, http="httptools", log_config=None, lifespan="off", timeout_keep_alive=KEEP_ALIVE_S)
    config.load()
    loop = cast(asyncio.AbstractEventLoop, clock)
    made = Connection(config, ServerState(), {}, loop, deadlines=Deadlines(), new_id=lambda: "id")
    socket = Socket()
    made.connection_made(socket)
    return made, socket


def answers(*messages: dict[str, Any]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


async def done(connection: Connection) -> None:
    while connection.tasks:
        await asyncio.wait(connection.tasks)


def post(*lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"POST / HTTP/{version}", "Host: here", *lines, "", ""]).encode()


@pytest.mark.parametrize("wait_s", [1, KEEP_ALIVE_S + 1])
async def test_a_connection_is_idle_when_the_body_of_a_refused_request_is_over(wait_s: float) -> None:
    clock = Clock()
    connection, socket = connected(answers(*OK), clock)
    connection.data_received(post("Content-Length: 1000000"))
    await done(connection)
    for _ in range(3):
        connection.data_received(bytes(250_000))
        clock.pass_s(wait_s)
    connection.data_received(bytes(250_000))
    clock.pass_s(KEEP_ALIVE_S - 0.1)
    assert not socket.closed
    clock.pass_s(0.2)
    assert socket.closed


async def test_a_request_right_after_such_a_body_has_all_the_time_it_needs() -> None:
    clock = Clock()
    go_on = asyncio.Event()
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)
        if len(asked) > 1:
            await go_on.wait()
        await answers(*OK)(scope, receive, send)

    connection, socket = connected(app, clock)
    connection.data_received(post("Content-Length: 4"))
    await done(connection)
    connection.data_received(b"body" + post("Content-Length: 0"))
    clock.pass_s(100)
    assert not socket.closed
    go_on.set()
    await done(connection)
    assert socket.said().count(b"HTTP/1.1 200") == 2


async def test_a_client_is_listened_to_while_its_large_request_is_answered() -> None:
    """What it sends is held back while there is too much of it; but one that leaves can only be noticed by who reads."""
    came = asyncio.Event()
    leave = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.set()
        while (await receive())["more_body"]:
            pass
        await leave.wait()
        await answers(*OK)(scope, receive, send)

    connection, socket = connected(app, Clock())
    connection.data_received(post("Content-Length: 400000"))
    await came.wait()
    await asyncio.sleep(0)
    connection.data_received(bytes(200_000))
    assert socket.paused
    while socket.paused:
        await asyncio.sleep(0)
    connection.data_received(bytes(200_000))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not socket.paused
    leave.set()
    await done(connection)


async def test_a_body_may_be_slow_but_not_too_slow() -> None:
    clock = Clock()
    limits = Deadlines()
    enough = int(limits.body_s * limits.body_bytes_per_s_min)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    connection, socket = connected(app, clock)
    connection.data_received(post(f"Content-Length: {10 * enough}") + b"a")
    for _ in range(5):
        connection.data_received(bytes(enough))
        clock.pass_s(limits.body_s)
        assert not socket.writes
    connection.data_received(bytes(enough - 1))
    clock.pass_s(limits.body_s)
    assert socket.said().startswith(b"HTTP/1.1 408 ")
    await done(connection)


async def test_who_still_sends_to_a_connection_that_ends_comes_to_read_the_answer() -> None:
    """Closed at once, it would be reset, and proxies that say `Connection: close` would tell of a broken server."""
    clock = Clock()
    connection, socket = connected(answers(*OK), clock)
    connection.data_received(post("Content-Length: 1000000", "Connection: close") + bytes(100_000))
    await done(connection)
    assert socket.said().endswith(b"ok")
    assert b"connection: close" in socket.said()
    assert (socket.ended, socket.closed, socket.paused) == (True, False, False)
    socket.protocol.data_received(bytes(100_000))
    clock.pass_s(100)
    assert not socket.closed, f"its end is that of the {LINGER_S} s that any refused client has"
    socket.protocol.connection_lost(None)
    assert not connection.connections


async def test_a_connection_that_ends_after_a_whole_request_is_closed_at_once() -> None:
    connection, socket = connected(answers(*OK), Clock())
    connection.data_received(post("Content-Length: 4", "Connection: close") + b"body")
    await done(connection)
    assert (socket.closed, socket.protocol) == (True, None)


async def test_http_1_0_gets_no_chunks() -> None:
    messages = start(), body(b"one", more=True), body(b"two")
    connection, socket = connected(answers(*messages), Clock())
    connection.data_received(post("Content-Length: 0", version="1.0"))
    await done(connection)
    assert socket.said() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"
    assert socket.closed


async def test_a_question_for_an_upgrade_changes_nothing_of_the_request() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await answers(*OK)(scope, receive, send)

    for version in ("1.0", "1.1"):
        connection, socket = connected(app, Clock())
        connection.data_received(post("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 0", version=version))
        await done(connection)
        assert scopes[-1]["http_version"] == version
        assert socket.closed == (version == "1.0")
