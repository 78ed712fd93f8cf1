"""The web tools as the model calls them: over a site on loopback, and with a connector that opens no socket elsewhere."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from jubal.agent.toolbox import Toolbox
from jubal.core.errors import BadRequest
from jubal.core.events import ServerToolCall
from jubal.core.generation import Generation, Tools
from jubal.core.server_tools import UserLocation, WebSearch
from jubal.testing.tools import check_tools
from jubal.tools.base import ToolFailed, ToolOutput
from jubal.tools.web_search.domains import Domains
from jubal.tools.web_search.extractor import Extractor, Unreadable
from jubal.tools.web_search.family import PART_CHARS, WebTools, findings, parts_of
from jubal.tools.web_search.index.store import Index, NewPage
from jubal.tools.web_search.pages import Page, PageCache, PageReader
from jubal.tools.web_search.providers.base import Hit, ImageHit, ProviderFailed, Query
from jubal.tools.web_search.providers.chain import Chain
from jubal.tools.web_search.providers.local import LocalIndex
from jubal.web.fetch import SafeFetcher
from tests.tools.test_web_providers import Fixed
from tests.tools.web_site import crawl, notebook
from tests.web.servers import Connector, Names, Site, gives, sends_to, site

ARTICLE = (
    "<!doctype html><title>Walruses</title><nav><a href='/home'>Home</a></nav><main><h1>Walruses</h1>"
    "<p>The walrus is a large marine mammal with long tusks, which it uses to climb out of the water onto the ice.</p>"
    "<pre><code>weigh(walrus)\nprint(walrus)</code></pre><table><tr><th>animal</th><th>weight in kilograms</th></tr>"
    "<tr><td>male walrus</td><td>1,700</td></tr><tr><td>female walrus</td><td>1,250</td></tr><tr><td>newborn calf</td><td>85</td></tr></table>"
    "<p>Read about <a href='seals?x=1#top'>seals</a> or <a href='http://other.test/otters'>otters</a>,"
    " but not <a href='javascript:alert(1)'>this</a>.</p></main>"
)
HTML = "text/html; charset=utf-8"


class Web:
    """The tools over some sites, and some results."""

    def __init__(
        self, *sites: Site, hits: Any = (), names: Names | None = None, index: Path | None = None,
        images: list[ImageHit] | None = None,
    ) -> None:  # fmt: skip
        self.connector = Connector(*sites)
        self.provider = (
            FixedWithImages("fixed", list(hits), images) if images is not None else Fixed("fixed", list(hits))
        )
        allowed = [one.place for one in sites] + [
            f"{name}:{one.port}" for name in (names.hosts if names else ()) for one in sites
        ]
        local = LocalIndex(index) if index else None
        self.family = WebTools(
            Chain([self.provider]),
            PageReader(lambda: SafeFetcher(allowed, resolver=names, backend=self.connector, timeout_s=20)),
            local,
        )

    async def __aenter__(self) -> Web:
        return self

    async def __aexit__(self, *problem: object) -> None:
        await self.family.close()
        if self.family.local is not None:
            await self.family.local.close()
        assert self.connector.escaped == []

    async def call(self, name: str, /, wanted: WebSearch | None = None, **arguments: Any) -> ToolOutput:
        session = self.family.open(wanted or WebSearch())
        return await session.call(name, json.dumps(arguments))

    async def text(self, name: str, /, wanted: WebSearch | None = None, **arguments: Any) -> str:
        output = await self.call(name, wanted, **arguments)
        return "\n".join([output.text, *(found.text for found in output.found)])


class FixedWithImages(Fixed):
    def __init__(self, name: str, answer: Any, images: list[ImageHit]) -> None:
        super().__init__(name, answer)
        self.images = images

    async def search_images(self, query: Query) -> list[ImageHit]:
        return self.images


class KnownNames(Names):
    """Names that lead to the test's own address."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self.hosts = hosts

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host in self.hosts:
            return ["127.0.0.2"]
        raise OSError("no such name")


# --------------------------------------------------------------------------------------------------------- search


