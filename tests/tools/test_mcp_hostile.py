"""MCP servers that lie, hang, send too much, or change their mind: a call fails, the request goes on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from jubal.agent.toolbox import ToolBounds, Toolbox
from jubal.core.errors import BadRequest
from jubal.core.events import ServerToolResult, ToolCall
from jubal.core.generation import FunctionTool, Generation, Message, TextPart, Tools
from jubal.core.server_tools import Mcp
from jubal.tools import mcp
from jubal.tools.base import ToolFailed
from jubal.tools.mcp import McpTools
from jubal.web.guard import AllowList, Guard
from tests.tools.mcp_box import served

GOOD = {"name": "good", "description": "Does good.", "inputSchema": {"type": "object", "properties": {}}}
SAYS = {"content": [{"type": "text", "text": "said"}]}


@dataclass
class Liar:
    """An MCP server of raw JSON-RPC over HTTP. answers: by method: a result, or a function of the request's parameters.

    A result may be bytes, which are sent as they are. asked: methods, in order.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    redirect: str = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if self.redirect:
            self.asked.append("redirected")
            await _reply(send, b"", 307, location=self.redirect)
        elif scope["method"] != "POST":
            await _reply(send, b"", 405)
        else:
            await self._answer(await _body(receive), send)

    async def _answer(self, asked: dict[str, Any], send: Any) -> None:
        self.asked.append(asked["method"])
        if "id" not in asked:
            await _reply(send, b"", 202)
            return
        result = self.answers.get(asked["method"], {"tools": [GOOD]} if asked["method"] == "tools/list" else SAYS)
        if asked["method"] == "initialize" and "initialize" not in self.answers:
            version = asked["params"]["protocolVersion"]
            result = {
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "x", "version": "1"},
            }
        if callable(result):
            result = await result(asked.get("params") or {})
        body = (
            result
            if isinstance(result, bytes)
            else json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode()
        )
        await _reply(send, body.replace(b"@ID@", str(asked["id"]).encode()), 200)


async def _body(receive: Any) -> dict[str, Any]:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            found: dict[str, Any] = json.loads(body)
            return found


async def _reply(send: Any, body: bytes, status: int, **headers: str) -> None:
    told = {"content-type": "application/json", **headers}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode(), v.encode()) for k, v in told.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def session(liar: Liar, *allowed: str, timeout_s: float = 60) -> AsyncIterator[mcp.McpSession]:
    """Its connection leaves no task behind."""
    async with served(liar) as port:
        before = asyncio.all_tasks()
        family = McpTools(Guard(AllowList(["127.0.0.1"])), connect_timeout_s=timeout_s)
        made = family.open(Mcp("box", f"http://127.0.0.1:{port}/mcp", allowed=allowed, authorization="s3cret"))
        try:
            yield made
        finally:
            await made.close()
        async with asyncio.timeout(60):
            while any("mcp" in str(task.get_coro()) for task in asyncio.all_tasks() - before):
                await asyncio.sleep(0.01)


async def forever(params: dict[str, Any]) -> Any:
    await asyncio.sleep(3600)


def tool(name: str, **changes: Any) -> dict[str, Any]:
    return {**GOOD, "name": name, **changes}


async def test_only_tools_that_can_be_offered_are() -> None:
    tools = [
        tool("good"),
        tool("good", description="Another of that name."),
        tool("web_search"),
        tool("has spaces"),
        tool(""),
        tool("x" * 500),
        tool("new\nline"),
        tool("no_schema", inputSchema={"type": "object", "properties": {"a": {"type": 5}}}),
        tool("endless", inputSchema={"type": "object", "$ref": "#"}),
        tool("huge", inputSchema={"type": "object", "description": "x" * 30_000}),
        tool("wordy", description="y" * 100_000),
    ]
    async with session(Liar({"tools/list": {"tools": tools}})) as made:
        functions = await made.functions()
        assert [one.name for one in functions] == ["box.good", "box.web_search", "box.wordy"]
        assert functions[0].description == "Does good."
        assert len(functions[2].description) == mcp.DESCRIPTION_CHARS_MAX


async def test_a_list_that_is_none_is_told() -> None:
    tools = [tool("good"), tool("text", inputSchema={"type": "string"})]
    async with session(Liar({"tools/list": {"tools": tools}})) as made:
        with pytest.raises(ToolFailed, match="`box` can't be used"):
            await made.functions()


async def test_a_server_of_which_nothing_can_be_offered_is_told() -> None:
    async with session(Liar({"tools/list": {"tools": [tool("a b")]}})) as made:
        with pytest.raises(ToolFailed, match="has no tools that can be offered"):
            await made.functions()


async def test_lists_are_bounded_in_number_and_in_size() -> None:
    many = [tool(f"t{number}") for number in range(5_000)]
    async with session(Liar({"tools/list": {"tools": many}})) as made:
        assert len(await made.functions()) == mcp.TOOLS_MAX
    long = [tool(f"t{number}", description="x" * 2_000) for number in range(128)]
    async with session(Liar({"tools/list": {"tools": long}})) as made:
        functions = await made.functions()
        assert 50 < len(functions) < 128
        assert sum(len(one.description) + len(one.parameters or "") for one in functions) <= mcp.FUNCTIONS_CHARS_MAX
    async with session(Liar({"tools/list": {"tools": many}}), "t1900") as made:
        assert [one.name for one in await made.functions()] == ["box.t1900"], "allowed, far behind"


