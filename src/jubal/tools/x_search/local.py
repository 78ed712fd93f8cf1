"""The archive as a provider: its blocking work in threads, a few at a time, which a cancellation interrupts."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import structlog

from jubal.core.errors import JubalError
from jubal.tools.base import ToolFailed
from jubal.tools.x_search import archive, importing, vectors
from jubal.tools.x_search.posts import Result, Scope, XSearchError

log = structlog.get_logger("jubal.tools.x_search")
T = TypeVar("T")

THREADS: Final = 4
EMBED_NOW_MAX: Final = 4_096
"""New posts that a semantic search embeds itself, under half a second; more wait for the background."""
EMPTY: Final = "The local archive has no posts. Its operator can add some with `jubal posts import FILE`."


class LocalProvider:
    """Posts of the archive. path: a file that is imported first, unless it is as it was at its last import; `start` begins that,
    and every search waits for its posts, but not for their vectors."""

    def __init__(self, file: Path, embed: vectors.Embed | None, path: Path | None) -> None:
        self._store = archive.Archive(file)
        self._sketches = vectors.Sketches()
        self._embed = embed
        self._path = path
        self._threads: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._read: asyncio.Task[None] | None = None
        self._embedding: asyncio.Task[None] | None = None
        self._embed_turn = asyncio.Lock()

    async def start(self) -> None:
        """Raises `XSearchError` where the file to import is not there."""
        if self._read is not None:
            return
        if self._path is not None and not await asyncio.to_thread(self._path.exists):
            raise XSearchError(f"tools.x_search.path: {self._path}: there is no such file.")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="jubal-x-search")
        self._read = asyncio.create_task(self._import())

    async def _import(self) -> None:
        path = self._path
        if path is None:
            return
        try:
            report = await self._in_thread(
                lambda: importing.import_posts(self._store, path, stop=self._stop, only_changed=True)
            )
        except importing.Stopped:
            return
        except XSearchError as error:
            log.error("x_search.import_failed", path=str(path), error=str(error))
            return
        log.info(
            "x_search.imported", path=str(path), added=report.added, updated=report.updated, bad=report.bad,
            first_bad=[f"line {one.line}: {one.reason}" for one in report.first_bad], unchanged_file=report.skipped,
        )  # fmt: skip
        self._embed_in_background()

    def _embed_in_background(self) -> None:
        if self._embed is not None and (self._embedding is None or self._embedding.done()) and not self._stop.is_set():
            self._embedding = asyncio.create_task(self._embed_rest())

    async def _embed_rest(self) -> None:
        try:
            while not self._stop.is_set() and await self._embed_some():
                pass
        except (ToolFailed, XSearchError) as error:
            log.error("x_search.embedding_failed", error=str(error))

    async def _embed_some(self) -> int:
        """Embeds the newest posts that have no vector yet; how many."""
        embed = self._embed
        if embed is None:
            return 0
        async with self._embed_turn:
            return await self._search(lambda connection: vectors.embed_pending(connection, embed, EMBED_NOW_MAX))

    async def keyword(self, query: str, scope: Scope, limit: int, *, top: bool) -> Result:
        now_s = int(time.time())
        found = await self._ready(
            lambda connection: archive.keyword(connection, query, scope, limit, top=top, now_s=now_s)
        )
        return Result(tuple(found))

    async def semantic(self, query: str, scope: Scope, limit: int, score_min: float) -> Result:
        embed = self._embed
        if embed is None:
            raise ToolFailed("There is no semantic search here: no embedding model is at hand. Use x_keyword_search.")
        await self._ready(lambda connection: None)
        note = ""
        if await self._embed_some() == EMBED_NOW_MAX:
            self._embed_in_background()
            note = "Some posts of the archive are not yet prepared for semantic search; x_keyword_search finds all."

        def search(connection: sqlite3.Connection) -> Result:
            vector = embed([query])[0]
            best = self._sketches.search(connection, vector, scope, limit, score_min)
            return Result(tuple(archive.posts_of(connection, [key for key, _ in best])), note=note)

        return await self._search(search)

    async def users(self, query: str, scope: Scope, limit: int) -> Result:
        found = await self._ready(lambda connection: archive.users(connection, query, scope, limit))
        return Result(authors=tuple(found))

    async def thread(self, ident: str, scope: Scope, limit: int) -> Result:
        found = await self._ready(lambda connection: archive.thread(connection, ident, scope, limit))
        if found is None:
            raise ToolFailed(f"The post {ident} is not in the archive, or the caller's filters leave it out.")
        return Result(tuple(found))

    async def _ready(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Like `_search`, once the configured file is imported."""
        await self.start()
        assert self._read is not None
        await asyncio.shield(self._read)

        def with_posts(connection: sqlite3.Connection) -> T:
            if archive.is_empty(connection):
                raise ToolFailed(EMPTY)
            return work(connection)

        return await self._search(with_posts)

    async def _search(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs it with a connection of its own. A cancellation interrupts what the connection does, waits for its end and is then
        passed on. Raises `ToolFailed`."""
        at_work: list[sqlite3.Connection] = []

        def run() -> T:
            with self._store.reading() as connection:
                at_work.append(connection)
                try:
                    return work(connection)
                finally:
                    at_work.clear()

        def interrupt() -> None:
            for connection in tuple(at_work):
                with contextlib.suppress(sqlite3.ProgrammingError):  # it ended meanwhile
                    connection.interrupt()

        try:
            return await self._in_thread(run, interrupt)
        except (sqlite3.Error, XSearchError) as error:
            log.error("x_search.store_failed", error=str(error))
            raise ToolFailed("The archive of posts can't be read just now.") from error
        except JubalError as error:
            raise ToolFailed(error.message) from error

    async def _in_thread(self, work: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
        if self._threads is None:
            raise ToolFailed("The search of posts is stopped.")
        future = self._threads.submit(work)
        doing = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            if not future.cancel():  # it has begun
                while not future.done():
                    interrupt()
                    await asyncio.wait((doing,), timeout=0.05)
                doing.cancelled() or doing.exception()  # it was told to end: how it did is nobody's concern any more
            raise

    async def close(self) -> None:
        self._stop.set()
        tasks = [task for task in (self._read, self._embedding) if task is not None]
        if tasks:
            await asyncio.wait(tasks)
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self._store.close)
