"""Frames on their way to a client: what is produced while the event loop is busy leaves as one write, everything else at once.

A producer that has ten frames without waiting for anything costs one write instead of ten; one that has to wait for its
engine has its frames written meanwhile. Nothing is held back on purpose, and no timer is involved.
"""

from __future__ import annotations

import asyncio
from typing import Final

ROOM_BYTES: Final = 256 << 10
"""What a slow client may leave unread before its producer has to wait. The socket's own buffers come on top."""


class Outbox:
    """One producer puts, one writer takes."""

    __slots__ = ("_ended", "_error", "_frames", "_room", "_size", "_wake")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """The producer should `await room()`."""
        return self._size >= ROOM_BYTES

    def put(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._size += len(frame)
        self._notify()

    def end(self, error: BaseException | None = None) -> None:
        """No more frames come. error: raised by `take` after the frames before it. Only the first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._notify()

    async def take(self) -> bytes:
        """All frames that are there, waiting for the first; b"" at the end. Raises the error given to `end`."""
        while not self._frames:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        taken = b"".join(self._frames)
        self._frames.clear()
        self._size = 0
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return taken

    async def room(self) -> None:
        """Wait until the writer has taken what is there."""
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
