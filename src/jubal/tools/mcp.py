"""Tools of remote MCP servers (xai-api.md 9.8), by the `mcp` package, over streamable HTTP or SSE.

The connection is owned by a task of its own: what the package opens has to be closed by the task that opened it, and nobody
knows which task will end a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from jubal.core.errors import BadRequest
from jubal.core.generation import FunctionTool
from jubal.core.hiding import hide, sure
from jubal.core.schema import check
from jubal.core.server_tools import Mcp, ToolKind
from jubal.tools.base import ToolFailed, ToolOutput
from jubal.web.guard import Guard

if TYPE_CHECKING:
    import httpx2
    from mcp import ClientSession
    from mcp import types as mcp_types

log = structlog.get_logger("jubal.mcp")

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""What engines take as the name of a function."""
CONNECT_TIMEOUT_S: Final = 15.0
CALL_TIMEOUT_S: Final = 120.0
CLOSE_TIMEOUT_S: Final = 2.0
TOOLS_MAX: Final = 128
TOOLS_SEEN_MAX: Final = 2_000
"""Of a server that has more than may be offered, and of which the caller allowed some."""
PAGES_MAX: Final = 32
"""Of a server's list of tools."""
SCHEMA_CHARS_MAX: Final = 20_000
FUNCTIONS_CHARS_MAX: Final = 200_000
"""Of all descriptions and schemas of one server: the model reads them at each turn, and the caller pays for it."""
DESCRIPTION_CHARS_MAX: Final = 2000
BODY_BYTES_MAX: Final = 8 << 20
"""Of one answer of the server, the stream of a whole session over SSE included."""


