"""Everything that an agentic request meets, real and on loopback: two sites that were crawled, an archive of posts, the sandbox, an
MCP server, and a model that follows a script, behind a really started server. And how each dialect asks for it and tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
from aiohttp import web
from google.protobuf import json_format
from mcp.server.mcpserver import MCPServer
from xai_sdk.chat import Response
from xai_sdk.proto import chat_pb2, chat_pb2_grpc, sample_pb2, usage_pb2

from tests.fake_upstream import Behaviour, Upstream, says, upstream
from tests.server import Server, jubal, running, to_upstream
from tests.tools.mcp_box import served
from tests.tools.web_site import Notebook, notebook

OTHER = "127.0.0.3"
POSTS = Path(__file__).parent / "tools" / "data" / "posts.jsonl"
QUESTION = "Why is 0.1 + 0.2 not 0.3?"

# ---------------------------------------------------------------------------------------------- the model


def _frames(*deltas: dict[str, Any], reason: str, prompt: int, completion: int) -> bytes:
    frames: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    frames += [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}, {"choices": [], "usage": usage}]
    return b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames) + b"data: [DONE]\n\n"


_numbers = itertools.count(1)


def calls(*named: tuple[str, dict[str, Any] | str], prompt: int = 100, completion: int = 10) -> Behaviour:
    """A turn of calls: (function, arguments) each, all in one turn."""
    deltas = [
        {
            "tool_calls": [
                {
                    "index": index,
                    "id": f"call_{next(_numbers)}",
                    "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
                }
            ]
        }
        for index, (name, given) in enumerate(named)
    ]
    return says(_frames(*deltas, reason="tool_calls", prompt=prompt, completion=completion))


def text(content: str, *, prompt: int = 200, completion: int = 20) -> Behaviour:
    """A turn of text, three characters a piece: whatever has a meaning comes in parts."""
    pieces = [{"content": content[at : at + 3]} for at in range(0, len(content), 3)]
    return says(_frames(*pieces, reason="stop", prompt=prompt, completion=completion))


def plays(*turns: Behaviour) -> Behaviour:
    """A turn for each state of the conversation: which one, the calls of the assistant in it tell. The last again and again."""

    async def behave(there: Upstream, request: web.Request) -> web.StreamResponse:
        messages = (await request.json())["messages"]
        made = sum(1 for message in messages if message.get("tool_calls"))
        return await turns[min(made, len(turns) - 1)](there, request)

    return behave


# ---------------------------------------------------------------------------------------------- the world


@dataclass
class World:
    server: Server
    there: Upstream
    site: Notebook
    other: Notebook
    mcp: dict[str, Any]
    """The entry of `tools` for the MCP server."""
    entered: threading.Event
    """Somebody waits in the MCP server's tool `gate`."""
    open_gate: Callable[[], None]
    close_gate: Callable[[], None]

    def script(self, *turns: Behaviour) -> None:
        """What the model does from now on."""
        self.there.behaviours[:] = [plays(*turns)]
        self.there.bodies.clear()

    def told(self, turn: int = -1) -> list[str]:
        """The results that the model read in its nth request."""
        return [_words(one["content"]) for one in self.there.bodies[turn]["messages"] if one["role"] == "tool"]

    def functions(self, turn: int = 0) -> list[str]:
        """What the model was offered in its nth request."""
        return [tool["function"]["name"] for tool in self.there.bodies[turn].get("tools") or ()]


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


