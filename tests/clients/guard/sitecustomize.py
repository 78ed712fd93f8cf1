"""Loaded by Python at its start in a client's environment: a client of the tests speaks to this machine only."""

from __future__ import annotations

import sys

OURS = ("127.", "::1", "localhost")
WATCHED = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}
"""Audit events, and which of their arguments is the address."""


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event not in WATCHED:
        return
    address = arguments[WATCHED[event]]
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and host and not host.startswith((*OURS, "/")):
        raise PermissionError(f"a client of the tests speaks to this machine only, not to {host}")


sys.addaudithook(_watch)
