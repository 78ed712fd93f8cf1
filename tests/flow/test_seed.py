"""Every statement of the founding document that a server can be held to, on a really started one with the embedded model.

The tests are named after the document's sections, in its order. What clients do by themselves (back off, keep keys in the
environment) is tested from the server's side: it says all that they need for it.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from jubal import catalogue
from jubal.core.model import Catalogue
from tests.server import ECHO, Server, running

SEED_MODELS = ("grok-4", "grok-4-fast-reasoning", "grok-4-fast-non-reasoning", "grok-beta", "grok-2-1212", "grok-1")
HI = [{"role": "user", "content": "Say hi."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather for a location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City name", "maxLength": 30},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def client(real_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=real_server.key, base_url=real_server.url, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For what is about money and limits: its answers are known beforehand."""
    more = (
        '[models."per-request"]\nengine = "local"\nprice = {input = 0, cached_input = 0, output = 0, request = 0.03}\n'
    )
    with running(tmp_path_factory.mktemp("seed") / "home", config=ECHO + more) as server:
        yield server


def chat(server: Server, **fields: Any) -> dict[str, Any]:
    """A good answer's body."""
    status, _, body = server.chat(messages=HI, **{"max_tokens": 4, **fields})
    assert status == 200, body
    assert isinstance(body, dict)
    return body


# ---------------------------------------------------------------------------------------------- overview


def test_overview_stateless(real_server: Server) -> None:
    """Nothing of an earlier request is part of the next one's prompt."""
    first = chat(real_server)["usage"]["prompt_tokens"]
    assert chat(real_server)["usage"]["prompt_tokens"] == first


# ---------------------------------------------------------------------------------------------- authentication


def test_authentication_keys_begin_with_xai_and_go_as_bearer(real_server: Server) -> None:
    assert real_server.key.startswith("xai-")
    headers = {"authorization": f"Bearer {real_server.key}"}
    status, _, _ = real_server.request("GET", "/v1/models", key=None, headers=headers)
    assert status == 200


def test_authentication_keys_grant_endpoints_and_models_that_are_chosen_at_creation(echo: Server) -> None:
    made = echo.command(
        "keys", "create", "--name", "narrow", "--acl", "api-key:endpoint:chat", "--acl", "api-key:model:grok-4"
    )
    body = {"model": "grok-4", "messages": HI}
    assert echo.request("POST", "/v1/chat/completions", body, key=made["key"])[0] == 200
    for path, asked in (
        ("/v1/chat/completions", {**body, "model": "grok-beta"}),
        ("/v1/embeddings", {"model": "grok-embedding-small", "input": "x"}),
    ):
        status, _, answer = echo.request("POST", path, asked, key=made["key"])
        assert (status, answer["error"]["type"]) == (403, "permission_error")


# ---------------------------------------------------------------------------------------------- endpoints


def test_chat_completions_the_example_request_and_the_shape_of_its_answer(real_server: Server) -> None:
    asked = {
        "model": "grok-2-1212",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is 2 + 2?"},
        ],
        "temperature": 0.7,
        "max_tokens": 30,
        "stream": False,
        "tools": [],
    }
    status, _, body = real_server.request("POST", "/v1/chat/completions", asked)
    assert status == 200
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert isinstance(body["created"], int)
    assert body["model"] == "grok-2-1212"
    [choice] = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    usage = body["usage"]
    assert usage["prompt_tokens"] > 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


BOTH_ENDS = [
    ("temperature", 0.0, 2.0, -0.01, 2.01),
    ("top_p", 0.0, 1.0, -0.01, 1.01),
    ("frequency_penalty", 0.0, 2.0, -2.01, 2.01),
    ("presence_penalty", 0.0, 2.0, -2.01, 2.01),
    ("max_tokens", 1, 3, 0, -1),
]


@pytest.mark.parametrize(("name", "low", "high", "below", "above"), BOTH_ENDS, ids=[row[0] for row in BOTH_ENDS])
def test_chat_completions_key_parameters_are_taken_in_their_ranges_only(
    real_server: Server, name: str, low: float, high: float, below: float, above: float
) -> None:
    """On a model that reasons, too: the document makes no difference between models."""
    for value in (low, high):
        chat(real_server, model="grok-4", **{name: value})
    for value in (below, above):
        status, _, body = real_server.chat(messages=HI, **{name: value})
        assert (status, body["error"]["param"]) == (400, name)


def test_chat_completions_max_tokens_is_the_most_that_is_made(real_server: Server) -> None:
    body = chat(real_server, max_tokens=2)
    assert body["usage"]["completion_tokens"] == 2
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["model", "messages"])
def test_chat_completions_model_and_messages_are_required(real_server: Server, name: str) -> None:
    asked = {"model": "grok-4", "messages": HI}
    del asked[name]
    status, _, body = real_server.request("POST", "/v1/chat/completions", asked)
    assert (status, body["error"]["param"]) == (422, name)


