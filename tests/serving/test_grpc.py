"""gRPC in process: server tools of a script, and what the server promises to keepalive."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import xai_sdk
from xai_sdk.chat import user
from xai_sdk.tools import code_execution, get_tool_call_type, web_search

from jubal.accounts import keys, teams
from jubal.accounts.guesses import WrongKeys
from jubal.accounts.keys import KeyRing
from jubal.accounts.limits import MemoryLimiter
from jubal.accounts.store import GroupCommit, Store
from jubal.agent.toolbox import Toolbox
from jubal.core.events import TextDelta, ToolCall, TurnEnded
from jubal.core.model import Catalogue, Model, Weights
from jubal.core.server_tools import Source
from jubal.core.usage import Usage
from jubal.records import answers
from jubal.records.sealing import FernetSealer
from jubal.serving.admission import Admission
from jubal.serving.answers import Answers
from jubal.serving.deferred import Deferred
from jubal.serving.door import Door
from jubal.serving.grpc import MESSAGE_BYTES_MAX, GrpcServer, options
from jubal.serving.pipeline import Pipeline, Served
from jubal.serving.places import Place, bind, place, reserve
from jubal.testing.engines import ScriptedEngine
from jubal.testing.tools import ScriptedTools
from jubal.tools.base import Found, ToolFailed, ToolOutput
from tests.server import free_port

ABLE = Weights("able", "fp_0000000000", 1_000_000, tools=True)
PAGE = Source("https://a.test/page", "A page")
SEARCHES = [
    ToolCall("w1", "web_search", '{"query":"x"}'),
    ToolCall("c1", "run", '{"code":"1"}'),
    TurnEnded(("stop",), Usage(10, 4)),
]
ANSWERS = [TextDelta("It is so [1]."), TurnEnded(("stop",), Usage(30, 5))]


@asynccontextmanager
async def serving(
    tmp_path: Path, engine: ScriptedEngine, *families: ScriptedTools, wrong_keys: WrongKeys | None = None, key: str = ""
) -> AsyncIterator[xai_sdk.AsyncClient]:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        team = store.read(teams.default)
        _, secret = store.transact(keys.create, team_id=team.id, name="k", now_us=1)
        log = GroupCommit(store, answers.settle)
        toolbox = Toolbox({family.kind: family for family in families})
        model = Model("grok-4", engine.name, "up")
        served = {engine.name: Served(engine, Admission(engine.name, None, 5))}
        pipeline = Pipeline(Catalogue.of([model]), served, KeyRing(store), MemoryLimiter(), log, toolbox=toolbox)
        server = GrpcServer(
            pipeline,
            store,
            FernetSealer(b"secret"),
            Deferred(store, pipeline, {}),
            Answers(store, "xai_grpc"),
            "xai_grpc",
            health=lambda: True,
            door=Door(pipeline, wrong_keys),
        )
        at = Place(("127.0.0.1",), free_port())
        await server.start(at)
        client = xai_sdk.AsyncClient(api_key=key or secret, api_host=f"localhost:{at.port}")
        try:
            yield client
        finally:
            await client.close()
            await server.close()
            await pipeline.drain()
            await log.close()


def families() -> tuple[ScriptedTools, ScriptedTools]:
    return (
        ScriptedTools({"web_search": ToolOutput("found", (Found(PAGE, "text"),))}),
        ScriptedTools({"run": ToolFailed("no sandbox")}, "code_execution"),
    )


async def test_the_sdk_sees_server_tools_run(tmp_path: Path) -> None:
    engine = ScriptedEngine(SEARCHES, ANSWERS, SEARCHES, ANSWERS, weights=ABLE)
    async with serving(tmp_path, engine, *families()) as client:
        settings: dict[str, Any] = {
            "model": "grok-4",
            "messages": [user("Is it so?")],
            "tools": [web_search(), code_execution()],
            "include": ["inline_citations", "code_execution_call_output"],
        }
        chat = client.chat.create(**settings)
        live = []
        async for response, chunk in chat.stream():  # noqa: B007
            live += [get_tool_call_type(call) for call in chunk.tool_calls]
        assert live == ["web_search_tool", "code_execution_tool"], "told when they begin"
        whole = await client.chat.create(**settings).sample()
        for one in (response, whole):
            assert one.content == "It is so [[1]](https://a.test/page)."
            assert list(one.citations) == [PAGE.url]
            [cited] = one.inline_citations
            assert one.content[cited.start_index : cited.end_index] == f"[[1]]({PAGE.url})"
            assert one.server_side_tool_usage == {"SERVER_SIDE_TOOL_WEB_SEARCH": 1}, "the failed call is not counted"
            assert {output.message.tool_calls[0].function.name for output in one.tool_outputs} == {"web_search", "run"}
            assert [output.message.content for output in one.tool_outputs if output.message.content] == [
                "The call failed: no sandbox"
            ]
            assert one.finish_reason == "REASON_STOP"
            assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (40, 9)
            assert len(one.proto.outputs) == 4
        assert [(one.index, one.message.role) for one in response.proto.outputs] == [
            (one.index, one.message.role) for one in whole.proto.outputs
        ]


async def test_an_answer_with_server_tools_can_be_gone_on_from(tmp_path: Path) -> None:
    """The engine must see the calls and what they gave, though nobody asked to include that."""
    engine = ScriptedEngine(SEARCHES, ANSWERS, ANSWERS, ANSWERS, weights=ABLE)
    async with serving(tmp_path, engine, *families()) as client:
        chat = client.chat.create(
            model="grok-4", messages=[user("Is it so?")], tools=[web_search(), code_execution()], store_messages=True
        )
        first = await chat.sample()
        stored = await client.chat.get_stored_completion(first.id)
        assert stored[-1].content == first.content, "a Response for each output"
        chained = client.chat.create(model="grok-4", messages=[user("Sure?")], previous_response_id=first.id)
        await chained.sample()
        roles = [message.role for message in engine.turns[-1].messages]
        assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]
        assert "https://a.test/page" in engine.turns[-1].messages[2].text
        chat.append(first)
        chat.append(user("Sure?"))
        await chat.sample()
        roles = [message.role for message in engine.turns[-1].messages]
        assert roles == ["system", "user", "assistant", "user"], "appended without their outputs, calls are left out"


async def test_a_conversation_id_is_a_cache_key(tmp_path: Path) -> None:
    engine = ScriptedEngine(ANSWERS)
    async with serving(tmp_path, engine) as client:
        stub = client.chat._stub
        ask = client.chat.create(model="grok-4", messages=[user("hi")])._make_request(1)
        await stub.GetCompletion(ask, metadata=(("x-grok-conv-id", "conv-7"),))
        assert engine.turns[-1].cache_key == "conv-7"


async def test_an_unforeseen_fault_is_internal(tmp_path: Path) -> None:
    engine = ScriptedEngine([TextDelta("a"), RuntimeError("secret detail")])
    async with serving(tmp_path, engine) as client:
        with pytest.raises(grpc.RpcError) as caught:
            await client.chat.create(model="grok-4", messages=[user("hi")]).sample()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in caught.value.details()


def test_options_let_the_sdk_live() -> None:
    alone: dict[str, Any] = dict(options(shared=False))
    assert alone["grpc.keepalive_permit_without_calls"] == 1, "it pings without calls too"
    assert alone["grpc.http2.min_recv_ping_interval_without_data_ms"] < 30_000, "every 30 s"
    assert alone["grpc.http2.max_ping_strikes"] == 0
    assert alone["grpc.max_receive_message_length"] == alone["grpc.max_send_message_length"] == MESSAGE_BYTES_MAX
    assert alone["grpc.so_reuseport"] == 0
    assert dict(options(shared=True)) == {**alone, "grpc.so_reuseport": 1}


def test_places() -> None:
    port = free_port()
    assert place("127.0.0.1", port).hosts[0] == "127.0.0.1"
    assert place("localhost", port).hosts[0] == "127.0.0.1"
    assert place("0.0.0.0", port).hosts == ("0.0.0.0",)
    assert list(Place(("127.0.0.1", "::1"), 5).addresses) == ["127.0.0.1:5", "[::1]:5"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        with pytest.raises(OSError, match="in use"):
            place("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            reserve("127.0.0.1", taken.getsockname()[1])


def test_a_port_that_is_kept_for_several_is_nobody_elses() -> None:
    with reserve("127.0.0.1", 0) as kept:
        host, port = kept.getsockname()
        for listeners in (0, 1, 2):
            with ExitStack() as several:
                for _ in range(listeners):
                    several.enter_context(bind(host, port, shared=True))
                for other in (bind, reserve, place):
                    with pytest.raises(OSError, match="in use"):
                        other(host, port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port))  # whoever keeps it takes no connections
    bind(host, port).close()


class CountedGuesses(WrongKeys):
    """Remembers from where wrong keys came, and holds nobody back."""

    def __init__(self) -> None:
        super().__init__(0)
        self.addresses: list[str | None] = []

    def held_back(self, address: str | None) -> Any:
        self.addresses.append(address)
        return super().held_back(address)


async def test_wrong_keys_are_counted_by_address(tmp_path: Path) -> None:
    guesses = CountedGuesses()
    async with serving(tmp_path, ScriptedEngine(ANSWERS), wrong_keys=guesses) as client:
        assert (await client.chat.create(model="grok-4", messages=[user("hi")]).sample()).content
    assert guesses.addresses == [], "a good key is never held back"
    async with serving(tmp_path, ScriptedEngine(ANSWERS), wrong_keys=guesses, key="xai-wrong") as stranger:
        with pytest.raises(grpc.RpcError):
            await stranger.chat.create(model="grok-4", messages=[user("hi")]).sample()
    assert guesses.addresses == ["127.0.0.1"]
