"""Posts of X itself, over the official API v2 with a bearer token.

The query language is translated to the API's: dates become start_time and end_time; counts, which its search does not know, and
groups that hold them, are checked here. What it charges for, posts and users that are read, is bounded for each call.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import aiohttp
import msgspec
import structlog

from jubal.tools.base import ToolFailed
from jubal.tools.x_search.posts import DAY_MS, HANDLE, Post, Result, Scope
from jubal.tools.x_search.query import (
    And,
    Count,
    Created,
    Field,
    IdRange,
    Node,
    Not,
    Or,
    Phrase,
    Within,
    Word,
    parse,
)
from jubal.tools.x_search.records import Unfit, author_of, items_of
from jubal.tools.x_search.terms import COUNT_COLUMN, has_words
from jubal.tools.x_search.vectors import Embed

log = structlog.get_logger("jubal.tools.x_search")

BASE_URL: Final = "https://api.x.com"
RECENT_MS: Final = 7 * DAY_MS
RECENT_MARGIN_MS: Final = 60_000
"""So much less far back is asked for than the API allows: its clock is not ours."""
END_MARGIN_MS: Final = 15_000
"""end_time must lie at least ten seconds back."""
QUERY_CHARS_MAX: Final = {False: 512, True: 1_024}
"""By whether it is the search of all posts."""
PAGE_MIN, PAGE_MAX = 10, 100
READS_MAX: Final = 100
USERS_ASKED_MAX: Final = 20
TIMEOUT_S: Final = 20.0
WAIT_MAX_S: Final = 5.0
"""A limit that is over so soon is waited for."""
TRIES: Final = 3
BODY_BYTES_MAX: Final = 16 << 20
SEMANTIC_WORDS: Final = 8
POST_USD: Final = 0.005
USER_USD: Final = 0.010
"""What X charges for a post and for a user that is read."""
POST_FIELDS: Final = {
    "tweet.fields": "created_at,public_metrics,conversation_id,lang,entities,referenced_tweets,in_reply_to_user_id,note_tweet",
    "expansions": "author_id,attachments.media_keys",
    "user.fields": "username,name,verified",
    "media.fields": "type,url,preview_image_url",
}
USER_FIELDS: Final = {"user.fields": "username,name,description,public_metrics,verified"}

Endpoint: TypeAlias = Literal["search", "users", "post"]


class XApiProvider:
    """token: the bearer token, which no message and no log ever holds. reads_max: posts that a call may read."""

    def __init__(
        self,
        token: str,
        *,
        base_url: str | None = None,
        full_archive: bool = False,
        reads_max: int = READS_MAX,
        embed: Embed | None = None,
    ) -> None:
        self._token = token
        self._base = (base_url or BASE_URL).rstrip("/")
        self._full = full_archive
        self._reads_max = max(PAGE_MIN, reads_max)
        self._embed = embed
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._free_at: dict[Endpoint, float] = {}

    def __repr__(self) -> str:
        return f"XApiProvider({self._base!r})"

    async def start(self) -> None:
        return

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # ------------------------------------------------------------------------------------------------- the searches

    async def keyword(self, query: str, scope: Scope, limit: int, *, top: bool) -> Result:
        asked = translate(parse(query), scope, now_ms=int(time.time() * 1000), full=self._full)
        reads = _Reads(self._reads_max)
        found = await self._search(asked, scope, limit, reads, top=top)
        if top:
            found.sort(key=lambda post: (-(post.likes or 0), -(post.created_ms or 0)))
        return Result(tuple(found[:limit]), note=reads.note())

    async def semantic(self, query: str, scope: Scope, limit: int, score_min: float) -> Result:
        """X has no such search: what its keyword search finds for any of the words is put in order of meaning here."""
        embed = self._embed
        if embed is None:
            raise ToolFailed("There is no semantic search here: no embedding model is at hand. Use x_keyword_search.")
        words = _significant(query)
        if not words:
            raise ToolFailed("`query` has no words. Say in plain words what the posts are about.")
        tree: Node = Word(words[0]) if len(words) == 1 else Or(tuple(map(Word, words)))
        asked = translate(tree, scope, now_ms=int(time.time() * 1000), full=self._full)
        reads = _Reads(self._reads_max)
        found = await self._search(asked, scope, self._reads_max, reads, top=True)
        ranked = await asyncio.to_thread(_ranked, embed, query, found, score_min) if found else []
        note = "Of the posts that X's keyword search finds, those nearest in meaning."
        return Result(tuple(ranked[:limit]), note=f"{note} {reads.note()}".strip())

    async def users(self, query: str, scope: Scope, limit: int) -> Result:
        """X's search of users is not open to every token. Handles are looked up that the words of the query may be."""
        words = re.findall(r"[A-Za-z0-9_]+", query)
        handles = [
            one
            for one in dict.fromkeys(["".join(words), "_".join(words), *words])
            if len(one) <= 15 and HANDLE.fullmatch(one)
        ]
        if not handles:
            raise ToolFailed("`query` must be a handle of X, such as xai, or words that may make one.")
        body = await self._get(
            "users", "/2/users/by", {"usernames": ",".join(handles[:USERS_ASKED_MAX]), **USER_FIELDS}
        )
        found = [
            author
            for user in _objects(body.get("data"))
            if (author := author_of(user)) and scope.allows_author(author.handle)
        ]
        note = f"Read {_counted(len(found), 'user')} from X (about ${len(found) * USER_USD:.2f})." if found else ""
        return Result(authors=tuple((author, None) for author in found[:limit]), note=note)

    async def thread(self, ident: str, scope: Scope, limit: int) -> Result:
        if not re.fullmatch(r"[0-9]{1,19}", ident):
            raise ToolFailed("`post_id` must be the number of a post, such as 1846987139428634858.")
        reads = _Reads(self._reads_max)
        first = await self._post(ident, reads)
        if first is None or not scope.allows(first):
            raise ToolFailed(f"The post {ident} is not there, or the caller's filters leave it out.")
        found = {first.id: first}
        root = first.conversation
        if root and root != ident and (above := await self._post(root, reads)) is not None:
            found[above.id] = above
        if root:
            asked = translate(
                Field("conversation_id", root), scope, now_ms=int(time.time() * 1000), full=self._full, dates=False
            )
            found |= {post.id: post for post in await self._search(asked, scope, limit, reads, top=False)}
        seen = sorted(
            (post for post in found.values() if scope.allows(post)), key=lambda post: (post.created_ms or 0, post.id)
        )
        if len(seen) > limit:
            seen = [first, *[post for post in seen if post.id != ident][: limit - 1]]
        reach = "" if self._full else "Answers older than 7 days are not found."
        return Result(tuple(seen), note=f"{reads.note()} {reach}".strip())

    async def _search(self, asked: Asked, scope: Scope, limit: int, reads: _Reads, *, top: bool) -> list[Post]:
        """Pages until enough posts pass the checks or the reads are used up."""
        found: dict[str, Post] = {}
        token: str | None = None
        while len(found) < limit and (size := reads.page(limit - len(found))):
            parameters = {**asked.parameters(), **POST_FIELDS, "max_results": str(size)}
            parameters["sort_order"] = "relevancy" if top else "recency"
            if token is not None:
                parameters["next_token"] = token
            body = await self._get("search", f"/2/tweets/search/{'all' if self._full else 'recent'}", parameters)
            posts = _posts(body)
            reads.count(len(posts))
            found |= {post.id: post for post in posts if scope.allows(post) and asked.fits(post)}
            token = _object(body.get("meta")).get("next_token")
            if not posts or not isinstance(token, str):
                break
        return list(found.values())

    async def _post(self, ident: str, reads: _Reads) -> Post | None:
        body = await self._get("post", f"/2/tweets/{ident}", POST_FIELDS, missing={})
        posts = [post for post in _posts(body) if post.id == ident]
        reads.count(len(posts))
        return posts[0] if posts else None

    # -------------------------------------------------------------------------------------------------- the requests

    async def _get(
        self, endpoint: Endpoint, path: str, parameters: Mapping[str, str], missing: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The body of an answer. missing: what stands for one that is not there. Raises `ToolFailed`."""
        for attempt in range(TRIES):
            await self._wait_for_limit(endpoint)
            try:
                status, headers, body = await self._once(path, parameters)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("x_search.x_api_unreachable", error=type(error).__name__, attempt=attempt)
                if attempt + 1 == TRIES:
                    raise ToolFailed("X does not answer. Try again later.") from error
                await asyncio.sleep(0.2 * 2**attempt)
                continue
            self._note_limit(endpoint, status, headers)
            if status == 200:
                return _decoded(body)
            if status == 404 and missing is not None:
                return missing
            if status == 429 or (status >= 500 and attempt + 1 < TRIES):
                await asyncio.sleep(0 if status == 429 else 0.2 * 2**attempt)
                continue
            raise ToolFailed(_refusal(status, body))
        await self._wait_for_limit(endpoint)
        raise ToolFailed("X answers too many requests. Try again later.")

    async def _once(self, path: str, parameters: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        if self._closed:
            raise ToolFailed("The search of posts is stopped.")
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        headers = {"Authorization": f"Bearer {self._token}"}
        async with self._session.get(
            self._base + path, params=dict(parameters), headers=headers, allow_redirects=False
        ) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise ToolFailed("The answer of X is too large.")
            return answer.status, answer.headers, bytes(body)

    def _note_limit(self, endpoint: Endpoint, status: int, headers: Mapping[str, str]) -> None:
        """Remembers when there may be another request, where this was the last one."""
        remaining, reset = headers.get("x-rate-limit-remaining", ""), headers.get("x-rate-limit-reset", "")
        if status == 429 or remaining == "0":
            now = time.time()
            self._free_at[endpoint] = float(reset) if re.fullmatch(r"[0-9]{1,12}", reset) else now + 1

    async def _wait_for_limit(self, endpoint: Endpoint) -> None:
        """Raises `ToolFailed` that tells when, where that is not soon."""
        free_at = self._free_at.get(endpoint, 0.0)
        wait_s = free_at - time.time()
        if wait_s > WAIT_MAX_S:
            when = datetime.fromtimestamp(free_at, UTC).strftime("%H:%M:%S UTC")
            raise ToolFailed(
                f"X allows no more requests until {when}, in {max(1, round(wait_s / 60))} min. Answer without it."
            )
        if wait_s > 0:
            await asyncio.sleep(wait_s)


@dataclass(slots=True)
class _Reads:
    """Posts that a call has read, and may."""

    most: int
    done: int = 0

    def page(self, wanted: int) -> int:
        """How many to ask for next; 0 when no more may be read."""
        left = self.most - self.done
        return min(PAGE_MAX, max(PAGE_MIN, wanted), left) if left >= PAGE_MIN else 0

    def count(self, number: int) -> None:
        self.done += number

    def note(self) -> str:
        return f"Read {_counted(self.done, 'post')} from X (about ${self.done * POST_USD:.2f})." if self.done else ""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ToolFailed("X answered something that is not JSON.") from error
    return _object(tree)


def _posts(body: dict[str, Any]) -> list[Post]:
    """The posts of a page, without those that it only refers to."""
    data = body.get("data")
    wanted = {str(one.get("id")) for one in (_objects(data) if isinstance(data, list) else [_object(data)])}
    found = []
    for item in items_of({"data": [], **body}, None):
        if isinstance(item, Post) and item.id in wanted:
            found.append(item)
        elif isinstance(item, Unfit):
            log.warning("x_search.x_api_post_unfit", reason=item.reason)
    return found


def _refusal(status: int, body: bytes) -> str:
    """What X says in its words where they are about the query; nothing of them where they are about the token."""
    match status:
        case 401:
            return "X does not take the bearer token. The operator must renew it."
        case 403 | 402:
            return "X does not allow this search for the operator's access level."
        case 400:
            try:
                tree = _decoded(body)
            except ToolFailed:
                tree = {}
            errors = _objects(tree.get("errors"))
            said = next((one["message"] for one in errors if isinstance(one.get("message"), str)), tree.get("detail"))
            return f"X does not take the query: {str(said)[:300]}" if said else "X does not take the query."
        case _:
            return f"X answers with status {status}. Try again later."


def _significant(query: str) -> list[str]:
    """The longest words of a text, which say most, in their order."""
    words = list(dict.fromkeys(word.lower() for word in re.findall(r"[^\W_]+", query)))
    kept = set(sorted(words, key=len, reverse=True)[:SEMANTIC_WORDS])
    return [word for word in words if word in kept and word not in ("or", "and")]


def _ranked(embed: Embed, query: str, posts: list[Post], score_min: float) -> list[Post]:
    said = [post for post in posts if post.text.strip()]
    if not said:
        return []
    vectors = embed([query, *(post.text for post in said)])
    scores = (vectors[1:] @ vectors[0]).tolist()
    ranked = sorted(zip(scores, said, strict=True), key=lambda one: -one[0])
    return [post for score, post in ranked if score >= score_min]


# -------------------------------------------------------------------------------------------------- the translation


@dataclass(frozen=True, slots=True)
class Asked:
    """A search as the API takes it. checks: what it can't tell, and is checked here."""

    query: str
    start_ms: int | None
    end_ms: int | None
    checks: tuple[Node, ...] = field(default=())
    now_s: int = 0

    def parameters(self) -> dict[str, str]:
        found = {"query": self.query}
        if self.start_ms is not None:
            found["start_time"] = _iso(self.start_ms)
        if self.end_ms is not None:
            found["end_time"] = _iso(self.end_ms)
        return found

    def fits(self, post: Post) -> bool:
        return all(_fits(check, post, self.now_s) for check in self.checks)


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def translate(query: Node, scope: Scope, *, now_ms: int, full: bool, dates: bool = True) -> Asked:
    """The query within the scope. dates: the scope's are asked for too. Raises `ToolFailed` where X can't do it."""
    start, end = (scope.since_ms, scope.until_ms) if dates else (None, None)
    sent: list[Node] = []
    checks: list[Node] = []
    for part in query.parts if isinstance(query, And) else (query,):
        match part:
            case Created(second, True):
                start = max(start or 0, second * 1000)
            case Created(second, False):
                end = min(second * 1000, end if end is not None else second * 1000)
            case Within(seconds):
                start = max(start or 0, now_ms - seconds * 1000)
            case _ if _is_local(part):
                checks.append(part)
                sent.append(_sendable(part))
            case _:
                sent.append(part)
    text = _written(sent, scope)
    if len(text) > QUERY_CHARS_MAX[full]:
        raise ToolFailed(
            f"X takes queries of at most {QUERY_CHARS_MAX[full]} characters, this one has {len(text)}. Shorten it."
        )
    return Asked(text, *_within_reach(start, end, now_ms, full), tuple(checks), now_ms // 1000)


def _within_reach(start: int | None, end: int | None, now_ms: int, full: bool) -> tuple[int | None, int | None]:
    """The times as the API takes them."""
    oldest = 1_142_899_200_000 if full else now_ms - RECENT_MS + RECENT_MARGIN_MS
    newest = now_ms - END_MARGIN_MS
    if end is not None and end <= oldest:
        raise ToolFailed(
            "X only finds posts of the last 7 days here." if not full else "There are no posts of that time."
        )
    if start is not None and (start >= newest or (end is not None and start >= end)):
        raise ToolFailed("The dates leave no time between them, or lie in the future.")
    return (
        None if start is None else max(start, oldest),
        None if end is None or end >= newest else end,
    )


def _written(sent: list[Node], scope: Scope) -> str:
    handles = tuple(Field("from", handle) for handle in sorted(scope.allowed))
    parts = [Or(handles) if len(handles) > 1 else handles[0]] if handles else []
    nodes: list[Node] = [*parts, *(part for part in sent if part != And(()))]
    nodes += [Not(Field("from", handle)) for handle in sorted(scope.excluded)]
    nodes = [made for node in nodes if (made := _pushed(node, negated=False)) != And(())]
    if not any(map(_stands, nodes)):
        raise ToolFailed('X needs at least one word, "phrase", #tag, @name or from:name in the query. Add one.')
    return " ".join(f"({_api(node)})" if isinstance(node, Or) else _api(node) for node in nodes)


def _is_local(node: Node) -> bool:
    """Whether something in it is only known here."""
    match node:
        case And(parts) | Or(parts):
            return any(map(_is_local, parts))
        case Not(part):
            return _is_local(part)
        case _:
            return isinstance(node, Count | Created | Within | IdRange)


def _sendable(node: Node) -> Node:
    """What of it may be asked for, and leaves nothing out that fits."""
    match node:
        case And(parts):
            return And(tuple(_sendable(part) for part in parts if not _is_local(part) or isinstance(part, And)))
        case _ if _is_local(node):
            return And(())
        case _:
            return node


def _pushed(node: Node, *, negated: bool) -> Node:
    """Without negated groups, which the API does not take, and without words that have no letter."""
    match node:
        case And(parts) | Or(parts):
            made = tuple(one for part in parts if (one := _pushed(part, negated=negated)) != And(()))
            if len(made) < 2:
                return made[0] if made else And(())
            return Or(made) if isinstance(node, Or) != negated else And(made)
        case Not(part):
            return _pushed(part, negated=not negated)
        case Word(text) | Phrase(text) if not has_words(text):
            return And(())
        case _:
            return Not(node) if negated else node


def _stands(node: Node) -> bool:
    """Whether the API takes it alone."""
    match node:
        case And(parts):
            return any(map(_stands, parts))
        case Or(parts):
            return all(map(_stands, parts))
        case Field(name, _):
            return name not in ("lang", "filter")
        case _:
            return isinstance(node, Word | Phrase)


_FILTER: Final = {
    "links": "has:links", "media": "has:media", "images": "has:images", "videos": "has:video_link", "replies": "is:reply",
    "nativeretweets": "is:retweet", "quote": "is:quote", "verified": "is:verified", "hashtags": "has:hashtags",
    "mentions": "has:mentions", "cashtags": "has:cashtags",
}  # fmt: skip


def _api(node: Node) -> str:
    match node:
        case And(parts):
            return " ".join(f"({_api(part)})" if isinstance(part, Or) else _api(part) for part in parts)
        case Or(parts):
            return " OR ".join(f"({_api(part)})" if isinstance(part, And) else _api(part) for part in parts)
        case Not(part):
            return f"-{_api(part)}"
        case Field("#" | "@" | "$" as sign, value):
            return f"{sign}{value}"
        case Field("filter", value):
            return _FILTER[value]
        case Field("url", value):
            return f'url:"{value}"'
        case Field("quoted_tweet_id", value):
            return f"quotes_of_tweet_id:{value}"
        case Field(name, value):
            return f"{name}:{value}"
        case Word(text) | Phrase(text):
            return _said(text, phrase=isinstance(node, Phrase))
        case _:
            raise AssertionError(node)


def _said(text: str, *, phrase: bool) -> str:
    """A word as it is where the API can't take it for an operator, else in quotes."""
    plain = not phrase and re.fullmatch(r"[^\W_]+", text) and text.upper() not in ("OR", "AND", "NOT")
    return text if plain else '"' + re.sub(r'["\\]', " ", text).strip() + '"'


def _fits(node: Node, post: Post, now_s: int) -> bool:
    """Whether a post is what a part of a query means that the API was not asked for."""
    match node:
        case And(parts):
            return all(_fits(part, post, now_s) for part in parts)
        case Or(parts):
            return any(_fits(part, post, now_s) for part in parts)
        case Not(part):
            return not _fits(part, post, now_s)
        case Count(name, least):
            return int(getattr(post, COUNT_COLUMN[name]) or 0) >= least
        case Created(second, after):
            return post.created_ms is not None and (post.created_ms >= second * 1000) == after
        case Within(seconds):
            return post.created_ms is not None and post.created_ms >= (now_s - seconds) * 1000
        case IdRange(ident, after):
            return post.id.isdigit() and (int(post.id) > ident) == after
        case Field(name, value):
            return _has(name, value, post)
        case Word(text) | Phrase(text):
            return _tokens(text) in _tokens(post.text)


def _has(name: str, value: str, post: Post) -> bool:
    match name:
        case "from":
            return post.author.lower() == value
        case "to":
            return (post.reply_to_author or "") == value
        case "lang":
            return (post.lang or "") == value
        case "filter":
            return value in post.kinds
        case "conversation_id":
            return post.conversation == value
        case "quoted_tweet_id":
            return post.quoted == value
        case "url":
            return any(value in link.lower() for link in post.links)
        case _:
            return re.search(rf"(?<!\w){re.escape(name + value)}(?!\w)", post.text, re.IGNORECASE) is not None


def _tokens(text: str) -> str:
    """The words of a text with spaces around each, so that a phrase is a part of it."""
    words = " ".join(re.findall(r"\w+", text.casefold()))
    return f" {words} "
