"""Server tools in the OpenAI dialects: how they are asked for, and how their calls, sources and counts are told (xai-api.md 9)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import msgspec

from jubal.core.errors import BadRequest, Undecodable
from jubal.core.events import Citation, ServerToolCall, ServerToolResult
from jubal.core.fold import ServerItem
from jubal.core.server_tools import (
    CodeExecution,
    CollectionsSearch,
    Mcp,
    ServerTool,
    ToolKind,
    UserLocation,
    WebSearch,
    XSearch,
)

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


# ---------------------------------------------------------------------------------------------- items of Responses

FUNCTION_OF: Final[dict[str, str]] = {
    "search": "web_search",
    "open_page": "open_page",
    "find_in_page": "open_page_with_find",
}
"""What a web search item's action was called by."""


def flat_annotation_body(citation: Citation) -> dict[str, object]:
    """An inline citation as the Responses API writes it; indices in characters of the message's text."""
    return {
        "type": "url_citation",
        "url": citation.source.url,
        "title": citation.source.title or str(citation.number),
        "start_index": citation.start,
        "end_index": citation.end,
    }


def arguments_of(call: ServerToolCall) -> dict[str, Any]:
    """A call's arguments; none where the model wrote no object."""
    try:
        value = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def item_begun(response_id: str, call: ServerToolCall) -> dict[str, Any]:
    """The output item of a call that begins (xai-api.md 8.4), without `item_written`, which comes in events of its own."""
    body: dict[str, Any]
    match call.kind:
        case "web_search":
            body = {"type": "web_search_call", "id": f"ws_{response_id}_{call.id}", "action": _action(call)}
        case "x_search":
            body = {
                "type": "custom_tool_call",
                "id": f"ctc_{response_id}_{call.id}",
                "call_id": f"xs_{call.id}",
                "name": call.name,
                "input": "",
            }
        case "code_execution":
            body = {
                "type": "code_interpreter_call",
                "id": f"ci_{response_id}_{call.id}",
                "container_id": "",
                "code": "",
                "outputs": None,
            }
        case "mcp":
            label, _, name = call.name.partition(".")
            body = {
                "type": "mcp_call",
                "id": f"mcp_{response_id}_{call.id}",
                "server_label": label,
                "name": name,
                "arguments": "",
                "output": None,
                "error": None,
            }
        case "collections_search":
            query = arguments_of(call).get("query", "")
            body = {
                "type": "file_search_call",
                "id": f"fs_{response_id}_{call.id}",
                "queries": [query],
                "results": None,
            }
    return {**body, "status": "in_progress"}


def item_written(call: ServerToolCall) -> dict[str, Any]:
    """What of the item a stream tells in pieces: clients join those, so that it is empty in the item that is added."""
    match call.kind:
        case "x_search":
            return {"input": call.arguments}
        case "code_execution":
            return {"code": arguments_of(call).get("code", call.arguments)}
        case "mcp":
            return {"arguments": call.arguments}
        case "web_search" | "collections_search":
            return {}


def _action(call: ServerToolCall) -> dict[str, Any]:
    asked = arguments_of(call)
    match call.name:
        case "open_page" | "browse_page":
            return {"type": "open_page", "url": asked.get("url", "")}
        case "open_page_with_find":
            pattern = asked.get("pattern", asked.get("find", ""))
            return {"type": "find_in_page", "url": asked.get("url", ""), "pattern": pattern}
    return {"type": "search", "query": asked.get("query", ""), "sources": []}


def events_at_beginning(call: ServerToolCall) -> list[tuple[str, dict[str, Any]]]:
    """What a stream tells of a call after its item was added (xai-api.md 8.6)."""
    match call.kind:
        case "web_search":
            return [("response.web_search_call.in_progress", {}), ("response.web_search_call.searching", {})]
        case "x_search":
            whole = {"delta": call.arguments}
            return [
                ("response.custom_tool_call_input.delta", whole),
                ("response.custom_tool_call_input.done", {"input": call.arguments}),
            ]
        case "code_execution":
            code = item_written(call)["code"]
            return [
                ("response.code_interpreter_call.in_progress", {}),
                ("response.code_interpreter_call_code.delta", {"delta": code}),
                ("response.code_interpreter_call_code.done", {"code": code}),
                ("response.code_interpreter_call.interpreting", {}),
            ]
        case "mcp":
            return [
                ("response.mcp_call.in_progress", {}),
                ("response.mcp_call_arguments.delta", {"delta": call.arguments}),
                ("response.mcp_call_arguments.done", {"arguments": call.arguments}),
                ("response.mcp_call.executing", {}),
            ]
        case "collections_search":
            return [("response.file_search_call.in_progress", {}), ("response.file_search_call.searching", {})]


