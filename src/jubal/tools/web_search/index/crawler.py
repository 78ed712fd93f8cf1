"""A polite crawler of one site: it asks robots.txt first, keeps its distance, and asks only for what has changed.

Redirects are not followed but queued, so that each address passes the same gates. All that a run knows is in the index: an
interrupted one goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit, urlunsplit

import msgspec

from jubal.tools.web_search.extractor import Extractor, Reading, Unreadable
from jubal.tools.web_search.index import robots
from jubal.tools.web_search.index.outcome import Outcome, Progress, UpdateFailed
from jubal.tools.web_search.index.robots import NOTHING_ALLOWED, Robots
from jubal.tools.web_search.index.store import Index, NewPage, PageRow, SourceRow
from jubal.web.fetch import BadStatus, Fetched, FetchError, Permit, RefusedAddress, TooLarge

ACCEPT: Final = "text/html,application/xhtml+xml,text/*;q=0.9,application/xml;q=0.8"
TRIES_MAX: Final = 3
BACK_OFF_S: Final = 5.0
"""After a 429 or 503, doubled each time."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
NOT_TEXT: Final = (
    ".7z", ".avi", ".bin", ".bz2", ".css", ".deb", ".dmg", ".doc", ".docx", ".eot", ".epub", ".exe", ".gif", ".gz",
    ".ico", ".iso", ".jar", ".jpeg", ".jpg", ".js", ".mov", ".mp3", ".mp4", ".ogg", ".otf", ".pdf", ".png", ".ppt",
    ".pptx", ".rar", ".rpm", ".svg", ".tar", ".tgz", ".tif", ".tiff", ".ttf", ".wav", ".webm", ".webp", ".whl", ".woff",
    ".woff2", ".xls", ".xlsx", ".xz", ".zip",
)  # fmt: skip
"""Addresses that are not even asked for."""


class CrawlLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far a crawl goes. depth: links from where it begins. delay_s: between two requests; more where robots.txt wants it.

    private: the site's host may be one that only this machine or network can reach.
    """

    pages: int = 1_000
    depth: int = 10
    page_bytes: int = 5 << 20
    at_once: int = 4
    delay_s: float = 0.1
    private: bool = False


class SiteFetcher(Protocol):
    """What is used of `jubal.web.fetch.SafeFetcher`."""

    async def get(
        self,
        url: str,
        *,
        bytes_max: int,
        accept: str | None = None,
        headers: dict[str, str] | None = None,
        permit: Permit | None = None,
    ) -> Fetched: ...


class _Moved(FetchError):
    """A redirect, not followed."""

    reason = "bad_url"

    def __init__(self, target: str) -> None:
        super().__init__("It redirects.")
        self.target = target


def clean(url: str) -> str:
    """One spelling for each address: no fragment, no default port, host in lower case. Raises `ValueError`."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").lower()
    if parts.scheme.lower() not in DEFAULT_PORTS or not host:
        raise ValueError("expected an address that begins with http:// or https://")
    port = parts.port
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != DEFAULT_PORTS[parts.scheme.lower()]:
        place += f":{port}"
    return urlunsplit((parts.scheme.lower(), place, parts.path or "/", parts.query, ""))


def site_of(url: str) -> tuple[str, int | None]:
    """What one crawl stays within: a host, with and without `www.`, by http and https; a port only if it is an unusual one."""
    parts = urlsplit(url)
    port = parts.port if parts.port != DEFAULT_PORTS.get(parts.scheme) else None
    return (parts.hostname or "").lower().removeprefix("www."), port


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(slots=True)
class _Host:
    """One origin: its rules, and when it may be asked next."""

    rules: Robots
    next_s: float = 0.0


