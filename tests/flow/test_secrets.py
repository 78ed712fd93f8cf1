"""Planted secrets on really started servers whose parts are made to fail, so that tracebacks hold them: they are found nowhere."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from aiohttp import web

from jubal.config import password_in
from jubal.core.hiding import Concealed, hide, sure
from tests.fake_upstream import Behaviour, Upstream, upstream
from tests.flow.test_security import Secrets, quiet
from tests.redis_server import redis_server
from tests.server import ECHO, Server, jubal, start

CHAT = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


@asynccontextmanager
async def planted(
    home: Path, secrets: Secrets, url: str, *, faults: str = "", more: str = "", **keys: object
) -> AsyncIterator[Server]:
    """A server with a planted key for its upstream, on the level of logging that tells most."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {"retries": 0, **keys}.items())
    config = (
        f'[engines.box]\nkind = "openai"\nbase_url = "{url}"\napi_key = "{secrets.new("upstream-key")}"\n{lines}'
        f'[models."grok-4"]\nengine = "box"\nupstream = "up"\n[server]\naccess_log = true\n{more}'
    )
    server = await asyncio.to_thread(
        start, home, config=config, args=("--log-level", "debug"), grpc=True, FAULTS=faults
    )
    secrets.add("first key", server.key)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            await asyncio.to_thread(server.stop)


