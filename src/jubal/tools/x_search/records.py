"""One JSON value as posts: of an X archive, of the X API v2 (a page of it or one post), or of the plain form.

The plain form has `id`, `author`, `text`, `created_at`, `url`, `likes`, `views`, `reply_to`; only the first three must be there.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from jubal.tools.x_search.posts import HANDLE, Author, Post, time_of_id, url_of
from jubal.tools.x_search.query import FILTERS
from jubal.tools.x_search.terms import kinds_of

TEXT_CHARS_MAX: Final = 100_000
COUNT_MAX: Final = (1 << 63) - 1
ID: Final = re.compile(r"[!-~]{1,100}")
LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})?")
LINK: Final = re.compile(r"https?://[^\s\"'<>`\x00-\x1f]{1,2000}")
ANSWERED: Final = re.compile(r"\s*@([A-Za-z0-9_]{1,50})")
CLASSIC_TIME: Final = "%a %b %d %H:%M:%S %z %Y"
SECONDS_MAX: Final = 10**11
"""Larger numbers are milliseconds."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a value is no post."""

    reason: str


Item: TypeAlias = Post | Author | Unfit
Json: TypeAlias = dict[str, Any]


class _Wrong(Exception):
    """A field can't be used; the message names it."""


def items_of(value: Any, owner: Author | None) -> Iterator[Item]:
    """The posts and authors of one value. owner: who wrote posts of an X archive."""
    if not isinstance(value, dict):
        yield Unfit("expected a JSON object")
    elif isinstance(value.get("tweet"), dict):
        yield _tried(lambda: _classic(value["tweet"], owner))
    elif _is_page(value):
        yield from _page(value)
    elif "full_text" in value or isinstance(value.get("user"), dict):
        yield _tried(lambda: _classic(value, owner))
    elif "author_id" in value or "public_metrics" in value:
        yield from _flattened(value)
    else:
        yield _tried(lambda: _plain(value))


def _tried(make: Any) -> Item:
    try:
        made: Item = make()
    except _Wrong as error:
        return Unfit(str(error))
    return made


# ------------------------------------------------------------------------------------------------------------- fields


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _id(value: Any, name: str = "id") -> str:
    found = _optional_id(value)
    if found is None:
        raise _Wrong(f"`{name}`: expected an id without spaces, got {_shown(value)}")
    return found


def _optional_id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and ID.fullmatch(value) else None


def _handle(value: Any, name: str) -> str:
    found = value.strip().removeprefix("@") if isinstance(value, str) else ""
    if not HANDLE.fullmatch(found):
        raise _Wrong(f"`{name}`: expected a handle such as `xai`, got {_shown(value)}")
    return found


def _optional_handle(value: Any) -> str | None:
    return value if isinstance(value, str) and HANDLE.fullmatch(value) else None


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]


def clean(text: str) -> str:
    """Without what is no character: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _text(value: Any, name: str = "text", *, escaped: bool) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"`{name}`: expected text, got {_shown(value)}")
    return clean(html.unescape(value) if escaped else value)[:TEXT_CHARS_MAX]


def _line(value: Any) -> str:
    """A name or description on one line; "" where there is none."""
    return " ".join(clean(value).split())[:1_000] if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    """A count, which archives write as text. What is none is not known."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX else None


def _language(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) and LANGUAGE.fullmatch(value) else None


def time_ms(value: Any) -> int | None:
    """Unix milliseconds of ISO 8601 (UTC where it names no zone), of Twitter's first form, or of a number of seconds or
    milliseconds; None for nothing. Raises `ValueError`."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{9,14}", value):
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return int(value if abs(value) > SECONDS_MAX else value * 1000)
    if not isinstance(value, str):
        raise ValueError(value)
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        moment = datetime.strptime(value.strip(), CLASSIC_TIME)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _created(value: Any, ident: str) -> int | None:
    """The time that is told; where the id tells the same second, its milliseconds too."""
    try:
        told = time_ms(value)
    except (ValueError, OverflowError, OSError):
        raise _Wrong(f"`created_at`: expected a time such as 2024-12-31T23:59:59Z, got {_shown(value)}") from None
    if told is not None and not -(10**14) < told < 10**14:
        raise _Wrong(f"`created_at`: out of range: {_shown(value)}")
    by_id = time_of_id(ident)
    return by_id if by_id is not None and (told is None or by_id // 1000 == told // 1000) else told


def _links(values: Iterable[Any]) -> tuple[str, ...]:
    """Addresses that are fit to be shown, each once."""
    found = (match[0] for value in values if isinstance(value, str) for match in [LINK.fullmatch(value)] if match)
    return tuple(dict.fromkeys(found))[:50]


def _kinds(text: str, **has: object) -> frozenset[str]:
    kinds = kinds_of(text) | {name for name, value in has.items() if value}
    if kinds & {"images", "videos"}:
        kinds.add("media")
    return frozenset(kinds & set(FILTERS))


def _answered(reply_to: str | None, told: str | None, text: str) -> str | None:
    """Whom a post answers: where that isn't told, the one whom an answer names first."""
    if told is None and reply_to is not None and (match := ANSWERED.match(text)):
        return match[1].lower()
    return told.lower() if told else None