async def test_search_gives_sources_with_passages_and_who_answered() -> None:
    hits = [Hit(f"http://a.test/{number}", f"T{number}", f"Text {number}") for number in range(20)]
    async with Web(hits=hits) as web:
        output = await web.call("web_search", query="walrus  tusks", num_results=2)
        assert output.text == "2 results, by fixed:"
        assert [(one.source.url, one.source.title, one.text) for one in output.found] == [
            ("http://a.test/0", "T0", "Text 0"), ("http://a.test/1", "T1", "Text 1"),
        ]  # fmt: skip
        assert web.provider.asked[0].text == "walrus tusks"
        assert len((await web.call("web_search", query="x")).found) == 6
        assert len((await web.call("web_search", WebSearch(results_max=3), query="x", num_results="25")).found) == 3
        assert "No results" in await web.text("web_search", WebSearch(allowed_domains=("b.test",)), query="x")


async def test_the_callers_wishes_reach_the_provider() -> None:
    wanted = WebSearch(
        excluded_domains=("b.test",), location=UserLocation(country="no"), safe_search=False, from_date="2026-01-02",
        to_date="2026-02-03",
    )  # fmt: skip
    async with Web(hits=[Hit("http://a.test/")]) as web:
        await web.call("web_search", wanted, query="x", num_results=4)
        [asked] = web.provider.asked
    assert (asked.count, asked.country, asked.safe, asked.domains.excluded) == (8, "NO", False, ("b.test",))
    assert (str(asked.from_date), str(asked.to_date)) == ("2026-01-02", "2026-02-03")


async def test_functions_are_few_and_their_schemas_hold() -> None:
    import jsonschema

    async with Web(images=[]) as web:
        for wanted, names in (
            (WebSearch(), ["web_search", "open_page", "open_page_with_find"]),
            (WebSearch(image_search=True), ["web_search", "open_page", "open_page_with_find", "search_images"]),
        ):
            functions = await web.family.open(wanted).functions()
            assert [function.name for function in functions] == names
            for function in functions:
                assert function.parameters is not None
                jsonschema.Draft202012Validator.check_schema(json.loads(function.parameters))
        told = {one.name: one.description for one in await web.family.open(WebSearch(images=True)).functions()}
        assert "Pictures can't be looked at" in told["open_page"]
        told = {
            one.name: one.description for one in await web.family.open(WebSearch(allowed_domains=("a.b",))).functions()
        }
        assert told["web_search"].endswith("Only a.b.")
    async with Web() as web:
        assert len(await web.family.open(WebSearch(image_search=True)).functions()) == 3
        with pytest.raises(ToolFailed, match="no function"):
            await web.call("search_images", WebSearch(image_search=True), query="x")


async def test_pictures_are_found_within_the_domains() -> None:
    images = [ImageHit("http://cdn.test/w.png", "http://a.test/w", "W"), ImageHit("http://x/", "http://b.test/", "B")]
    async with Web(images=images) as web:
        wanted = WebSearch(image_search=True, allowed_domains=("a.test",))
        output = await web.call("search_images", wanted, query="walrus")
        assert [(one.source.url, one.text) for one in output.found] == [
            ("http://a.test/w", "Picture: http://cdn.test/w.png")
        ]
        with pytest.raises(ToolFailed, match="no function"):
            await web.call("search_images", WebSearch(), query="x")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("web_search", "{", "JSON object"),
        ("web_search", "[]", "do not fit"),
        ("web_search", "{}", "query"),
        ("web_search", '{"query":""}', "query"),
        ("web_search", '{"query":"\ud800"}', "JSON object"),
        ("web_search", '{"query":"x","num_results":"many"}', "num_results"),
        ("open_page", '{"url":5}', "url"),
        ("open_page", '{"url":"http://a.test/","page":0}', "page"),
        ("open_page_with_find", '{"url":"http://a.test/"}', "pattern"),
        ("close_page", "{}", "no function"),
    ],
)
async def test_unfit_arguments_are_told_to_the_model(name: str, arguments: str, said: str) -> None:
    async with Web() as web:
        with pytest.raises(ToolFailed, match=said):
            await web.family.open(WebSearch()).call(name, arguments)