def events_at_end(result: ServerToolResult) -> list[tuple[str, dict[str, Any]]]:
    """What a stream tells of a result before its item is done."""
    match result.kind:
        case "web_search":
            return [("response.web_search_call.completed", {})]
        case "x_search":
            return []
        case "code_execution":
            return [("response.code_interpreter_call.completed", {})]
        case "mcp" if result.ok:
            return [
                ("response.mcp_call_output.delta", {"delta": result.output}),
                ("response.mcp_call_output.done", {"output": result.output}),
                ("response.mcp_call.completed", {}),
            ]
        case "mcp":
            return [("response.mcp_call.failed", {})]
        case "collections_search":
            return [("response.file_search_call.completed", {})]


def item_ended(
    call: ServerToolCall, result: ServerToolResult, begun: dict[str, Any], *, sources: bool, outputs: bool
) -> dict[str, Any]:
    """What of the item has changed at its end. sources, outputs: whether they are asked for by `include` (xai-api.md 8.5)."""
    status = {"status": "completed" if result.ok else "failed", **item_written(call)}
    match result.kind:
        case "web_search" if sources and begun["action"]["type"] == "search":
            found = [{"type": "url", "url": source.url} for source in result.sources]
            return {**status, "action": {**begun["action"], "sources": found}}
        case "code_execution" if outputs:
            return {**status, "outputs": _code_outputs(result)}
        case "mcp":
            told = {"output": result.output, "error": None} if result.ok else {"output": None, "error": result.output}
            return {**status, **told}
        case "collections_search" if outputs:
            found = [{"file_id": source.url, "filename": source.title} for source in result.sources]
            return {**status, "results": found}
    return status


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of code printed. value: of its last expression, as text. error: the traceback, empty where it went well."""

    stdout: str
    stderr: str = ""
    error: str = ""
    value: str = ""

    def logs(self) -> str:
        """As a terminal would show it."""
        shown = [text for text in (self.stdout, self.value, self.stderr, self.error) if text]
        return "".join(text if text.endswith("\n") else f"{text}\n" for text in shown[:-1]) + "".join(shown[-1:])


def ran(output: str) -> Ran:
    """A code execution's output is JSON with these members (xai-api.md 9.4), or anything else as its standard output."""
    try:
        told = msgspec.json.decode(output)
    except msgspec.DecodeError:
        told = None
    if not isinstance(told, dict):
        return Ran(output)
    stdout, stderr, error, value = (str(told.get(name) or "") for name in ("stdout", "stderr", "error", "ret"))
    return Ran(stdout, stderr, error, value)


def _code_outputs(result: ServerToolResult) -> list[dict[str, Any]]:
    logs = {"type": "logs", "logs": ran(result.output).logs()}
    images = [
        {"type": "image", "url": f"data:{file.mime};base64,{base64.b64encode(file.data).decode()}"}
        for file in result.files
        if file.mime.startswith("image/")
    ]
    return [logs, *images]


def function_of(
    kind: str,
    name: str | None,
    label: str | None,
    arguments: str | None,
    action: dict[str, Any] | None,
    code: str | None,
) -> tuple[str, str]:
    """The function that an item stands for, and its arguments, as the model called it. The inverse of `item_begun`."""
    if kind == "mcp_call":
        return f"{label}.{name}", arguments or "{}"
    if kind == "web_search_call":
        asked = dict(action or {})
        function = FUNCTION_OF.get(asked.pop("type", "search"), "web_search")
        asked.pop("sources", None)
        return function, msgspec.json.encode(asked).decode()
    if kind == "code_interpreter_call":
        return "code_execution", msgspec.json.encode({"code": code or ""}).decode()
    return name or kind, arguments or "{}"


# ---------------------------------------------------------------------------------------------- the request


class Filters(msgspec.Struct, gc=False):
    allowed_domains: list[str] | None = None
    excluded_domains: list[str] | None = None


class Location(msgspec.Struct, gc=False):
    type: str | None = None
    country: str | None = None
    region: str | None = None
    city: str | None = None
    timezone: str | None = None


class SourceSpec(msgspec.Struct, gc=False):
    """One entry of `search_parameters.sources`."""

    type: str
    allowed_websites: list[str] | None = None
    excluded_websites: list[str] | None = None
    country: str | None = None
    safe_search: bool | None = None
    included_x_handles: list[str] | None = None
    excluded_x_handles: list[str] | None = None
    x_handles: list[str] | None = None
    post_favorite_count: int | None = None
    post_view_count: int | None = None
    links: list[str] | None = None