@pytest.mark.parametrize(
    "roles",
    ["assistant user", "user user", "assistant assistant user", "user system", "user assistant", "system system user"],
)
def test_chat_completions_roles_come_in_any_order(real_server: Server, roles: str) -> None:
    messages = [{"role": role, "content": f"word {number}"} for number, role in enumerate(roles.split())]
    status, _, body = real_server.chat(messages=messages, max_tokens=2)
    assert status == 200, body


def test_models_list_ids_capabilities_and_metadata(real_server: Server) -> None:
    status, _, body = real_server.request("GET", "/v1/models")
    assert (status, body["object"]) == (200, "list")
    models = {model["id"]: model for model in body["data"]}
    assert set(SEED_MODELS) <= models.keys()
    for model in models.values():
        assert model["object"] == "model"
        assert model["owned_by"] == "xai"
        assert "reasoning" in model["capabilities"]
        assert model["context_length"] > 0
    assert models["grok-1"]["deprecated"] is True


def test_embeddings(real_server: Server) -> None:
    status, _, body = real_server.request(
        "POST", "/v1/embeddings", {"model": "grok-embedding-small", "input": ["a cat", "a dog"]}
    )
    assert status == 200
    assert [row["index"] for row in body["data"]] == [0, 1]
    assert all(len(row["embedding"]) == 256 for row in body["data"])


def test_completions_legacy(real_server: Server) -> None:
    asked = {"model": "grok-2-1212", "prompt": "Once upon a time", "max_tokens": 3}
    status, _, body = real_server.request("POST", "/v1/completions", asked)
    assert (status, body["object"]) == (200, "text_completion")
    assert body["choices"][0]["text"]


# ---------------------------------------------------------------------------------------------- available models

USD_PER_MILLION = 10_000
"""Ticks per token of a price of one dollar per million tokens."""


def test_available_models_grok_4() -> None:
    """What is advertised; a server shows the window of the weights that it has."""
    model = Catalogue.of(catalogue.DEFAULT).find("grok-4")
    assert model.context == 256_000
    assert model.input == ("text", "image")
    assert model.reasoning
    price = model.price
    assert (price.input, price.output, price.cached_input) == (
        3 * USD_PER_MILLION,
        15 * USD_PER_MILLION,
        USD_PER_MILLION * 3 // 4,
    )


@pytest.mark.parametrize("name", ["grok-4-fast-reasoning", "grok-4-fast-non-reasoning", "grok-beta", "grok-4-fast"])
def test_available_models_grok_4_fast(name: str) -> None:
    models = Catalogue.of(catalogue.DEFAULT)
    model = models.find(name)
    assert model.context == 2_000_000
    assert model.price.output < models.find("grok-4").price.output
    assert model.price.input < models.find("grok-4").price.input


