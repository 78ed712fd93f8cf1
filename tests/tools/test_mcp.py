"""MCP tools against real servers of the `mcp` package on loopback, over both transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from jubal.core.server_tools import Mcp
from jubal.testing.tools import check_tools
from jubal.tools.base import ToolFailed
from jubal.tools.mcp import McpTools
from jubal.web.guard import AllowList, Guard
from tests.tools.mcp_box import Recorder, box, served


@pytest_asyncio.fixture(params=["http", "sse"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Mcp, Recorder]]:
    app = box().streamable_http_app() if request.param == "http" else box().sse_app()
    recorder = Recorder(app)
    async with served(recorder) as port:
        path = "/mcp" if request.param == "http" else "/sse"
        yield Mcp("box", f"http://127.0.0.1:{port}{path}"), recorder


def family(*allowed: str) -> McpTools:
    return McpTools(Guard(AllowList(allowed or ("127.0.0.1",))), connect_timeout_s=60)


async def test_its_tools_can_be_called(server: tuple[Mcp, Recorder]) -> None:
    wanted, recorder = server
    session = family().open(replace(wanted, authorization="s3cret", headers=(("x-team", "t"),)))
    try:
        functions = await session.functions()
        assert [function.name for function in functions] == ["box.add", "box.fail", "box.sleep", "box.flood"]
        assert functions[0].description == "Adds two numbers."
        assert '"a"' in (functions[0].parameters or "")
        answers = await asyncio.gather(*(session.call("box.add", f'{{"a": {n}, "b": 1}}') for n in range(3)))
        assert [answer.text for answer in answers] == ["1", "2", "3"]
        with pytest.raises(ToolFailed, match="out of paper"):
            await session.call("box.fail", "{}")
        with pytest.raises(ToolFailed, match=r"a\b"):
            await session.call("box.add", '{"b": 1}')
        with pytest.raises(ToolFailed, match="JSON"):
            await session.call("box.add", "{")
    finally:
        await session.close()
    assert {headers.get("authorization") for headers in recorder.headers} == {"Bearer s3cret"}
    assert {headers.get("x-team") for headers in recorder.headers} == {"t"}


async def test_it_keeps_the_promise_of_tools(server: tuple[Mcp, Recorder]) -> None:
    wanted, _ = server
    await check_tools(family(), wanted, "box.add", '{"a": 1, "b": 2}', slow=("box.sleep", "{}"))


async def test_only_allowed_tools_are_offered(server: tuple[Mcp, Recorder]) -> None:
    wanted, _ = server
    session = family().open(replace(wanted, allowed=("add",)))
    assert [function.name for function in await session.functions()] == ["box.add"]
    await session.close()
    session = family().open(replace(wanted, allowed=("other",)))
    with pytest.raises(ToolFailed, match="other"):
        await session.functions()
    await session.close()


async def test_a_call_that_is_cut_leaves_nothing_behind(server: tuple[Mcp, Recorder]) -> None:
    wanted, _ = server
    session = family().open(wanted)
    await session.functions()
    call = asyncio.ensure_future(session.call("box.sleep", "{}"))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    before = asyncio.all_tasks()
    await session.close()
    assert len(asyncio.all_tasks()) < len(before)


async def test_an_endless_answer_is_cut(server: tuple[Mcp, Recorder]) -> None:
    wanted, _ = server
    session = family().open(wanted)
    await session.functions()
    with pytest.raises(ToolFailed):
        async with asyncio.timeout(60):
            await session.call("box.flood", "{}")
    await session.close()


async def test_a_private_server_is_refused_unless_it_is_allowed(server: tuple[Mcp, Recorder]) -> None:
    wanted, recorder = server
    session = family("127.0.0.2").open(wanted)
    with pytest.raises(ToolFailed, match="box"):
        await session.functions()
    await session.close()
    assert recorder.headers == [], "nothing was sent"


async def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        session = family().open(Mcp("box", f"http://127.0.0.1:{taken.getsockname()[1]}/mcp", authorization="s3cret"))
        with pytest.raises(ToolFailed) as caught:
            await session.functions()
    assert "s3cret" not in str(caught.value)
    await session.close()
