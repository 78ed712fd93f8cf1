"""The AI SDK with @ai-sdk/xai: the newest, which speaks Responses, and one that speaks chat completions. scripts/ai-sdk.mjs"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Client
from tests.clients.scripted import ADA
from tests.server import Server

MakeClient = Callable[[str, Server], Client]
DIALECTS = {"ai-sdk": "xai.responses", "ai-sdk-chat": "xai.chat"}
OSLO = [["get_weather", {"location": "Oslo"}]]


@pytest.mark.parametrize("name", DIALECTS)
def test_text_whole_and_streamed(client_of: MakeClient, real_server: Server, name: str) -> None:
    said = client_of(name, real_server)("generate", "stream")
    assert said["generate"]["dialect"] == DIALECTS[name]
    assert "Paris" in said["generate"]["text"]
    assert said["generate"]["model"] == "grok-4"
    assert said["stream"]["text"] == said["generate"]["text"]
    assert said["stream"]["pieces"] > 3
    assert said["generate"]["finishReason"] == said["stream"]["finishReason"] == "stop"
    assert said["stream"]["usage"]["totalTokens"] == said["generate"]["usage"]["totalTokens"] > 20


@pytest.mark.parametrize("name", DIALECTS)
def test_tools_objects_and_errors(client_of: MakeClient, scripted_server: Server, name: str) -> None:
    said = client_of(name, scripted_server)("agent", "streamedAgent", "object", "errors")
    steps = [{"calls": OSLO, "finish": "tool-calls"}, {"calls": [], "finish": "stop"}]
    assert said["agent"]["steps"] == said["streamedAgent"]["steps"] == steps
    assert said["agent"]["text"] == said["streamedAgent"]["text"] == "It says: 12 degrees in Oslo."
    types = said["streamedAgent"]["types"]
    assert types.index("tool-call") < types.index("tool-result") < types.index("text-delta")
    assert "error" not in types
    assert said["object"]["object"] == said["object"]["output"] == said["object"]["streamed"] == ADA
    assert said["object"]["partial"] > 1
    unknown = 400 if name == "ai-sdk" else 404  # a model that nobody has: Responses differs from chat (xai-api.md 4.3)
    assert {what: error["status"] for what, error in said["errors"].items()} == {
        "key": 401,
        "model": unknown,
        "range": 400,
        "stream": unknown,
    }
    assert {error["class"] for error in said["errors"].values()} == {"AI_APICallError"}
    assert "`temperature` must be between 0 and 2" in said["errors"]["range"]["message"]


@pytest.mark.usefixtures("sandboxed")
def test_code_that_the_server_runs(client_of: MakeClient, scripted_server: Server) -> None:
    said = client_of("ai-sdk", scripted_server)("code")["code"]
    assert "42" in said["text"]
    assert said["types"][-2:] == ["tool-call", "tool-result"]
    assert said["steps"] == 1
