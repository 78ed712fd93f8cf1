"""Providers of results: the real clients against scripted servers on loopback that speak as the services' documents say."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from jubal import config
from jubal.tools.base import ToolFailed
from jubal.tools.web_search.domains import Domains
from jubal.tools.web_search.index.store import Index, NewPage
from jubal.tools.web_search.make import make_web_search, providers
from jubal.tools.web_search.providers.asking import ANSWER_BYTES_MAX
from jubal.tools.web_search.providers.base import Hit, ProviderFailed, Query
from jubal.tools.web_search.providers.brave import Brave
from jubal.tools.web_search.providers.chain import Chain
from jubal.tools.web_search.providers.ddgs import Ddgs
from jubal.tools.web_search.providers.local import LocalIndex
from jubal.tools.web_search.providers.searxng import SearXNG
from jubal.tools.web_search.providers.tavily import Tavily

SECRET = "key-that-nobody-may-see"
TODAY = date(2026, 3, 31)


@dataclass
class Scripted:
    """A service. answer: its next body. asked: (method, path, parameters, headers, body) of each request."""

    answer: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], dict[str, str], Any]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(
            (request.method, request.path, dict(request.query), headers, json.loads(raw) if raw else None)
        )
        body = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return web.Response(body=body, status=self.status, headers=self.headers, content_type="application/json")


@asynccontextmanager
async def scripted(answer: Any = None, status: int = 200, **headers: str) -> AsyncIterator[Scripted]:
    one = Scripted(answer, status, {name.replace("_", "-"): value for name, value in headers.items()})
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield one
    finally:
        await runner.cleanup()


SEARXNG = {
    "query": "x", "number_of_results": 0, "answers": [], "suggestions": [], "unresponsive_engines": [],
    "results": [
        {"url": "https://a.example/1", "title": "One", "content": "First  result", "engine": "x", "score": 3.0,
         "publishedDate": "2026-03-01T00:00:00"},
        {"url": "https://b.example/2", "title": "Two", "content": None, "engine": "y", "score": 1.0},
        {"title": "without an address"},
    ],
}  # fmt: skip
BRAVE = {
    "type": "search",
    "web": {"type": "search", "results": [
        {"title": "A <strong>walrus</strong>", "url": "https://a.example/1", "description": "On <strong>walruses</strong> &amp; more",
         "page_age": "2026-02-03T04:05:06", "extra_snippets": ["tusks"]},
        {"title": "B", "url": "https://b.example/2", "description": "Two"},
    ]},
}  # fmt: skip
TAVILY = {
    "query": "x", "answer": None, "images": [], "response_time": 1.0,
    "results": [{"title": "One", "url": "https://a.example/1", "content": "First", "score": 0.9, "raw_content": None}],
}  # fmt: skip
FULL = Query(
    "walrus tusks", 5, Domains.of(("a.example", "b.example"), ()), "DE", True, date(2026, 3, 26), date(2026, 3, 30)
)  # fmt: skip


async def test_searxng() -> None:
    async with scripted(SEARXNG) as service:
        provider = SearXNG(service.url + "/", today=lambda: TODAY)
        assert await provider.search(FULL) == [
            Hit("https://a.example/1", "One", "First result", date(2026, 3, 1)),
            Hit("https://b.example/2", "Two", ""),
        ]
        await provider.search(Query("x", 1, Domains.of((), ("c.example",)), safe=False))
        await provider.close()
    (method, path, params, _, _), (_, _, second, _, _) = service.asked
    assert (method, path) == ("GET", "/search")
    assert params == {
        "q": "walrus tusks (site:a.example OR site:b.example)", "format": "json", "categories": "general",
        "safesearch": "2", "pageno": "1", "language": "de-DE", "time_range": "week",
    }  # fmt: skip
    assert (second["q"], second["safesearch"], "time_range" in second) == ("x -site:c.example", "0", False)


async def test_brave() -> None:
    async with scripted(BRAVE) as service:
        provider = Brave(SECRET, service.url)
        found = await provider.search(FULL)
        await provider.search(replace(FULL, count=30, to_date=None, country=None))
        await provider.close()
    assert found[0] == Hit("https://a.example/1", "A walrus", "On walruses & more … tusks", date(2026, 2, 3))
    (method, path, params, headers, _), (_, _, second, _, _) = service.asked
    assert (method, path, headers["x-subscription-token"]) == ("GET", "/res/v1/web/search", SECRET)
    assert params == {
        "q": "walrus tusks (site:a.example OR site:b.example)", "count": "5", "freshness": "2026-03-26to2026-03-30",
        "safesearch": "strict", "country": "DE", "search_lang": "de",
    }  # fmt: skip
    assert (second["count"], second["freshness"]) == ("20", "2026-03-26to9999-12-31")


async def test_tavily() -> None:
    async with scripted(TAVILY) as service:
        provider = Tavily(SECRET, service.url)
        assert await provider.search(FULL) == [Hit("https://a.example/1", "One", "First")]
        await provider.close()
    [(method, path, _, headers, body)] = service.asked
    assert (method, path, headers["authorization"]) == ("POST", "/search", f"Bearer {SECRET}")
    assert body == {
        "query": "walrus tusks", "max_results": 5, "search_depth": "basic", "topic": "general",
        "include_domains": ["a.example", "b.example"], "start_date": "2026-03-26", "end_date": "2026-03-30",
    }  # fmt: skip


async def test_pictures() -> None:
    searxng = {"results": [{"img_src": "https://a.example/w.png", "url": "https://a.example/w", "title": "W"}]}
    brave = {
        "results": [{"title": "W", "url": "https://a.example/w", "properties": {"url": "https://a.example/w.png"}}]
    }
    async with scripted(searxng) as one, scripted(brave) as two:
        for provider in (SearXNG(one.url), Brave(SECRET, two.url)):
            [hit] = await provider.search_images(Query("walrus", 3))
            assert (hit.url, hit.page, hit.title) == ("https://a.example/w.png", "https://a.example/w", "W")
            await provider.close()
        assert one.asked[0][2]["categories"] == "images"
        assert two.asked[0][1] == "/res/v1/images/search"


KEYED = [lambda url: Brave(SECRET, url), lambda url: Tavily(SECRET, url), SearXNG]


@pytest.mark.parametrize("make", KEYED)
@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "refused access"), (403, "refused access"), (429, "no more searches"), (500, "fault of its own"), (503, "fault of its own"),
     (400, "did not take"), (302, "did not take")],
)  # fmt: skip
async def test_a_service_that_refuses_is_told_without_its_key(
    make: Callable[[str], Any], status: int, said: str
) -> None:
    async with scripted({"error": SECRET}, status, location="http://127.0.0.1:9/") as service:
        provider = make(service.url)
        with pytest.raises(ProviderFailed, match=said) as caught:
            await provider.search(Query("x", 3))
        await provider.close()
    assert SECRET not in str(caught.value) + repr(provider)
    assert f"HTTP {status}" in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b"\xff\xfe", b"null"])
async def test_answers_that_are_no_object_are_told(body: bytes) -> None:
    async with scripted(body) as service:
        provider = SearXNG(service.url)
        with pytest.raises(ProviderFailed, match="not JSON"):
            await provider.search(Query("x", 3))
        await provider.close()


@pytest.mark.parametrize(
    "body", [{}, {"results": None}, {"results": {"a": 1}}, {"results": [1, None, {"url": 5}]}, {"web": []}]
)
async def test_odd_objects_are_no_results(body: dict[str, Any]) -> None:
    async with scripted(body) as service:
        for provider in (SearXNG(service.url), Brave(SECRET, service.url), Tavily(SECRET, service.url)):
            assert await provider.search(Query("x", 3)) == []
            await provider.close()


async def test_answers_are_bounded_and_never_decompressed() -> None:
    async with scripted(b"x" * (ANSWER_BYTES_MAX + 1)) as large, scripted(b"{}", content_encoding="gzip") as pressed:
        for service, said in ((large, "more than"), (pressed, "compressed")):
            provider = SearXNG(service.url)
            with pytest.raises(ProviderFailed, match=said):
                await provider.search(Query("x", 3))
            await provider.close()


async def test_a_service_that_is_away_is_told() -> None:
    async with scripted() as service:
        gone = service.url
    provider = Brave(SECRET, gone)
    with pytest.raises(ProviderFailed, match="can't be reached") as caught:
        await provider.search(Query("x", 3))
    assert SECRET not in str(caught.value)
    await provider.close()


# ----------------------------------------------------------------------------------------------------------- ddgs


class FakeEngines:
    """What the library would say, or raise, or how long it takes."""

    def __init__(self, answer: list[dict[str, Any]] | Exception | float) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def text(self, query: str, **options: Any) -> list[dict[str, Any]]:
        self.asked.append((query, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, float):
            time.sleep(self.answer)
            return []
        return self.answer

    images = text


async def test_ddgs() -> None:
    engines = FakeEngines([{"title": "A", "href": "https://a.example/", "body": "Text"}, {"title": "no address"}])
    provider = Ddgs(lambda: engines, today=lambda: TODAY)
    assert await provider.search(FULL) == [Hit("https://a.example/", "A", "Text")]
    await provider.close()
    [(query, options)] = engines.asked
    assert query == "walrus tusks (site:a.example OR site:b.example)"
    assert options == {"region": "de-de", "safesearch": "on", "timelimit": "w", "max_results": 5}


async def test_ddgs_options_are_those_of_the_library() -> None:
    import inspect

    from ddgs import DDGS

    taken = inspect.signature(DDGS._search_sync).parameters
    assert {"region", "safesearch", "timelimit", "max_results"} <= set(taken)
    from jubal.tools.web_search.providers.ddgs import library

    made: Any = library()
    assert made._proxy is None


async def test_ddgs_faults() -> None:
    from ddgs.exceptions import DDGSException

    for error, said in ((DDGSException("x"), "is this machine online"), (RuntimeError("y"), "is this machine online")):
        provider = Ddgs(lambda error=error: FakeEngines(error))
        with pytest.raises(ProviderFailed, match=said):
            await provider.search(Query("x", 3))
        await provider.close()
    provider = Ddgs(lambda: FakeEngines(DDGSException("No results found.")))
    assert await provider.search(Query("x", 3)) == []
    await provider.close()
    provider = Ddgs(lambda: FakeEngines(0.5), timeout_s=0.01)
    with pytest.raises(ProviderFailed, match="did not answer"):
        await provider.search(Query("x", 3))
    await provider.close()


# ---------------------------------------------------------------------------------------------------------- chain


class Fixed:
    """A provider with given hits, or a failure."""

    def __init__(self, name: str, answer: list[Hit] | Exception, *, ready: bool = True) -> None:
        self.name = name
        self.answer = answer
        self.is_ready = ready
        self.asked: list[Query] = []

    async def ready(self) -> bool:
        return self.is_ready

    async def search(self, query: Query) -> list[Hit]:
        self.asked.append(query)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer[: query.count]

    async def close(self) -> None:
        pass


async def test_the_first_that_answers_counts() -> None:
    broken = Fixed("one", ProviderFailed("one is broken."))
    empty, good = Fixed("two", []), Fixed("three", [Hit("http://a/")])
    now = 0.0
    chain = Chain([broken, empty, good], clock=lambda: now)
    assert await chain.search(Query("x", 3)) == ("three", [Hit("http://a/")])
    await chain.search(Query("x", 3))
    assert len(broken.asked) == 1  # it rests, as there are others
    now = 61.0
    await chain.search(Query("x", 3))
    assert len(broken.asked) == 2


async def test_what_nobody_can_answer() -> None:
    broken = Fixed("one", ProviderFailed("one is broken."))
    with pytest.raises(ToolFailed, match="one is broken"):
        await Chain([broken]).search(Query("x", 3))
    assert await Chain([broken, Fixed("two", [])]).search(Query("x", 3)) == ("two", [])
    with pytest.raises(ToolFailed, match="jubal index add"):
        await Chain([Fixed("local", [], ready=False)]).search(Query("x", 3))


@pytest.mark.parametrize(
    ("allowed", "excluded", "left"),
    [
        (("example.org",), (), ["https://example.org/", "https://www.example.org/a"]),
        (("www.example.org",), (), ["https://www.example.org/a"]),
        (
            (),
            ("example.org",),
            ["https://notexample.org/", "https://example.org.evil.test/", "http://b\u00fccher.test/"],
        ),
        (("EXAMPLE.org.",), (), ["https://example.org/", "https://www.example.org/a"]),
        (("b\u00fccher.test",), (), ["http://b\u00fccher.test/"]),
        (("xn--bcher-kva.test",), (), ["http://b\u00fccher.test/"]),
    ],
)
async def test_domains_hold_whatever_a_provider_gives(
    allowed: tuple[str, ...], excluded: tuple[str, ...], left: list[str]
) -> None:
    urls = (
        "https://example.org/", "https://www.example.org/a", "https://notexample.org/", "https://example.org.evil.test/",
        "http://b\u00fccher.test/",
    )  # fmt: skip
    careless = Fixed("careless", [Hit(url) for url in urls])
    _, hits = await Chain([careless]).search(Query("x", 9, Domains.of(allowed, excluded)))
    assert [hit.url for hit in hits] == left


async def test_dates_hold_where_they_are_known() -> None:
    days = (None, date(2026, 1, 1), date(2026, 2, 1), date(2026, 3, 1))
    careless = Fixed("careless", [Hit(f"http://{day}/", published=day) for day in days])
    query = Query("x", 9, from_date=date(2026, 1, 2), to_date=date(2026, 2, 1))
    _, hits = await Chain([careless]).search(query)
    assert [hit.published for hit in hits] == [None, date(2026, 2, 1)]


@pytest.mark.parametrize(
    ("days", "span"), [(0, "day"), (1, "day"), (7, "week"), (8, "month"), (300, "year"), (400, None)]
)
def test_spans_hold_all_that_is_wanted(days: int, span: str | None) -> None:
    assert Query("x", 1, from_date=date.fromordinal(TODAY.toordinal() - days)).span(TODAY) == span
    assert Query("x", 1).span(TODAY) is None


# ---------------------------------------------------------------------------------------------------------- local


async def test_the_local_index_appears_when_it_is_filled(tmp_path: Path) -> None:
    provider = LocalIndex(tmp_path / "index.db")
    assert not await provider.ready()
    assert await provider.search(Query("walrus", 3)) == []
    index = Index(tmp_path / "index.db")
    source = index.add_source("x", "site", "{}").id
    for number in range(300):
        index.keep(source, NewPage(f"http://other.test/{number}", "Walrus", "walrus " * 5, "h", 1), 1)
    old = NewPage("http://docs.test/a", "T", "a walrus with many other words around it", "h", 1, published="2020-01-01")
    index.keep(source, old, 1)
    assert await provider.ready()
    [hit] = await provider.search(Query("walrus", 3, Domains.of(("docs.test",), ())))
    assert (hit.url, hit.published) == ("http://docs.test/a", date(2020, 1, 1))
    found = await provider.search(Query("walrus", 400, from_date=date(2021, 1, 1)))
    assert len(found) == 300
    await provider.close()
    index.close()


async def test_a_broken_index_is_told_and_not_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"no database" * 1_000)
    provider = LocalIndex(tmp_path / "index.db")
    assert await provider.ready()
    with pytest.raises(ProviderFailed, match="can't be read") as caught:
        await provider.search(Query("x", 3))
    assert str(tmp_path) not in str(caught.value)
    await provider.close()


# --------------------------------------------------------------------------------------------------- configuration


def settings(tmp_path: Path, text: str = "") -> config.Settings:
    file = tmp_path / "jubal.toml"
    file.write_text(f"[tools.web_search]\n{text}")
    return config.load(file, {"JUBAL_HOME": str(tmp_path)})


def names(tmp_path: Path, text: str = "") -> list[str]:
    return [one.name for one in providers(settings(tmp_path, text), LocalIndex(tmp_path / "index.db"))]


def test_auto_takes_what_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BRAVE_API_KEY", "TAVILY_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    assert names(tmp_path) == ["local", "ddgs"]
    assert names(tmp_path, "base_url = 'http://127.0.0.1:8888'") == ["searxng", "local", "ddgs"]
    monkeypatch.setenv("TAVILY_API_KEY", SECRET)
    assert names(tmp_path) == ["tavily", "local", "ddgs"]
    assert names(tmp_path, "provider = 'local'") == ["local"]
    assert names(tmp_path, "provider = 'ddgs'") == ["ddgs"]
    assert names(tmp_path, "provider = 'tavily'") == ["tavily"]
    with pytest.raises(config.ConfigError, match=r"api_key_env: expected an API key in \$BRAVE_API_KEY"):
        names(tmp_path, "provider = 'brave'")
    monkeypatch.setenv("MY_KEY", SECRET)
    assert names(tmp_path, "provider = 'brave'\napi_key_env = 'MY_KEY'") == ["brave"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider = 'searxng'", "base_url: expected the address of a SearXNG"),
        ("provider = 'local'\nbase_url = 'http://x/'", "has no address"),
        ("base_url = 'x'", "begins with http"),
        ("api_key_env = 'X'", "goes with the providers brave and tavily"),
    ],
)
def test_keys_that_do_not_fit_are_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(config.ConfigError, match=said):
        settings(tmp_path, text)


async def test_the_family_is_made_of_the_settings(tmp_path: Path) -> None:
    async with scripted(SEARXNG) as service:
        family = make_web_search(settings(tmp_path, f"provider = 'searxng'\nbase_url = '{service.url}'"))
        name, hits = await family.chain.search(Query("x", 5))
        assert (name, len(hits)) == ("searxng", 2)
        await family.close()
