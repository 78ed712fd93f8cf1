"""The client of the model-serving path, against a server on a real socket that writes the bytes it is told."""

from __future__ import annotations

import asyncio
import gc
import gzip
import re
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import psutil
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from jubal.core.errors import EngineBroken, EngineTimeout, EngineUnavailable
from jubal.core.generation import Generation
from jubal.engines.http_client import (
    HEAD_BYTES_MAX,
    INFLATED_BYTES_MAX,
    UNREAD_BYTES_MAX,
    AddressInfo,
    Broken,
    CannotConnect,
    HttpClient,
    Response,
    Silent,
    _Connection,
    header_line,
    resolve,
    target_of,
)
from jubal.engines.openai_compat import OpenAICompatEngine
from jubal.testing import one_turn
from tests.flow.test_security import make_certificate

PATIENCE_S = 60
SILENCE_S = 600.0
SHORT_S = 0.2

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")
"""What is to come in its place is for all files of a folder."""


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


# ------------------------------------------------------------------------------------------------ the server


@dataclass
class Peer:
    """The server's end of one connection. number: of the connection, from 0."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def send(self, *pieces: bytes) -> None:
        """Each piece by itself, as far as loopback keeps them apart."""
        for piece in pieces:
            self.writer.write(piece)
            await asyncio.sleep(0)

    async def gone(self) -> None:
        """Until the client has cut the connection."""
        while await self.reader.read(1 << 16):
            pass


Answer = Callable[[Peer], Awaitable[object]]
"""What is done with a request that was read. A true result ends the connection."""


@dataclass
class Served:
    port: int = 0
    connections: int = 0
    over: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    handle: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(
    answer: Answer, *, tls: ssl.SSLContext | None = None, path: Path | None = None
) -> AsyncIterator[Served]:
    served = Served()
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        peer = Peer(reader, writer, served.connections)
        served.connections += 1
        try:
            while True:
                served.heads.append(await reader.readuntil(b"\r\n\r\n"))
                length = re.search(rb"content-length: (\d+)", served.heads[-1])
                assert length is not None
                served.bodies.append(b"")
                served.bodies[-1] = await reader.readexactly(int(length[1]))
                if await answer(peer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            served.over += 1
            writer.close()

    served.handle = handle
    if path is None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
        served.port = server.sockets[0].getsockname()[1]
    else:
        server = await asyncio.start_unix_server(handle, str(path))
    try:
        yield served
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()  # their handlers end by themselves
        await asyncio.gather(*tasks, return_exceptions=True)


def says(*pieces: bytes, end: bool = False) -> Answer:
    async def answer(peer: Peer) -> bool:
        await peer.send(*pieces)
        return end

    return answer


async def hangs(peer: Peer) -> None:
    await peer.gone()
    raise ConnectionError


def says_and_hangs(*pieces: bytes) -> Answer:
    async def answer(peer: Peer) -> None:
        await peer.send(*pieces)
        await hangs(peer)

    return answer


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.005)


class Client:
    """A client of one served address, and what tests do with it."""

    def __init__(self, served: Served, **options: Any) -> None:
        scheme = "https" if "tls" in options else "http"
        self.url = URL(f"{scheme}://127.0.0.1:{served.port}/v1/x")
        self.http = HttpClient(self.url, **options)
        self.target = target_of(self.url, {"content-type": "application/json"})

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.http.close()

    async def post(self, body: bytes = b"{}", silence_s: float = SILENCE_S, lines: bytes = b"") -> Response:
        return await self.http.post(self.target, body, silence_s, lines)

    async def ask(self, body: bytes = b"{}", silence_s: float = SILENCE_S) -> tuple[int, bytes]:
        response = await self.post(body, silence_s)
        try:
            return response.status, await read(response)
        finally:
            response.close()


async def read(response: Response) -> bytes:
    pieces = []
    async with asyncio.timeout(PATIENCE_S):
        while piece := await response.read_some():
            pieces.append(piece)
    return b"".join(pieces)


def framed(body: bytes, *lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *lines, "", ""]).encode() + body


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + last


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello world"
OK = framed(b"hello world")
ANSWERS = [(OK, False), (chunked(b"hello", b" ", b"world"), False), (UNTIL_CLOSE, True)]

# ------------------------------------------------------------------------------------------------ what is sent


async def test_a_request_as_it_leaves() -> None:
    async with serving(says(OK)) as served, Client(served) as client:
        response = await client.post(b'{"a":1}', lines=header_line("x-grok-conv-id", "c"))
        assert (response.status, await read(response), response.header("Content-Length")) == (200, b"hello world", "11")
        response.close()
        assert served.heads[0].split(b"\r\n") == [
            b"POST /v1/x HTTP/1.1",
            b"host: 127.0.0.1:%d" % served.port,
            b"accept: */*",
            b"content-type: application/json",
            b"x-grok-conv-id: c",
            b"content-length: 7",
            b"",
            b"",
        ]
        assert served.bodies == [b'{"a":1}']


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://[::1]:8080/v1/x", b"POST /v1/x ", b"[::1]:8080"),
        ("https://api.example/proxy/v1/x?a=%20b", b"POST /proxy/v1/x?a=%20b ", b"api.example"),
        ("http://api.example", b"POST / ", b"api.example"),
        ("http://bücher.example:80/ä", b"POST /%C3%A4 ", b"xn--bcher-kva.example"),
    ],
)
def test_what_an_address_becomes(url: str, line: bytes, host: bytes) -> None:
    head = target_of(URL(url), {}).head
    assert head.startswith(line)
    assert b"\r\nhost: " + host + b"\r\n" in head


def test_user_and_password_of_an_address() -> None:
    url = URL("http://us%40er:pa%3Ass@127.0.0.1/v1")
    target = target_of(url, {})
    assert b"authorization: Basic dXNAZXI6cGE6c3M=\r\n" in target.head
    assert target.credential == b"dXNAZXI6cGE6c3M="
    assert b"us" not in target.head.partition(b"authorization")[0].replace(b"POST", b"")
    other = target_of(url, {"Authorization": "Bearer key"})
    assert (other.head.count(b"authorization"), other.credential) == (1, b"key")
    assert "key" not in repr(other)


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\0"])
def test_no_value_begins_another_line(value: str) -> None:
    with pytest.raises(ValueError, match="`authorization` holds a line end") as caught:
        target_of(URL("http://127.0.0.1/"), {"authorization": value})
    assert value not in str(caught.value)


async def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * (1 << 14)
    async with serving(says(OK)) as served, Client(served) as client:
        for size in (0, 64 << 10, (64 << 10) + 1, len(body)):
            assert await client.ask(body[:size]) == (200, b"hello world")
            assert served.bodies[-1] == body[:size]
        assert served.connections == 1


# ------------------------------------------------------------------------------------------------ framing


@pytest.mark.parametrize(("answer", "end"), ANSWERS)
async def test_every_framing_whole_and_a_byte_at_a_time(answer: bytes, end: bool) -> None:
    for pieces in ([answer], [answer[at : at + 1] for at in range(len(answer))]):
        async with serving(says(*pieces, end=end)) as served, Client(served) as client:
            for _ in range(2):
                assert await client.ask() == (200, b"hello world")
            assert served.connections == (2 if end else 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
async def test_cut_anywhere(data: st.DataObject) -> None:
    answer, end = data.draw(st.sampled_from(ANSWERS))
    before = data.draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 x\r\nlink: y\r\n\r\n"]))
    answer = before + answer
    cuts = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1), max_size=8)))
    pieces = [answer[first:last] for first, last in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    async with serving(says(*pieces, end=end)) as served, Client(served) as client:
        response = await client.post()
        assert b"link" not in response._headers, "what an informational answer says is not the answer's"
        assert await read(response) == b"hello world"
        response.close()
        assert (await client.ask())[1] == b"hello world"
        assert served.connections == (2 if end else 1)


async def test_a_body_until_the_close_that_breaks_is_not_whole() -> None:
    async def answer(peer: Peer) -> bool:
        await peer.send(UNTIL_CLOSE)
        await asyncio.sleep(0.02)
        linger = struct.pack("ii", 1, 0)
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # a reset, no end
        return True

    async with serving(answer) as served, Client(served) as client:
        with pytest.raises(Broken):
            await client.ask()


@settings(max_examples=60, deadline=None)
@given(st.data())
async def test_an_answer_that_is_cut_short_is_never_a_whole_one(data: st.DataObject) -> None:
    answer, _ = data.draw(st.sampled_from(ANSWERS[:2]))
    size = data.draw(st.integers(0, len(answer) - 1))
    async with serving(says(answer[:size], end=True)) as served, Client(served) as client:
        with pytest.raises(Broken):
            await client.ask()


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body(status: int) -> None:
    async with (
        serving(says(b"HTTP/1.1 %d x\r\ncontent-length: 9\r\n\r\n" % status)) as served,
        Client(served) as client,
    ):
        for _ in range(2):
            assert await client.ask() == (status, b"")
        assert served.connections == 1


async def test_a_body_that_came_with_its_head_is_there_without_waiting() -> None:
    async with serving(says(OK)) as served, Client(served) as client:
        response = await client.post()
        assert response.ended
        for expected in (b"hello world", b""):
            with pytest.raises(StopIteration) as caught:
                response.read_some().__await__().send(None)  # type: ignore[attr-defined]
            assert caught.value.value == expected


@pytest.mark.parametrize(
    ("line", "reused"),
    [
        ("HTTP/1.1 200 OK", True),
        ("HTTP/1.1 200 OK\r\nConnection: Close", False),
        ("HTTP/1.0 200 OK", False),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive", True),
    ],
)
async def test_whether_a_connection_is_used_again(line: str, reused: bool) -> None:
    async with serving(says(f"{line}\r\ncontent-length: 2\r\n\r\nok".encode())) as served, Client(served) as client:
        for _ in range(3):
            assert await client.ask() == (200, b"ok")
        assert served.connections == (1 if reused else 3)


async def test_headers_that_come_twice_and_types_with_parameters() -> None:
    answer = framed(b"", "X-A: 1", "x-a: 2", "Content-Type: Text/Event-Stream; charset=utf-8")
    async with serving(says(answer)) as served, Client(served) as client:
        response = await client.post()
        assert (response.header("X-a"), response.header("y")) == ("1, 2", None)
        assert response.content_type == "text/event-stream"
        response.close()
        response.close()
        assert await client.ask() == (200, b"")
        assert served.connections == 1


async def test_a_trailer_is_no_header() -> None:
    answer = chunked(b"hello", last=b"0\r\nX-A: 1\r\nContent-Encoding: gzip\r\n\r\n")
    async with serving(says(answer)) as served, Client(served) as client:
        for _ in range(2):
            response = await client.post()
            assert (await read(response), response.header("x-a")) == (b"hello", None)
            response.close()
        assert served.connections == 1


# ------------------------------------------------------------------------------------------------ what is no HTTP

FILLER = b"x" * (HEAD_BYTES_MAX // 8)
NO_HTTP = {
    "words": b"hello there\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "a chunk of no size": chunked(last=b"zz\r\n"),
    "another protocol": b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: y\r\n\r\n",
    "a long line": framed(b"", "x: " + "y" * HEAD_BYTES_MAX),
    "many lines": framed(b"", *[f"x{n}: y" for n in range(201)]),
    "no end of the head": b"HTTP/1.1 200 OK\r\nx: " + FILLER * 20,
    "no end of what comes before": b"HTTP/1.1 103 x\r\nx: y\r\n\r\n" * 9000,
    "no end of a trailer": chunked(last=b"0\r\nx: " + FILLER * 20),
    "no end of an extension": chunked(last=b"5;x=" + FILLER * 20),
    "a status of no kind": b"HTTP/1.1 099 x\r\ncontent-length: 999999\r\n\r\n" + FILLER * 80,
}


@pytest.mark.parametrize("case", NO_HTTP)
async def test_what_is_no_http_breaks_the_request_and_the_connection(case: str) -> None:
    async with serving(says_and_hangs(NO_HTTP[case])) as served, Client(served) as client:
        for turn in (1, 2):
            with pytest.raises(Broken):
                async with asyncio.timeout(PATIENCE_S):
                    await client.ask()
            await until(lambda turn=turn: served.over == turn)  # type: ignore[misc]


async def test_a_head_just_short_enough() -> None:
    answer = framed(b"hi", *[f"x{n}: {'y' * 300}" for n in range(199)])
    async with serving(says(answer)) as served, Client(served) as client:
        assert await client.ask() == (200, b"hi")


@pytest.mark.parametrize("more", [b"HTTP/1.1 2", b"garbage", OK, chunked(b"other")])
async def test_bytes_after_an_answer_are_no_part_of_this_one_or_the_next(more: bytes) -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(framed(b"%d" % peer.number) + more)

    async with serving(answer) as served, Client(served) as client:
        assert [await client.ask() for _ in range(3)] == [(200, b"0"), (200, b"1"), (200, b"2")]
        await until(lambda: served.over == 3)


# ------------------------------------------------------------------------------------------------ the pool


async def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(framed(b"%d" % peer.number))
        await asyncio.sleep(0.02)
        await peer.send(OK)

    async with serving(answer) as served, Client(served) as client:
        assert await client.ask() == (200, b"0")
        await until(lambda: served.over == 1)
        assert not client.http._idle
        assert await client.ask() == (200, b"1")


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async with serving(says(OK, end=True)) as served, Client(served) as client:
        for _ in range(3):
            assert await client.ask() == (200, b"hello world")
            await until(lambda: not client.http._all)
        assert served.connections == 3


async def test_a_request_is_not_sent_twice() -> None:
    """The server closes just when the second request comes: whether it was read is not known, and it may have cost something."""
    asked = []

    async def answer(peer: Peer) -> bool:
        asked.append(peer.number)
        if len(asked) == 2:
            return True
        await peer.send(OK)
        return False

    async with serving(answer) as served, Client(served) as client:
        await client.ask()
        with pytest.raises(Broken):
            await client.ask()
        assert asked == [0, 0]
        assert await client.ask() == (200, b"hello world")


async def test_as_many_connections_as_requests_and_the_last_one_first() -> None:
    together = asyncio.Barrier(5)
    numbers = []

    async def answer(peer: Peer) -> None:
        numbers.append(peer.number)
        if len(numbers) <= 5:
            await together.wait()
        await peer.send(OK)

    async with serving(answer) as served, Client(served) as client:
        responses = await asyncio.gather(*[client.post() for _ in range(5)])
        assert served.connections == 5
        for response in responses:
            response.close()
        assert len(client.http._idle) == 5
        for _ in range(3):
            await client.ask()
        assert len(set(numbers[5:])) == 1
        assert served.connections == 5


async def test_idle_connections_are_closed() -> None:
    async with serving(says(OK)) as served, Client(served, idle_s=0.2) as client:
        responses = [await client.post() for _ in range(3)]
        assert served.connections == 3
        for response in responses:
            response.close()
        await until(lambda: served.over == 3)
        assert not client.http._all
        assert await client.ask() == (200, b"hello world")


@pytest.mark.parametrize("said", [chunked(b"a", last=b""), b"HTTP/1.1 200 OK\r\n\r\na"])
async def test_closing_the_client_breaks_what_is_under_way(said: bytes) -> None:
    async with serving(says_and_hangs(said)) as served, Client(served) as client:
        response = await client.post()
        assert await response.read_some() == b"a"
        reading = asyncio.ensure_future(response.read_some())
        await asyncio.sleep(0)
        client.http.close()
        with pytest.raises(Broken):
            await reading
        response.close()
        await until(lambda: served.over == 1)


async def test_a_unix_socket_with_one_request_for_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(says(OK), path=path) as served, Client(served, socket_path=str(path), reuse=False) as client:
        for _ in range(3):
            assert await client.ask() == (200, b"hello world")
        assert served.connections == 3
        await until(lambda: served.over == 3)


# ------------------------------------------------------------------------------------------------ connecting


def tls_of(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's side and that of a client who trusts it."""
    cert, key = make_certificate(folder)
    there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    there.load_cert_chain(cert, key)
    return there, ssl.create_default_context(cafile=str(cert))