class SearchParameters(msgspec.Struct, gc=False):
    """`search_parameters` (xai-api.md 6.5)."""

    mode: str | None = None
    sources: list[SourceSpec] | None = None
    from_date: str | None = None
    to_date: str | None = None
    return_citations: bool | None = None
    max_search_results: int | None = None


class ServerToolFields(msgspec.Struct, gc=False):
    """What an entry of `tools` may say when it is no function (xai-api.md 9.1). Dialects add their way to write functions."""

    type: str
    allowed_domains: list[str] | None = None
    excluded_domains: list[str] | None = None
    filters: Filters | None = None
    enable_image_understanding: bool | None = None
    enable_image_search: bool | None = None
    enable_video_understanding: bool | None = None
    user_location: Location | None = None
    allowed_x_handles: list[str] | None = None
    excluded_x_handles: list[str] | None = None
    from_date: str | None = None
    to_date: str | None = None
    container: Any = None
    vector_store_ids: list[str] | None = None
    max_num_results: int | None = None
    ranking_options: Any = None
    server_label: str | None = None
    server_url: str | None = None
    server_description: str | None = None
    allowed_tools: list[str] | None = None
    allowed_tool_names: list[str] | None = None
    authorization: str | None = None
    headers: dict[str, str] | None = None
    require_approval: Any = None
    connector_id: str | None = None
    sources: list[SourceSpec] | None = None


SERVER_TYPES: Final = (
    "web_search",
    "x_search",
    "code_execution",
    "code_interpreter",
    "mcp",
    "file_search",
    "live_search",
)
DOMAINS_MAX: Final = 5
HANDLES_MAX: Final = 20
COLLECTIONS_MAX: Final = 10
RESULTS_MAX: Final = 30
_DOMAIN: Final = re.compile(r"(?=.{1,253}$)(?!-)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*", re.IGNORECASE)
_HANDLE: Final = re.compile(r"[A-Za-z0-9_]{1,50}")
_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
OUR_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"}
)
"""They say how a request is sent, which is not the caller's to say."""
URL_CHARS_MAX: Final = 8_192
PLACE_CHARS_MAX: Final = 100
"""Of a city, a region, a time zone."""


def parse(where: str, tool: ServerToolFields) -> tuple[ServerTool, ...]:
    """One entry of `tools` at `where`. Raises `BadRequest` naming the field at fault."""
    match tool.type:
        case "web_search" | "web_search_preview":
            return (_web_search(where, tool),)
        case "x_search":
            return (_x_search(where, tool),)
        case "code_execution" | "code_interpreter":
            if isinstance(tool.container, str) or (isinstance(tool.container, dict) and tool.container.get("file_ids")):
                raise _wrong(f"{where}.container", "containers can't be chosen: leave it out")
            return (CodeExecution(),)
        case "mcp":
            return (_mcp(where, tool),)
        case "file_search" | "collections_search":
            return (_collections(where, tool),)
        case "live_search":
            return _sources(f"{where}.sources", tool.sources, SearchParameters())
    raise _wrong(
        f"{where}.type",
        f"tools of type `{tool.type[:64]}` are not supported. Types: function, {', '.join(SERVER_TYPES)}",
    )


def parse_search(asked: SearchParameters | None) -> tuple[tuple[ServerTool, ...], bool]:
    """The tools that `search_parameters` stand for, and whether one of them must be used (mode `on`). Raises `BadRequest`."""
    where = "search_parameters"
    if asked is None or asked.mode == "off":
        return (), False
    if asked.mode not in (None, "auto", "on"):
        raise _wrong(f"{where}.mode", "must be off, auto or on")
    if asked.max_search_results is not None and not 1 <= asked.max_search_results <= RESULTS_MAX:
        raise BadRequest(
            f"`{where}.max_search_results` must be between 1 and {RESULTS_MAX}, got {asked.max_search_results}.",
            param=f"{where}.max_search_results",
            code="out_of_range",
        )
    _dates(where, asked.from_date, asked.to_date)
    return _sources(f"{where}.sources", asked.sources, asked), asked.mode == "on"


