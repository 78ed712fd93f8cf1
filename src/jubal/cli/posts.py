"""`jubal posts`: the local archive that the tool x_search searches."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    tell,
)

if TYPE_CHECKING:
    from jubal.tools.x_search.archive import Archive
    from jubal.tools.x_search.importing import Progress, Report
    from jubal.tools.x_search.posts import Post

app = typer.Typer(no_args_is_help=True, help="Posts of X: the local archive that x_search searches.")

LINES_MAX = 10
NAMES = {"reading": "Reading", "embedding": "Preparing semantic search"}


@app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="X archives (zip, folder or tweets.js), answers of the X API v2, or JSON lines with id, author, text.",
        ),
    ],
    author: Annotated[
        str | None, typer.Option("--author", help="Whose posts a tweets.js without account.js holds.")
    ] = None,
    no_vectors: Annotated[
        bool, typer.Option("--no-vectors", help="Without preparing semantic search; the server does it later.")
    ] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Import posts. Those that are there are renewed, so that a file may be imported again."""
    with _archive(config_file) as store:
        reports = [(file, _import(store, file, author, no_vectors)) for file in files]
    if as_json:
        print_json([{"file": str(file), **_view_report(report)} for file, report in reports])
    else:
        for file, report in reports:
            _print_report(file, report)
    if all(report.added + report.updated + report.unchanged == 0 for _, report in reports):
        raise CommandError("there was no post in what was to be imported.")


@app.command("search")
def search(
    query: Annotated[
        str, typer.Argument(help='Words, "phrases", from:name, #tag, since:2024-01-01, min_faves:10, OR, -word …')
    ],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many posts.")] = 10,
    top: Annotated[bool, typer.Option("--top", help="Most liked first instead of newest first.")] = False,
    semantic: Annotated[bool, typer.Option("--semantic", help="By meaning instead of by words.")] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
) -> None:
    """Search the archive, as the model would."""
    from jubal.tools.x_search import archive
    from jubal.tools.x_search.posts import Scope

    with _archive(config_file) as store, store.reading() as connection:
        if semantic:
            posts = _nearest(connection, query, limit)
        else:
            posts = archive.keyword(connection, query, Scope(), limit, top=top, now_s=int(time.time()))
    if as_json:
        print_json([_view(post) for post in posts])
    elif posts:
        _print_posts(posts)
    else:
        print("No post fits.")


@app.command("stats")
def stats(as_json: JsonOption = False, config_file: ConfigOption = None) -> None:
    """Tell what the archive holds."""
    from jubal.tools.x_search import archive

    with _archive(config_file) as store, store.reading() as connection:
        found = archive.stats(connection, store.file)
    view = {
        "posts": found.posts,
        "authors": found.authors,
        "semantic": found.embedded,
        "pending": found.pending,
        "oldest": _time(found.oldest_ms),
        "newest": _time(found.newest_ms),
        "bytes": found.bytes,
        "file": str(store.file),
    }
    if as_json:
        print_json(view)
    else:
        print_table(table("posts", "authors", "for semantic search", "oldest", "newest", "MB", right=("posts", "authors")), [(
            f"{found.posts:,}", f"{found.authors:,}", f"{found.embedded:,}", view["oldest"] or "", view["newest"] or "",
            f"{found.bytes / 1e6:,.1f}",
        )])  # type: ignore[list-item]  # fmt: skip


@app.command("clear")
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False, config_file: ConfigOption = None
) -> None:
    """Remove all posts from the archive."""
    from jubal.tools.x_search import archive

    with _archive(config_file) as store, store.reading() as connection:
        posts = archive.stats(connection, store.file).posts
        if not yes:
            if not sys.stdin.isatty():
                raise CommandError(f"this would remove {counted(posts, 'post')}. Say --yes if that is meant.")
            typer.confirm(f"Remove {counted(posts, 'post')} from {store.file}?", abort=True)
        archive.clear(connection)
    print(f"Removed {counted(posts, 'post')}.")