async def test_tls(tmp_path: Path) -> None:
    there, trust = tls_of(tmp_path)
    body = bytes(range(256)) * (1 << 15)
    async with serving(says(OK), tls=there) as served:
        async with Client(served, tls=trust) as client:
            for _ in range(2):
                assert await client.ask(body) == (200, b"hello world")
                assert served.bodies.pop() == body
            assert served.connections == 1
        async with Client(served, tls=None) as stranger:
            with pytest.raises(CannotConnect):
                await stranger.ask()


async def test_a_handshake_that_never_ends_and_one_that_is_cancelled() -> None:
    begun: list[int] = []
    over: list[int] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.append(1)
        while await reader.read(1000):
            pass
        over.append(1)
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with Client(Served(server.sockets[0].getsockname()[1]), tls=None) as client:
        while not begun:
            with pytest.raises(Silent):
                await client.ask(silence_s=SHORT_S)
            await asyncio.sleep(0)
        await until(lambda: len(over) == len(begun))
        before = len(begun)
        asking = asyncio.ensure_future(client.ask())
        await until(lambda: len(begun) > before)
        asking.cancel()
        await until(lambda: len(over) == len(begun))
        with pytest.raises(asyncio.CancelledError):
            await asking
    server.close()


class Names:
    """A resolver that knows one name. addresses: what it stands for; none: it is not known."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[AddressInfo]:
        self.asked += 1
        await asyncio.sleep(0.01)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [info for address in self.addresses for info in await resolve(address, port)]


async def test_replicas_behind_one_name_are_asked_in_turn() -> None:
    async def answer(peer: Peer) -> None:
        await peer.send(framed(peer.writer.get_extra_info("sockname")[0].encode()))

    async with serving(answer) as served:
        second = await asyncio.start_server(served.handle, "127.0.0.2", served.port)
        names = Names("127.0.0.1", "127.0.0.2")
        async with Client(served, resolve=names) as client:
            responses = await asyncio.gather(*[client.post() for _ in range(6)])
            said = [await read(response) for response in responses]
            assert (said.count(b"127.0.0.1"), said.count(b"127.0.0.2"), names.asked) == (3, 3, 1)
        second.close()


async def test_an_address_where_nobody_listens_is_passed_over() -> None:
    async with serving(says(OK)) as served, Client(served, resolve=Names("127.0.0.2", "127.0.0.1")) as client:
        responses = await asyncio.gather(*[client.post() for _ in range(4)])
        assert [response.status for response in responses] == [200] * 4


async def test_a_name_that_is_not_known_is_asked_for_again() -> None:
    names = Names()
    async with serving(says(OK)) as served, Client(served, resolve=names) as client:
        for error in await asyncio.gather(client.ask(), client.ask(), return_exceptions=True):
            assert isinstance(error, CannotConnect)
        assert names.asked == 1
        names.addresses = ("127.0.0.1",)
        assert await client.ask() == (200, b"hello world")
        assert names.asked == 2


async def test_a_request_that_left_does_not_stop_the_lookup_of_others() -> None:
    async with serving(says(OK)) as served, Client(served, resolve=Names("127.0.0.1")) as client:
        first, second = asyncio.ensure_future(client.ask()), asyncio.ensure_future(client.ask())
        await asyncio.sleep(0)
        first.cancel()
        assert await second == (200, b"hello world")
        assert first.cancelled()


async def test_nobody_there(tmp_path: Path) -> None:
    async with serving(says(OK)) as served:
        pass
    for options in ({}, {"socket_path": str(tmp_path / "none")}):
        async with Client(served, **options) as client:
            with pytest.raises(CannotConnect):
                await client.ask()


# ------------------------------------------------------------------------------------------------ silence


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", OK[:-1], chunked(b"a", last=b""), UNTIL_CLOSE])
async def test_silence_ends_a_request_and_no_sooner_than_asked(said: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with serving(says_and_hangs(said)) as served, Client(served) as client:
        began = loop.time()
        with pytest.raises(Silent):
            await client.ask(silence_s=SHORT_S)
        assert loop.time() - began >= SHORT_S - 0.001, "clocks are read to the millisecond"
        await until(lambda: served.over == 1)


async def test_a_shorter_patience_after_a_longer_one_on_the_same_connection() -> None:
    async def answer(peer: Peer) -> None:
        if len(served.heads) == 1:
            await peer.send(OK)
        else:
            await hangs(peer)

    async with serving(answer) as served, Client(served) as client:
        await client.ask(silence_s=600)
        with pytest.raises(Silent):
            await client.ask(silence_s=SHORT_S)
        assert served.connections == 1


async def test_a_server_that_never_reads_a_large_body() -> None:
    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(PATIENCE_S)

    server = await asyncio.start_server(idle, "127.0.0.1", 0)
    async with Client(Served(server.sockets[0].getsockname()[1])) as client:
        async with asyncio.timeout(PATIENCE_S / 2):
            with pytest.raises(Silent):
                await client.ask(b"x" * (32 << 20), silence_s=0.4)
    server.close()


@pytest.mark.parametrize("secure", [False, True])
async def test_an_answer_before_the_body_is_read_is_an_answer(tmp_path: Path, secure: bool) -> None:
    """The rest of that body is on its way, so nothing else may be sent after it."""
    refused = b"HTTP/1.1 413 too large\r\ncontent-length: 2\r\n\r\nno"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(refused)
        await asyncio.sleep(PATIENCE_S)

    there, trust = tls_of(tmp_path) if secure else (None, None)
    server = await asyncio.start_server(refuse, "127.0.0.1", 0, ssl=there)
    options = {"tls": trust} if secure else {}
    async with Client(Served(server.sockets[0].getsockname()[1]), **options) as client:
        assert await client.ask(b"x" * (32 << 20)) == (413, b"no")
        assert not client.http._idle
    server.close()


# ------------------------------------------------------------------------------------------------ by a clock of the test


class Clock:
    """Of an event loop what a connection uses of it, and a transport. buffered: what this tells of itself. narrow: every write fills
    it."""

    def __init__(self, silence_s: float) -> None:
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.writes: list[bytes] = []
        self.buffered = 0
        self.narrow = False
        self.aborted = False
        self.connection = _Connection(Mock(HttpClient), cast(asyncio.AbstractEventLoop, self))
        self.connection.connection_made(cast(asyncio.BaseTransport, self))
        self.silence_s = silence_s

    def ask(self, body: bytes = b"{}") -> None:
        self.connection.begin(b"POST / HTTP/1.1\r\n\r\n", body, self.silence_s)

    def time(self) -> float:
        return self.now_s

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Mock:
        timer = due_s, callback
        self.timers.append(timer)
        return Mock(cancel=lambda: self.timers.remove(timer))

    def pass_s(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while due := [timer for timer in self.timers if timer[0] <= end_s]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now_s = max(self.now_s, first[0])
            first[1]()
        self.now_s = end_s

    def silent(self) -> bool:
        try:
            self.connection.check()
        except Silent:
            return self.aborted
        return False

    def write(self, data: bytes | memoryview) -> None:
        self.writes.append(bytes(data))
        if self.narrow:
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def test_silence_begins_with_the_last_byte() -> None:
    clock = Clock(silence_s=10)
    clock.ask()
    for byte in OK[:5]:
        clock.pass_s(9)
        clock.connection.data_received(bytes([byte]))
    clock.pass_s(9.9)
    assert not clock.silent()
    clock.pass_s(0.2)
    assert clock.silent()


def test_a_reader_that_is_slow_is_not_the_servers_silence() -> None:
    clock = Clock(silence_s=10)
    clock.ask()
    clock.connection.data_received(framed(bytes(2 * UNREAD_BYTES_MAX))[: UNREAD_BYTES_MAX + 1000])
    clock.pass_s(100)
    assert not clock.silent()
    clock.connection.take()
    clock.pass_s(9.9)
    assert not clock.silent()
    clock.pass_s(0.2)
    assert clock.silent()


def test_a_server_that_takes_in_a_large_body_is_not_silent() -> None:
    clock = Clock(silence_s=10)
    clock.buffered = 1 << 20
    clock.ask(bytes(1 << 20))
    for _ in range(10):
        clock.pass_s(8)
        clock.buffered -= 1000
    clock.pass_s(8)
    assert not clock.silent()
    clock.pass_s(4)
    assert clock.silent()


def test_a_transport_that_can_not_tell_what_is_on_its_way_gets_a_large_body_in_pieces() -> None:
    """With TLS what was encrypted is forgotten: a body given at once would look as if it had arrived."""
    body = bytes(range(256)) * (5 << 10)
    clock = Clock(silence_s=10)
    clock.narrow = True
    clock.ask(body)
    for pieces in range(5):
        assert len(clock.writes) == 1 + pieces, "no more than the transport wants"
        clock.pass_s(8)
        assert not clock.silent()
        clock.connection.resume_writing()
    assert b"".join(clock.writes[1:]) == body
    assert clock.connection._rest == b"", "and is not kept"
    clock.pass_s(12)
    assert clock.silent()


# ------------------------------------------------------------------------------------------------ cancelling


@pytest.mark.parametrize("said", [b"", OK[:-1], chunked(b"a", last=b"")])
async def test_cancelling_cuts_the_connection(said: bytes) -> None:
    async with serving(says_and_hangs(said)) as served, Client(served) as client:
        asking = asyncio.ensure_future(client.ask())
        await until(lambda: len(served.bodies) == 1)
        await asyncio.sleep(0.02)
        asking.cancel()
        await until(lambda: served.over == 1)
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not client.http._idle


async def test_closing_before_the_end_cuts_the_connection() -> None:
    async with serving(says_and_hangs(chunked(b"a", last=b""))) as served, Client(served) as client:
        response = await client.post()
        assert not response.ended
        response.close()
        await until(lambda: served.over == 1)
        with pytest.raises(Broken):
            await response.read_some()


async def test_no_connection_is_left_to_the_garbage_collector() -> None:
    """It comes seldom under load, and the embedded engine is asked on a connection for each request."""
    gc.collect()
    gc.disable()
    try:
        async with serving(says(OK)) as served, Client(served, reuse=False) as client:
            for _ in range(20):
                await client.ask()
            await until(lambda: not client.http._all)
            await until(lambda: not any(isinstance(one, _Connection) for one in gc.get_objects()))
    finally:
        gc.enable()


async def test_no_descriptor_is_left_of_200_cut_requests() -> None:
    process = psutil.Process()
    async with serving(says_and_hangs(chunked(b"a", last=b""))) as served, Client(served) as client:
        before = process.num_fds()
        for turn in range(10):
            responses = await asyncio.gather(*[client.post() for _ in range(20)])
            for response in responses:
                response.close()
            await until(lambda turn=turn: served.over == 20 * (turn + 1))  # type: ignore[misc]
        await until(lambda: not client.http._all)
        await until(lambda: process.num_fds() <= before)


# ------------------------------------------------------------------------------------------------ a reader that is slow


async def test_a_reader_that_sleeps_stops_the_server() -> None:
    size, sent = 50 << 20, 0

    async def answer(peer: Peer) -> None:
        nonlocal sent
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            peer.writer.write(bytes(1 << 16))
            await peer.writer.drain()
            sent += 1 << 16

    async with serving(answer) as served, Client(served) as client:
        response = await client.post()
        connection = response._connection
        assert connection is not None
        await until(lambda: connection._paused)
        await asyncio.sleep(0.1)  # in which a server that is not stopped would go on
        assert sum(map(len, connection.pieces)) <= UNREAD_BYTES_MAX + (1 << 18)
        assert sent < size
        read_bytes = 0
        while piece := await response.read_some():
            assert len(piece) <= UNREAD_BYTES_MAX + (1 << 18)
            read_bytes += len(piece)
        assert read_bytes == size
        response.close()
        sent = size
        assert len(client.http._idle) == 1, "and the connection is as good as before"


async def test_an_answer_that_fills_the_buffer_and_is_not_read_leaves_a_good_connection() -> None:
    async with serving(says(framed(bytes(UNREAD_BYTES_MAX)))) as served, Client(served) as client:
        for _ in range(3):
            response = await client.post()
            connection = response._connection
            assert connection is not None
            await until(lambda connection=connection: connection.complete and connection._paused)  # type: ignore[misc]
            response.close()
        assert await client.ask() == (200, bytes(UNREAD_BYTES_MAX)), "without what nobody read"
        assert served.connections == 1


# ------------------------------------------------------------------------------------------------ encodings


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeezer.compress(data) + squeezer.flush()


WORDS = b"".join(b"%d bottles " % number for number in range(300))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(WORDS)),
        ("X-GZIP", gzip.compress(WORDS[:99]) + gzip.compress(WORDS[99:])),
        ("deflate", zlib.compress(WORDS)),
        ("deflate", raw_deflate(WORDS)),
        ("identity", WORDS),
    ],
)
async def test_encodings_that_nobody_asked_for(encoding: str, body: bytes) -> None:
    answer = framed(body, f"content-encoding: {encoding}")
    for pieces in ([answer], [answer[at : at + 1] for at in range(len(answer))]):
        async with serving(says(*pieces)) as served, Client(served) as client:
            for _ in range(2):
                assert await client.ask() == (200, WORDS)
            assert served.connections == 1


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"abc"),
        ("gzip, gzip", b"abc"),
        ("gzip", b"abc"),
        ("gzip", gzip.compress(WORDS)[:-1]),
        ("deflate", b"\x78abc"),
    ],
)
async def test_encodings_that_cant_be_read(encoding: str, body: bytes) -> None:
    async with serving(says(framed(body, f"content-encoding: {encoding}"))) as served, Client(served) as client:
        with pytest.raises(Broken):
            await client.ask()


async def test_a_compressed_bomb_comes_in_small_pieces() -> None:
    bomb = framed(gzip.compress(bytes(40 << 20)), "content-encoding: gzip")
    async with serving(says(bomb)) as served, Client(served) as client:
        response = await client.post()
        size = 0
        while piece := await response.read_some():
            assert len(piece) <= INFLATED_BYTES_MAX
            size += len(piece)
        assert size == 40 << 20
        response.close()


# ------------------------------------------------------------------------------------------------ what an engine makes of it


def turn() -> Generation:
    return one_turn(model="up")


async def asked(url: str, **options: Any) -> None:
    engine = OpenAICompatEngine("box", url + "/v1", retries=0, **options)
    await engine.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for _ in engine.stream(turn()):
                pass
    finally:
        await engine.close()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (says(end=True), EngineUnavailable, "broke before it answered"),
        (says(b"nonsense"), EngineUnavailable, "broke before it answered"),
        (hangs, EngineTimeout, "silent for too long"),
        (says_and_hangs(STREAM), EngineTimeout, "silent for too long"),
        (says(STREAM, end=True), EngineBroken, "broke in the middle"),
        (says(OK[:-1], end=True), EngineBroken, "broke in the middle"),
        (says(framed(b"{}", "content-encoding: zstd")), EngineBroken, "broke in the middle"),
        (says(framed(gzip.compress(bytes(80 << 20)), "content-encoding: gzip")), EngineBroken, "longer than 64 MiB"),
    ],
)
async def test_what_each_failure_is_called(answer: Answer, kind: type[Exception], words: str) -> None:
    async with serving(answer) as served:
        with pytest.raises(kind, match=words):
            await asked(served.url, timeout_s=0.5 if kind is EngineTimeout else SILENCE_S)


async def test_an_engine_that_cant_be_reached() -> None:
    async with serving(says(OK)) as served:
        pass
    with pytest.raises(EngineUnavailable, match="can't be reached"):
        await asked(served.url)
