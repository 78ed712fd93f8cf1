"""Brave Search, by its API."""

from __future__ import annotations

import re
from datetime import date
from html import unescape
from typing import Any, Final

from jubal.tools.web_search.providers.asking import Service, rows, text_of
from jubal.tools.web_search.providers.base import Hit, ImageHit, Query, day

BASE_URL: Final = "https://api.search.brave.com"
COUNT_MAX: Final = 20
"""Results of one request, by the service's rule."""
FIRST_DAY: Final = date(1990, 1, 1)
_TAG = re.compile(r"</?[a-z]+>")


class Brave:
    """key: the subscription's token."""

    name = "brave"

    def __init__(self, key: str, base_url: str = BASE_URL) -> None:
        self._service = Service(self.name, base_url, mend="Check the key that [tools.web_search] api_key_env names.")
        self._headers = {"x-subscription-token": key}

    def __repr__(self) -> str:
        return "Brave()"

    async def ready(self) -> bool:
        return True

    async def search(self, query: Query) -> list[Hit]:
        """Raises `ProviderFailed`."""
        params = {"q": query.with_sites, "count": str(min(query.count, COUNT_MAX))}
        if query.from_date or query.to_date:
            params["freshness"] = f"{query.from_date or FIRST_DAY}to{query.to_date or date.max}"
        params |= _common(query)
        answer = await self._service.ask("GET", "/res/v1/web/search", params=params, headers=self._headers)
        hits = [
            Hit(text_of(row, "url"), _clean(text_of(row, "title")), _passage(row), day(row.get("page_age")))
            for row in rows(answer, "web", "results")
        ]
        return [hit for hit in hits if hit.url][: query.count]

    async def search_images(self, query: Query) -> list[ImageHit]:
        """Raises `ProviderFailed`."""
        params = {"q": query.with_sites, "count": str(query.count)} | _common(query)
        answer = await self._service.ask("GET", "/res/v1/images/search", params=params, headers=self._headers)
        hits = [
            ImageHit(text_of(row.get("properties") or {}, "url"), text_of(row, "url"), text_of(row, "title"))
            for row in rows(answer, "results")
        ]
        return [hit for hit in hits if hit.url][: query.count]

    async def close(self) -> None:
        await self._service.close()


def _common(query: Query) -> dict[str, str]:
    params = {"safesearch": "strict" if query.safe else "off"}
    if query.language and query.country:
        params |= {"country": query.country, "search_lang": query.language}
    return params


def _passage(row: dict[str, Any]) -> str:
    more = [one for one in row.get("extra_snippets") or [] if isinstance(one, str)]
    return _clean(" … ".join([text_of(row, "description"), *more]))


def _clean(text: str) -> str:
    """The service marks the words that were found with tags, and escapes the rest."""
    return unescape(_TAG.sub("", text))
