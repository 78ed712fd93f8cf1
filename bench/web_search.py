"""The web tools without the web: crawling, searching and reading a folder of HTML that is served on loopback.

    python bench/web_search.py FOLDER [WORDS …]

Figures: pages a second of a crawl and of an unchanged one, the index's size, search p50 and p95, reading one page as text and as
Markdown (median). Questions are the titles of pages, or WORDS.
"""

from __future__ import annotations

import asyncio
import functools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

from jubal.tools.web_search.extractor import Extractor
from jubal.tools.web_search.index.crawler import Crawl, CrawlLimits
from jubal.tools.web_search.index.store import Index
from jubal.web.fetch import SafeFetcher

PAGES_MAX = 500
QUESTIONS_MAX = 40
ROUNDS = 5


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address. Its files are named in a sitemap, so that all of them are met."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def files_of(folder: Path) -> list[Path]:
    """A spread of its pages that have some text."""
    found = sorted(file for file in folder.rglob("*.html") if file.stat().st_size > 4_000)
    return found[:: max(1, len(found) // PAGES_MAX)][:PAGES_MAX]


async def crawl(index: Index, start: str) -> tuple[float, int]:
    """(seconds, pages that are there)."""
    row = index.add_source(start, "site", "{}")
    fetcher = SafeFetcher([start.split("/")[2]], keep_alive_s=10)
    extractor = Extractor(workers_max=os.cpu_count() or 1)
    began = time.perf_counter()
    limits = CrawlLimits(pages=PAGES_MAX + 1, depth=0, delay_s=0, at_once=8)
    outcome = await Crawl(index, row, limits, fetcher, extractor, lambda *told: None).run()
    seconds = time.perf_counter() - began
    await extractor.close()
    await fetcher.close()
    return seconds, outcome.new + outcome.unchanged


async def reading_ms(files: list[Path]) -> dict[str, float]:
    extractor = Extractor(workers_max=1)
    figures = {}
    for style in ("text", "markdown"):
        await extractor.read(files[0].read_bytes(), "http://127.0.0.1/", "text/html", style)  # type: ignore[arg-type]
        took = []
        for file in files[:: max(1, len(files) // 50)]:
            began = time.perf_counter()
            await extractor.read(file.read_bytes(), "http://127.0.0.1/", "text/html", style)  # type: ignore[arg-type]
            took.append((time.perf_counter() - began) * 1_000)
        figures[style] = statistics.median(took)
    await extractor.close()
    return figures


def search_ms(index: Index, questions: list[str]) -> tuple[float, float]:
    took = []
    for question in questions * ROUNDS:
        began = time.perf_counter()
        index.search(question, 6)
        took.append((time.perf_counter() - began) * 1_000)
    took.sort()
    return took[len(took) // 2], took[int(len(took) * 0.95)]


def measure(folder: Path, questions: list[str]) -> dict[str, float]:
    files = files_of(folder)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as home, served(folder) as url:
        sitemap = folder / "jubal-bench-sitemap.xml"
        places = "".join(f"<url><loc>{url}/{quote(str(file.relative_to(folder)))}</loc></url>" for file in files)
        sitemap.write_text(f"<urlset>{places}</urlset>")
        try:
            index = Index(Path(home) / "index.db")
            seconds, pages = asyncio.run(crawl(index, f"{url}/{sitemap.name}"))
            figures |= {"pages": pages, "crawl_pages_per_s": pages / seconds}
            seconds, pages = asyncio.run(crawl(index, f"{url}/{sitemap.name}"))
            figures["unchanged_pages_per_s"] = pages / seconds
        finally:
            sitemap.unlink()
        figures["page_bytes_mb"] = index.sources()[0].bytes / 1e6
        words = questions or [
            hit.title for word in ("the", "a", "type", "use") for hit in index.search(word, QUESTIONS_MAX // 4)
        ]
        figures["search_p50_ms"], figures["search_p95_ms"] = search_ms(index, words)
        index.close()  # what was in the write-ahead log is in the file now
        figures["index_mb"] = index.file.stat().st_size / 1e6
    read = asyncio.run(reading_ms(files))
    return figures | {f"read_{style}_ms": value for style, value in read.items()}


if __name__ == "__main__":
    for name, value in measure(Path(sys.argv[1]), sys.argv[2:]).items():
        print(f"{name:24} {value:10.1f}")
