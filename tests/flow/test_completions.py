"""/v1/completions, /v1/tokenize-text and /v1/language-models on a started server with the echo engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.server import ECHO, Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home: Path = tmp_path_factory.mktemp("completions")
    with running(home, config=ECHO) as one:
        yield one


def test_the_openai_sdk(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    whole = client.completions.create(model="grok-4", prompt="one two three", max_tokens=2, n=2, echo=True)
    assert [choice.text for choice in whole.choices] == ["one two threeone two"] * 2
    assert whole.id.startswith("cmpl-")
    assert whole.choices[0].finish_reason == "length"
    stream = client.completions.create(
        model="grok-4", prompt=["one two"], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "one two"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 4
    assert [row["endpoint"] for row in server.usage()] == ["sample", "sample"]


def test_several_prompts_are_one_request(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    before = len(server.usage())
    asked = {"model": "grok-4", "prompt": ["one two three", "four"], "max_tokens": 2, "n": 2, "echo": True}
    whole = client.completions.create(**asked)  # type: ignore[call-overload]
    assert [(choice.index, choice.text) for choice in whole.choices] == [
        (0, "one two threeone two"),
        (1, "one two threeone two"),
        (2, "fourfour"),
        (3, "fourfour"),
    ]
    assert [choice.finish_reason for choice in whole.choices] == ["length", "length", "stop", "stop"]
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 6)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    said = ["", "", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert said == [choice.text for choice in whole.choices]
    assert chunks[-1].usage == whole.usage
    rows = server.usage()[before:]
    assert [(row["prompt_tokens"], row["completion_tokens"]) for row in rows] == [(4, 6), (4, 6)]
    assert rows[0]["cost_in_usd_ticks"] == whole.usage.cost_in_usd_ticks > 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"suffix": "end"}, "suffix"), ({"prompt": [1, 2]}, "prompt"), ({"prompt": [[1], [2]]}, "prompt")],
)
def test_what_the_engine_can_not_is_refused_before_any_work(
    server: Server, fields: dict[str, object], param: str
) -> None:
    before = len(server.usage())
    status, _, body = server.request("POST", "/v1/completions", {"model": "grok-4", "prompt": "a", **fields})
    assert (status, body["error"]["param"]) == (400, param)
    assert body["error"]["code"].endswith("_not_supported")
    assert len(server.usage()) == before


def test_a_reasoning_model_goes_on_without_reasoning(server: Server) -> None:
    body = {"model": "grok-4-fast-reasoning", "prompt": "a b"}
    status, _, answer = server.request("POST", "/v1/completions", body)
    assert (status, answer["choices"][0]["text"]) == (200, "a b")


def test_tokens(server: Server) -> None:
    status, _, answer = server.request("POST", "/v1/tokenize-text", {"model": "grok-4-latest", "text": "Hi you"})
    assert status == 200
    assert [token["string_token"] for token in answer["token_ids"]] == ["Hi", " you"]
    assert answer["token_ids"][0]["token_bytes"] == [72, 105]
    status, _, answer = server.request("POST", "/v1/tokenize-text", {"model": "nope", "text": "Hi"})
    assert (status, answer["error"]["param"]) == (404, "model")


def test_language_models(server: Server) -> None:
    status, _, listed = server.request("GET", "/v1/language-models")
    assert status == 200
    one = next(model for model in listed["models"] if model["id"] == "grok-4")
    assert server.request("GET", "/v1/language-models/grok-4-latest")[2] == one
    assert server.request("GET", "/v1/language-models/nope")[0] == 404
    assert server.request("GET", "/v1/language-models", key=None)[0] == 401


def test_each_has_its_own_acl(server: Server) -> None:
    paths = {
        "chat": ("POST", "/v1/completions", {"model": "grok-4", "prompt": "x"}),
        "sample": ("POST", "/v1/tokenize-text", {"model": "grok-4", "text": "x"}),
        "tokenize": ("GET", "/v1/language-models", None),
    }
    for other, (method, path, body) in paths.items():
        made = server.command(
            "keys", "create", "--name", other, "--acl", f"api-key:endpoint:{other}", "--acl", "api-key:model:*"
        )
        assert server.request(method, path, body, key=made["key"])[0] == 403
