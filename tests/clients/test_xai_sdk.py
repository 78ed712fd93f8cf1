"""The official `xai-sdk`, sync and aio, against a really started server: only host and key change."""

from __future__ import annotations

import asyncio
import base64
import datetime
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc
import PIL.Image
import pydantic
import pytest
import xai_sdk
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from xai_sdk import chat as x
from xai_sdk.proto import chat_pb2, embed_pb2, embed_pb2_grpc, sample_pb2, sample_pb2_grpc
from xai_sdk.search import SearchParameters
from xai_sdk.tools import collections_search, get_tool_call_type

from jubal.wire.xai_grpc import pb
from tests.conftest import home_with_models
from tests.fake_upstream import Upstream, ending, hangs_after, piece, refuses, says, says_when, upstream
from tests.server import ECHO, Server, jubal, running, to_upstream

CAPITAL = [x.system("You are a helpful assistant."), x.user("What is the capital of France?")]
CITY = {"city": {"type": "string", "maxLength": 20}}
TOOL = x.tool("get_weather", "The weather.", {"type": "object", "properties": CITY, "additionalProperties": False})


@pytest.fixture(scope="module")
def server(models_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model behind all defaults."""
    with running(home_with_models(tmp_path_factory.mktemp("xai") / "home", models_home), grpc=True) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[xai_sdk.Client]:
    client = sdk(server)
    yield client
    client.close()


def sdk(server: Server, key: str | None = None, **options: Any) -> xai_sdk.Client:
    return xai_sdk.Client(api_key=key or server.key, api_host=f"localhost:{server.grpc_port}", **options)


def channel(server: Server, host: str = "127.0.0.1") -> grpc.Channel:
    return grpc.insecure_channel(f"{host}:{server.grpc_port}")


def authorized(server: Server) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {server.key}")]


def refusal(caught: Any) -> tuple[grpc.StatusCode, str]:
    return caught.value.code(), caught.value.details()


# ------------------------------------------------------------------------------------------------ answers


def test_sample(client: xai_sdk.Client) -> None:
    response = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=200, temperature=0).sample()
    assert "Paris" in response.content
    assert (response.role, response.finish_reason) == ("ROLE_ASSISTANT", "REASON_STOP")
    assert response.system_fingerprint == "fp_b179c9523d", "names the real weights"
    assert response.usage.prompt_tokens > 15
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens
    assert response.cost_usd
    assert response.cost_usd > 0
    assert (response.request_settings.max_tokens, response.request_settings.temperature) == (200, 0)


def test_stream(client: xai_sdk.Client) -> None:
    chat = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=200, temperature=0)
    pieces = []
    for response, chunk in chat.stream():
        assert chunk.proto.id == response.id
        assert all(output.delta.role == chat_pb2.ROLE_ASSISTANT for output in chunk.proto.outputs)
        assert chunk.proto.usage.prompt_tokens > 0, "on every chunk"
        pieces.append(chunk.content)
    assert "".join(pieces) == response.content
    assert "Paris" in response.content
    whole = chat.sample()
    assert (response.content, response.finish_reason) == (whole.content, whole.finish_reason)
    assert response.usage.completion_tokens == whole.usage.completion_tokens
    assert response.cost_usd is not None


def test_a_conversation_goes_on_from_a_response(client: xai_sdk.Client) -> None:
    chat = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=16, temperature=0)
    chat.append(chat.sample())
    chat.append(x.user("And of Spain?"))
    assert chat.sample().content


def test_batches(client: xai_sdk.Client) -> None:
    chat = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=4, seed=1)
    assert [response.proto.outputs[index].index for index, response in enumerate(chat.sample_batch(2))] == [0, 1]
    for responses, _ in chat.stream_batch(2):  # noqa: B007
        pass
    assert all(response.content for response in responses)


def test_structured_output(client: xai_sdk.Client) -> None:
    class City(pydantic.BaseModel, extra="forbid"):
        name: Annotated[str, pydantic.Field(max_length=20)]
        people: Annotated[int, pydantic.Field(ge=0, le=10**8)]

    response, city = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=100, temperature=0).parse(City)
    assert city.model_dump() == json.loads(response.content)


def test_the_embedded_model_calls_a_function(client: xai_sdk.Client) -> None:
    chat = client.chat.create(
        model="grok-4",
        messages=[x.user("Weather in Oslo?")],
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
    )
    response = chat.sample()
    [call] = response.tool_calls
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments), dict)
    assert response.finish_reason == "REASON_TOOL_CALLS"
    chat.append(response)
    chat.append(x.tool_result("Rain.", call.id))
    chat.proto.tool_choice.mode = chat_pb2.TOOL_MODE_NONE
    assert chat.sample().content


def test_reasoning(client: xai_sdk.Client) -> None:
    chat = client.chat.create(
        model="grok-4-fast-reasoning", messages=[x.user("Is 7 prime?")], max_tokens=20, use_encrypted_content=True
    )
    for response, _ in chat.stream():  # noqa: B007
        pass
    assert response.reasoning_content
    assert response.encrypted_content
    assert response.encrypted_content != response.reasoning_content
    chat.append(response)
    chat.append(x.user("Sure?"))
    assert chat.sample().proto.outputs, "its own sealed reasoning is taken back"


def test_probabilities(client: xai_sdk.Client) -> None:
    chat = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=3, logprobs=True, top_logprobs=2)
    tokens = chat.sample().logprobs.content
    assert len(tokens) == 3
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def test_deferred(client: xai_sdk.Client, server: Server) -> None:
    response = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=200, temperature=0).defer()
    assert "Paris" in response.content
    assert response.cost_usd
    with pytest.raises(grpc.RpcError) as caught:
        client.chat._stub.GetDeferredCompletion(pb.deferred.GetDeferredRequest(request_id=response.id))
    assert refusal(caught)[0] is grpc.StatusCode.NOT_FOUND, "its answer is handed out once"
    asked = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "deferred": True}
    _, _, accepted = server.request("POST", "/v1/chat/completions", asked)
    with pytest.raises(grpc.RpcError) as caught:
        client.chat._stub.GetDeferredCompletion(pb.deferred.GetDeferredRequest(**accepted))
    assert refusal(caught)[0] is grpc.StatusCode.NOT_FOUND, "an HTTP request's answer is not in these words"


def test_kept_answers(client: xai_sdk.Client) -> None:
    first = client.chat.create(
        model="grok-4", messages=[x.user("My name is Zoe.")], max_tokens=8, temperature=0, store_messages=True
    ).sample()
    [again] = client.chat.get_stored_completion(first.id)
    assert (again.content, again.usage, again.id) == (first.content, first.usage, first.id)
    chat = client.chat.create(
        model="grok-4", messages=[x.user("Who am I?")], max_tokens=8, previous_response_id=first.id, store_messages=True
    )
    second = chat.sample()
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens
    assert client.chat.delete_stored_completion(first.id) == first.id
    for call in (client.chat.get_stored_completion, client.chat.delete_stored_completion):
        with pytest.raises(grpc.RpcError) as caught:
            call(first.id)
        assert refusal(caught)[0] is grpc.StatusCode.NOT_FOUND
    assert client.chat.get_stored_completion(second.id), "the second stands by itself"
    with pytest.raises(grpc.RpcError) as caught:
        chat.sample()
    assert "previous" not in refusal(caught)[1] or first.id in refusal(caught)[1]


def test_a_deferred_answer_can_be_kept_too(client: xai_sdk.Client) -> None:
    response = client.chat.create(model="grok-4", messages=CAPITAL, max_tokens=4, store_messages=True).defer()
    assert client.chat.get_stored_completion(response.id)[0].content == response.content


def test_compaction(client: xai_sdk.Client) -> None:
    chat = client.chat.create(
        model="grok-4", messages=[*CAPITAL, x.assistant("Paris."), x.user("Thanks.")], max_tokens=8
    )
    compacted = chat.compact()
    assert compacted.dropped_message_count == 4
    assert compacted.usage.completion_tokens > 0
    chat.append(x.user("Where were we?"))
    assert chat.sample().proto.outputs


def test_the_documented_example_runs(server: Server) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "xai_sdk.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "localhost:50051" in example
    done = subprocess.run(
        [sys.executable, "-c", example.replace("localhost:50051", f"localhost:{server.grpc_port}")],
        env={**os.environ, "XAI_API_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert re.search(r"\d+ tokens, 0\.\d+ USD, REASON_STOP", done.stdout)


# ------------------------------------------------------------------------------------------------ the other services


def test_models(client: xai_sdk.Client) -> None:
    models = {model.name: model for model in client.models.list_language_models()}
    assert models["grok-4"].prompt_text_token_price == 30_000
    assert models["grok-4"].max_prompt_length > 0
    assert client.models.get_language_model("grok-4-latest") == models["grok-4"]
    [embedding, *_] = client.models.list_embedding_models()
    assert client.models.get_embedding_model(embedding.name) == embedding
    assert client.models.list_image_generation_models() == []
    for call in (
        client.models.get_language_model,
        client.models.get_embedding_model,
        client.models.get_image_generation_model,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call("nothing")
        assert refusal(caught)[0] is grpc.StatusCode.NOT_FOUND


def test_tokens(client: xai_sdk.Client) -> None:
    tokens = client.tokenize.tokenize_text("Hello, wörld!", model="grok-4")
    assert b"".join(token.token_bytes for token in tokens) == "Hello, wörld!".encode()
    assert len({token.token_id for token in tokens}) > 2


def test_key(client: xai_sdk.Client, server: Server) -> None:
    info = client.auth.get_api_key_info()
    assert info.redacted_api_key == f"xai-...{server.key[-4:]}"
    assert (info.name, list(info.acls)) == ("first", ["api-key:model:*", "api-key:endpoint:*"])
    assert [info.disabled, info.api_key_blocked, info.team_blocked] == [False] * 3
    assert info.create_time.ToSeconds() > 1_700_000_000


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_embeddings_and_samples(client: xai_sdk.Client, server: Server) -> None:
    name = client.models.list_embedding_models()[0].name
    with channel(server, "[::1]" if _has_ipv6() else "127.0.0.1") as raw:
        ask = embed_pb2.EmbedRequest(
            model=name, input=[embed_pb2.EmbedInput(string=text) for text in ("a cat", "a dog")]
        )
        stub = embed_pb2_grpc.EmbedderStub(raw)
        floats = stub.Embed(ask, metadata=authorized(server))
        ask.encoding_format = embed_pb2.FORMAT_BASE64
        coded = stub.Embed(ask, metadata=authorized(server))
        assert len(floats.embeddings) == floats.usage.num_text_embeddings == 2
        vector = floats.embeddings[0].embeddings[0].float_array
        assert len(base64.b64decode(coded.embeddings[0].embeddings[0].base64_array)) == 4 * len(vector)
        samples = sample_pb2_grpc.SampleStub(raw)
        text = sample_pb2.SampleTextRequest(
            model="grok-4", prompt=["The capital of France is"], max_tokens=4, temperature=0
        )
        whole = samples.SampleText(text, metadata=authorized(server))
        pieces = list(samples.SampleTextStreaming(text, metadata=authorized(server)))
        assert "".join(choice.text for piece in pieces for choice in piece.choices) == whole.choices[0].text
        assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens == 4


def test_what_is_not_there_says_so(client: xai_sdk.Client) -> None:
    calls = [
        lambda: client.image.sample("a cat", model="grok-2-image"),
        lambda: client.batch.list(),
        lambda: client.files.list(),
        lambda: client.files.upload(b"x", filename="x.txt"),
        lambda: client.collections.search("x", collection_ids=["c"]),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        code, text = refusal(caught)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "is not served here" in text


def test_reflection_and_health(server: Server) -> None:
    with channel(server) as raw:
        health = health_pb2_grpc.HealthStub(raw)
        for service in ("", "xai_api.Chat"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(raw)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        [listed] = stub.ServerReflectionInfo(iter([ask]))
        names = {service.name for service in listed.list_services_response.service}
        assert {"xai_api.Chat", "xai_api.Models", "grpc.health.v1.Health"} <= names
        ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol="xai_api.Chat")
        [described] = stub.ServerReflectionInfo(iter([ask]))
        assert b"GetCompletionChunk" in described.file_descriptor_response.file_descriptor_proto[0]


def test_tls_on_request(tmp_path: Path) -> None:
    key, cert = self_signed()
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(cert)
    config = f'[server]\ntls_cert = "{tmp_path / "cert.pem"}"\ntls_key = "{tmp_path / "key.pem"}"\n{ECHO}'
    with running(tmp_path / "home", config=config, grpc=True) as server:
        ask = chat_pb2.GetCompletionsRequest(model="grok-4", messages=[x.user("hi there")])
        with grpc.secure_channel(f"localhost:{server.grpc_port}", grpc.ssl_channel_credentials(cert)) as raw:
            answer = xai_sdk.proto.chat_pb2_grpc.ChatStub(raw).GetCompletion(
                ask, metadata=authorized(server), timeout=60
            )
        assert answer.outputs[0].message.content == "hi there"
        assert "with TLS" in server.log.read_text()
        with channel(server) as raw, pytest.raises(grpc.RpcError) as caught:
            xai_sdk.proto.chat_pb2_grpc.ChatStub(raw).GetCompletion(ask, metadata=authorized(server), timeout=60)
        assert refusal(caught)[0] is grpc.StatusCode.UNAVAILABLE


def self_signed() -> tuple[bytes, bytes]:
    """Key and certificate for localhost, in PEM."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
        certificate.public_bytes(pem),
    )


