"""A small HTTP/1.1 client for the requests that models answer: POST, a body that is whole, an answer that may take minutes.

llhttp (in httptools) parses; the rest is one protocol object per connection that is used again and again, and per request one
write, one future and no timer. What it does not do: redirects, cookies, proxies, HTTP/2, trying again. A POST that met a
connection which its server was just closing is not sent twice either: nobody can tell whether it was read, and it may cost.
"""

from __future__ import annotations

import asyncio
import base64
import math
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import aiohappyeyeballs
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

if TYPE_CHECKING:
    from yarl import URL

CONNECT_TIMEOUT_S: Final = 10.0
IDLE_S: Final = 60.0
"""How long a connection is kept that nobody uses. Whoever balances load in front of engines often waits as long."""
ADDRESSES_S: Final = 10.0
"""How long what a name stands for is taken as known."""
HEAD_START_S: Final = 0.25
"""RFC 8305 section 5: how long one address is tried before the next is tried beside it."""
HEAD_BYTES_MAX: Final = 64 << 10
"""Also of what frames a body without being a part of it: extensions of chunks and trailers."""
HEADER_LINES_MAX: Final = 200
UNREAD_BYTES_MAX: Final = 256 << 10
"""Bytes of an answer that wait here before the server is no longer listened to."""
COPY_BYTES_MAX: Final = 64 << 10
"""A body of at most so many bytes leaves together with its head, which copies it."""
PIECE_BYTES: Final = 256 << 10
"""Of a larger body, what the transport is given at a time."""
INFLATED_BYTES_MAX: Final = 256 << 10
"""Most that one piece of a compressed body becomes at a time."""

# ---------------------------------------------------------------------------------------------- what can go wrong


class CannotConnect(ConnectionError):
    """There is no such name, nobody listens there, or the certificate is not the right one."""


class Silent(TimeoutError):
    """Nothing came for too long, or no connection was made in that time."""


class Broken(ConnectionError):
    """The connection was lost before the end of the answer, or what came is no HTTP."""


