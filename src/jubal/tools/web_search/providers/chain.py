"""Several providers in turn: the first that is ready and has results answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from jubal.tools.base import ToolFailed
from jubal.tools.web_search.providers.base import Hit, ImageHit, ImageProvider, ProviderFailed, Query, SearchProvider

log = structlog.get_logger("jubal.tools")

RESTS_S: Final = 60.0
"""How long a provider that failed is passed over while there are others."""
MORE: Final = 2
"""Where our own filter may drop results, so many times as many are asked for."""

Result = TypeVar("Result", Hit, ImageHit)


class Chain:
    """clock: monotonic seconds."""

    def __init__(self, providers: Sequence[SearchProvider], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._providers = tuple(providers)
        self._clock = clock
        self._rests: dict[str, float] = {}

    @property
    def has_images(self) -> bool:
        return any(isinstance(one, ImageProvider) for one in self._providers)

    async def search(self, query: Query) -> tuple[str, list[Hit]]:
        """Who answered, and what is left of it after the caller's filters. Raises `ToolFailed` where nobody could answer."""
        return await self._first(query, self._providers, lambda one, asked: one.search(asked))

    async def search_images(self, query: Query) -> tuple[str, list[ImageHit]]:
        """The same for pictures: a picture's page is what the caller's domains are about. Raises `ToolFailed`."""

        async def ask(one: SearchProvider, asked: Query) -> list[ImageHit]:
            assert isinstance(one, ImageProvider)
            return await one.search_images(asked)

        able = [one for one in self._providers if isinstance(one, ImageProvider)]
        return await self._first(query, able, ask)

    async def _first(
        self,
        query: Query,
        providers: Sequence[SearchProvider],
        ask: Callable[[SearchProvider, Query], Awaitable[list[Result]]],
    ) -> tuple[str, list[Result]]:
        filtered = query.domains.allowed or query.domains.excluded or query.from_date or query.to_date
        asked = replace(query, count=query.count * MORE) if filtered else query
        complaints: list[str] = []
        empty: str | None = None
        for one in await self._in_order(providers):
            try:
                found = [hit for hit in await ask(one, asked) if _wanted(hit, query)]
            except ProviderFailed as error:
                log.warning("a search provider failed", provider=one.name, reason=str(error))
                self._rests[one.name] = self._clock() + RESTS_S
                complaints.append(str(error))
                continue
            self._rests.pop(one.name, None)
            if found:
                return one.name, found[: query.count]
            empty = empty or one.name
        if empty is not None:
            return empty, []
        raise ToolFailed(
            " ".join(complaints)
            or "There is nothing to search in. The operator fills the local index with `jubal index add`."
        )

    async def _in_order(self, providers: Sequence[SearchProvider]) -> list[SearchProvider]:
        """Those that are ready; those that failed a moment ago last."""
        ready = [one for one in providers if await one.ready()]
        now = self._clock()
        return sorted(ready, key=lambda one: self._rests.get(one.name, 0.0) > now)

    async def close(self) -> None:
        for one in self._providers:
            await one.close()


def _wanted(hit: Hit | ImageHit, query: Query) -> bool:
    if isinstance(hit, ImageHit):
        return query.domains.permits(hit.page or hit.url)
    return query.domains.permits(hit.url) and query.holds(hit.published)
