"""What happens when something goes wrong: upstreams that die or hang, clients that leave, servers that are killed or stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web

from tests.fake_upstream import (
    Behaviour,
    Upstream,
    dies_after,
    ending,
    hangs_after,
    piece,
    refuses,
    says_when,
    trickles,
    upstream,
)
from tests.server import ECHO, Server, jubal, start, to_upstream

PATIENCE_S = 60.0
BODY = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def gateway(
    home: Path, *behaviours: Behaviour, config: str = "", **keys: object
) -> AsyncIterator[tuple[Server, Upstream, aiohttp.ClientSession]]:
    """A server in front of an upstream with these behaviours, and a client with its key."""
    async with upstream(*behaviours) as there:
        server = await asyncio.to_thread(start, home, config=to_upstream(there.url, **keys) + config)
        headers = {"authorization": f"Bearer {server.key}"}
        try:
            async with aiohttp.ClientSession(headers=headers) as session:
                yield server, there, session
        finally:
            if server.process.poll() is None:
                server.kill()


async def test_an_upstream_that_dies_in_the_middle_is_an_error_event_and_costs_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path, dies_after(piece("half"))) as (server, _, session):
        async with session.post(server.url + "/chat/completions", json={**BODY, "stream": True}) as answer:
            assert answer.status == 200
            text = await answer.text()
        frames = [json.loads(line[6:]) for line in text.split("\n\n") if line]
        assert frames[0]["choices"][0]["delta"]["content"] == "half"
        assert frames[-1]["error"]["code"] == "engine_broken"
        assert "[DONE]" not in text
        async with session.post(server.url + "/chat/completions", json=BODY) as answer:
            assert answer.status == 502
        rows = await asyncio.to_thread(server.usage)
        assert [(row["status"], row["cost_in_usd_ticks"]) for row in rows] == [("failed", 0), ("failed", 0)]


async def test_an_upstream_that_fails_before_the_first_byte_is_an_ordinary_error(tmp_path: Path) -> None:
    async with gateway(tmp_path, refuses(401), refuses(503), retries=0) as (server, _, session):
        async with session.post(server.url + "/chat/completions", json={**BODY, "stream": True}) as answer:
            assert answer.status == 502, "an upstream's 401 is never the client's"
            assert (await answer.json())["error"]["code"] == "engine_credentials"
        async with session.post(server.url + "/chat/completions", json={**BODY, "stream": True}) as answer:
            assert answer.status == 503
            assert answer.headers["content-type"] == "application/json"


async def test_a_fallback_answers_when_the_first_engine_cannot(tmp_path: Path) -> None:
    config = 'fallback = ["spare"]\n[engines.spare]\nkind = "echo"\n'
    async with gateway(tmp_path, refuses(503), retries=0, config=config) as (server, there, session):
        async with session.post(server.url + "/chat/completions", json=BODY) as answer:
            assert answer.status == 200
            assert (await answer.json())["choices"][0]["message"]["content"] == "hi"
        assert len(there.bodies) == 1
        assert (await asyncio.to_thread(server.usage))[-1]["engine"] == "spare"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("behaviour", [trickles(), hangs_after(*[piece("x ")] * 10)], ids=["speaks", "is silent"])
async def test_a_client_that_leaves_stops_the_engine_and_pays_for_what_came(
    tmp_path: Path, behaviour: Behaviour, stream: bool
) -> None:
    """Also an engine that says nothing more, where only the client's own connection tells that it has left."""
    async with gateway(tmp_path, behaviour) as (server, there, session):
        for tries, stay_s in enumerate((0.5, 5, 20)):
            answer = asyncio.ensure_future(
                session.post(server.url + "/chat/completions", json={**BODY, "stream": stream})
            )
            if stream:
                response = await answer
                for _ in range(3):
                    await response.content.readuntil(b"\n\n")
                response.close()
            else:
                while len(there.bodies) == tries:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(stay_s)  # so that some of it has come
                answer.cancel()
            await asyncio.wait_for(there.gone.wait(), PATIENCE_S)
            there.gone.clear()
            async with asyncio.timeout(PATIENCE_S):
                while len(rows := await asyncio.to_thread(server.usage)) == tries:
                    pass
            if rows[-1]["completion_tokens"] >= 3:
                break
        assert {row["status"] for row in rows} == {"cancelled"}
        assert rows[-1]["completion_tokens"] >= 3
        assert rows[-1]["cost_in_usd_ticks"] > 0


