"""Server-sent events, writing side. The reading side is engines/sse.py; a property test feeds one to the other."""

from __future__ import annotations

from typing import Final

CONTENT_TYPE: Final = b"text/event-stream"
DONE: Final = b"data: [DONE]\n\n"


def data(payload: bytes) -> bytes:
    """One event. `payload` is JSON on one line, so it holds no line end."""
    return b"data: " + payload + b"\n\n"


def event(name: bytes, payload: bytes) -> bytes:
    """One named event. `payload` is JSON on one line."""
    return b"event: %b\ndata: %b\n\n" % (name, payload)
