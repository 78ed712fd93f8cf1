"""POST /v1/embeddings on a whole server: the embedded model, the official SDK, usage, errors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

import openai
import pytest

from tests.server import ECHO, Server, running

CONFIG = (
    ECHO
    + """
[engines.words]
kind = "wordllama"
[models."grok-embedding-small"]
kind = "embedding"
engine = "words"
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("embeddings") / "home", config=CONFIG) as server:
        yield server


def test_the_official_sdk_gets_the_same_floats_in_both_encodings(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    coded = client.embeddings.create(model="v1", input=["hello world", "bye"])
    plain = client.embeddings.create(
        model="grok-embedding-small", input=["hello world", "bye"], encoding_format="float"
    )
    assert [item.embedding for item in coded.data] == [item.embedding for item in plain.data]
    assert len(coded.data[0].embedding) == 256
    assert coded.model == "grok-embedding-small"
    assert coded.usage.prompt_tokens == coded.usage.total_tokens == 4
    short = client.embeddings.create(model="v1", input="hello world", dimensions=64)
    assert len(short.data[0].embedding) == 64


def test_raw_body_and_usage_row(server: Server) -> None:
    status, headers, body = server.request(
        "POST", "/v1/embeddings", {"model": "v1", "input": [[15339, 1917]], "encoding_format": "base64"}
    )
    assert status == 200
    vector = struct.unpack("<256f", base64.b64decode(body["data"][0]["embedding"]))
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    assert body["usage"] == {"prompt_tokens": 2, "total_tokens": 2, "cost_in_usd_ticks": 400}
    row = server.usage()[-1]
    assert (row["request_id"], row["status"], row["prompt_tokens"], row["cost_in_usd_ticks"]) == (
        headers["x-request-id"],
        "ok",
        2,
        400,
    )


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "v1", "input": ""}, 400, "input"),
        ({"model": "v1", "input": "a", "dimensions": 257}, 400, "dimensions"),
        ({"model": "v1", "input": ["a", "x" * 200_000]}, 400, "input[1]"),
        ({"model": "nope", "input": "a"}, 404, "model"),
        ({"model": "grok-4", "input": "a"}, 404, "model"),
    ],
)
def test_errors(server: Server, body: object, status: int, param: str) -> None:
    got, _, answer = server.request("POST", "/v1/embeddings", body)
    assert (got, answer["error"]["param"]) == (status, param)


def test_no_key_and_wrong_method(server: Server) -> None:
    assert server.request("POST", "/v1/embeddings", {"model": "v1", "input": "a"}, key=None)[0] == 401
    assert server.request("GET", "/v1/embeddings")[0] == 405


def test_health_tells_of_the_embedder(server: Server) -> None:
    assert server.request("GET", "/health")[2]["engines"]["words"]["kind"] == "wordllama"


def test_the_lists_of_models_know_embeddings(server: Server) -> None:
    listed = {model["id"]: model for model in server.request("GET", "/v1/embedding-models")[2]["models"]}
    assert listed["grok-embedding-small"]["output_modalities"] == ["embedding"]
    assert server.request("GET", "/v1/embedding-models/wordllama")[2] == listed["grok-embedding-small"]
    assert server.request("GET", "/v1/embedding-models/grok-4")[0] == 404
    assert server.request("GET", "/v1/language-models/grok-embedding-small")[0] == 404
    everything = {model["id"] for model in server.request("GET", "/v1/models")[2]["data"]}
    assert {"grok-4", "grok-embedding-small"} <= everything
