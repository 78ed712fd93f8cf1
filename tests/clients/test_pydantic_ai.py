"""pydantic-ai over chat completions, Responses and messages: scripts/pydantic-ai.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Client
from tests.clients.scripted import ADA
from tests.server import Server

NAME = "pydantic-ai"
DIALECTS = ("chat", "responses", "messages")
MakeClient = Callable[[str, Server], Client]


def test_text_whole_and_streamed(client_of: MakeClient, real_server: Server) -> None:
    said = client_of(NAME, real_server)(*(f"text:{dialect}" for dialect in DIALECTS))
    texts = {said[f"text:{dialect}"][how] for dialect in DIALECTS for how in ("text", "streamed")}
    (text,) = texts
    assert "Paris" in text
    tokens = {count for one in said.values() for count in one["tokens"]}
    assert len(tokens) == 1, "every dialect counts the same"
    assert all(one["pieces"] > 3 for one in said.values())


def test_agents_with_tools_and_objects(client_of: MakeClient, scripted_server: Server) -> None:
    parts = [f"{part}:{dialect}" for dialect in DIALECTS for part in ("agent", "errors")]
    said = client_of(NAME, scripted_server)(*parts, "native:chat", "native:responses")
    for dialect in DIALECTS:
        assert said[f"agent:{dialect}"] == {
            "asked": ["Oslo", "Oslo"],
            "calls": ["get_weather", "final_result"],
            "person": ADA,
            "streamed": ADA,
            "requests": 2,
        }
        unknown = 400 if dialect == "responses" else 404  # a model that nobody has (xai-api.md 4.3)
        assert said[f"errors:{dialect}"] == {"key": 401, "model": unknown}
    assert said["native:chat"] == said["native:responses"] == ADA


@pytest.mark.usefixtures("sandboxed")
def test_code_that_the_server_runs(client_of: MakeClient, scripted_server: Server) -> None:
    for answer in client_of(NAME, scripted_server)("code:responses", "code:messages").values():
        assert answer["ran"] == ["code_execution"]
        assert "42" in answer["text"]
