"""Jubal in front of a real vLLM, which runs the embedded model on this machine's CPU: `make live-vllm`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from jubal.engines.openai_compat import OpenAICompatEngine
from jubal.engines.upstream import UpstreamProbe
from jubal.testing import check_engine
from tests.conftest import CACHE
from tests.flow.test_tools_and_reasoning import ASK, TIME, WEATHER
from tests.live import vllm_server
from tests.live.vllm_server import CONTEXT, NAME, Vllm
from tests.server import Server, running

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Count from one to five hundred, in words."}],
    "logit_bias": {"2": -100},  # the token that would end the answer
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
CONFIG = """
[engines.box]
kind = "openai"
base_url = "{url}"
health_interval_s = 0.5
retries = 0
breaker_failures = 2
breaker_rest_s = 1

[models."grok-4"]
engine = "box"
upstream = "{name}"

[models."vectors"]
kind = "embedding"
engine = "box"
upstream = "{name}"
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Vllm]]:
    """The one vLLM that runs, in a list: a test that kills it puts the next one in its place."""
    home = CACHE / "live-vllm"
    vllm_server.prepare(home, vllm_server.embedded_model(CACHE / "models"))
    began = time.monotonic()
    here = [vllm_server.start(home, tmp_path_factory.mktemp("vllm") / "vllm.log")]
    print(f"\nvLLM {here[0].version()} is ready after {time.monotonic() - began:.0f} s")
    try:
        yield here
    finally:
        here[0].stop()


@pytest.fixture(scope="module")
def server(vllm: list[Vllm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("jubal"), config=CONFIG.format(url=vllm[0].url, name=NAME)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    client = openai.OpenAI(api_key=server.key, base_url=server.url, max_retries=0, timeout=180)
    # The first sampled answers with probabilities take vLLM half a minute.
    client.chat.completions.create(model="grok-4", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2)
    return client


def until(told: Any, timeout_s: float = 60) -> None:
    """Waits for `told()` to be true."""
    end = time.monotonic() + timeout_s
    while not told():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.05)


def said(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "grok-4", "messages": HELLO, "max_tokens": 12, "temperature": 0, **fields}
    return client.chat.completions.create(**asked)


# ---------------------------------------------------------------------------------------------- the engine


async def test_keeps_the_promise_of_an_engine(client: openai.OpenAI, vllm: list[Vllm]) -> None:
    probe = UpstreamProbe(vllm[0].url)
    assert (await probe.probe()).state == "ready"
    assert probe.facts.owners == {NAME: "vllm"}

    async def make() -> OpenAICompatEngine:
        engine = OpenAICompatEngine("box", vllm[0].url, facts=probe.facts)
        await engine.start()
        return engine

    await check_engine(make, model=NAME)


def test_the_health_check_learns_the_window(server: Server, client: openai.OpenAI) -> None:
    status, _, body = server.request("GET", "/health", key=None)
    assert (status, body["engines"]["box"]["state"]) == (200, "ready")
    assert server.request("GET", "/v1/models/grok-4")[2]["context_length"] == CONTEXT


# ---------------------------------------------------------------------------------------------- chat


def test_whole_and_streamed_are_the_same_with_usage(client: openai.OpenAI) -> None:
    whole = said(client)
    chunks = list(said(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert len([chunk for chunk in chunks if chunk.choices]) > 3, "piece by piece"
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"


@pytest.mark.parametrize("temperature", [0, 1])
def test_several_choices(client: openai.OpenAI, temperature: float) -> None:
    answer = said(client, n=3, temperature=temperature, seed=5)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens <= 36
    if temperature == 0:
        assert set(texts) == {said(client).choices[0].message.content}


def test_probabilities(client: openai.OpenAI) -> None:
    whole = said(client, logprobs=True, top_logprobs=3, max_tokens=4)
    told = whole.choices[0].logprobs.content
    assert "".join(one.token for one in told) == whole.choices[0].message.content
    assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in told)
    streamed = [
        one
        for chunk in said(client, logprobs=True, top_logprobs=3, max_tokens=4, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert [one.token for one in streamed] == [one.token for one in told]


def test_stop_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    text = said(client).choices[0].message.content
    word = text.split()[2]
    cut = said(client, stop=[word]).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == text[: text.index(word)]


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    texts = [
        said(client, seed=seed, temperature=1, extra_body={"cache": False}).choices[0].message.content
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_an_answer_follows_its_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = said(client, messages=[{"role": "user", "content": "Who is Ada?"}], response_format=form, max_tokens=200)
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_must_be_is_made_with_valid_arguments(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: dict[str, Any] = {"messages": ASK, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 200}
    if stream:
        chunks = [chunk for chunk in said(client, **asked, stream=True) if chunk.choices]
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
    else:
        [answer] = said(client, **asked).choices
        calls, reason = answer.message.tool_calls, answer.finish_reason
    assert reason == "tool_calls"
    for call in calls:
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])  # type: ignore[index]
    assert calls


def test_a_call_that_may_be_is_text_or_a_valid_call(client: openai.OpenAI) -> None:
    [answer] = said(client, messages=ASK, tools=[WEATHER, TIME], tool_choice="auto", max_tokens=100).choices
    assert answer.message.content or answer.message.tool_calls
    for call in answer.message.tool_calls or ():
        json.loads(call.function.arguments)


def test_a_result_goes_back_to_the_model(client: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"location":"Oslo","unit":"celsius"}'},
    }
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 18, "condition": "sunny"}'},
    ]
    answer = said(client, messages=messages, tools=[WEATHER], max_tokens=40)
    assert answer.choices[0].message.content


def test_tokens_of_a_prompt_seen_before_are_told(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "One prompt that is longer than a block of the cache. " * 30}]
    asked = {"messages": messages, "max_tokens": 2, "extra_body": {"cache": False}}
    first, second = said(client, **asked).usage, said(client, **asked).usage
    assert first.prompt_tokens == second.prompt_tokens
    assert 128 <= second.prompt_tokens_details.cached_tokens < second.prompt_tokens


