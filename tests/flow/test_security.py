"""What others may learn from a server, and which pages, origins and characters get through: on really started servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import socket
import sqlite3
import ssl
import time
import warnings
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from tests.conftest import home_with_models
from tests.fake_upstream import Behaviour, Upstream, upstream
from tests.flow.test_security_connections import PATIENCE_S, UUID, exchange, post
from tests.server import ECHO, Server, free_port, jubal, running

ORIGIN = "https://app.example"
MORE = f'[server]\ncors_origins = ["{ORIGIN}", "http://localhost:3000"]\naccess_log = true\nbody_limit_mb = 1\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("security") / "home", config=ECHO + MORE) as started:
        yield started


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With defaults."""
    with running(tmp_path_factory.mktemp("plain") / "home", config=ECHO) as started:
        yield started


# ------------------------------------------------------------------------------------------------ headers and ids

ERRORS: list[tuple[str, str, Any, dict[str, str], int]] = [
    ("GET", "/nowhere", None, {}, 404),
    ("GET", "/v1/models/none", None, {}, 404),
    ("GET", "/v1/responses/a%00b", None, {}, 404),
    ("PUT", "/v1/chat/completions", None, {}, 405),
    ("OPTIONS", "/v1/chat/completions", None, {}, 405),
    ("POST", "/v1/chat/completions", b"{", {}, 400),
    ("POST", "/v1/chat/completions", b" " * (2 << 20), {}, 413),
    ("POST", "/v1/chat/completions", b"x", {"content-type": "multipart/form-data"}, 415),
    ("POST", "/v1/messages", b"{}", {"authorization": "Bearer nobody"}, 401),
    ("GET", "/health", None, {}, 200),
    ("GET", "/openapi.json", None, {}, 200),
    ("GET", "/v1/models", None, {}, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), ERRORS)
def test_every_answer_has_an_id_and_is_kept_by_no_cache(
    server: Server, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    got, answered, _ = server.request(
        method, path, body, key=None if headers.get("authorization") else "", headers=headers
    )
    assert got == status
    assert UUID.fullmatch(answered["x-request-id"])
    assert answered["x-content-type-options"] == "nosniff"
    assert answered["cache-control"] == "no-store"
    assert "server" not in answered


def test_a_stream_has_them_too_and_its_id_is_in_the_usage_row(server: Server) -> None:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    status, headers, _ = server.request("POST", "/v1/chat/completions", body, headers={"x-request-id": "mine"})
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"] != "mine"
    assert headers["x-request-id"] in {row["request_id"] for row in server.usage()}


def test_the_access_log_names_the_key_and_never_shows_it(server: Server) -> None:
    sent = {"x-client-request-id": "client-7"}
    _, headers, _ = server.request("GET", "/v1/models?api_key=xai-in-the-query", headers=sent)
    server.request("GET", "/a%0Ab", headers={"x-request-id": "no spaces allowed"})
    line = access_lines(server)[headers["x-request-id"]]
    assert (line["event"], line["method"], line["path"], line["status"]) == ("request", "GET", "/v1/models", 200)
    assert line["client_request_id"] == "client-7"
    assert line["duration_ms"] >= 0
    assert line["key_id"] in {key["id"] for key in server.command("keys", "list")}
    broken = next(one for one in access_lines(server).values() if one["path"] == "/a\nb")
    assert "client_request_id" not in broken
    assert server.key not in quiet(server)
    assert "in-the-query" not in server.log.read_text()


def access_lines(server: Server) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return {line["request_id"]: line for line in lines if line.get("event") == "request"}


def quiet(server: Server) -> str:
    """What a server printed, without the two lines in which a first start shows the new key to the person who started it."""
    lines = server.log.read_text().splitlines()
    assert sum(line.startswith(("API key: ", "curl ")) for line in lines) == 2
    return "\n".join(line for line in lines if not line.startswith(("API key: ", "curl ")))


def test_without_the_setting_requests_are_not_logged(plain: Server) -> None:
    plain.chat(messages=[{"role": "user", "content": "a prompt that nobody logs"}])
    plain.chat(model="none")
    assert access_lines(plain) == {}
    assert "a prompt that nobody logs" not in plain.log.read_text()


# ------------------------------------------------------------------------------------------------ other origins


def preflight(server: Server, origin: str, path: str = "/v1/chat/completions") -> tuple[int, dict[str, str]]:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    status, headers, _ = server.request("OPTIONS", path, key=None, headers=asked)
    return status, headers


def cors(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def test_other_origins_are_closed_by_default(plain: Server) -> None:
    status, headers = preflight(plain, ORIGIN)
    assert status == 405
    assert cors(headers) == {}
    assert cors(plain.request("GET", "/v1/models", headers={"origin": ORIGIN})[1]) == {}


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_a_named_origin_may_call(server: Server, origin: str) -> None:
    status, headers = preflight(server, origin)
    assert status == 200
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["vary"] == "origin"
    for path, expected in (("/v1/models", 200), ("/nowhere", 404)):
        status, headers, _ = server.request("GET", path, headers={"origin": origin})
        assert status == expected
        assert headers["access-control-allow-origin"] == origin
        assert "x-request-id" in headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in headers
        assert headers["vary"] == "origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.evil",
        "http://app.example",
        "https://app.example:444",
        "https://APP.example",
        "null",
        "*",
        "https://evil",
    ],
)
def test_any_other_origin_may_not(server: Server, origin: str) -> None:
    status, headers = preflight(server, origin)
    assert status == 405
    assert cors(headers) == {}
    _, headers, _ = server.request("GET", "/v1/models", headers={"origin": origin})
    assert cors(headers) == {}
    assert headers["vary"] == "origin", "a cache could give this answer to the origin that may"


