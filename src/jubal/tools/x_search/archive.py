"""The local store of posts: one SQLite file of its own, with a full-text index. Everything here blocks.

A row's key orders posts by time (`terms.key_of`), so that dates are bounds of keys and "latest" is the index read backwards.
What filters and sorts is kept apart from what is shown: `facet` has short rows, of which many are looked at.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jubal.tools.x_search.posts import Author, Post, Scope, XSearchError, url_of
from jubal.tools.x_search.query import parse
from jubal.tools.x_search.terms import (
    FACT,
    REPLY,
    TIMELESS_BELOW,
    Plan,
    body_of,
    fact,
    facts_of,
    key_of,
    plan,
    word_of,
)

FILE_NAME: Final = "posts.db"
VERSION: Final = 1
"""Of the tables and of what `terms` puts into the index."""
BUSY_S: Final = 30.0
CONNECTIONS_MAX: Final = 4
"""That are kept open for the next search."""
CACHE_KIB: Final = 16_384
"""Of each connection, at most."""
TIER_MAX: Final = 20_000
"""Posts with likes of about the same size that are sorted, newest first where there are more."""
TIER_TOP: Final = 14
"""4 ** 14 likes: more than any post has."""
THREAD_UP_MAX: Final = 50

SCHEMA: Final = """
CREATE TABLE author(
    id INTEGER PRIMARY KEY, handle TEXT NOT NULL COLLATE NOCASE UNIQUE, name TEXT NOT NULL, description TEXT NOT NULL,
    followers INTEGER, verified INTEGER, fold TEXT NOT NULL);
CREATE TABLE post(
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, author INTEGER NOT NULL, text TEXT NOT NULL, created_ms INTEGER, url TEXT,
    lang TEXT, reply_to TEXT, reply_to_author TEXT, conversation TEXT, quoted TEXT, kinds TEXT, links TEXT, media TEXT);
CREATE TABLE facet(
    key INTEGER PRIMARY KEY, author INTEGER NOT NULL, likes INTEGER, reposts INTEGER, replies INTEGER, views INTEGER, bits BLOB);
