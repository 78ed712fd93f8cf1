"""Where gRPC listens. Apart from its server, whose libraries take memory."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen. required: go on without it, or don't."""

    hosts: tuple[str, ...]
    port: int
    required: bool = True

    @property
    def addresses(self) -> Iterator[str]:
        for host in self.hosts:
            yield f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def place(host: str, port: int, *, required: bool = True) -> Place:
    """Where a server with this host listens: for IPv4's loopback on `::1` too, where there is one, as the SDK connects to
    `localhost`. All of IPv4's addresses are all of IPv6's too: the library has it so.

    Raises `OSError` for an address that can't be had.
    """
    _probe(host, port)
    hosts = [host]
    if host in ("127.0.0.1", "localhost"):
        hosts = ["127.0.0.1"]
        try:
            _probe("::1", port)
            hosts.append("::1")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return Place(tuple(hosts), port, required)


def _probe(host: str, port: int) -> None:
    """Raises `OSError` where nobody can listen there. The library would say only that it failed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
