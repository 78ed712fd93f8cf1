"""A real MCP server of the `mcp` package on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class Recorder:
    """An ASGI application that remembers the headers of what goes to another."""

    def __init__(self, app: object) -> None:
        self._app = app
        self.headers: list[dict[str, str]] = []

    async def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await self._app(scope, receive, send)  # type: ignore[operator]


def box() -> MCPServer:
    server = MCPServer("box")

    @server.tool()
    def add(a: int, b: int) -> str:
        """Adds two numbers."""
        return str(a + b)

    @server.tool()
    def fail() -> str:
        """Always fails."""
        raise ToolError("out of paper")

    @server.tool()
    async def sleep(ctx: Context) -> str:
        """Sleeps for a minute."""
        await asyncio.sleep(60)
        return "slept"

    @server.tool()
    def flood() -> str:
        """Says far too much."""
        return "x" * (9 << 20)

    return server


@contextlib.asynccontextmanager
async def served(app: object) -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, log_level="critical", lifespan="on", timeout_graceful_shutdown=1))  # type: ignore[arg-type]
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await running