def _sources(where: str, sources: list[SourceSpec] | None, asked: SearchParameters) -> tuple[ServerTool, ...]:
    """At most one web search and one X search: several sources of a kind become one."""
    web: WebSearch | None = None
    posts: XSearch | None = None
    for number, source in enumerate(sources if sources is not None else [SourceSpec("web"), SourceSpec("x")]):
        place = f"{where}[{number}]"
        match source.type:
            case "web" | "news" | "rss":
                web = _together(web, _web_source(place, source, asked))
            case "x":
                if posts is not None:
                    raise _wrong(place, "is a second source of type x: put what it asks for into the first")
                posts = _x_source(place, source, asked)
            case _:
                raise _wrong(f"{place}.type", "must be web, news, x or rss")
    return tuple(tool for tool in (web, posts) if tool is not None)


def _together(first: WebSearch | None, second: WebSearch) -> WebSearch:
    if first is None:
        return second
    return replace(
        first,
        allowed_domains=first.allowed_domains + second.allowed_domains,
        excluded_domains=first.excluded_domains + second.excluded_domains,
        location=first.location or second.location,
        safe_search=first.safe_search and second.safe_search,
        links=first.links + second.links,
    )


def _web_source(where: str, source: SourceSpec, asked: SearchParameters) -> WebSearch:
    if source.type == "rss" and (source.links is None or len(source.links) != 1):
        raise _wrong(f"{where}.links", "needs exactly one address")
    links = tuple(source.links or ()) if source.type == "rss" else ()
    for link in links:
        if not link.startswith(("https://", "http://")):
            raise _wrong(f"{where}.links", "must begin with https://")
    return WebSearch(
        *_allowed_or_not(where, "websites", source.allowed_websites, source.excluded_websites, _domains),
        location=UserLocation(country=_country(where, source.country)) if source.country else None,
        safe_search=source.safe_search is not False,
        results_max=asked.max_search_results,
        from_date=asked.from_date,
        to_date=asked.to_date,
        links=links,
    )


def _x_source(where: str, source: SourceSpec, asked: SearchParameters) -> XSearch:
    included = source.included_x_handles if source.included_x_handles is not None else source.x_handles
    for name, value in (
        ("post_favorite_count", source.post_favorite_count),
        ("post_view_count", source.post_view_count),
    ):
        if value is not None and value < 0:
            raise _wrong(f"{where}.{name}", "must not be negative")
    return XSearch(
        *_allowed_or_not(where, "x_handles", included, source.excluded_x_handles, _handles),
        from_date=asked.from_date,
        to_date=asked.to_date,
        favorites_min=source.post_favorite_count,
        views_min=source.post_view_count,
        results_max=asked.max_search_results,
    )


def _web_search(where: str, tool: ServerToolFields) -> WebSearch:
    filters = tool.filters or Filters()
    place = where if tool.filters is None else f"{where}.filters"
    for name in ("allowed_domains", "excluded_domains"):
        outer, inner = getattr(tool, name), getattr(filters, name)
        if outer and inner is not None and outer != inner:
            raise _wrong(f"{place}.{name}", f"is not what `{where}.{name}` is: give one of them")
    allowed = filters.allowed_domains if filters.allowed_domains is not None else tool.allowed_domains
    excluded = filters.excluded_domains if filters.excluded_domains is not None else tool.excluded_domains
    at = tool.user_location
    return WebSearch(
        *_allowed_or_not(place, "domains", allowed, excluded, _domains),
        location=None if at is None else _location(f"{where}.user_location", at),
        images=bool(tool.enable_image_understanding),
        image_search=bool(tool.enable_image_search),
    )


def _x_search(where: str, tool: ServerToolFields) -> XSearch:
    _dates(where, tool.from_date, tool.to_date)
    return XSearch(
        *_allowed_or_not(where, "x_handles", tool.allowed_x_handles, tool.excluded_x_handles, _handles),
        from_date=tool.from_date,
        to_date=tool.to_date,
        images=bool(tool.enable_image_understanding),
        videos=bool(tool.enable_video_understanding),
    )


def _mcp(where: str, tool: ServerToolFields) -> Mcp:
    if tool.connector_id is not None:
        raise _wrong(f"{where}.connector_id", "connectors are not supported: give a server_url")
    if tool.require_approval not in (None, "never"):
        raise _wrong(f"{where}.require_approval", "approvals are not supported: leave it out, or say never")
    if not tool.server_url:
        raise Undecodable(f"`{where}.server_url` is required.", param=f"{where}.server_url", code="missing_field")
    _check_address(f"{where}.server_url", tool.server_url)
    label = tool.server_label or "mcp"
    if not _LABEL.fullmatch(label):
        raise _wrong(f"{where}.server_label", "must be 1 to 64 letters, digits, `_` or `-`")
    if tool.authorization is not None and not _VALUE.fullmatch(tool.authorization):
        raise _wrong(f"{where}.authorization", "is no value of an HTTP header")
    for name, value in (tool.headers or {}).items():
        if not _HEADER.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _wrong(f"{where}.headers", "has a name or value that is no HTTP header")
        if name.lower() in OUR_HEADERS:
            raise _wrong(f"{where}.headers", f"may not hold `{name.lower()}`")
    allowed = tool.allowed_tools if tool.allowed_tools is not None else tool.allowed_tool_names
    return Mcp(
        label,
        tool.server_url,
        tool.server_description or "",
        tuple(allowed or ()),
        tool.authorization,
        tuple((tool.headers or {}).items()),
    )


