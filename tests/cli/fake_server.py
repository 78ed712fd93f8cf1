"""A server that answers chat requests as a test wants: pieces written as they are, with pauses, and a note of what it saw."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE = b""
"""A piece that stands for 50 ms of silence."""


def delta(**fields: str) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}).encode() + b"\n\n"
    )


def end(reason: str = "stop") -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n"


@dataclass
class FakeServer:
    """pieces: of the next answers. asked: the bodies so far. gone: set when a client left in the middle of an answer."""

    url: str
    pieces: Iterable[bytes] = ()
    status: int = 200
    content_type: str = "text/event-stream"
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self) -> None:
            state.keys.append(self.headers["authorization"])
            state.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(state.status)
            self.send_header("content-type", state.content_type)
            self.end_headers()
            try:
                for piece in state.pieces:
                    if piece == PAUSE:
                        time.sleep(0.05)
                    self.wfile.write(piece)
            except OSError:
                state.gone.set()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = FakeServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
