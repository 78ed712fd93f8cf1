"""One connection, before there is a request: bounds and deadlines that uvicorn's protocol does not have.

uvicorn parses with llhttp, which refuses what requests are smuggled with (tests/flow/test_security_connections.py has the list)
but stores heads of any size and waits for ever. Here every state of a connection has a bound and an end:

    head of a request   `HEAD_BYTES_MAX`, `HEADERS_MAX`, `TARGET_BYTES_MAX`; complete within `header_s`     431, 414, 408
    its body            at least `body_bytes_per_s_min` in each `body_s` (its size: serving/http.py)        408
    further requests    `PIPELINED_MAX` that wait for their turn                                             closed
    an answer           what lies in the buffer of the socket is read within `write_s`                       cut
    nothing             `Config.timeout_keep_alive`                                                          closed

A request that comes whole in one piece, as nearly all do, starts no timer and costs a few comparisons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import httptools
import msgspec
import structlog
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from jubal.serving.cycle import Cycle
from jubal.serving.peer import Peer

log = structlog.get_logger("jubal.connection")

HEAD_BYTES_MAX: Final = 64 << 10
"""Request line and headers together. nginx takes 32 KiB, Node 16, h11 in uvicorn 64."""
HEADERS_MAX: Final = 100
"""As in Apache. The official SDKs send about 20."""
TARGET_BYTES_MAX: Final = 8 << 10
PIPELINED_MAX: Final = 32
LINGER_S: Final = 2.0
"""How long a refused client may go on sending: one whose connection is closed meanwhile never sees the answer."""
CROWD_HEADER_S: Final = 5.0
"""What a connection over the limit gets for the head of its request in place of `header_s`."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What slow clients get. Seconds; connections_max: open at a time, one more is answered 503."""

    header_s: float = 20
    body_s: float = 20
    body_bytes_per_s_min: int = 500
    write_s: float = 60
    connections_max: int = 4096


class Refusal(NamedTuple):
    """Why a request is not taken up: a status, a stable code and a sentence for the client."""

    status: int
    code: str
    message: str
    type: str = "invalid_request_error"


MALFORMED: Final = Refusal(400, "malformed_http", "This is not a valid HTTP/1.1 request.")
ONE_HOST: Final = Refusal(400, "malformed_http", "An HTTP/1.1 request has exactly one `Host` header.")
UNKNOWN_CODING: Final = Refusal(
    400, "malformed_http", "The only `Transfer-Encoding` that is read here is `chunked`, in HTTP/1.1."
)
HEAD_TOO_LARGE: Final = Refusal(
    431, "headers_too_large", f"The headers are over this server's limit of {HEAD_BYTES_MAX >> 10} KiB."
)
TOO_MANY_HEADERS: Final = Refusal(
    431, "headers_too_large", f"The request has more than {HEADERS_MAX} headers, this server's limit."
)
TARGET_TOO_LONG: Final = Refusal(
    414, "url_too_long", f"The URL is over this server's limit of {TARGET_BYTES_MAX >> 10} KiB."
)
HEAD_TOO_SLOW: Final = Refusal(408, "request_timeout", "The request's headers did not arrive in time.")
BODY_TOO_SLOW: Final = Refusal(408, "request_timeout", "The request's body arrived too slowly.")
CROWDED: Final = Refusal(
    503, "too_many_connections", "This server has as many connections as it takes; try again soon.", "server_error"
)


class _Refused(Exception):
    """Raised below the parser, which ends the parsing."""


