"""Files into the archive. Blocks; the caller runs it in a thread or in a process of its own."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from jubal.tools.x_search import archive, reading, vectors
from jubal.tools.x_search.posts import Author, Post, XSearchError

BATCH: Final = 2_000
"""Posts of one transaction: short enough that a server's own writes never wait long."""
BAD_SHOWN: Final = 5
OPTIMIZE_FROM: Final = 20_000
"""New posts that make it worth to put the index in order."""
CACHE_KIB: Final = 131_072

Progress: TypeAlias = Callable[[str, int, int], None]
"""What is done ("reading": bytes, "embedding": posts), how far it is, and how much there is."""


class Stopped(Exception):
    """Whoever started the import wants it to end. What was written stays, and the next import goes on from there."""


@dataclass(slots=True)
class Report:
    """What an import did. bad: values that were no posts; first_bad: the first few of them."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    embedded: int = 0
    bad: int = 0
    first_bad: list[reading.Bad] = field(default_factory=list)
    skipped: bool = False
    """The file is as it was when it was last read, so it wasn't read again."""


def import_posts(
    store: archive.Archive,
    path: Path,
    *,
    author: str | None = None,
    embed: vectors.Embed | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    only_changed: bool = False,
) -> Report:
    """Imports a file, a folder or a zip; posts that are there are renewed. Raises `XSearchError`, and `Stopped` on `stop`.

    author: handle of the owner of an X archive that does not tell it. embed: None leaves semantic search for later.
    only_changed: a file of the same size and time as at its last import is not read.
    """
    parts = reading.parts_of(path, author)
    state = path.stat()
    connection = store.connect()
    try:
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        report = Report()
        if only_changed and archive.is_read(connection, path):
            report.skipped = True
        else:
            _read_parts(connection, parts, report, progress, stop)
            archive.mark_read(connection, path, state.st_size, state.st_mtime_ns)
        if embed is not None:
            report.embedded = _embed(connection, embed, progress, stop)
        if report.added >= OPTIMIZE_FROM:
            archive.optimize(connection)
        return report
    except sqlite3.Error as error:
        raise XSearchError(f"{store.file}: the posts can't be stored: {error}") from error
    finally:
        connection.close()


def _read_parts(
    connection: sqlite3.Connection,
    parts: list[reading.Part],
    report: Report,
    progress: Progress | None,
    stop: threading.Event | None,
) -> None:
    total, before = reading.size_of(parts), 0
    batch = _Batch(connection, report)
    for part in parts:
        if part.owner is not None:
            batch.add_author(part.owner)
        for item in reading.read(part):
            match item:
                case Post():
                    batch.add(item)
                case Author():
                    batch.add_author(item)
                case reading.Bad():
                    report.bad += 1
                    if len(report.first_bad) < BAD_SHOWN:
                        report.first_bad.append(item)
                case reading.Position(done):
                    demand_going(stop)
                    if progress is not None:
                        progress("reading", before + done, total)
        before += part.size
    batch.write()


class _Batch:
    """Posts that wait to be written."""

    def __init__(self, connection: sqlite3.Connection, report: Report) -> None:
        self._connection = connection
        self._report = report
        self._posts: list[Post] = []
        self._authors: list[Author] = []

    def add(self, post: Post) -> None:
        self._posts.append(post)
        if len(self._posts) >= BATCH:
            self.write()

    def add_author(self, author: Author) -> None:
        self._authors.append(author)
        if len(self._authors) >= BATCH:
            self.write()

    def write(self) -> None:
        done = archive.write(self._connection, self._posts, self._authors)
        self._report.added += done.added
        self._report.updated += done.updated
        self._report.unchanged += done.unchanged
        self._posts.clear()
        self._authors.clear()


def _embed(
    connection: sqlite3.Connection, embed: vectors.Embed, progress: Progress | None, stop: threading.Event | None
) -> int:
    def show(done: int, total: int) -> None:
        demand_going(stop)
        if progress is not None:
            progress("embedding", done, total)

    return vectors.embed_pending(connection, embed, progress=show)


def demand_going(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Stopped