# ---------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("name", ["web_search", "open_page", "open_page_with_find"])
async def test_it_keeps_the_promise_of_tools(name: str) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response(text="late")

    pages = site(page=gives(ARTICLE.encode(), content_type=HTML), slow=slowly)
    async with pages as one, Web(one, hits=[Hit("http://a.test/", "A", "about a")]) as tools:
        given = {"query": "walrus", "url": one.url + "/page", "pattern": "tusks"}
        wanted = {"web_search": ["query"], "open_page": ["url"], "open_page_with_find": ["url", "pattern"]}[name]
        arguments = json.dumps({key: given[key] for key in wanted})
        slow = ("open_page", json.dumps({"url": one.url + "/slow"}))
        await check_tools(tools.family, WebSearch(), name, arguments, slow=slow)


async def test_a_page_is_markdown_with_its_links() -> None:
    async with site(page=gives(ARTICLE.encode(), content_type=HTML)) as one, Web(one) as web:
        for _ in range(2):
            output = await web.call("open_page", url=one.url + "/page#part")
            [found] = output.found
            assert (found.source.url, found.source.title) == (one.url + "/page", "Walruses")
            assert "# Walruses" in found.text
            assert "```\nweigh(walrus)\nprint(walrus)\n```" in found.text
            assert "| male walrus | 1,700 |" in found.text
            assert (
                f"(1) Home {one.url}/home\n(2) seals {one.url}/seals?x=1\n(3) otters http://other.test/otters"
                in found.text
            )
            assert "javascript" not in found.text.partition("Links of this page:")[2]
        assert len(one.requests) == 1  # the second came from the cache


async def test_links_lead_on_and_only_to_where_the_caller_lets() -> None:
    seals = "<title>Seals</title><main><p>Seals are smaller than walruses, and have no tusks at all.</p></main>"
    async with (
        site(page=gives(ARTICLE.encode(), content_type=HTML), seals=gives(seals.encode(), content_type=HTML)) as one,
        Web(one) as web,
    ):
        wanted = WebSearch(allowed_domains=("127.0.0.2",))
        text = await web.text("open_page", wanted, url=one.url + "/page")
        assert "otters" not in text.partition("Links of this page:")[2]
        [link] = [line.split()[-1] for line in text.splitlines() if line.startswith("(2) seals")]
        assert "no tusks at all" in await web.text("open_page", wanted, url=link)


async def test_long_pages_come_in_parts() -> None:
    words = "\n\n".join(f"<p>Paragraph {number} says something about walruses and ice.</p>" for number in range(600))
    body = f"<title>Long</title><main>{words}</main>".encode()
    async with site(page=gives(body, content_type=HTML)) as one, Web(one) as web:
        first = await web.text("open_page", url=one.url + "/page")
        assert "Paragraph 0 says" in first
        assert "(Part 1 of 5. Ask for the next with `page`.)" in first
        last = await web.text("open_page", url=one.url + "/page", page=5)
        assert "Paragraph 599 says" in last
        assert "(Part 5 of 5.)" in last
        with pytest.raises(ToolFailed, match="there is no part 6"):
            await web.call("open_page", url=one.url + "/page", page=6)
        found = await web.text("open_page_with_find", url=one.url + "/page", pattern="paragraph 599 SAYS")
        assert "(part 5)" in found
        assert "Paragraph 599 says" in found
        assert len(one.requests) == 1


def test_parts_make_up_the_whole() -> None:
    for text in ("", "short", "x" * 30_000, "word " * 9_000, ("line\n" * 50 + "\n") * 200):
        parts = parts_of(text)
        assert "".join(parts) == text
        assert all(len(part) <= PART_CHARS for part in parts)


