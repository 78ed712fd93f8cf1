"""A post and its author, as every provider gives them, and what the caller lets the model see of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from jubal.core.errors import BadRequest
from jubal.core.server_tools import XSearch
from jubal.tools.base import ToolSetupError

HANDLE: Final = re.compile(r"[A-Za-z0-9_]{1,50}")
HANDLES_MAX: Final = 20
DAY_MS: Final = 86_400_000
SNOWFLAKE_EPOCH_MS: Final = 1_288_834_974_657
"""Ids of X hold the milliseconds since then, above 22 bits of other things."""
SNOWFLAKE_MIN: Final = 10**15
"""Smaller ids may be anything; those of X passed this one some days after they began to hold a time."""


class XSearchError(ToolSetupError):
    """The tool can't be set up, or a file can't be imported. The message is for the operator: one line that says how to mend it."""


@dataclass(frozen=True, slots=True)
class Author:
    """handle: without `@`. Counts are None where they are not known."""

    handle: str
    name: str = ""
    description: str = ""
    followers: int | None = None
    verified: bool | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """One post. created_ms: Unix milliseconds. Counts, time and what it answers are None where they are not known.

    url: where it is on the web. links: addresses in its text, at full length; media: addresses of pictures and videos.
    kinds: names of `query.FilterName` that fit, and say what it is or has.
    """

    id: str
    author: str
    text: str
    created_ms: int | None
    url: str
    lang: str | None = None
    likes: int | None = None
    reposts: int | None = None
    replies: int | None = None
    views: int | None = None
    reply_to: str | None = None
    reply_to_author: str | None = None
    conversation: str | None = None
    quoted: str | None = None
    kinds: frozenset[str] = frozenset()
    links: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    name: str = ""


def url_of(handle: str, ident: str) -> str:
    return f"https://x.com/{handle}/status/{ident}"


def time_of_id(ident: str) -> int | None:
    """Unix milliseconds that an id of X holds, or None where it is not of that form."""
    if not ident.isascii() or not ident.isdigit() or not SNOWFLAKE_MIN <= (number := int(ident)) < 1 << 63:
        return None
    return (number >> 22) + SNOWFLAKE_EPOCH_MS


# -------------------------------------------------------------------------------------------- what the caller allows


@dataclass(frozen=True, slots=True)
class Scope:
    """What the model may be shown, whatever it asks for. Handles in lower case; since_ms included, until_ms not.

    A post whose time, likes or views are not known is outside of a bound on them. media: show addresses of pictures, videos.
    """

    allowed: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    likes_min: int = 0
    views_min: int = 0
    images: bool = False
    videos: bool = False

    def allows_author(self, handle: str) -> bool:
        handle = handle.lower()
        return handle not in self.excluded and (not self.allowed or handle in self.allowed)

    def allows(self, post: Post) -> bool:
        return (
            self.allows_author(post.author)
            and (self.since_ms is None or (post.created_ms is not None and post.created_ms >= self.since_ms))
            and (self.until_ms is None or (post.created_ms is not None and post.created_ms < self.until_ms))
            and (post.likes or 0) >= self.likes_min
            and (post.views or 0) >= self.views_min
        )

    def narrowed(self, since_ms: int | None, until_ms: int | None) -> Scope:
        """Also within these bounds."""
        return Scope(
            self.allowed,
            self.excluded,
            max((one for one in (self.since_ms, since_ms) if one is not None), default=None),
            min((one for one in (self.until_ms, until_ms) if one is not None), default=None),
            self.likes_min,
            self.views_min,
            self.images,
            self.videos,
        )


def scope_of(wanted: XSearch) -> Scope:
    """Raises `BadRequest` naming the field (xai-api.md 9.1)."""
    if wanted.allowed_handles and wanted.excluded_handles:
        raise BadRequest("Give `allowed_x_handles` or `excluded_x_handles`, not both.", param="excluded_x_handles")
    since, until = _day("from_date", wanted.from_date), _day("to_date", wanted.to_date)
    if since is not None and until is not None and since > until:
        raise BadRequest("`from_date` must not be after `to_date`.", param="from_date")
    return Scope(
        _handles("allowed_x_handles", wanted.allowed_handles),
        _handles("excluded_x_handles", wanted.excluded_handles),
        since,
        None if until is None else until + DAY_MS,
        wanted.favorites_min or 0,
        wanted.views_min or 0,
        wanted.images,
        wanted.videos,
    )


def _handles(field: str, handles: tuple[str, ...]) -> frozenset[str]:
    if len(handles) > HANDLES_MAX:
        raise BadRequest(f"`{field}` takes at most {HANDLES_MAX} handles, got {len(handles)}.", param=field)
    for handle in handles:
        if not HANDLE.fullmatch(handle.removeprefix("@")):
            raise BadRequest(f"`{field}` takes handles of X such as `xai`, got {handle[:60]!r}.", param=field)
    return frozenset(handle.removeprefix("@").lower() for handle in handles)


def _day(field: str, value: str | None) -> int | None:
    if value is None:
        return None
    day = day_ms(value)
    if day is None:
        raise BadRequest(f"`{field}` must be a date such as 2024-12-31, got {value[:60]!r}.", param=field)
    return day


def day_ms(value: str) -> int | None:
    """The first Unix millisecond of a `YYYY-MM-DD` day in UTC, or None where it is no such day."""
    try:
        return int(datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        return None


def stamp(created_ms: int) -> datetime:
    """Unix milliseconds as a time in UTC, of any size."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=created_ms)


# ------------------------------------------------------------------------------------------------------ the provider


@dataclass(frozen=True, slots=True)
class Result:
    """note: for the model, what it should know about how this was found."""

    posts: tuple[Post, ...] = ()
    authors: tuple[tuple[Author, int | None], ...] = ()
    """With how many of their posts are at hand, where that is known."""
    note: str = ""


class Provider(Protocol):
    """Where posts come from. All methods raise `ToolFailed`; cancelling one ends its work first. Nothing outside of `scope`
    is ever given. limit: at least 1."""

    async def start(self) -> None:
        """Begins what has to be done before the first search. Raises `XSearchError`."""
        ...

    async def keyword(self, query: str, scope: Scope, limit: int, *, top: bool) -> Result:
        """Posts by the query language of query.py; newest first, or most liked first."""
        ...

    async def semantic(self, query: str, scope: Scope, limit: int, score_min: float) -> Result:
        """Posts nearest in meaning, best first. score_min: least cosine of the two vectors."""
        ...

    async def users(self, query: str, scope: Scope, limit: int) -> Result: ...

    async def thread(self, ident: str, scope: Scope, limit: int) -> Result:
        """The post, what it answers, and what answers it; oldest first."""
        ...

    async def close(self) -> None:
        """Never raises."""
        ...