# ------------------------------------------------------------------------------------- X archives, and the first API


def _classic(tweet: Json, owner: Author | None) -> Post:
    user = _object(tweet.get("user"))
    author = user.get("screen_name") or (owner.handle if owner else None)
    if author is None:
        raise _Wrong("whose post it is can't be told: there is no account.js beside the file, so name the author")
    ident = _id(tweet.get("id_str", tweet.get("id")))
    text = _text(tweet.get("full_text", tweet.get("text")), "full_text", escaped=True)
    handle = _handle(author, "user.screen_name")
    entities = _object(tweet.get("entities"))
    media = _objects(_object(tweet.get("extended_entities")).get("media")) or _objects(entities.get("media"))
    urls = _objects(entities.get("urls"))
    reply_to = _optional_id(tweet.get("in_reply_to_status_id_str", tweet.get("in_reply_to_status_id")))
    videos = [one for one in media if one.get("type") in ("video", "animated_gif")]
    quoted = _optional_id(tweet.get("quoted_status_id_str")) or _quoted_in(urls)
    links = _links([*(one.get("expanded_url") for one in urls), *LINK.findall(text)])
    return Post(
        ident,
        handle,
        text,
        _created(tweet.get("created_at"), ident),
        url_of(handle, ident),
        _language(tweet.get("lang")),
        likes=_count(tweet.get("favorite_count")),
        reposts=_count(tweet.get("retweet_count")),
        replies=_count(tweet.get("reply_count")),
        reply_to=reply_to,
        reply_to_author=_answered(reply_to, _optional_handle(tweet.get("in_reply_to_screen_name")), text),
        conversation=_optional_id(tweet.get("conversation_id_str")),
        quoted=quoted,
        kinds=_kinds(
            text,
            links=urls,
            media=media,
            images=len(media) > len(videos),
            videos=videos,
            replies=reply_to or tweet.get("in_reply_to_user_id_str"),
            nativeretweets=text.startswith("RT @") or tweet.get("retweeted_status"),
            quote=quoted,
            verified=user.get("verified"),
        ),
        links=links,
        media=_links(one.get("media_url_https") or one.get("media_url") for one in media),
        name=_line(user.get("name")) or (owner.name if owner else ""),
    )


_STATUS: Final = re.compile(
    r"https?://(?:www\.|mobile\.)?(?:twitter|x)\.com/[A-Za-z0-9_]+/status/(\d{1,19})", re.IGNORECASE
)


def _quoted_in(urls: list[Json]) -> str | None:
    """An archive shows a quoted post by its address only, which stands last."""
    address = urls[-1].get("expanded_url") if urls else None
    match = _STATUS.match(address) if isinstance(address, str) else None
    return match[1] if match else None


# ----------------------------------------------------------------------------------------------------------- API v2


def _is_page(value: Json) -> bool:
    data = value.get("data")
    return isinstance(data, list | dict) or (
        data is None and isinstance(value.get("meta"), dict) and "text" not in value
    )


def _page(page: Json) -> Iterator[Item]:
    """An answer of the API: posts, or users, with what they refer to."""
    includes = _object(page.get("includes"))
    data = page.get("data")
    first = _objects(data if isinstance(data, list) else [data])
    users = _objects(includes.get("users")) + [one for one in first if "username" in one]
    authors = {
        ident: author for user in users if (ident := _optional_id(user.get("id"))) and (author := author_of(user))
    }
    yield from authors.values()
    tweets = [one for one in first if "username" not in one] + _objects(includes.get("tweets"))
    media = {one.get("media_key"): one for one in _objects(includes.get("media"))}
    written_by = {_optional_id(tweet.get("id")): _optional_id(tweet.get("author_id")) for tweet in tweets}
    for tweet in tweets:
        yield _tried(lambda tweet=tweet: _v2(tweet, authors, media, written_by))
    if isinstance(data, list) and len(first) < len(data):
        yield Unfit("`data`: expected JSON objects only")


