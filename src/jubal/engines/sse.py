"""Server-sent events, reading side: bytes cut anywhere in, the data of whole events out (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from typing import Final

from jubal.core.errors import EngineBroken
from jubal.core.hiding import Concealed

EVENT_BYTES_MAX = 16 << 20
"""Longest event that is waited for. One tool call can carry a file; an upstream that never ends an event must not fill memory."""

END_BYTES_MAX: Final = len(b"\r\n\r\n")


class SSEDecoder:
    """Feeds on bytes, returns the `data` of each event that became whole. Comments, ids and retry hints are dropped.

    What is left over of an event waits in pieces until its end comes, so that a long one in small reads is not copied with each of
    them.

    concealed: secrets that are in none of them. They are looked for once in whole events, and in the piece that was left over
    together with what comes after it, so that no secret within one event is missed.
    """

    __slots__ = ("_concealed", "_pieces", "_pieces_bytes", "_tail")

    def __init__(self, concealed: Concealed | None = None) -> None:
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._tail = b""  # of all pieces together: as much as the beginning of an event's end may have
        self._concealed = concealed or None

    def feed(self, data: bytes) -> list[bytes]:
        """Raises `EngineBroken` for an event that is longer than `EVENT_BYTES_MAX`."""
        if self._pieces:
            near = self._tail + data
            if b"\n\n" not in _with_one_line_end(near):
                self._hold(data, near)
                return []
            data = self._take(data)
        if self._concealed is not None:
            data = self._concealed.out_of(data)
        *whole, rest = _with_one_line_end(data).split(b"\n\n")
        if rest:
            self._hold(rest, rest)
        out = []
        for event in whole:
            # The common event is one line; anything else takes the careful way.
            if event.startswith(b"data: ") and b"\n" not in event:
                out.append(event[6:])
            elif (found := _data_of(event)) is not None:
                out.append(found)
        return out

    def _hold(self, piece: bytes, near: bytes) -> None:
        """near: the end of what is held with it, at least `END_BYTES_MAX` - 1 of them. Raises `EngineBroken`."""
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        self._tail = near[1 - END_BYTES_MAX :]
        if self._pieces_bytes > EVENT_BYTES_MAX:
            raise EngineBroken("The engine sent an event of more than 16 MiB.")

    def _take(self, data: bytes) -> bytes:
        """All that was held, and `data` after it."""
        whole = b"".join((*self._pieces, data))
        self._pieces.clear()
        self._pieces_bytes = 0
        return whole

    def finish(self) -> list[bytes]:
        """The stream is over: an event without its blank line is given all the same, as many servers end that way."""
        rest = self._take(b"")
        if self._concealed is not None:
            rest = self._concealed.out_of(rest)
        rest = rest.rstrip(b"\r\n")
        found = _data_of(rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")) if rest else None
        return [] if found is None else [found]


def _with_one_line_end(data: bytes) -> bytes:
    """CRLF and CR become LF. A CR at the very end stays: its LF may be in the next bytes."""
    if b"\r" not in data:
        return data
    held = b""
    if data.endswith(b"\r"):
        data, held = data[:-1], b"\r"
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held


def _data_of(event: bytes) -> bytes | None:
    """The joined `data` lines of one event, or None where it has none."""
    lines = []
    for line in event.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None