class _Gate:
    """A tool that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = asyncio.Event()

    def app(self) -> Any:
        server = MCPServer("box")

        @server.tool()
        def add(a: int, b: int) -> str:
            """Adds two numbers."""
            return str(a + b)

        @server.tool()
        async def gate() -> str:
            """Waits."""
            self.entered.set()
            await self.open.wait()
            return "the gate is open"

        return server.streamable_http_app()


@asynccontextmanager
async def _neighbours() -> AsyncIterator[tuple[Upstream, Notebook, Notebook, int, _Gate]]:
    gate = _Gate()
    async with upstream(text("hi")) as there, notebook() as site, notebook(OTHER) as other, served(gate.app()) as port:
        yield there, site, other, port, gate


@contextmanager
def _in_thread() -> Iterator[tuple[asyncio.AbstractEventLoop, tuple[Upstream, Notebook, Notebook, int, _Gate]]]:
    """The neighbours, on an event loop of their own: tests may block."""
    loop = asyncio.new_event_loop()
    ready: Any = threading.Event()
    stop = asyncio.Event()
    found: list[Any] = []

    async def live() -> None:
        async with _neighbours() as neighbours:
            found.append(neighbours)
            ready.set()
            await stop.wait()
            neighbours[4].open.set()

    def run() -> None:
        try:
            loop.run_until_complete(live())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        assert found
        yield loop, found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


@contextmanager
def world(folder: Path, *, more: str = "", **engine: object) -> Iterator[World]:
    """more: of the configuration. engine: keys of the engine's section."""
    with _in_thread() as (loop, (there, site, other, port, gate)):
        home = folder / "home"
        config = (
            to_upstream(there.url, retries=0, **engine)
            + f'[tools.web_search]\nprovider = "local"\nallow_private_hosts = ["{site.place}", "{other.place}"]\n'
            + f'[tools.x_search]\npath = "{POSTS}"\n'
            + f'[fetch]\nallow_private_hosts = ["127.0.0.1:{port}"]\n'
            + "[tools.code_execution]\ntimeout_s = 60\n"
            + more
        )
        home.mkdir(parents=True)
        crawled = jubal(
            "index", "add", site.url, other.url, "--allow-private", "--delay", "0", "--pages", "60", home=home
        )
        assert crawled.returncode == 0, crawled.stderr
        with running(home, config=config, grpc=True) as server:
            mcp = {"type": "mcp", "server_label": "box", "server_url": f"http://127.0.0.1:{port}/mcp"}
            yield World(
                server, there, site, other, mcp, gate.entered,
                lambda: loop.call_soon_threadsafe(gate.open.set), lambda: loop.call_soon_threadsafe(gate.open.clear),
            )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the dialects


@dataclass
class Served:
    """A call of a server tool as a client sees it. ok: None: it has no result. output: None: it is not told."""

    id: str
    name: str
    ok: bool | None = None
    output: Any = None


@dataclass
class Answer:
    """What every dialect tells. spans: (start, end, url) in `text`; None: the dialect has no places. items: as it was written."""

    text: str = ""
    served: list[Served] = field(default_factory=list)
    mine: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    """Calls for the client: id, function, arguments."""
    cited: list[str] = field(default_factory=list)
    spans: list[tuple[int, int, str]] | None = None
    citations: list[str] | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    request_id: str = ""
    items: Any = None
    error: Any = None

    @property
    def cost(self) -> int:
        ticks: int = self.usage["cost_in_usd_ticks"]
        return ticks


@dataclass
class Reply:
    """A whole answer, or a refusal. error: its code. body: as it came."""

    request_id: str
    body: Any
    error: str | None = None


class Events(Protocol):
    """The events of a streamed answer as they come. Closing it is a client that leaves."""

    request_id: str

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None: ...


class Dialect(Protocol):
    """One way to ask. Another one joins the tests by being in `DIALECTS`."""

    name: str

    def call(self, server: Server, body: dict[str, Any], key: str = "") -> Reply:
        """Asks for a whole answer."""
        ...

    def stream(self, server: Server, body: dict[str, Any], key: str = "") -> Events: ...

    def body(self, question: str, tools: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]: ...

    def function(self, name: str) -> dict[str, Any]:
        """A function of the client with one text argument, `what`."""
        ...

    def choice(self, name: str) -> Any:
        """A `tool_choice` that names a function of the client."""
        ...

    def whole(self, body: Any) -> Answer: ...

    def folded(self, events: list[Any]) -> Answer: ...

    def begins(self, event: Any) -> int:
        """How many server tools the event tells to begin."""
        ...

    def ends(self, event: Any) -> int:
        """How many results the event tells."""
        ...

    def follow_up(self, asked: dict[str, Any], answer: Answer, output: str) -> dict[str, Any]:
        """The next request: with the result of the one call that is the client's."""
        ...


def _client(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}
    return {"name": name, "description": "Of the client.", "parameters": schema}


