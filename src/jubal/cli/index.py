"""`jubal index`: the search index of one's own, filled from sites, sitemaps and folders."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from jubal import config
from jubal.cli.common import (
    CommandError,
    ConfigOption,
    JsonOption,
    counted,
    make_home,
    print_json,
    print_table,
    printable,
    table,
    when,
)

if TYPE_CHECKING:
    from jubal.tools.web_search.index.crawler import CrawlLimits
    from jubal.tools.web_search.index.outcome import Outcome, Progress
    from jubal.tools.web_search.index.store import Index, Kind, Passage, SourceRow

app = typer.Typer(no_args_is_help=True, help="The search index: sites and folders that web_search looks into.")

LocationArgument = Annotated[str, typer.Argument(help="As `jubal index list` shows it.", metavar="LOCATION")]


@app.command("add")
def add(
    places: Annotated[
        list[str],
        typer.Argument(help="Sites (http://…, https://…, also a sitemap.xml), folders or files.", metavar="URL|PATH"),
    ],
    pages: Annotated[int, typer.Option("--pages", min=1, help="Pages of a site at most.")] = 1_000,
    depth: Annotated[int, typer.Option("--depth", min=0, help="Links from where a site begins at most.")] = 10,
    delay: Annotated[
        float, typer.Option("--delay", min=0, help="Seconds between two requests; robots.txt may want more.")
    ] = 0.1,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=16, help="Requests at a time.")] = 4,
    page_mb: Annotated[float, typer.Option("--page-mb", min=0.01, max=50, help="Largest page or file, MiB.")] = 5.0,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="The site may be on this machine or a private network.")
    ] = False,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Where a folder is published; its pages get addresses there.")
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Add sites and folders, and read them. What was interrupted goes on where it stopped; what is there is updated."""
    from jubal.tools.web_search.index.crawler import CrawlLimits

    settings = config.load(config_file)
    limits = CrawlLimits(
        pages=pages,
        depth=depth,
        page_bytes=int(page_mb * (1 << 20)),
        at_once=at_once,
        delay_s=delay,
        private=allow_private,
    )
    with _opened(settings, create=True) as index:
        wanted = [_wanted(index, place, limits, base_url) for place in places]
        _update(settings, index, wanted, as_json)


