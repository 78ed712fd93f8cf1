"""PDF files: read like pages, and never at others' cost, however hostile they are."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from jubal.core.server_tools import WebSearch
from jubal.tools.base import ToolFailed
from jubal.tools.web_search import pages
from jubal.tools.web_search.extractor import Extractor, Unreadable
from jubal.tools.web_search.index.folder import FolderOptions, FolderReader
from jubal.tools.web_search.index.store import Index
from tests.server import jubal
from tests.tools import pdf_files
from tests.tools.test_web_search import ARTICLE, HTML, Web
from tests.web.servers import gives, site

PDF = "application/pdf"
WALRUS = pdf_files.document(
    [["The walrus is a large marine mammal.", "It has tusks."], ["Seals are smaller."], []],
    title="Of walruses",
    links=["https://a.test/seals#top", "ftp://a.test/no", "https://a.test/seals"],
)
MEMORY_BYTES_MAX = 400 << 20


@pytest.fixture
async def extractor():
    made = Extractor()
    yield made
    await made.close()


async def test_text_title_date_and_links(extractor: Extractor) -> None:
    shown = await extractor.read(WALRUS, "http://a.test/w", PDF, "markdown")
    assert shown.text == (
        "## Page 1\n\nThe walrus is a large marine mammal.\nIt has tusks.\n\n## Page 2\n\nSeals are smaller."
    )
    assert (shown.kind, shown.title, shown.published) == ("text", "Of walruses", "2024-02-29")
    assert [link.url for link in shown.links] == ["https://a.test/seals"]
    plain = await extractor.read(pdf_files.document([["A line"], ["Another"]]), "", PDF, "text")
    assert (plain.title, plain.text, plain.published) == ("A line", "A line\n\nAnother", None)


@pytest.mark.parametrize("name", pdf_files.HOSTILE)
async def test_a_hostile_file_costs_no_worker(extractor: Extractor, name: str) -> None:
    await extractor.read(WALRUS, "", PDF, "text")
    [worker] = [process.pid for process in extractor._idle]
    try:
        reading = await extractor.read(pdf_files.HOSTILE[name], "", PDF, "text")
        assert reading.text
    except Unreadable as error:
        assert str(error)
    assert psutil.Process(worker).memory_info().rss < MEMORY_BYTES_MAX
    assert "walrus" in (await extractor.read(WALRUS, "", PDF, "text")).text
    assert [process.pid for process in extractor._idle] == [worker], "it was not killed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("noise", "it is broken"),
        ("no pages", "it has no pages"),
        ("inflates", "1 of its 1 pages are broken or too large"),
        ("unknown cipher", "it is broken"),
    ],
)
async def test_why_a_file_can_not_be_read(extractor: Extractor, name: str, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        await extractor.read(pdf_files.HOSTILE[name], "", PDF, "text")


async def test_pictures_of_pages_have_no_text(extractor: Extractor) -> None:
    with pytest.raises(Unreadable, match="no text is in its 2 pages"):
        await extractor.read(pdf_files.document([[], []]), "", PDF, "text")


async def test_a_broken_page_among_good_ones_is_told(extractor: Extractor) -> None:
    good, bad = (
        pdf_files.stream(pdf_files.shows(["good"])),
        pdf_files.stream(pdf_files.bomb(40), b"/Filter /FlateDecode"),
    )
    reading = await extractor.read(pdf_files.of_streams([good, bad, good]), "", PDF, "text")
    assert reading.text == "good\n\ngood\n\n(1 pages could not be read.)"


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
async def test_only_files_that_need_a_password_are_refused(extractor: Extractor, algorithm: str) -> None:
    readable = pdf_files.encrypted(WALRUS, "", algorithm=algorithm)
    assert "walrus" in (await extractor.read(readable, "", PDF, "text")).text
    with pytest.raises(Unreadable, match="protected by a password"):
        await extractor.read(pdf_files.encrypted(WALRUS, "secret", algorithm=algorithm), "", PDF, "text")


async def test_what_was_read_in_time_is_given() -> None:
    """The pages behind the first would take hours."""
    extractor = Extractor(pdf_s=4)
    try:
        reading = await extractor.read(pdf_files.slow(3000), "", PDF, "text")
    finally:
        await extractor.close()
    assert reading.text.startswith("quick")
    assert reading.text.rstrip().endswith("of 3,001 pages were read.)")


async def test_other_pages_are_read_while_files_take_long() -> None:
    extractor = Extractor(pdf_s=3600)
    slow = [asyncio.ensure_future(extractor.read(pdf_files.slow(3000), "", PDF, "text")) for _ in range(3)]
    try:
        for _ in range(3):
            reading = await extractor.read(ARTICLE.encode(), "http://a.test/", HTML, "markdown")
            assert "walrus" in reading.text
        assert not any(task.done() for task in slow)
    finally:
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await extractor.close()


# ---------------------------------------------------------------------------------------------- as tools


async def test_a_pdf_is_opened_and_searched_like_a_page() -> None:
    many = pdf_files.document(
        [[f"Line {line} of page {page}: walrus {page * line}" for line in range(40)] for page in range(20)]
    )
    routes = {"paper": gives(WALRUS, content_type=PDF), "many": gives(many, content_type="application/octet-stream")}
    async with site(**routes) as one, Web(one) as here:
        opened = await here.call("open_page", url=one.url + "/paper")
        [found] = opened.found
        assert found.source.title == "Of walruses"
        assert "## Page 2\n\nSeals are smaller." in found.text
        assert "(1) https://a.test/seals" in found.text
        first = (await here.call("open_page", url=one.url + "/many")).found[0].text
        assert "Ask for the next with `page`" in first
        [place] = (await here.call("open_page_with_find", url=one.url + "/many", pattern="of page 17: walrus 17")).found
        assert "Line 1 of page 17: walrus 17" in place.text


async def test_a_pdf_may_be_larger_than_a_page_but_not_endless() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": PDF})
        await response.prepare(request)
        await response.write(WALRUS)
        while True:
            await response.write(bytes(1 << 20))

    large = pdf_files.padded(pages.PAGE_BYTES_MAX)
    routes = {"paper": gives(large, content_type=PDF), "large": gives(large, content_type=HTML), "endless": endless}
    async with site(**routes) as one, Web(one) as here:
        assert "walrus" in (await here.call("open_page", url=one.url + "/paper")).found[0].text
        for path, limit in (("/large", "8,388,608"), ("/endless", "33,554,432")):
            with pytest.raises(ToolFailed, match=f"larger than {limit} bytes"):
                await here.call("open_page", url=one.url + path)


async def test_what_only_says_that_it_is_a_pdf() -> None:
    routes = {
        "page": gives(ARTICLE.encode(), content_type=PDF),
        "about": gives(b"<!doctype html><p>Files begin with %PDF-1.7, and this page does not.</p>", content_type=HTML),
    }
    async with site(**routes) as one, Web(one) as here:
        with pytest.raises(ToolFailed, match="of type application/pdf, which can't be read as text"):
            await here.call("open_page", url=one.url + "/page")
        assert "Files begin with" in (await here.call("open_page", url=one.url + "/about")).found[0].text


async def test_domains_hold_for_the_links_of_a_pdf() -> None:
    async with site(w=gives(WALRUS, content_type=PDF)) as one, Web(one) as here:
        opened = await here.call("open_page", WebSearch(allowed_domains=("127.0.0.2",)), url=one.url + "/w")
        assert "a.test" not in opened.found[0].text


def test_a_folder_of_pdfs_is_indexed(tmp_path: Path) -> None:
    folder, home = tmp_path / "papers", tmp_path / "home"
    folder.mkdir()
    (folder / "walrus.pdf").write_bytes(WALRUS)
    (folder / "LOCKED.PDF").write_bytes(pdf_files.encrypted(WALRUS, "secret"))
    (folder / "notes.md").write_text("# Otters\n\nOtters hold hands while they sleep.")
    done = jubal("index", "add", str(folder), "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert '"failed": 1' in done.stdout
    assert "protected by a password" in done.stdout + done.stderr
    found = jubal("index", "search", "tusks of the walrus", "--json", home=home)
    assert "index://papers/walrus.pdf" in found.stdout
    assert "Of walruses" in found.stdout


async def test_a_pdf_that_is_broken_now_keeps_what_was_read_before(tmp_path: Path, extractor: Extractor) -> None:
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "w.pdf").write_bytes(WALRUS)
    with contextlib.closing(Index(tmp_path / "index.db")) as index:
        source = index.add_source(str(folder), "folder", "{}")
        options = FolderOptions(name="w")
        assert (await FolderReader(index, source, options, extractor, lambda *_: None).run()).new == 1
        (folder / "w.pdf").write_bytes(pdf_files.HOSTILE["inflates"])
        outcome = await FolderReader(index, source, options, extractor, lambda *_: None).run()
        assert (outcome.failed, outcome.gone) == (1, 0)
        assert index.page(source.id, "index://w/w.pdf") is not None
