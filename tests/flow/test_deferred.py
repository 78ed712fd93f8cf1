"""Deferred completions on a really started server, through kills and restarts."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_upstream import ending, hangs_after, piece, refuses, says, upstream
from tests.server import ECHO, Server, jubal, running, start, to_upstream

FETCH = "/v1/chat/deferred-completion/"
NOBODYS = "b9a1e0c4-2f6d-4d58-9a37-1c0e5f7a8b22"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("deferred") / "home", config=ECHO) as server:
        yield server


def defer(server: Server, key: str = "", **fields: object) -> str:
    """Asks for a deferred completion; its id."""
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "one two"}], "deferred": True, **fields}
    status, headers, answer = server.request("POST", "/v1/chat/completions", body, key=key)
    assert status == 200, answer
    assert list(answer) == ["request_id"]
    request_id: str = answer["request_id"]
    assert request_id == headers["x-request-id"]
    return request_id


def fetch(server: Server, request_id: str, *, key: str = "", timeout_s: float = 60) -> tuple[int, Any]:
    """Polls until it is no 202."""
    until = time.monotonic() + timeout_s
    while True:
        status, _, body = server.request("GET", FETCH + request_id, key=key)
        if status != 202:
            return status, body
        assert body == b"", "202 is empty"
        assert time.monotonic() < until, "still pending"
        time.sleep(0.02)


def test_an_answer_is_there_once_and_is_an_ordinary_one(server: Server) -> None:
    request_id = defer(server)
    status, body = fetch(server, request_id)
    assert status == 200
    assert body["id"] == f"chatcmpl-{request_id}"
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "one two"
    assert fetch(server, request_id)[0] == 404
    [row] = [row for row in server.usage() if row["request_id"] == request_id]
    assert (row["status"], row["cost_in_usd_ticks"]) == ("ok", body["usage"]["cost_in_usd_ticks"])


def test_many_at_once(server: Server) -> None:
    ids = [defer(server, messages=[{"role": "user", "content": f"number {n}"}]) for n in range(30)]
    texts = [fetch(server, request_id)[1]["choices"][0]["message"]["content"] for request_id in ids]
    assert texts == [f"number {n}" for n in range(30)]


def test_only_the_team_can_fetch_it(server: Server) -> None:
    server.command("teams", "create", "--name", "others")
    theirs = server.command("keys", "create", "--name", "k", "--team", "others")["key"]
    colleague = server.command("keys", "create", "--name", "k")["key"]
    blind = server.command("keys", "create", "--name", "k", "--acl", "api-key:endpoint:models")["key"]
    request_id = defer(server)
    assert fetch(server, request_id, key=theirs)[0] == 404
    assert fetch(server, request_id, key=blind)[0] == 403
    assert fetch(server, request_id, key="xai-wrong")[0] == 401
    assert fetch(server, request_id, key=colleague)[0] == 200


@pytest.mark.parametrize(
    ("method", "request_id", "status", "code"),
    [
        ("GET", "nonsense", 400, "invalid_value"),
        ("GET", NOBODYS + "0", 400, "invalid_value"),
        ("GET", NOBODYS, 404, "deferred_not_found"),
        ("GET", NOBODYS.upper() + "/", 404, "deferred_not_found"),
        ("POST", NOBODYS, 405, "method_not_allowed"),
    ],
)
def test_ids_that_lead_nowhere(server: Server, method: str, request_id: str, status: int, code: str) -> None:
    got, _, body = server.request(method, FETCH + request_id)
    assert (got, body["error"]["code"]) == (status, code)


def test_head_does_not_lose_the_answer(server: Server) -> None:
    request_id = defer(server)
    assert server.request("HEAD", FETCH + request_id)[0] == 405
    assert fetch(server, request_id)[0] == 200


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"stream": True}, 400, "deferred"),
        ({"model": "grok-99"}, 404, "model"),
        ({"temperature": 3}, 400, "temperature"),
    ],
)
def test_what_is_refused_is_refused_at_once(server: Server, fields: dict[str, Any], status: int, param: str) -> None:
    got, _, body = server.chat(deferred=True, **fields)
    assert (got, body["error"]["param"]) == (status, param)


def test_a_deferred_request_counts_once_against_the_limits(server: Server) -> None:
    key = server.command("keys", "create", "--name", "slow", "--rpm", "2")["key"]
    for _ in range(2):
        assert fetch(server, defer(server, key))[0] == 200
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "x"}], "deferred": True}
    assert server.request("POST", "/v1/chat/completions", body, key=key)[0] == 429


def _rows(home: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(jubal("usage", "--json", home=home).stdout)
    return rows


async def test_a_failure_is_answered_once_with_its_status_and_costs_nothing(tmp_path: Path) -> None:
    async with upstream(refuses(401)) as there:
        with await asyncio.to_thread(lambda: _Closing(start(tmp_path, config=to_upstream(there.url)))) as server:
            request_id = await asyncio.to_thread(defer, server)
            status, body = await asyncio.to_thread(fetch, server, request_id)
            assert (status, body["error"]["code"]) == (502, "engine_credentials")
            assert (await asyncio.to_thread(fetch, server, request_id))[0] == 404
    assert [(row["request_id"], row["status"], row["cost_in_usd_ticks"]) for row in _rows(tmp_path)] == [
        (request_id, "failed", 0)
    ]


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_a_job_survives_the_end_of_its_server_and_is_charged_once(tmp_path: Path, sign: signal.Signals) -> None:
    """The first attempt has said something when its server ends: neither it nor its cut leaves a usage row."""
    async with upstream(hangs_after(piece("half")), says(piece("all "), piece("of it"), ending(5, 2))) as there:
        config = to_upstream(there.url)
        server = await asyncio.to_thread(start, tmp_path, config=config)
        request_id = await asyncio.to_thread(defer, server)
        while not there.bodies:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert (await asyncio.to_thread(server.request, "GET", FETCH + request_id))[0] == 202
        server.process.send_signal(sign)
        code = await asyncio.to_thread(server.process.wait, 60)
        assert code == (0 if sign == signal.SIGTERM else -signal.SIGKILL)
        assert _rows(tmp_path) == []
        if sign == signal.SIGKILL:
            _let_leases_end(tmp_path)
        with await asyncio.to_thread(lambda: _Closing(start(tmp_path, config=config))) as server:
            status, body = await asyncio.to_thread(fetch, server, request_id)
            assert status == 200
            assert body["choices"][0]["message"]["content"] == "all of it"
            assert len(there.bodies) == 2
            assert (await asyncio.to_thread(fetch, server, request_id))[0] == 404
    [row] = _rows(tmp_path)
    assert (row["request_id"], row["status"], row["completion_tokens"]) == (request_id, "ok", 2)
    assert row["cost_in_usd_ticks"] == body["usage"]["cost_in_usd_ticks"] > 0


def test_an_answer_survives_a_kill(tmp_path: Path) -> None:
    server = start(tmp_path, config=ECHO)
    ids = [defer(server) for _ in range(5)]
    while server.request("GET", FETCH + ids[0])[0] == 202:
        time.sleep(0.02)
    server.kill()
    _let_leases_end(tmp_path)
    with running(tmp_path, config=ECHO) as again:
        assert [fetch(again, request_id)[0] for request_id in ids] == [404, 200, 200, 200, 200]
    rows = [row["request_id"] for row in _rows(tmp_path)]
    assert sorted(rows) == sorted(ids), "each has one row"


async def test_a_key_that_is_revoked_meanwhile_fails_the_job(tmp_path: Path) -> None:
    async with upstream(hangs_after(), says(piece("x"), ending())) as there:
        config = to_upstream(there.url)
        server = await asyncio.to_thread(start, tmp_path, config=config)
        made = await asyncio.to_thread(server.command, "keys", "create", "--name", "k")
        request_id = await asyncio.to_thread(defer, server, made["key"])
        while not there.bodies:
            await asyncio.sleep(0.01)
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(server.command, "keys", "disable", made["id"])
        with await asyncio.to_thread(lambda: _Closing(start(tmp_path, config=config))) as server:
            status, body = await asyncio.to_thread(fetch, server, request_id)
        assert (status, body["error"]["code"]) == (403, "key_disabled")
        assert len(there.bodies) == 1
    assert _rows(tmp_path) == []


def _let_leases_end(home: Path) -> None:
    """A minute passes: leases of whoever was killed are over."""
    import sqlite3

    connection = sqlite3.connect(home / "jubal.db")
    with connection:
        connection.execute("UPDATE deferred SET lease_until_us = 1 WHERE state = 'running'")
    connection.close()


class _Closing:
    """A server that is gone at the end of its block."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> Server:
        return self._server

    def __exit__(self, *_: object) -> None:
        if self._server.process.poll() is None:
            self._server.kill()
