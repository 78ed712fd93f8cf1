"""The index of one's own: what `jubal index add` put into it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from jubal.tools.web_search.providers.base import Hit, ProviderFailed, Query

if TYPE_CHECKING:
    from jubal.tools.web_search.index.store import Index


class LocalIndex:
    """file: need not be there yet; it is opened when it is."""

    name = "local"

    def __init__(self, file: Path) -> None:
        self._file = file
        self._index: Index | None = None

    async def ready(self) -> bool:
        return await asyncio.to_thread(self._has_pages)

    def _has_pages(self) -> bool:
        try:
            index = self._opened()
            return index is not None and index.has_pages()
        except ProviderFailed:
            return True  # asked, it says what is wrong

    async def search(self, query: Query) -> list[Hit]:
        """Raises `ProviderFailed`."""
        return await asyncio.to_thread(self._search, query)

    def _search(self, query: Query) -> list[Hit]:
        index = self._opened()
        if index is None:
            return []
        filtered = query.domains.allowed or query.domains.excluded or query.from_date or query.to_date

        def wanted(url: str, published: date | None) -> bool:
            return query.domains.permits(url) and query.holds(published)

        with self._told():
            found = index.search(query.text, query.count, wanted if filtered else None)
        return [Hit(one.url, one.title, one.text.strip(), one.published) for one in found]

    async def page(self, url: str) -> tuple[str, str, tuple[str, ...]] | None:
        """(title, text, links) of an indexed page; None where there is none. Raises `ProviderFailed`."""
        return await asyncio.to_thread(self._page, url)

    def _page(self, url: str) -> tuple[str, str, tuple[str, ...]] | None:
        index = self._opened()
        with self._told():
            return None if index is None else index.text_of(url)

    def _opened(self) -> Index | None:
        if self._index is None and self._file.exists():
            from jubal.tools.web_search.index.store import Index

            with self._told():
                self._index = Index(self._file, readonly=True)
        return self._index

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong with the file, without its path, which is no business of the model's."""
        import sqlite3

        from jubal.tools.web_search.index.store import IndexUnusable

        try:
            yield
        except (IndexUnusable, sqlite3.Error) as error:
            raise ProviderFailed("The local index can't be read. `jubal index list` tells why.") from error

    async def close(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            index.close()
