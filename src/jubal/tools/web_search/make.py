"""From settings to the family. Nothing is opened, fetched or imported that costs before the first call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from jubal import __version__
from jubal.config import Settings
from jubal.tools.web_search.family import WebTools
from jubal.tools.web_search.pages import PageReader
from jubal.tools.web_search.providers.base import SearchProvider
from jubal.tools.web_search.providers.chain import Chain
from jubal.tools.web_search.providers.local import LocalIndex
from jubal.web.fetch import SafeFetcher
from jubal.web.guard import AllowList

if TYPE_CHECKING:
    from jubal.config import WebSearch

INDEX_FILE: Final = "index.db"
"""In the home folder."""
USER_AGENT: Final = f"JubalBot/{__version__}"


def index_file(settings: Settings) -> Path:
    return settings.home / INDEX_FILE


def make_web_search(settings: Settings) -> WebTools:
    """Raises `ConfigError` for keys that are not set, `ValueError` for a bad list of hosts."""
    local = LocalIndex(index_file(settings))
    hosts = settings.private_hosts
    AllowList(hosts)
    chain = Chain(providers(settings, local))
    pages = PageReader(lambda: SafeFetcher(hosts, user_agent=USER_AGENT))
    uses_local = settings.tools.web_search.provider in ("auto", "local")
    return WebTools(chain, pages, local if uses_local else None)


def providers(settings: Settings, local: LocalIndex) -> list[SearchProvider]:
    """In the order they are asked in. `auto`: what is configured, then the index, then ddgs. Raises `ConfigError`."""
    wanted = settings.tools.web_search
    keys = settings.web_search_keys()
    match wanted.provider:
        case "local":
            return [local]
        case "auto":
            found: list[SearchProvider] = []
            if wanted.base_url:
                found.append(_made("searxng", wanted, keys))
            found += [_made(name, wanted, keys) for name in ("brave", "tavily") if name in keys]
            return [*found, local, _made("ddgs", wanted, keys)]
        case name:
            return [_made(name, wanted, keys)]


def _made(name: str, wanted: WebSearch, keys: dict[str, str]) -> SearchProvider:
    base = wanted.base_url if wanted.provider == name else None
    if name == "searxng":
        from jubal.tools.web_search.providers.searxng import SearXNG

        assert wanted.base_url is not None  # the configuration was checked for it
        return SearXNG(wanted.base_url)
    if name == "brave":
        from jubal.tools.web_search.providers.brave import BASE_URL as BRAVE
        from jubal.tools.web_search.providers.brave import Brave

        return Brave(keys["brave"], base or BRAVE)
    if name == "tavily":
        from jubal.tools.web_search.providers.tavily import BASE_URL as TAVILY
        from jubal.tools.web_search.providers.tavily import Tavily

        return Tavily(keys["tavily"], base or TAVILY)
    from jubal.tools.web_search.providers.ddgs import Ddgs

    return Ddgs()
