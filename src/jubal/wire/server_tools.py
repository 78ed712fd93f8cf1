"""Server tools in the OpenAI dialects: how they are asked for, and how their calls, sources and counts are told (xai-api.md 9)."""

from __future__ import annotations

from typing import Final

from jubal.core.events import Citation, ServerToolCall, ServerToolResult
from jubal.core.fold import ServerItem
from jubal.core.server_tools import ToolKind

CALL_TYPE: Final[dict[ToolKind, str]] = {
    "web_search": "web_search_call",
    "x_search": "x_search_call",
    "code_execution": "code_interpreter_call",
    "mcp": "mcp_call",
    "collections_search": "file_search_call",
}
"""What a call of a server tool is named in messages (xai-api.md 6.2)."""

USAGE_DETAIL: Final[dict[ToolKind, str]] = {
    "web_search": "web_search_calls",
    "x_search": "x_search_calls",
    "code_execution": "code_interpreter_calls",
    "mcp": "mcp_calls",
    "collections_search": "file_search_calls",
}
"""The counters of a usage object (xai-api.md 6.8)."""

USAGE_CATEGORY: Final[dict[ToolKind, str]] = {
    "web_search": "SERVER_SIDE_TOOL_WEB_SEARCH",
    "x_search": "SERVER_SIDE_TOOL_X_SEARCH",
    "code_execution": "SERVER_SIDE_TOOL_CODE_EXECUTION",
    "mcp": "SERVER_SIDE_TOOL_MCP",
    "collections_search": "SERVER_SIDE_TOOL_COLLECTIONS_SEARCH",
}
"""The categories that calls are counted and charged by (xai-api.md 9.3)."""


def call_body(call: ServerToolCall) -> dict[str, object]:
    """A call that begins. The same shape as a client's call has, under another name: no client may think it is its own."""
    return {
        "id": call.id,
        "type": CALL_TYPE[call.kind],
        "function": {"name": call.name, "arguments": call.arguments},
        "status": "in_progress",
    }


def result_body(result: ServerToolResult, *, with_output: bool) -> dict[str, object]:
    """How a call ended. duration_ms: milliseconds."""
    body: dict[str, object] = {
        "id": result.id,
        "type": CALL_TYPE[result.kind],
        "status": "completed" if result.ok else "failed",
        "duration_ms": round(result.seconds * 1000),
    }
    if with_output:
        body["output"] = result.output
    return body


def item_body(item: ServerItem, *, with_output: bool) -> dict[str, object]:
    """A whole call."""
    body = call_body(item.call)
    if item.result is None:
        return {**body, "status": "incomplete"}
    return {**body, **result_body(item.result, with_output=with_output)}


def annotation_body(citation: Citation) -> dict[str, object]:
    """An inline citation as OpenAI's chat dialect writes it; indices in characters of the choice's text."""
    return {
        "type": "url_citation",
        "url_citation": {
            "url": citation.source.url,
            "title": citation.source.title or str(citation.number),
            "start_index": citation.start,
            "end_index": citation.end,
        },
    }


def usage_details(uses: tuple[tuple[ToolKind, int], ...]) -> dict[str, int]:
    """The counters of a usage object, all of them, so that none has to be asked for twice."""
    counts = dict(uses)
    return {name: counts.get(kind, 0) for kind, name in USAGE_DETAIL.items()}


def usage_categories(uses: tuple[tuple[ToolKind, int], ...]) -> dict[str, int]:
    """Calls that are charged, by category; only what was used."""
    return {USAGE_CATEGORY[kind]: count for kind, count in uses if count}
