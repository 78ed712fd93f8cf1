"""Pages as the model reads them: fetched within bounds, turned into text, kept for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Protocol

from jubal.tools.base import ToolFailed
from jubal.tools.web_search.domains import Domains
from jubal.tools.web_search.extractor import Entry, Extractor, Link, Unreadable
from jubal.web.fetch import NONE_LARGER, Fetched, FetchError, Permit

PAGE_BYTES_MAX: Final = 8 << 20
LARGER: Final = {"application/pdf": 32 << 20}
"""Bytes of kinds that are larger than pages."""
ACCEPT: Final = (
    "text/html,application/xhtml+xml,text/*;q=0.9,application/pdf;q=0.8,application/xml;q=0.8,application/json;q=0.8,"
    "*/*;q=0.1"
)
CACHE_S: Final = 900.0
CACHE_BYTES_MAX: Final = 32 << 20


class Fetcher(Protocol):
    """What is used of `jubal.web.fetch.SafeFetcher`."""

    async def get(
        self,
        url: str,
        *,
        bytes_max: int,
        larger: Mapping[str, int] = NONE_LARGER,
        accept: str | None = None,
        permit: Permit | None = None,
    ) -> Fetched: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Page:
    """url: after redirects. hops: each address that was asked on the way. text: Markdown where that could be made."""

    url: str
    title: str
    text: str
    links: tuple[Link, ...] = ()
    entries: tuple[Entry, ...] = ()
    hops: tuple[str, ...] = ()
    published: date | None = None

    @property
    def size(self) -> int:
        """About the bytes that it takes in memory."""
        chars = len(self.text) + sum(len(link.url) + len(link.words) + 100 for link in self.links)
        return 500 + chars + sum(len(entry.text) + len(entry.url) + 300 for entry in self.entries)


class PageCache:
    """The pages read last, for `ttl_s` seconds and within `bytes_max`. clock: monotonic seconds."""

    def __init__(
        self, *, ttl_s: float = CACHE_S, bytes_max: int = CACHE_BYTES_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = ttl_s
        self._bytes_max = bytes_max
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, Page]] = OrderedDict()
        self._bytes = 0

    def get(self, url: str) -> Page | None:
        kept = self._kept.get(url)
        if kept is None:
            return None
        if kept[0] <= self._clock():
            self._drop(url)
            return None
        self._kept.move_to_end(url)
        return kept[1]

    def put(self, url: str, page: Page) -> None:
        self._drop(url)
        self._kept[url] = (self._clock() + self._ttl_s, page)
        self._bytes += page.size
        while self._bytes > self._bytes_max and self._kept:
            self._drop(next(iter(self._kept)))

    def _drop(self, url: str) -> None:
        gone = self._kept.pop(url, None)
        if gone is not None:
            self._bytes -= gone[1].size


class PageReader:
    """Shared by all requests: `make` makes the fetcher when the first page is asked for."""

    def __init__(
        self, make: Callable[[], Fetcher], extractor: Extractor | None = None, cache: PageCache | None = None
    ) -> None:
        self._make = make
        self._fetcher: Fetcher | None = None
        self._extractor = extractor or Extractor()
        self._cache = cache or PageCache()

    async def read(self, url: str, domains: Domains) -> Page:
        """Raises `FetchError`, `Unreadable`, `ToolFailed`. Every hop must be within `domains`, in the cache too."""
        url = url.partition("#")[0]
        kept = self._cache.get(url)
        if kept is not None:
            for hop in kept.hops:
                domains.check(hop)
            return kept
        hops: list[str] = []

        def permit(hop: str) -> None:
            domains.check(hop)
            hops.append(hop)

        if self._fetcher is None:
            self._fetcher = self._make()
        got = await self._fetcher.get(url, bytes_max=PAGE_BYTES_MAX, larger=LARGER, accept=ACCEPT, permit=permit)
        page = await self._page(got, tuple(hops))
        self._cache.put(url, page)
        return page

    async def _page(self, got: Fetched, hops: tuple[str, ...]) -> Page:
        reading = await self._extractor.read(got.body, got.url, got.headers.get("content-type", ""), "markdown")
        if reading.kind == "binary":
            raise ToolFailed(f"It is of type {got.content_type or 'unknown'}, which can't be read as text.")
        published = date.fromisoformat(reading.published) if reading.published else None
        return Page(got.url, reading.title, reading.text, reading.links, reading.entries, hops, published)

    async def close(self) -> None:
        await self._extractor.close()
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            await fetcher.close()


def complaint(url: str, error: Exception) -> ToolFailed:
    """A failed reading in words for the model."""
    why = error.message if isinstance(error, FetchError) else str(error)
    if isinstance(error, Unreadable):
        why = f"It can't be read: {why}."
    return ToolFailed(f"{url[:500]} could not be opened. {why}")
