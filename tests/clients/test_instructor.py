"""`instructor` on the embedded model: objects out of text, in three of its ways. scripts/instructor.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Client
from tests.server import Server


@pytest.fixture
def client(client_of: Callable[[str, Server], Client], real_server: Server) -> Client:
    return client_of("instructor", real_server)


def test_extraction(client: Client) -> None:
    said = client("extract:tools", "extract:json_schema", "extract:json", "ticket:tools", "ticket:json_schema")
    for mode in ("tools", "json_schema"):
        user = said[f"extract:{mode}"]
        assert 1 <= len(user["name"]) <= 20
        assert 0 <= user["age"] <= 150
        assert user["model"] == "grok-4"
        ticket = said[f"ticket:{mode}"]
        assert ticket["kind"] in ("bug", "wish")
        assert ticket["priority"] in ("low", "high")
    json_only = said["extract:json"]
    assert isinstance(json_only["name"], str)
    assert 0 <= json_only["age"] <= 150


def test_a_refused_object_is_asked_for_again(client: Client) -> None:
    said = client("again:tools")["again:tools"]
    assert said["tries"] == 2, "the failed call and the complaint went back as assistant and tool messages"


def test_objects_that_fill_up(client: Client) -> None:
    said = client("partial:json_schema")["partial:json_schema"]
    assert said["parts"] > 3
    assert 1 <= len(said["last"]["name"]) <= 20
    assert 0 <= said["last"]["age"] <= 150
