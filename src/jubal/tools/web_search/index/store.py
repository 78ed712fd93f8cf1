"""Pages and their passages in one SQLite file, searched by FTS5.

Passages, not pages, are what is found: bm25 on them is more exact, and what the model reads is short. Everything of a page, the
addresses it led to included, is written in one transaction, so an interrupted update goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final, Literal, TypeAlias

VERSION: Final = 1
PASSAGE_CHARS: Final = 1_200
OVERLAP_CHARS: Final = 200
PASSAGES_MAX: Final = 4_096
"""Of one page. A passage's row id is its page's, times this, plus its number: a page's passages can be found without an index."""
TITLE_WEIGHT: Final = 5.0
CANDIDATES: Final = 60
"""Passages that are ranked, of which the best of each page counts."""
CANDIDATES_FILTERED: Final = 5_000
"""The same where the caller wants only some domains or dates."""
WORDS_MAX: Final = 32
BUSY_S: Final = 10.0

Kind: TypeAlias = Literal["site", "folder"]

_WORD = re.compile(r"\w+", re.UNICODE)
_COMMON = frozenset(
    (
        "a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "has", "have", "how", "i",
        "if", "in", "into", "is", "it", "its", "me", "my", "of", "on", "or", "that", "the", "their", "there", "these",
        "this", "to", "was", "we", "what", "when", "where", "which", "who", "why", "will", "with", "you", "your", "should",
        "would", "could",
    )
)  # fmt: skip

SCHEMA = f"""
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, location TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, options TEXT NOT NULL,
    run INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0, added_us INTEGER NOT NULL, updated_us INTEGER
);
CREATE TABLE pages (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL REFERENCES sources (id), url TEXT NOT NULL, title TEXT NOT NULL,
    etag TEXT, modified TEXT, hash TEXT NOT NULL, published TEXT, bytes INTEGER NOT NULL, links TEXT NOT NULL,
    run INTEGER NOT NULL, UNIQUE (source, url)
);
CREATE INDEX pages_by_url ON pages (url);
CREATE TABLE queue (
    source INTEGER NOT NULL REFERENCES sources (id), url TEXT NOT NULL, depth INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (source, url)
) WITHOUT ROWID;
CREATE INDEX queue_todo ON queue (source, done, depth);
CREATE VIRTUAL TABLE passages USING fts5 (start UNINDEXED, title, body, tokenize = 'porter unicode61');
PRAGMA user_version = {VERSION};
"""


class IndexUnusable(Exception):
    """The file can't be used. The message names it and says how to mend it."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A site or folder that was added. options: JSON as its keeper wrote it. updated_us: end of the last whole run, None: never."""

    id: int
    location: str
    kind: Kind
    options: str
    run: int
    running: bool
    updated_us: int | None
    pages: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class PageRow:
    """What is known of a page beside its text. links: where it led. bytes: of its body."""

    id: int
    url: str
    etag: str | None
    modified: str | None
    hash: str
    links: tuple[str, ...]
    run: int


@dataclass(frozen=True, slots=True)
class NewPage:
    """A page as it is to be kept."""

    url: str
    title: str
    text: str
    hash: str
    bytes: int
    etag: str | None = None
    modified: str | None = None
    published: str | None = None
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A page's best passage for a query. score: greater is better; comparable within one search only."""

    url: str
    title: str
    text: str
    published: date | None
    score: float


