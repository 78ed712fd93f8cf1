"""The tools of a request, and the live search that they replace (xai-api.md 9.1, 6.5)."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from jubal.core.errors import BadRequest
from jubal.core.generation import NO_TOOLS, FunctionTool, NamedTool, ToolChoice, Tools
from jubal.core.server_tools import CodeExecution, CollectionsSearch, ServerTool
from jubal.wire import server_tools
from jubal.wire.openai_chat import TOOL_NAME, TOOL_NAME_MAX, TOOLS_MAX, is_of_objects
from jubal.wire.server_tools import Location, SearchParameters, ServerToolFields, SourceSpec
from jubal.wire.xai_grpc.decode import day, optional, wrong
from jubal.wire.xai_grpc.pb import Proto, chat

_SEARCH_MODE: Final = {
    chat.INVALID_SEARCH_MODE: None,
    chat.OFF_SEARCH_MODE: "off",
    chat.ON_SEARCH_MODE: "on",
    chat.AUTO_SEARCH_MODE: "auto",
}


def tools(asked: Proto) -> Tools:
    """What `asked` may call. Raises `BadRequest` naming the field at fault."""
    functions: list[FunctionTool] = []
    served: list[ServerTool] = []
    for index, tool in enumerate(asked.tools):
        where = f"tools[{index}]"
        if tool.WhichOneof("tool") == "function":
            functions.append(_function(f"{where}.function", tool.function))
        else:
            served += _server_tool(where, tool)
    if len(asked.tools) > TOOLS_MAX:
        raise BadRequest(f"`tools` takes up to {TOOLS_MAX} tools.", param="tools", code="too_many")
    names = [function.name for function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise wrong("tools", f"has two functions named `{twice}`")
    searched, must = server_tools.parse_search(_search(asked))
    served += [tool for tool in searched if type(tool) not in map(type, served)]
    choice = _choice(asked.tool_choice, names, any_tool=bool(functions or served))
    if not (functions or served):
        return NO_TOOLS
    if must and choice == "auto":
        choice = "required"
    parallel = optional(asked, "parallel_tool_calls") is not False
    return Tools(tuple(functions), choice, parallel, tuple(served))


def _function(where: str, function: Proto) -> FunctionTool:
    if not TOOL_NAME.fullmatch(function.name):
        raise wrong(f"{where}.name", f"must be 1 to {TOOL_NAME_MAX} letters, digits, `_`, `-` or `.`")
    schema = json_object(f"{where}.parameters", function.parameters) if function.parameters else None
    if schema and not is_of_objects(schema):
        raise BadRequest(
            f"`{where}.parameters`: the schema of `{function.name}` must be of type object.",
            param=f"{where}.parameters",
            code="invalid_schema",
        )
    return FunctionTool(function.name, function.description, function.parameters if schema else None, function.strict)


def json_object(where: str, text: str) -> dict[str, Any]:
    """Raises `BadRequest` for what is no JSON object."""
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(where, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise wrong(where, "must be a JSON object")
    return value


def _choice(choice: Proto, names: list[str], *, any_tool: bool) -> ToolChoice:
    if choice.WhichOneof("tool_choice") == "function_name":
        if choice.function_name not in names:
            raise wrong("tool_choice.function_name", f"`{choice.function_name[:64]}` is no function of `tools`")
        return NamedTool(choice.function_name)
    match choice.mode:
        case chat.TOOL_MODE_NONE:
            return "none"
        case chat.TOOL_MODE_REQUIRED:
            if not any_tool:
                raise wrong("tool_choice.mode", "is required, and `tools` is empty")
            return "required"
        case chat.TOOL_MODE_INVALID | chat.TOOL_MODE_AUTO:
            return "auto"
    raise wrong("tool_choice.mode", f"there is no mode {choice.mode}")


# ---------------------------------------------------------------------------------------------- server tools


def _server_tool(where: str, tool: Proto) -> tuple[ServerTool, ...]:
    kind = tool.WhichOneof("tool")
    at = f"{where}.{kind}"
    match kind:
        case "web_search":
            return server_tools.parse(at, _web_search(tool.web_search))
        case "x_search":
            return server_tools.parse(at, _x_search(at, tool.x_search))
        case "code_execution":
            return (CodeExecution(),)
        case "mcp":
            return server_tools.parse(at, _mcp(tool.mcp))
        case "collections_search":
            return (_collections(at, tool.collections_search),)
        case None:
            raise wrong(where, "says no tool that is known here")
    raise wrong(at, "this server has no such tool")


def _web_search(tool: Proto) -> ServerToolFields:
    at = tool.user_location
    return ServerToolFields(
        "web_search",
        allowed_domains=list(tool.allowed_domains),
        excluded_domains=list(tool.excluded_domains),
        enable_image_understanding=tool.enable_image_understanding,
        enable_image_search=tool.enable_image_search,
        user_location=Location(
            "approximate",
            optional(at, "country"),
            optional(at, "region"),
            optional(at, "city"),
            optional(at, "timezone"),
        )
        if tool.HasField("user_location")
        else None,
    )


def _x_search(where: str, tool: Proto) -> ServerToolFields:
    return ServerToolFields(
        "x_search",
        allowed_x_handles=list(tool.allowed_x_handles),
        excluded_x_handles=list(tool.excluded_x_handles),
        from_date=day(tool, "from_date", where),
        to_date=day(tool, "to_date", where),
        enable_image_understanding=tool.enable_image_understanding,
        enable_video_understanding=tool.enable_video_understanding,
    )


def _mcp(tool: Proto) -> ServerToolFields:
    return ServerToolFields(
        "mcp",
        server_label=tool.server_label,
        server_url=tool.server_url,
        server_description=tool.server_description,
        allowed_tools=list(tool.allowed_tool_names),
        authorization=optional(tool, "authorization"),
        headers=dict(tool.extra_headers),
    )


def _collections(where: str, tool: Proto) -> CollectionsSearch:
    ids = tuple(tool.collection_ids)
    if not 1 <= len(ids) <= server_tools.COLLECTIONS_MAX:
        raise wrong(f"{where}.collection_ids", f"needs 1 to {server_tools.COLLECTIONS_MAX} ids")
    limit = optional(tool, "limit")
    if limit is not None and limit < 1:
        raise wrong(f"{where}.limit", "must be at least 1")
    return CollectionsSearch(ids, 10 if limit is None else limit)


# ---------------------------------------------------------------------------------------------- live search


def _search(asked: Proto) -> SearchParameters | None:
    """Dates are Timestamps here. No mode means auto: whoever sends the object wants to search."""
    if not asked.HasField("search_parameters"):
        return None
    wanted = asked.search_parameters
    if wanted.mode not in _SEARCH_MODE:
        raise wrong("search_parameters.mode", f"there is no mode {wanted.mode}")
    sources = [_source(f"search_parameters.sources[{index}]", one) for index, one in enumerate(wanted.sources)]
    return SearchParameters(
        mode=_SEARCH_MODE[wanted.mode],
        sources=sources or None,
        from_date=day(wanted, "from_date", "search_parameters"),
        to_date=day(wanted, "to_date", "search_parameters"),
        return_citations=wanted.return_citations,
        max_search_results=optional(wanted, "max_search_results"),
    )


def _source(where: str, source: Proto) -> SourceSpec:
    match source.WhichOneof("source"):
        case "web":
            web = source.web
            return SourceSpec(
                "web",
                list(web.allowed_websites),
                list(web.excluded_websites),
                optional(web, "country"),
                web.safe_search,
            )
        case "news":
            news = source.news
            return SourceSpec(
                "news",
                excluded_websites=list(news.excluded_websites),
                country=optional(news, "country"),
                safe_search=news.safe_search,
            )
        case "x":
            posts = source.x
            return SourceSpec(
                "x",
                included_x_handles=list(posts.included_x_handles),
                excluded_x_handles=list(posts.excluded_x_handles),
                post_favorite_count=optional(posts, "post_favorite_count"),
                post_view_count=optional(posts, "post_view_count"),
            )
        case "rss":
            return SourceSpec("rss", links=list(source.rss.links))
    raise wrong(where, "must be web, news, x or rss")
