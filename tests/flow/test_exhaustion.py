"""Servers that run out of something: disk, files, connections, a clock that runs forward. Others are served, nothing is lost or
charged twice, and when it is there again, all is as before."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flow.test_security_connections import PATIENCE_S, exchange, post
from tests.server import ECHO, Server, running

STORE_CODES = {"store_full", "store_io", "store_unreachable", "store_read_only", "store_lost", "store_failed"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("exhausted") / "home", config=ECHO) as started:
        yield started


def until_answered(server: Server) -> None:
    end = time.monotonic() + PATIENCE_S
    while server.chat()[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.1)


def the_books_agree(server: Server, answered: set[str]) -> None:
    rows = [row["request_id"] for row in server.usage()]
    assert len(rows) == len(set(rows))
    assert answered <= set(rows)
    assert server.command("credits", "check") == {"ok": True, "mismatches": []}


def test_a_full_disk(tmp_path: Path) -> None:
    """As one: no file of the server may grow any more, neither the store's nor its log."""
    with running(tmp_path / "home", config=ECHO + "[server]\naccess_log = true\n") as server:
        team = server.command("teams", "create", "--name", "paying", "--prepaid")["name"]
        server.command("credits", "add", "--team", team, "--usd", "5")
        key = server.command("keys", "create", "--name", "k", "--team", team)["key"]
        body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        answered = set()

        def ask(**fields: Any) -> tuple[int, Any]:
            status, headers, got = server.request("POST", "/v1/chat/completions", {**body, **fields}, key=key)
            if status == 200:
                answered.add(headers["x-request-id"])
            return status, got

        assert ask()[0] == 200
        before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        refused = [ask() for _ in range(5)]
        for path, asked in (
            ("/v1/responses", {"model": "grok-4", "input": "hi"}),
            ("/v1/chat/completions", {**body, "deferred": True}),
            ("/v1/embeddings", {"model": "v1", "input": "hi"}),
        ):
            status, _, got = server.request("POST", path, asked, key=key)
            assert status in (404, 503), got
        for status, got in refused:
            assert (status, got["error"]["code"] in STORE_CODES) == (503, True), got
        _, whole = ask(stream=True)
        assert b"[DONE]" not in (whole if isinstance(whole, bytes) else json.dumps(whole).encode())
        assert server.request("GET", "/health", key=None)[0] == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        end = time.monotonic() + PATIENCE_S
        while ask()[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        the_books_agree(server, answered)
        shown = server.command("credits", "show", "--team", team)
        spent = sum(row["cost_in_usd_ticks"] for row in server.usage())
        assert shown["balance_ticks"] == 5 * 10**10 - spent, "what was not answered is not charged"
        assert server.stop() == 0


def test_a_store_that_can_only_be_read(tmp_path: Path, postgres_url: str) -> None:
    import psycopg
    from psycopg import sql

    with running(tmp_path / "home", config=f'{ECHO}[store]\nurl = "{postgres_url}"\n') as server:
        answered = {server.chat()[1]["x-request-id"]}
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            name = sql.Identifier(admin.info.dbname)
            admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jubal'")
            status, _, got = server.chat()
            assert (status, got["error"]["code"]) == (503, "store_read_only"), got
            assert server.request("GET", "/v1/models")[0] == 200, "what only reads goes on"
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jubal'")
        until_answered(server)
        the_books_agree(server, answered)


def test_no_more_files(server: Server) -> None:
    """Who is connected is served; who comes waits, or is told; and nobody's place is lost."""
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    kept.request("GET", "/health")
    assert kept.getresponse().read()
    with ThreadPoolExecutor(20) as threads:  # the store's files are open then, as on any server that has been at work
        assert {status for status, _, _ in threads.map(lambda _: server.chat(), range(40))} == {200}
    process = psutil.Process(server.process.pid)
    before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 5, before[1]))
    try:
        with ExitStack() as held:
            for _ in range(30):
                held.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_S))
            body = json.dumps({"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]})
            headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
            for _ in range(3):
                kept.request("POST", "/v1/chat/completions", body, headers)
                response = kept.getresponse()
                assert (response.status, bool(response.read())) == (200, True)
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
    kept.close()
    until_answered(server)
    the_books_agree(server, set())


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many of them as this process may have open; many machines allow 1024 to who does not ask for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] == resource.RLIM_INFINITY or before[1] > before[0]:
        wanted = max(before[0], 4096 if before[1] == resource.RLIM_INFINITY else min(before[1], 4096))
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, before[1]))
    yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_connections_that_say_nothing(server: Server, many_files: int) -> None:
    number = min(1000, many_files - 200)
    with ExitStack() as held:
        silent = [
            held.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)) for _ in range(number)
        ]
        for one in silent[::2]:
            one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for _ in range(20):
            assert server.chat()[0] == 200


def test_a_clock_that_is_put_back(tmp_path: Path) -> None:
    """By a day, with limits, credit and deferred answers in use."""
    clock = tmp_path / "clock"
    clock.write_text("0")
    with running(tmp_path / "home", config=ECHO, CLOCK=str(clock)) as server:
        team = server.command("teams", "create", "--name", "paying", "--prepaid")["name"]
        server.command("credits", "add", "--team", team, "--usd", "5")
        key = server.command("keys", "create", "--name", "k", "--team", team, "--rpm", "100000")["key"]
        body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        answered = set()
        for shift_s in (0, 3600, -86400, -10, 86400, 0):
            clock.write_text(str(shift_s))
            for fields in ({}, {"stream": True}, {"deferred": True}):
                path = "/v1/chat/completions"
                status, headers, got = server.request("POST", path, {**body, **fields}, key=key)
                assert status == 200, (shift_s, got)
                if "deferred" not in fields:
                    answered.add(headers["x-request-id"])
                    continue
                end = time.monotonic() + PATIENCE_S
                while (found := server.request("GET", f"/v1/chat/deferred-completion/{got['request_id']}", key=key))[
                    0
                ] == 202:
                    assert time.monotonic() < end, f"a deferred answer waits for ever after {shift_s} s"
                    time.sleep(0.05)
                assert found[0] == 200, found
            assert server.request("GET", "/v1/models", key=key)[0] == 200
        the_books_agree(server, answered)


