"""Server-sent events, reading side: bytes cut anywhere in, the data of whole events out (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from jubal.core.errors import EngineBroken
from jubal.core.hiding import Concealed

EVENT_BYTES_MAX = 16 << 20
"""Longest event that is waited for. One tool call can carry a file; an upstream that never ends an event must not fill memory."""


class SSEDecoder:
    """Feeds on bytes, returns the `data` of each event that became whole. Comments, ids and retry hints are dropped.

    concealed: secrets that are in none of them. They are looked for once in what was read at a time, together with the piece that
    was left over, so that no secret within one event is missed.
    """

    __slots__ = ("_concealed", "_rest")

    def __init__(self, concealed: Concealed | None = None) -> None:
        self._rest = b""
        self._concealed = concealed or None

    def feed(self, data: bytes) -> list[bytes]:
        """Raises `EngineBroken` for an event that is longer than `EVENT_BYTES_MAX`."""
        if self._rest:
            data = self._rest + data
        if self._concealed is not None:
            data = self._concealed.out_of(data)
        if b"\r" in data:
            data = self._unify_line_ends(data)
        *whole, self._rest = data.split(b"\n\n")
        if len(self._rest) > EVENT_BYTES_MAX:
            raise EngineBroken("The engine sent an event of more than 16 MiB.")
        out = []
        for event in whole:
            # The common event is one line; anything else takes the careful way.
            if event.startswith(b"data: ") and b"\n" not in event:
                out.append(event[6:])
            elif (found := _data_of(event)) is not None:
                out.append(found)
        return out

    def _unify_line_ends(self, data: bytes) -> bytes:
        """CRLF and CR become LF. A CR at the very end stays: its LF may be in the next bytes."""
        held = b""
        if data.endswith(b"\r"):
            data, held = data[:-1], b"\r"
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held

    def finish(self) -> list[bytes]:
        """The stream is over: an event without its blank line is given all the same, as many servers end that way."""
        rest, self._rest = self._rest.rstrip(b"\r\n"), b""
        found = _data_of(rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")) if rest else None
        return [] if found is None else [found]


def _data_of(event: bytes) -> bytes | None:
    """The joined `data` lines of one event, or None where it has none."""
    lines = []
    for line in event.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None