class Connection(HttpToolsProtocol):
    """new_id: makes the x-request-id of answers to what never became a request."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        deadlines: Deadlines,
        new_id: Callable[[], str],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadlines = deadlines
        self._new_id = new_id
        self._header_s = deadlines.header_s
        self._in_body = False
        self._upgrading = False
        self._undone = 0
        """Bytes since the last piece of the message that is known: a bound of a head, or of trailers, still incomplete."""
        self._body_bytes = 0
        self._body_mark = 0
        self._refusal: Refusal | None = None
        self._peer = Peer()
        self._extensions = self._peer.extensions()
        self._timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_until_s: float | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._deadlines.connections_max:
            self._header_s = min(CROWD_HEADER_S, self._header_s)
            self.app = self._turn_away
            if len(self.connections) > 2 * self._deadlines.connections_max:  # not even answers any more
                transport.abort()
                return
        self._timer = self.loop.call_later(self._header_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for timer in (self._idle_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._peer.leave()

    def data_received(self, data: bytes) -> None:
        self._idle_until_s = None
        self._undone += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or MALFORMED)
            return
        if self._in_body:
            self._body_goes_on()
        elif self._undone:
            self._head_goes_on()
        elif self._timer is not None:
            self._stop_timer()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """To WebSocket or h2c: answered as if the client had not asked (RFC 9110 7.8). Java's client asks with each first request.

        llhttp takes what follows such a head for the other protocol, so the head is read again without its `Upgrade`.
        """
        lines = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self._upgrading = False
        self._undone = 0
        self.data_received(head + rest)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # ------------------------------------------------------------------------------------------ heads

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        self._refusal = self._objection(version)
        if self._refusal is not None:
            raise _Refused
        if self._timer is not None:
            self._stop_timer()
        if self.parser.should_upgrade():
            self._upgrading = True
            return
        self._in_body = True
        self._undone = self._body_bytes = 0
        self._begin(self._scope_of(version), version)
        self.headers = []  # for trailers, which are no headers: they come after the request has been judged by those

    def _scope_of(self, version: str) -> HTTPScope:
        """As ASGI has it (HTTP Connection Scope)."""
        path, raw_path, query = _target(self.url)
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": "",
            "method": self.parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "extensions": self._extensions,
            "state": self.app_state,
        }

    def _begin(self, scope: HTTPScope, version: str) -> None:
        """A request's turn: now, or after those that came before it on this connection."""
        before, self.scope = self.cycle, scope
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self._idle_until_s = None
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _objection(self, version: str) -> Refusal | None:
        if len(self.headers) > HEADERS_MAX:
            return TOO_MANY_HEADERS
        if len(self.url) > TARGET_BYTES_MAX:
            return TARGET_TOO_LONG
        if self._undone > HEAD_BYTES_MAX and self._head_bytes() > HEAD_BYTES_MAX:
            return HEAD_TOO_LARGE
        if len(self.pipeline) >= PIPELINED_MAX:
            return MALFORMED
        return self._framing_objection(version)

    def _framing_objection(self, version: str) -> Refusal | None:
        """What llhttp lets pass, and another server on the way may understand differently (RFC 9112 3.2, 6.1)."""
        names = [name for name, _ in self.headers]
        if b"transfer-encoding" in names:
            coding = self.headers[names.index(b"transfer-encoding")][1]
            if coding.lower() != b"chunked" or version != "1.1":
                return UNKNOWN_CODING
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            return MALFORMED
        hosts = names.count(b"host")
        if hosts == 1 or (hosts == 0 and version == "1.0"):
            return None
        return ONE_HOST if version in ("1.0", "1.1") else MALFORMED

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def _head_goes_on(self) -> None:
        if self._undone > HEAD_BYTES_MAX:
            self._refuse(HEAD_TOO_LARGE if self.headers else TARGET_TOO_LONG)
        elif self._timer is None:
            self._timer = self.loop.call_later(self._header_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._timer = None
        if self._answering:  # to an earlier request, which is not to suffer
            self._timer = self.loop.call_later(self._header_s, self._head_is_late)
        elif self._undone:
            self._refuse(HEAD_TOO_SLOW)
        else:
            self.transport.close()

    # ------------------------------------------------------------------------------------------ bodies

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._undone = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._in_body = False
        self._undone = 0
        super().on_message_complete()
        if self.cycle.response_complete:  # it was refused before its end
            self._be_idle()
        elif (
            self.flow.read_paused and not self.pipeline
        ):  # all is there, and only who reads notices a client that leaves
            self.flow.resume_reading()

    def _body_goes_on(self) -> None:
        if self._undone > HEAD_BYTES_MAX:  # trailers, or extensions of a chunk
            self._refuse(HEAD_TOO_LARGE)
        elif self._timer is None:
            self._await_body()

    def _await_body(self) -> None:
        self._stop_timer()
        self._body_mark = self._body_bytes
        self._timer = self.loop.call_later(self._deadlines.body_s, self._look_at_body)

    def _look_at_body(self) -> None:
        self._timer = None
        came = self._body_bytes - self._body_mark
        waits_for_us = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if self.cycle.response_complete:  # nobody wants the rest
            self.transport.close()
        elif waits_for_us or came >= self._deadlines.body_bytes_per_s_min * self._deadlines.body_s:
            self._await_body()
        else:
            self._refuse(BODY_TOO_SLOW)

    # ------------------------------------------------------------------------------------------ answers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._deadlines.write_s, self._cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._flush_or_cut()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.cycle.more_body and not self.cycle.keep_alive:
            self._stop_timer()
            _Lingering.on(self, self.transport)
        else:
            self._be_idle()

    def _be_idle(self) -> None:
        self._idle_until_s = self.loop.time() + self.timeout_keep_alive
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def _look_if_idle(self) -> None:
        """One timer looks again and again, as setting and stopping one for each request would cost more than the look."""
        self._idle_timer = None
        if self._idle_until_s is None:  # the next answer sets it again
            return
        left_s = self._idle_until_s - self.loop.time()
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._look_if_idle)
        elif not self.transport.is_closing():
            self.transport.close()
            self._flush_or_cut()

    def _flush_or_cut(self) -> None:
        """A closed connection whose peer does not read would stay for ever."""
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._write_timer = self.loop.call_later(self._deadlines.write_s, self._cut)

    def _cut(self) -> None:
        """The client does not read: its answer is given up, like that of one that has left."""
        self._write_timer = None
        log.info("a client that does not read was cut off", unsent_bytes=self.transport.get_write_buffer_size())
        self.transport.abort()

    # ------------------------------------------------------------------------------------------ refusals

    def _refuse(self, refusal: Refusal) -> None:
        """Answers and closes. Never into the middle of another answer."""
        request_id = self._new_id()
        log.info("a request was refused", request_id=request_id, status=refusal.status, code=refusal.code)
        self._stop_timer()
        if self._answering and not self._in_body:
            self._finish_answers()
            return
        if self._answering:
            if self.cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(self._written(refusal, request_id))
        _Lingering.on(self, self.transport)

    def _finish_answers(self) -> None:
        """What was asked before gets its answer; then the connection ends."""
        self.cycle.keep_alive = False
        self.transport.set_protocol(_Deaf(self))

    def _written(self, refusal: Refusal, request_id: str) -> bytes:
        body = _body(refusal)
        head = [STATUS_LINE[refusal.status]]
        for name, value in (*self.server_state.default_headers, *_headers(body, request_id)):
            head += (name, b": ", value, b"\r\n")
        return b"".join((*head, b"\r\n", body))

    async def _turn_away(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application of a connection over the limit."""
        request_id = self._new_id()
        log.info("a request was refused", request_id=request_id, status=CROWDED.status, code=CROWDED.code)
        body = _body(CROWDED)
        headers = [*_headers(body, request_id), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": CROWDED.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """(path, as it was sent, query) of a request's target. Raises `HttpParserInvalidURLError`."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


def _body(refusal: Refusal) -> bytes:
    """As every error of the API (seed, "Error Response Format")."""
    error = {"message": refusal.message, "type": refusal.type, "code": refusal.code}
    return msgspec.json.encode({"error": error})


def _headers(body: bytes, request_id: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]


class _Deaf(asyncio.Protocol):
    """Takes the place of a `Connection` that answers and hears no more."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        """It is not read."""

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)


class _Lingering(_Deaf):
    """Lets a refused client send for `LINGER_S`, so that it comes to read the answer."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        super().__init__(connection)
        self._end = asyncio.get_running_loop().call_later(LINGER_S, transport.abort)

    @classmethod
    def on(cls, connection: Connection, transport: asyncio.Transport) -> None:
        lingering = cls(connection, transport)
        transport.set_protocol(lingering)
        if transport.can_write_eof():
            transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        super().connection_lost(exc)
