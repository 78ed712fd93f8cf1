"""Where a server listens. Apart from the servers, whose libraries take memory."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where gRPC listens. tls: key and certificate chain in PEM; None: plaintext. required: go on without it, or don't.

    shared: other processes of this server listen there too.
    """

    hosts: tuple[str, ...]
    port: int
    tls: tuple[bytes, bytes] | None = None
    required: bool = True
    shared: bool = False

    @property
    def addresses(self) -> Iterator[str]:
        for host in self.hosts:
            yield f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def place(host: str, port: int, tls: tuple[bytes, bytes] | None = None, *, required: bool = True) -> Place:
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
    return Place(tuple(hosts), port, tls, required)


def reserve(at: Place) -> list[socket.socket]:
    """Keeps a place for processes that share it, as long as these sockets are open.

    They are bound and do not listen, so no connection comes to them. The gRPC library takes no socket that is open already; with
    SO_REUSEPORT each process opens its own, and the kernel deals connections out. Raises `OSError`.
    """
    kept = []
    try:
        for host in at.hosts:
            kept.append(one := socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((host, at.port))
    except BaseException:
        for one in kept:
            one.close()
        raise
    return kept


def _probe(host: str, port: int) -> None:
    """Raises `OSError` where nobody can listen there. The library would say only that it failed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)