def _flattened(tweet: Json) -> Iterator[Item]:
    """One post alone, perhaps with its author within, as tools write that flatten pages."""
    user = _object(tweet.get("author"))
    author = author_of(user) or author_of(tweet)
    ident = _optional_id(tweet.get("author_id")) or "?"
    if author is not None:
        yield author
    media = {one.get("media_key"): one for one in _objects(_object(tweet.get("attachments")).get("media"))}
    yield _tried(lambda: _v2({**tweet, "author_id": ident}, {ident: author} if author else {}, media, {}))


def author_of(user: Json) -> Author | None:
    """A user object of the API; None where it has no handle."""
    handle = _optional_handle(user.get("username"))
    if handle is None:
        return None
    verified = user.get("verified")
    return Author(
        handle,
        _line(user.get("name")),
        _line(user.get("description")),
        _count(_object(user.get("public_metrics")).get("followers_count")),
        verified if isinstance(verified, bool) else None,
    )


def _v2(
    tweet: Json, authors: dict[str, Author], media: dict[Any, Json], written_by: dict[str | None, str | None]
) -> Post:
    ident = _id(tweet.get("id"))
    author = authors.get(_optional_id(tweet.get("author_id")) or "")
    if author is None:
        raise _Wrong("`author_id`: not among includes.users; ask the API for expansions=author_id&user.fields=username")
    long = _object(tweet.get("note_tweet"))
    text = _text(long.get("text") or tweet.get("text"), escaped=True)
    entities = _object(tweet.get("entities"))
    metrics = _object(tweet.get("public_metrics"))
    refers = {one.get("type"): _optional_id(one.get("id")) for one in _objects(tweet.get("referenced_tweets"))}
    reply_to = refers.get("replied_to")
    answered = _optional_id(tweet.get("in_reply_to_user_id")) or written_by.get(reply_to) or ""
    keys = _object(tweet.get("attachments")).get("media_keys")
    files = [media.get(key, {}) for key in (keys if isinstance(keys, list) else []) if isinstance(key, str)]
    urls = _objects(entities.get("urls"))
    return Post(
        ident,
        author.handle,
        text,
        _created(tweet.get("created_at"), ident),
        url_of(author.handle, ident),
        _language(tweet.get("lang")),
        likes=_count(metrics.get("like_count")),
        reposts=_count(metrics.get("retweet_count", metrics.get("repost_count"))),
        replies=_count(metrics.get("reply_count")),
        views=_count(metrics.get("impression_count")),
        reply_to=reply_to,
        reply_to_author=_answered(reply_to, authors[answered].handle if answered in authors else None, text),
        conversation=_optional_id(tweet.get("conversation_id")),
        quoted=refers.get("quoted"),
        kinds=_kinds(
            text,
            links=[one for one in urls if "media_key" not in one],
            media=files,
            images=any(one.get("type") == "photo" for one in files),
            videos=any(one.get("type") in ("video", "animated_gif") for one in files),
            replies=reply_to,
            nativeretweets=refers.get("retweeted"),
            quote=refers.get("quoted"),
            verified=author.verified,
        ),
        links=_links([*(one.get("unwound_url") or one.get("expanded_url") for one in urls), *LINK.findall(text)]),
        media=_links(one.get("url") or one.get("preview_image_url") for one in files),
        name=author.name,
    )


# -------------------------------------------------------------------------------------------------------- plain form


def _plain(value: Json) -> Post:
    ident = _id(value.get("id", value.get("id_str")))
    who = value.get("author", value.get("username"))
    named = _object(who)
    handle = _handle(named.get("username", named.get("handle")) if named else who, "author")
    text = _text(value.get("text"), escaped=False)
    reply_to = _optional_id(value.get("reply_to"))
    quoted = _optional_id(value.get("quoted"))
    media = _links(value["media"] if isinstance(value.get("media"), list) else ())
    address = value.get("url")
    url = address if isinstance(address, str) and LINK.fullmatch(address) else url_of(handle, ident)
    return Post(
        ident,
        handle,
        text,
        _created(value.get("created_at"), ident),
        url,
        _language(value.get("lang")),
        likes=_count(_first(value, "likes", "favorites", "like_count")),
        reposts=_count(_first(value, "reposts", "retweets", "repost_count")),
        replies=_count(_first(value, "replies", "reply_count")),
        views=_count(_first(value, "views", "impressions", "view_count")),
        reply_to=reply_to,
        reply_to_author=_answered(reply_to, _optional_handle(value.get("reply_to_author")), text),
        conversation=_optional_id(_first(value, "conversation", "conversation_id")),
        quoted=quoted,
        kinds=_kinds(
            text,
            media=media,
            replies=reply_to,
            quote=quoted,
            nativeretweets=text.startswith("RT @"),
            verified=named.get("verified") is True,
        ),
        links=_links(LINK.findall(text)),
        media=media,
        name=_line(named.get("name") if named else value.get("name")),
    )


def _first(value: Json, *names: str) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)
