"""`langchain-openai` on the embedded model: ChatOpenAI and OpenAIEmbeddings. scripts/langchain-openai.py"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Client
from tests.server import Server


@pytest.fixture
def client(client_of: Callable[[str, Server], Client], real_server: Server) -> Client:
    return client_of("langchain-openai", real_server)


def test_chat(client: Client) -> None:
    said = client("invoke", "stream", "batch")
    assert "Paris" in said["invoke"]["text"]
    assert said["invoke"]["id"].startswith("chatcmpl-")
    assert (said["invoke"]["finish"], said["invoke"]["model"]) == ("stop", "grok-4")
    usage = said["invoke"]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 15
    assert said["stream"]["text"] == said["invoke"]["text"]
    assert said["stream"]["chunks"] > 3
    assert said["stream"]["usage"]["total_tokens"] == usage["total_tokens"]
    assert said["batch"]["texts"][0] == said["batch"]["texts"][1] == said["invoke"]["text"]
    assert said["batch"]["texts"][2]


def test_tools_and_structured_output(client: Client) -> None:
    said = client("tools", "structured")
    assert said["tools"]["call"] == "get_weather"
    assert said["tools"]["arguments"].keys() == {"location"}
    assert said["tools"]["said"]
    assert not said["tools"]["more"]
    for person in said["structured"].values():
        assert 1 <= len(person["name"]) <= 20
        assert 0 <= person["age"] <= 150


def test_embeddings_with_its_defaults_are_those_of_the_text(client: Client) -> None:
    """It sends token ids of OpenAI's vocabulary, for whatever model."""
    said = client("embeddings")["embeddings"]
    assert said["dimensions"] == [256, 256, 256]
    assert said["closeness"] == pytest.approx([1, 1, 1], abs=1e-4)
    assert said["length"] == pytest.approx([1, 1, 1], abs=1e-4)