class McpTools:
    """The family. guard: which hosts may be reached."""

    kind: ToolKind = "mcp"

    def __init__(self, guard: Guard, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._guard = guard
        self._connect_timeout_s = connect_timeout_s

    def open(self, wanted: Mcp) -> McpSession:
        return McpSession(wanted, self._guard, self._connect_timeout_s)

    async def close(self) -> None:
        """Sessions hold everything."""


class McpSession:
    """One server for one request. Connects when its functions are first asked for."""

    def __init__(self, wanted: Mcp, guard: Guard, connect_timeout_s: float) -> None:
        self._wanted = wanted
        self._guard = guard
        self._connect_timeout_s = connect_timeout_s
        self._owner: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._session: ClientSession | None = None

    async def functions(self) -> tuple[FunctionTool, ...]:
        """Raises `ToolFailed` where the server does not answer, or has no tool that may be called."""
        session = await self._connected()
        tools: list[mcp_types.Tool] = []
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                async for tool in _tools_of(session):
                    tools.append(tool)
        except Exception as error:
            raise ToolFailed(self._away(error)) from error
        chosen = self._chosen(tools)
        if not chosen:
            allowed = self._wanted.allowed
            named = f" of the names {', '.join(allowed)[:200]}" if allowed else ""
            raise ToolFailed(f"the MCP server `{self._wanted.label}` has no tools{named} that can be offered.")
        return tuple(chosen.values())

    def _chosen(self, tools: list[mcp_types.Tool]) -> dict[str, FunctionTool]:
        """The tools that are offered, by name; of two with one name the first. What an engine would refuse is left out."""
        chosen: dict[str, FunctionTool] = {}
        chars = 0
        for tool in tools:
            if (self._wanted.allowed and tool.name not in self._wanted.allowed) or tool.name in chosen:
                continue
            function = self._function(tool)
            if function is None:
                log.info("an MCP server's tool is left out", label=self._wanted.label, tool=tool.name[:64])
                continue
            chars += len(function.description) + len(function.parameters or "")
            if len(chosen) == TOOLS_MAX or chars > FUNCTIONS_CHARS_MAX:
                log.info("an MCP server has more tools than can be offered", label=self._wanted.label, tools=len(tools))
                break
            chosen[tool.name] = function
        return chosen

    def _function(self, tool: mcp_types.Tool) -> FunctionTool | None:
        """None for one that can't be offered: by its name, or by a schema that is none, or too large."""
        name = f"{self._wanted.label}.{tool.name}"
        if not tool.name or not NAME.fullmatch(name):
            return None
        try:
            schema = json.dumps(tool.input_schema, allow_nan=False)
            check({"type": "object", **tool.input_schema}, "tools")
        except (BadRequest, ValueError, RecursionError):
            return None
        if len(schema) > SCHEMA_CHARS_MAX or tool.input_schema.get("type", "object") != "object":
            return None
        return FunctionTool(name, (tool.description or self._wanted.description)[:DESCRIPTION_CHARS_MAX], schema)

    async def call(self, name: str, arguments: str) -> ToolOutput:
        try:
            asked = msgspec.json.decode((arguments or "{}").encode("utf-8", "replace"))
        except (msgspec.DecodeError, RecursionError):
            raise ToolFailed("the arguments are no JSON.") from None
        if not isinstance(asked, dict):
            raise ToolFailed("the arguments must be a JSON object.")
        session = await self._connected()
        try:
            result = await session.call_tool(
                name.removeprefix(f"{self._wanted.label}."), asked, read_timeout_seconds=CALL_TIMEOUT_S
            )
            text = _text_of(result)
        except Exception as error:
            raise ToolFailed(self._away(error)) from error
        if getattr(result, "is_error", False):
            raise ToolFailed(text or "the MCP server reported an error.")
        return ToolOutput(text)

    async def close(self) -> None:
        owner, self._owner = self._owner, None
        if owner is None:
            return
        self._stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({owner}, timeout=CLOSE_TIMEOUT_S)
        owner.cancel()
        await asyncio.gather(owner, return_exceptions=True)

    # ------------------------------------------------------------------------------------------ the connection

    async def _connected(self) -> ClientSession:
        """Raises `ToolFailed`. Where the connection ended meanwhile, a new one."""
        if self._session is not None and self._owner is not None and not self._owner.done():
            return self._session
        self._session = None
        ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.ensure_future(self._own(ready))
        try:
            self._session = await asyncio.shield(ready)
        except ToolFailed:
            await self.close()
            raise
        return self._session

    async def _own(self, ready: asyncio.Future[ClientSession]) -> None:
        """Opens the connection, keeps it until it is to be closed, and closes it."""
        failure: BaseException | None = None
        for transport in self._transports():
            try:
                async with contextlib.AsyncExitStack() as stack:
                    async with asyncio.timeout(self._connect_timeout_s):
                        session = await self._open(stack, transport)
                    ready.set_result(session)
                    await self._stop.wait()
                    return
            except asyncio.CancelledError:
                ready.cancel()
                raise
            except BaseException as error:  # noqa: BLE001  groups of errors too: the library's tasks end in them
                if ready.done():
                    said = hide(_said(error), self._secrets())
                    log.info("an MCP server's connection ended badly", label=self._wanted.label, error=said)
                    return
                failure = failure or error
        if not ready.done():
            ready.set_exception(ToolFailed(self._away(failure)))

    def _transports(self) -> tuple[str, ...]:
        """Streamable HTTP, then the older SSE; the other way round where the address says so."""
        return ("sse", "http") if self._wanted.url.rstrip("/").endswith("/sse") else ("http", "sse")

    async def _open(self, stack: contextlib.AsyncExitStack, transport: str) -> ClientSession:
        from mcp import ClientSession
        from mcp.client.sse import sse_client
        from mcp.client.streamable_http import streamable_http_client

        if transport == "http":
            client = await stack.enter_async_context(self._client())
            streams = await stack.enter_async_context(streamable_http_client(self._wanted.url, http_client=client))
        else:
            streams = await stack.enter_async_context(
                sse_client(self._wanted.url, httpx_client_factory=lambda *_, **__: self._client())
            )
        session = await stack.enter_async_context(ClientSession(*streams))
        await session.initialize()
        return session

    def _client(self) -> httpx2.AsyncClient:
        from jubal.web.transport import bounded_httpx_client

        headers = dict(self._wanted.headers)
        if self._wanted.authorization:
            given = self._wanted.authorization
            headers["authorization"] = given if " " in given else f"Bearer {given}"
        return bounded_httpx_client(
            self._guard, bytes_max=BODY_BYTES_MAX, headers=headers, timeout_s=CALL_TIMEOUT_S, redirects_max=0
        )

    def _away(self, error: BaseException | None) -> str:
        """Why the server can't be used. Nothing of the request's secrets is in it."""
        return f"the MCP server `{self._wanted.label}` can't be used: {hide(_said(error), self._secrets())}"

    def _secrets(self) -> tuple[str, ...]:
        """What the request sends there: libraries repeat a header that they find wrong."""
        given = [self._wanted.authorization or "", *dict(self._wanted.headers).values()]
        return sure([*given, *(word for text in given for word in text.split())])


def _said(error: BaseException | None) -> str:
    """The innermost of a group of errors, in words that are safe to show."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it did not answer in time."
    text = str(error).splitlines()[0][:300] if str(error) else ""
    return text or type(error).__name__


async def _tools_of(session: ClientSession) -> AsyncIterator[mcp_types.Tool]:
    """At most `TOOLS_SEEN_MAX`."""
    from mcp.types import PaginatedRequestParams

    cursor: str | None = None
    seen = 0
    for _ in range(PAGES_MAX):
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
        for tool in page.tools:
            seen += 1
            if seen > TOOLS_SEEN_MAX:
                return
            yield tool
        cursor = page.next_cursor
        if not cursor:
            return


def _text_of(result: Any) -> str:
    """What a call gave, as text: other kinds of content are named."""
    parts = []
    for block in getattr(result, "content", ()):
        text = getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None)
        parts.append(text if text is not None else f"({getattr(block, 'type', 'content')})")
    if not parts and getattr(result, "structured_content", None) is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)
