"""The official Anthropic SDK for Node: scripts/anthropic-node.mjs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Client
from tests.clients.scripted import ADA
from tests.server import Server

NAME = "anthropic-node"
MakeClient = Callable[[str, Server], Client]


def test_whole_streamed_and_counted(client_of: MakeClient, real_server: Server) -> None:
    said = client_of(NAME, real_server)("message", "stream", "count", "models")
    assert "Paris" in said["message"]["text"]
    assert said["message"]["stop"] == said["stream"]["stop"] == "end_turn"
    assert said["message"]["same"], "the SDK finds the request's id, which is in the log and in the usage"
    assert said["stream"]["id"]
    assert said["stream"]["text"] == said["message"]["text"]
    assert said["stream"]["pieces"] > 3
    usage = said["message"]["usage"]
    assert said["count"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert {"grok-4", "grok-2-1212"} <= set(said["models"]["names"])
    assert said["models"]["one"] == "grok-4"


def test_errors_are_the_sdks_own_classes(client_of: MakeClient, scripted_server: Server) -> None:
    said = client_of(NAME, scripted_server)("errors")["errors"]
    assert {what: (error["class"], error["status"], error["type"]) for what, error in said.items()} == {
        "key": ("AuthenticationError", 401, "authentication_error"),
        "model": ("NotFoundError", 404, "not_found_error"),
        "range": ("BadRequestError", 400, "invalid_request_error"),
        "stream": ("NotFoundError", 404, "not_found_error"),
    }
    assert all(error["id"] for error in said.values())


def test_tool_runner_and_objects(client_of: MakeClient, scripted_server: Server) -> None:
    said = client_of(NAME, scripted_server)("runner", "parsed")
    ran = {"stops": ["tool_use", "end_turn"], "text": "It says: 12 degrees in Oslo."}
    assert said["runner"] == {"whole": ran, "streamed": ran}
    assert said["parsed"] == ADA


@pytest.mark.usefixtures("sandboxed")
def test_code_that_the_server_runs(client_of: MakeClient, scripted_server: Server) -> None:
    assert client_of(NAME, scripted_server)("code")["code"] == {
        "blocks": ["server_tool_use", "code_execution_tool_result", "text"],
        "stdout": "42\n",
        "stop": "end_turn",
    }
