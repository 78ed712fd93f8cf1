"""The notebook site on a loopback address, and what tests need to crawl and read it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from jubal.tools.web_search.extractor import Extractor
from jubal.tools.web_search.index.crawler import Crawl, CrawlLimits
from jubal.tools.web_search.index.outcome import Outcome
from jubal.tools.web_search.index.store import Index
from jubal.web.fetch import SafeFetcher
from tests.tools.data.site import pages
from tests.web.servers import GOOD

ROBOTS = "User-agent: *\nDisallow: /private/\nAllow: /\n"


class Notebook:
    """files: path to body, may be changed. statuses: path to a status that is answered instead. asked: (path, status) of each."""

    def __init__(self) -> None:
        self.files = {path: text.encode() for path, text in pages().items()}
        self.robots: str | None = ROBOTS
        self.types: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.statuses: dict[str, list[int]] = {}
        self.agents: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.url = ""

    @property
    def place(self) -> str:
        return self.url.removeprefix("http://")

    def paths(self, status: int | None = None) -> list[str]:
        return [path for path, told in self.asked if status in (None, told)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = self._answer(request)
        self.agents.add(request.headers.get("user-agent", ""))
        self.asked.append((request.path, response.status))
        return response

    def _answer(self, request: web.Request) -> web.Response:
        path = request.path
        if self.statuses.get(path):
            return web.Response(status=self.statuses[path].pop(0), headers=self.headers.get(path))
        if path == "/robots.txt" and self.robots is not None:
            return web.Response(text=self.robots)
        body = self.files.get(path)
        if body is None:
            return web.Response(status=404)
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if request.headers.get("if-none-match") == etag:
            return web.Response(status=304)
        kind = self.types.get(path, "text/html; charset=utf-8")
        return web.Response(body=body, headers={"etag": etag, "content-type": kind, **self.headers.get(path, {})})


@asynccontextmanager
async def notebook(host: str = GOOD) -> AsyncIterator[Notebook]:
    one = Notebook()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    one.url = f"http://{host}:{runner.addresses[0][1]}"
    try:
        yield one
    finally:
        await runner.cleanup()


class Sleeps:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


async def crawl(
    index: Index, site: Notebook, start: str = "/", *, limits: CrawlLimits | None = None, sleeps: Sleeps | None = None,
    open_host: bool = True, stop_after: int | None = None,
) -> Outcome:  # fmt: skip
    """stop_after: pages after which it is interrupted, as by Ctrl-C."""
    seen = 0

    def progress(done: int, known: int, last: str) -> None:
        nonlocal seen
        seen += 1
        if stop_after is not None and seen >= stop_after:
            raise KeyboardInterrupt

    sleeps = sleeps or Sleeps()
    row = index.add_source(site.url + start, "site", "{}")
    fetcher = SafeFetcher([site.place] if open_host else [], user_agent="JubalBot/test", keep_alive_s=5)
    extractor = Extractor()
    try:
        limits = limits or CrawlLimits(delay_s=0)
        return await Crawl(index, row, limits, fetcher, extractor, progress, sleep=sleeps, clock=sleeps.clock).run()
    finally:
        await extractor.close()
        await fetcher.close()


def new_index(folder: Path) -> Index:
    return Index(folder / "index.db")
