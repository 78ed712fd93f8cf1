"""The tools that Jubal itself runs while it answers (seed, "Agentic Server-Side Tool Calling"; xai-api.md 9): what a caller may
ask of each. What runs them is in tools/, when they run is decided in agent/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

ToolKind: TypeAlias = Literal["web_search", "x_search", "code_execution", "mcp", "collections_search"]
KINDS: Final[tuple[ToolKind, ...]] = ("web_search", "x_search", "code_execution", "mcp", "collections_search")


@dataclass(frozen=True, slots=True)
class UserLocation:
    """Where the end user is, roughly. country: ISO 3166 alpha-2. timezone: an IANA name."""

    country: str | None = None
    region: str | None = None
    city: str | None = None
    timezone: str | None = None


@dataclass(frozen=True, slots=True)
class WebSearch:
    """Search, open and read web pages.

    allowed_domains, excluded_domains: up to five each, and not both; a domain stands for its subdomains too.
    images: look at pictures that are met. image_search: pictures may be searched. results_max: of one search, 1..30.
    from_date, to_date: `YYYY-MM-DD`, both included. links: pages or feeds to begin with.
    """

    allowed_domains: tuple[str, ...] = ()
    excluded_domains: tuple[str, ...] = ()
    location: UserLocation | None = None
    images: bool = False
    image_search: bool = False
    safe_search: bool = True
    results_max: int | None = None
    from_date: str | None = None
    to_date: str | None = None
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class XSearch:
    """Search posts, users and threads of X.

    allowed_handles, excluded_handles: up to 20 each without `@`, and not both. Dates: `YYYY-MM-DD`, both included.
    images, videos: look at those that are met. favorites_min, views_min: only posts with at least so many.
    """

    allowed_handles: tuple[str, ...] = ()
    excluded_handles: tuple[str, ...] = ()
    from_date: str | None = None
    to_date: str | None = None
    images: bool = False
    videos: bool = False
    favorites_min: int | None = None
    views_min: int | None = None
    results_max: int | None = None


@dataclass(frozen=True, slots=True)
class CodeExecution:
    """Run Python in a sandbox that keeps its state for the time of the request."""


@dataclass(frozen=True, slots=True, repr=False)
class Mcp:
    """Call the tools of a remote MCP server, over streamable HTTP or SSE.

    label: begins the names of its functions, `label.tool`. allowed: its tools that may be called; empty: all.
    authorization: for the header of that name, and headers: further ones; both are secrets, so neither is ever shown.
    """

    label: str
    url: str
    description: str = ""
    allowed: tuple[str, ...] = ()
    authorization: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        return f"Mcp(label={self.label!r})"


@dataclass(frozen=True, slots=True)
class CollectionsSearch:
    """Search uploaded files. collections: their ids, 1..10. results_max: at least 1."""

    collections: tuple[str, ...]
    results_max: int = 10


ServerTool: TypeAlias = WebSearch | XSearch | CodeExecution | Mcp | CollectionsSearch

KIND: Final[dict[type, ToolKind]] = {
    WebSearch: "web_search",
    XSearch: "x_search",
    CodeExecution: "code_execution",
    Mcp: "mcp",
    CollectionsSearch: "collections_search",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Something that a tool found and the model may have read: a page, a post, a file."""

    url: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that a tool made, such as a plot. mime: its media type."""

    name: str
    data: bytes
    mime: str = "application/octet-stream"
