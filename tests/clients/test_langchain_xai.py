"""langchain-xai's ChatXAI, and langchain-anthropic's ChatAnthropic: scripts/langchain-xai.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Client
from tests.clients.scripted import ADA, TALK
from tests.server import Server

NAME = "langchain-xai"
KINDS = ("xai", "anthropic")
MakeClient = Callable[[str, Server], Client]


def test_text_whole_and_streamed(client_of: MakeClient, real_server: Server) -> None:
    said = client_of(NAME, real_server)(*(f"{part}:{kind}" for kind in KINDS for part in ("invoke", "stream")))
    (text,) = {answer["text"] for answer in said.values()}
    assert "Paris" in text
    assert len({answer["usage"]["total_tokens"] for answer in said.values()}) == 1
    for kind in KINDS:
        assert said[f"invoke:{kind}"]["provider"] == kind
        assert said[f"stream:{kind}"]["chunks"] > 3


def test_tools_and_objects(client_of: MakeClient, scripted_server: Server) -> None:
    parts = [f"{part}:{kind}" for kind in KINDS for part in ("tools", "structured")]
    said = client_of(NAME, scripted_server)(*parts, "search:xai")
    for kind in KINDS:
        oslo = [["get_weather", {"location": "Oslo"}]]
        assert said[f"tools:{kind}"] == {"calls": [oslo, oslo], "text": "It says: 12 degrees in Oslo."}
        assert said[f"structured:{kind}"] == {"function_calling": ADA, "json_schema": ADA}
    assert said["search:xai"] == "".join(TALK)


@pytest.mark.usefixtures("sandboxed")
def test_code_that_the_server_runs(client_of: MakeClient, scripted_server: Server) -> None:
    said = client_of(NAME, scripted_server)("code:xai")["code:xai"]
    assert said["blocks"] == ["server_tool_call", "server_tool_result", "text"]
    assert "42" in said["text"]
