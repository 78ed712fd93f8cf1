"""Rate limits on really started servers: two gateways on one PostgreSQL and one Redis, and both taken away under load."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer, redis_server
from tests.server import ECHO, Server, running

ASKED = {"max_tokens": 5}
PRICED = '[models."grok-4"]\nengine = "local"\n[tiers.small]\nrpm = 2\n'


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def gateways(stack: ExitStack, tmp_path: Path, store: str, redis: RedisServer) -> tuple[Server, Server]:
    config = f'{ECHO}[store]\nurl = "{store}"\n[limits]\nurl = "{redis.url}"\n{PRICED}'
    one = stack.enter_context(running(tmp_path / "one", config=config))
    return one, stack.enter_context(running(tmp_path / "two", config=config))


def ask(server: Server, key: str) -> tuple[int, dict[str, str], Any]:
    body = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}], **ASKED}
    return server.request("POST", "/v1/chat/completions", body, key=key)


def test_two_gateways_on_one_redis_let_in_what_one_would(postgres_url: str, redis: RedisServer, tmp_path: Path) -> None:
    with ExitStack() as stack:
        both = gateways(stack, tmp_path, postgres_url, redis)
        key = both[0].command("keys", "create", "--name", "k", "--rpm", "50")["key"]
        for server in both:
            server.request("GET", "/v1/models", key=key)  # they know the key
        began_s = time.monotonic()
        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(lambda n: ask(both[n % 2], key), range(200)))
        passed_s = time.monotonic() - began_s
        good = [headers for status, headers, _ in answers if status == 200]
        refused = [(headers, body) for status, headers, body in answers if status == 429]
        assert len(good) + len(refused) == 200
        assert 50 <= len(good) <= 50 + passed_s * 50 / 60, "the limit, and what became free meanwhile"
        assert {headers["x-ratelimit-limit-requests"] for headers in good} == {"50"}
        assert min(int(headers["x-ratelimit-remaining-requests"]) for headers in good) == 0
        for headers, body in refused:
            assert body["error"]["code"] == "rate_limit_exceeded"
            assert body["error"]["message"].startswith(
                "This API key has reached its rate limit of 50 requests per minute"
            )
            assert headers["retry-after"] in ("1", "2")
        assert len([row for row in both[0].usage() if row["status"] == "ok"]) == len(good)


def test_a_teams_limits_change_while_servers_run(tmp_path: Path) -> None:
    with running(tmp_path, config=ECHO + PRICED) as server:
        server.command("teams", "create", "--name", "t", "--tier", "small")
        key = server.command("keys", "create", "--name", "k", "--team", "t")["key"]
        assert [ask(server, key)[0] for _ in range(3)] == [200, 200, 429]
        assert "its tier `small`" in ask(server, key)[2]["error"]["message"]
        assert server.command("limits", "set", "--team", "t", "--rpm", "0", "--tpm", "100000")["rpm"] == 0
        until = time.monotonic() + 60
        while (answer := ask(server, key))[0] == 429:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert answer[1]["x-ratelimit-limit-tokens"] == "100000"
        assert (
            server.command("limits", "set", "--team", "t", "--model", "grok-4-latest", "--rpm", "1")["model"]
            == "grok-4"
        )
        shown = {row["scope"]: row for row in server.command("limits", "show", "--team", "t")}
        assert (shown["team"]["rpm"], shown["team"]["tpm"], shown["team"]["from"]) == (None, 100_000, "team")
        assert (shown["model"]["name"], shown["model"]["rpm"]) == ("grok-4", 1)
        assert server.command("limits", "clear", "--team", "t") == {"cleared": 2}
        assert server.command("limits", "show", "--team", "t")[0]["from"] == "tier small"
        acts = [act["action"] for act in server.command("audit") if act["resource"]["kind"] == "limit"]
        assert sorted(acts) == ["limits.clear", "limits.clear", "limits.set", "limits.set"]


TALK = [{"role": "user", "content": "hi"}]
DIALECTS: dict[str, Any] = {
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 5},
    "/v1/chat/completions ": {"messages": TALK, "max_tokens": 5, "stream": True},
    "/v1/chat/completions  ": {"messages": TALK, "max_tokens": 5, "deferred": True},
    "/v1/responses": {"input": "hi", "max_output_tokens": 5},
    "/v1/responses ": {"input": "hi", "max_output_tokens": 5, "stream": True},
    "/v1/messages": {"messages": TALK, "max_tokens": 5},
    "/v1/messages ": {"messages": TALK, "max_tokens": 5, "stream": True},
    "/v1/completions": {"prompt": "hi", "max_tokens": 5},
    "/v1/complete": {"prompt": "hi", "max_tokens_to_sample": 5},
    "/v1/embeddings": {"model": "grok-embedding-small", "input": "hi"},
}
ASK_ONLY: dict[str, Any] = {
    "/v1/tokenize-text": {"text": "hi"},
    "/v1/messages/count_tokens": {"messages": TALK},
}


def rates(headers: dict[str, str]) -> dict[str, int]:
    beginning = "x-ratelimit-"
    return {name.removeprefix(beginning): int(headers[name]) for name in headers if name.startswith(beginning)}


@pytest.fixture(scope="module", params=["memory", "redis"])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("counted")
    with ExitStack() as stack:
        config = ECHO
        if request.param == "redis":
            config += f'[limits]\nurl = "{stack.enter_context(redis_server(folder / "redis")).url}"\n'
        yield stack.enter_context(running(folder / "home", config=config))


@pytest.mark.parametrize("path", sorted({**DIALECTS, **ASK_ONLY}))
def test_both_answers_tell_how_the_limits_stand(counted: Server, path: str) -> None:
    """In every dialect; a refusal tells of the limit that refused."""
    made = counted.command("keys", "create", "--name", "k", "--rpm", "1", "--tpm", "100000")
    body = {"model": "grok-4", **DIALECTS.get(path, ASK_ONLY.get(path))}
    status, headers, answer = counted.request("POST", path.strip(), body, key=made["key"])
    assert status == 200, answer
    found = rates(headers)
    if path in DIALECTS:
        assert (found["limit-requests"], found["remaining-requests"], found["limit-tokens"]) == (1, 0, 100_000)
        assert 99_000 < found["remaining-tokens"] < 100_000
    status, headers, answer = counted.request("POST", path.strip(), body, key=made["key"])
    assert status == 429, answer
    assert answer["error"]["type"] == "rate_limit_error"
    found = rates(headers)
    assert (found["limit-requests"], found["remaining-requests"], found["limit-tokens"]) == (1, 0, 100_000)
    assert 1 <= int(headers["retry-after"]) <= 61


def test_a_limit_per_second_is_kept_and_told_of(counted: Server) -> None:
    """By a key's own rps: as many as it says at once, the next one by the second."""
    key = counted.command("keys", "create", "--name", "k", "--rps", "2")["key"]
    counted.request("GET", "/v1/models", key=key)
    began_s = time.monotonic()
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: ask(counted, key), range(20)))
    passed_s = time.monotonic() - began_s
    good = sum(status == 200 for status, _, _ in answers)
    assert 2 <= good <= 2 + 2 * passed_s
    for status, headers, body in answers:
        assert rates(headers)["limit-requests"] == 2
        if status == 429:
            assert rates(headers)["remaining-requests"] == 0
            assert "2 requests per second" in body["error"]["message"]
            assert headers["retry-after"] == "1"