@contextmanager
def _archive(config_file: Path | None) -> Iterator[Archive]:
    from jubal.tools.x_search.archive import FILE_NAME, Archive
    from jubal.tools.x_search.posts import XSearchError

    settings = config.load(config_file)
    make_home(settings)
    store = Archive(settings.home / FILE_NAME)
    try:
        yield store
    except XSearchError as error:
        raise CommandError(str(error)) from error
    finally:
        store.close()


# -------------------------------------------------------------------------------------------------------- importing


def _import(store: Archive, file: Path, author: str | None, no_vectors: bool) -> Report:
    """Ctrl-C ends it after what is being written; what is there stays, and the next import goes on from there."""
    from jubal.engines.wordllama_engine import TextVectors
    from jubal.tools.x_search.importing import Stopped, import_posts
    from jubal.tools.x_search.posts import HANDLE

    if author is not None and not HANDLE.fullmatch(author := author.removeprefix("@")):
        raise CommandError(f"--author: expected a handle such as xai, got {author!r}.")
    stop = threading.Event()
    with _stopped_by_ctrl_c(stop), _shown(file) as progress:
        try:
            return import_posts(
                store, file, author=author, embed=None if no_vectors else TextVectors(), progress=progress, stop=stop
            )
        except Stopped:
            tell(f"jubal: importing {file} was interrupted; run again to go on.")
            raise typer.Exit(130) from None


@contextmanager
def _stopped_by_ctrl_c(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(file: Path) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield _lines(file)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{NAMES[what]} {escape(file.name) if what == 'reading' else ''}".strip())
            bar.update(tasks[what], completed=done, total=total)

        yield show


def _lines(file: Path) -> Progress:
    """A line now and then, for logs; none for what is done at once."""
    shown: dict[str, int] = {}
    began = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        step = done * LINES_MAX // total if total else LINES_MAX
        if step > shown.get(what, 0) and time.monotonic() - began > 1:
            shown[what] = step
            tell(f"{NAMES[what]} {file.name}: {step * 100 // LINES_MAX} %")

    return show


def _view_report(report: Report) -> dict[str, Any]:
    return {
        "added": report.added,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "embedded": report.embedded,
        "bad": report.bad,
        "first_bad": [{"file": one.file, "line": one.line, "reason": one.reason} for one in report.first_bad],
    }


def _print_report(file: Path, report: Report) -> None:
    print(f"{file}: {counted(report.added, 'post')} added, {report.updated:,} renewed, {report.unchanged:,} unchanged.")
    if report.bad:
        print(f"{counted(report.bad, 'value')} could not be used:", file=sys.stderr)
        for one in report.first_bad:
            print(f"  {one.file} line {one.line}: {printable(one.reason)}", file=sys.stderr)
        if report.bad > len(report.first_bad):
            print(f"  and {report.bad - len(report.first_bad):,} more", file=sys.stderr)


# --------------------------------------------------------------------------------------------------------- searching


def _nearest(connection: Any, query: str, limit: int) -> list[Post]:
    from jubal.engines.wordllama_engine import TextVectors
    from jubal.tools.x_search import archive, vectors
    from jubal.tools.x_search.posts import Scope

    embed = TextVectors()
    vectors.embed_pending(connection, embed)
    best = vectors.Sketches().search(connection, embed([query])[0], Scope(), limit, -1.0)
    return archive.posts_of(connection, [key for key, _ in best])


def _time(ms: int | None) -> str | None:
    from jubal.tools.x_search.posts import stamp

    return None if ms is None else f"{stamp(ms):%Y-%m-%dT%H:%M:%SZ}"


def _view(post: Post) -> dict[str, Any]:
    return {
        "id": post.id,
        "author": post.author,
        "text": post.text,
        "created_at": _time(post.created_ms),
        "url": post.url,
        "likes": post.likes,
        "reposts": post.reposts,
        "replies": post.replies,
        "views": post.views,
        "lang": post.lang,
        "reply_to": post.reply_to,
    }


def _print_posts(posts: list[Post]) -> None:
    for post in posts:
        head = " | ".join(
            part for part in (f"@{post.author}", _time(post.created_ms), f"{post.likes or 0:,} likes", post.url) if part
        )
        print(printable(f"{head}\n{post.text}\n"))
