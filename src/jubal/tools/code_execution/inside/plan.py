"""What the server tells the zygote, and how the three processes talk: a length, then JSON."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import asdict, dataclass
from typing import Any, Final

FRAME_BYTES_MAX: Final = 8 << 20
_LENGTH: Final = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Plan:
    """How sessions are made.

    namespaces: each session gets mount, PID, IPC and user namespaces of its own; without them it is confined by Landlock, and
    `work` is then the folder in which the sessions' folders are made. version: the `sys.version` to be. libraries: modules to
    import in advance. site: folders of installed packages. readable: what Landlock lets code read. filter: the file with the
    seccomp program. keep: those of the interpreter's folders that lie in /tmp. memory_bytes: what a session may add to the
    memory of a fresh interpreter. watch_memory: the supervisor must see to that, as no cgroup does. cpu_s: processor time of
    each process. The rest are sizes and counts.
    """

    namespaces: bool
    version: str
    libraries: tuple[str, ...]
    site: tuple[str, ...]
    readable: tuple[str, ...]
    filter: str
    keep: tuple[str, ...]
    work: str
    memory_bytes: int
    watch_memory: bool
    cpu_s: int
    work_bytes: int
    shm_bytes: int
    inodes: int
    processes: int
    open_files: int
    text_chars: int
    files_max: int
    files_bytes: int

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Plan:
        told: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
        }
        return cls(**fields)


class Broken(Exception):
    """The other side is gone, or what it sends is no frame."""


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Raises `OSError` where the other side is gone."""
    body = json.dumps(message).encode("ascii")
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket, bytes_max: int = FRAME_BYTES_MAX) -> dict[str, Any]:
    """Waits for a whole frame. Raises `Broken`, and `OSError` as the socket does (a timeout, if it has one)."""
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if length > bytes_max:
        raise Broken
    try:
        message = json.loads(_exactly(channel, length))
    except (ValueError, RecursionError):
        raise Broken from None
    if not isinstance(message, dict):
        raise Broken
    return message


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 16))
        if not part:
            raise Broken
        parts += part
    return bytes(parts)
