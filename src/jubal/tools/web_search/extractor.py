"""Pages read in worker processes: within a time limit, and without their libraries in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import msgspec

from jubal.tools.web_search.pdf import is_pdf

MARKDOWN_S: Final = 6.0
"""For the slow, better extraction of one page; a worker's start is not part of it."""
TEXT_S: Final = 10.0
PDF_S: Final = 20.0
"""For a PDF; what was read of it by then is given."""
START_S: Final = 30.0
IDLE_S: Final = 120.0
"""How long workers that have nothing to do keep their memory."""


Style: TypeAlias = Literal["markdown", "text"]


class Unreadable(Exception):
    """No text could be made of it."""


class Link(msgspec.Struct, frozen=True, array_like=True):
    """url: absolute, without fragment. follow: robots may."""

    url: str
    words: str = ""
    follow: bool = True


class Entry(msgspec.Struct, frozen=True):
    """Of a feed. published: `YYYY-MM-DD`."""

    title: str
    url: str
    text: str = ""
    published: str | None = None


class Reading(msgspec.Struct, frozen=True):
    """What parsing.py made of a page. index: a sitemap of sitemaps."""

    kind: Literal["html", "text", "feed", "sitemap", "binary", "error"]
    title: str = ""
    text: str = ""
    links: tuple[Link, ...] = ()
    entries: tuple[Entry, ...] = ()
    published: str | None = None
    noindex: bool = False
    nofollow: bool = False
    index: bool = False


@dataclass(slots=True)
class Extractor:
    """Made without I/O, for one event loop; `close` after the last reading.

    workers_max: processes, each begun when it is needed. markdown_s: see `MARKDOWN_S`. Of PDFs, which can take all of their
    time, one fewer is read at a time: pages of other kinds need not wait for them.
    """

    workers_max: int = 2
    markdown_s: float = MARKDOWN_S
    text_s: float = TEXT_S
    pdf_s: float = PDF_S
    idle_s: float = IDLE_S
    _idle: list[Process] = field(default_factory=list)
    _busy: set[Process] = field(default_factory=set)
    _places: asyncio.Semaphore | None = None
    _pdf_places: asyncio.Semaphore | None = None
    _retiring: asyncio.TimerHandle | None = None

    async def read(self, body: bytes, url: str, content_type: str, style: Style) -> Reading:
        """Raises `Unreadable`. Markdown that takes too long, or comes out empty, becomes plain text."""
        if is_pdf(body, content_type):
            if self._pdf_places is None:
                self._pdf_places = asyncio.Semaphore(max(1, self.workers_max - 1))
            async with self._pdf_places:
                return await self._read(body, url, content_type, style, self.pdf_s)
        if style == "markdown":
            with contextlib.suppress(Unreadable):
                return await self._read(body, url, content_type, "markdown", self.markdown_s)
        return await self._read(body, url, content_type, "text", self.text_s)

    async def _read(self, body: bytes, url: str, content_type: str, style: Style, limit_s: float) -> Reading:
        if self._places is None:
            self._places = asyncio.Semaphore(self.workers_max)
        async with self._places:
            worker = self._idle.pop() if self._idle else await _started()
            self._busy.add(worker)
            try:
                async with asyncio.timeout(limit_s):
                    reading = await _asked(worker, body, url, content_type, style, limit_s)
            except TimeoutError:
                raise Unreadable(f"it took longer than {limit_s:g} s") from None
            except (
                EOFError,
                OSError,
                ValueError,
                msgspec.DecodeError,
            ) as error:  # it died, by its memory limit perhaps
                raise Unreadable("it is too large or broken") from error
            else:
                self._idle.append(worker)
                self._retire_later()
            finally:
                self._busy.discard(worker)
                if worker not in self._idle:
                    await _killed(worker)
        if reading.kind == "error":
            raise Unreadable(reading.text)
        return reading

    def _retire_later(self) -> None:
        if self._retiring is not None:
            self._retiring.cancel()
        self._retiring = asyncio.get_running_loop().call_later(self.idle_s, self._retire)

    def _retire(self) -> None:
        """Nothing was read for a while."""
        while self._idle:
            with contextlib.suppress(ProcessLookupError):
                self._idle.pop().kill()

    async def close(self) -> None:
        """Ends the workers; those at work too."""
        if self._retiring is not None:
            self._retiring.cancel()
        workers = [*self._idle, *self._busy]
        self._idle.clear()
        for worker in workers:
            await _killed(worker)


async def _started() -> Process:
    """A worker in an environment of nothing but where to import from, warm: its start is not part of a page's time.

    Raises `Unreadable` where it can't be started.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jubal.tools.web_search.worker",
        stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_S):
            await _asked(process, b"warm", "", "text/plain", "text", START_S)
    except BaseException as error:
        await _killed(process)
        if isinstance(error, (TimeoutError, EOFError, OSError, ValueError)):
            raise Unreadable("the program that reads pages can't be started") from error
        raise
    return process


async def _asked(process: Process, body: bytes, url: str, content_type: str, style: Style, limit_s: float) -> Reading:
    """Raises `EOFError` (as asyncio's `IncompleteReadError` is one), `OSError`, `msgspec.DecodeError`."""
    assert process.stdin is not None
    assert process.stdout is not None
    head = {"url": url, "content_type": content_type, "style": style, "seconds": limit_s, "bytes": len(body)}
    process.stdin.write(json.dumps(head).encode() + b"\n" + body)
    await process.stdin.drain()
    length = int(await process.stdout.readexactly(8), 16)
    return msgspec.json.decode(await process.stdout.readexactly(length), type=Reading)


async def _killed(process: Process) -> None:
    """Gone when this returns, even where it is cancelled meanwhile."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await asyncio.shield(process.wait())
