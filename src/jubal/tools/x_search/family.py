"""The functions of x_search that a model calls (xai-api.md 9.3, 9.4), over a provider of posts."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from jubal.core.generation import FunctionTool
from jubal.core.server_tools import Source, ToolKind, XSearch
from jubal.tools.base import Found, ToolFailed, ToolOutput
from jubal.tools.x_search.archive import FILE_NAME
from jubal.tools.x_search.posts import (
    DAY_MS,
    Author,
    Post,
    Provider,
    Result,
    Scope,
    XSearchError,
    day_ms,
    scope_of,
    stamp,
)
from jubal.tools.x_search.vectors import Embed

KEY_VARIABLE: Final = "X_BEARER_TOKEN"
LIMIT: Final = 10
LIMIT_MAX: Final = 30
USERS: Final = 3
USERS_MAX: Final = 20
THREAD_MAX: Final = 30
QUERY_CHARS_MAX: Final = 1_024
SCORE_MIN: Final = 0.18
TEXT_CHARS_MAX: Final = 4_000
"""Of one post in a result; almost none is as long."""
MEDIA_SHOWN: Final = 4
TITLE_CHARS: Final = 60

_POST_ID: Final = re.compile(r"(?:.*/status(?:es)?/)?([!-.0-~]{1,100}?)(?:[?#].*)?/?")

QUERY_HELP: Final = (
    'Words that a post must have. A space means AND. Also: OR, "exact phrase", -word (without), #tag, from:name, to:name, '
    "@name, since:YYYY-MM-DD, until:YYYY-MM-DD, lang:en, filter:links, filter:media, filter:replies, min_faves:10."
)


class Settings(Protocol):
    """`[tools.x_search]` of the configuration."""

    @property
    def provider(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def base_url(self) -> str | None: ...
    @property
    def api_key_env(self) -> str | None: ...
    @property
    def full_archive(self) -> bool: ...
    @property
    def reads_max(self) -> int: ...


def make_x_search(
    settings: Settings,
    home: Path,
    embed: Embed | None,
    *,
    environ: Mapping[str, str],
    beside: Path | None = None,
) -> XSearchFamily:
    """The family as configured, without I/O. home: where the archive is. embed: for semantic search; None: there is none.

    environ: has the bearer token of the X API. beside: the configuration file, from whose folder a relative `path` counts.
    Raises `XSearchError`.
    """
    if settings.provider == "x-api":
        from jubal.tools.x_search.x_api import XApiProvider

        variable = settings.api_key_env or KEY_VARIABLE
        token = environ.get(variable)
        if not token:
            raise XSearchError(
                f"tools.x_search: the provider `x-api` needs a bearer token of X in ${variable}, which is not set."
            )
        return XSearchFamily(
            XApiProvider(
                token,
                base_url=settings.base_url,
                full_archive=settings.full_archive,
                reads_max=settings.reads_max,
                embed=embed,
            )
        )
    from jubal.tools.x_search.local import LocalProvider

    path = None if settings.path is None else Path(settings.path).expanduser()
    if path is not None and beside is not None:
        path = beside.parent / path
    return XSearchFamily(LocalProvider(home / FILE_NAME, embed, path))


ALIASES: Final = {"x_search": "x_keyword_search"}


class XSearchFamily:
    """x_search. `start` is for a server that wants to have it prepared; the first call does it too."""

    kind: ToolKind = "x_search"
    aliases: Mapping[str, str] = ALIASES

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def start(self) -> None:
        """Raises `XSearchError` where the configuration can't be followed."""
        await self._provider.start()

    def open(self, wanted: XSearch) -> XSearchSession:
        return XSearchSession(self._provider, scope_of(wanted), wanted.results_max)

    async def close(self) -> None:
        await self._provider.close()


