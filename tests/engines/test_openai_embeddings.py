"""`OpenAIEmbedder` over a real socket, against upstreams that behave and many that do not."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from jubal.core.embedding import EmbeddingRequest, Embeddings, pack
from jubal.core.errors import (
    AtCapacity,
    BadRequest,
    ContextTooLong,
    EngineBroken,
    EngineTimeout,
    EngineUnavailable,
    JubalError,
)
from jubal.engines.openai_embeddings import OpenAIEmbedder, embeddings_body, read_embeddings
from tests.engines.test_wordllama_engine import check_embedder

TWO = EmbeddingRequest("up", ("one", "two"))
VECTORS = (pack([1, 0.5]), pack([-2, 3]))


def coded(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def answer(*items: tuple[int | None, object], **more: object) -> dict[str, Any]:
    data = [
        {"object": "embedding", "embedding": vector} | ({} if index is None else {"index": index})
        for index, vector in items
    ]
    return {"object": "list", "model": "up", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}, **more}


GOOD = answer((0, coded(1, 0.5)), (1, coded(-2, 3)))

# ---------------------------------------------------------------------------------------------- pure


def test_the_body_asks_for_base64_and_holds_what_was_asked() -> None:
    request = EmbeddingRequest("up", ("a", "b"), (), 64, "u")
    assert json.loads(embeddings_body(request, "base64")) == {
        "model": "up", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 64, "user": "u",
    }  # fmt: skip
    assert json.loads(embeddings_body(EmbeddingRequest("up", tokens=((1, 2), (3,))), "float")) == {
        "model": "up",
        "input": [[1, 2], [3]],
    }


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        answer((1, coded(-2, 3)), (0, coded(1, 0.5))),
        answer((None, coded(1, 0.5)), (None, coded(-2, 3))),
        answer((0, [1, 0.5]), (1, [-2.0, 3e0])),
        answer((1, [-2, 3]), (0, coded(1, 0.5)), error=None, extra={"a": 1}),
    ],
    ids=["as asked", "in another order", "without numbers", "as lists", "mixed"],
)
def test_good_answers(good: object) -> None:
    assert read_embeddings(json.dumps(good).encode(), TWO) == Embeddings(VECTORS, 7)


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, object] = {
    "too few": answer((0, [1, 2])),
    "too many": answer((0, [1]), (1, [1]), (2, [1])),
    "none": answer(),
    "no data": {"object": "list"},
    "the same number twice": answer((0, [1]), (0, [2])),
    "a number too high": answer((1, [1]), (2, [2])),
    "a number below 0": answer((-1, [1]), (0, [2])),
    "only one number": answer((0, [1]), (None, [2])),
    "lengths differ": answer((0, [1, 2]), (1, [1])),
    "empty vectors": answer((0, []), (1, [])),
    "NaN in base64": answer((0, coded(1, 2)), (1, coded(NAN, 2))),
    "infinities that cancel out": answer((0, coded(INF, -INF)), (1, coded(1, 2))),
    "NaN in a list": answer((0, [NAN, 1]), (1, [1, 2])),
    "more than 32 bits hold": answer((0, [1e300, 1]), (1, [1, 2])),
    "null in a list": answer((0, [None, 1]), (1, [1, 2])),
    "strings in a list": answer((0, ["1"]), (1, ["1"])),
    "not base64": answer((0, "####"), (1, coded(1))),
    "half a float": answer((0, base64.b64encode(b"abcdef").decode()), (1, coded(1))),
    "not ASCII": answer((0, "äää="), (1, coded(1))),
    "a vector per token": answer((0, [[1, 2], [3, 4]]), (1, [[1, 2]])),
    "a list": [1, 2],
    "null": None,
    "a chat answer": {"choices": [{"message": {"content": "hi"}}]},
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_one_good_vector_per_input_is_broken(broken: object) -> None:
    with pytest.raises(EngineBroken):
        read_embeddings(json.dumps(broken).encode(), TWO)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 100_000, b'{"data":[{"embedding":"'])
def test_what_is_no_json_is_broken(body: bytes) -> None:
    with pytest.raises(EngineBroken):
        read_embeddings(body, TWO)


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 0}, {"prompt_tokens": None}, {"prompt_tokens": -7}, {"prompt_tokens": 2**60}]
)
def test_tokens_that_are_not_told_are_estimated(usage: object) -> None:
    made = read_embeddings(json.dumps({**GOOD, "usage": usage}).encode(), TWO)
    assert made == Embeddings(VECTORS, 2, estimated=True)


def test_an_engine_that_ignores_dimensions_is_not_passed_on() -> None:
    request = EmbeddingRequest("up", ("one", "two"), dimensions=1)
    with pytest.raises(BadRequest, match="`dimensions`: the model `up` has 2") as caught:
        read_embeddings(json.dumps(GOOD).encode(), request)
    assert (caught.value.param, caught.value.code) == ("dimensions", "dimensions_not_supported")


# ---------------------------------------------------------------------------------------------- over a socket

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass
class Upstream:
    """behaviours: one per request, the last one again and again."""

    behaviours: tuple[Behaviour, ...]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    pauses: list[float] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        behaviour = self.behaviours[min(len(self.bodies), len(self.behaviours) - 1)]
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            return await behaviour(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.gone.set()
            raise

    async def sleep(self, seconds: float) -> None:
        """Pauses between tries are only written down."""
        self.pauses.append(seconds)


@asynccontextmanager
async def running(*behaviours: Behaviour, **options: Any) -> AsyncIterator[tuple[OpenAIEmbedder, Upstream]]:
    there = Upstream(behaviours)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/embeddings", there.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    there.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    embedder = OpenAIEmbedder("box", there.url, sleep=there.sleep, **options)
    await embedder.start()
    try:
        yield embedder, there
    finally:
        await embedder.close()
        await runner.cleanup()


def says(body: object, status: int = 200, **headers: str) -> Behaviour:
    async def behave(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(body, status=status, headers=headers)

    return behave


async def embeds(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """A good server: the vector of a text is its length and its first character."""
    size = asked.get("dimensions", 3)
    vectors = [[float(len(text)), float(ord(text[0])), 1.0][:size] for text in asked["input"]]
    if asked.get("encoding_format") == "base64":
        return web.json_response(answer(*((index, coded(*vector)) for index, vector in enumerate(vectors))))
    return web.json_response(answer(*enumerate(vectors)))


async def only_lists(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """A server that knows no base64, and does not take the field."""
    if "encoding_format" in asked:
        return web.json_response({"error": {"message": "encoding_format: unknown variant `base64`"}}, status=422)
    return await embeds(request, asked)


async def dies(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    """Cuts the connection in the middle of the answer."""
    response = web.StreamResponse(headers={"content-type": "application/json"})
    await response.prepare(request)
    await response.write(json.dumps(GOOD).encode()[:40])
    await asyncio.sleep(0.02)
    assert request.transport is not None
    request.transport.abort()
    return response


async def hangs(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def test_keeps_the_promise() -> None:
    async with running(embeds) as (_, there):

        async def make() -> OpenAIEmbedder:
            embedder = OpenAIEmbedder("box", there.url)
            await embedder.start()
            return embedder

        await check_embedder(make)


async def test_sends_its_key_and_the_upstream_name() -> None:
    async with running(says(GOOD), api_key="sk-up") as (embedder, there):
        assert await embedder.embed(TWO) == Embeddings(VECTORS, 7)
        assert there.headers[0]["authorization"] == "Bearer sk-up"
        assert there.bodies[0] == {"model": "up", "input": ["one", "two"], "encoding_format": "base64"}


async def test_one_connection_serves_many_requests() -> None:
    ports = set()

    async def behave(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return await embeds(request, asked)

    async with running(behave) as (embedder, _):
        for _ in range(5):
            await embedder.embed(TWO)
    assert len(ports) == 1


@pytest.mark.parametrize(
    "bad", [says(None, 429), says(None, 429, **{"retry-after": "2"}), says(None, 500), says(None, 503), dies]
)
async def test_what_may_pass_is_tried_again(bad: Behaviour) -> None:
    async with running(bad, bad, says(GOOD)) as (embedder, there):
        assert await embedder.embed(TWO) == Embeddings(VECTORS, 7)
        assert len(there.bodies) == 3
        assert len(there.pauses) == 2
        assert all(0.5 <= pause <= 4 for pause in there.pauses)


async def test_backoff_doubles_and_ends() -> None:
    async with running(says(None, 503), retries=3) as (embedder, there):
        with pytest.raises(EngineUnavailable):
            await embedder.embed(TWO)
        assert len(there.bodies) == 4
        assert 1 <= there.pauses[0] <= 2 <= there.pauses[1] <= 4 <= there.pauses[2] <= 8


async def test_one_that_always_dies_is_broken_in_the_end() -> None:
    async with running(dies, retries=1) as (embedder, there):
        with pytest.raises(EngineBroken, match="middle of the answer"):
            await embedder.embed(TWO)
        assert len(there.bodies) == 2


async def test_a_long_retry_after_is_told_instead_of_waited_for() -> None:
    async with running(says(None, 429, **{"retry-after": "3600"})) as (embedder, there):
        with pytest.raises(AtCapacity) as caught:
            await embedder.embed(TWO)
        assert caught.value.retry_after_s == 3600
        assert (len(there.bodies), there.pauses) == (1, [])


@pytest.mark.parametrize(
    ("behaviour", "kind", "param"),
    [
        (says({"error": {"message": "bad"}}, 400), BadRequest, None),
        (
            says({"error": {"message": "`up` does not support changing output dimensions"}}, 400),
            BadRequest,
            "dimensions",
        ),
        (says({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400), ContextTooLong, "input"),
        (says({"error": {"message": "no"}}, 401), EngineBroken, None),
        (says({"error": {"message": "no"}}, 403), EngineBroken, None),
        (says({"error": {"message": "no"}}, 404), EngineBroken, None),
        (says(answer((0, [1, 2]))), EngineBroken, None),
        (says({"hello": 1}), EngineBroken, None),
    ],
)
async def test_what_will_not_pass_is_not_tried_again(
    behaviour: Behaviour, kind: type[JubalError], param: str | None
) -> None:
    async with running(behaviour) as (embedder, there):
        with pytest.raises(kind) as caught:
            await embedder.embed(EmbeddingRequest("up", ("one", "two"), dimensions=2))
        assert caught.value.param == param
        assert (len(there.bodies), there.pauses) == (1, [])


async def test_an_error_told_in_a_200_body() -> None:
    body = {"code": "The service is currently unavailable", "error": "warming up"}
    async with running(says(body), says(GOOD)) as (embedder, there):
        assert await embedder.embed(TWO) == Embeddings(VECTORS, 7)
        assert len(there.bodies) == 2


async def test_a_server_without_base64_is_asked_for_lists_from_then_on() -> None:
    async with running(only_lists) as (embedder, there):
        for _ in range(3):
            assert (await embedder.embed(TWO)).vectors == (pack([3, ord("o"), 1]), pack([3, ord("t"), 1]))
        assert ["encoding_format" in body for body in there.bodies] == [True, False, False, False]
        assert there.pauses == []


async def test_silence_is_a_timeout() -> None:
    async with running(hangs, timeout_s=0.2) as (embedder, there):
        with pytest.raises(EngineTimeout):
            await embedder.embed(TWO)
        assert len(there.bodies) == 1


async def test_cancelling_cuts_the_upstream_at_once() -> None:
    async with running(hangs) as (embedder, there):
        task = asyncio.create_task(embedder.embed(TWO))
        while not there.bodies:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait_for(there.gone.wait(), 60)


async def test_redirects_are_not_followed() -> None:
    async with running(says(None, 302, location="http://127.0.0.1:1/"), retries=0) as (embedder, _):
        with pytest.raises(EngineBroken):
            await embedder.embed(TWO)


async def test_an_endless_answer_is_cut() -> None:
    async def behave(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" " * (1 << 20))

    async with running(behave, retries=0) as (embedder, there):
        with pytest.raises(EngineBroken, match="64 MiB"):
            await embedder.embed(TWO)
        await asyncio.wait_for(there.gone.wait(), 60)


async def test_nobody_there_and_not_started() -> None:
    embedder = OpenAIEmbedder("box", "http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(EngineUnavailable, match="not started"):
        await embedder.embed(TWO)
    await embedder.start()
    with pytest.raises(EngineUnavailable, match="can't be reached"):
        await embedder.embed(TWO)
    await embedder.close()


async def test_closing_between_two_tries_ends_them() -> None:
    async with running(says(None, 503)) as (embedder, there):

        async def sleep(seconds: float) -> None:
            await embedder.close()

        embedder._sleep = sleep
        with pytest.raises(EngineUnavailable, match="not started"):
            await embedder.embed(TWO)
        assert len(there.bodies) == 1
