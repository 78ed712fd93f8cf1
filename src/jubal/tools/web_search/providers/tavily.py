"""Tavily, by its API. It has no pictures of its own kind and no wish for safe results outside special plans."""

from __future__ import annotations

from typing import Any, Final

from jubal.tools.web_search.providers.asking import Service, rows, text_of
from jubal.tools.web_search.providers.base import Hit, Query, day

BASE_URL: Final = "https://api.tavily.com"
COUNT_MAX: Final = 20
"""Results of one request, by the service's rule."""


class Tavily:
    """key: of the account."""

    name = "tavily"

    def __init__(self, key: str, base_url: str = BASE_URL) -> None:
        self._service = Service(self.name, base_url, mend="Check the key that [tools.web_search] api_key_env names.")
        self._headers = {"authorization": f"Bearer {key}"}

    def __repr__(self) -> str:
        return "Tavily()"

    async def ready(self) -> bool:
        return True

    async def search(self, query: Query) -> list[Hit]:
        """Raises `ProviderFailed`."""
        body: dict[str, Any] = {
            "query": query.text,
            "max_results": min(query.count, COUNT_MAX),
            "search_depth": "basic",
            "topic": "general",
        }
        if query.domains.allowed:
            body["include_domains"] = list(query.domains.allowed)
        if query.domains.excluded:
            body["exclude_domains"] = list(query.domains.excluded)
        if query.from_date:
            body["start_date"] = query.from_date.isoformat()
        if query.to_date:
            body["end_date"] = query.to_date.isoformat()
        answer = await self._service.ask("POST", "/search", headers=self._headers, body=body)
        hits = [
            Hit(text_of(row, "url"), text_of(row, "title"), text_of(row, "content"), day(row.get("published_date")))
            for row in rows(answer, "results")
        ]
        return [hit for hit in hits if hit.url][: query.count]

    async def close(self) -> None:
        await self._service.close()
