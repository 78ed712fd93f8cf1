"""Where a server listens. Apart from the servers, whose libraries take memory."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where gRPC listens. required: go on without it, or don't.

    shared: other processes of this server listen there too.
    """

    hosts: tuple[str, ...]
    port: int
    required: bool = True
    shared: bool = False

    @property
    def addresses(self) -> Iterator[str]:
        for host in self.hosts:
            yield f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket. shared: beside those of other processes, where `reserve` keeps the port. Raises `OSError`."""
    with ExitStack() as undo:
        listener = undo.enter_context(_bound(host, port, shared=shared))
        listener.listen(2048)
        listener.setblocking(False)
        undo.pop_all()
        return listener


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


def reserve(host: str, port: int) -> socket.socket:
    """Keeps a port, as long as this socket is open, for processes that all listen there with `shared`; port 0: any that is free.

    It does not listen itself, so no connection comes to it: the kernel deals them out to those that do. Raises `OSError` where
    somebody has the port, be it kept like this one.
    """
    with bind(host, port) as alone, ExitStack() as undo:  # where somebody listens or keeps it, this fails
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept = undo.enter_context(_bound(host, alone.getsockname()[1], shared=True))
        # With this option, which lets a server follow its predecessor at once, others could still bind beside it.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        undo.pop_all()
        return kept


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def _probe(host: str, port: int) -> None:
    """Raises `OSError` where nobody can listen there. The library would say only that it failed."""
    bind(host, port).close()
