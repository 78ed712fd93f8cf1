"""The official `openai` Node SDK, with zod: scripts/openai-node.mjs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import Client
from tests.clients.scripted import ADA, calls
from tests.fake_upstream import ending, piece, says, trickles, upstream
from tests.server import Server, running, to_upstream

NAME = "openai-node"


@pytest.fixture
def client(client_of: Callable[[str, Server], Client], real_server: Server) -> Client:
    return client_of(NAME, real_server)


def test_chat_whole_streamed_and_parsed(client: Client) -> None:
    said = client("chat", "stream", "parsed", "completions")
    assert "Paris" in said["chat"]["text"]
    assert said["chat"]["same"], "the id of the answer is that of the request"
    assert said["stream"]["text"] == said["chat"]["text"]
    assert said["stream"]["pieces"] > 3
    assert said["stream"]["finish"] == "stop"
    assert said["stream"]["usage"]["completion_tokens"] == said["chat"]["usage"]["completion_tokens"]
    assert isinstance(said["parsed"]["name"], str)
    assert isinstance(said["parsed"]["age"], int)
    assert said["completions"]["id"].startswith("cmpl-")
    assert said["completions"]["text"]


def test_leaving_a_stream_stops_the_work(client: Client, real_server: Server) -> None:
    assert client("leaving")["leaving"] == {"seen": 3, "aborted": True}
    until = time.monotonic() + 60
    while (row := real_server.usage()[-1])["status"] != "cancelled" and time.monotonic() < until:
        time.sleep(0.1)
    assert row["status"] == "cancelled"
    assert row["completion_tokens"] < 500


def test_responses(client: Client) -> None:
    said = client("responses")["responses"]
    assert "Paris" in said["text"]
    assert said["streamed"] == said["text"]
    assert said["types"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert said["grew"], "the earlier conversation stands before the new question"
    assert said["kept"]
    assert (said["gone"]["class"], said["gone"]["status"]) == ("NotFoundError", 404)


def test_responses_with_functions_and_objects(
    client_of: Callable[[str, Server], Client], scripted_server: Server
) -> None:
    said = client_of(NAME, scripted_server)("responseTools", "responseObject")
    assert said["responseTools"] == {"call": ["get_weather", {"location": "Oslo"}], "text": "It says: 12 degrees."}
    assert said["responseObject"] == ADA


def test_embeddings_and_models(client: Client) -> None:
    said = client("embeddings", "models")
    assert said["embeddings"]["lengths"] == [256, 256]
    assert said["embeddings"]["same"], "base64, which the SDK asks for, and numbers are the same vectors"
    assert said["embeddings"]["usage"]["prompt_tokens"] == 4
    assert {"grok-4", "grok-2-1212", "grok-embedding-small"} <= set(said["models"]["names"])
    assert said["models"]["one"] == "grok-4"


def test_errors_are_the_sdks_own_classes(client: Client) -> None:
    said = client("errors")["errors"]
    assert {what: (error["class"], error["status"], error["code"]) for what, error in said.items()} == {
        "key": ("AuthenticationError", 401, "invalid_api_key"),
        "model": ("NotFoundError", 404, "model_not_found"),
        "range": ("BadRequestError", 400, "out_of_range"),
        "type": ("UnprocessableEntityError", 422, "invalid_type"),
        "stream": ("NotFoundError", 404, "model_not_found"),
    }
    assert {error["type"] for error in said.values()} == {"invalid_request_error"}
    assert said["range"]["param"] == said["type"]["param"] == "temperature"
    assert all(error["id"] for error in said.values())


@pytest.mark.parametrize("streamed", ["0", "1"])
async def test_run_tools_calls_and_comes_back(
    client_of: Callable[[str, Server], Client], tmp_path: Path, streamed: str
) -> None:
    async with upstream(calls(("get_weather", {"location": "Oslo"})), says(piece("12 degrees."), ending())) as there:
        with running(tmp_path / "jubal", config=to_upstream(there.url)) as server:
            said = await asyncio.to_thread(client_of(NAME, server), "tools", STREAMED=streamed)
        assert said["tools"]["text"] == "12 degrees."
        assert said["tools"]["roles"] == ["user", "assistant", "tool", "assistant"]
        assert json.loads(there.bodies[1]["messages"][-1]["content"]) == {"location": "Oslo", "degrees": 12}


async def test_498_is_tried_again_by_the_sdk_itself(client_of: Callable[[str, Server], Client], tmp_path: Path) -> None:
    async with upstream(trickles(), says(piece("There you are."), ending())) as there:
        full = to_upstream(there.url, max_concurrency=1, max_queued=0)
        with running(tmp_path / "jubal", config=full) as server:
            said = (await asyncio.to_thread(client_of(NAME, server), "capacity"))["capacity"]
        assert said["statuses"] == [498, 200]
        assert said["text"] == "There you are."
