"""Tools of an MCP server, called by a really started server and seen by the official SDKs: Responses, chat and messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest_asyncio

from tests.clients.scripted import scripted
from tests.fake_upstream import upstream
from tests.server import Server, running, to_upstream
from tests.tools.test_mcp import box, served

ALLOWED = '\n[fetch]\nallow_private_hosts = ["127.0.0.1"]\n'


@pytest_asyncio.fixture
async def asked(tmp_path: Path) -> AsyncIterator[tuple[Server, dict[str, Any]]]:
    """A server, and the tool that names the MCP server as the OpenAI SDK writes it."""
    async with served(box().streamable_http_app()) as port, upstream(scripted()) as there:
        tool = {
            "type": "mcp",
            "server_label": "box",
            "server_url": f"http://127.0.0.1:{port}/mcp",
            "allowed_tools": ["add"],
            "require_approval": "never",
        }
        with running(tmp_path / "jubal", config=to_upstream(there.url) + ALLOWED) as server:
            yield server, tool


async def test_every_dialect_tells_the_call_and_its_result(asked: tuple[Server, dict[str, Any]]) -> None:
    server, tool = asked
    async with openai.AsyncOpenAI(base_url=server.url, api_key=server.key, max_retries=0) as client:
        async with client.responses.stream(model="grok-4", input="20 + 22?", tools=[tool]) as stream:  # type: ignore[list-item]
            types = [event.type async for event in stream]
            response = await stream.get_final_response()
        chat = await client.chat.completions.create(
            model="grok-4",
            messages=[{"role": "user", "content": "20 + 22?"}],
            tools=[tool],  # type: ignore[list-item]
        )
    assert [kind.removeprefix("response.") for kind in types if "mcp_call" in kind] == [
        "mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done", "mcp_call.executing",
        "mcp_call_output.delta", "mcp_call_output.done", "mcp_call.completed",
    ]  # fmt: skip
    call = response.output[0]
    assert call.type == "mcp_call"
    assert (call.server_label, call.name, call.output, call.error) == ("box", "add", "42", None)
    assert json.loads(call.arguments) == {"a": 20, "b": 22}
    assert response.output_text == chat.choices[0].message.content == "It says: 42."
    base = server.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=base, api_key=server.key, max_retries=0) as client:
        message = await client.messages.create(
            model="grok-4",
            max_tokens=50,
            messages=[{"role": "user", "content": "20 + 22?"}],
            tools=[tool],  # type: ignore[list-item]
        )
    assert [block.type for block in message.content] == ["mcp_tool_use", "mcp_tool_result", "text"]
