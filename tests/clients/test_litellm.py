"""litellm as a client, by its xai/, openai/ and anthropic/ prefixes: scripts/litellm.py."""

from __future__ import annotations

from collections.abc import Callable

from tests.clients.conftest import Client
from tests.clients.scripted import ADA
from tests.server import Server

NAME = "litellm"
MakeClient = Callable[[str, Server], Client]


def test_completions_and_embeddings(client_of: MakeClient, real_server: Server) -> None:
    said = client_of(NAME, real_server)("completion", "stream", "together", "embedding")
    xai, openai = said["completion"]["xai/grok-4"], said["completion"]["openai/grok-4"]
    assert xai == openai
    assert "Paris" in xai["text"]
    assert said["completion"]["anthropic"] == said["stream"]["text"] == xai["text"]
    assert said["stream"]["chunks"] > 3
    assert (said["stream"]["finish"], said["stream"]["tokens"]) == ("stop", xai["tokens"])
    assert said["together"] == [xai["text"]] * 2
    assert said["embedding"] == {"lengths": [256, 256], "tokens": 4}


def test_tools_objects_and_errors(client_of: MakeClient, scripted_server: Server) -> None:
    limited = scripted_server.command("keys", "create", "--name", "limited", "--rpm", "1")["key"]
    said = client_of(NAME, scripted_server)("tools", "structured", "errors", LIMITED_KEY=limited)
    there_and_back = {"call": ["get_weather", {"location": "Oslo"}, "tool_calls"], "text": "It says: 12 degrees."}
    assert said["tools"] == {"xai/grok-4": there_and_back, "openai/responses/grok-4": there_and_back}
    assert said["structured"] == ADA
    errors = said["errors"]
    assert errors.pop("first") is None
    assert {what: (error["class"], error["status"]) for what, error in errors.items()} == {
        "key": ("AuthenticationError", 401),
        "model": ("NotFoundError", 404),
        "range": ("BadRequestError", 400),
        "stream": ("NotFoundError", 404),
        "rate": ("RateLimitError", 429),
    }
    assert "`temperature` must be between 0 and 2" in errors["range"]["message"]