class Http:
    """What the dialects of JSON over HTTP have in common."""

    path = ""

    def streamed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The same, to be streamed with its usage."""
        return {**body, "stream": True}

    def call(self, server: Server, body: dict[str, Any], key: str = "") -> Reply:
        status, headers, got = server.request("POST", self.path, body, key=key)
        error = None if status == 200 else str(status)
        return Reply(headers["x-request-id"], got, error)

    def stream(self, server: Server, body: dict[str, Any], key: str = "") -> Events:
        return HttpEvents(server, self.path, self.streamed(body), key)


class Chat(Http):
    name = "chat"
    path = "/v1/chat/completions"

    def body(self, question: str, tools: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {
            "model": "grok-4",
            "messages": messages,
            "tools": list(tools),
            "include": ["inline_citations"],
            **fields,
        }

    def function(self, name: str) -> dict[str, Any]:
        return {"type": "function", "function": _client(name)}

    def choice(self, name: str) -> Any:
        return {"type": "function", "function": {"name": name}}

    def streamed(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "stream": True, "stream_options": {"include_usage": True}}

    def whole(self, body: Any) -> Answer:
        [choice] = body["choices"]
        return self._answer(body, choice["message"], choice["finish_reason"])

    def _answer(self, body: dict[str, Any], message: dict[str, Any], reason: str) -> Answer:
        places = [note["url_citation"] for note in message.get("annotations", ())]
        return Answer(
            message["content"],
            [
                Served(
                    one["id"],
                    one["function"]["name"],
                    {"completed": True, "failed": False}.get(one["status"]),
                    one.get("output"),
                )
                for one in message.get("server_side_tool_calls", ())
            ],
            [
                (one["id"], one["function"]["name"], json.loads(one["function"]["arguments"]))
                for one in message.get("tool_calls", ())
            ],
            [place["url"] for place in places],
            [(place["start_index"], place["end_index"], place["url"]) for place in places],
            body.get("citations"),
            body["usage"],
            reason,
            body["id"].removeprefix("chatcmpl-"),
            message,
        )

    def folded(self, events: list[dict[str, Any]]) -> Answer:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        served: dict[str, dict[str, Any]] = {}
        body: dict[str, Any] = {}
        reason = ""
        for event in events:
            if "error" in event:
                return Answer(message["content"], error=event["error"])
            body |= event
            for choice in event["choices"]:
                delta = choice["delta"]
                message["content"] += delta.get("content") or ""
                for name in ("annotations", "tool_calls"):
                    message.setdefault(name, []).extend(delta.get(name, ()))
                for one in delta.get("server_side_tool_calls", ()):
                    served[one["id"]] = served.get(one["id"], {}) | one
                reason = choice["finish_reason"] or reason
        message["server_side_tool_calls"] = list(served.values())
        return self._answer(body, message, reason)

    def begins(self, event: dict[str, Any]) -> bool:
        return self._tells(event, "in_progress")

    def ends(self, event: dict[str, Any]) -> bool:
        return self._tells(event, "completed")

    def _tells(self, event: dict[str, Any], status: str) -> bool:
        deltas = [choice["delta"] for choice in event["choices"]]
        return any(one["status"] == status for delta in deltas for one in delta.get("server_side_tool_calls", ()))

    def follow_up(self, asked: dict[str, Any], answer: Answer, output: str) -> dict[str, Any]:
        said = {key: value for key, value in answer.items.items() if key in ("role", "content", "tool_calls")}
        result = {"role": "tool", "tool_call_id": answer.mine[0][0], "content": output}
        return {**asked, "messages": [*asked["messages"], said, result]}


class Responses(Http):
    name = "responses"
    path = "/v1/responses"

    def body(self, question: str, tools: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        return {"model": "grok-4", "input": question, "tools": list(tools), **fields}

    def function(self, name: str) -> dict[str, Any]:
        return {"type": "function", **_client(name)}

    def choice(self, name: str) -> Any:
        return {"type": "function", "name": name}

    def whole(self, body: Any) -> Answer:
        items = body["output"]
        parts = [part for item in items if item["type"] == "message" for part in item["content"]]
        notes = [note for part in parts for note in part["annotations"]]
        return Answer(
            "".join(part["text"] for part in parts),
            [self._served(item) for item in items if item["type"] not in ("message", "function_call", "reasoning")],
            [
                (item["call_id"], item["name"], json.loads(item["arguments"]))
                for item in items
                if item["type"] == "function_call"
            ],
            [note["url"] for note in notes],
            [(note["start_index"], note["end_index"], note["url"]) for note in notes],
            None,
            body["usage"] or {},
            body["status"],
            body["id"],
            items,
            body["error"],
        )

    def _served(self, item: dict[str, Any]) -> Served:
        actions = {"search": "web_search", "open_page": "open_page", "find_in_page": "open_page_with_find"}
        names = {
            "web_search_call": lambda: actions[item["action"]["type"]],
            "custom_tool_call": lambda: item["name"],
            "code_interpreter_call": lambda: "code_execution",
            "mcp_call": lambda: f"{item['server_label']}.{item['name']}",
        }
        output = item.get("outputs") or (item.get("action") or {}).get("sources") or None
        ok = {"completed": True, "failed": False}.get(item["status"])
        return Served(item["id"], names[item["type"]](), ok, output)

    def folded(self, events: list[dict[str, Any]]) -> Answer:
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        answer = self.whole(events[-1]["response"])
        deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(deltas) == answer.text
        return answer

    def begins(self, event: dict[str, Any]) -> bool:
        return event["type"] == "response.output_item.added" and event["item"]["type"] not in ("message", "reasoning")

    def ends(self, event: dict[str, Any]) -> bool:
        return event["type"] == "response.output_item.done" and event["item"]["type"] not in ("message", "reasoning")

    def follow_up(self, asked: dict[str, Any], answer: Answer, output: str) -> dict[str, Any]:
        result = {"type": "function_call_output", "call_id": answer.mine[0][0], "output": output}
        return {**asked, "previous_response_id": answer.request_id, "input": [result]}


class Messages(Http):
    name = "messages"
    path = "/v1/messages"

    def body(self, question: str, tools: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        choice = fields.get("tool_choice")
        if isinstance(choice, str):
            fields["tool_choice"] = {"type": {"required": "any"}.get(choice, choice)}
        return {"model": "grok-4", "max_tokens": 1000, "messages": messages, "tools": list(tools), **fields}

    def function(self, name: str) -> dict[str, Any]:
        told = _client(name)
        return {"name": name, "description": told["description"], "input_schema": told["parameters"]}

    def choice(self, name: str) -> Any:
        return {"type": "tool", "name": name}

    def whole(self, body: Any) -> Answer:
        blocks = body["content"]
        served = [
            Served(one["id"], one["name"]) for one in blocks if one["type"] in ("server_tool_use", "mcp_tool_use")
        ]
        by_id = {one.id: one for one in served}
        for block in blocks:
            if block["type"].endswith("_tool_result"):
                content = block["content"]
                failed = isinstance(content, dict) and content["type"].endswith("_error")
                by_id[block["tool_use_id"]].ok = not failed
        return Answer(
            "".join(block["text"] for block in blocks if block["type"] == "text"),
            served,
            [(block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"],
            [note["url"] for block in blocks for note in block.get("citations", ())],
            None,
            None,
            body["usage"],
            body["stop_reason"],
            body["id"],
            blocks,
        )

    def folded(self, events: list[dict[str, Any]]) -> Answer:
        message: dict[str, Any] = {}
        blocks: list[dict[str, Any]] = []
        for event in events:
            match event["type"]:
                case "message_start":
                    message = event["message"]
                case "content_block_start":
                    assert event["index"] == len(blocks)
                    blocks.append(dict(event["content_block"]))
                case "content_block_delta":
                    self._grow(blocks[event["index"]], event["delta"])
                case "message_delta":
                    message |= event["delta"] | {"usage": event["usage"]}
                case "error":
                    return Answer("".join(block.get("text", "") for block in blocks), error=event["error"])
        assert events[-1]["type"] == "message_stop"
        return self.whole({**message, "content": blocks})

    @staticmethod
    def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
        match delta["type"]:
            case "text_delta":
                block["text"] += delta["text"]
            case "input_json_delta":
                block["input"] = json.loads(delta["partial_json"] or "{}")
            case "citations_delta":
                block.setdefault("citations", []).append(delta["citation"])

    def begins(self, event: dict[str, Any]) -> bool:
        return event.get("content_block", {}).get("type") in ("server_tool_use", "mcp_tool_use")

    def ends(self, event: dict[str, Any]) -> bool:
        return str(event.get("content_block", {}).get("type")).endswith("_tool_result")

    def follow_up(self, asked: dict[str, Any], answer: Answer, output: str) -> dict[str, Any]:
        result = {"type": "tool_result", "tool_use_id": answer.mine[0][0], "content": output}
        said = {"role": "assistant", "content": answer.items}
        return {**asked, "messages": [*asked["messages"], said, {"role": "user", "content": [result]}]}


REASONS = {"REASON_STOP": "stop", "REASON_MAX_LEN": "length", "REASON_TOOL_CALLS": "tool_calls"}
COUNTED = {
    "SERVER_SIDE_TOOL_WEB_SEARCH": "web_search_calls",
    "SERVER_SIDE_TOOL_X_SEARCH": "x_search_calls",
    "SERVER_SIDE_TOOL_CODE_EXECUTION": "code_interpreter_calls",
    "SERVER_SIDE_TOOL_MCP": "mcp_calls",
}


class Grpc:
    """xAI's own API, read with the SDK's classes. A body is a request in protobuf's JSON."""

    name = "grpc"

    def call(self, server: Server, body: dict[str, Any], key: str = "") -> Reply:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            try:
                got, told = chat_pb2_grpc.ChatStub(channel).GetCompletion.with_call(
                    self._asked(body), metadata=_authorization(server, key), timeout=60
                )
            except grpc.RpcError as error:
                return Reply(_told(error.trailing_metadata())["x-request-id"], None, _code(error))
        return Reply(_told(told.initial_metadata())["x-request-id"], got)

    def stream(self, server: Server, body: dict[str, Any], key: str = "") -> Events:
        return GrpcEvents(server, self._asked(body), key)

    @staticmethod
    def _asked(body: dict[str, Any]) -> Any:
        return json_format.ParseDict(body, chat_pb2.GetCompletionsRequest())

    def body(self, question: str, tools: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """Tools are given as to the other dialects, by `type`; fields too."""
        asked: dict[str, Any] = {
            "model": "grok-4",
            "messages": [{"role": "ROLE_USER", "content": [{"text": question}]}],
            "tools": [{tool["type"]: {name: tool[name] for name in tool if name != "type"}} for tool in tools],
            "include": ["INCLUDE_OPTION_INLINE_CITATIONS"],
            **fields,
        }
        if isinstance(asked.get("tool_choice"), str):
            asked["tool_choice"] = {"mode": f"TOOL_MODE_{asked['tool_choice'].upper()}"}
        return asked

    def function(self, name: str) -> dict[str, Any]:
        told = _client(name)
        return {"type": "function", **told, "parameters": json.dumps(told["parameters"])}

    def choice(self, name: str) -> Any:
        return {"function_name": name}

    def whole(self, body: Any) -> Answer:
        answer = Answer(spans=[], citations=list(body.citations), items=body.outputs, request_id=body.id)
        for output in body.outputs:
            message = output.message
            answer.reason = REASONS.get(sample_pb2.FinishReason.Name(output.finish_reason), answer.reason)
            if message.role == chat_pb2.ROLE_TOOL:
                self._ended(answer, message)
                continue
            for cited in message.citations:
                url = cited.web_citation.url or cited.x_citation.url
                start = len(answer.text)
                answer.cited.append(url)
                assert answer.spans is not None
                answer.spans.append((start + cited.start_index, start + cited.end_index, url))
            answer.text += message.content
            for call in message.tool_calls:
                if call.type == chat_pb2.TOOL_CALL_TYPE_CLIENT_SIDE_TOOL:
                    answer.mine.append((call.id, call.function.name, json.loads(call.function.arguments)))
                else:
                    answer.served.append(Served(call.id, call.function.name))
        answer.usage = self._usage(body.usage)
        return answer

    @staticmethod
    def _ended(answer: Answer, message: Any) -> None:
        for call in message.tool_calls:
            [one] = [one for one in answer.served if one.id == call.id]
            ends = {chat_pb2.TOOL_CALL_STATUS_COMPLETED: True, chat_pb2.TOOL_CALL_STATUS_FAILED: False}
            one.ok, one.output = ends[call.status], message.content or None
            assert (call.error_message != "") is (not one.ok)

    @staticmethod
    def _usage(used: Any) -> dict[str, Any]:
        kinds = [usage_pb2.ServerSideTool.Name(kind) for kind in used.server_side_tools_used]
        told = {name: kinds.count(kind) for kind, name in COUNTED.items()}
        names = ("prompt_tokens", "completion_tokens", "num_sources_used", "cost_in_usd_ticks")
        return {"server_side_tool_usage_details": told, **{name: getattr(used, name) for name in names}}

    def folded(self, events: list[Any]) -> Answer:
        response = Response(chat_pb2.GetChatCompletionResponse(), None)
        for event in events:
            if isinstance(event, grpc.RpcError):
                text = "".join(output.message.content for output in response.proto.outputs)
                return Answer(text, error={"code": _code(event)})
            response.process_chunk(event)
        return self.whole(response.proto)

    def begins(self, event: Any) -> int:
        return self._tells(event, chat_pb2.TOOL_CALL_STATUS_IN_PROGRESS)

    def ends(self, event: Any) -> int:
        return self._tells(event, chat_pb2.TOOL_CALL_STATUS_COMPLETED)

    def _tells(self, event: Any, status: int) -> int:
        return sum(call.status == status for output in event.outputs for call in output.delta.tool_calls)

    def follow_up(self, asked: dict[str, Any], answer: Answer, output: str) -> dict[str, Any]:
        said = []
        for one in answer.items:
            message = json_format.MessageToDict(one.message, preserving_proto_field_name=True)
            content = message.pop("content", "")
            calls = message.get("tool_calls", [])
            if message["role"] == "ROLE_TOOL":
                message["tool_call_id"] = calls[0]["id"]
            known = ("role", "tool_calls", "tool_call_id", "encrypted_content")
            kept = {name: message[name] for name in known if name in message}
            said.append(kept | {"content": [{"text": content}] if content else []})
        result = {"role": "ROLE_TOOL", "tool_call_id": answer.mine[0][0], "content": [{"text": output}]}
        return {**asked, "messages": [*asked["messages"], *said, result]}


def _authorization(server: Server, key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key or server.key}"),)


def _told(metadata: Any) -> dict[str, str]:
    return {name: value for name, value in metadata or () if isinstance(value, str)}


def _code(error: Any) -> str:
    """The code that Jubal gives, or the status where it gives none."""
    return _told(error.trailing_metadata()).get("x-error-code") or error.code().name


DIALECTS: tuple[Dialect, ...] = (Chat(), Responses(), Messages(), Grpc())


# ---------------------------------------------------------------------------------------------- asking


class HttpEvents:
    def __init__(self, server: Server, path: str, body: dict[str, Any], key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        headers = {"content-type": "application/json", "authorization": f"Bearer {key or server.key}"}
        self._connection.request("POST", path, json.dumps(body).encode(), headers)
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        self.request_id = self._response.getheader("x-request-id") or ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._response:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._connection.sock is not None:
                self._connection.sock.close()
            self._response.close()
            self._connection.close()


class GrpcEvents:
    """Where the answer fails, the error is its last event."""

    def __init__(self, server: Server, asked: Any, key: str) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        stub = chat_pb2_grpc.ChatStub(self._channel)
        self._call = stub.GetCompletionChunk(asked, metadata=_authorization(server, key), timeout=60)
        self.request_id = _told(self._call.initial_metadata()).get("x-request-id", "")
        assert self.request_id, self._call.details()

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            yield error

    def close(self) -> None:
        self._call.cancel()
        self._channel.close()


def ask(server: Server, dialect: Dialect, body: dict[str, Any], *, stream: bool = False, key: str = "") -> Answer:
    """A good answer, streamed or whole."""
    if stream:
        events = dialect.stream(server, body, key)
        try:
            answer = dialect.folded(list(events))
        finally:
            events.close()
        assert answer.error is None, answer.error
        answer.request_id = events.request_id
        return answer
    reply = dialect.call(server, body, key)
    assert reply.error is None, (reply.error, reply.body)
    answer = dialect.whole(reply.body)
    answer.request_id = reply.request_id
    return answer


def rows(server: Server, request_id: str) -> list[dict[str, Any]]:
    """The usage rows of a request, from the server's database."""
    with contextlib.closing(sqlite3.connect(f"file:{server.home / 'jubal.db'}?mode=ro", uri=True)) as store:
        store.row_factory = sqlite3.Row
        return [dict(row) for row in store.execute("SELECT * FROM usage WHERE request_id = ?", [request_id])]
