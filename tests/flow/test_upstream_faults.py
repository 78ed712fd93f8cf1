"""A started server in front of upstreams that refuse, hang, die and come back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fake_upstream import (
    Behaviour,
    dies_after,
    ending,
    hangs_before_headers,
    lists,
    piece,
    refuses,
    says,
    says_body,
    upstream,
    whole,
)
from tests.server import Server, free_port, start, to_upstream

BODY = {"model": "grok-4", "messages": [{"role": "user", "content": "hi"}]}
SPARE = 'fallback = ["spare"]\n[engines.spare]\nkind = "echo"\n'
VECTORS = '[models."vectors"]\nkind = "embedding"\nengine = "box"\n'
QUIET = {"health_interval_s": 0}


class Gateway:
    """A server and a client with its key."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._session = session

    async def ask(self, path: str = "/chat/completions", **fields: Any) -> tuple[int, Any, dict[str, str]]:
        """(status, body: decoded JSON, or the text of a stream; headers with lower-case names)"""
        body = {**(BODY if "input" not in fields else {}), **fields}
        async with self._session.post(self.server.url + path, json=body) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if headers["content-type"].startswith("application/json"):
                return answer.status, await answer.json(), headers
            return answer.status, await answer.text(), headers

    async def health(self) -> tuple[int, dict[str, Any]]:
        async with self._session.get(f"http://127.0.0.1:{self.server.port}/health") as answer:
            return answer.status, await answer.json()

    async def engine(self, name: str = "box") -> dict[str, Any]:
        one: dict[str, Any] = (await self.health())[1]["engines"][name]
        return one

    async def until(self, told: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The engine's entry in /health, once it is as told."""
        async with asyncio.timeout(60):
            while not told(engine := await self.engine()):
                await asyncio.sleep(0.03)
            return engine

    async def rows(self) -> list[dict[str, Any]]:
        rows = await asyncio.to_thread(self.server.usage)
        assert not [id for id, count in Counter(row["request_id"] for row in rows).items() if count > 1]
        return rows

    def log(self) -> str:
        return self.server.log.read_text()


@asynccontextmanager
async def gateway(
    home: Path, url: str, config: str = "", *, wait: bool = True, **keys: object
) -> AsyncIterator[Gateway]:
    text = to_upstream(url, **keys) + config
    server = await asyncio.to_thread(lambda: start(home, config=text, wait=wait))
    try:
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {server.key}"}) as session:
            yield Gateway(server, session)
    finally:
        if server.process.poll() is None:
            server.kill()


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_an_upstream_that_recovers_is_tried_again_and_charged_once(tmp_path: Path, status: int) -> None:
    bad = refuses(status, None, **{"retry-after": "1"})
    async with upstream(bad, bad, whole("there")) as there, gateway(tmp_path, there.url, **QUIET) as one:
        got, body, _ = await one.ask()
        assert (got, body["choices"][0]["message"]["content"]) == (200, "there")
        assert len(there.bodies) == 3
        [row] = await one.rows()
        assert (row["status"], row["completion_tokens"]) == ("ok", 2)
        assert row["cost_in_usd_ticks"] == body["usage"]["cost_in_usd_ticks"] > 0


async def test_a_long_retry_after_is_told_and_not_waited_for(tmp_path: Path) -> None:
    async with (
        upstream(refuses(429, None, **{"retry-after": "90"})) as there,
        gateway(tmp_path, there.url, **QUIET) as one,
    ):
        status, _, headers = await one.ask()
        assert (status, headers["retry-after"]) == (498, "90")
        assert len(there.bodies) == 1


PATIENT_S = 60.0
FAULTS: list[tuple[Behaviour, int, str]] = [
    (refuses(500), 502, "engine_broken"),
    (hangs_before_headers(), 504, "engine_timeout"),
    (says_body(b'{"choices": [{"ind'), 502, "engine_broken"),
    (says_body(b"<html>sign in</html>"), 502, "engine_broken"),
    (says(b"data: {\xff}\n\n"), 502, "engine_broken"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAULTS)
@pytest.mark.parametrize("stream", [True, False])
async def test_faults_before_the_first_piece_are_ordinary_errors_and_open_the_breaker(
    tmp_path: Path, fault: Behaviour, status: int, code: str, stream: bool
) -> None:
    keys = {
        "retries": 0,
        "timeout_s": 0.5 if status == 504 else PATIENT_S,
        "breaker_failures": 2,
        "breaker_rest_s": 3600,
    }
    async with upstream(fault) as there, gateway(tmp_path, there.url, **keys, **QUIET) as one:
        for _ in range(2):
            got, body, _ = await one.ask(stream=stream)
            assert (got, body["error"]["code"]) == (status, code)
        got, body, headers = await one.ask(stream=stream)
        assert (got, body["error"]["code"]) == (503, "engine_unavailable")
        assert "resting" in body["error"]["message"]
        assert 3000 < int(headers["retry-after"]) <= 3600
        assert len(there.bodies) == 2
        assert [(row["status"], row["cost_in_usd_ticks"]) for row in await one.rows()] == [("failed", 0)] * 2
        got, told = await one.health()
        assert (got, told["status"], told["engines"]["box"]["breaker"]) == (503, "degraded", "open")
        assert told["engines"]["box"]["failures_in_a_row"] == 2
        assert "engine rests after failures" in one.log()


async def test_an_answer_that_dies_in_the_middle_is_not_tried_again(tmp_path: Path) -> None:
    async with (
        upstream(dies_after(piece("half"), piece(" an"))) as there,
        gateway(tmp_path, there.url, SPARE, breaker_failures=1, **QUIET) as one,
    ):
        status, text, _ = await one.ask(stream=True)
        frames = [json.loads(line[6:]) for line in text.split("\n\n") if line]
        assert status == 200
        assert frames[-1]["error"]["code"] == "engine_broken"
        assert "[DONE]" not in text
        assert len(there.bodies) == 1
        [row] = await one.rows()
        assert (row["status"], row["completion_tokens"], row["cost_in_usd_ticks"]) == ("failed", 2, 0)
        assert row["estimated"]
        assert (await one.engine())["breaker"] == "closed"


async def test_a_slow_body_is_no_fault(tmp_path: Path) -> None:
    body = json.dumps({"choices": [{"index": 0, "message": {"content": "slow"}, "finish_reason": "stop"}]}).encode()
    pause_s = 0.04
    assert len(body) * pause_s > 3
    async with upstream(says_body(body, pause_s)) as there, gateway(tmp_path, there.url, timeout_s=3, **QUIET) as one:
        status, told, _ = await one.ask()
        assert (status, told["choices"][0]["message"]["content"]) == (200, "slow")


async def test_a_fallback_answers_while_the_engine_rests(tmp_path: Path) -> None:
    async with (
        upstream(refuses(503), refuses(503), whole("primary")) as there,
        gateway(tmp_path, there.url, SPARE, retries=0, breaker_failures=2, breaker_rest_s=3600, **QUIET) as one,
    ):
        for _ in range(5):
            assert (await one.ask())[1]["choices"][0]["message"]["content"] == "hi"
        assert len(there.bodies) == 2
        status, told = await one.health()
        assert (status, told["status"]) == (200, "degraded"), "the model still has an engine"
        assert [(row["engine"], row["status"]) for row in await one.rows()] == [("spare", "ok")] * 5


async def test_an_engine_that_has_rested_is_tried_by_one_and_answers_again(tmp_path: Path) -> None:
    down = refuses(503)
    async with (
        upstream(down, down, down, whole("primary")) as there,
        gateway(tmp_path, there.url, SPARE, retries=0, breaker_failures=2, breaker_rest_s=0.5, **QUIET) as one,
    ):
        async with asyncio.timeout(60):
            while (await one.ask())[1]["choices"][0]["message"]["content"] != "primary":
                await asyncio.sleep(0.02)
        assert (await one.engine())["breaker"] == "closed"
        assert len(there.bodies) == 4, "two open it, one tries in vain, one closes it"
        rows = await one.rows()
        assert {row["status"] for row in rows} == {"ok"}
        assert [row["engine"] for row in rows] == ["spare"] * (len(rows) - 1) + ["box"]


async def test_an_upstream_that_is_not_there_is_seen_and_so_is_its_return(tmp_path: Path) -> None:
    """Long rests: only the health check can end them within the test."""
    port = free_port()
    keys = {"retries": 0, "breaker_failures": 1, "breaker_rest_s": 3600, "health_interval_s": 0.1}
    async with gateway(tmp_path, f"http://127.0.0.1:{port}/v1", wait=False, **keys) as one:
        status, body, _ = await one.ask()
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")
        engine = await one.until(lambda told: told["state"] == "failed")
        assert engine["reason"] == "The upstream can't be reached."
        assert engine["breaker"] == "open"
        assert (await one.health())[0] == 503
        status, body, headers = await one.ask()
        assert "resting" in body["error"]["message"]
        assert int(headers["retry-after"]) > 3000
        async with upstream(whole("back"), models=lists("up"), port=port) as there:
            await one.until(lambda told: told["state"] == "ready")
            async with asyncio.timeout(60):
                while (answer := await one.ask())[0] != 200:
                    await asyncio.sleep(0.02)
            assert answer[1]["choices"][0]["message"]["content"] == "back"
            assert len(there.bodies) == 1
            assert (await one.health()) == (200, await _ok(one))
        assert "upstream answers again" in one.log()


async def _ok(one: Gateway) -> dict[str, Any]:
    told = (await one.health())[1]
    assert told["status"] == "ok"
    assert told["engines"]["box"]["breaker"] == "closed"
    return told


async def test_an_upstream_that_refuses_our_key_is_named_to_the_operator(tmp_path: Path) -> None:
    async with (
        upstream(whole("x"), models=refuses(401)) as there,
        gateway(tmp_path, there.url, SPARE, wait=False, api_key="sk-up", health_interval_s=0.1) as one,
    ):
        engine = await one.until(lambda told: told["state"] == "failed")
        assert "refused our key" in engine["reason"]
        assert there.asked_for_models[0]["authorization"] == "Bearer sk-up"
        status, told = await one.health()
        assert (status, told["status"]) == (200, "degraded"), "there is a fallback"
        assert "refused our key" in one.log()
        assert "sk-up" not in one.log() + json.dumps(told)


async def test_a_hanging_list_of_models_fails_the_check_and_a_missing_one_does_not(tmp_path: Path) -> None:
    async with (
        upstream(whole("x"), models=refuses(503)) as there,
        gateway(tmp_path, there.url, wait=False, health_interval_s=0.1) as one,
    ):
        assert (await one.until(lambda told: told["state"] == "failed"))[
            "reason"
        ] == "The upstream answers with HTTP 503."
        there.models = None
        assert "reason" not in await one.until(lambda told: told["state"] == "ready")


async def test_the_real_window_and_the_real_names_are_learned(tmp_path: Path) -> None:
    async with (
        upstream(
            whole("x"), models=lists({"id": "other", "max_model_len": 8}, {"id": "up", "max_model_len": 4096})
        ) as there,
        gateway(
            tmp_path, there.url, '[models.wrong]\nengine = "box"\nupstream = "typo"\n', health_interval_s=0.1
        ) as one,
    ):
        async with asyncio.timeout(60):
            while len(there.asked_for_models) < 4:
                await asyncio.sleep(0.02)
        _, _, listed = await asyncio.to_thread(one.server.request, "GET", "/v1/models/grok-4")
        assert 4096 in listed.values()
        assert one.log().count("does not list a configured model") == 1
        assert "typo" in one.log()


async def test_embeddings_have_the_same_breaker(tmp_path: Path) -> None:
    vector = {"data": [{"index": 0, "embedding": [0.6, 0.8]}], "usage": {"prompt_tokens": 3}}
    behaviours = (refuses(500), refuses(500), says_body(json.dumps(vector).encode()))
    fields = {"path": "/embeddings", "model": "vectors", "input": "x"}
    keys = {"retries": 0, "breaker_failures": 2, **QUIET}
    async with (
        upstream(*behaviours) as there,
        gateway(tmp_path / "long", there.url, VECTORS, breaker_rest_s=3600, **keys) as one,
    ):
        assert [(await one.ask(**fields))[0] for _ in range(3)] == [502, 502, 503]
        assert len(there.bodies) == 2
        assert (await one.ask())[0] == 503, "the same engine rests for both"
    async with (
        upstream(*behaviours) as there,
        gateway(tmp_path / "short", there.url, VECTORS, breaker_rest_s=0.5, **keys) as one,
    ):
        async with asyncio.timeout(60):
            while (await one.ask(**fields))[0] != 200:
                await asyncio.sleep(0.02)
        assert [row["status"] for row in await one.rows()] == ["failed", "failed", "ok"]


CACHE = "[cache]\nenabled = true\n"


async def test_a_repeated_request_is_answered_from_the_cache(tmp_path: Path) -> None:
    answer = says(piece("Hel"), piece("lo"), ending(5, 2))
    async with upstream(answer) as there, gateway(tmp_path, there.url, CACHE, **QUIET) as one:
        _, text, headers = await one.ask(stream=True, temperature=0)
        assert headers["x-jubal-cache"] == "miss"
        status, body, headers = await one.ask(temperature=0)
        assert (status, headers["x-jubal-cache"]) == (200, "hit")
        assert body["choices"][0]["message"]["content"] == "Hello"
        assert body["usage"]["completion_tokens"] == 2
        assert body["usage"]["cost_in_usd_ticks"] == 0
        assert body["id"].endswith(headers["x-request-id"])
        _, again, headers = await one.ask(stream=True, temperature=0)
        assert headers["x-jubal-cache"] == "hit"
        assert again.endswith("data: [DONE]\n\n")
        assert _said(again) == _said(text) == "Hello"
        assert len(there.bodies) == 1
        _, _, headers = await one.ask(temperature=0, cache=False, stream=True)
        assert "x-jubal-cache" not in headers
        _, _, headers = await one.ask(stream=True)
        assert "x-jubal-cache" not in headers, "not repeatable"
        past = {"cache-control": "no-cache"}
        got = await asyncio.to_thread(
            lambda: one.server.request("POST", "/v1/chat/completions", {**BODY, "temperature": 0}, headers=past)
        )
        assert (got[0], "x-jubal-cache" in got[1]) == (200, False)
        assert len(there.bodies) == 4
        rows = await one.rows()
        assert [(row["engine"], row["status"]) for row in rows[:3]] == [("box", "ok"), ("cache", "ok"), ("cache", "ok")]
        assert rows[0]["cost_in_usd_ticks"] > 0
        assert [row["cost_in_usd_ticks"] for row in rows[1:3]] == [0, 0]
        assert [row["completion_tokens"] for row in rows[:3]] == [2, 2, 2]


def _said(stream: str) -> str:
    frames = [json.loads(line[6:]) for line in stream.split("\n\n") if line and line != "data: [DONE]"]
    return "".join(choice["delta"].get("content") or "" for frame in frames for choice in frame["choices"])


async def test_another_team_and_a_failed_answer_find_nothing_in_the_cache(tmp_path: Path) -> None:
    async with (
        upstream(dies_after(piece("half")), whole("one"), whole("two")) as there,
        gateway(tmp_path, there.url, CACHE, **QUIET) as one,
    ):
        await one.ask(stream=True, seed=1)
        assert (await one.ask(seed=1))[2]["x-jubal-cache"] == "miss"
        await asyncio.to_thread(one.server.command, "teams", "create", "--name", "others")
        made = await asyncio.to_thread(one.server.command, "keys", "create", "--name", "o", "--team", "others")
        status, headers, body = await asyncio.to_thread(
            lambda: one.server.request("POST", "/v1/chat/completions", {**BODY, "seed": 1}, key=made["key"])
        )
        assert (status, headers["x-jubal-cache"]) == (200, "miss")
        assert body["choices"][0]["message"]["content"] == "two"
        assert len(there.bodies) == 3


async def test_without_the_setting_nothing_is_kept(tmp_path: Path) -> None:
    async with upstream(whole("x")) as there, gateway(tmp_path, there.url, **QUIET) as one:
        for _ in range(2):
            assert "x-jubal-cache" not in (await one.ask(temperature=0))[2]
        assert len(there.bodies) == 2


async def test_a_client_that_leaves_a_whole_answer_pays_for_the_prompt(tmp_path: Path) -> None:
    async with upstream(hangs_before_headers()) as there, gateway(tmp_path, there.url, **QUIET) as one:
        waiting = asyncio.ensure_future(one.ask())
        while not there.bodies:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # a client that leaves within 30 ms is noticed then
        waiting.cancel()
        await asyncio.wait_for(there.gone.wait(), 60)
        async with asyncio.timeout(60):
            while not (rows := await one.rows()):
                await asyncio.sleep(0.05)
        [row] = rows
        assert (row["status"], row["completion_tokens"], row["estimated"]) == ("cancelled", 0, True)
        assert row["prompt_tokens"] > 0
        assert row["cost_in_usd_ticks"] > 0
