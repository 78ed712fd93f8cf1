"""How an answer is written: on a transport that keeps what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from jubal.serving.connection import Connection, Deadlines
from jubal.serving.cycle import JOINED_MAX

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def answered(*messages: dict[str, Any], request: bytes = GET, keep_alive_s: int = 5) -> Transport:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        for message in messages:
            await send(message)

    config = Config(app, http="httptools", log_config=None, lifespan="off", timeout_keep_alive=keep_alive_s)
    config.load()
    connection = Connection(config, ServerState(), {}, deadlines=Deadlines(), new_id=lambda: "id")
    transport = Transport()
    connection.connection_made(transport)
    connection.data_received(request)
    while connection.tasks:
        await asyncio.wait(connection.tasks)
    return transport


async def test_the_head_leaves_with_the_body_in_one_write() -> None:
    there = await answered(start((b"content-length", b"5")), body(b"hello"))
    assert there.writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"]
    assert not there.closed


async def test_a_large_body_is_not_copied() -> None:
    large = b"x" * (JOINED_MAX + 1)
    there = await answered(start((b"content-length", b"%d" % len(large))), body(large))
    assert [len(data) for data in there.writes] == [len(there.writes[0]), len(large)]


async def test_pieces_are_chunked_and_the_first_one_brings_the_head() -> None:
    there = await answered(start(), body(b"a" * 16, more=True), body(b"b", more=True), body(b""))
    head, first = there.writes[0].split(b"\r\n\r\n", 1)
    assert head == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked"
    assert [first, *there.writes[1:]] == [b"10\r\n" + b"a" * 16 + b"\r\n", b"1\r\nb\r\n", b"0\r\n\r\n"]


async def test_the_last_piece_brings_the_end() -> None:
    there = await answered(start(), body(b"a", more=True), body(b"b"))
    assert there.writes[1] == b"1\r\nb\r\n0\r\n\r\n"


async def test_an_empty_piece_is_no_end() -> None:
    there = await answered(start(), body(b"", more=True), body(b"b"))
    assert there.writes[0].endswith(b"\r\n\r\n")
    assert there.writes[1] == b"1\r\nb\r\n0\r\n\r\n"


@pytest.mark.parametrize("length", [(), ((b"content-length", b"5"),)])
async def test_head_gets_no_body(length: tuple[tuple[bytes, bytes], ...]) -> None:
    there = await answered(start(*length), body(b"hello"), request=GET.replace(b"GET", b"HEAD"))
    assert b"".join(there.writes).endswith(b"\r\n\r\n")
    assert b"chunked" not in there.writes[0]
    assert not there.closed


@pytest.mark.parametrize("status", [204, 304])
async def test_what_has_no_body_says_nothing_of_its_length(status: int) -> None:
    there = await answered(start(status=status), body(b""))
    assert b"chunked" not in there.writes[0]
    assert b"length" not in there.writes[0]


@pytest.mark.parametrize(
    "request_", [GET.replace(b"1.1", b"1.0"), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]
)
async def test_who_asks_for_no_more_is_told_and_left(request_: bytes) -> None:
    there = await answered(start((b"content-length", b"0")), body(b""), request=request_)
    assert b"connection: close" in there.writes[0]
    assert there.closed


async def test_an_answer_may_close() -> None:
    there = await answered(start((b"connection", b"Close"), (b"content-length", b"0")), body(b""))
    assert there.writes[0].lower().count(b"connection: close") == 1
    assert there.closed


@pytest.mark.parametrize("bad", [b"a\r\nset-cookie: x", b"a\nb", b"a\rb", b"a\0b"])
@pytest.mark.parametrize("where", ["name", "value"])
async def test_no_header_makes_another_one(bad: bytes, where: str) -> None:
    header = (bad, b"v") if where == "name" else (b"x-name", bad)
    there = await answered(start(header, (b"content-length", b"0")), body(b""))
    assert not any(bad in data for data in there.writes)


@pytest.mark.parametrize(
    "messages",
    [
        [body(b"first")],
        [start(), start()],
        [start((b"content-length", b"2")), body(b"abc")],
        [start((b"content-length", b"2")), body(b"a")],
        [start((b"content-length", b"0")), body(b""), body(b"")],
        [start()],
    ],
)
async def test_an_answer_that_is_none_never_looks_whole(messages: list[dict[str, Any]]) -> None:
    there = await answered(*messages)
    said = b"".join(there.writes)
    assert b" 500 " in said or there.closed
    assert not said.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc")


async def test_an_idle_connection_is_closed_by_the_one_timer_that_looks() -> None:
    there = await answered(start((b"content-length", b"0")), body(b""), keep_alive_s=0)
    while not there.closed:
        await asyncio.sleep(0.01)
