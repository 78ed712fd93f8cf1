"""`[server] workers = 2`, really started: on Redis with SQLite and with PostgreSQL. What holds for one process holds for both."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from tests.fake_upstream import Behaviour, Upstream, ending, hangs_after, piece, upstream
from tests.flow.test_credit import CEILING, COST, make_team, show
from tests.flow.test_credit import ask as ask_in_words
from tests.redis_server import RedisServer, redis_server
from tests.server import ECHO, Server, environment, free_port, jubal, running, to_upstream

WAIT_S = 60.0
STREAMS = 24
"""So many that both workers have some: all with one of them is a matter of one in eight million."""
SERVER = "[server]\nworkers = 2\naccess_log = true\n"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> str:
    """All of a configuration but its engines."""
    url = f"sqlite:///{tmp_path}/shared.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    return f'{SERVER}[store]\nurl = "{url}"\n{limits(redis)}'


def limits(redis: RedisServer) -> str:
    return f'[limits]\nurl = "{redis.url}"\n'


@contextmanager
def workers(home: Path, settings: str, engines: str = ECHO, *, grpc: bool = False) -> Iterator[Server]:
    """A server with both of its workers ready. None is left of it, whatever happens."""
    with running(home, config=engines + settings, grpc=grpc, fresh=True) as server:
        everybody: set[psutil.Process] = set()
        try:
            until(lambda: "ready in" in server.log.read_text())
            everybody = set(psutil.Process(server.process.pid).children(recursive=True))
            yield server
            everybody |= set(children(server))
        finally:
            if server.process.poll() is None:
                server.stop()
            _, alive = psutil.wait_procs(everybody, timeout=WAIT_S)
            for one in alive:
                one.kill()
            assert not alive


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(server: Server) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(server.process.pid).children()
    except psutil.NoSuchProcess:
        return []
    return found


def events(server: Server) -> list[dict[str, Any]]:
    """What was logged; a line that is being written is left out."""
    lines = server.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def pids(server: Server) -> dict[str, int]:
    """Which process answered each request, by the access log."""
    return {one["request_id"]: one["pid"] for one in events(server) if one["event"] == "request"}


def ask(server: Server, key: str = "") -> tuple[int, dict[str, str], Any]:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return server.request("POST", "/v1/chat/completions", body, key=key)


def by_both(server: Server, act: Callable[[], tuple[int, dict[str, str], Any]], status: int) -> None:
    """Asks until both workers have answered with this status. A connection is dealt out by chance."""
    seen: set[int] = set()
    deadline = time.monotonic() + WAIT_S
    while len(seen) < 2:
        assert time.monotonic() < deadline, f"status {status} came from {seen} only"
        found, headers, _ = act()
        if found == status:
            until(lambda: headers["x-request-id"] in pids(server))  # noqa: B023  called at once
            seen.add(pids(server)[headers["x-request-id"]])
    assert seen == {one.pid for one in children(server)}


# ------------------------------------------------------------------------------------------- one server


def test_two_workers_are_one_server(settings: str, tmp_path: Path) -> None:
    with workers(tmp_path / "home", settings) as server:
        shown = server.log.read_text()
        assert shown.count("Jubal serves http://127.0.0.1:") == shown.count("API key: xai-") == 1
        assert "with 2 workers. Ctrl-C stops it." in shown
        assert [one["name"] for one in server.command("keys", "list")] == ["first"]
        by_both(server, lambda: ask(server), 200)
        assert {one["pid"] for one in events(server)} <= {one.pid for one in children(server)}
        libraries = {Path(one.path).name.split(".")[0] for one in psutil.Process(server.process.pid).memory_maps()}
        assert not libraries & {"loop", "_sqlite3", "_psycopg"}, "the parent stays small"

        key = server.command("keys", "create", "--name", "k")
        by_both(server, lambda: ask(server, key["key"]), 200)
        server.command("keys", "disable", key["id"])
        by_both(server, lambda: ask(server, key["key"]), 403)

        assert server.stop() == 0
        assert server.log.read_text().count("Stopped.") == 1
        answered = {one["request_id"] for one in events(server) if one.get("status") == 200 and "key_id" in one}
        assert {row["request_id"] for row in server.usage()} == answered


def test_a_keys_limit_holds_for_both_together(settings: str, tmp_path: Path) -> None:
    with workers(tmp_path / "home", settings) as server:
        key = server.command("keys", "create", "--name", "k", "--rpm", "50")["key"]
        began_s = time.monotonic()
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: ask(server, key), range(120)))
        passed_s = time.monotonic() - began_s
        good = [headers["x-request-id"] for status, headers, _ in answers if status == 200]
        assert Counter(status for status, _, _ in answers) == {200: len(good), 429: 120 - len(good)}
        assert 50 <= len(good) <= 50 + passed_s * 50 / 60, "the limit, and what became free meanwhile"
        until(lambda: len(pids(server)) >= 120)
        assert len({pids(server)[one] for one in good}) == 2


def test_fifty_requests_at_once_spend_no_more_than_there_is(settings: str, tmp_path: Path) -> None:
    with workers(tmp_path / "home", settings) as server:
        credit = 9 * COST + CEILING
        team, key = make_team(server, "--prepaid", ticks=credit)
        begin = threading.Barrier(50)

        def request(_: int) -> tuple[int, dict[str, str], Any]:
            begin.wait()
            return ask_in_words(server, key)

        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(request, range(50)))
        good = [body for status, _, body in answers if status == 200]
        assert Counter(status for status, _, _ in answers) == {200: len(good), 429: 50 - len(good)}
        assert 1 <= len(good) <= 10
        assert server.stop() == 0
        after = show(server, team)
        assert (after["reserved_ticks"], after["available_ticks"]) == (0, credit - len(good) * COST)
        assert server.command("credits", "check") == {"ok": True, "mismatches": []}


def test_grpc_is_answered_by_both(redis: RedisServer, tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with workers(tmp_path / "home", SERVER + limits(redis), grpc=True) as server:
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
        channels = [grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", own) for _ in range(24)]
        for channel in channels:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        connected = [
            [one for one in worker.net_connections("tcp") if one.laddr.port == server.grpc_port and one.raddr]
            for worker in children(server)
        ]
        assert all(connected)
        assert sum(map(len, connected)) == 24
        for channel in channels:
            channel.close()
        other = jubal("serve", "--port", "0", "--grpc-port", str(server.grpc_port), home=tmp_path / "other")
        assert (other.returncode, "is already in use" in other.stderr) == (1, True)
        assert server.stop() == 0


# --------------------------------------------------------------------------------------------- its ends


class Load:
    """Eight clients that ask all the time, each request on a connection of its own. lost: whose connection broke."""

    def __init__(self, server: Server, key: str) -> None:
        self.good: list[str] = []
        self.lost = 0
        self.others: list[tuple[int, Any]] = []
        self._server = server
        self._key = key
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(8)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                status, headers, body = ask_in_words(self._server, self._key)
            except (OSError, http.client.HTTPException):
                self.lost += 1
                continue
            if status == 200:
                self.good.append(headers["x-request-id"])
            else:
                self.others.append((status, body))

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(WAIT_S)

    def more(self) -> None:
        """Returns when more requests have been answered."""
        wanted = len(self.good) + 20
        until(lambda: len(self.good) >= wanted)


def test_a_killed_worker_loses_nothing_and_is_replaced(settings: str, tmp_path: Path) -> None:
    with workers(tmp_path / "home", settings) as server:
        key = make_team(server, "--prepaid", ticks=10**12)[1]
        load = Load(server, key)
        load.more()
        dead, fellow = children(server)
        dead.send_signal(signal.SIGKILL)
        load.more()
        until(lambda: len({one.pid for one in children(server)} - {dead.pid}) == 2)
        (fresh,) = {one.pid for one in children(server)} - {dead.pid, fellow.pid}
        until(lambda: fresh in pids(server).values())
        load.stop()
        assert not load.others, "whoever is answered is answered well"
        (told,) = [one for one in events(server) if one["event"] == "a worker ended and is replaced"]
        assert (told["worker"], told["how"]) == (dead.pid, "signal 9")
        assert server.stop() == 0
        rows = Counter(row["request_id"] for row in server.usage() if row["status"] == "ok")
        assert set(rows.values()) == {1}
        assert set(load.good) <= set(rows)
        assert len(rows) - len(load.good) <= load.lost, "charged without an answer: whose connection broke"
        assert server.command("credits", "check") == {"ok": True, "mismatches": []}


@pytest.mark.parametrize("told", ["the parent", "every process"])
async def test_a_stopped_server_lets_open_answers_end(told: str, redis: RedisServer, tmp_path: Path) -> None:
    """Service managers send the signal to every process; that must not count as the second one, which ends answers."""

    def stop(server: Server) -> None:
        found = children(server)
        server.process.send_signal(signal.SIGTERM)
        for one in found if told == "every process" else ():
            one.send_signal(signal.SIGTERM)

    code, statuses = await cut_short(stop, SERVER + limits(redis), tmp_path)
    assert code == 0
    assert statuses == Counter(ok=STREAMS)


async def test_workers_whose_parent_is_killed_let_open_answers_end_and_go(redis: RedisServer, tmp_path: Path) -> None:
    code, statuses = await cut_short(Server.kill, SERVER + limits(redis), tmp_path)
    assert code == -signal.SIGKILL
    assert statuses == Counter(ok=STREAMS)


async def test_a_second_signal_ends_open_answers(redis: RedisServer, tmp_path: Path) -> None:
    def stop(server: Server) -> None:
        server.process.send_signal(signal.SIGINT)
        until(lambda: refuses_connections(server))
        server.process.send_signal(signal.SIGINT)

    code, statuses = await cut_short(stop, SERVER + limits(redis), tmp_path, whole=False)
    assert code == 0
    assert statuses == Counter(cancelled=STREAMS)


def refuses_connections(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), WAIT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


async def cut_short(
    act: Callable[[Server], None], settings: str, tmp_path: Path, *, whole: bool = True
) -> tuple[int, Counter[str]]:
    """Opens streams on both workers, lets `act` happen, and reads them to their end. The server's exit code, and how its
    usage rows ended."""
    over = asyncio.Event()
    async with upstream(_goes_on(over) if whole else hangs_after(piece("x"))) as there:
        started = workers(tmp_path / "home", settings, to_upstream(there.url))
        server = await asyncio.to_thread(started.__enter__)
        try:
            texts = await _streams(server, act, over)
            code = await asyncio.to_thread(server.process.wait, WAIT_S)
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)
        with contextlib.closing(socket.create_server(("127.0.0.1", server.port))):
            pass  # nobody has the port any more
        assert all(text.endswith("data: [DONE]\n\n") == whole for text in texts)
        if not whole:
            assert all('"code":"stopping"' in text.rsplit("data: ", 1)[1] for text in texts)
        return code, Counter(row["status"] for row in await asyncio.to_thread(server.usage))


def _goes_on(over: asyncio.Event) -> Behaviour:
    """Says a piece, and the rest slowly once something is over."""

    async def behave(there: Upstream, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(piece("x"))
        await over.wait()
        for _ in range(20):
            await asyncio.sleep(0.05)
            await response.write(piece("x"))
        await response.write(ending())
        return response

    return behave


async def _streams(server: Server, act: Callable[[Server], None], over: asyncio.Event) -> list[str]:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"authorization": f"Bearer {server.key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(force_close=True)) as session:
        asked = [session.post(server.url + "/chat/completions", json=body) for _ in range(STREAMS)]
        answers = await asyncio.gather(*asked)
        await asyncio.gather(*(answer.content.readuntil(b"\n\n") for answer in answers))
        busy = [
            any(one.laddr.port == server.port and one.raddr for one in worker.net_connections("tcp"))
            for worker in children(server)
        ]
        assert busy == [True, True]
        await asyncio.to_thread(act, server)
        over.set()
        return list(await asyncio.gather(*(answer.text() for answer in answers)))


# --------------------------------------------------------------------------------------- no start at all


def refused(tmp_path: Path, config: str, *args: str) -> str:
    """Starts a server that can't start; what it says on standard error. The exit code is the first word."""
    (tmp_path / "jubal.toml").write_text(config)
    command = [sys.executable, "-m", "jubal", "serve", "--config", str(tmp_path / "jubal.toml"), "--grpc-port", "0"]
    done = subprocess.run(
        [*command, *(args or ("--port", "0"))],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == ""
    return f"{done.returncode} {done.stderr}"


def test_what_keeps_one_process_from_starting_keeps_all_and_is_said_once(redis: RedisServer, tmp_path: Path) -> None:
    both = SERVER + limits(redis)
    xai = '[engines.xai]\nkind = "xai"\n[models."grok-4"]\nengine = "xai"\n'
    said = refused(tmp_path, both + xai)
    assert said.startswith("2 jubal: engines.xai.api_key_env: expected an API key in $XAI_API_KEY")
    assert said.count("\n") == 1
    said = refused(tmp_path, f'{ECHO}{both}[store]\nurl = "postgresql://nobody@127.0.0.1:{free_port()}/none"\n')
    assert said.startswith("1 jubal: The accounts store at postgresql://nobody@127.0.0.1:")
    assert said.count("\n") == 1


def test_a_port_that_is_taken(redis: RedisServer, tmp_path: Path) -> None:
    both = SERVER + limits(redis)
    with workers(tmp_path / "one", both) as server:
        for config in (ECHO + both, ECHO):
            said = refused(tmp_path, config, "--port", str(server.port))
            assert said.startswith(f"1 jubal: port {server.port} is already in use on 127.0.0.1")
            assert said.count("\n") == 1
    with running(tmp_path / "two", config=ECHO) as server:
        said = refused(tmp_path, ECHO + both, "--port", str(server.port))
        assert said.startswith(f"1 jubal: port {server.port} is already in use on 127.0.0.1")