@app.command("update")
def update(
    locations: Annotated[
        list[str] | None, typer.Argument(help="As `jubal index list` shows them; all of them if none is given.")
    ] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Read what has changed, and drop what is gone."""
    settings = config.load(config_file)
    with _opened(settings) as index:
        rows = [_known(index, one) for one in locations] if locations else index.sources()
        _update(settings, index, [(row.location, row.kind, row.options) for row in rows], as_json)


@app.command("list")
def list_(as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """List what the index holds."""
    settings = config.load(config_file)
    if not _file(settings).exists():
        rows: list[SourceRow] = []
    else:
        with _opened(settings) as index:
            rows = index.sources()
    if as_json:
        print_json([_view(row) for row in rows])
        return
    print_table(
        table("location", "kind", "pages", "MB", "updated", right=("pages", "MB")),
        [
            (
                row.location,
                row.kind,
                f"{row.pages:,}",
                f"{row.bytes / 1e6:,.1f}",
                "interrupted: add it again to go on" if row.running else when(row.updated_us),
            )
            for row in rows
        ],
    )


@app.command("rm")
def rm(location: LocationArgument, as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Take a site or folder out of the index."""
    settings = config.load(config_file)
    with _opened(settings) as index:
        row = _known(index, location)
        pages = index.remove_source(row.id)
    if as_json:
        print_json({"location": row.location, "removed_pages": pages})
    else:
        print(f"Removed {row.location}, {counted(pages, 'page')}.")


@app.command("search")
def search(
    query: Annotated[list[str], typer.Argument(help="The words to look for.", metavar="QUERY")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="Results at most.")] = 5,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Search the index as the web_search tool does."""
    settings = config.load(config_file)
    with _opened(settings) as index:
        found = index.search(" ".join(query), count)
    if as_json:
        print_json([_plain(one) for one in found])
        return
    if not found:
        print("No results.")
    for number, one in enumerate(found, 1):
        print(printable(f"{number}. {one.title}\n   {one.url}\n   {' '.join(one.text.split())[:300]}"))


# --------------------------------------------------------------------------------------------------------- helpers


def _plain(passage: Passage) -> dict[str, object]:
    return {
        "url": passage.url,
        "title": passage.title,
        "text": passage.text,
        "published": passage.published.isoformat() if passage.published else None,
        "score": round(passage.score, 4),
    }


def _view(row: SourceRow) -> dict[str, object]:
    return {
        "location": row.location,
        "kind": row.kind,
        "pages": row.pages,
        "bytes": row.bytes,
        "updated_us": row.updated_us,
        "interrupted": bool(row.running),
        "options": msgspec.json.decode(row.options),
    }


def _file(settings: config.Settings) -> Path:
    from jubal.tools.web_search.make import index_file

    return index_file(settings)


@contextmanager
def _opened(settings: config.Settings, *, create: bool = False) -> Iterator[Index]:
    from jubal.tools.web_search.index.store import Index, IndexUnusable

    file = _file(settings)
    if create:
        make_home(settings)
    elif not file.exists():
        raise CommandError("the index is empty. Fill it with `jubal index add URL|PATH`.")
    try:
        index = Index(file)
    except IndexUnusable as error:
        raise CommandError(str(error)) from error
    try:
        yield index
    finally:
        index.close()


def _wanted(index: Index, place: str, limits: CrawlLimits, base_url: str | None) -> tuple[str, Kind, str]:
    """(location, kind, options) of what is to be added."""
    from jubal.tools.web_search.index import crawler, folder

    if "://" in place:
        try:
            return crawler.clean(place), "site", msgspec.json.encode(limits).decode()
        except ValueError as error:
            raise CommandError(f"{place}: {error}") from None
    path = Path(place).expanduser().absolute()
    if not path.exists():
        raise CommandError(f"{place}: there is no such file or folder. A site begins with http:// or https://.")
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise CommandError("--base-url: expected an address that begins with http:// or https://.")
    taken = {
        msgspec.json.decode(row.options)["name"]
        for row in index.sources()
        if row.kind == "folder" and row.location != str(path)
    }
    name = own = folder.name_of(path)
    number = 2
    while name in taken:
        name, number = f"{own}-{number}", number + 1
    options = folder.FolderOptions(name=name, base_url=base_url, file_bytes=limits.page_bytes)
    return str(path), "folder", msgspec.json.encode(options).decode()


def _known(index: Index, location: str) -> SourceRow:
    rows = index.sources()
    names = {location, location.rstrip("/"), location + "/", str(Path(location).expanduser().absolute())}
    found = next((row for row in rows if row.location in names), None)
    if found is None:
        raise CommandError(f"{location}: not in the index. `jubal index list` shows what is.")
    return found


def _update(settings: config.Settings, index: Index, wanted: list[tuple[str, Kind, str]], as_json: bool) -> None:
    """Reads each in turn; one that fails does not keep the others from being read."""
    told: list[dict[str, object]] = []
    failures: list[str] = []
    for location, kind, options in wanted:
        before = index.source(location)
        row = index.add_source(location, kind, options)
        try:
            with _progress(location) as progress:
                outcome = asyncio.run(_read(settings, index, row, progress))
        except KeyboardInterrupt:
            print("Interrupted. What was read is kept: the same command goes on from here.", file=sys.stderr)
            raise
        except _failed() as error:
            if before is None and index.page(row.id, location) is None:
                index.remove_source(row.id)
            failures.append(str(error))
            continue
        told.append(_told(location, outcome))
        if not as_json:
            _tell(location, outcome)
    if as_json:
        print_json(told)
    if failures:
        raise CommandError(" ".join(failures))


def _failed() -> type[Exception]:
    from jubal.tools.web_search.index.outcome import UpdateFailed

    return UpdateFailed


async def _read(settings: config.Settings, index: Index, row: SourceRow, progress: Progress) -> Outcome:
    """Raises `UpdateFailed`."""
    from urllib.parse import urlsplit

    from jubal.tools.web_search.extractor import Extractor
    from jubal.tools.web_search.index.crawler import Crawl, CrawlLimits
    from jubal.tools.web_search.index.folder import FolderOptions, FolderReader
    from jubal.tools.web_search.make import USER_AGENT
    from jubal.web.fetch import SafeFetcher

    extractor = Extractor(workers_max=2)
    try:
        if row.kind == "folder":
            options = msgspec.json.decode(row.options, type=FolderOptions)
            return await FolderReader(index, row, options, extractor, progress).run()
        limits = msgspec.json.decode(row.options, type=CrawlLimits)
        hosts = list(settings.private_hosts)
        if limits.private:
            hosts.append(urlsplit(row.location).netloc)
        try:
            fetcher = SafeFetcher(hosts, user_agent=USER_AGENT, keep_alive_s=10)
        except ValueError as error:
            raise config.ConfigError(f"allow_private_hosts: {error}") from None
        try:
            return await Crawl(index, row, limits, fetcher, extractor, progress).run()
        finally:
            await fetcher.close()
    finally:
        await extractor.close()


@contextmanager
def _progress(location: str) -> Iterator[Progress]:
    """A bar on a terminal; nothing where output goes elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(printable(location)[:60], total=None, last="")

        def show(done: int, known: int, last: str) -> None:
            bar.update(task, completed=done, total=known, last=printable(last)[-60:])

        yield show


def _told(location: str, outcome: Outcome) -> dict[str, object]:
    return {
        "location": location,
        "new": outcome.new,
        "changed": outcome.changed,
        "unchanged": outcome.unchanged,
        "gone": outcome.gone,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "complete": outcome.complete,
        "resumed": outcome.resumed,
        "problems": outcome.problems,
    }


def _tell(location: str, outcome: Outcome) -> None:
    counts = (
        (outcome.new, "new"), (outcome.changed, "changed"), (outcome.unchanged, "unchanged"), (outcome.gone, "gone"),
        (outcome.skipped, "skipped"), (outcome.failed, "failed"),
    )  # fmt: skip
    said = ", ".join(f"{number:,} {what}" for number, what in counts if number) or "nothing found"
    print(printable(f"{location}: {said}.") + ("" if outcome.complete else " There is more: raise --pages to read it."))
    for problem in outcome.problems[:10]:
        print(printable(f"  {problem}"), file=sys.stderr)
    if len(outcome.problems) > 10:
        print(f"  … {len(outcome.problems) - 10:,} more", file=sys.stderr)