class Crawl:
    """One update of one site. sleep, clock: for tests; clock in monotonic seconds."""

    def __init__(
        self,
        index: Index,
        source: SourceRow,
        limits: CrawlLimits,
        fetcher: SiteFetcher,
        extractor: Extractor,
        progress: Progress,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._source = source
        self._limits = limits
        self._fetcher = fetcher
        self._extractor = extractor
        self._progress = progress
        self._sleep = sleep
        self._clock = clock
        self._site = site_of(source.location)
        self._hosts: dict[str, _Host] = {}
        self._asking = asyncio.Lock()
        self._run = 0
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Raises `UpdateFailed` where not even the first page can be had. A cancelled run can be gone on with."""
        await self._host(self._source.location)  # before anything is written: a host that is refused leaves no trace
        self._run, self.outcome.resumed = self._index.begin_run(self._source.id, [self._source.location])
        active: dict[asyncio.Task[None], str] = {}
        try:
            while True:
                for url, depth in self._next(set(active.values())):
                    active[asyncio.create_task(self._visit(url, depth))] = url
                if not active:
                    break
                done, _ = await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    url = active.pop(task)
                    task.result()
                    self._progress(*self._index.counts(self._source.id), url)
        finally:
            for task in active:
                task.cancel()
            await asyncio.gather(*active, return_exceptions=True)
        done_count, known = self._index.counts(self._source.id)
        self.outcome.complete = done_count == known
        self.outcome.gone += self._index.end_run(self._source.id, drop_unseen=self.outcome.complete)
        return self.outcome

    def _next(self, active: set[str]) -> list[tuple[str, int]]:
        """What may begin now."""
        done, _ = self._index.counts(self._source.id)
        free = min(self._limits.at_once - len(active), self._limits.pages - done - len(active))
        if free <= 0:
            return []
        waiting = self._index.todo(self._source.id, free + len(active))
        return [(url, depth) for url, depth in waiting if url not in active][:free]

    # ----------------------------------------------------------------------------------------------- one address

    async def _visit(self, url: str, depth: int) -> None:
        """Raises `UpdateFailed` for the first address only."""
        before = self._index.page(self._source.id, url)
        host = await self._host(url)
        parts = urlsplit(url)
        if not host.rules.allows(parts.path + (f"?{parts.query}" if parts.query else "")):
            self._skip(url, "robots.txt does not want it to be read")
            return
        try:
            got = await self._got(url, host, before)
        except _Moved as moved:
            self._moved(url, moved.target, depth)
        except BadStatus as error:
            self._answered(url, depth, before, error.status)
        except FetchError as error:
            self._lost(url, depth, before, error.message)
        else:
            await self._take(url, depth, before, got)

    async def _got(self, url: str, host: _Host, before: PageRow | None) -> Fetched:
        """The page, if it has changed. Raises `FetchError`, with status 304 where it has not."""
        known = {"if-none-match": before.etag, "if-modified-since": before.modified} if before else {}
        headers = {name: value for name, value in known.items() if value}
        asked: list[str] = []

        def permit(hop: str) -> None:
            if asked:
                raise _Moved(hop)
            asked.append(hop)

        for attempt in range(1, TRIES_MAX + 1):
            await self._pace(host)
            asked.clear()
            try:
                return await self._fetcher.get(
                    url, bytes_max=self._limits.page_bytes, accept=ACCEPT, headers=headers, permit=permit
                )
            except BadStatus as error:
                if error.status not in (429, 503) or attempt == TRIES_MAX:
                    raise
                host.next_s = max(host.next_s, self._clock() + BACK_OFF_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    async def _take(self, url: str, depth: int, before: PageRow | None, got: Fetched) -> None:
        digest = hashlib.sha256(got.body).hexdigest()
        etag, modified = got.headers.get("etag"), got.headers.get("last-modified")
        if before is not None and before.hash == digest:
            with self._index.change():
                self._index.keep_unchanged(before.id, self._run, etag=etag, modified=modified)
                self._follow(before.links, depth)
                self._index.done(self._source.id, url)
            self.outcome.unchanged += 1
            return
        try:
            reading = await self._extractor.read(got.body, url, got.headers.get("content-type", ""), "text")
        except Unreadable as error:
            self._lost(url, depth, before, f"it can't be read: {error}")
            return
        robots_tag = got.headers.get("x-robots-tag", "").lower()
        links = () if reading.nofollow or "nofollow" in robots_tag else self._links(reading)
        with self._index.change():
            self._follow(links, depth if reading.kind != "sitemap" else depth - 1)
            if reading.kind in ("binary", "sitemap") or reading.noindex or "noindex" in robots_tag or not reading.text:
                self._skip(url, "")
                return
            page = NewPage(
                url, reading.title or url, reading.text, digest, len(got.body), etag, modified, reading.published, links
            )
            self._index.keep(self._source.id, page, self._run)
            self._index.done(self._source.id, url)
        self._count(before)

    def _count(self, before: PageRow | None) -> None:
        if before is None:
            self.outcome.new += 1
        else:
            self.outcome.changed += 1

    def _answered(self, url: str, depth: int, before: PageRow | None, status: int) -> None:
        if status == 304 and before is not None:
            with self._index.change():
                self._index.keep_unchanged(before.id, self._run)
                self._follow(before.links, depth)
                self._index.done(self._source.id, url)
            self.outcome.unchanged += 1
        elif status in (404, 410) and url != self._source.location:
            with self._index.change():
                if self._index.drop(self._source.id, url):
                    self.outcome.gone += 1
                self._index.done(self._source.id, url)
            self.outcome.complain(f"{url}: HTTP status {status}")
        else:
            self._lost(url, depth, before, f"HTTP status {status}")

    def _moved(self, url: str, target: str, depth: int) -> None:
        """To an address of the site it is queued; elsewhere it is nothing of ours."""
        with self._index.change():
            self._follow([target], depth - 1)
            self._skip(url, "")

    def _lost(self, url: str, depth: int, before: PageRow | None, why: str) -> None:
        """This time it can't be had; what was known of it stays. Raises `UpdateFailed` for the first page of all."""
        if url == self._source.location and before is None:
            raise UpdateFailed(f"{url}: {why}")
        with self._index.change():
            if before is not None:
                self._index.keep_unchanged(before.id, self._run)
                self._follow(before.links, depth)
            self._index.done(self._source.id, url)
        self.outcome.complain(f"{url}: {why}")

    def _skip(self, url: str, why: str) -> None:
        with self._index.change():
            if self._index.drop(self._source.id, url):
                self.outcome.gone += 1
            self._index.done(self._source.id, url)
        self.outcome.skipped += 1
        if why and url == self._source.location:
            self.outcome.problems.append(f"{url}: {why}")

    # --------------------------------------------------------------------------------------------- where it leads

    def _links(self, reading: Reading) -> tuple[str, ...]:
        """Addresses of this site that may hold text, each once."""
        found: dict[str, None] = {}
        for link in reading.links:
            if link.follow and (url := self._ours(link.url)):
                found[url] = None
        return tuple(found)

    def _ours(self, url: str) -> str | None:
        try:
            cleaned = clean(url)
            ours = site_of(cleaned) == self._site
        except ValueError:
            return None
        return cleaned if ours and not urlsplit(cleaned).path.lower().endswith(NOT_TEXT) else None

    def _follow(self, links: Iterable[str], depth: int) -> None:
        if depth >= self._limits.depth:
            return
        self._index.enqueue(self._source.id, [url for link in links if (url := self._ours(link))], depth + 1)

    # ------------------------------------------------------------------------------------------------ politeness

    async def _host(self, url: str) -> _Host:
        """Its robots.txt is read once a run. Raises `UpdateFailed` where it can't be connected to at all."""
        origin = origin_of(url)
        async with self._asking:
            if origin not in self._hosts:
                self._hosts[origin] = _Host(await self._robots(origin))
            return self._hosts[origin]

    async def _robots(self, origin: str) -> Robots:
        try:
            got = await self._fetcher.get(f"{origin}/robots.txt", bytes_max=robots.BYTES_MAX, accept="text/plain")
        except BadStatus as error:
            return Robots() if 400 <= error.status < 500 and error.status != 429 else NOTHING_ALLOWED
        except TooLarge:
            return NOTHING_ALLOWED
        except RefusedAddress as error:
            place = urlsplit(origin).netloc
            raise UpdateFailed(
                f"{origin}: {error.message} To index it all the same, say --allow-private, or list "
                f'"{place}" in [fetch] allow_private_hosts.'
            ) from None
        except FetchError as error:
            if origin == origin_of(self._source.location):
                raise UpdateFailed(f"{origin}: {error.message}") from None
            return NOTHING_ALLOWED
        return robots.parse(got.body.decode("utf-8", "replace"))

    async def _pace(self, host: _Host) -> None:
        """Until it is our turn; the next turn is a delay later."""
        delay_s = max(self._limits.delay_s, host.rules.delay_s or 0.0)
        now_s = self._clock()
        turn_s = max(now_s, host.next_s)
        host.next_s = turn_s + delay_s
        if turn_s > now_s:
            await self._sleep(turn_s - now_s)
