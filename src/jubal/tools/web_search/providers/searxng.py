"""A SearXNG instance of the operator's (its settings must list `json` among `search: formats`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

from jubal.tools.web_search.providers.asking import Service, rows, text_of
from jubal.tools.web_search.providers.base import Hit, ImageHit, Query, day


class SearXNG:
    """today: for engines that take no dates, only how long ago."""

    name = "searxng"

    def __init__(self, base_url: str, *, today: Callable[[], date] = date.today) -> None:
        mend = "SearXNG answers programs only where its settings.yml has `json` in search.formats and no limiter stands before it."
        self._service = Service(self.name, base_url, mend=mend)
        self._today = today

    async def ready(self) -> bool:
        return True

    async def search(self, query: Query) -> list[Hit]:
        """Raises `ProviderFailed`."""
        found = rows(await self._ask(query, "general"), "results")
        hits = [
            Hit(text_of(row, "url"), text_of(row, "title"), text_of(row, "content"), day(row.get("publishedDate")))
            for row in found
        ]
        return [hit for hit in hits if hit.url][: query.count]

    async def search_images(self, query: Query) -> list[ImageHit]:
        """Raises `ProviderFailed`."""
        found = rows(await self._ask(query, "images"), "results")
        hits = [ImageHit(text_of(row, "img_src"), text_of(row, "url"), text_of(row, "title")) for row in found]
        return [hit for hit in hits if hit.url][: query.count]

    async def _ask(self, query: Query, category: str) -> dict[str, Any]:
        params = {
            "q": query.with_sites,
            "format": "json",
            "categories": category,
            "safesearch": "2" if query.safe else "0",
            "pageno": "1",
        }
        if query.language:
            params["language"] = f"{query.language}-{query.country}"
        if span := query.span(self._today()):
            params["time_range"] = span
        return await self._service.ask("GET", "/search", params=params)

    async def close(self) -> None:
        await self._service.close()