async def test_tokens_are_sent_when_they_are_made(tmp_path: Path) -> None:
    """The next one is made when the client has got the one before."""
    got = [asyncio.Event() for _ in "abc"]

    async def one_by_one(_: Upstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for text, arrived in zip("abc", got, strict=True):
            await response.write(piece(text))
            await asyncio.wait_for(arrived.wait(), PATIENCE_S)
        await response.write(ending())
        return response

    async with gateway(tmp_path, one_by_one) as (server, _, session):
        async with session.post(server.url + "/chat/completions", json={**BODY, "stream": True}) as answer:
            for text, arrived in zip("abc", got, strict=True):
                async with asyncio.timeout(PATIENCE_S):
                    while f'"content":"{text}"'.encode() not in await answer.content.readuntil(b"\n\n"):
                        pass
                arrived.set()
            assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_a_full_queue_is_498_with_retry_after(tmp_path: Path) -> None:
    async with gateway(tmp_path, hangs_after(), max_concurrency=1, max_queued=1) as (server, there, session):
        waiting = [asyncio.ensure_future(session.post(server.url + "/chat/completions", json=BODY)) for _ in range(2)]
        while (
            not there.bodies
            or (await (await session.get(f"http://127.0.0.1:{server.port}/health")).json())["engines"]["box"]["queued"]
            < 1
        ):
            await asyncio.sleep(0.02)
        async with session.post(server.url + "/chat/completions", json=BODY) as answer:
            assert answer.status == 498
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-should-retry"] == "true"
            assert (await answer.json())["error"]["code"] == "capacity_exceeded"
        for one in waiting:
            one.cancel()


async def test_sigterm_lets_open_answers_end_and_exits_with_0(tmp_path: Path) -> None:
    allowed = asyncio.Semaphore(1)
    async with gateway(tmp_path, says_when(allowed, piece("x"), piece("y"), ending())) as (server, _, session):
        async with session.post(server.url + "/chat/completions", json={**BODY, "stream": True}) as answer:
            await answer.content.readuntil(b"\n\n")
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession(headers=dict(session.headers)) as newcomer:
                with pytest.raises(aiohttp.ClientConnectionError):
                    while True:
                        async with newcomer.get(server.url + "/models", headers={"connection": "close"}):
                            pass
            allowed.release()
            allowed.release()
            rest = await answer.text()
        assert rest.endswith("data: [DONE]\n\n")
        assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0
    assert [row["status"] for row in json.loads(jubal("usage", "--json", home=tmp_path).stdout)] == ["ok"]


async def test_at_the_drain_limit_an_open_answer_is_told_so(tmp_path: Path) -> None:
    async with gateway(tmp_path, trickles(), config="[server]\ndrain_s = 0.5\n") as (server, _, session):
        async with session.post(server.url + "/chat/completions", json={**BODY, "stream": True}) as answer:
            await answer.content.readuntil(b"\n\n")
            server.process.send_signal(signal.SIGTERM)
            text = await answer.text()
        assert json.loads(text.rstrip().rsplit("data: ", 1)[1])["error"]["code"] == "stopping"
        assert await asyncio.to_thread(server.process.wait, PATIENCE_S) == 0
    rows = json.loads(jubal("usage", "--json", home=tmp_path).stdout)
    assert [row["status"] for row in rows] == ["cancelled"]


def test_kill_9_under_load_loses_no_answered_request_and_doubles_none(tmp_path: Path) -> None:
    """Every answer that a client got whole has its row after the restart, once."""
    answered: list[str] = []
    for _ in range(3):
        server = start(tmp_path, config=ECHO)
        stop = threading.Event()
        some = threading.Semaphore(0)

        def ask(server: Server = server, stop: threading.Event = stop, some: threading.Semaphore = some) -> None:
            while not stop.is_set():
                try:
                    status, headers, _ = server.chat(stream=bool(len(answered) % 2))
                except (OSError, ValueError, Exception):
                    return
                if status == 200:
                    answered.append(headers["x-request-id"])
                    some.release()

        clients = [threading.Thread(target=ask) for _ in range(8)]
        for client in clients:
            client.start()
        for _ in range(30):
            assert some.acquire(timeout=PATIENCE_S)
        time.sleep(0.3)
        server.kill()
        stop.set()
        for client in clients:
            client.join()
    assert len(answered) > 50
    rows = json.loads(jubal("usage", "--json", "--limit", "1000000", home=tmp_path).stdout)
    recorded = [row["request_id"] for row in rows]
    assert len(recorded) == len(set(recorded))
    assert set(answered) <= set(recorded)


def test_kill_9_of_the_server_leaves_no_child(tmp_path: Path, models_home: Path) -> None:
    from tests.conftest import home_with_models

    server = start(home_with_models(tmp_path / "home", models_home))
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children, "the embedded engine runs in a child"
    server.kill()
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive


def test_a_killed_engine_child_comes_back(tmp_path: Path, models_home: Path) -> None:
    from tests.conftest import home_with_models

    server = start(home_with_models(tmp_path / "home", models_home))
    try:
        for child in psutil.Process(server.process.pid).children(recursive=True):
            child.kill()
        status, _, body = server.chat(max_tokens=3, temperature=0)
        assert status == 200, body
    finally:
        assert server.stop() == 0


def test_ctrl_c_stops_and_leaves_nothing(tmp_path: Path, models_home: Path) -> None:
    from tests.conftest import home_with_models

    server = start(home_with_models(tmp_path / "home", models_home))
    children = psutil.Process(server.process.pid).children(recursive=True)
    os.kill(server.process.pid, signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == 0
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive
    assert "Traceback" not in server.log.read_text()


def test_a_second_start_is_ready_in_3_s_and_makes_no_new_key(tmp_path: Path, models_home: Path) -> None:
    from tests.conftest import home_with_models

    home = home_with_models(tmp_path / "home", models_home)
    first = start(home, fresh=True)
    assert first.stop() == 0
    key = (home / "first-key").read_text()
    assert (home / "first-key").stat().st_mode & 0o777 == 0o600
    assert key.strip() in first.log.read_text()
    first.log.write_text("")
    second = start(home, fresh=True)
    try:
        assert (home / "first-key").read_text() == key
        assert second.chat(max_tokens=1)[0] == 200
        assert len(json.loads(jubal("keys", "list", "--json", home=home).stdout)) == 1
        deadline = time.monotonic() + PATIENCE_S
        while "ready in" not in second.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert key.strip() not in second.log.read_text(), "shown once"
    finally:
        assert second.stop() == 0


def test_no_secret_in_the_store_or_the_log(tmp_path: Path) -> None:
    server = start(tmp_path, config=ECHO)
    server.chat()
    server.request("POST", "/v1/chat/completions", b"{", headers={})
    assert server.stop() == 0
    server.log.write_text(
        "\n".join(line for line in server.log.read_text().splitlines() if "first" not in line and "xai-" not in line)
    )
    for file in tmp_path.iterdir():
        if file.is_file() and file.name not in ("first-key", "serve.log"):
            assert server.key.encode() not in file.read_bytes(), file


def test_imports_of_the_cli_are_light(tmp_path: Path) -> None:
    """A listing must not pay for the server's libraries."""
    code = "import sys, jubal.cli; print([m for m in ('uvicorn', 'aiohttp', 'sqlalchemy', 'xllamacpp') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
