"""A web server on a loopback address of the test's own, and a connector that opens sockets to nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpcore2
from aiohttp import web

GOOD = "127.0.0.2"
"""What stands for a public address: opened by an allow list, and listened on by the test itself."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def words(text: str) -> list[str]:
    return text.split()


@dataclass
class Site:
    """requests: (method and path, headers) of each."""

    handlers: dict[str, Handler]
    port: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def place(self) -> str:
        """For an allow list."""
        return f"{GOOD}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((f"{request.method} {request.path}", {k.lower(): v for k, v in request.headers.items()}))
        handler = self.handlers.get(request.path)
        if handler is None:
            return web.Response(status=404)
        try:
            return await handler(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise


def gives(body: bytes = b"", status: int = 200, **headers: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handle


def sends_to(location: str, status: int = 302) -> Handler:
    return gives(status=status, location=location)


@asynccontextmanager
async def site(**handlers: Handler) -> AsyncIterator[Site]:
    """A running one; `page=…` answers /page."""
    one = Site({f"/{name}": handler for name, handler in handlers.items()})
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, GOOD, 0).start()
    one.port = runner.addresses[0][1]
    try:
        yield one
    finally:
        await runner.cleanup()


class Connector(httpcore2.AsyncNetworkBackend):
    """Connects to the test's own sites. Anything else is recorded, opens no socket, and is the end of the test."""

    def __init__(self, *sites: Site) -> None:
        self._own = {(GOOD, one.port) for one in sites}
        self._inner = httpcore2.AnyIOBackend()
        self.connected: list[tuple[str, int]] = []
        self.escaped: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        if (host, port) not in self._own:
            self.escaped.append((host, port))
            raise AssertionError(f"the guard let a connection to {host} port {port} through")
        self.connected.append((host, port))
        return await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        self.escaped.append((path, 0))
        raise AssertionError(f"the guard let a connection to {path} through")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Names:
    """A resolver of the test's own. Each look-up of a name takes its next list of addresses, the last one again and again."""

    def __init__(self, **names: list[list[str]]) -> None:
        self._names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self._names.get(host)
        if answers is None:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]