class XSearchSession:
    """One request's searches. It keeps no state: calls may run at the same time."""

    def __init__(self, provider: Provider, scope: Scope, results_max: int | None = None) -> None:
        self._provider = provider
        self._scope = scope
        self._most = min(LIMIT_MAX, results_max or LIMIT_MAX)
        self._calls: dict[str, Callable[[_Arguments], Awaitable[ToolOutput]]] = {
            "x_keyword_search": self._keyword,
            "x_semantic_search": self._semantic,
            "x_user_search": self._users,
            "x_thread_fetch": self._thread,
        }

    async def functions(self) -> tuple[FunctionTool, ...]:
        return FUNCTIONS

    async def call(self, name: str, arguments: str) -> ToolOutput:
        run = self._calls.get(name)
        if run is None:
            raise ToolFailed(f"There is no function `{name}`. Use one of: {', '.join(self._calls)}.")
        try:
            return await run(_Arguments(arguments))
        except XSearchError as error:
            raise ToolFailed(str(error)) from error

    async def close(self) -> None:
        return

    async def _keyword(self, arguments: _Arguments) -> ToolOutput:
        query = arguments.text("query", QUERY_CHARS_MAX)
        mode = arguments.choice("mode", ("Latest", "Top"))
        result = await self._provider.keyword(query, self._scope, self._limit(arguments), top=mode == "Top")
        return self._output(result, "No post fits. Try fewer or other words, OR between them, or x_semantic_search.")

    async def _semantic(self, arguments: _Arguments) -> ToolOutput:
        query = arguments.text("query", QUERY_CHARS_MAX)
        since, until = arguments.day("from_date"), arguments.day("to_date")
        if since is not None and until is not None and since > until:
            raise ToolFailed("`from_date` is after `to_date`. Swap them, or leave one out.")
        scope = self._scope.narrowed(since, None if until is None else until + DAY_MS)
        score = arguments.number("min_score_threshold", SCORE_MIN, -1.0, 1.0)
        result = await self._provider.semantic(query, scope, self._limit(arguments), score)
        return self._output(
            result, "No post is near enough in meaning. Try other words, or a lower min_score_threshold."
        )

    async def _users(self, arguments: _Arguments) -> ToolOutput:
        query = arguments.text("query", QUERY_CHARS_MAX)
        count = min(arguments.integer("count", USERS, 1, USERS_MAX), self._most)
        result = await self._provider.users(query, self._scope, count)
        found = tuple(_user_found(author, posts) for author, posts in result.authors)
        return ToolOutput(_said(result.note, found, "No user fits. Try a part of the name, or one word only."), found)

    async def _thread(self, arguments: _Arguments) -> ToolOutput:
        told = arguments.text("post_id", 300)
        match = _POST_ID.fullmatch(told)
        if match is None:
            raise ToolFailed("`post_id` must be the id of a post, such as 1846987139428634858, or its address.")
        result = await self._provider.thread(match[1], self._scope, min(THREAD_MAX, self._most))
        return self._output(result, "The thread is empty.")

    def _limit(self, arguments: _Arguments) -> int:
        return min(arguments.integer("limit", LIMIT, 1, LIMIT_MAX), self._most)

    def _output(self, result: Result, none: str) -> ToolOutput:
        # The provider keeps to the scope. This is what makes it sure, whatever the provider.
        found = tuple(_post_found(post, self._scope) for post in result.posts if self._scope.allows(post))
        return ToolOutput(_said(result.note, found, none), found)


def _said(note: str, found: tuple[Found, ...], none: str) -> str:
    return "\n".join(line for line in (note, "" if found else none) if line)


def _post_found(post: Post, scope: Scope) -> Found:
    """A post for the model: who, when, how much it was noticed, and its text."""
    when = "" if post.created_ms is None else f"{stamp(post.created_ms):%Y-%m-%d %H:%M} UTC"
    who = f"@{post.author}" + (f" ({post.name})" if post.name else "")
    counts = ", ".join(
        f"{count:,} {what}"
        for count, what in (
            (post.likes, "likes"), (post.reposts, "reposts"), (post.replies, "replies"), (post.views, "views"),
        )
        if count is not None
    )  # fmt: skip
    answers = f"answers post {post.reply_to}" if post.reply_to else ""
    head = " | ".join(part for part in (who, when, counts, f"post {post.id}", answers) if part)
    text = post.text if len(post.text) <= TEXT_CHARS_MAX else post.text[:TEXT_CHARS_MAX] + " …"
    return Found(Source(post.url, _title(post)), "\n".join([head, text, *_media(post, scope)]))


def _media(post: Post, scope: Scope) -> list[str]:
    wanted = (scope.images and "images" in post.kinds) or (scope.videos and "videos" in post.kinds)
    wanted = wanted or ((scope.images or scope.videos) and not post.kinds & {"images", "videos"})
    return [f"media: {address}" for address in post.media[:MEDIA_SHOWN]] if wanted else []


def _title(post: Post) -> str:
    line = " ".join(post.text.split())
    return f"@{post.author}: {line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + '…'}"


def _user_found(author: Author, posts: int | None) -> Found:
    counts = (
        "" if author.followers is None else f"{author.followers:,} followers",
        "" if posts is None else f"{posts:,} posts in the archive",
        "verified" if author.verified else "",
    )
    head = " | ".join(part for part in (f"@{author.handle}", author.name, *counts) if part)
    text = f"{head}\n{author.description}" if author.description else head
    return Found(Source(f"https://x.com/{author.handle}", author.name or f"@{author.handle}"), text)


