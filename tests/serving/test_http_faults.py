"""Faults of ours while an answer is rendered: a client never waits for an end that does not come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from jubal.core.events import Event, Failed, TextDelta
from jubal.core.rates import Allowance
from jubal.serving.http import HttpApp
from jubal.serving.peer import Peer
from jubal.wire import openai_errors

PATIENCE_S = 20
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/x",
    "query_string": b"",
    "headers": [(b"authorization", b"Bearer k")],
}


class Renderer:
    """Renders what it can. broken: not even the end of a failed answer."""

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    def feed(self, event: Event) -> bytes:
        match event:
            case TextDelta("bad"):
                raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
            case TextDelta(text):
                return text.encode()
            case Failed(error) if not self._broken:
                return f"[{error.message}]".encode()
        raise ValueError("no event that is known here")


class Pipeline:
    """Lets everybody in. put_back: tokens that limits are told of as not used. begun, closed: whether the events were asked for, and were told that nobody wants more of them."""

    caches = False

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self.begun = self.closed = False
        self.put_back: list[int] = []

    def new_id(self) -> str:
        return "id"

    def known(self, authorization: str) -> Any:
        return SimpleNamespace(key_id="k")

    def admit(self, *_: Any, **__: Any) -> Any:
        ticket = SimpleNamespace(allowance=Allowance())
        return SimpleNamespace(ticket=ticket, tokens_taken=7, request_id="id", ticket_headers=tuple)

    def put_off(self, ticket: Any, unused_tokens: int) -> None:
        self.put_back.append(unused_tokens)

    async def run(self, admitted: Any) -> AsyncGenerator[Event, None]:
        self.begun = True
        try:
            for text in self._texts:
                yield TextDelta(text)
        finally:
            self.closed = True


async def asked(pipeline: Pipeline, *, broken: bool = False, leaves: bool = False) -> list[dict[str, Any]]:
    """The messages of the answer. leaves: the client, just when the work for it is to begin."""
    sent: list[dict[str, Any]] = []
    generation = SimpleNamespace(live=True, cache_key=None)
    question = SimpleNamespace(generation=generation, deferral=None, renderer=lambda: Renderer(broken))
    dialect = SimpleNamespace(endpoint="chat", parse=lambda body: question, error=openai_errors.reply)
    app = HttpApp(
        pipeline,  # type: ignore[arg-type]
        {"/x": dialect},  # type: ignore[dict-item]
        deferred=None,  # type: ignore[arg-type]
        health=lambda: (200, b""),
        body_bytes_max=100,
    )

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    peer = Peer()
    answering = asyncio.ensure_future(app({**SCOPE, "extensions": peer.extensions()}, receive, send))
    if leaves:
        asyncio.get_running_loop().call_soon(peer.leave)
    async with asyncio.timeout(PATIENCE_S):
        await answering
    return sent


async def test_before_the_first_frame_it_is_an_ordinary_error() -> None:
    pipeline = Pipeline("bad")
    head, body = await asked(pipeline)
    assert head["status"] == 500
    assert "Something went wrong in Jubal" in json.loads(body["body"])["error"]["message"]
    assert pipeline.closed


async def test_after_it_the_stream_says_so() -> None:
    pipeline = Pipeline("good", "bad", "never")
    head, *bodies = await asked(pipeline)
    assert head["status"] == 200
    said = b"".join(body["body"] for body in bodies)
    assert said.startswith(b"good[Something went wrong in Jubal")
    assert bodies[-1]["more_body"] is False
    assert pipeline.closed


async def test_what_can_not_even_be_said_ends_without_the_last_chunk() -> None:
    """The connection is closed then: an answer that is cut never looks whole."""
    pipeline = Pipeline("good", "bad")
    _, *bodies = await asked(pipeline, broken=True)
    assert [body["body"] for body in bodies] == [b"good"]
    assert bodies[-1]["more_body"] is True
    assert pipeline.closed


async def test_a_client_that_leaves_when_the_work_is_to_begin_keeps_nobody_waiting() -> None:
    """And its tokens count no longer."""
    pipeline = Pipeline("good")
    assert await asked(pipeline, leaves=True) == []
    assert not pipeline.begun, "or the test is about another moment"
    assert pipeline.put_back == [7]