# ---------------------------------------------------------------------------------------------- what is sent


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. head: the request line and the lines that all of them have. credential: what of it is secret."""

    head: bytes = field(repr=False)
    credential: bytes = field(repr=False)


def target_of(url: URL, headers: Mapping[str, str]) -> Target:
    """User and password in `url` are sent as Basic authorization, unless `headers` have another. Raises `ValueError`."""
    lines = {name.lower(): value for name, value in headers.items()}
    basic = basic_credential(url)
    if basic is not None:
        lines.setdefault("authorization", f"Basic {basic}")
    fixed = {"host": url.host_port_subcomponent or "", "accept": "*/*", **lines}
    head = b"".join(header_line(name, value) for name, value in fixed.items())
    credential = lines.get("authorization", "").rpartition(" ")[2].encode()
    return Target(f"POST {url.raw_path_qs} HTTP/1.1\r\n".encode("ascii") + head, credential)


def header_line(name: str, value: str) -> bytes:
    """Raises `ValueError` for a value that would begin another line. It does not repeat the value, which may be secret."""
    if not value.isprintable() and any(character in value for character in "\r\n\0"):
        raise ValueError(f"The value of the header `{name}` holds a line end.")
    return f"{name}: {value}\r\n".encode()


def basic_credential(url: URL) -> str | None:
    """User and password of an address as RFC 7617 writes them, or None where it has none."""
    if url.raw_user is None and url.raw_password is None:
        return None
    pair = f"{url.user or ''}:{url.password or ''}"
    return base64.b64encode(pair.encode("latin-1", "replace")).decode()


# ---------------------------------------------------------------------------------------------- one connection


class _Connection(asyncio.Protocol):
    """Carries one request at a time. `begin` to `end` is one request; between them `answered` wakes who waits for it."""

    __slots__ = (
        "_error",
        "_feed",
        "_framing",
        "_full",
        "_keep",
        "_lines",
        "_loop",
        "_now",
        "_parser",
        "_paused",
        "_pool",
        "_rest",
        "_silence_s",
        "_timer",
        "_timer_due",
        "_transport",
        "_unread",
        "_unsent",
        "_waiter",
        "busy",
        "complete",
        "headed",
        "headers",
        "heard_s",
        "on_body",
        "pieces",
        "status",
    )

    def __init__(self, pool: HttpClient, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._now = loop.time
        self._transport = cast(asyncio.Transport, None)  # `connection_made` comes before all else
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._paused = False
        self._full = False
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append  # called by the parser, without a frame of ours
        self.heard_s = 0.0
        self.busy = False
        self._reset()
        self._parser = HttpResponseParser(self)
        # As lenient as the browsers and aiohttp, for servers that are sloppy about line ends.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._feed = self._parser.feed_data

    def _reset(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.status = 0
        self.headed = False
        self.complete = False
        self._keep = False
        self._error: OSError | None = None
        self._lines = 0
        self._framing = 0
        self._unread = 0
        self._unsent = 0
        self._rest: memoryview | bytes = b""

    # The request

    def begin(self, head: bytes, body: bytes, silence_s: float) -> None:
        """Sends a request. What is left of the one before is forgotten."""
        self._reset()
        self.pieces.clear()
        self.busy = True
        self._silence_s = silence_s
        self.heard_s = now = self._now()
        if len(body) <= COPY_BYTES_MAX:
            self._transport.write(head + body)
            self._watch(now + silence_s)
        else:
            self._transport.write(head)
            self._rest = memoryview(body)
            self._unsent = len(body)
            self._send_on()
            self._watch(now + silence_s / 8)

    def _send_on(self) -> None:
        """As much as the transport wants: one with TLS forgets what it has encrypted, so that nobody could tell how much is on its
        way."""
        while self._rest and not self._full:
            piece = self._rest[:PIECE_BYTES]
            self._rest = self._rest[PIECE_BYTES:] or b""  # an empty view would keep the body
            self._transport.write(piece)

    def _waiting_bytes(self) -> int:
        """Of a large body, as far as can be seen."""
        return len(self._rest) + self._transport.get_write_buffer_size() if self._unsent else 0

    def news(self) -> asyncio.Future[None]:
        """Done when anything came, or nothing more will."""
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def check(self) -> None:
        """Raises what ended the request, if something did."""
        if self._error is not None:
            raise self._error

    def take(self) -> bytes:
        """The bytes of the body that are there, at least one."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread = self._framing = 0
        if self._paused:
            self._resume()
        return data

    def end(self) -> None:
        """Back to the pool where the answer was read to its end and the server allows; cut otherwise."""
        self.busy = False
        if not self._keep or self._waiting_bytes():
            self.cut()
            return
        if self._paused:
            self._resume()
        self._pool.keep(self)

    def cut(self) -> None:
        """At once: nothing more is sent, nothing more is read."""
        self._pool.forget(self)
        self._transport.abort()

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # nobody asked for it
            self.cut()
            return
        self.heard_s = self._now()
        try:
            self._feed(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(Broken("what came is no HTTP"), error)
            return
        if self.pieces:
            self._unread += len(data)
            if self._unread > UNREAD_BYTES_MAX and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        elif not self.complete:
            self._framing += len(data)
            if self._framing > HEAD_BYTES_MAX:
                self._fail(Broken("the head of the answer is over 64 KiB"))
                return
        self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._send_on()

    def eof_received(self) -> None:
        """The server sends no more. What it was asked for is whole then, where nothing else tells its end."""
        if not self.busy:
            self.cut()
        elif self.headed and not self.complete and self._until_close():
            self.complete = True

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        del self._parser, self._feed  # which hold this object, so that it would be left to the garbage collector
        if not self.busy:
            return
        self._keep = False
        if not self.complete and self._error is None:
            self._error = Broken("the connection was lost")
            self._error.__cause__ = error
        self._wake()

    def _until_close(self) -> bool:
        """The end of the connection is that of the body (RFC 9112 section 6.3, point 8)."""
        if b"content-length" in self.headers:
            return False
        codings = self.headers.get(b"transfer-encoding", b"")
        return codings.rpartition(b",")[2].strip().lower() != b"chunked"

    # The parser's calls

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("something follows the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.headed:  # a trailer
            return
        self._lines += 1
        name = name.lower()
        earlier = self.headers.get(name)
        self.headers[name] = value if earlier is None else earlier + b", " + value  # RFC 9110 section 5.3

    def on_headers_complete(self) -> None:
        if self._lines > HEADER_LINES_MAX:
            raise ValueError("the head of the answer has over 200 lines")
        size = len(b"".join(self.headers)) + len(b"".join(self.headers.values()))
        if size > HEAD_BYTES_MAX:  # which came all at once
            raise ValueError("the head of the answer is over 64 KiB")
        status = self._parser.get_status_code()
        if status < 100:  # which may have a body, that nobody would ever take
            raise ValueError("the status of the answer is none")
        if status >= 200:
            self.status = status
            self.headed = True
        else:  # RFC 9110 section 15.2: the answer is still to come
            self.headers.clear()

    def on_message_complete(self) -> None:
        if self.headed:
            self.complete = True
            self._keep = self._parser.should_keep_alive()

    # Ends that are not the server's

    def _fail(self, error: OSError, cause: Exception | None = None) -> None:
        """An answer that is whole stays whole, whatever follows it."""
        self._keep = False
        if not self.complete:
            error.__cause__ = cause
            self._error = error
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _resume(self) -> None:
        self._paused = False
        if not self._transport.is_closing():
            self.heard_s = self._now()
            self._transport.resume_reading()

    def _watch(self, due: float) -> None:
        """A timer that is there already, and early enough, finds out when it fires."""
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Whether the server was silent for too long. While it takes in a large body it is not, which is looked at more often."""
        self._timer = None
        if not self.busy or self.complete:
            return
        now = self._now()
        unsent = self._waiting_bytes()
        if unsent < self._unsent or self._paused:
            self._unsent = unsent
            self.heard_s = now
        due = self.heard_s + self._silence_s
        if now >= due:
            self._fail(Silent("the server was silent for too long"))
            return
        self._watch(min(due, now + self._silence_s / 8) if unsent else due)


# ---------------------------------------------------------------------------------------------- one answer


class Response:
    """An answer whose head is there. Its bytes are read once; `close` has to be called, and may be called again."""

    __slots__ = ("_connection", "_headers", "_inflating", "_plain", "credential", "status")

    def __init__(self, connection: _Connection, credential: bytes) -> None:
        self._connection: _Connection | None = connection
        self._headers = connection.headers
        self._inflating: _Inflating | None = None
        self._plain = b"content-encoding" not in self._headers
        self.status = connection.status
        self.credential = credential

    def header(self, name: str) -> str | None:
        """Lines of one name are one, with commas."""
        value = self._headers.get(name.lower().encode())
        return None if value is None else value.decode("latin-1")

    @property
    def content_type(self) -> str:
        """In lower case and without parameters; empty where the server does not tell."""
        return self._headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def ended(self) -> bool:
        """All of it has come, and all but what `read_some` would give now is read."""
        return self._connection is None or self._connection.complete

    async def read_some(self) -> bytes:
        """What came since the last call, at once where something did; empty at the end. Raises `Silent` and `Broken`."""
        if not self._plain:
            return await self._read_inflated()
        return await self._read_raw()

    async def _read_raw(self) -> bytes:
        connection = self._connection
        if connection is None:
            raise Broken("the answer was closed")
        while not connection.pieces:
            if connection.complete:
                return b""
            connection.check()
            await connection.news()
        return connection.take()

    async def _read_inflated(self) -> bytes:
        if self._inflating is None:
            self._inflating = _Inflating(self._headers[b"content-encoding"])
        while True:
            if piece := self._inflating.more():
                return piece
            data = await self._read_raw()
            if not data:
                self._inflating.check_end()
                return b""
            self._inflating.feed(data)

    def close(self) -> None:
        """The connection goes back to the pool when all has come, and is cut otherwise, which stops the server's work."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()


class _Inflating:
    """Undoes gzip or deflate (RFC 9110 section 8.4.1), a bounded piece at a time. Raises `Broken`."""

    __slots__ = ("_encoding", "_rest", "_zlib")

    def __init__(self, encoding: bytes) -> None:
        encoding = encoding.strip().lower()
        if encoding not in (b"gzip", b"x-gzip", b"deflate", b"identity", b""):
            raise Broken("the answer is in an encoding that was not asked for")
        self._encoding = encoding
        self._zlib: zlib._Decompress | None = None
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Only when `more` gave nothing."""
        self._rest += data

    def more(self) -> bytes:
        """Empty: more has to be fed."""
        if self._encoding in (b"identity", b""):
            piece, self._rest = self._rest, b""
            return piece
        try:
            while self._rest or (self._zlib is not None and not self._zlib.eof):
                if self._zlib is None or self._zlib.eof:
                    self._zlib = self._begun()
                piece = self._zlib.decompress(self._rest, INFLATED_BYTES_MAX)
                self._rest = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
                if piece or not (self._zlib.eof and self._rest):
                    return piece
        except zlib.error as error:
            raise Broken("the answer can't be decompressed") from error
        return b""

    def _begun(self) -> zlib._Decompress:
        if self._encoding != b"deflate":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        # Some servers leave out the two bytes of zlib, whose first ends with 8.
        return zlib.decompressobj(wbits=zlib.MAX_WBITS if self._rest[0] & 15 == 8 else -zlib.MAX_WBITS)

    def check_end(self) -> None:
        if self._zlib is not None and not self._zlib.eof:
            raise Broken("the compressed answer ends too early")


# ---------------------------------------------------------------------------------------------- the pool


AddressInfo: TypeAlias = "tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]"
"""Of `socket.getaddrinfo`."""
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]
"""Host and port in, addresses out. Raises `OSError`."""


async def resolve(host: str, port: int) -> Sequence[AddressInfo]:
    """By the system, which is not asked for what is an address already."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


class HttpClient:
    """Connections to one server, as many as there are requests at a time: what limits those stands before it.

    url: scheme, host and port count. socket_path: a UNIX socket that is used instead. reuse: False where each connection is for one
    request. tls: instead of the system's trust; only asked for with https. idle_s: how long a connection is kept that nobody uses.
    resolve: what finds the addresses of the host.
    """

    def __init__(
        self,
        url: URL,
        *,
        socket_path: str | None = None,
        reuse: bool = True,
        tls: ssl.SSLContext | None = None,
        idle_s: float = IDLE_S,
        resolve: Resolve = resolve,
    ) -> None:
        self._host = url.raw_host or ""
        self._port = url.port or 80
        self._secure = url.scheme == "https"
        self._socket_path = socket_path
        self._reuse = reuse
        self._tls = tls
        self._idle_s = idle_s
        self._resolve = resolve
        self._lookup: asyncio.Task[deque[AddressInfo]] | None = None
        self._lookup_until_s = 0.0
        self._idle: dict[_Connection, None] = {}  # the last one is taken first
        self._all: set[_Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, target: Target, body: bytes, silence_s: float, lines: bytes = b"") -> Response:
        """Sends a request and returns when the head of its answer is there. Raises `CannotConnect`, `Silent` and `Broken`.

        silence_s: longest time without a byte, then and while the body is read. lines: of headers of this request only. Cancelled
        at any time, it cuts the connection.
        """
        connection = self._taken()
        if connection is None:
            connection = await self._connected(min(CONNECT_TIMEOUT_S, silence_s))
        try:
            connection.begin(b"%b%bcontent-length: %d\r\n\r\n" % (target.head, lines, len(body)), body, silence_s)
            while not connection.headed:
                connection.check()
                await connection.news()
        except BaseException:
            connection.end()
            raise
        return Response(connection, target.credential)

    def close(self) -> None:
        """Cuts all connections; requests under way break."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._all):
            connection.cut()

    # The pool; `keep`, `forget` and `lost` are for connections

    def _taken(self) -> _Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.closing:
                return connection
        return None

    def keep(self, connection: _Connection) -> None:
        if not self._reuse or self._closed or connection.closing:
            connection.cut()
            return
        self._idle[connection] = None
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def forget(self, connection: _Connection) -> None:
        self._idle.pop(connection, None)

    def lost(self, connection: _Connection) -> None:
        self.forget(connection)
        self._all.discard(connection)

    def _sweep(self) -> None:
        """Cuts what was idle for too long, and comes back for the next."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        old = loop.time() - self._idle_s
        for connection in [one for one in self._idle if one.heard_s <= old]:
            connection.cut()
        if self._idle:
            oldest = min(one.heard_s for one in self._idle)
            self._sweeper = loop.call_at(oldest + self._idle_s, self._sweep)

    # Connecting

    async def _connected(self, timeout_s: float) -> _Connection:
        try:
            async with asyncio.timeout(timeout_s) as limit:
                connection = await self._connect()
        except OSError as error:  # `TimeoutError` and `ssl.SSLError` are of its kind
            if limit.expired():
                raise Silent("no connection was made in time") from error
            raise CannotConnect("no connection can be made") from error
        except UnicodeError as error:  # a name that DNS has no form for
            raise CannotConnect("no connection can be made") from error
        self._all.add(connection)
        if self._closed:
            connection.cut()
            raise Broken("the client was closed")
        return connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        make = partial(_Connection, self, loop)
        if self._socket_path is not None:
            return (await loop.create_unix_connection(make, self._socket_path))[1]
        addresses = await self._addresses()
        # asyncio can try two addresses beside each other, uvloop can't: with it a broken IPv6 would cost the whole timeout.
        opened = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=HEAD_START_S, interleave=1)
        name = self._host.rstrip(".") if self._secure else None
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self._trust() if self._secure else None
            return (await loop.create_connection(make, sock=opened, ssl=tls, server_hostname=name))[1]
        except BaseException:
            opened.close()
            raise

    async def _addresses(self) -> Sequence[AddressInfo]:
        """Of the host, another one first each time, so that replicas behind one name share the work. Those who ask at the same time
        wait for one lookup."""
        lookup = self._lookup
        if lookup is None or asyncio.get_running_loop().time() >= self._lookup_until_s:
            self._lookup_until_s = math.inf
            self._lookup = lookup = asyncio.create_task(self._look_up())
        found = await asyncio.shield(lookup)
        addresses = list(found)
        found.rotate(-1)
        return addresses

    async def _look_up(self) -> deque[AddressInfo]:
        valid_s = 0.0
        try:
            found = deque(await self._resolve(self._host, self._port))
            valid_s = ADDRESSES_S
            return found
        finally:
            self._lookup_until_s = asyncio.get_running_loop().time() + valid_s

    def _trust(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls
