"""What implementers of this API get wrong (xai-api.md 27), and fields that are easily forgotten, on a really started server.

Where the founding document says otherwise it wins, and the test says so.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_upstream import whole
from tests.flow.test_faults import gateway
from tests.server import ECHO, Server, running

TWO = [{"role": "user", "content": "one two"}]
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
LONG = (
    '[models."long"]\nengine = "local"\n'
    "[models.long.price]\ninput = 1.0\ncached_input = 0.5\noutput = 2.0\n"
    "[models.long.price.long_context]\nthreshold = 4\ninput = 10.0\ncached_input = 5.0\noutput = 20.0\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("traps") / "home", config=ECHO + LONG) as server:
        yield server


def post(server: Server, path: str, **fields: Any) -> Any:
    """A good answer's body: decoded JSON, or the bytes of a stream."""
    status, _, body = server.request("POST", path, {"model": "grok-4", **fields})
    assert status == 200, body
    return body


def refused(server: Server, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    status, _, body = server.request("POST", path, {"model": "grok-4", **fields})
    return status, body["error"]


def chunks(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(frame[6:]) for frame in raw.decode().split("\n\n")[:-2]]


def events(raw: bytes) -> list[tuple[str, dict[str, Any]]]:
    """(name, body) of each event of a stream with names."""
    found = []
    for frame in raw.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", RESPONSES, "/v1/embeddings", "/v1/messages", "/v1/complete"])
def test_a_wrong_key_is_401_and_its_text_begins_as_clients_expect(server: Server, path: str) -> None:
    """The document's status; the service's 400 has the same text."""
    status, _, body = server.request("POST", path, {}, key="xai-wrong")
    assert status == 401
    assert body["error"]["message"].startswith("Incorrect API key provided")
    assert body["error"]["code"] == "invalid_api_key"


ERRORS = [
    (CHAT, {"messages": TWO, "model": "grok-99"}, 404, "model_not_found", "model"),
    (RESPONSES, {"input": "x", "model": "grok-99"}, 400, "model_not_found", "model"),
    ("/v1/messages", {"messages": TWO, "max_tokens": 1, "model": "grok-99"}, 404, "model_not_found", "model"),
    ("/v1/embeddings", {"input": "x", "model": "grok-99"}, 404, "model_not_found", "model"),
    ("/v1/tokenize-text", {"text": "x", "model": "grok-99"}, 404, "model_not_found", "model"),
    (RESPONSES, {"input": 5}, 422, "invalid_type", "input"),
    (RESPONSES, {"input": "x", "response_format": {"type": "json_object"}}, 400, "invalid_value", "response_format"),
    (RESPONSES, {"input": "x", "top_k": 0}, 400, "out_of_range", "top_k"),
    (RESPONSES, {"input": "x", "min_p": 1.5}, 400, "out_of_range", "min_p"),
    (RESPONSES, {"input": "x", "text": {"format": {"type": "json_object"}}}, 400, "response_format_not_supported", "text.format"),
    (RESPONSES, {"input": "x", "model": "grok-1", "reasoning": {"effort": "low"}}, 400, "reasoning_not_supported", "reasoning.effort"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]}]}, 400, "images_not_supported", "input"),
    (CHAT, {"messages": TWO, "service_tier": 5}, 422, "invalid_type", "service_tier"),
    (CHAT, {"messages": TWO, "top_logprobs": 21, "logprobs": True}, 400, "out_of_range", "top_logprobs"),
    (CHAT, {"messages": TWO, "stop": ["a", "b", "c", "d", "e"]}, 400, "too_many", "stop"),
    (CHAT, {"messages": TWO, "tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(351)]}, 400, "too_many", "tools"),
    ("/v1/embeddings", {"input": ["x"] * 129, "model": "grok-embedding-small"}, 400, "too_many", "input"),
    (RESPONSES, {"input": "x", "tools": [{"type": "file_search", "vector_store_ids": ["a"], "filters": {"type": "eq"}}]}, 400, "invalid_value", "tools[0].filters"),
    (RESPONSES, {"input": "x", "tools": [{"type": "file_search", "vector_store_ids": ["a"], "ranking_options": {}}]}, 400, "invalid_value", "tools[0].ranking_options"),
    ("/v1/completions", {"prompt": "x", "best_of": 1, "n": 129}, 400, "out_of_range", "n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "status", "code", "param"), ERRORS, ids=[f"{row[0][4:]}-{row[3]}-{row[4]}" for row in ERRORS]
)
def test_errors(server: Server, path: str, fields: dict[str, Any], status: int, code: str, param: str) -> None:
    got, error = refused(server, path, **fields)
    assert (got, error["code"], error["param"]) == (status, code, param)


def test_a_compressed_body_is_415(server: Server) -> None:
    body = json.dumps({"model": "grok-4", "messages": TWO}).encode()
    status, _, answer = server.request("POST", CHAT, body, headers={"content-encoding": "gzip"})
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
    assert server.request("POST", CHAT, body, headers={"content-encoding": "identity"})[0] == 200


# ---------------------------------------------------------------------------------------------- null means unset

NULLS = {
    CHAT: (
        {"messages": [{"role": "user", "content": "one two", "name": None, "tool_calls": None, "tool_call_id": None}]},
        "temperature top_p max_tokens max_completion_tokens frequency_penalty presence_penalty stop seed n stream stream_options "
        "user safety_identifier prompt_cache_key tools tool_choice parallel_tool_calls response_format logprobs top_logprobs "
        "logit_bias reasoning_effort deferred search_parameters web_search_options service_tier max_turns include",
    ),
    RESPONSES: (
        {"input": "one two"},
        "instructions previous_response_id store stream include max_output_tokens reasoning reasoning_effort temperature top_p "
        "top_k min_p logprobs top_logprobs text tools tool_choice parallel_tool_calls max_turns prompt_cache_key service_tier "
        "search_parameters user safety_identifier context_management background metadata truncation conversation prompt "
        "max_tool_calls frequency_penalty presence_penalty seed stop logit_bias response_format",
    ),
    "/v1/messages": (
        {"messages": TWO},
        "max_tokens system stop_sequences stream temperature top_p top_k metadata tools tool_choice cache_control thinking "
        "service_tier output_config output_format",
    ),
    "/v1/completions": (
        {"prompt": "one two"},
        "max_tokens n echo logprobs seed stop stream stream_options temperature top_p presence_penalty user best_of suffix "
        "logit_bias frequency_penalty",
    ),
    "/v1/complete": (
        {"prompt": "one two", "max_tokens_to_sample": 5},
        "stop_sequences temperature top_p metadata stream top_k",
    ),
}


@pytest.mark.parametrize("path", NULLS)
def test_every_optional_field_may_be_null_and_unknown_ones_are_ignored(server: Server, path: str) -> None:
    fields, names = NULLS[path]
    body = post(server, path, **fields, **dict.fromkeys(names.split()), a_field_of_next_year={"x": [1]})
    assert "one two" in json.dumps(body)


# ---------------------------------------------------------------------------------------------- chat


def test_a_streams_first_chunk_has_role_and_text_and_its_reason_comes_last(server: Server) -> None:
    """The document shows null where the service leaves the reason out."""
    asked = {"messages": TWO, "stream": True, "stream_options": {"include_usage": True}}
    *said, end, usage = chunks(post(server, CHAT, **asked))
    assert said[0]["choices"][0]["delta"] == {"role": "assistant", "content": "one"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in said] == [None, None]
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 4
    assert all("usage" not in chunk and "service_tier" not in chunk for chunk in (*said, end))


@pytest.mark.parametrize("tier", ["default", "auto", "priority", "fast", "whatever", None])
def test_any_service_tier_is_taken_and_the_one_that_was_given_is_told(server: Server, tier: str | None) -> None:
    assert post(server, CHAT, messages=TWO, service_tier=tier)["service_tier"] == "default"
    assert post(server, RESPONSES, input="x", service_tier=tier)["service_tier"] == "default"
    told = {
        chunk.get("service_tier") for chunk in chunks(post(server, CHAT, messages=TWO, service_tier=tier, stream=True))
    }
    assert told == ({None} if tier is None else {"default"})


@pytest.fixture(scope="module")
def queueing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an engine that takes one request at a time."""
    config = '[engines.local]\nkind = "echo"\nmax_concurrency = 1\n'
    with running(tmp_path_factory.mktemp("queueing") / "home", config=config) as started:
        yield started


@pytest.mark.parametrize("tier", ["default", "auto", "priority", "fast", "whatever"])
def test_priority_is_given_where_there_is_a_queue_and_costs_double(queueing: Server, tier: str) -> None:
    given = "priority" if tier in ("priority", "fast") else "default"
    factor = 2 if given == "priority" else 1
    usual = post(queueing, CHAT, messages=TWO)["usage"]["cost_in_usd_ticks"]
    answer = post(queueing, CHAT, messages=TWO, service_tier=tier)
    assert (answer["service_tier"], answer["usage"]["cost_in_usd_ticks"]) == (given, factor * usual)
    answer = post(queueing, RESPONSES, input="one two", service_tier=tier)
    assert (answer["service_tier"], answer["usage"]["cost_in_usd_ticks"]) == (given, factor * usual)
    asked = {"messages": TWO, "service_tier": tier, "stream": True, "stream_options": {"include_usage": True}}
    *said, last = chunks(post(queueing, CHAT, **asked))
    assert {chunk["service_tier"] for chunk in (*said, last)} == {given}
    assert last["usage"]["cost_in_usd_ticks"] == factor * usual
    rows = queueing.usage()[-3:]
    assert {(row["service_tier"], row["cost_in_usd_ticks"]) for row in rows} == {(given, factor * usual)}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
def test_legacy_and_messages_know_no_priority(queueing: Server, path: str) -> None:
    asked = {"prompt": "one two"} if path.endswith("completions") else {"messages": TWO, "max_tokens": 9}
    post(queueing, path, **asked, service_tier="priority")
    assert queueing.usage()[-1]["service_tier"] == "default"


def test_an_assistants_refusal_comes_back_in_the_history(server: Server) -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't."}]}
    assert post(server, CHAT, messages=[*TWO, refusal, *TWO])["choices"]


def test_stops_and_penalties_are_obeyed_on_a_model_that_reasons(real_server: Server) -> None:
    """The service refuses them there; the document lists them without that exception, and the embedded model can."""
    asked = {"messages": [{"role": "user", "content": "Count: one two three four five."}], "temperature": 0}
    said = post(real_server, CHAT, **asked, max_tokens=12)["choices"][0]["message"]["content"]
    word = said.split()[2]
    cut = post(real_server, CHAT, **asked, max_tokens=12, stop=[word], presence_penalty=0.0)["choices"][0]
    assert cut["message"]["content"] == said[: said.index(word)]
    assert cut["finish_reason"] == "stop"


# ---------------------------------------------------------------------------------------------- Responses


def test_responses_events_are_numbered_from_0_and_end_without_done(server: Server) -> None:
    told = events(post(server, RESPONSES, input="one two", stream=True))
    assert [body["sequence_number"] for _, body in told] == list(range(len(told)))
    assert all(name == body["type"] for name, body in told)
    assert [name for name, _ in told] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert told[0][1]["response"]["usage"] is None
    assert told[0][1]["response"]["output"] == []
    response = told[-1][1]["response"]
    assert response["output"][0]["id"] == f"msg_{response['id']}"


def test_an_incomplete_response_leaves_its_item_open(server: Server) -> None:
    told = events(post(server, RESPONSES, input="one two", max_output_tokens=1, stream=True))
    assert [name for name, _ in told[-2:]] == ["response.output_text.delta", "response.incomplete"]
    response = told[-1][1]["response"]
    assert (response["status"], response["completed_at"]) == ("incomplete", None)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


ECHOED = (
    "id object created_at completed_at status incomplete_details error model output usage instructions max_output_tokens "
    "max_tool_calls parallel_tool_calls previous_response_id prompt_cache_key safety_identifier service_tier store temperature "
    "top_p top_logprobs text tool_choice tools user reasoning metadata background truncation presence_penalty frequency_penalty"
)


def test_a_response_has_all_its_keys_and_is_stored_by_default(server: Server) -> None:
    body = post(server, RESPONSES, input="one two")
    assert set(body) == set(ECHOED.split())
    assert body["store"] is True
    assert server.request("GET", f"{RESPONSES}/{body['id']}")[2] == body
    gone = post(server, RESPONSES, input="one two", store=False)
    assert server.request("GET", f"{RESPONSES}/{gone['id']}")[0] == 404


def test_background_and_truncation_are_not_supported_and_told_so(server: Server) -> None:
    body = post(server, RESPONSES, input="one two", background=True, truncation="auto", presence_penalty=0.5)
    assert (body["status"], body["background"], body["truncation"]) == ("completed", False, "disabled")
    assert body["presence_penalty"] == 0.5


def test_totals_count_reasoning_beside_the_answer_in_chat_and_within_it_in_responses(real_server: Server) -> None:
    asked = {"model": "grok-4-fast-reasoning", "temperature": 0}
    usage = post(real_server, CHAT, **asked, messages=TWO, max_tokens=2)["usage"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    assert reasoning > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] + reasoning
    usage = post(real_server, RESPONSES, **asked, input="one two", max_output_tokens=2)["usage"]
    assert usage["output_tokens"] > usage["output_tokens_details"]["reasoning_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


# ---------------------------------------------------------------------------------------------- other routes


def test_lists_of_models(server: Server) -> None:
    assert server.request("GET", "/v1/models")[2].keys() == {"object", "data"}
    assert server.request("GET", "/v1/language-models")[2].keys() == {"models"}
    assert server.request("GET", "/v1/embedding-models")[2].keys() == {"models"}


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/grok-4", "/v1/language-models/grok-4", "/v1/embedding-models/v1"]
)
def test_a_slash_at_the_end_changes_nothing(server: Server, path: str) -> None:
    assert server.request("GET", path + "/")[2] == server.request("GET", path)[2]


def test_a_model_tells_all_its_prices_in_ticks_per_token(server: Server) -> None:
    """A dollar per million tokens is 10,000 ticks per token; 0 for a long context without prices of its own."""
    for path in ("/v1/models/long", "/v1/language-models/long"):
        _, _, model = server.request("GET", path)
        assert {name: value for name, value in model.items() if "price" in name or "threshold" in name} == {
            "prompt_text_token_price": 10_000,
            "prompt_image_token_price": 0,
            "cached_prompt_text_token_price": 5_000,
            "completion_text_token_price": 20_000,
            "prompt_text_token_price_long_context": 100_000,
            "cached_prompt_text_token_price_long_context": 50_000,
            "completion_text_token_price_long_context": 200_000,
            "long_context_threshold": 4,
            **({"search_price": 250_000_000} if "language" in path else {}),
        }
    _, _, model = server.request("GET", "/v1/models/grok-4")
    assert model["long_context_threshold"] == 0
    assert model["capabilities"]["default_reasoning_effort"] in model["capabilities"]["reasoning_effort"]


def test_a_model_of_embeddings_is_told_as_one(server: Server) -> None:
    for path in ("/v1/models/", "/v1/embedding-models/"):
        _, _, model = server.request("GET", path + "v1")  # an alias
        assert model["id"] == "grok-embedding-small"
        assert model["output_modalities"] == ["embedding"]
        assert "completion_text_token_price" not in model


@pytest.mark.parametrize(("words", "prices"), [(3, (10_000, 20_000)), (4, (100_000, 200_000))])
def test_long_prices_are_for_the_whole_request_from_the_threshold_on(
    server: Server, words: int, prices: tuple[int, int]
) -> None:
    messages = [{"role": "user", "content": " ".join(["word"] * words)}]
    cost = post(server, CHAT, model="long", messages=messages)["usage"]["cost_in_usd_ticks"]
    assert cost == words * sum(prices)


def test_tokens_of_a_text_are_objects_under_token_ids(server: Server) -> None:
    body = post(server, "/v1/tokenize-text", text="one")
    assert body.keys() == {"token_ids"}
    assert body["token_ids"][0].keys() == {"token_id", "string_token", "token_bytes"}
    assert body["token_ids"][0]["token_bytes"] == [111, 110, 101]


def test_base64_embeddings_are_little_endian_floats(server: Server) -> None:
    asked = {"model": "grok-embedding-small", "input": "a cat", "dimensions": 64}
    plain = post(server, "/v1/embeddings", **asked)["data"][0]["embedding"]
    packed = base64.b64decode(post(server, "/v1/embeddings", **asked, encoding_format="base64")["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == plain
    assert len(plain) == 64


def test_legacy_completions_take_best_of(server: Server) -> None:
    body = post(server, "/v1/completions", prompt="one two", best_of=3, n=2)
    assert [choice["text"] for choice in body["choices"]] == ["one two", "one two"]


def test_the_raw_text_endpoints_share_an_acl(server: Server) -> None:
    key = server.command(
        "keys", "create", "--name", "raw", "--acl", "api-key:endpoint:sample", "--acl", "api-key:model:*"
    )["key"]
    for path, fields in (
        ("/v1/completions", {"prompt": "one two"}),
        ("/v1/complete", {"prompt": "one two", "max_tokens_to_sample": 5}),
    ):
        status, _, body = server.request("POST", path, {"model": "grok-4", **fields}, key=key)
        assert status == 200, body
    status, _, body = server.request("POST", CHAT, {"model": "grok-4", "messages": TWO}, key=key)
    assert (status, body["error"]["code"]) == (403, "endpoint_not_allowed")


# ---------------------------------------------------------------------------------------------- towards an engine


async def test_a_conversations_id_reaches_the_engine(tmp_path: Path) -> None:
    """By header, or by the field of the dialects that have one, which wins; not where it would be no header's value."""
    header = {"x-grok-conv-id": "one conversation"}
    rows: list[tuple[str, dict[str, str], str | None, str | None]] = [("/messages", header, None, "one conversation")]
    for path in ("/chat/completions", "/responses"):
        rows += [
            (path, header, None, "one conversation"),
            (path, {}, "a key", "a key"),
            (path, header, "a key", "a key"),
            (path, {}, "two\r\nx-evil: lines", None),
            (path, {}, "\u043a\u043b\u044e\u0447", None),
            (path, {}, None, None),
        ]
    async with gateway(tmp_path, whole("hi")) as (server, there, session):
        for path, headers, field, passed_on in rows:
            body = {"model": "grok-4", "prompt_cache_key": field, "messages": TWO, "input": "hi"}
            async with session.post(server.url + path, json=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
            assert there.headers[-1].get("x-grok-conv-id") == passed_on, (path, headers, field)
            assert "x-evil" not in there.headers[-1]


async def test_how_many_tokens_are_looked_at_reaches_the_engine(tmp_path: Path) -> None:
    async with gateway(tmp_path, whole("hi")) as (server, there, session):
        body: dict[str, Any] = {"model": "grok-4", "input": "hi", "top_k": 7, "min_p": 0.25}
        async with session.post(server.url + "/responses", json=body) as answer:
            assert answer.status == 200
        body = {"model": "grok-4", "messages": TWO, "top_k": 3}
        async with session.post(server.url + "/messages", json=body) as answer:
            assert answer.status == 200
        async with session.post(server.url + "/chat/completions", json={**body, "top_k": None}) as answer:
            assert answer.status == 200
    assert [(sent.get("top_k"), sent.get("min_p")) for sent in there.bodies] == [(7, 0.25), (3, None), (None, None)]
