"""An OpenAI-compatible server on loopback that does what a test tells it to, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Behaviour = Callable[["Upstream", web.Request], Awaitable[web.StreamResponse]]


def piece(content: str, index: int = 0) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "delta": {"content": content}}]}).encode() + b"\n\n"


def ending(prompt: int = 5, completion: int = 2, reason: str = "stop", choices: int = 1) -> bytes:
    ends = [{"index": index, "delta": {}, "finish_reason": reason} for index in range(choices)]
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    frames = [{"choices": ends}, {"choices": [], "usage": usage}]
    return b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"


@dataclass
class Upstream:
    """behaviours: one per request, the last one again and again."""

    behaviours: list[Behaviour]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models: Behaviour | None = None
    """What GET /v1/models does; None: 404, as by servers that have no such list."""
    asked_for_models: list[dict[str, str]] = field(default_factory=list)
    """The headers of those requests."""
    left: int = 0
    """Requests whose client went away before the end."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        self.asked_for_models.append({name.lower(): value for name, value in request.headers.items()})
        if self.models is None:
            raise web.HTTPNotFound
        return await self.models(self, request)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        behaviour = self.behaviours[min(len(self.bodies), len(self.behaviours) - 1)]
        self.bodies.append(await request.json())
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            return await behaviour(self, request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left += 1
            self.gone.set()
            raise


def says(*frames: bytes, pause_s: float = 0.0) -> Behaviour:
    """Streams these frames and ends well."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        response = await _begin(request)
        for frame in frames:
            await response.write(frame)
            if pause_s:
                await asyncio.sleep(pause_s)
        await response.write_eof()
        return response

    return behave


def says_when(allowed: asyncio.Semaphore, *frames: bytes) -> Behaviour:
    """Streams these frames, one for each release of `allowed`, and ends well."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        response = await _begin(request)
        for frame in frames:
            await allowed.acquire()
            await response.write(frame)
        await response.write_eof()
        return response

    return behave


def dies_after(*frames: bytes) -> Behaviour:
    """Streams these frames and cuts the connection."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        response = await _begin(request)
        for frame in frames:
            await response.write(frame)
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    return behave


def hangs_after(*frames: bytes) -> Behaviour:
    """Streams these frames, then says nothing."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        response = await _begin(request)
        for frame in frames:
            await response.write(frame)
        await asyncio.sleep(3600)
        return response

    return behave


def trickles() -> Behaviour:
    """A token every 10 ms, for ever."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        response = await _begin(request)
        while True:
            await response.write(piece("x "))
            await asyncio.sleep(0.01)

    return behave


def refuses(status: int, body: object = None, **headers: str) -> Behaviour:
    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return behave


def lists(*models: str | dict[str, Any]) -> Behaviour:
    """A list of models, by name or with more fields."""
    entries = [{"id": model} if isinstance(model, str) else model for model in models]
    return says_body(json.dumps({"object": "list", "data": entries}).encode())


def whole(content: str, prompt: int = 5, completion: int = 2) -> Behaviour:
    """A whole chat completion, as asked for without `stream`."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return says_body(json.dumps({"choices": [choice], "usage": usage}).encode())


def says_body(body: bytes, pause_s: float = 0.0) -> Behaviour:
    """This body as JSON, byte by byte where there is a pause between them."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        for part in [body[at : at + 1] for at in range(len(body))] if pause_s else [body]:
            await response.write(part)
            await asyncio.sleep(pause_s)
        await response.write_eof()
        return response

    return behave


def hangs_before_headers() -> Behaviour:
    """Takes the request and never answers."""

    async def behave(upstream: Upstream, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    return behave


async def _begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


@asynccontextmanager
async def upstream(*behaviours: Behaviour, models: Behaviour | None = None, port: int = 0) -> AsyncIterator[Upstream]:
    """A running one; its `url` ends with /v1. port: 0 for any free one."""
    one = Upstream(list(behaviours), models=models)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", one.handle)
    app.router.add_post("/v1/embeddings", one.handle)
    app.router.add_get("/v1/models", one.list_models)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield one
    finally:
        await runner.cleanup()