class Index:
    """One connection, usable from any thread, one at a time. Made with I/O: raises `IndexUnusable`.

    A reader beside a writer sees what is committed (WAL). readonly: the file must be there.
    """

    def __init__(self, file: Path, *, readonly: bool = False) -> None:
        self.file = file
        self._lock = threading.RLock()
        try:
            self._db = self._opened(file, readonly)
        except sqlite3.Error as error:
            raise IndexUnusable(f"{file}: can't be used as a search index ({error}).") from error

    def _opened(self, file: Path, readonly: bool) -> sqlite3.Connection:
        mode = "ro" if readonly else "rwc"
        db = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            check_same_thread=False,
            isolation_level=None,
        )
        try:
            [version] = db.execute("PRAGMA user_version").fetchone()
            if version == 0 and not readonly and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
            elif version != VERSION:
                raise IndexUnusable(
                    f"{file}: not a search index of this version of Jubal. Move it away and add its sources again."
                )
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: whole, or nothing of it. May be nested: the outermost counts."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        """Several readings between which no writer gets."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("ROLLBACK")

    def _rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # -------------------------------------------------------------------------------------------------- sources

    def sources(self) -> list[SourceRow]:
        """In the order they were added, with what they hold."""
        rows = self._rows(
            "SELECT s.id, location, kind, options, s.run, running, updated_us, count(p.id), coalesce(sum(p.bytes), 0) "
            "FROM sources s LEFT JOIN pages p ON p.source = s.id GROUP BY s.id ORDER BY s.id"
        )
        return [SourceRow(*row) for row in rows]  # type: ignore[arg-type]

    def source(self, location: str) -> SourceRow | None:
        return next((one for one in self.sources() if one.location == location), None)

    def add_source(self, location: str, kind: Kind, options: str) -> SourceRow:
        """A new one, or one that is there, with the new options."""
        with self.change() as db:
            db.execute(
                "INSERT INTO sources (location, kind, options, added_us) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (location) DO UPDATE SET options = excluded.options, kind = excluded.kind",
                (location, kind, options, time.time_ns() // 1000),
            )
        found = self.source(location)
        assert found is not None
        return found

    def remove_source(self, source: int) -> int:
        """With all it holds. How many pages that were."""
        with self.change() as db:
            pages = [row[0] for row in db.execute("SELECT id FROM pages WHERE source = ?", (source,))]
            for page in pages:
                self._drop_page(page)
            db.execute("DELETE FROM queue WHERE source = ?", (source,))
            db.execute("DELETE FROM sources WHERE id = ?", (source,))
        return len(pages)

    # ----------------------------------------------------------------------------------------------------- runs

    def begin_run(self, source: int, seeds: Iterable[str]) -> tuple[int, bool]:
        """The number of the run to go on with, and whether it is one that was interrupted; else it begins at `seeds`."""
        with self.change() as db:
            run, running = db.execute("SELECT run, running FROM sources WHERE id = ?", (source,)).fetchone()
            if running:
                return run, True
            db.execute("DELETE FROM queue WHERE source = ?", (source,))
            db.execute("UPDATE sources SET run = run + 1, running = 1 WHERE id = ?", (source,))
            self.enqueue(source, seeds, 0)
        return run + 1, False

    def enqueue(self, source: int, urls: Iterable[str], depth: int) -> None:
        """Addresses that this run has not met yet."""
        with self.change() as db:
            db.executemany(
                "INSERT OR IGNORE INTO queue (source, url, depth) VALUES (?, ?, ?)",
                [(source, url, depth) for url in urls],
            )

    def todo(self, source: int, most: int) -> list[tuple[str, int]]:
        """(address, depth) of what is next, shallow ones first."""
        return self._rows(  # type: ignore[return-value]
            "SELECT url, depth FROM queue WHERE source = ? AND done = 0 ORDER BY depth, url LIMIT ?", source, most
        )

    def counts(self, source: int) -> tuple[int, int]:
        """(addresses that are done, all that are known) of this run."""
        [(done, known)] = self._rows("SELECT coalesce(sum(done), 0), count(*) FROM queue WHERE source = ?", source)
        return int(str(done)), int(str(known))

    def done(self, source: int, url: str) -> None:
        with self.change() as db:
            db.execute(
                "INSERT INTO queue (source, url, depth, done) VALUES (?, ?, 0, 1) "
                "ON CONFLICT (source, url) DO UPDATE SET done = 1",
                (source, url),
            )

    def end_run(self, source: int, *, drop_unseen: bool) -> int:
        """drop_unseen: pages that this run did not meet are gone. How many that were."""
        with self.change() as db:
            gone = [
                row[0]
                for row in db.execute(
                    "SELECT p.id FROM pages p JOIN sources s ON s.id = p.source WHERE s.id = ? AND p.run < s.run", (source,)
                )
            ] if drop_unseen else []  # fmt: skip
            for page in gone:
                self._drop_page(page)
            db.execute("DELETE FROM queue WHERE source = ?", (source,))
            db.execute("UPDATE sources SET running = 0, updated_us = ? WHERE id = ?", (time.time_ns() // 1000, source))
        return len(gone)

    # ---------------------------------------------------------------------------------------------------- pages

    def page(self, source: int, url: str) -> PageRow | None:
        rows = self._rows(
            "SELECT id, url, etag, modified, hash, links, run FROM pages WHERE source = ? AND url = ?", source, url
        )
        if not rows:
            return None
        ident, url_, etag, modified, hash_, links, run = rows[0]
        return PageRow(ident, url_, etag, modified, hash_, tuple(json.loads(str(links))), run)  # type: ignore[arg-type]

    def keep(self, source: int, page: NewPage, run: int) -> None:
        """A new page, or a new state of one, and its passages."""
        with self.change() as db:
            [ident] = db.execute(
                "INSERT INTO pages (source, url, title, etag, modified, hash, published, bytes, links, run) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, url) DO UPDATE SET title = excluded.title, "
                "etag = excluded.etag, modified = excluded.modified, hash = excluded.hash, published = excluded.published, "
                "bytes = excluded.bytes, links = excluded.links, run = excluded.run RETURNING id",
                (
                    source, page.url, page.title, page.etag, page.modified, page.hash, page.published, page.bytes,
                    json.dumps(page.links), run,
                ),
            ).fetchone()  # fmt: skip
            self._drop_passages(ident)
            db.executemany(
                "INSERT INTO passages (rowid, start, title, body) VALUES (?, ?, ?, ?)",
                [
                    (ident * PASSAGES_MAX + number, start, page.title, body)
                    for number, (start, body) in enumerate(passages_of(page.text))
                ],
            )

    def keep_unchanged(self, page: int, run: int, *, etag: str | None = None, modified: str | None = None) -> None:
        """It is still there. etag, modified: new ones, where it told some."""
        with self.change() as db:
            db.execute(
                "UPDATE pages SET run = ?, etag = coalesce(?, etag), modified = coalesce(?, modified) WHERE id = ?",
                (run, etag, modified, page),
            )

    def drop(self, source: int, url: str) -> bool:
        """Whether it was there."""
        with self.change():
            found = self.page(source, url)
            if found is not None:
                self._drop_page(found.id)
        return found is not None

    def _drop_page(self, page: int) -> None:
        self._drop_passages(page)
        self._db.execute("DELETE FROM pages WHERE id = ?", (page,))

    def _drop_passages(self, page: int) -> None:
        self._db.execute(
            "DELETE FROM passages WHERE rowid BETWEEN ? AND ?", (page * PASSAGES_MAX, (page + 1) * PASSAGES_MAX - 1)
        )

    # -------------------------------------------------------------------------------------------------- reading

    def has_pages(self) -> bool:
        return bool(self._rows("SELECT 1 FROM pages LIMIT 1"))

    def text_of(self, url: str) -> tuple[str, str, tuple[str, ...]] | None:
        """(title, text, links) of a page; None where it is not in the index."""
        with self._one_state():
            return self._text_of(url)

    def _text_of(self, url: str) -> tuple[str, str, tuple[str, ...]] | None:
        rows = self._rows("SELECT id, title, links FROM pages WHERE url = ? ORDER BY id LIMIT 1", url)
        if not rows:
            return None
        ident, title, links = int(str(rows[0][0])), str(rows[0][1]), str(rows[0][2])
        parts = self._rows(
            "SELECT start, body FROM passages WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            ident * PASSAGES_MAX, (ident + 1) * PASSAGES_MAX - 1,
        )  # fmt: skip
        text = ""
        for start, body in parts:
            text = text[: int(str(start))] + str(body)
        return title, text, tuple(json.loads(links))

    def search(self, query: str, count: int, wanted: Callable[[str, date | None], bool] | None = None) -> list[Passage]:
        """The best passage of each page, best first. Never raises for odd queries: every word is taken literally.

        wanted: of which addresses and dates.
        """
        matching = match_of(query)
        if not matching:
            return []
        with self._one_state():
            return self._found(matching, count, wanted)

    def _found(self, matching: str, count: int, wanted: Callable[[str, date | None], bool] | None) -> list[Passage]:
        rows = self._rows(
            "SELECT rowid, bm25(passages, 0, ?, 1.0) AS rank FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT ?",
            TITLE_WEIGHT, matching, max(CANDIDATES, count * 4) if wanted is None else CANDIDATES_FILTERED,
        )  # fmt: skip
        best: dict[int, tuple[int, float]] = {}
        for rowid, rank in rows:
            best.setdefault(int(str(rowid)) // PASSAGES_MAX, (int(str(rowid)), -float(str(rank))))
        found: dict[str, Passage] = {}
        for page, (rowid, score) in best.items():
            [(url, title, published)] = self._rows("SELECT url, title, published FROM pages WHERE id = ?", page)
            day = date.fromisoformat(str(published)) if published else None
            if str(url) in found or (wanted is not None and not wanted(str(url), day)):
                continue
            [(body,)] = self._rows("SELECT body FROM passages WHERE rowid = ?", rowid)
            found[str(url)] = Passage(str(url), str(title), str(body), day, score)
            if len(found) == count:
                break
        return list(found.values())


def match_of(query: str) -> str:
    """An FTS5 query: any of the words, each quoted. Common English words count only where there are no others."""
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
    telling = [word for word in words if word not in _COMMON] or words
    return " OR ".join(f'"{word}"' for word in telling[:WORDS_MAX])


def passages_of(text: str) -> Iterator[tuple[int, str]]:
    """(start, passage): about 1,200 characters each, cut between words, with the last 200 of the one before."""
    start = number = 0
    while start < len(text) and number < PASSAGES_MAX:
        end = min(start + PASSAGE_CHARS, len(text))
        if end < len(text):
            end = _between_words(text, end, start + PASSAGE_CHARS - OVERLAP_CHARS)
        yield start, text[start:end]
        if end >= len(text):
            return
        start = _between_words(text, end - OVERLAP_CHARS, end - 2 * OVERLAP_CHARS)
        number += 1


def _between_words(text: str, place: int, least: int) -> int:
    """The last place up to `place` that follows a space, or `place` where there is none after `least`."""
    for at in range(place, max(least, 1), -1):
        if text[at - 1].isspace():
            return at
    return place