# ------------------------------------------------------------------------------------------------ every route

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "LOCK")


def test_every_method_of_every_route(server: Server) -> None:
    """Whoever comes, with whatever method: an answer, never a 5xx, and a body only where one may be."""
    described = server.request("GET", "/openapi.json", key=None)[2]["paths"]
    management = server.command("keys", "create", "--name", "m", "--management")["key"]
    assert len(described) > 20
    for path, operations in described.items():
        real = path.replace("{", "").replace("}", "")
        for method in METHODS:
            for key in (server.key, management, None):
                status, headers, body = server.request(method, real, b"{}" if method != "HEAD" else None, key=key)
                assert status < 500, (method, real, status, body)
                known = method.lower() in operations or (method == "HEAD" and "get" in operations)
                if not known:
                    assert status in (401, 404, 405), (method, real, status, body)
                if status == 405:
                    assert headers["allow"]
                if method == "HEAD":
                    assert body == b""


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "", "application/x-www-form-urlencoded", "x"]
)
def test_odd_content_types_are_read_as_json_or_refused(server: Server, content_type: str) -> None:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}
    status = server.request("POST", "/v1/chat/completions", body, headers={"content-type": content_type})[0]
    assert status in (200, 415)
    status = server.request("POST", "/v1/chat/completions", b"a=b", headers={"content-type": content_type})[0]
    assert status in (400, 415)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/tokenize-text", "/v1/responses", "/v1/embeddings"])
def test_compressed_bodies_are_refused_everywhere(server: Server, path: str, coding: str) -> None:
    status, _, _ = server.request("POST", path, b"\x1f\x8b\x08" + bytes(20), headers={"content-encoding": coding})
    assert status == 415


def test_targets_of_other_forms(server: Server) -> None:
    for target, statuses in {
        "http://127.0.0.1/health": (200, 400, 404),
        "http://elsewhere.example/v1/models": (200, 400, 401, 404),
        "//health": (400, 404),
        "*": (400, 404),
        "/health#fragment": (200, 400, 404),
        "/\xff\xfe": (400, 404),
        "/health?\xff=\xfe": (200, 400),
        "/../../etc/passwd": (400, 404),
    }.items():
        raw = post(server, b"", "Connection: close", path="/PATH").replace(b"POST", b"GET", 1)
        assert exchange(server, raw.replace(b"/PATH", target.encode("latin-1"))).status in statuses, target


NUMBERS = ["1e999", "-1e999", "1" + "0" * 5000, "0." + "0" * 5000 + "1", "1e-5000"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda text: text[:12])
@pytest.mark.parametrize("keyword", ["minimum", "multipleOf", "maxLength", "const", "default", "enum"])
def test_odd_numbers_in_a_schema(server: Server, number: str, keyword: str) -> None:
    value = f"[{number}]" if keyword == "enum" else number
    schema = f'{{"type":"object","properties":{{"a":{{"type":"number","{keyword}":{value}}}}}}}'
    for body in (
        '{"model":"grok-4","messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":%s}}}',
        '{"model":"grok-4","messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":{"name":"f","parameters":%s}}]}',
    ):
        status, _, got = server.request("POST", "/v1/chat/completions", (body % schema).encode())
        assert status < 500, got


@pytest.mark.parametrize(
    "field", ["max_tokens", "temperature", "n", "seed", "top_logprobs", "logit_bias", "stop", "user"]
)
@pytest.mark.parametrize(
    "value", ["1e999", "-0", "9" * 400, "9" * 5000, "1.5", '"\\udc00"', "[[[]]]", "{}", '"1"', "true"]
)
def test_odd_values_of_fields(server: Server, field: str, value: str) -> None:
    body = f'{{"model":"grok-4","messages":[{{"role":"user","content":"a"}}],"{field}":{value}}}'
    status, _, got = server.request("POST", "/v1/chat/completions", body.encode())
    assert status < 500, got
    if status != 200:
        assert len(json.dumps(got)) < 2000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "grok-4", "prompt": "a"}),
        ("/v1/messages", {"model": "grok-4", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5}),
        ("/v1/complete", {"model": "grok-4", "prompt": "a", "max_tokens_to_sample": 5}),
        ("/v1/responses", {"model": "grok-4", "input": "a"}),
        ("/v1/embeddings", {"model": "v1", "input": "a"}),
        ("/v1/tokenize-text", {"model": "grok-4", "text": "a"}),
        ("/v1/responses/compact", {"model": "grok-4", "input": "a"}),
    ],
)
def test_odd_numbers_in_any_field(server: Server, path: str, body: dict[str, Any]) -> None:
    names = server.request("GET", "/openapi.json", key=None)[2]
    fields = names["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    while "$ref" in fields:
        fields = names["components"]["schemas"][fields["$ref"].rpartition("/")[2]]
    assert len(fields["properties"]) > 1
    for name in fields["properties"]:
        for value in ("9" * 400, "9" * 19, "-" + "9" * 400, "1e999", "0"):
            text = json.dumps({key: kept for key, kept in body.items() if key != name})
            status, _, got = server.request("POST", path, f'{text[:-1]},"{name}":{value}}}'.encode())
            assert status < 500, (name, value[:9], got)
