"""Simon Willison's llm, the command: scripts/llm.py."""

from __future__ import annotations

from collections.abc import Callable

from tests.clients.conftest import Client
from tests.clients.scripted import ADA
from tests.server import Server

NAME = "llm"
MakeClient = Callable[[str, Server], Client]


def test_prompts_and_a_conversation(client_of: MakeClient, real_server: Server) -> None:
    said = client_of(NAME, real_server)("prompt")["prompt"]
    assert "Paris" in said["streamed"]
    assert said["whole"] == said["streamed"]
    assert said["input"] > 40, "the earlier question and its answer came along"
    assert said["output"] > 0


def test_tools_objects_and_errors(client_of: MakeClient, scripted_server: Server) -> None:
    said = client_of(NAME, scripted_server)("tools", "schema", "errors")
    assert said["tools"] == "It says: 12 degrees in Oslo."
    assert said["schema"] == ADA
    assert "401" in said["errors"]
    assert "Incorrect API key" in said["errors"]
