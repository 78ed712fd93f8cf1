"""One request on a connection and its answer: uvicorn's, with the answer written as Jubal writes answers.

uvicorn hands the head of an answer to the socket apart from its body, looks for bad characters in each header by two regular
expressions (docs/decisions/http-server.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]
BODILESS: Final = frozenset({204, 304})
"""Statuses whose answers have neither a body nor a word on its length (RFC 9110 15.3.5, 15.4.5)."""
JOINED_MAX: Final = 64 << 10
"""Up to here it costs less to copy a body behind its head than to write it apart."""


class Cycle(RequestResponseCycle):
    """The head of an answer leaves with the first piece of its body, in one write."""

    _head: bytes | None = None
    _until_close = False

    async def send(self, message: Any) -> None:
        """As ASGI has it. Raises `RuntimeError` for messages out of order, or an answer that is not what its head says."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._written(message["status"], message.get("headers", ()))
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            self._write(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"`{kind}` does not follow what the answer has so far")

    def _written(self, status: int, headers: Headers) -> bytes:
        """The head in bytes. What it says of the body is held to from here on."""
        lines = [STATUS_LINE[status][:-2]]
        length: bytes | None = None
        closes = False
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                length = value
            elif name == b"connection":
                closes = closes or b"close" in value.lower()
            lines.append(name + b": " + value)
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close")
        self.chunked_encoding = length is None and self.scope["method"] != "HEAD" and status not in BODILESS
        if self.chunked_encoding and self.scope["http_version"] == "1.0":  # which knows no chunks (RFC 9112 6.1)
            self.chunked_encoding, self._until_close = False, True
        elif self.chunked_encoding:
            lines.append(b"transfer-encoding: chunked")
        self.expected_content_length = int(length) if length is not None and self.scope["method"] != "HEAD" else 0
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
            raise RuntimeError("a header of the answer has a line end in it")  # it would be read as another header
        return head + b"\r\n\r\n"

    def _write(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        elif self.chunked_encoding:
            body = _chunk(body, more)
        elif not self._until_close:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the answer is longer than its head says")
        head, self._head = self._head, None
        if head is not None and len(body) > JOINED_MAX:
            self.transport.write(head)
        elif head is not None:
            body = head + body
        if body:
            self.transport.write(body)
        if not more:
            self._complete()

    def _complete(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("the answer is shorter than its head says")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive and not self.more_body:  # who still sends is left by the connection, more slowly
            self.transport.close()
        self.on_response()


def _chunk(body: bytes, more: bool) -> bytes:
    """A piece of a chunked body (RFC 9112 7.1); b"" where there is nothing to write."""
    if body:
        return b"%x\r\n%b\r\n" % (len(body), body) if more else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return b"" if more else b"0\r\n\r\n"