def test_ports(tmp_path: Path) -> None:
    """The default port is left to whoever has it; one that was asked for must be free; 0 is none."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "jubal.toml").write_text(ECHO)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        done = jubal("serve", "--port", "0", "--grpc-port", str(port), "--config", str(home / "jubal.toml"), home=home)
        assert done.returncode != 0
        assert f"gRPC port {port} is already in use" in done.stderr
    with running(tmp_path / "other", config=ECHO) as server:
        assert "gRPC" not in server.log.read_text()
        maps = Path(f"/proc/{server.process.pid}/maps")
        if maps.exists():
            assert "grpc" not in maps.read_text(), "its library is loaded only where it is served"


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jubal.toml").write_text(f'[server]\ntls_cert = "x.pem"\n{ECHO}')
    done = jubal("serve", "--port", "0", "--config", str(tmp_path / "jubal.toml"), home=tmp_path / "home")
    assert done.returncode == 2
    assert "server.tls_key" in done.stderr


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("key", ["xai-wrong", "nonsense"])
def test_a_wrong_key(server: Server, key: str) -> None:
    client = sdk(server, key)
    with pytest.raises(grpc.RpcError) as caught:
        client.chat.create(model="grok-4", messages=CAPITAL).sample()
    code, text = refusal(caught)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert text.startswith("Incorrect API key provided")
    with pytest.raises(grpc.RpcError) as caught:
        next(client.chat.create(model="grok-4", messages=CAPITAL).stream())
    assert refusal(caught)[0] is grpc.StatusCode.UNAUTHENTICATED
    client.close()


def test_no_key_and_metadata(server: Server) -> None:
    ask = chat_pb2.GetCompletionsRequest(model="grok-4", messages=CAPITAL, max_tokens=1)
    with channel(server) as raw:
        stub = xai_sdk.proto.chat_pb2_grpc.ChatStub(raw)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetCompletion(ask)
        assert refusal(caught)[0] is grpc.StatusCode.UNAUTHENTICATED
        assert len(dict(caught.value.trailing_metadata())["x-request-id"]) == 36
        answer, call = stub.GetCompletion.with_call(ask, metadata=authorized(server))
        assert dict(call.initial_metadata())["x-request-id"] == answer.id
        assert dict(call.trailing_metadata())["x-request-id"] == answer.id
        stream = stub.GetCompletionChunk(ask, metadata=authorized(server))
        assert dict(stream.initial_metadata())["x-request-id"] == next(stream).id


def test_limits_and_acls(client: xai_sdk.Client, server: Server) -> None:
    limited = server.command("keys", "create", "--name", "limited", "--rpm", "1", "--acl", "api-key:endpoint:chat", "--acl", "api-key:model:*")  # fmt: skip
    other = sdk(server, limited["key"])
    chat = other.chat.create(model="grok-4", messages=CAPITAL, max_tokens=1)
    chat.sample()
    with pytest.raises(grpc.RpcError) as caught:
        chat.sample()
    assert refusal(caught)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(caught.value.trailing_metadata())["retry-after"]) > 0
    with pytest.raises(grpc.RpcError) as caught:
        other.models.list_language_models()
    assert refusal(caught)[0] is grpc.StatusCode.PERMISSION_DENIED
    other.close()


@pytest.mark.parametrize(
    ("settings", "code", "names"),
    [
        ({"model": "grok-99"}, grpc.StatusCode.NOT_FOUND, "grok-99"),
        ({"temperature": 9}, grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
        ({"max_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        ({"previous_response_id": "none"}, grpc.StatusCode.NOT_FOUND, "none"),
        ({"tools": [collections_search(["c"])]}, grpc.StatusCode.INVALID_ARGUMENT, "collections_search"),
        ({"search_parameters": SearchParameters(max_search_results=99)}, grpc.StatusCode.INVALID_ARGUMENT, "max_search_results"),
        ({"messages": [x.user("see", x.image("https://i.test/x.png"))]}, grpc.StatusCode.INVALID_ARGUMENT, "messages[0].content"),
    ],
)  # fmt: skip
def test_bad_requests(client: xai_sdk.Client, settings: dict[str, Any], code: grpc.StatusCode, names: str) -> None:
    chat = client.chat.create(**{"model": "grok-4", "messages": CAPITAL, **settings})
    for call in (chat.sample, lambda: next(chat.stream())):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        found, text = refusal(caught)
        assert found is code
        assert names in text


# ------------------------------------------------------------------------------------------------ aio, and a scripted upstream


def call_frames(*calls: tuple[str, str]) -> bytes:
    made = [{"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}} for index, (name, arguments) in enumerate(calls)]  # fmt: skip
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": made}}]}).encode() + b"\n\n"


@asynccontextmanager
async def scripted(tmp_path: Path, *behaviours: Any) -> AsyncIterator[tuple[xai_sdk.AsyncClient, Upstream, Server]]:
    async with upstream(*behaviours) as box:
        with running(tmp_path / "home", config=to_upstream(box.url, retries=0), grpc=True) as server:
            async with _open(server) as client:
                yield client, box, server


async def test_aio_a_round_trip_with_tools(tmp_path: Path) -> None:
    calls = says(call_frames(("get_weather", '{"city":"Oslo"}'), ("get_weather", "")), ending(9, 3, "tool_calls"))
    async with scripted(tmp_path, calls, says(piece("Rain."), ending(20, 1))) as (client, box, _):
        chat = client.chat.create(model="grok-4", messages=[x.user("Weather?")], tools=[TOOL], parallel_tool_calls=True)
        async for response, _ in chat.stream():  # noqa: B007
            pass
        assert [get_tool_call_type(call) for call in response.tool_calls] == ["client_side_tool"] * 2
        assert [call.function.arguments for call in response.tool_calls] == ['{"city":"Oslo"}', "{}"]
        assert response.finish_reason == "REASON_TOOL_CALLS"
        assert response.usage.total_tokens == 12
        chat.append(response)
        chat.append(x.tool_result("rain", response.tool_calls[0].id))
        chat.append(x.tool_result("sun"))
        assert (await chat.sample()).content == "Rain."
        sent = box.bodies[1]["messages"]
        assert [one["role"] for one in sent] == ["user", "assistant", "tool", "tool"]
        assert [one["tool_call_id"] for one in sent[2:]] == ["call_0", "call_1"], "without an id: in order"
        assert [one["id"] for one in sent[1]["tool_calls"]] == ["call_0", "call_1"]


async def test_images_go_to_an_engine_that_sees(tmp_path: Path) -> None:
    png = io.BytesIO()
    PIL.Image.new("RGB", (32, 32)).save(png, "PNG")
    pixel = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    async with upstream(says(piece("A dot."), ending())) as box:
        config = to_upstream(box.url) + 'input = ["text", "image"]\n'
        with running(tmp_path / "home", config=config, grpc=True) as server:
            async with _open(server) as client:
                chat = client.chat.create(model="grok-4", messages=[x.user("What?", x.image(pixel, detail="low"))])
                assert (await chat.sample()).content == "A dot."
    text, image = box.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    assert (image["image_url"]["url"], image["image_url"]["detail"]) == (pixel, "low")


async def test_aio_sample_batch_defer_and_models(tmp_path: Path) -> None:
    async with scripted(tmp_path, says(piece("a"), piece("b", 1), ending(choices=2)), says(piece("later"), ending())) as (client, _, _):  # fmt: skip
        chat = client.chat.create(model="grok-4", messages=[x.user("hi")])
        assert [one.content for one in await chat.sample_batch(2)] == ["a", "b"]
        assert (await chat.defer()).content == "later"
        assert [model.name for model in await client.models.list_language_models()] == ["grok-4"]


async def test_pieces_come_as_they_are_made(tmp_path: Path) -> None:
    """The next one is made only once the client has the last. (Pieces that a client is too slow for share a chunk.)"""
    words = ["one ", "two ", "three ", "four"]
    taken = asyncio.Semaphore(1)
    async with scripted(tmp_path, says_when(taken, *map(piece, words), ending())) as (client, _, _):
        said = []
        async with asyncio.timeout(60):
            async for _, chunk in client.chat.create(model="grok-4", messages=[x.user("hi")]).stream():
                if chunk.content:
                    said.append(chunk.content)
                    taken.release()
        assert said == words


async def test_cancellation_reaches_the_upstream(tmp_path: Path) -> None:
    async with scripted(tmp_path, hangs_after(piece("one"))) as (client, box, server):
        chat = client.chat.create(model="grok-4", messages=[x.user("hi")])
        said: list[str] = []

        async def read() -> None:
            async for _, chunk in chat.stream():
                said.append(chunk.content)

        async with asyncio.timeout(60):
            streamed = asyncio.ensure_future(read())
            while not said:
                await asyncio.sleep(0.01)
            streamed.cancel()
            await box.gone.wait()
            box.gone.clear()
            whole = asyncio.ensure_future(chat.sample())
            while len(box.bodies) < 2:
                await asyncio.sleep(0.01)
            whole.cancel()
            await box.gone.wait()
            while [row["status"] for row in await asyncio.to_thread(server.usage)] != ["cancelled", "cancelled"]:
                await asyncio.sleep(0.05)
        assert said == ["one"]


async def test_a_deadline_ends_the_work(tmp_path: Path) -> None:
    async with scripted(tmp_path, hangs_after(piece("one"))) as (_, box, server):
        for timeout_s in (0.5, 5, 30):  # one of which is enough for the request to reach the upstream
            short = xai_sdk.AsyncClient(api_key=server.key, api_host=f"localhost:{server.grpc_port}", timeout=timeout_s)
            with pytest.raises(grpc.RpcError) as caught:
                await short.chat.create(model="grok-4", messages=[x.user("hi")]).sample()
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await short.close()
            if box.bodies:
                break
        async with asyncio.timeout(60):
            await box.gone.wait()


async def test_a_break_in_the_middle_is_a_status(tmp_path: Path) -> None:
    from tests.fake_upstream import dies_after

    async with scripted(tmp_path, dies_after(piece("one"))) as (client, _, _):
        said = []
        with pytest.raises(grpc.RpcError) as caught:
            async for _, chunk in client.chat.create(model="grok-4", messages=[x.user("hi")]).stream():
                said.append(chunk.content)
        assert said == ["one"]
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_deferred_request_that_fails_says_why(tmp_path: Path) -> None:
    async with scripted(tmp_path, refuses(400, {"error": {"message": "no such thing", "param": "seed"}})) as (
        client,
        _,
        _,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await client.chat.create(model="grok-4", messages=[x.user("hi")]).defer()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no such thing" in caught.value.details()


async def test_big_messages(tmp_path: Path) -> None:
    """5 MiB in and out; over 20 MiB is refused by name."""
    text = "x" * (5 << 20)
    async with scripted(tmp_path, says(piece(text), ending())) as (client, box, _):
        response = await client.chat.create(model="grok-4", messages=[x.user(text)], max_tokens=5).sample()
        assert response.content == text
        assert box.bodies[0]["messages"][0]["content"] == text
        with pytest.raises(grpc.RpcError) as caught:
            await client.chat.create(model="grok-4", messages=[x.user("x" * (21 << 20))]).sample()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_open_stream_is_drained_and_told(tmp_path: Path) -> None:
    async with upstream(hangs_after(piece("one"))) as box:
        config = "[server]\ndrain_s = 1\n" + to_upstream(box.url)
        with running(tmp_path / "home", config=config, grpc=True) as server:
            async with _open(server) as client:
                said = []
                with pytest.raises(grpc.RpcError) as caught:
                    async for _, chunk in client.chat.create(model="grok-4", messages=[x.user("hi")]).stream():
                        said.append(chunk.content)
                        server.process.terminate()
            assert said == ["one"]
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "shutting down" in caught.value.details()
            assert await asyncio.to_thread(server.process.wait, 60) == 0


@asynccontextmanager
async def _open(server: Server) -> AsyncIterator[xai_sdk.AsyncClient]:
    client = xai_sdk.AsyncClient(api_key=server.key, api_host=f"localhost:{server.grpc_port}")
    try:
        yield client
    finally:
        await client.close()