def test_finding_words() -> None:
    text = (
        "The walrus\n has long  tusks.\n\n"
        + "filler " * 200
        + "\n\nSeals have none. A seal is small.\n\n"
        + "more " * 300
    )
    [(start, end)] = findings(text, "LONG tusks")
    assert "has long  tusks" in text[start:end]
    assert len(findings(text, "tusks|seals have")) == 2
    [(start, end)] = findings(text, "small seal called what?")  # nowhere together: the paragraph with most of the words
    assert "A seal is small" in text[start:end]
    assert findings(text, "penguin (.*)+$") == []
    assert findings(text, "|") == []


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b'{"a": 1}', "application/json", '{"a": 1}'),
        (b"# Title\n\nplain words", "text/markdown", "plain words"),
        (b"Gr\xfc\xdfe aus K\xf6ln", "text/plain; charset=iso-8859-1", "Grüße aus Köln"),
        ("<meta charset=windows-1251><title>x</title><p>Привет, мир, как дела сегодня</p>".encode("cp1251"), "text/html", "Привет, мир"),
        ("\ufeffShort note".encode("utf-16"), "text/plain; charset=utf-16", "Short note"),
        (b"<html><body><p>No header told that this is a page</p>", "", "No header told"),
    ],
)  # fmt: skip
async def test_other_text(body: bytes, kind: str, said: str) -> None:
    async with site(page=gives(body, content_type=kind)) as one, Web(one) as web:
        assert said in await web.text("open_page", url=one.url + "/page")


@pytest.mark.parametrize(
    ("body", "kind"), [(b"no mark", "application/pdf"), (b"\x89PNG\0\0", "image/png"), (b"a\0b", HTML)]
)
async def test_what_is_no_text_is_told(body: bytes, kind: str) -> None:
    async with site(page=gives(body, content_type=kind)) as one, Web(one) as web:
        with pytest.raises(ToolFailed, match=r"could not be opened. It is of type .*, which can't be read"):
            await web.call("open_page", url=one.url + "/page")


async def test_a_page_that_is_away_is_told() -> None:
    async with site() as one, Web(one) as web:
        with pytest.raises(ToolFailed, match="HTTP status 404"):
            await web.call("open_page", url=one.url + "/nothing")
        with pytest.raises(ToolFailed, match=r"valid address|names no host|be reached"):
            await web.call("open_page", url="http://")


# ----------------------------------------------------------------------------------------------------------- SSRF


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0.0.0.0/",
     "http://user@127.0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[fd00::1]/",
     "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://100.64.0.1/", "http://168.63.129.16/",
     "file:///etc/passwd", "gopher://127.0.0.1/", "index://docs/x", "http://127.0.0.2:22/", "127.0.0.1/admin"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["open_page", "open_page_with_find"])
async def test_nothing_private_is_opened(url: str, name: str) -> None:
    async def as_spelled(host: str, port: int) -> list[str]:
        return {
            "localhost": ["127.0.0.1"],
            "0x7f.1": ["127.0.0.1"],
            "127.1": ["127.0.0.1"],
            "2130706433": ["127.0.0.1"],
        }[host]

    connector = Connector()
    pages = PageReader(lambda: SafeFetcher(resolver=as_spelled, backend=connector))
    family = WebTools(Chain([]), pages)
    with pytest.raises(ToolFailed, match="could not be opened"):
        await family.open(WebSearch()).call(name, json.dumps({"url": url, "pattern": "root"}))
    assert (connector.connected, connector.escaped) == ([], [])
    await family.close()


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1/", "http://localhost/", "http://169.254.169.254/", "file:///etc/passwd"]
)
async def test_no_redirect_leads_to_what_is_private(target: str) -> None:
    names = KnownNames()
    async with site(page=sends_to(target)) as one, Web(one, names=names) as web:
        with pytest.raises(ToolFailed, match="could not be opened"):
            await web.call("open_page", url=one.url + "/page")
        assert web.connector.connected == [("127.0.0.2", one.port)]


