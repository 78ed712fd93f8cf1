"""The ddgs library, which reads the result pages of public search engines. No key and no promise: engines change and block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any, Final, Protocol

from jubal.tools.web_search.providers.asking import text_of
from jubal.tools.web_search.providers.base import Hit, ImageHit, ProviderFailed, Query, day

ENGINE_TIMEOUT_S: Final = 5
SEARCH_TIMEOUT_S: Final = 20.0
THREADS: Final = 4
"""Searches can't be cancelled: one that hangs holds one of these, and none that anything else needs."""


class Engines(Protocol):
    """What is used of the library's `DDGS`."""

    def text(self, query: str, **options: Any) -> list[dict[str, Any]]: ...
    def images(self, query: str, **options: Any) -> list[dict[str, Any]]: ...


def library() -> Engines:
    from ddgs import DDGS

    engines = DDGS(proxy=None, timeout=ENGINE_TIMEOUT_S)
    engines._proxy = None  # its own variable, DDGS_PROXY, does not count here
    return engines


class Ddgs:
    """make: for tests. today: the library knows no dates, only how long ago."""

    name = "ddgs"

    def __init__(
        self, make: Callable[[], Engines] = library, *, today: Callable[[], date] = date.today,
        timeout_s: float = SEARCH_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._make = make
        self._today = today
        self._timeout_s = timeout_s
        self._threads: ThreadPoolExecutor | None = None

    async def ready(self) -> bool:
        return True

    async def search(self, query: Query) -> list[Hit]:
        """Raises `ProviderFailed`."""
        found = await self._run(lambda engines: engines.text(query.with_sites, **self._options(query)))
        hits = [
            Hit(text_of(row, "href"), text_of(row, "title"), text_of(row, "body"), day(row.get("date")))
            for row in found
        ]
        return [hit for hit in hits if hit.url][: query.count]

    async def search_images(self, query: Query) -> list[ImageHit]:
        """Raises `ProviderFailed`."""
        found = await self._run(lambda engines: engines.images(query.with_sites, **self._options(query)))
        hits = [ImageHit(text_of(row, "image"), text_of(row, "url"), text_of(row, "title")) for row in found]
        return [hit for hit in hits if hit.url][: query.count]

    def _options(self, query: Query) -> dict[str, Any]:
        span = query.span(self._today())
        return {
            "region": f"{query.country.lower()}-{query.language}" if query.country and query.language else "us-en",
            "safesearch": "on" if query.safe else "off",
            "timelimit": span[0] if span else None,
            "max_results": query.count,
        }

    async def _run(self, ask: Callable[[Engines], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="jubal-ddgs")
        running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: ask(self._make()))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await running
        except TimeoutError:
            raise ProviderFailed(f"ddgs did not answer within {self._timeout_s:g} s.") from None
        except Exception as error:  # the library lets its engines' errors of any kind through
            if "No results found" in str(error):
                return []
            raise ProviderFailed(f"ddgs could not search ({type(error).__name__}): is this machine online?") from error

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