# ---------------------------------------------------------------------------------------------- completions, tokens


def test_completions_of_text_and_of_tokens(server: Server, client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    asked: dict[str, Any] = {"model": "grok-4", "max_tokens": 4, "temperature": 0}
    of_text = client.completions.create(prompt=prompt, **asked).choices[0].text
    assert "Paris" in of_text
    _, _, told = server.request("POST", "/v1/tokenize-text", {"model": "grok-4", "text": prompt})
    ids = [token["token_id"] for token in told["token_ids"]]
    assert bytes(byte for token in told["token_ids"] for byte in token["token_bytes"]).decode() == prompt
    assert client.completions.create(prompt=ids, **asked).choices[0].text == of_text
    assert client.completions.create(prompt=prompt, echo=True, **asked).choices[0].text == prompt + of_text
    several = client.completions.create(prompt=[prompt, "One, two,"], n=2, logprobs=2, **asked)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == of_text
    assert len(several.choices[3].logprobs.token_logprobs) == 4
    chunks = list(client.completions.create(prompt=ids, stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == of_text


def test_tokens_of_any_text(server: Server, client: openai.OpenAI) -> None:
    text = "Hi 🦊 <|im_end|>\n日"
    status, _, told = server.request("POST", "/v1/tokenize-text", {"model": "grok-4", "text": text})
    assert status == 200
    assert b"".join(bytes(token["token_bytes"]) for token in told["token_ids"]).decode() == text


# ---------------------------------------------------------------------------------------------- what it refuses


def test_a_suffix_is_refused_in_vllms_words(server: Server, client: openai.OpenAI) -> None:
    body = {"model": "grok-4", "prompt": "a", "suffix": "b", "max_tokens": 2}
    status, _, answer = server.request("POST", "/v1/completions", body)
    assert (status, answer["error"]["code"]) == (400, "engine_refused")
    assert "suffix" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hello " * 3000}]}),
        ("completions", {"prompt": "a " * 3000}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_window(
    server: Server, client: openai.OpenAI, path: str, fields: dict[str, Any], stream: bool
) -> None:
    status, _, answer = server.request(
        "POST", f"/v1/{path}", {"model": "grok-4", "stream": stream, "max_tokens": 2, **fields}
    )
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert f"at least {CONTEXT + 1} tokens" in answer["error"]["message"]
    assert f"holds {CONTEXT}." in answer["error"]["message"]


def test_embeddings_of_a_model_that_has_none(server: Server, client: openai.OpenAI) -> None:
    status, _, answer = server.request("POST", "/v1/embeddings", {"model": "vectors", "input": "x"})
    assert (status, answer["error"]["code"]) == (502, "engine_model_not_found")


# ---------------------------------------------------------------------------------------------- load and faults


def test_eight_at_a_time(server: Server, client: openai.OpenAI, vllm: list[Vllm]) -> None:
    before = len(server.usage())
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(said, client, max_tokens=64, **ENDLESS, seed=n, temperature=1) for n in range(8)]
        most = 0.0
        while not all(one.done() for one in asked):
            most = max(most, vllm[0].metric("num_requests_running"))
            time.sleep(0.05)
        tokens = sum(one.result().usage.completion_tokens for one in asked)
    print(
        f"\n8 at a time: {tokens} tokens, {tokens / (time.monotonic() - began):.0f} tokens/s, {most:.0f} in vLLM's batch"
    )
    assert tokens == 8 * 64
    assert most > 1
    assert len(server.usage()) == before + 8


def test_a_client_that_leaves_stops_vllm(server: Server, client: openai.OpenAI, vllm: list[Vllm]) -> None:
    stream = said(client, **ENDLESS, max_tokens=1500, stream=True)
    for _ in range(5):
        next(stream)
    assert vllm[0].metric("num_requests_running") == 1
    stream.close()
    until(lambda: vllm[0].metric("num_requests_running") == 0, 10)
    until(lambda: any(row["status"] == "cancelled" for row in server.usage()))


def test_vllm_is_killed_in_the_middle_and_comes_back(server: Server, client: openai.OpenAI, vllm: list[Vllm]) -> None:
    """The last test: it needs a minute for vLLM's second start."""
    stream = said(client, **ENDLESS, max_tokens=1500, stream=True)
    for _ in range(5):
        next(stream)
    vllm[0].kill()
    with pytest.raises(openai.APIError) as cut:
        list(stream)
    assert "engine" in str(cut.value)
    assert [server.chat()[0] for _ in range(4)] == [503] * 4
    assert "is resting" in server.chat()[2]["error"]["message"], "the breaker is open: nobody asks"
    until(lambda: server.request("GET", "/health", key=None)[0] == 503)
    vllm[0] = vllm_server.start(CACHE / "live-vllm", vllm[0].log, vllm[0].port)
    until(lambda: server.request("GET", "/health", key=None)[0] == 200)
    until(lambda: server.chat()[0] == 200, 30)
    assert said(client).choices[0].message.content