async def test_domains_hold_for_pages_and_redirects() -> None:
    names = KnownNames("good.test", "sub.good.test", "bad.test")
    async with site() as one, Web(one, names=names) as web:
        one.handlers["/article"] = gives(ARTICLE.encode(), content_type=HTML)
        one.handlers["/to-bad"] = sends_to(f"http://bad.test:{one.port}/article")
        one.handlers["/to-sub"] = sends_to(f"http://sub.good.test:{one.port}/article")
        one.handlers["/there-and-back"] = sends_to(f"http://bad.test:{one.port}/back")
        one.handlers["/back"] = sends_to(f"http://good.test:{one.port}/article")
        good = f"http://good.test:{one.port}"
        for wanted in (WebSearch(allowed_domains=("good.test",)), WebSearch(excluded_domains=("bad.test",))):
            assert "tusks" in await web.text("open_page", wanted, url=f"{good}/article")
            assert "tusks" in await web.text("open_page", wanted, url=f"{good}/to-sub")
            for path in ("to-bad", "there-and-back"):
                names.asked.clear()
                with pytest.raises(ToolFailed, match=r"does not want `bad[.]test`"):
                    await web.call("open_page", wanted, url=f"{good}/{path}")
                assert "bad.test" not in names.asked
            with pytest.raises(ToolFailed, match=r"does not want `bad[.]test`"):
                await web.call("open_page", wanted, url=f"http://bad.test:{one.port}/article")
        # What another request put into the cache is filtered too, by every hop.
        assert "tusks" in await web.text("open_page", url=f"{good}/there-and-back")
        with pytest.raises(ToolFailed, match=r"does not want `bad[.]test`"):
            await web.call("open_page", WebSearch(allowed_domains=("good.test",)), url=f"{good}/there-and-back")


async def test_spellings_of_a_host_do_not_get_past_the_domains() -> None:
    domains = Domains.of(("good.test",), ())
    for url in (
        "http://good.test.evil.test/", "http://evil.test/good.test", "http://evil.test#good.test", "http://evilgood.test/",
        "http://good.test@evil.test/", "http://evil.test\\@good.test/", "http:good.test", "http://", "good.test", "http://[::1",
    ):  # fmt: skip
        assert not domains.permits(url) or url == "http://evil.test\\@good.test/", url
    assert all(map(domains.permits, ("http://GOOD.test./", "https://a.b.good.test:8443/x", "http://user@good.test/")))
    import httpx2

    odd = "http://evil.test\\@good.test/"  # whatever it is taken for, the fetcher goes where the domains were checked
    assert domains.permits(odd) == (httpx2.URL(odd).host == "good.test")


# ---------------------------------------------------------------------------------------------------------- links


FEED = """<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>
<item><title>Walrus seen in harbour</title><link>http://127.0.0.2/1</link><description>&lt;p&gt;A &lt;b&gt;walrus&lt;/b&gt; rested&lt;/p&gt;</description>
<pubDate>Mon, 02 Mar 2026 10:00:00 +0000</pubDate></item>
<item><title>Weather</title><link>http://127.0.0.2/2</link><description>Rain</description><pubDate>Tue, 03 Mar 2026 10:00:00 +0000</pubDate></item>
<item><title>Elsewhere</title><link>http://other.test/3</link><description>Walrus abroad</description></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>Log</title><entry><title type="html">Tusk &amp;amp; tide</title>
<link rel="self" href="http://x.test/self"/><link href="/entry"/><updated>2026-03-04T05:06:07Z</updated><summary>On tusks</summary></entry></feed>"""


async def test_the_callers_feeds_come_first() -> None:
    async with (
        site(rss=gives(FEED.encode(), content_type="application/rss+xml"), atom=gives(ATOM.encode(), content_type="text/xml")) as one,
        Web(one, hits=[Hit("http://127.0.0.2/1", "again"), Hit("http://127.0.0.2/9", "Nine")]) as web,
    ):  # fmt: skip
        wanted = WebSearch(links=(one.url + "/rss", one.url + "/atom"))
        output = await web.call("web_search", wanted, query="walrus harbour")
        assert output.text == "3 results, by the given links and fixed:"
        assert [found.source.url for found in output.found] == [
            "http://127.0.0.2/1",
            "http://other.test/3",
            "http://127.0.0.2/9",
        ]
        assert output.found[0].text == "Date: 2026-03-02\nA walrus rested"
        [tusk, *_] = (await web.call("web_search", wanted, query="tusk tide")).found
        assert (tusk.source.url, tusk.source.title) == (one.url + "/entry", "Tusk & tide")
        newest = await web.call("web_search", wanted, query="zeppelin", num_results=1)
        assert newest.found[0].source.url == one.url + "/entry"  # no word fits: the newest entry
        within = WebSearch(links=(one.url + "/rss",), allowed_domains=("127.0.0.2",), from_date="2026-03-01")
        output = await web.call("web_search", within, query="walrus")
        assert [found.source.url for found in output.found] == ["http://127.0.0.2/1", "http://127.0.0.2/9"]
        web.provider.answer = ProviderFailed("away")
        assert (await web.call("web_search", wanted, query="walrus")).text == "2 results, by the given links:"