# ---------------------------------------------------------------------------------------------------------- arguments


class _Arguments:
    """What the model wrote. Everything that is amiss is a `ToolFailed` that says what to write instead; what small models get
    nearly right, such as a number as text, is taken."""

    def __init__(self, text: str) -> None:
        try:
            tree = msgspec.json.decode(text.encode("utf-8", "replace")) if text.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            raise ToolFailed('The arguments must be a JSON object, such as {"query": "solar eclipse"}.') from None
        if not isinstance(tree, dict):
            raise ToolFailed('The arguments must be a JSON object, such as {"query": "solar eclipse"}.')
        self._tree: dict[str, Any] = tree

    def text(self, name: str, chars_max: int) -> str:
        value = self._tree.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise ToolFailed(f"`{name}` is missing: it must be text that is not empty.")
        if len(value) > chars_max:
            raise ToolFailed(f"`{name}` has {len(value):,} characters; use at most {chars_max:,}.")
        return value.strip().encode("utf-8", "replace").decode()

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """Above the largest the largest is taken: who asks for more wants all there is."""
        value = self.number(name, default, None, None)
        if value != int(value) or value < least:
            raise ToolFailed(f"`{name}` must be a whole number from {least} to {most}.")
        return min(int(value), most)

    def number(self, name: str, default: float, least: float | None, most: float | None) -> float:
        value = self._tree.get(name)
        if value is None or value == "":
            return default
        try:
            found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            found = None
        if found is None or found != found or abs(found) > 1e15:
            raise ToolFailed(f"`{name}` must be a number.")
        if (least is not None and found < least) or (most is not None and found > most):
            raise ToolFailed(f"`{name}` must be between {least} and {most}.")
        return found

    def choice(self, name: str, known: tuple[str, ...]) -> str:
        """The first where none is given; case does not matter."""
        value = self._tree.get(name)
        if value is None or value == "":
            return known[0]
        found = next((one for one in known if isinstance(value, str) and one.lower() == value.strip().lower()), None)
        if found is None:
            raise ToolFailed(f"`{name}` must be one of: {', '.join(known)}.")
        return found

    def day(self, name: str) -> int | None:
        value = self._tree.get(name)
        if value is None or value == "":
            return None
        day = day_ms(value.strip()[:10]) if isinstance(value, str) else None
        if day is None:
            raise ToolFailed(f"`{name}` must be a date such as 2024-12-31.")
        return day


def _function(name: str, description: str, required: str, **properties: dict[str, Any]) -> FunctionTool:
    schema = {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}
    return FunctionTool(name, description, json.dumps(schema, ensure_ascii=False))


_LIMIT_SCHEMA: Final = {
    "type": "integer",
    "minimum": 1,
    "maximum": LIMIT_MAX,
    "description": f"How many posts, {LIMIT} if left out.",
}
_DAY_SCHEMA: Final = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}

FUNCTIONS: Final = (
    _function(
        "x_keyword_search",
        "Find posts on X by their words, authors and dates.",
        "query",
        query={"type": "string", "minLength": 1, "maxLength": 400, "description": QUERY_HELP},
        limit=_LIMIT_SCHEMA,
        mode={"type": "string", "enum": ["Latest", "Top"], "description": "Latest: newest first. Top: most liked first."},
    ),
    _function(
        "x_semantic_search",
        "Find posts on X about a topic, also when they use other words.",
        "query",
        query={"type": "string", "minLength": 1, "maxLength": 400, "description": "What the posts are about, in plain words."},
        limit=_LIMIT_SCHEMA,
        from_date={**_DAY_SCHEMA, "description": "First day, YYYY-MM-DD."},
        to_date={**_DAY_SCHEMA, "description": "Last day, YYYY-MM-DD."},
        min_score_threshold={
            "type": "number", "minimum": 0, "maximum": 1, "description": f"Least likeness, {SCORE_MIN} if left out.",
        },
    ),
    _function(
        "x_user_search",
        "Find users of X by name or handle.",
        "query",
        query={"type": "string", "minLength": 1, "maxLength": 100, "description": "A name or a part of it."},
        count={"type": "integer", "minimum": 1, "maximum": USERS_MAX, "description": f"How many users, {USERS} if left out."},
    ),
    _function(
        "x_thread_fetch",
        "Read a post on X with the posts that it answers and those that answer it.",
        "post_id",
        post_id={"type": "string", "minLength": 1, "maxLength": 200, "description": "The id of the post."},
    ),
)  # fmt: skip