async def test_a_list_without_end_ends() -> None:
    liar = Liar({"tools/list": {"tools": [GOOD], "nextCursor": "more"}})
    async with session(liar) as made:
        assert len(await made.functions()) == 1
        assert liar.asked.count("tools/list") == mcp.PAGES_MAX


@pytest.mark.parametrize("method", ["initialize", "tools/list"])
async def test_a_server_that_hangs_is_away(method: str) -> None:
    async with session(Liar({method: forever}), timeout_s=0.3) as made:
        with pytest.raises(ToolFailed, match="did not answer in time"):
            await made.functions()


async def test_no_redirect_is_followed() -> None:
    other = Liar()
    async with served(other) as port, session(Liar(redirect=f"http://127.0.0.1:{port}/mcp")) as made:
        with pytest.raises(ToolFailed) as caught:
            await made.functions()
        assert "s3cret" not in str(caught.value)
    assert other.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        b"not json",
        b"[]",
        b'{"jsonrpc":"2.0","id":"@ID@","result":{"content":[{"type":"text","text":',
        b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":"text"}}',
        b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":[{"type":"unheard"}]}}',
        b'{"jsonrpc":"2.0","id":@ID@,"error":{"code":-1,"message":"no\\ud800"}}',
        b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":[],"structuredContent":'
        + b'{"a":' * 2000
        + b"1"
        + b"}" * 2000
        + b"}}",
        b"x" * (20 << 20),
    ],
    ids=["no json", "list", "cut", "content is text", "unknown content", "error", "deep", "endless"],
)
async def test_a_broken_answer_is_a_failed_call(answer: bytes) -> None:
    """Bounded in time by the toolbox, as some of these are no answer at all for the library."""
    async with session(Liar({"tools/call": answer})) as made:
        await made.functions()
        with pytest.raises((ToolFailed, TimeoutError)):
            async with asyncio.timeout(2):
                await made.call("box.good", "{}")


async def test_odd_characters_of_a_server_can_be_sent_on() -> None:
    body = b'{"jsonrpc":"2.0","id":@ID@,"result":{"content":[{"type":"text","text":"a\\u0000c"}]}}'
    async with served(Liar({"tools/call": body})) as port:
        [result] = await _called(port, "{}")
    assert result.ok
    assert result.output == "a\ufffdc"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("[" * 100_000, "no JSON"),
        ('{"a": NaN}', "no JSON"),
        ("{", "no JSON"),
        ("[]", "JSON object"),
        ('{"a": "' + "x" * (2 << 20) + '"}', "too long"),
    ],
    ids=["deep", "nan", "cut", "list", "long"],
)
async def test_arguments_that_are_none_are_not_sent(arguments: str, said: str) -> None:
    liar = Liar()
    async with served(liar) as port:
        [result] = await _called(port, arguments)
    assert not result.ok
    assert said in result.output
    assert "tools/call" not in liar.asked


async def _called(port: int, arguments: str, bounds: ToolBounds | None = None) -> list[ServerToolResult]:
    """Through the toolbox, as a request does."""
    box = Toolbox({"mcp": McpTools(Guard(AllowList(["127.0.0.1"])))}, bounds)
    asked = Generation(
        "m", (Message("user", (TextPart("x"),)),), tools=Tools(server=(Mcp("box", f"http://127.0.0.1:{port}/mcp"),))
    )
    async with box.open(asked) as bench:
        call = bench.call_of(ToolCall("c1", "box.good", arguments))
        assert call is not None
        return [result async for result in bench.run_all([call])]


async def test_a_call_that_hangs_is_cut_by_the_toolbox() -> None:
    async with served(Liar({"tools/call": forever})) as port:
        [result] = await _called(port, "{}", ToolBounds(call_s=0.3))
    assert not result.ok
    assert "longer than" in result.output


async def test_a_tool_that_is_gone_meanwhile_is_a_failed_call() -> None:
    body = b'{"jsonrpc":"2.0","id":@ID@,"error":{"code":-32602,"message":"Unknown tool: good"}}'
    liar = Liar()
    async with session(liar) as made:
        before = await made.functions()
        liar.answers = {"tools/list": {"tools": [tool("other")]}, "tools/call": body}
        with pytest.raises(ToolFailed, match="Unknown tool"):
            await made.call(before[0].name, "{}")
        liar.answers = {}
        assert (await made.call(before[0].name, "{}")).text == "said", "one failed call is not the end"


async def test_a_clients_function_named_like_a_servers_is_refused() -> None:
    async with served(Liar()) as port:
        box = Toolbox({"mcp": McpTools(Guard(AllowList(["127.0.0.1"])))})
        tools = Tools((FunctionTool("box.good"),), server=(Mcp("box", f"http://127.0.0.1:{port}/mcp"),))
        with pytest.raises(BadRequest, match=r"`box.good` belongs to a server-side tool"):
            async with box.open(Generation("m", (Message("user", (TextPart("x"),)),), tools=tools)):
                raise AssertionError


async def test_a_connection_that_ended_is_made_again() -> None:
    liar = Liar()
    async with session(liar) as made:
        await made.functions()
        assert made._owner is not None
        made._owner.cancel()
        await asyncio.gather(made._owner, return_exceptions=True)
        assert (await made.call("box.good", "{}")).text == "said"
    assert liar.asked.count("initialize") == 2