async def test_links_outside_the_callers_domains_are_refused() -> None:
    async with Web() as web:
        with pytest.raises(BadRequest, match="not within the domains"):
            web.family.open(WebSearch(links=("https://b.test/rss",), allowed_domains=("a.test",)))
        with pytest.raises(BadRequest, match="may hold 10"):
            web.family.open(WebSearch(links=("https://b.test/rss",) * 11))


async def test_a_feed_that_swells_is_no_feed() -> None:
    lol = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    bomb = f'<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY l0 "lol">{lol}]><rss><channel><title>&l9;</title></channel></rss>'
    async with site(rss=gives(bomb.encode(), content_type="application/rss+xml")) as one, Web(one) as web:
        with pytest.raises(ToolFailed, match="can't be read as text"):
            await web.call("open_page", url=one.url + "/rss")


# ---------------------------------------------------------------------------------------------------- local index


async def test_search_and_reading_from_the_index_alone(tmp_path: Path) -> None:
    index = Index(tmp_path / "index.db")
    async with notebook() as pages:
        await crawl(index, pages)
    index.keep(index.sources()[0].id, NewPage("index://docs/x.md", "Doc", "On zeppelins.", "h", 1), 1)
    index.close()
    local = LocalIndex(tmp_path / "index.db")
    connector = Connector()
    family = WebTools(Chain([local]), PageReader(lambda: SafeFetcher(backend=connector)), local)
    session = family.open(WebSearch())
    output = await session.call("web_search", '{"query": "What are the three steps with SYN and ACK?"}')
    assert output.text.endswith("by local:")
    assert output.found[0].source.url == f"{pages.url}/tcp-handshake.html"
    opened = await session.call("open_page", json.dumps({"url": output.found[0].source.url}))
    assert "SYN flood" in opened.found[0].text
    assert f"{pages.url}/udp.html" in opened.found[0].text
    assert "zeppelins" in (await session.call("open_page", '{"url": "index://docs/x.md"}')).found[0].text
    narrow = family.open(WebSearch(allowed_domains=("a.test",)))
    with pytest.raises(ToolFailed, match="could not be opened"):
        await narrow.call("open_page", '{"url": "index://docs/x.md"}')
    assert connector.connected == []
    await family.close()


# ------------------------------------------------------------------------------------------------ workers and cache


async def test_a_page_that_takes_too_long_is_read_the_fast_way(tmp_path: Path) -> None:
    extractor = Extractor(workers_max=1, markdown_s=0.0)
    reading = await extractor.read(ARTICLE.encode(), "http://a.test/", HTML, "markdown")
    assert "weigh(walrus)" in reading.text
    assert "```" not in reading.text
    hopeless = Extractor(workers_max=1, markdown_s=0.0, text_s=0.0)
    with pytest.raises(Unreadable, match="longer than"):
        await hopeless.read(ARTICLE.encode(), "http://a.test/", HTML, "markdown")
    await extractor.close()
    await hopeless.close()