def _check_address(where: str, url: str) -> None:
    """Raises `BadRequest`. A password in an address would be told in errors."""
    if not url.startswith(("https://", "http://")):
        raise _wrong(where, "must begin with https://")
    if len(url) > URL_CHARS_MAX:
        raise _wrong(where, f"has more than {URL_CHARS_MAX:,} characters")
    if "@" in url.split("://", 1)[1].partition("/")[0]:
        raise _wrong(where, "must not hold a user name or a password: use authorization or headers")


def _collections(where: str, tool: ServerToolFields) -> CollectionsSearch:
    for name, value in (("filters", tool.filters), ("ranking_options", tool.ranking_options)):
        if value is not None:
            raise _wrong(f"{where}.{name}", "is not supported: leave it out")
    ids = tool.vector_store_ids or []
    if not 1 <= len(ids) <= COLLECTIONS_MAX:
        raise _wrong(f"{where}.vector_store_ids", f"needs 1 to {COLLECTIONS_MAX} ids")
    most = tool.max_num_results if tool.max_num_results is not None else 10
    if most < 1:
        raise _wrong(f"{where}.max_num_results", "must be at least 1")
    return CollectionsSearch(tuple(ids), most)


def _allowed_or_not(
    where: str,
    what: str,
    allowed: list[str] | None,
    excluded: list[str] | None,
    check: Callable[[str, list[str]], tuple[str, ...]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Raises `BadRequest` where both are given."""
    if allowed and excluded:
        raise _wrong(where, f"takes allowed {what} or excluded {what}, not both")
    return check(f"{where}.allowed_{what}", allowed or []), check(f"{where}.excluded_{what}", excluded or [])


def _domains(where: str, domains: list[str]) -> tuple[str, ...]:
    if len(domains) > DOMAINS_MAX:
        raise BadRequest(f"`{where}` takes up to {DOMAINS_MAX}, got {len(domains)}.", param=where, code="too_many")
    for domain in domains:
        if not _DOMAIN.fullmatch(domain):
            raise _wrong(where, f"takes domains such as example.com, without scheme and path; got `{domain[:100]}`")
    return tuple(domain.lower() for domain in domains)


def _handles(where: str, handles: list[str]) -> tuple[str, ...]:
    if len(handles) > HANDLES_MAX:
        raise BadRequest(f"`{where}` takes up to {HANDLES_MAX}, got {len(handles)}.", param=where, code="too_many")
    bare = tuple(handle.removeprefix("@") for handle in handles)
    for handle in bare:
        if not _HANDLE.fullmatch(handle):
            raise _wrong(where, f"takes handles such as @xai; got `{handle[:100]}`")
    return bare


def _location(where: str, at: Location) -> UserLocation:
    for name, value in (("region", at.region), ("city", at.city), ("timezone", at.timezone)):
        if value is not None and (len(value) > PLACE_CHARS_MAX or not value.isprintable()):
            raise _wrong(f"{where}.{name}", f"must be at most {PLACE_CHARS_MAX} characters on one line")
    return UserLocation(_country(where, at.country), at.region, at.city, at.timezone)


def _country(where: str, country: str | None) -> str | None:
    if country is not None and not (len(country) == 2 and country.isascii() and country.isalpha()):
        raise _wrong(f"{where}.country", "must be two letters, such as NO")
    return country.upper() if country else None


def _dates(where: str, from_date: str | None, to_date: str | None) -> None:
    """Raises `BadRequest` for what is no day, and for days in the wrong order."""
    for name, day in (("from_date", from_date), ("to_date", to_date)):
        try:
            if day is not None and date.fromisoformat(day).isoformat() != day:
                raise ValueError(day)
        except ValueError:
            raise _wrong(f"{where}.{name}", "must be a day such as 2026-01-31") from None
    if from_date and to_date and from_date > to_date:
        raise _wrong(f"{where}.to_date", "must not be before from_date")


def _wrong(where: str, what: str) -> BadRequest:
    return BadRequest(f"`{where}`: {what}.", param=where, code="invalid_value")
