"""Answers that are kept: charged and kept together or not at all, found in the cache as any other, and gone on from in whatever
dialect comes next. Against a really started server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import xai_sdk
from xai_sdk.chat import assistant, tool, tool_result, user

from tests.fake_upstream import Behaviour, Upstream, ending, piece, says, upstream
from tests.server import ECHO, Server, running, start, to_upstream

RESPONSES = "/v1/responses"
REFUSES = """CREATE TRIGGER refuses BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'no room for answers'); END"""
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


def calls(name: str, arguments: dict[str, Any]) -> Behaviour:
    call = {"index": 0, "id": "call_1", "function": {"name": name, "arguments": json.dumps(arguments)}}
    frame = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
    return says(b"data: " + json.dumps(frame).encode() + b"\n\n", ending(reason="tool_calls"))


HELLO = says(piece("Hello."), ending())


@asynccontextmanager
async def served(home: Path, *behaviours: Behaviour) -> AsyncIterator[tuple[Server, Upstream, xai_sdk.AsyncClient]]:
    async with upstream(*behaviours) as there:
        server = await asyncio.to_thread(start, home, config=to_upstream(there.url), grpc=True)
        client = xai_sdk.AsyncClient(api_key=server.key, api_host=f"localhost:{server.grpc_port}")
        try:
            yield server, there, client
        finally:
            await client.close()
            server.kill()


async def respond(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"model": "grok-4", "input": "hi", **fields}
    status, _, answer = await asyncio.to_thread(server.request, "POST", RESPONSES, body)
    assert status == 200, answer
    return dict(answer)


def said(there: Upstream) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in there.bodies[-1]["messages"]]


# ---------------------------------------------------------------------------------------------- charged and kept


def test_an_answer_that_can_not_be_kept_is_not_charged(tmp_path: Path) -> None:
    """The store fails where the answer is written, after its charge: both are undone, and the client hears of it."""
    with running(tmp_path / "home", config=ECHO) as server:
        server.request("POST", RESPONSES, {"model": "grok-4", "input": "before"})
        [before] = server.usage()
        assert before["cost_in_usd_ticks"] > 0
        with sqlite3.connect(server.home / "jubal.db", timeout=60) as database:
            database.execute(REFUSES)
        for stream in (False, True):
            status, headers, answer = server.request(
                "POST", RESPONSES, {"model": "grok-4", "input": "lost", "stream": stream}
            )
            if stream:
                assert status == 200, "it had begun"
                last = json.loads(answer.split(b"data: ")[-1])
                assert last["type"] == "response.failed"
            else:
                assert status >= 500
            assert server.request("GET", f"{RESPONSES}/{headers['x-request-id']}")[0] == 404
        assert server.usage() == [before], "neither is charged"
        unkept = {"model": "grok-4", "input": "plain", "store": False}
        assert server.request("POST", RESPONSES, unkept)[0] == 200, "what is not kept needs no room"
        with sqlite3.connect(server.home / "jubal.db", timeout=60) as database:
            database.execute("DROP TRIGGER refuses")
        status, _, kept = server.request("POST", RESPONSES, {"model": "grok-4", "input": "after"})
        assert status == 200
        assert server.request("GET", f"{RESPONSES}/{kept['id']}")[2] == kept
        assert len(server.usage()) == 3
        assert server.command("credits", "check")["ok"] is True


def test_answers_that_others_share_a_transaction_with_do_not_fall_with_it(tmp_path: Path) -> None:
    with running(tmp_path / "home", config=ECHO) as server:
        with sqlite3.connect(server.home / "jubal.db", timeout=60) as database:
            database.execute(REFUSES)
        got: list[tuple[bool, int]] = []

        def ask(store: bool) -> None:
            status, _, _ = server.request("POST", RESPONSES, {"model": "grok-4", "input": "x", "store": store})
            got.append((store, status))

        threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert {status for store, status in got if not store} == {200}
        assert {status for store, status in got if store} == {500}
        assert len(server.usage()) == 10


# ---------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("store", [True, False])
def test_a_response_is_answered_from_the_cache_and_kept_all_the_same(tmp_path: Path, store: bool) -> None:
    with running(tmp_path / "home", config=ECHO + "[cache]\nenabled = true\n") as server:
        body = {"model": "grok-4", "input": "again", "temperature": 0, "store": store}
        _, first_headers, first = server.request("POST", RESPONSES, body)
        _, headers, second = server.request("POST", RESPONSES, body)
        assert (first_headers["x-jubal-cache"], headers["x-jubal-cache"]) == ("miss", "hit")
        assert second["id"] != first["id"]
        assert second["output"][0]["content"] == first["output"][0]["content"]
        assert second["usage"]["cost_in_usd_ticks"] == 0
        for answer in (first, second):
            assert server.request("GET", f"{RESPONSES}/{answer['id']}")[0] == (200 if store else 404)
        for past in ({"cache": False}, {"input": "other"}):
            assert server.request("POST", RESPONSES, {**body, **past})[1].get("x-jubal-cache") != "hit"
        assert "x-jubal-cache" not in server.request("POST", RESPONSES, body, headers={"cache-control": "no-cache"})[1]


async def test_a_stored_grpc_answer_is_answered_from_the_cache(tmp_path: Path) -> None:
    config = ECHO + "[cache]\nenabled = true\n"
    server = await asyncio.to_thread(start, tmp_path / "home", config=config, grpc=True)
    client = xai_sdk.AsyncClient(api_key=server.key, api_host=f"localhost:{server.grpc_port}")
    try:
        asked = {"model": "grok-4", "messages": [user("again")], "temperature": 0, "store_messages": True}
        answers = [await client.chat.create(**asked).sample() for _ in range(2)]
        assert [one.content for one in answers] == ["again"] * 2
        assert answers[1].usage.cost_in_usd_ticks == 0
        for one in answers:
            [kept] = await client.chat.get_stored_completion(one.id)
            assert kept.content == "again"
    finally:
        await client.close()
        server.kill()


# ---------------------------------------------------------------------------------------------- across dialects


async def test_grpc_goes_on_from_a_response(tmp_path: Path) -> None:
    async with served(tmp_path / "home", HELLO) as (server, there, client):
        first = await respond(server, instructions="Be brief.", input="My name is Ada.")
        chat = client.chat.create(model="grok-4", previous_response_id=first["id"], store_messages=True)
        chat.append(user("What is my name?"))
        second = await chat.sample()
        conversation = [("system", "Be brief."), ("user", "My name is Ada."), ("assistant", "Hello.")]
        assert said(there) == [*conversation, ("user", "What is my name?")]
        third = await respond(server, input="And now?", previous_response_id=second.id)
        assert said(there)[3:] == [("user", "What is my name?"), ("assistant", "Hello."), ("user", "And now?")]
        assert third["previous_response_id"] == second.id
        assert (await asyncio.to_thread(server.request, "GET", f"{RESPONSES}/{second.id}"))[0] == 404, "not its own"


async def test_a_response_goes_on_from_a_grpc_answer_with_a_client_s_call(tmp_path: Path) -> None:
    async with served(tmp_path / "home", calls("get_weather", {"city": "Oslo"}), HELLO) as (server, there, client):
        weather = tool("get_weather", "", {"type": "object", "properties": {}})
        chat = client.chat.create(model="grok-4", messages=[user("Weather?")], tools=[weather], store_messages=True)
        first = await chat.sample()
        output = {"type": "function_call_output", "call_id": first.tool_calls[0].id, "output": "sunny"}
        await respond(server, input=[output], previous_response_id=first.id, tools=[TOOL])
        asked, called, told = there.bodies[-1]["messages"]
        assert (asked["content"], told["role"], told["content"]) == ("Weather?", "tool", "sunny")
        [call] = called["tool_calls"]
        assert (call["id"], json.loads(call["function"]["arguments"])) == (told["tool_call_id"], {"city": "Oslo"})


async def test_a_grpc_result_without_an_id_answers_the_call_of_a_response(tmp_path: Path) -> None:
    async with served(tmp_path / "home", calls("get_weather", {}), HELLO) as (server, there, client):
        first = await respond(server, tools=[TOOL])
        chat = client.chat.create(model="grok-4", previous_response_id=first["id"])
        chat.append(tool_result("rain"))
        await chat.sample()
        _, called, told = there.bodies[-1]["messages"]
        assert (told["tool_call_id"], told["content"]) == (called["tool_calls"][0]["id"], "rain")


async def test_a_deferred_grpc_request_goes_on_from_a_response(tmp_path: Path) -> None:
    """Its conversation is in the job itself: the response may be deleted meanwhile."""
    async with served(tmp_path / "home", HELLO) as (server, there, client):
        picture = {"type": "input_image", "image_url": "data:image/png;base64," + PNG, "detail": "low"}
        content = [{"type": "input_text", "text": "Look."}, picture]
        first = await respond(server, input=[{"role": "user", "content": content}])
        chat = client.chat.create(
            model="grok-4", previous_response_id=first["id"], messages=[assistant("Hm."), user("Go.")]
        )
        assert (await chat.defer()).content == "Hello."
        asked = there.bodies[-1]["messages"]
        assert [message["role"] for message in asked] == ["user", "assistant", "assistant", "user"]
        assert [part["type"] for part in asked[0]["content"]] == ["text", "image_url"]
        assert asked[0]["content"][1]["image_url"]["detail"] == "low"


async def test_another_team_can_not_go_on_from_it(tmp_path: Path) -> None:
    async with served(tmp_path / "home", HELLO) as (server, _, _):
        first = await respond(server)
        await asyncio.to_thread(server.command, "teams", "create", "--name", "others")
        other = await asyncio.to_thread(server.command, "keys", "create", "--name", "o", "--team", "others")
        stranger = xai_sdk.AsyncClient(api_key=other["key"], api_host=f"localhost:{server.grpc_port}")
        try:
            chat = stranger.chat.create(model="grok-4", previous_response_id=first["id"], messages=[user("hi")])
            with pytest.raises(Exception, match="There is no response"):
                await chat.sample()
        finally:
            await stranger.close()


PNG = "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAJ0lEQVR42u3NsQkAAAjAsP7/tF7hIASyp6lTCQQCgUAgEAgEgi/BAjLD/C5w/SM9AAAAAElFTkSuQmCC"
"""A red square."""