async def test_workers_are_gone_afterwards_whatever_happens() -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    extractor = Extractor()
    await extractor.read(b"warm", "http://a.test/", "text/plain", "text")
    huge = b"<table><tr><td>" * 400_000
    task = asyncio.ensure_future(extractor.read(huge, "http://a.test/", HTML, "markdown"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reading = await extractor.read(ARTICLE.encode(), "http://a.test/", HTML, "text")
    assert "tusks" in reading.text
    [child] = [child for child in me.children() if child.pid not in before]
    child.kill()
    child.wait()
    with pytest.raises(Unreadable, match="too large or broken"):  # one fault is told, the next page has a new worker
        await extractor.read(ARTICLE.encode(), "http://a.test/", HTML, "text")
    assert "tusks" in (await extractor.read(ARTICLE.encode(), "http://a.test/", HTML, "text")).text
    await extractor.close()
    assert {child.pid for child in me.children()} == before


async def test_workers_that_have_nothing_to_do_go() -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    extractor = Extractor(idle_s=0.05)
    await extractor.read(b"text", "http://a.test/", "text/plain", "text")
    async with asyncio.timeout(60):
        while {child.pid for child in me.children()} != before:
            await asyncio.sleep(0.02)
    assert (await extractor.read(b"text", "http://a.test/", "text/plain", "text")).text == "text"
    await extractor.close()


async def test_workers_see_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_API_KEY", "secret")
    extractor = Extractor()
    await extractor.read(b"warm", "http://a.test/", "text/plain", "text")
    [environ] = [
        child.environ()
        for child in psutil.Process().children()
        if "jubal.tools.web_search.worker" in " ".join(child.cmdline())
    ]
    assert set(environ) <= {"PYTHONPATH", "LC_ALL"}
    await extractor.close()


def test_the_cache_forgets_by_time_and_by_size() -> None:
    now = 0.0
    page = Page("u", "t", "x" * 1_000)
    cache = PageCache(ttl_s=10, bytes_max=page.size * 3, clock=lambda: now)
    for name in "abcd":
        cache.put(name, page)
    assert [cache.get(name) is not None for name in "abcd"] == [False, True, True, True]
    cache.get("b")
    cache.put("e", page)
    assert [cache.get(name) is not None for name in "bcde"] == [True, False, True, True]
    cache.put("big", Page("u", "t", "x" * 10_000))
    assert cache.get("big") is None
    cache.put("b", page)
    now = 10.0
    assert cache.get("b") is None


def test_nothing_heavy_is_imported_before_the_first_use(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from jubal.config import Settings;"
        "from jubal.tools.web_search.make import make_web_search;"
        "family = make_web_search(Settings(home=Path(sys.argv[1])));"
        "from jubal.core.server_tools import WebSearch; family.open(WebSearch());"
        "heavy = {'httpx2', 'ddgs', 'trafilatura', 'resiliparse', 'selectolax', 'lxml', 'numpy', 'sqlite3'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------- in the toolbox


async def test_as_a_part_of_the_toolbox() -> None:
    async with site(page=gives(ARTICLE.encode(), content_type=HTML)) as one:
        web = Web(one, hits=[Hit(one.url + "/page", "Walruses", "tusks")])
        box = Toolbox({"web_search": web.family})
        async with box.open(Generation(model="m", messages=(), tools=Tools(server=(WebSearch(),)))) as bench:
            calls = [
                ServerToolCall("1", "web_search", "web_search", '{"query": "walrus"}', 0),
                ServerToolCall("2", "web_search", "open_page", json.dumps({"url": one.url + "/page"}), 0),
                ServerToolCall("3", "web_search", "open_page", '{"url": "http://127.0.0.1/"}', 0),
            ]
            results = {result.id: result async for result in bench.run_all(calls)}
            assert [results[ident].ok for ident in "123"] == [True, True, False]
            assert (
                f"[1] Walruses\n{one.url}/page\ntusks" in results["1"].output or "[1] Walruses" in results["2"].output
            )
            assert [source.url for source in bench.sources] == [one.url + "/page"]
        await box.close()
        assert web.connector.escaped == []


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"query":' * 50_000], ids=["lists", "objects"])
async def test_arguments_that_are_too_deep_are_no_fault_of_ours(arguments: str) -> None:
    async with Web() as here:
        session = here.family.open(WebSearch())
        for name in ("web_search", "open_page", "open_page_with_find"):
            with pytest.raises(ToolFailed, match="JSON object"):
                await session.call(name, arguments)
