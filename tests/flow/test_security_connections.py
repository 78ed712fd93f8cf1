"""Connections that are slow, greedy or ambiguous, on a really started server: each ends, and with a clear answer where one can
still be read."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.server import ECHO, Server, running

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PATIENCE_S = 60.0
"""Far more than any deadline of the server under test: what is not closed by then is never closed."""
LIMITS = """
[server]
header_timeout_s = 1
body_timeout_s = 1
body_bytes_per_s_min = 1000
write_timeout_s = 1
keep_alive_s = 2
body_limit_mb = 32
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("slow") / "home", config=ECHO + LIMITS) as started:
        yield started


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


@contextmanager
def connected(server: Server, **options: int) -> Iterator[socket.socket]:
    with socket.socket() as client:
        client.settimeout(PATIENCE_S)
        for name, value in options.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        client.connect(("127.0.0.1", server.port))
        yield client


def until_closed(client: socket.socket) -> bytes:
    """All that comes until the server closes. A reset counts as closed."""
    got = b""
    try:
        while piece := client.recv(1 << 16):
            got += piece
    except ConnectionError:
        pass
    return got


def answer(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(status.split()[1]), headers, body)


def exchange(server: Server, raw: bytes) -> Answer:
    with connected(server) as client:
        client.sendall(raw)
        return answer(until_closed(client))


def post(server: Server, body: bytes = b"", *headers: str, path: str = "/v1/chat/completions") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {server.key}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def still_answers(server: Server) -> None:
    assert server.chat()[0] == 200


# ------------------------------------------------------------------------------------------------ ambiguous requests