def test_available_models_one_fast_variant_reasons_and_the_other_does_not(real_server: Server) -> None:
    thinks = chat(real_server, model="grok-4-fast-reasoning", max_tokens=2)
    assert thinks["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert thinks["choices"][0]["message"]["reasoning_content"]
    answers = chat(real_server, model="grok-4-fast-non-reasoning")
    assert answers["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert "reasoning_content" not in answers["choices"][0]["message"]


@pytest.mark.parametrize("model", SEED_MODELS)
def test_available_models_all_answer(echo: Server, model: str) -> None:
    assert chat(echo, model=model)["model"] == model


# ---------------------------------------------------------------------------------------------- streaming


def test_streaming_chunks_end_with_a_reason_and_done(real_server: Server) -> None:
    status, headers, raw = real_server.chat(model="grok-2-1212", messages=HI, max_tokens=5, stream=True)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    frames = raw.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    chunks = [json.loads(frame[6:]) for frame in frames[:-2]]
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"].startswith("chatcmpl-")
        assert chunk["model"] == "grok-2-1212"
        assert len(chunk["choices"]) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


# ---------------------------------------------------------------------------------------------- function calling and tools


def test_function_calling_there_and_back(real_server: Server) -> None:
    """A call with an id and arguments as text; its result goes back under that id."""
    asked = [{"role": "user", "content": "What is the weather in San Francisco?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    status, _, body = real_server.chat(messages=asked, tools=[TOOL], tool_choice=choice, max_tokens=100, temperature=0)
    assert status == 200, body
    message = body["choices"][0]["message"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    [call] = message["tool_calls"]
    assert call["id"]
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert "location" in json.loads(call["function"]["arguments"])
    result = {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature": 18, "condition": "sunny"}'}
    told = [*asked, {"role": "assistant", "tool_calls": message["tool_calls"]}, result]
    status, _, body = real_server.chat(messages=told, tools=[TOOL], tool_choice="none", max_tokens=30, temperature=0)
    assert status == 200, body
    assert body["choices"][0]["message"]["content"]


@pytest.mark.parametrize("tool", ["web_search", "x_search", "code_execution"])
def test_agentic_tools_are_known_on_chat_completions(echo: Server, tool: str) -> None:
    """An engine that calls no functions is the only reason to refuse them; runs of each are in their own tests."""
    status, _, body = echo.chat(messages=HI, tools=[{"type": tool}])
    assert (status, body["error"]["code"]) == (400, "tools_not_supported")
    status, _, body = echo.chat(messages=HI, tools=[{"type": tool}], tool_choice="none")
    assert status == 200, body


# ---------------------------------------------------------------------------------------------- errors


def test_error_handling_401_in_the_documents_words(real_server: Server) -> None:
    status, _, body = real_server.request("POST", "/v1/chat/completions", {}, key="xai-nobody-issued-this")
    assert status == 401
    assert {name: body["error"][name] for name in ("type", "code")} == {
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
    assert isinstance(body["error"]["message"], str)


def test_error_handling_429_says_when_to_come_back(echo: Server) -> None:
    key = echo.command("keys", "create", "--name", "slow", "--rpm", "1")["key"]
    body = {"model": "grok-4", "messages": HI}
    assert echo.request("POST", "/v1/chat/completions", body, key=key)[0] == 200
    status, headers, answer = echo.request("POST", "/v1/chat/completions", body, key=key)
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert set(answer["error"]) >= {"message", "type", "code"}


# ---------------------------------------------------------------------------------------------- prices


def test_pricing_a_price_for_each_request(echo: Server) -> None:
    assert chat(echo, model="per-request")["usage"]["cost_in_usd_ticks"] == 300_000_000  # $0.03


def test_pricing_a_cached_prompt_costs_a_quarter_on_grok_4(real_server: Server) -> None:
    messages = [{"role": "user", "content": "Remember the seed: " + "one two three four " * 40}]
    asked = {"model": "grok-4", "messages": messages, "max_tokens": 1, "temperature": 0}
    real_server.request("POST", "/v1/chat/completions", asked)
    _, _, again = real_server.request("POST", "/v1/chat/completions", asked)
    usage = again["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 100
    uncached = usage["prompt_tokens"] - cached
    answered = usage["total_tokens"] - usage["prompt_tokens"]
    assert usage["cost_in_usd_ticks"] == uncached * 30_000 + cached * 7_500 + answered * 150_000


# ---------------------------------------------------------------------------------------------- clients, code examples


def test_openai_compatibility_the_environment_variable_and_the_base_url(
    real_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XAI_API_KEY", real_server.key)
    with openai.OpenAI(api_key=os.environ.get("XAI_API_KEY"), base_url=real_server.url, max_retries=0) as client:
        response = client.chat.completions.create(
            model="grok-2-1212",
            messages=[
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Hello!"},
            ],
            max_tokens=10,
        )
    assert response.choices[0].message.content


def test_openai_compatibility_the_anthropic_sdk(real_server: Server) -> None:
    base_url = f"http://127.0.0.1:{real_server.port}"
    with anthropic.Anthropic(api_key=real_server.key, base_url=base_url, max_retries=0) as client:
        message = client.messages.create(model="grok-4", max_tokens=8, messages=[{"role": "user", "content": "Hello!"}])
    assert message.content[0].type == "text"


def test_code_examples_python_streaming(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="grok-2-1212", messages=[{"role": "user", "content": "Count to 10"}], stream=True, max_tokens=20
    )
    said = [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content]
    assert len(said) > 3


def test_best_practices_one_connection_serves_many_requests(real_server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", real_server.port, timeout=60)
    headers = {"authorization": f"Bearer {real_server.key}", "content-type": "application/json"}
    body = json.dumps({"model": "grok-4", "messages": HI, "max_tokens": 1, "stream": True})
    try:
        connection.connect()
        socket = connection.sock
        for _ in range(3):
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            assert answer.read().endswith(b"data: [DONE]\n\n")
            assert connection.sock is socket
    finally:
        connection.close()


def test_best_practices_keys_are_rotated(echo: Server) -> None:
    made = echo.command("keys", "create", "--name", "old")
    rotated = echo.command("keys", "rotate", made["id"])
    assert rotated["key"] != made["key"]
    assert echo.request("GET", "/v1/models", key=rotated["key"])[0] == 200


def test_best_practices_use_and_cost_are_told(echo: Server) -> None:
    body = chat(echo)
    row = echo.usage()[-1]
    assert f"chatcmpl-{row['request_id']}" == body["id"]
    assert row["cost_in_usd_ticks"] == body["usage"]["cost_in_usd_ticks"] > 0


def test_best_practices_a_low_temperature_makes_answers_repeatable(real_server: Server) -> None:
    said = {chat(real_server, temperature=0, max_tokens=8)["choices"][0]["message"]["content"] for _ in range(2)}
    assert len(said) == 1
