"""The local index: a real site crawled from loopback, searched, updated, interrupted; folders; robots.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from jubal.tools.web_search.extractor import Extractor
from jubal.tools.web_search.index import robots
from jubal.tools.web_search.index.crawler import CrawlLimits, clean
from jubal.tools.web_search.index.folder import FolderOptions, FolderReader
from jubal.tools.web_search.index.outcome import Outcome, UpdateFailed
from jubal.tools.web_search.index.store import Index, IndexUnusable, NewPage, match_of, passages_of
from tests.tools.data.site import QUESTIONS, TOPICS
from tests.tools.web_site import Sleeps, crawl, new_index, notebook

# -------------------------------------------------------------------------------------------------- relevance


async def test_twenty_questions_find_their_page(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        outcome = await crawl(index, site)
        assert (outcome.new, outcome.failed, outcome.complete) == (len(TOPICS) + 2, 1, True)  # /search is a 404
        assert "/private/diary.html" not in site.paths()
        assert site.agents == {"JubalBot/test"}
        ranks = {}
        for question, page in QUESTIONS:
            found = [hit.url for hit in index.search(question, 3)]
            ranks[question] = found.index(f"{site.url}/{page}.html") + 1 if f"{site.url}/{page}.html" in found else None
    missed = [question for question, rank in ranks.items() if rank is None]
    assert len(QUESTIONS) == 20
    assert len(missed) <= 2, missed
    index.close()


async def test_what_is_found_is_the_passage_and_not_the_navigation(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        await crawl(index, site)
        [hit] = index.search("SYN cookies flood", 1)
        assert hit.title == "How TCP opens a connection - Engineer's notebook"
        assert "answers with cookies" in hit.text
        assert "About these notes" not in hit.text
    index.close()


# ---------------------------------------------------------------------------------------------------- updates


async def test_an_update_reads_only_what_changed(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        await crawl(index, site)
        site.asked.clear()
        site.files["/udp.html"] = site.files["/udp.html"].replace(b"voice calls", b"zeppelins")
        del site.files["/sourdough.html"]
        outcome = await crawl(index, site)
        assert (outcome.new, outcome.changed, outcome.gone) == (0, 1, 1)
        assert outcome.unchanged == len(TOPICS)
        assert site.paths(200) == ["/robots.txt", "/udp.html"]
        assert index.search("zeppelins", 3)[0].url == f"{site.url}/udp.html"
        assert [hit for hit in index.search("sourdough yeast starter", 3) if "sourdough" in hit.url] == []
    index.close()


async def test_a_page_that_nothing_leads_to_any_more_is_gone(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        await crawl(index, site)
        for path, body in site.files.items():
            site.files[path] = body.replace(b"./sourdough.html#top", b"./udp.html")
        outcome = await crawl(index, site)
        assert (outcome.gone, outcome.changed) == (1, 2)
        assert "/sourdough.html" in site.files
        assert not [hit for hit in index.search("sourdough", 5) if hit.url.endswith("/sourdough.html")]
    index.close()


async def test_a_server_that_fails_for_a_while_loses_no_page(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        await crawl(index, site)
        site.statuses["/dns.html"] = [500]
        outcome = await crawl(index, site)
        assert (outcome.gone, outcome.failed) == (0, 2)
        assert any(hit.url.endswith("/dns.html") for hit in index.search("authoritative resolver MX record", 3))
    index.close()


async def test_an_interrupted_crawl_goes_on_where_it_stopped(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        with pytest.raises(KeyboardInterrupt):
            await crawl(index, site, stop_after=12, limits=CrawlLimits(delay_s=0, at_once=1))
        [row] = index.sources()
        assert row.running
        assert 10 <= row.pages <= 13
        index.close()

        index = new_index(tmp_path)
        first = site.paths(200)
        site.asked.clear()
        outcome = await crawl(index, site)
        assert outcome.resumed
        again = set(site.paths(200)) & set(first) - {"/robots.txt"}
        assert len(again) <= 1  # at most what was under way
        [row] = index.sources()
        assert (row.pages, bool(row.running)) == (len(TOPICS) + 2, False)
    index.close()


async def test_limits_of_pages_depth_and_size(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        outcome = await crawl(index, site, limits=CrawlLimits(delay_s=0, pages=5))
        assert not outcome.complete
        assert len([path for path in site.paths() if path != "/robots.txt"]) == 5
        index.remove_source(index.sources()[0].id)
        site.asked.clear()
        outcome = await crawl(index, site, limits=CrawlLimits(delay_s=0, depth=1))
        assert outcome.new == 12  # the first page, about, and the ten topics that it names
        site.files["/udp.html"] += b"x" * 20_000
        site.files["/dns.html"] += b"<!-- changed -->"
        outcome = await crawl(index, site, limits=CrawlLimits(delay_s=0, depth=1, page_bytes=15_000))
        assert [problem for problem in outcome.problems if "/udp.html" in problem]
        assert outcome.changed == 1
    index.close()


async def test_a_sitemap_is_where_a_crawl_may_begin(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        site.types["/sitemap.xml"] = "application/xml"
        site.files["/sitemap.xml"] = (
            f'<?xml version="1.0"?><urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
            f"<url><loc>{site.url}/raft.html</loc></url><url><loc>{site.url}/tls.html</loc></url>"
            f"<url><loc>http://elsewhere.invalid/</loc></url></urlset>"
        ).encode()
        outcome = await crawl(index, site, "/sitemap.xml", limits=CrawlLimits(delay_s=0, depth=0))
        assert (outcome.new, outcome.failed) == (2, 0)
        assert sorted(site.paths(200)) == ["/raft.html", "/robots.txt", "/sitemap.xml", "/tls.html"]
    index.close()


async def test_a_page_may_ask_not_to_be_indexed_or_followed(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        head = b'<meta name="robots" content="noindex, nofollow">'
        site.files["/"] = b"<title>x</title>" + head + b'<main><a href="/udp.html">udp</a> not for searching</main>'
        outcome = await crawl(index, site)
        assert (outcome.new, outcome.skipped) == (0, 1)
        assert site.paths() == ["/robots.txt", "/"]
    index.close()


async def test_redirects_pass_the_same_gates(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        links = "".join(f'<a href="/{name}">x</a>' for name in ("in", "out", "hidden"))
        site.files["/"] = f"<title>x</title><main><p>Three redirects {links}</p></main>".encode()
        for path, target in (("/in", "/udp.html"), ("/out", "http://10.0.0.1/"), ("/hidden", "/private/diary.html")):
            site.statuses[path] = [302]
            site.headers[path] = {"location": target}
        outcome = await crawl(index, site, limits=CrawlLimits(delay_s=0, depth=1))
        assert outcome.new == 2
        assert "/udp.html" in site.paths()
        assert "/private/diary.html" not in site.paths()
    index.close()


# -------------------------------------------------------------------------------------------------- politeness


async def test_a_crawl_keeps_its_distance(tmp_path: Path) -> None:
    index, sleeps = new_index(tmp_path), Sleeps()
    async with notebook() as site:
        site.robots = "User-agent: jubalbot\nCrawl-delay: 3\nDisallow: /private/\n"
        await crawl(index, site, limits=CrawlLimits(delay_s=0.5, pages=6), sleeps=sleeps)
        assert sum(sleeps.slept) >= 5 * 3
    index.close()


async def test_a_busy_server_is_asked_again_later(tmp_path: Path) -> None:
    index, sleeps = new_index(tmp_path), Sleeps()
    async with notebook() as site:
        site.statuses["/"] = [429, 503]
        outcome = await crawl(index, site, limits=CrawlLimits(delay_s=0, depth=0), sleeps=sleeps)
        assert (outcome.new, site.paths()) == (1, ["/robots.txt", "/", "/", "/"])
        assert sleeps.slept == [5.0, 10.0]
    index.close()


async def test_a_robots_txt_that_fails_closes_the_site(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        site.statuses["/robots.txt"] = [500]
        outcome = await crawl(index, site)
        assert (outcome.new, outcome.skipped, site.paths()) == (0, 1, ["/robots.txt"])
        assert "robots.txt" in outcome.problems[0]
        site.statuses["/robots.txt"] = [403]
        assert (await crawl(index, site, limits=CrawlLimits(delay_s=0, depth=0))).new == 1
    index.close()


async def test_a_private_host_is_refused_with_what_to_do(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    async with notebook() as site:
        with pytest.raises(UpdateFailed, match=r"--allow-private.*allow_private_hosts"):
            await crawl(index, site, open_host=False)
        assert site.asked == []
    index.close()


def allows(text: str, path: str, agent: str = "jubalbot") -> bool:
    return robots.parse(text, agent).allows(path)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /*.php$", "/x/y.php", False),
        ("User-agent: *\nDisallow: /*.php$", "/x/y.php?z", True),
        ("User-agent: *\nDisallow: /a*b*c", "/a1b2c3", False),
        ("User-agent: *\nDisallow: /a*b*c", "/acb", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: JubalBot/1.0\nDisallow: /p", "/x", True),
        ("User-agent: other\nUser-agent: jubalbot\nDisallow: /x", "/x", False),
        ("User-agent: other\nDisallow: /x", "/x", True),
        ("User-agent: jubalbot\nDisallow: /a\nUser-agent: other\nDisallow: /b\nUser-agent: jubalbot\nDisallow: /c", "/c", False),
        ("user-AGENT : *\n disallow : /X # no\n", "/X1", False),
        ("User-agent: *\nDisallow: /caf%C3%A9", "/caf%c3%a9", False),
        ("User-agent: *\nDisallow: /a%2Fb", "/a/b", True),
        ("nonsense\nDisallow: /\nUser-agent: *\nwhat: ever", "/x", True),
        ("User-agent: *\nDisallow: /", "/robots.txt", True),
    ],
)  # fmt: skip
def test_robots(text: str, path: str, expected: bool) -> None:
    assert allows(text, path) is expected


def test_a_rule_full_of_wild_cards_takes_no_time() -> None:
    rule = "/" + "*a" * 2_000 + "$"
    assert allows(f"User-agent: *\nDisallow: {rule}", "/" + "ab" * 50_000)


def test_crawl_delay() -> None:
    assert robots.parse("User-agent: *\nCrawl-delay: 2.5\nDisallow: /x").delay_s == 2.5
    assert robots.parse("User-agent: *\nCrawl-delay: soon").delay_s is None
    assert robots.parse("User-agent: *\nCrawl-delay: nan\nDisallow: /x").delay_s is None


# -------------------------------------------------------------------------------------------------------- folders


async def read_folder(index: Index, folder: Path, base_url: str | None = None) -> Outcome:
    row = index.add_source(str(folder), "folder", "{}")
    extractor = Extractor()
    try:
        options = FolderOptions(name="docs", base_url=base_url)
        return await FolderReader(index, row, options, extractor, lambda *told: None).run()
    finally:
        await extractor.close()


async def test_a_folder_of_html_markdown_and_text(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("hidden treasure")
    (folder / "a.html").write_text(
        "<title>Alpha</title><main><p>Alpha talks of walruses.</p><a href='deep/er/c.md'>c</a></main>"
    )
    (folder / "b.txt").write_text("Bravo\n\nTalks of pelicans, in plain text.")
    (folder / "deep" / "er" / "c.md").write_text("# Charlie\n\nTalks of otters, in *Markdown*.")
    (folder / "d.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret.txt").write_text("outside treasure")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    index = new_index(tmp_path)
    outcome = await read_folder(index, folder)
    assert (outcome.new, outcome.failed) == (3, 0)
    assert index.search("treasure", 5) == []
    [hit] = index.search("otters", 5)
    assert (hit.url, hit.title) == ("index://docs/deep/er/c.md", "Charlie")
    kept = index.text_of("index://docs/a.html")
    assert kept is not None
    assert kept[2] == ("index://docs/deep/er/c.md",)

    (folder / "b.txt").unlink()
    (folder / "a.html").write_text("<title>Alpha</title><main><p>Alpha talks of narwhals, which is longer.</p></main>")
    outcome = await read_folder(index, folder)
    assert (outcome.new, outcome.changed, outcome.unchanged, outcome.gone) == (0, 1, 1, 1)
    assert index.search("walruses pelicans", 5) == []
    assert len(index.search("narwhals", 5)) == 1
    index.close()


async def test_a_published_folder_has_the_addresses_of_its_site(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes\n\nOn lighthouses.")
    index = new_index(tmp_path)
    await read_folder(index, tmp_path / "notes.md", base_url="https://docs.example.org/v1")
    assert index.search("lighthouses", 1)[0].url == "https://docs.example.org/v1/notes.md"
    index.close()


async def test_a_folder_without_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    index = new_index(tmp_path)
    with pytest.raises(UpdateFailed, match="no file here ends in"):
        await read_folder(index, tmp_path / "empty")
    with pytest.raises(UpdateFailed, match="no such file"):
        await read_folder(index, tmp_path / "nowhere")
    index.close()


# ---------------------------------------------------------------------------------------------------------- store


def page(url: str, text: str, title: str = "T", **more: str) -> NewPage:
    return NewPage(url, title, text, hash=text, bytes=len(text), **more)  # type: ignore[arg-type]


def test_passages_overlap_and_make_up_the_whole_text(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(3_000))
    parts = list(passages_of(text))
    assert all(len(body) <= 1_200 for _, body in parts)
    assert all(later - start >= 900 for (start, _), (later, _) in zip(parts, parts[1:], strict=False))
    assert all(body.startswith("word") for _, body in parts)
    index = new_index(tmp_path)
    index.keep(index.add_source("x", "site", "{}").id, page("u", text), 1)
    kept = index.text_of("u")
    assert kept is not None
    assert kept[1] == text
    assert list(passages_of("x" * 5_000))[-1][1][-1] == "x"
    assert list(passages_of("")) == []
    index.close()


@pytest.mark.parametrize(
    "query", ['"', "NEAR(", "a AND", "*", "title:x", "' OR 1=1 --", "\x00", "(((", "-", "", "ünï çödé", "the of"]
)
def test_odd_queries_are_words(tmp_path: Path, query: str) -> None:
    index = new_index(tmp_path)
    index.keep(index.add_source("x", "site", "{}").id, page("u", "some text"), 1)
    assert index.search(query, 3) == []
    index.close()


def test_common_words_count_only_alone() -> None:
    assert match_of("How do I open the door?") == '"open" OR "door"'
    assert match_of("to be or not to be") == '"not"'
    assert match_of("how to") == '"how" OR "to"'


def test_removing_a_source_removes_all_of_it(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    one, two = (index.add_source(name, "site", "{}").id for name in ("one", "two"))
    index.keep(one, page("http://a/", "penguins"), 1)
    index.keep(two, page("http://b/", "penguins"), 1)
    assert index.remove_source(one) == 1
    assert [hit.url for hit in index.search("penguins", 5)] == ["http://b/"]
    assert [row.location for row in index.sources()] == ["two"]
    index.close()


def test_a_change_is_whole_or_nothing(tmp_path: Path) -> None:
    index = new_index(tmp_path)
    source = index.add_source("x", "site", "{}").id
    with pytest.raises(RuntimeError), index.change():
        index.keep(source, page("u", "walrus"), 1)
        raise RuntimeError
    assert index.search("walrus", 1) == []
    assert not index.has_pages()
    index.close()


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.db").write_bytes(b"something else entirely, long enough to be read" * 50)
    with pytest.raises(IndexUnusable):
        new_index(tmp_path)


def test_addresses_have_one_spelling() -> None:
    assert clean("HTTP://Example.ORG:80#x") == "http://example.org/"
    assert clean("https://example.org:8443/a?b#c") == "https://example.org:8443/a?b"
    assert clean("http://[::1]:8080/") == "http://[::1]:8080/"
    for bad in ("ftp://x/", "http://", "/path", "http://x:99999/"):
        with pytest.raises(ValueError, match=r".+"):
            clean(bad)