CHAT = b'{"model":"grok-4","messages":[{"role":"user","content":"hi"}]}'
AMBIGUOUS = {
    "length and chunked": ("Content-Length: 3\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "chunked and length": ("Transfer-Encoding: chunked\r\nContent-Length: 3", b"0\r\n\r\n"),
    "two lengths": ("Content-Length: 3\r\nContent-Length: 4", b"abcd"),
    "one length twice": ("Content-Length: 3\r\nContent-Length: 3", b"abc"),
    "a list of lengths": ("Content-Length: 3, 3", b"abc"),
    "a length with a sign": ("Content-Length: +3", b"abc"),
    "a negative length": ("Content-Length: -3", b"abc"),
    "a huge length": ("Content-Length: 99999999999999999999999", b"abc"),
    "an empty length": ("Content-Length: ", b"abc"),
    "a bare line feed": ("Foo: a\nBar: b", b""),
    "a bare carriage return": ("Foo: a\rBar: b", b""),
    "a folded header": ("Foo: a\r\n b", b""),
    "a space before the colon": ("Content-Length : 3", b"abc"),
    "a NUL in a header": ("Foo: a\0b", b""),
    "a control character in a name": ("F\x01o: a", b""),
    "an unknown coding": ("Transfer-Encoding: xchunked", b""),
    "chunked not last": ("Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
    "gzip then chunked": ("Transfer-Encoding: gzip, chunked", b"0\r\n\r\n"),
    "chunked twice": ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "a hidden coding": ("Transfer-Encoding:\x0bchunked\r\nContent-Length: 3", b"abc"),
    "a chunk size with 0x": ("Transfer-Encoding: chunked", b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a negative chunk": ("Transfer-Encoding: chunked", b"-3\r\nabc\r\n0\r\n\r\n"),
    "a huge chunk": ("Transfer-Encoding: chunked", b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than its size": ("Transfer-Encoding: chunked", b"3\r\nabcd\r\n0\r\n\r\n"),
    "a chunk with bare line feeds": ("Transfer-Encoding: chunked", b"3\nabc\n0\n\n"),
    "two hosts": ("Host: y", b""),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_two_servers_could_read_differently_is_refused(server: Server, case: str) -> None:
    header, body = AMBIGUOUS[case]
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    got = exchange(server, post(server, body + smuggled, header))
    assert got.status == 400
    assert got.error()["code"] == "malformed_http"
    assert got.error()["type"] == "invalid_request_error"
    assert UUID.fullmatch(got.headers["x-request-id"])
    assert got.headers["connection"] == "close"
    assert got.body.count(b"HTTP/1.1") <= 1, "the smuggled request was answered"  # one: in the message


LINES = [
    b"GET /health\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"BREW /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /he alth HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/messages HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    bytes.fromhex("16030100c8010000c40303") + bytes(200),
    b"\xff\xfe\x00" * 20,
]


@pytest.mark.parametrize("raw", LINES, ids=[repr(line[:24]) for line in LINES])
def test_what_is_no_http_1_request_is_refused(server: Server, raw: bytes) -> None:
    got = exchange(server, raw)
    assert (got.status, got.error()["code"]) == (400, "malformed_http")
    assert UUID.fullmatch(got.headers["x-request-id"])
    assert "server" not in got.headers


def test_garbage_after_a_request_does_not_cost_its_answer(server: Server) -> None:
    body = json.dumps({"model": "grok-4", "messages": [{"role": "user", "content": "kept"}]}).encode()
    got = exchange(server, post(server, body + b"\x00garbage\r\n\r\n", f"Content-Length: {len(body)}"))
    assert got.status == 200
    assert b"kept" in got.body
    assert b"malformed" not in got.body


def test_a_trailer_is_no_header(server: Server) -> None:
    raw = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\nAuthorization: Bearer {server.key}\r\n\r\n"
    assert exchange(server, raw.encode()).status == 401


def test_an_upgrade_is_ignored_and_its_request_answered(server: Server) -> None:
    """Java's client asks for h2c with every first request; browsers for WebSocket."""
    for protocol in ("h2c", "websocket"):
        with connected(server) as client:
            client.sendall(
                post(server, CHAT, "Connection: Upgrade", f"Upgrade: {protocol}", f"Content-Length: {len(CHAT)}")
            )
            assert client.recv(12) == b"HTTP/1.1 200"
            client.sendall(post(server, b"", "Content-Length: 0", path="/nowhere"))
            assert b"HTTP/1.1 404" in until_closed(client)


# ------------------------------------------------------------------------------------------------ large heads


def test_headers_over_the_limit_in_bytes(server: Server) -> None:
    got = exchange(server, post(server, b"", f"X-Long: {'a' * (65 << 10)}"))
    assert (got.status, got.error()["code"]) == (431, "headers_too_large")
    still_answers(server)


def test_headers_that_never_end_are_not_stored(server: Server) -> None:
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        for _ in range(100):
            try:
                client.sendall(b"X-More: " + b"a" * 4000 + b"\r\n")
            except ConnectionError:
                break
        got = answer(until_closed(client))
    assert (got.status, got.error()["code"]) == (431, "headers_too_large")


def test_too_many_headers(server: Server) -> None:
    got = exchange(server, post(server, b"", *(f"X-{number}: a" for number in range(100))))
    assert (got.status, got.error()["code"]) == (431, "headers_too_large")


def test_as_many_headers_as_may_be(server: Server) -> None:
    sent = (*(f"X-{number}: {'a' * 500}" for number in range(96)), f"Content-Length: {len(CHAT)}", "Connection: close")
    assert exchange(server, post(server, CHAT, *sent)).status == 200


@pytest.mark.parametrize("kib", [9, 70, 400])
def test_a_url_over_the_limit(server: Server, kib: int) -> None:
    got = exchange(server, post(server, b"", path="/v1/" + "a" * (kib << 10)))
    assert (got.status, got.error()["code"]) == (414, "url_too_long")


def test_trailers_that_never_end_are_not_stored(server: Server) -> None:
    with connected(server) as client:
        client.sendall(post(server, b"2\r\n{}\r\n0\r\nX-Trailer: ", "Transfer-Encoding: chunked"))
        for _ in range(300):
            try:
                client.sendall(b"a" * 4000)
            except ConnectionError:
                break
        raw = until_closed(client)
    assert not raw or answer(raw).status in (400, 431)
    still_answers(server)


def test_a_flood_of_pipelined_requests_is_cut_off(server: Server) -> None:
    flood = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with connected(server) as client:
        client.sendall(flood)
        assert until_closed(client).count(b"HTTP/1.1 200") < 100
    still_answers(server)


def test_a_few_pipelined_requests_are_answered_in_order(server: Server) -> None:
    paths = ("/health", "/nowhere", "/v1/models")
    with connected(server) as client:
        client.sendall(b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode() for path in paths))
        raw = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", raw) == [b"200", b"404", b"401"]


# ------------------------------------------------------------------------------------------------ slow clients


def test_a_connection_without_a_request_is_closed(server: Server) -> None:
    with connected(server) as client:
        assert until_closed(client) == b""


def test_headers_that_trickle(server: Server) -> None:
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        raw = trickle(client)
    got = answer(raw)
    assert (got.status, got.error()["code"]) == (408, "request_timeout")
    assert UUID.fullmatch(got.headers["x-request-id"])


def test_line_ends_that_trickle_between_requests(server: Server) -> None:
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        trickle(client, b"\r\n")  # ends, or the test fails


@pytest.mark.parametrize("header", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_trickles(server: Server, header: str) -> None:
    piece = b"a" if header.startswith("Content") else b"1;extension\r\na\r\n"
    with connected(server) as client:
        client.sendall(post(server, b"", header))
        got = answer(trickle(client, piece))
    assert (got.status, got.error()["code"]) == (408, "request_timeout")


def test_a_body_that_stops(server: Server) -> None:
    with connected(server) as client:
        client.sendall(post(server, CHAT[:10], f"Content-Length: {len(CHAT)}"))
        got = answer(until_closed(client))
    assert (got.status, got.error()["code"]) == (408, "request_timeout")


def test_a_body_of_a_refused_request_is_not_read_for_ever(server: Server) -> None:
    with connected(server) as client:
        client.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 401"
        trickle(client)  # ends, or the test fails


def test_an_idle_connection_is_closed(server: Server) -> None:
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(until_closed(client)).status == 200


def trickle(client: socket.socket, piece: bytes = b"a") -> bytes:
    """Sends a little every now and then until the server has had enough; what it said."""
    until = time.monotonic() + PATIENCE_S
    got = b""
    client.settimeout(0.2)
    while time.monotonic() < until:
        try:
            client.sendall(piece)
            read = client.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionError:
            return got
        if not read:
            return got
        got += read
    raise AssertionError("the server let it trickle")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_its_answer_is_cut_off(server: Server, stream: bool) -> None:
    text = f"{'word' * 500} " * 3000
    body = json.dumps(
        {"model": "grok-4", "messages": [{"role": "user", "content": text}], "stream": stream, "user": "reader"}
    ).encode()
    before = len(server.usage())
    with connected(server, SO_RCVBUF=4096) as client:
        client.sendall(post(server, body, f"Content-Length: {len(body)}"))
        until = time.monotonic() + PATIENCE_S
        while open_connections(server) > 0:
            assert time.monotonic() < until, "the server waits for a client that does not read"
            time.sleep(0.1)
        while len(rows := server.usage()) == before:
            assert time.monotonic() < until
        assert rows[-1]["status"] == ("cancelled" if stream else "ok")
    still_answers(server)


def open_connections(server: Server) -> int:
    import psutil

    connections = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(1 for one in connections if one.status == psutil.CONN_ESTABLISHED)


# ------------------------------------------------------------------------------------------------ many connections


def test_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    with running(tmp_path / "home", config=ECHO + "[server]\nconnections_max = 3\n") as server:
        held = [socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) for _ in range(3)]
        try:
            for one in held:  # answered, so that it is surely counted
                one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert one.recv(12) == b"HTTP/1.1 200"
            status, headers, body = server.chat()
            assert (status, body["error"]["code"]) == (503, "too_many_connections")
            assert headers["retry-after"] == "1"
            assert headers["connection"] == "close"
            assert UUID.fullmatch(headers["x-request-id"])
        finally:
            for one in held:
                one.close()
        until = time.monotonic() + PATIENCE_S
        while server.chat()[0] != 200:
            assert time.monotonic() < until
            time.sleep(0.05)