CREATE INDEX facet_pending ON facet(key) WHERE bits IS NULL;
CREATE TABLE vector(key INTEGER PRIMARY KEY, f16 BLOB NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(
    body, links, facts, content='', columnsize=0, tokenize="unicode61 remove_diacritics 2 tokenchars '_'");
CREATE TABLE source(path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL);
CREATE TABLE meta(name TEXT PRIMARY KEY, value NOT NULL);
INSERT INTO meta VALUES ('generation', 0);
"""

_POST_COLUMNS: Final = (
    "post.id, author.handle, post.text, post.created_ms, post.url, post.lang, facet.likes, facet.reposts, facet.replies,"
    " facet.views, post.reply_to, post.reply_to_author, post.conversation, post.quoted, post.kinds, post.links, post.media,"
    " author.name"
)
_POSTS: Final = (
    f"SELECT post.key, {_POST_COLUMNS} FROM post"  # noqa: S608
    " JOIN facet ON facet.key = post.key JOIN author ON author.id = post.author"
)

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Stats:
    """What the store holds. oldest_ms, newest_ms: Unix milliseconds. embedded: posts that semantic search finds; pending: those
    that it will find once they are embedded."""

    posts: int
    authors: int
    embedded: int
    pending: int
    oldest_ms: int | None
    newest_ms: int | None
    bytes: int
    """Of its files."""


@dataclass(slots=True)
class Written:
    """What a batch of posts did."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0

    def __iadd__(self, other: Written) -> Written:
        self.added += other.added
        self.updated += other.updated
        self.unchanged += other.unchanged
        return self


class Archive:
    """Made without I/O. Methods may be called from several threads; `reading` gives each its own connection."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._made = False
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile. Raises `XSearchError` where the file can't be used."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self.connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            keep = not self._closed and len(self._idle) < CONNECTIONS_MAX
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def connect(self) -> sqlite3.Connection:
        """A new connection; the caller closes it. The file and its tables are made where they are not there."""
        try:
            if not self.file.exists():
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(
                    os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600)
                )  # posts are private until their owner says else
            connection = sqlite3.connect(self.file, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise XSearchError(f"{self.file}: the store of posts can't be opened: {error}") from error
        try:
            self._prepare(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise XSearchError(f"{self.file}: the store of posts can't be used: {error}") from error
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        if self._made:
            return
        connection.execute("PRAGMA journal_mode = WAL")
        with writing(connection):
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise XSearchError(
                    f"{self.file} was made by another release of Jubal (its version is {version}, this one reads {VERSION}). "
                    "Remove the file and import the posts again."
                )
        self._made = True

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that waits for other writers at its beginning, and not in its middle."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


# ----------------------------------------------------------------------------------------------------------- writing


def write(connection: sqlite3.Connection, posts: Iterable[Post], authors: Iterable[Author] = ()) -> Written:
    """Adds posts, and renews those that are there; what is known and not told anew stays. One transaction."""
    latest = {post.id: post for post in posts}
    done = Written()
    with writing(connection):
        ids = _write_authors(connection, [*authors, *(Author(post.author, post.name) for post in latest.values())])
        known = _known(connection, list(latest))
        fresh: list[Post] = []
        for post in latest.values():
            if post.id not in known:
                fresh.append(post)
                continue
            key, old = known[post.id]
            merged = _merged(old, post)
            if replace(merged, name=old.name) == old:
                done.unchanged += 1
            else:
                _rewrite(connection, key, old, merged, ids)
                done.updated += 1
        _insert(connection, fresh, ids)
        done.added = len(fresh)
        if done.added or done.updated:
            connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")
    return done


def _write_authors(connection: sqlite3.Connection, authors: Sequence[Author]) -> dict[str, int]:
    """Row ids by handle in lower case."""
    latest: dict[str, Author] = {}
    for one in authors:
        old = latest.get(one.handle.lower())
        latest[one.handle.lower()] = one if old is None else _author_merged(old, one)
    marks = json.dumps(list(latest))
    rows = connection.execute(
        "SELECT id, handle, name, description, followers, verified FROM author"
        " WHERE handle IN (SELECT value COLLATE NOCASE FROM json_each(?))",
        (marks,),
    ).fetchall()
    ids = {row[1].lower(): row[0] for row in rows}
    for row in rows:
        old = Author(row[1], row[2], row[3], row[4], None if row[5] is None else bool(row[5]))
        new = _author_merged(old, latest.pop(old.handle.lower()))
        if new != old:
            connection.execute(
                "UPDATE author SET handle = ?, name = ?, description = ?, followers = ?, verified = ?, fold = ? WHERE id = ?",
                (*_author_row(new), row[0]),
            )
    for handle, author in latest.items():
        cursor = connection.execute(
            "INSERT INTO author(handle, name, description, followers, verified, fold) VALUES (?, ?, ?, ?, ?, ?)",
            _author_row(author),
        )
        ids[handle] = cursor.lastrowid or 0
    return ids


def _author_row(author: Author) -> Row:
    fold = folded(f"{author.handle}\n{author.name}\n{author.description}")
    return (author.handle, author.name, author.description, author.followers, author.verified, fold)


def _author_merged(old: Author, new: Author) -> Author:
    return Author(
        new.handle,
        new.name or old.name,
        new.description or old.description,
        old.followers if new.followers is None else new.followers,
        old.verified if new.verified is None else new.verified,
    )


def folded(text: str) -> str:
    """Without case and diacritics."""
    return "".join(char for char in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(char))


def _known(connection: sqlite3.Connection, ids: list[str]) -> dict[str, tuple[int, Post]]:
    rows = connection.execute(f"{_POSTS} WHERE post.id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))  # noqa: S608
    return {row[1]: (row[0], _post(row[1:])) for row in rows}


def _merged(old: Post, new: Post) -> Post:
    """The newer telling, with what only the older one knew."""
    kept = {
        name: getattr(old, name)
        for name in ("created_ms", "lang", "likes", "reposts", "replies", "views", "reply_to", "reply_to_author",
                     "conversation", "quoted")
        if getattr(new, name) is None
    }  # fmt: skip
    kinds = new.kinds | (old.kinds if old.text == new.text else frozenset())
    return replace(new, **kept, kinds=kinds, links=new.links or old.links, media=new.media or old.media)


def _rewrite(connection: sqlite3.Connection, key: int, old: Post, new: Post, ids: dict[str, int]) -> None:
    _forget_words(connection, key, old)
    if key_of(new) != key_of(old):  # its time is another one
        for table in ("post", "facet", "vector"):
            connection.execute(f"DELETE FROM {table} WHERE key = ?", (key,))  # noqa: S608
        _insert(connection, [new], ids)
        return
    connection.execute(
        "UPDATE post SET author = ?, text = ?, created_ms = ?, url = ?, lang = ?, reply_to = ?, reply_to_author = ?,"
        " conversation = ?, quoted = ?, kinds = ?, links = ?, media = ? WHERE key = ?",
        (*_post_row(new, ids)[1:], key),
    )
    connection.execute(
        "UPDATE facet SET author = ?, likes = ?, reposts = ?, replies = ?, views = ? WHERE key = ?",
        (ids[new.author.lower()], new.likes, new.reposts, new.replies, new.views, key),
    )
    if new.text != old.text:
        connection.execute("UPDATE facet SET bits = NULL WHERE key = ?", (key,))
        connection.execute("DELETE FROM vector WHERE key = ?", (key,))
    connection.execute("INSERT INTO words(rowid, body, links, facts) VALUES (?, ?, ?, ?)", (key, *_words(new)))


def _forget_words(connection: sqlite3.Connection, key: int, post: Post) -> None:
    """The index has no copy of its texts: to forget a post it must be told again what it was given."""
    connection.execute(
        "INSERT INTO words(words, rowid, body, links, facts) VALUES ('delete', ?, ?, ?, ?)", (key, *_words(post))
    )


def _insert(connection: sqlite3.Connection, fresh: Sequence[Post], ids: dict[str, int]) -> None:
    placed = _placed(connection, fresh)
    connection.executemany(
        "INSERT INTO post(key, id, author, text, created_ms, url, lang, reply_to, reply_to_author, conversation, quoted, kinds,"
        " links, media) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((key, *_post_row(post, ids)) for key, post in placed),
    )
    connection.executemany(
        "INSERT INTO facet(key, author, likes, reposts, replies, views) VALUES (?, ?, ?, ?, ?, ?)",
        ((key, ids[post.author.lower()], post.likes, post.reposts, post.replies, post.views) for key, post in placed),
    )
    connection.executemany(
        "INSERT INTO words(rowid, body, links, facts) VALUES (?, ?, ?, ?)",
        ((key, *_words(post)) for key, post in placed),
    )


def _placed(connection: sqlite3.Connection, fresh: Sequence[Post]) -> list[tuple[int, Post]]:
    """With their keys, in the order of time; a key that another post has is moved up to the next free one."""
    keyed = sorted(((key_of(post), post) for post in fresh), key=lambda one: one[0])
    taken = _taken(connection, [key for key, _ in keyed])
    placed = []
    for key, post in keyed:
        while key in taken:
            key += 1
            if key not in taken:
                taken |= _taken(connection, [key])
        taken.add(key)
        placed.append((key, post))
    return placed


def _taken(connection: sqlite3.Connection, keys: list[int]) -> set[int]:
    found = connection.execute(
        "SELECT key FROM facet WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(keys),)
    )
    return {key for (key,) in found}


def _words(post: Post) -> tuple[str, str, str]:
    return body_of(post.text), " ".join(post.links).lower(), facts_of(post)


def _post_row(post: Post, ids: dict[str, int]) -> Row:
    return (
        post.id,
        ids[post.author.lower()],
        post.text,
        post.created_ms,
        None if post.url == url_of(post.author, post.id) else post.url,
        post.lang,
        post.reply_to,
        post.reply_to_author,
        post.conversation,
        post.quoted,
        " ".join(sorted(post.kinds)) or None,
        "\n".join(post.links) or None,
        "\n".join(post.media) or None,
    )


def _post(row: Row) -> Post:
    (ident, handle, text, created_ms, url, lang, likes, reposts, replies, views, reply_to, reply_to_author, conversation, quoted,
     kinds, links, media, name) = row  # fmt: skip
    return Post(
        ident, handle, text, created_ms, url or url_of(handle, ident), lang, likes, reposts, replies, views, reply_to,
        reply_to_author, conversation, quoted, frozenset((kinds or "").split()), tuple((links or "").split("\n") if links else ()),
        tuple((media or "").split("\n") if media else ()), name,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- keywords


def keyword(
    connection: sqlite3.Connection, query: str, scope: Scope, limit: int, *, top: bool, now_s: int
) -> list[Post]:
    """Posts by the query language, newest first or most liked first."""
    made = plan(parse(query), scope, now_s)
    return posts_of(connection, _most_liked(connection, made, limit) if top else matching(connection, made, limit))


def matching(connection: sqlite3.Connection, made: Plan, limit: int, also: str = "") -> list[int]:
    """Keys of what a plan finds, newest first. also: a further expression of the index."""
    match = f"({made.match}) AND {also}" if made.match and also else made.match or also
    bounds = (made.first, made.last)
    checks = "".join(f" AND {condition}" for condition in made.where)
    if not match:
        rows = connection.execute(
            f"SELECT p.key FROM facet p WHERE p.key BETWEEN ? AND ?{checks} ORDER BY p.key DESC LIMIT ?",  # noqa: S608
            (*bounds, *made.values, limit),
        )
    elif not checks:  # the index alone, read backwards
        rows = connection.execute(
            "SELECT rowid FROM words WHERE words MATCH ? AND rowid >= ? AND rowid <= ? ORDER BY rowid DESC LIMIT ?",
            (match, *bounds, limit),
        )
    else:
        rows = connection.execute(
            "SELECT words.rowid FROM words CROSS JOIN facet p ON p.key = words.rowid"  # noqa: S608
            f" WHERE words MATCH ? AND words.rowid >= ? AND words.rowid <= ?{checks} ORDER BY words.rowid DESC LIMIT ?",
            (match, *bounds, *made.values, limit),
        )
    return [key for (key,) in rows]


def _most_liked(connection: sqlite3.Connection, made: Plan, limit: int) -> list[int]:
    """Those with most likes are looked for first, by the powers of four that the index holds, and only they are sorted."""
    found: list[int] = []
    for power in range(TIER_TOP, -1, -1):
        found = matching(connection, made, TIER_MAX, fact(f"likes_{power}"))
        if len(found) >= limit:
            break
    else:  # the rest has no likes at all, so that the newest come first
        found = list(dict.fromkeys([*found, *matching(connection, made, limit + len(found))]))
    return _by_likes(connection, found)[:limit]


def _by_likes(connection: sqlite3.Connection, keys: list[int]) -> list[int]:
    rows = connection.execute(
        "SELECT key FROM facet WHERE key IN (SELECT value FROM json_each(?)) ORDER BY coalesce(likes, 0) DESC, key DESC",
        (json.dumps(keys),),
    )
    return [key for (key,) in rows]


def posts_of(connection: sqlite3.Connection, keys: Sequence[int]) -> list[Post]:
    """The posts with these keys, in this order."""
    rows = connection.execute(f"{_POSTS} WHERE post.key IN (SELECT value FROM json_each(?))", (json.dumps(list(keys)),))  # noqa: S608
    found = {row[0]: _post(row[1:]) for row in rows}
    return [found[key] for key in keys if key in found]


# ------------------------------------------------------------------------------------------------------------- users


def users(connection: sqlite3.Connection, query: str, scope: Scope, limit: int) -> list[tuple[Author, int]]:
    """Authors of posts in the store whose handle, name or description has all the words, with how many posts they have here:
    same handle first, then handles that begin so, then by followers."""
    words = folded(query.replace("@", " ").encode("utf-8", "replace").decode()).split()
    if not words:
        return []
    whole = "".join(words)
    conditions = " AND ".join(["instr(fold, ?) > 0"] * len(words))
    rows = connection.execute(
        "SELECT handle, name, description, followers, verified FROM author"  # noqa: S608
        f" WHERE ({conditions}) OR handle = ?"
        " ORDER BY handle = ? DESC, substr(lower(handle), 1, length(?)) = ? DESC, instr(lower(handle), ?) > 0 DESC,"
        " coalesce(followers, 0) DESC, id",
        (*words, whole, whole, whole, whole, whole),
    )
    found: list[tuple[Author, int]] = []
    for handle, name, description, followers, verified in rows:
        if scope.allows_author(handle):
            known = Author(handle, name, description, followers, None if verified is None else bool(verified))
            found.append((known, _post_count(connection, handle)))
            if len(found) == limit:
                break
    return found


def _post_count(connection: sqlite3.Connection, handle: str) -> int:
    (count,) = connection.execute(
        "SELECT count(*) FROM words WHERE words MATCH ?", (fact(FACT["from"] + handle.lower()),)
    ).fetchone()
    return int(count)


# ----------------------------------------------------------------------------------------------------------- threads


def thread(connection: sqlite3.Connection, ident: str, scope: Scope, limit: int) -> list[Post] | None:
    """The post with what it answers and what answers it, oldest first; None where the store has not the post or the scope not
    lets it be seen. By conversation where that is known, and along the answers."""
    start = _by_id(connection, ident)
    if start is None or not scope.allows(start):
        return None
    line, root = _upwards(connection, start)
    found = {post.id: post for post in line}
    if root.conversation or start.conversation:
        expression = fact(FACT["conversation_id"] + word_of(root.conversation or start.conversation or ""))
        found |= {post.id: post for post in posts_of(connection, _oldest(connection, expression, limit))}
    _downwards(connection, found, start, limit)
    seen = sorted(
        (post for post in found.values() if scope.allows(post)), key=lambda post: (post.created_ms or 0, post.id)
    )
    if len(seen) <= limit:
        return seen
    at = next(index for index, post in enumerate(seen) if post.id == start.id)
    first = max(0, min(at - limit // 2, len(seen) - limit))
    return seen[first : first + limit]


def _by_id(connection: sqlite3.Connection, ident: str) -> Post | None:
    row = connection.execute(f"{_POSTS} WHERE post.id = ?", (ident,)).fetchone()
    return None if row is None else _post(row[1:])


def _upwards(connection: sqlite3.Connection, post: Post) -> tuple[list[Post], Post]:
    """The post and those that it answers, and the topmost of them."""
    line = [post]
    seen = {post.id}
    while len(line) < THREAD_UP_MAX and post.reply_to and post.reply_to not in seen:
        above = _by_id(connection, post.reply_to)
        if above is None:
            break
        seen.add(above.id)
        line.append(above)
        post = above
    return line, post


def _oldest(connection: sqlite3.Connection, expression: str, limit: int) -> list[int]:
    rows = connection.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ?", (expression, limit))
    return [key for (key,) in rows]


def _downwards(connection: sqlite3.Connection, found: dict[str, Post], start: Post, limit: int) -> None:
    """Adds what answers the post, and those in turn."""
    level = [start.id]
    while level and len(found) < 2 * limit:
        expression = " OR ".join(fact(REPLY + word_of(ident)) for ident in level[:limit])
        below = [post for post in posts_of(connection, _oldest(connection, expression, limit)) if post.id not in found]
        found |= {post.id: post for post in below}
        level = [post.id for post in below]


# ---------------------------------------------------------------------------------------------------------- upkeep


def stats(connection: sqlite3.Connection, file: Path) -> Stats:
    posts, authors, embedded, pending, oldest, newest = connection.execute(
        "SELECT (SELECT count(*) FROM facet), (SELECT count(*) FROM author), (SELECT count(*) FROM vector),"
        " (SELECT count(*) FROM facet WHERE bits IS NULL),"
        " (SELECT min(created_ms) FROM post WHERE key = (SELECT min(key) FROM facet WHERE key >= ?)),"
        " (SELECT max(created_ms) FROM post WHERE key = (SELECT max(key) FROM facet WHERE key >= ?))",
        (TIMELESS_BELOW, TIMELESS_BELOW),
    ).fetchone()
    size = sum(part.stat().st_size for part in file.parent.glob(file.name + "*"))
    return Stats(posts, authors, embedded, pending, oldest, newest, size)


def is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM facet LIMIT 1").fetchone() is None


def generation(connection: sqlite3.Connection) -> int:
    """Another number after every change."""
    return int(connection.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()[0])


def clear(connection: sqlite3.Connection) -> None:
    """Forgets everything, and gives the space back."""
    with writing(connection):
        for table in ("author", "post", "facet", "vector", "source"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608
        connection.execute("INSERT INTO words(words) VALUES ('delete-all')")
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def optimize(connection: sqlite3.Connection) -> None:
    """Makes the index one piece, after many posts were added."""
    with writing(connection):
        connection.execute("INSERT INTO words(words) VALUES ('optimize')")
    connection.execute("ANALYZE post")
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def is_read(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a file was imported as it is now, by its size and time."""
    state = path.stat()
    row = connection.execute("SELECT size, mtime_ns FROM source WHERE path = ?", (str(path.absolute()),)).fetchone()
    return row is not None and tuple(row) == (state.st_size, state.st_mtime_ns)


def mark_read(connection: sqlite3.Connection, path: Path, size: int, mtime_ns: int) -> None:
    with writing(connection):
        connection.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?)", (str(path.absolute()), size, mtime_ns))