def test_what_is_refused_for_want_of_credit_tells_of_the_limits_too(counted: Server) -> None:
    name = f"poor-{time.monotonic_ns()}"
    counted.command("teams", "create", "--name", name, "--prepaid")
    key = counted.command("keys", "create", "--name", "k", "--team", name, "--rpm", "7")["key"]
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions"):
        status, headers, body = counted.request("POST", path, {"model": "grok-4", **DIALECTS[path]}, key=key)
        assert (status, body["error"]["code"]) == (429, "insufficient_quota")
        assert rates(headers)["limit-requests"] == 7
        assert "retry-after" not in headers


class Load:
    """Asks both gateways all the time, and keeps every answer."""

    def __init__(self, servers: tuple[Server, Server], key: str) -> None:
        self.answers: list[tuple[int, str, str | None]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(servers[n % 2], key)) for n in range(6)]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: Server, key: str) -> None:
        while not self._stop.is_set():
            status, headers, body = ask(server, key)
            code = None if status == 200 else body["error"]["code"]
            self.answers.append((status, headers["x-request-id"], code))
            if status != 200:
                assert status != 503 or code == "stopping" or int(headers["retry-after"]) >= 1
                time.sleep(0.02)

    def wait_for(self, status: int, code: str | None = None) -> None:
        """Returns when such an answer comes that was asked for after this call began, or soon before."""
        seen = len(self.answers)
        until = time.monotonic() + 60
        while not any(one[0] == status and code in (None, one[2]) for one in self.answers[seen + 6 :]):
            assert time.monotonic() < until, Counter((one[0], one[2]) for one in self.answers[seen:])
            time.sleep(0.02)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_postgresql_and_redis_taken_away_under_load(
    postgres: Any,
    postgres_url: str,
    redis: RedisServer,
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        both = gateways(stack, tmp_path, postgres_url, redis)
        both[0].command("teams", "create", "--name", "paying", "--prepaid")
        both[0].command("credits", "add", "--team", "paying", "--usd", "100")
        key = both[0].command("keys", "create", "--name", "k", "--team", "paying", "--rpm", "1000000")["key"]
        load = Load(both, key)
        try:
            load.wait_for(200)
            redis.stop()
            load.wait_for(503, "limits_unavailable")
            redis.start()
            load.wait_for(200)
            postgres.stop()
            load.wait_for(503, "store_unreachable")
            postgres.start()
            load.wait_for(200)
        finally:
            load.end()
        assert {status for status, _, _ in load.answers} == {200, 503}
        codes = {code for status, _, code in load.answers if status == 503}
        assert codes <= {"limits_unavailable", "store_unreachable", "store_behind", "store_failed", "store_busy"}, codes
        good = {request_id for status, request_id, _ in load.answers if status == 200}
        failed = {request_id for status, request_id, _ in load.answers if status == 503}
        rows = {row["request_id"] for row in both[0].usage() if row["status"] == "ok"}
        assert good <= rows, "every answer that was given is charged"
        assert rows - good <= failed, "and no other, but one whose commit was cut may be"
        assert [server.stop() for server in both] == [0, 0]
        assert both[0].command("credits", "check") == {"ok": True, "mismatches": []}