def test_a_preflight_with_odd_header_names_is_refused(server: Server) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "a\tb;c"}
    assert server.request("OPTIONS", "/v1/models", key=None, headers=asked)[0] == 405


# ------------------------------------------------------------------------------------------------ TLS


def make_certificate(folder: Path, name: str = "cert") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jubal test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    key_file.write_bytes(key.private_bytes(*plain, serialization.NoEncryption()))
    sealed = serialization.BestAvailableEncryption(b"passphrase")
    (folder / f"{name}.sealed.key").write_bytes(key.private_bytes(*plain, sealed))
    return cert_file, key_file


def test_tls(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    cert, _ = make_certificate(home)
    config = ECHO + '[server]\ntls_cert = "cert.pem"\ntls_key = "cert.key"\n'
    with running(home, config=config) as server:
        port = server.port
        until = time.monotonic() + PATIENCE_S
        while f"https://127.0.0.1:{port}/v1" not in server.log.read_text():
            assert time.monotonic() < until, server.log.read_text()
            time.sleep(0.05)
        trusting = ssl.create_default_context(cafile=str(cert))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            trusting.minimum_version = trusting.maximum_version = version
            assert status_over(port, trusting) == 200
        old = ssl.create_default_context(cafile=str(cert))
        old.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            status_over(port, old)
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as clear, contextlib.suppress(ConnectionError):
            clear.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1" not in clear.recv(100)
        said = jubal("chat", "-m", "over TLS", "--url", f"https://127.0.0.1:{port}/v1", home=home)
        assert said.returncode == 1, "a certificate that nobody vouches for was trusted"
        (home / "here.toml").write_text(config.replace("[server]", f"[server]\nport = {port}"))
        said = jubal("chat", "-m", "over TLS", home=home, JUBAL_CONFIG=str(home / "here.toml"))
        assert (said.returncode, said.stdout.strip()) == (0, "over TLS"), said.stderr
        found = jubal("doctor", "--json", home=home, JUBAL_CONFIG=str(home / "here.toml")).stdout
        assert f"runs on port {port}: ok" in found


def status_over(port: int, context: ssl.SSLContext) -> int:
    import http.client

    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_S, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("none.pem", "one.key", "server.tls_cert"),
        ("one.pem", "none.key", "server.tls_key"),
        ("one.pem", "two.key", "does not belong"),
        ("one.pem", "one.sealed.key", "encrypted"),
        ("junk.pem", "one.key", "not a PEM file"),
        ("one.key", "one.key", "no certificate"),
        ("one.pem", "one.pem", "no certificate"),
    ],
)
def test_wrong_certificate_files_are_named(tmp_path: Path, cert: str, key: str, said: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("one", "two"):
        make_certificate(home, name)
    (home / "junk.pem").write_text("junk")
    config = home / "jubal.toml"
    config.write_text(ECHO + f'[server]\nport = {free_port()}\ntls_cert = "{cert}"\ntls_key = "{key}"\n')
    done = jubal("serve", "--config", str(config), home=home)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "PRIVATE" not in done.stderr


# ------------------------------------------------------------------------------------------------ odd bodies

BOMBS: dict[str, bytes] = {
    "deep lists": b'{"model":"grok-4","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"model":"grok-4","messages":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "a huge number": b'{"model":"grok-4","messages":[{"role":"user","content":"a"}],"max_tokens":1'
    + b"0" * 100_000
    + b"}",
    "a huge exponent": b'{"model":"grok-4","messages":[{"role":"user","content":"a"}],"temperature":1e400000}',
    "NaN": b'{"model":"grok-4","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    "invalid UTF-8": b'{"model":"grok-4","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "half a surrogate pair": b'{"model":"grok-4","messages":[{"role":"user","content":"a\\ud800b"}]}',
    "a surrogate in UTF-8": b'{"model":"grok-4","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "UTF-16": '{"model":"grok-4"}'.encode("utf-16"),
    "a NUL outside of strings": b'{"model":"grok-4",\0"messages":[]}',
    "no object": b"123",
    "a wrong type under a long key": b'{"model":1,"' + b"k" * 100_000 + b'":1}',
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize("case", BOMBS)
def test_bodies_made_to_hurt(plain: Server, case: str, path: str) -> None:
    status, _, body = plain.request("POST", path, BOMBS[case])
    assert status in (400, 422), body
    assert len(json.dumps(body)) < 2000


def test_of_equal_keys_the_last_counts(plain: Server) -> None:
    """As in every JSON parser of the field, so that no filter on the way reads another one."""
    raw = b'{"model":"none","model":"grok-4","messages":[{"role":"user","content":"a","content":"b"}]}'
    status, _, body = plain.request("POST", "/v1/chat/completions", raw)
    assert status == 200
    assert body["choices"][0]["message"]["content"] == "b"


NUL = "a\0b"


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def on_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("odd") / "home"
    store = ""
    with contextlib.ExitStack() as stack:
        if request.param == "postgres":
            import psycopg

            cluster = request.getfixturevalue("postgres")
            with psycopg.connect(cluster.get_uri(), autocommit=True) as admin:
                admin.execute("DROP DATABASE IF EXISTS odd WITH (FORCE)")
                admin.execute("CREATE DATABASE odd")
            store = f'[store]\nurl = "{cluster.get_uri(database="odd")}"\n'
        yield stack.enter_context(running(home, config=ECHO + store))


@pytest.mark.parametrize("text", [NUL, "\u202e\ufeff\x1b[31m", "\U0001f600" * 100, "\x7f\x01"])
def test_odd_characters_reach_the_store_and_come_back(on_store: Server, text: str) -> None:
    """PostgreSQL takes no NUL in a text."""
    body = {"messages": [{"role": "user", "content": text, "name": text}], "user": text, "metadata": {"k": text}}
    status, _, got = on_store.chat(body)
    assert status in (200, 400, 422), got
    if status == 200:
        assert got["choices"][0]["message"]["content"] == text
    for path, asked in {
        "/v1/chat/completions": {**body, "model": text},
        "/v1/responses": {"model": "grok-4", "input": text, "user": text, "store": True},
        "/v1/messages": {"model": text, "max_tokens": 1, "messages": [{"role": "user", "content": text}]},
        "/v1/embeddings": {"model": text, "input": text},
    }.items():
        assert on_store.request("POST", path, asked)[0] < 500
    previous = {"model": "grok-4", "input": "go on", "previous_response_id": text}
    assert on_store.request("POST", "/v1/responses", previous)[0] in (400, 404)
    deferred = {"model": "grok-4", "messages": body["messages"], "deferred": True}
    assert on_store.request("POST", "/v1/chat/completions", deferred)[0] < 500


@pytest.mark.parametrize(
    "path", ["/v1/responses/", "/v1/models/", "/v1/chat/deferred-completion/", "/v1/language-models/", "/"]
)
@pytest.mark.parametrize("odd", ["%00", "a%00b", "%ff%fe", "%ED%A0%80", "..%2f..%2fetc", "%0d%0aX: y"])
def test_odd_paths(on_store: Server, path: str, odd: str) -> None:
    got = exchange(
        on_store,
        post(on_store, b"", "Connection: close", path=path + odd).replace(b"POST", b"GET", 1).replace(b" y ", b"y ", 1),
    )
    assert got.status in (400, 404)
    assert "x" not in got.headers


# ------------------------------------------------------------------------------------------------ secrets


class Secrets:
    """Planted values that must be found nowhere."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def new(self, what: str) -> str:
        value = f"planted-{what}-{os.urandom(9).hex()}"
        self.found[value] = what
        return value

    def add(self, what: str, value: str) -> None:
        self.found[value] = what

    def none_in(self, where: str, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        leaked = {what for value, what in self.found.items() if value.encode() in raw}
        assert not leaked, f"{where} shows {leaked}: {raw[:3000]!r}"


def repeats_the_key(status: int) -> Behaviour:
    """An upstream that puts the key it was sent into its error message, as some do."""

    async def behave(_: Upstream, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        return web.json_response({"error": {"message": f"Incorrect API key provided: {key}"}}, status=status)

    return behave


async def test_planted_secrets_are_found_nowhere(tmp_path: Path) -> None:
    secrets = Secrets()
    upstream_key, env_key, url_password = secrets.new("api-key"), secrets.new("api-key-env"), secrets.new("url")
    async with upstream(repeats_the_key(400), repeats_the_key(401), repeats_the_key(500)) as box:
        address = box.url.replace("http://", f"http://user:{url_password}@")
        config = (
            f'[engines.box]\nkind = "openai"\nbase_url = "{box.url}"\napi_key = "{upstream_key}"\nretries = 0\nhealth_interval_s = 0.2\n'
            f'[engines.env]\nkind = "openai"\nbase_url = "{address}"\nretries = 0\n'
            f'[engines.variable]\nkind = "openai"\nbase_url = "{box.url}"\napi_key_env = "PLANTED_KEY"\nretries = 0\n'
            '[engines.local]\nkind = "echo"\n[models."grok-4"]\nengine = "box"\n[models.second]\nengine = "env"\n[models.third]\nengine = "variable"\n'
            '[models.echo]\nengine = "local"\n[server]\naccess_log = true\n'
        )
        starting = asyncio.to_thread(_start_debug, tmp_path / "home", config, env_key)
        server = await starting
        try:
            first = server.key
            await asyncio.to_thread(_use_everything, server, secrets)
        finally:
            await asyncio.to_thread(_stop, server)
        log = server.log.read_text()
        assert "fault of ours" not in log, log
        secrets.add("first key", first)
        secrets.none_in("the log", quiet(server))
        for file in (tmp_path / "home").rglob("*"):
            if file.is_file() and file.name not in ("jubal.toml", "serve.log", "first-key"):
                secrets.none_in(str(file), file.read_bytes())


def _start_debug(home: Path, config: str, env_key: str) -> Server:
    from tests.server import start

    return start(home, config=config, args=("--log-level", "debug"), wait=False, PLANTED_KEY=env_key)


def _stop(server: Server) -> None:
    if server.process.poll() is None:
        server.stop(PATIENCE_S)


def _use_everything(server: Server, secrets: Secrets) -> None:
    until = time.monotonic() + PATIENCE_S
    while "curl " not in server.log.read_text() or not server.key:
        assert time.monotonic() < until, server.log.read_text()
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            server.key = (server.home / "first-key").read_text().strip()
    keys = [
        server.command("keys", "create", "--name", f"k{n}", *more)["key"]
        for n, more in enumerate(((), ("--management",)))
    ]
    for number, key in enumerate(keys):
        secrets.add(f"created key {number}", key)
    secret, management = keys
    wrong = secrets.new("unknown-key")
    mcp = {
        "type": "mcp",
        "server_label": "box",
        "server_url": f"http://user:{secrets.new('mcp-url')}@127.0.0.1:9/mcp",
        "authorization": secrets.new("mcp-authorization"),
        "headers": {"X-Token": secrets.new("mcp-header")},
    }
    chat = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    asked: list[tuple[str, str, Any, dict[str, str]]] = [
        ("POST", "/v1/chat/completions", {**chat, "model": "grok-4"}, {}),
        ("POST", "/v1/chat/completions", {**chat, "model": "grok-4"}, {}),
        ("POST", "/v1/chat/completions", {**chat, "model": "grok-4", "stream": True}, {}),
        ("POST", "/v1/chat/completions", {**chat, "model": "second"}, {}),
        ("POST", "/v1/chat/completions", {**chat, "model": "third"}, {}),
        ("POST", "/v1/chat/completions", chat, {}),
        ("POST", "/v1/responses", {"model": "echo", "input": "hi", "tools": [mcp]}, {}),
        ("POST", "/v1/responses", {"model": "echo", "input": "hi", "tools": [{**mcp, "server_url": 1}]}, {}),
        (
            "POST",
            "/v1/responses",
            {"model": "echo", "input": "hi", "tools": [{**mcp, "headers": [mcp["headers"]]}]},
            {},
        ),
        ("GET", "/v1/models", None, {}),
        ("GET", "/health", None, {}),
        ("GET", "/openapi.json", None, {}),
        ("GET", "/v1/models", None, {"authorization": f"Bearer {management}"}),
        ("POST", "/v1/chat/completions", chat, {"authorization": f"Bearer {management}"}),
    ]
    for form in ("Bearer {}", "bearer {}", "Basic {}", "{}", "Bearer  {} x", "Bearer {}\t", "Bearer \xe9{}"):
        asked.append(("POST", "/v1/chat/completions", chat, {"authorization": form.format(wrong)}))
        asked.append(("POST", "/v1/messages", {**chat}, {"x-api-key": form.format(wrong)}))
    for method, path, body, headers in asked:
        key = None if headers else secret
        status, answered, got = server.request(method, path, body, key=key, headers=headers)
        assert status != 500, got
        secrets.none_in(f"the answer {status} to {method} {path}", f"{answered} {got}")
    broken = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {wrong}\x00\r\n\r\n".encode()
    secrets.none_in("the parser's answer", repr(exchange(server, broken)))
    for command in (("keys", "list"), ("teams", "list"), ("usage",), ("models", "list"), ("doctor",)):
        done = jubal(*command, "--json", home=server.home, JUBAL_CONFIG=str(server.config), PLANTED_KEY="x")
        secrets.none_in(" ".join(command), done.stdout + done.stderr)


def test_the_store_holds_no_key(plain: Server) -> None:
    """Also not in pages that were freed, or in the write-ahead log."""
    made = [plain.command("keys", "create", "--name", f"stored{n}")["key"] for n in range(3)]
    for key in made:
        assert plain.request("GET", "/v1/models", key=key)[0] == 200
    files = [file for file in plain.home.iterdir() if file.name.startswith("jubal.db")]
    assert any(file.name.endswith("-wal") for file in files)
    for file in files:
        for key in (*made, plain.key):
            assert key.encode() not in file.read_bytes(), file
            assert key.removeprefix("xai-").encode() not in file.read_bytes(), file


def test_a_fault_of_ours_is_told_without_its_cause(tmp_path: Path) -> None:
    """The table that answers are kept in is gone: a fault that nobody has foreseen."""
    with running(tmp_path / "home", config=ECHO, args=("--log-level", "debug")) as server:
        with sqlite3.connect(server.home / "jubal.db", timeout=PATIENCE_S) as database:
            database.execute("DROP TABLE answers")
        status, headers, body = server.request(
            "POST", "/v1/responses", {"model": "grok-4", "input": "a private prompt"}
        )
        assert status >= 500
        told = json.dumps(body)
        assert "answers" not in told
        assert "sqlite" not in told.lower()
        log = quiet(server)
        assert headers["x-request-id"] in log
        assert server.key not in log
        assert "a private prompt" not in log


def test_a_store_that_can_not_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    secrets = Secrets()
    password = secrets.new("postgresql")
    port = free_port()
    config = home / "jubal.toml"
    config.write_text(
        ECHO + f'[server]\nport = {free_port()}\n[store]\nurl = "postgresql://me:{password}@127.0.0.1:{port}/jubal"\n'
    )
    for args in (("serve", "--log-level", "debug"), ("keys", "list", "--json"), ("doctor", "--json")):
        done = jubal(*args, home=home, JUBAL_CONFIG=str(config))
        secrets.none_in(str(args), done.stdout + done.stderr)
        assert done.returncode != 0
    config.write_text(ECHO + f'[server]\nport = {free_port()}\n[store]\nurl = "x:{password}"\n')
    done = jubal("serve", home=home, JUBAL_CONFIG=str(config))
    secrets.none_in("serve", done.stdout + done.stderr)
    assert done.returncode != 0


def test_a_redis_that_can_not_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    secrets = Secrets()
    url = f"redis://me:{secrets.new('redis')}@127.0.0.1:{free_port()}/0"
    config = ECHO + f'[limits]\nurl = "{url}"\n'
    with running(tmp_path / "home", config=config, args=("--log-level", "debug")) as server:
        key = server.command("keys", "create", "--name", "limited", "--rpm", "5")["key"]
        status, _, got = server.request(
            "POST",
            "/v1/chat/completions",
            {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]},
            key=key,
        )
        assert status == 503, got
        secrets.none_in("the answer", json.dumps(got))
        secrets.none_in("the log", server.log.read_text())
    done = jubal("doctor", "--json", home=server.home, JUBAL_CONFIG=str(server.config))
    secrets.none_in("doctor", done.stdout + done.stderr)


def test_an_engine_that_dies_takes_no_secret_into_the_log(models_home: Path, tmp_path: Path) -> None:
    home = home_with_models(tmp_path / "home", models_home)
    with running(home, args=("--log-level", "debug")) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        for child in children:
            child.kill()
        server.chat(messages=[{"role": "user", "content": "a private prompt"}])
        log = quiet(server)
        assert server.key not in log
        assert "a private prompt" not in log


async def test_what_is_asked_can_be_printed_without_its_secrets() -> None:
    from jubal.core.server_tools import Mcp
    from jubal.records.sealing import FernetSealer
    from jubal.wire.openai_responses import OpenAIResponses

    secrets = Secrets()
    tool = {
        "type": "mcp",
        "server_label": "box",
        "server_url": f"https://mcp.example/?token={secrets.new('url')}",
        "authorization": secrets.new("authorization"),
        "headers": {"X-Token": secrets.new("header")},
    }
    body = json.dumps({"model": "m", "input": "hi", "tools": [tool]}).encode()
    asked = OpenAIResponses(FernetSealer(bytes(32))).parse(body)
    assert any(isinstance(one, Mcp) for one in asked.generation.tools.server)
    secrets.none_in("repr", repr(asked.generation) + repr(asked))


async def test_many_clients_that_stop_reading_do_not_pile_up_memory(plain: Server) -> None:
    """Each stream that nobody reads holds what its buffers hold, and no more."""
    body = {"model": "grok-4", "messages": [{"role": "user", "content": f"{'word' * 500} " * 1000}], "stream": True}
    process = psutil.Process(plain.process.pid)
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {plain.key}"}, read_bufsize=1) as session:
        answers = [await session.post(plain.url + "/chat/completions", json=body) for _ in range(10)]
        assert {answer.status for answer in answers} == {200}
        before = process.memory_info().rss
        await asyncio.sleep(0.5)
        assert process.memory_info().rss - before < 64 << 20
        for answer in answers:
            answer.close()


@pytest.mark.parametrize("text", [NUL, "\u202e\x1b[31m"])
def test_odd_characters_in_the_management_api(on_store: Server, text: str) -> None:
    management = on_store.command("keys", "create", "--name", f"m{os.urandom(4).hex()}", "--management")
    team, key = management["team_id"], management["key"]
    asked: list[tuple[str, str, Any]] = [
        ("POST", f"/auth/teams/{team}/api-keys", {"name": text, "acls": ["api-key:model:*", "api-key:endpoint:*"]}),
        ("POST", f"/auth/teams/{team}/api-keys", {"name": "a", "acls": [f"api-key:model:{text}"]}),
        ("GET", f"/auth/teams/{team}/api-keys?paginationToken=a%00b", None),
        ("PUT", "/auth/api-keys/a%00b", {"apiKey": {"name": text}, "fieldMask": "name"}),
        ("GET", "/v1/billing/teams/a%00b/prepaid/balance", None),
    ]
    for method, path, body in asked:
        status, _, got = on_store.request(method, path, body, key=key)
        assert status < 500, (method, path, got)