def look_everywhere(server: Server, secrets: Secrets, *answers: object, commands: bool = True) -> None:
    """In what the server wrote, stored, answered, was started with, and what commands beside it say (which take a second each)."""
    for answer in answers:
        secrets.none_in("an answer", repr(answer))
    secrets.none_in("the log", quiet(server))
    for file in server.home.rglob("*"):
        if file.is_file() and file.name not in ("jubal.toml", "serve.log", "first-key"):
            secrets.none_in(str(file), file.read_bytes())
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(server.process.pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                secrets.none_in("a command line", " ".join(one.cmdline()))
    for command in (("doctor",), ("keys", "list"), ("usage",), ("models", "list")) if commands else ():
        done = jubal(*command, "--json", home=server.home, JUBAL_CONFIG=str(server.config))
        secrets.none_in(" ".join(command), done.stdout + done.stderr)


# ------------------------------------------------------------------------------------------------ upstreams that repeat


def frame(chunk: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _key(request: web.Request) -> str:
    return request.headers.get("authorization", "").rpartition(" ")[2]


def repeats(*bodies: str, status: int = 200, kind: str = "text/event-stream", **headers: str) -> Behaviour:
    """Sends these pieces, KEY replaced by the key that came."""

    async def behave(_: Upstream, request: web.Request) -> web.StreamResponse:
        told = {name.replace("_", "-"): value.replace("KEY", _key(request)) for name, value in headers.items()}
        response = web.StreamResponse(status=status, headers={"content-type": kind, **told})
        await response.prepare(request)
        for body in bodies:
            await response.write(body.replace("KEY", _key(request)).encode())
            await asyncio.sleep(0.02)
        await response.write_eof()
        return response

    return behave


def cut(body: str) -> Behaviour:
    """Sends it in two pieces, cut in the middle of the key."""

    async def behave(_: Upstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        head, _, tail = body.partition("KEY")
        key = _key(request)
        await response.write((head + key[: len(key) // 2]).encode())
        await asyncio.sleep(0.1)
        await response.write((key[len(key) // 2 :] + tail).encode())
        await response.write_eof()
        return response

    return behave


def says(text: str) -> str:
    return frame({"choices": [{"index": 0, "delta": {"content": text}}]}).decode()


END = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).decode() + "data: [DONE]\n\n"
WHOLE = json.dumps({"choices": [{"index": 0, "message": {"content": "you sent KEY"}, "finish_reason": "stop"}]})
REPEATING: dict[str, Behaviour] = {
    "an answer's text": repeats(says("you sent KEY"), END),
    "a key that is cut in two": cut(says("you sent KEY") + END),
    "a whole answer": repeats(WHOLE, kind="application/json"),
    "an error in a stream": repeats(frame({"error": {"message": "bad key KEY", "code": 401}}).decode()),
    "an error after some text": repeats(says("some"), frame({"error": {"message": "bad key KEY"}}).decode()),
    "an error in a whole answer": repeats(json.dumps({"error": {"message": "KEY is bad"}}), kind="application/json"),
    "no JSON in a stream": repeats("data: {KEY\n\n"),
    "no JSON at all": repeats("<h1>Bearer KEY</h1>", kind="application/json"),
    "a call": repeats(
        frame({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "KEY", "function": {"name": "KEY", "arguments": '{"a": "KEY"}'}}]}}]}).decode(),
        END,
    ),
    "400": repeats(json.dumps({"error": {"message": "KEY"}}), status=400, kind="application/json"),
    "a bare 400": repeats("KEY", status=400, kind="text/plain"),
    "404": repeats(json.dumps({"error": "KEY"}), status=404, kind="application/json"),
    "500": repeats(json.dumps({"detail": "KEY"}), status=500, kind="application/json"),
    "503 and a header": repeats(json.dumps({"message": "KEY"}), status=503, kind="application/json", retry_after="KEY"),
    "a redirect": repeats("", status=307, location="http://127.0.0.1:9/?KEY"),
    "a strange kind": repeats("KEY", kind="text/KEY"),
}  # fmt: skip


async def test_a_key_that_an_upstream_repeats_reaches_nobody(tmp_path: Path) -> None:
    secrets = Secrets()
    behaviours = [behaviour for behaviour in REPEATING.values() for _ in range(2)]
    async with (
        upstream(*behaviours) as there,
        planted(tmp_path / "home", secrets, there.url, breaker_failures=1000) as server,
    ):
        got = []
        for case in REPEATING:
            for stream in (True, False):
                status, headers, body = await asyncio.to_thread(server.chat, CHAT, stream=stream)
                secrets.none_in(case, f"{headers} {body!r}")
                got.append((case, status, body))
        assert "you sent [hidden]" in str(got[0]), "the rest of the answer is as it was"
        assert "you sent [hidden]" in str(got[2])
        assert len(there.bodies) == len(behaviours)
        for path, body in (
            ("/v1/embeddings", {"model": "grok-4", "input": "a"}),
            ("/v1/tokenize-text", {"model": "grok-4", "text": "a"}),
        ):
            got.append((path, *await asyncio.to_thread(server.request, "POST", path, body)))
        await asyncio.to_thread(look_everywhere, server, secrets, got)


async def test_a_password_in_an_upstreams_address_is_as_secret(tmp_path: Path) -> None:
    secrets = Secrets()
    password = secrets.new("password")
    async with upstream(repeats(says("you sent KEY"), END), repeats("KEY", status=500)) as there:
        address = there.url.replace("http://", f"http://user:{password}@")
        config = (
            f'[engines.box]\nkind = "openai"\nbase_url = "{address}"\nretries = 0\n[models."grok-4"]\nengine = "box"\n'
        )
        server = await asyncio.to_thread(start, tmp_path / "home", config=config, args=("--log-level", "debug"))
        try:
            secrets.add("basic", base64.b64encode(f"user:{password}".encode()).decode())
            answers = [await asyncio.to_thread(server.chat, CHAT, stream=stream) for stream in (True, False)]
            assert b"you sent [hidden]" in answers[0][2]
            await asyncio.to_thread(look_everywhere, server, secrets, answers, commands=False)
        finally:
            await asyncio.to_thread(server.stop)


# ------------------------------------------------------------------------------------------------ tracebacks

FAULTS = {
    "the engine": "jubal.engines.openai_compat:OpenAICompatEngine._call",
    "its decoder": "jubal.engines.openai_compat:ChatDecoder._choice",
    "its call": "jubal.engines.http_client:HttpClient.post",
    "the pipeline": "jubal.serving.pipeline:Pipeline.run",
    "who comes in": "jubal.accounts.keys:KeyRing.identify",
    "money": "jubal.serving.charging:Charging.must_hold",
    "the parser": "jubal.wire.openai_chat:OpenAIChat.parse",
    "the group commit": "jubal.accounts.usage:record",
    "the loop": "jubal.agent.loop:run",
    "a tool": "jubal.tools.mcp:McpSession._client",
    "the store": "jubal.accounts.store:Store._in_thread",
}


@pytest.mark.parametrize("case", FAULTS)
async def test_a_part_that_fails_with_a_secret_in_its_words(tmp_path: Path, case: str) -> None:
    secrets = Secrets()
    module, _, name = FAULTS[case].partition(":")
    if not _is_there(module, name):
        pytest.fail(f"{FAULTS[case]} has another name now")
    async with (
        upstream(*[repeats(says("a"), END)] * 20) as there,
        planted(tmp_path / "home", secrets, there.url, faults=FAULTS[case]) as server,
    ):
        mcp = {
            "type": "mcp",
            "server_label": "box",
            "server_url": "http://127.0.0.1:9/mcp",
            "authorization": f"Bearer {secrets.new('mcp-authorization')}",
        }
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", {**CHAT, "stream": True}),
            ("/v1/messages", CHAT),
            ("/v1/responses", {"model": "grok-4", "input": "hi", "max_output_tokens": 8, "tools": [mcp]}),
        ]
        answers = [await asyncio.to_thread(server.request, "POST", path, body) for path, body in asked]
        answers.append(await asyncio.to_thread(_over_grpc, server))
        if case != "a tool":  # whose fault is told to the model
            assert answers[0][0] == 500
            assert "forced in" in server.log.read_text()
        await asyncio.to_thread(look_everywhere, server, secrets, answers, commands=case == "the engine")


def _is_there(module: str, name: str) -> bool:
    import importlib

    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


def _over_grpc(server: Server) -> Any:
    from xai_sdk.proto import chat_pb2

    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content=[chat_pb2.Content(text="hi")])
    request = chat_pb2.GetCompletionsRequest(model="grok-4", messages=[message], max_tokens=8)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/xai_api.Chat/GetCompletion")
        try:
            return call(request.SerializeToString(), metadata=(("authorization", f"Bearer {server.key}"),), timeout=30)
        except grpc.RpcError as error:
            return str(error)


async def test_a_row_that_postgresql_refuses_is_not_shown(tmp_path: Path, postgres_url: str) -> None:
    """It tells the whole row in the detail of its error."""
    import psycopg

    secrets = Secrets()
    prompt = secrets.new("a-private-prompt")
    store = f'[store]\nurl = "{postgres_url}"\n'
    async with (
        upstream(*[repeats(says("a"), END)] * 20) as there,
        planted(tmp_path / "home", secrets, there.url, more=store) as server,
    ):
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute("ALTER TABLE answers ADD CHECK (false) NOT VALID")
            admin.execute("ALTER TABLE usage ADD CHECK (false) NOT VALID")
        answers = []
        for path, body in (
            ("/v1/responses", {"model": "grok-4", "input": prompt, "max_output_tokens": 8}),
            ("/v1/chat/completions", {**CHAT, "user": prompt, "messages": [{"role": "user", "content": prompt}]}),
            ("/v1/chat/completions", {**CHAT, "deferred": True, "messages": [{"role": "user", "content": prompt}]}),
        ):
            answers.append(await asyncio.to_thread(server.request, "POST", path, body))
        assert answers[0][0] >= 500
        assert "CheckViolation" in server.log.read_text(), "what happened is told"
        await asyncio.to_thread(look_everywhere, server, secrets, answers)


async def test_the_password_of_a_redis_that_goes_away(tmp_path: Path) -> None:
    secrets = Secrets()
    with redis_server(tmp_path / "redis") as redis:
        url = redis.url.replace("redis://", f"redis://default:{secrets.new('redis')}@")
        async with (
            upstream(*[repeats(says("a"), END)] * 20) as there,
            planted(tmp_path / "home", secrets, there.url, more=f'[limits]\nurl = "{url}"\n') as server,
        ):
            key = (await asyncio.to_thread(server.command, "keys", "create", "--name", "k", "--rpm", "5"))["key"]
            secrets.add("another key", key)
            answers = [await asyncio.to_thread(server.request, "POST", "/v1/chat/completions", CHAT, key=key)]
            redis.stop()
            answers.append(await asyncio.to_thread(server.request, "POST", "/v1/chat/completions", CHAT, key=key))
            await asyncio.to_thread(look_everywhere, server, secrets, answers)


def test_a_log_that_can_not_be_written_costs_no_answer(tmp_path: Path) -> None:
    """A full disk: `/dev/full` answers each write as one would."""
    import subprocess

    from tests import leash
    from tests.server import LEASHED, _until_answering, environment, free_port

    home = tmp_path / "home"
    home.mkdir()
    (home / "jubal.toml").write_text(ECHO + "[server]\naccess_log = true\n")
    port = free_port()
    with Path("/dev/full").open("w") as full, (home / "out").open("w") as out:
        arguments = ["serve", "--config", str(home / "jubal.toml"), "--port", str(port), "--grpc-port", "0"]
        process = subprocess.Popen(
            [*LEASHED, *arguments, "--log-level", "debug"],
            stdin=leash.held(), stdout=out, stderr=full, env=environment(home), text=True, start_new_session=True,
        )  # fmt: skip
    server = Server(home, process, port, "", home / "out", home / "jubal.toml")
    try:
        _until_answering(server, True)
        server.key = (home / "first-key").read_text().strip()
        assert server.chat()[0] == 200
        assert server.request("GET", "/nowhere")[0] == 404
        assert server.request("POST", "/v1/chat/completions", b"{")[0] == 400
        assert server.stop() == 0
    finally:
        server.kill()


# ------------------------------------------------------------------------------------------------ how


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Illegal header b'Bearer abcdef123456'", "Illegal header b'Bearer [hidden]'"),
        ('{"authorization": "Basic dXNlcjpwYXNz"}', '{"authorization": "Basic [hidden]"}'),
        ("redis://me:pass@host:1/0 refused", "redis://[hidden]@host:1/0 refused"),
        ("http://token@host/x", "http://[hidden]@host/x"),
        ("xai-" + "a" * 64 + ".", "xai-[hidden]."),
        ("xai-token-" + "a" * 64, "xai-[hidden]"),
        ("xai-...abcd and xai-sdk-python", "xai-...abcd and xai-sdk-python"),
        ("the bearer of it", "the bearer of it"),
        ("https://host/a@b", "https://host/a@b"),
        ("planted-value-here", "[hidden]-here"),
    ],
)
def test_what_is_hidden(text: str, shown: str) -> None:
    assert hide(text, sure(["planted-value", "EMPTY", None])) == shown


def test_a_short_key_is_no_secret_in_an_answer() -> None:
    """It may be a word: `ollama`, `EMPTY`."""
    assert not Concealed("ollama", None, "")
    assert Concealed("ollama").out_of(b"an ollama") == b"an ollama"
    assert (
        Concealed("a-long-secret-key", "a-long-secret-key-with-more").out_of(b"<a-long-secret-key-with-more>")
        == b"<[hidden]>"
    )
    assert "secret" not in repr(Concealed("a-long-secret-key"))


def test_passwords_in_addresses() -> None:
    assert password_in("redis://:p%40ss@h:1/0") == ("p%40ss", "p@ss")
    assert password_in("postgresql://u:p@q@h/d") == ("p@q", "p@q")
    assert password_in("http://h:80/a") == ()
    assert password_in("sqlite:///a:b@c") != ()  # nothing is lost where a path is taken for one
