"""Pages from a folder: HTML, Markdown, plain text and PDF files. Only what has changed is read again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from jubal.tools.web_search.domains import INDEX_SCHEME
from jubal.tools.web_search.extractor import Extractor, Unreadable
from jubal.tools.web_search.index.outcome import Outcome, Progress, UpdateFailed
from jubal.tools.web_search.index.store import Index, NewPage, PageRow, SourceRow

TYPES: Final = {
    ".html": "text/html", ".htm": "text/html", ".xhtml": "application/xhtml+xml", ".md": "text/markdown",
    ".markdown": "text/markdown", ".txt": "text/plain", ".rst": "text/plain",
    ".pdf": "application/pdf",
}  # fmt: skip
FILE_BYTES_MAX: Final = 5 << 20


class FolderOptions(msgspec.Struct, frozen=True, kw_only=True):
    """base_url: where the folder is published, such as https://docs.example.org/; None: nowhere. name: stands for it then."""

    name: str
    base_url: str | None = None
    file_bytes: int = FILE_BYTES_MAX

    @property
    def prefix(self) -> str:
        return f"{self.base_url.rstrip('/')}/" if self.base_url else f"{INDEX_SCHEME}{self.name}/"

    @property
    def reading_prefix(self) -> str:
        """The same as an address that relative links can be joined to."""
        return self.prefix if self.base_url else f"http://{self.name}.invalid/"


def name_of(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.stem.lower()).strip("-") or "folder"


class FolderReader:
    """One update of one folder, or of one file."""

    def __init__(
        self, index: Index, source: SourceRow, options: FolderOptions, extractor: Extractor, progress: Progress
    ) -> None:
        self._index = index
        self._source = source
        self._options = options
        self._extractor = extractor
        self._progress = progress
        self._root = Path(source.location)
        self._run = 0
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Raises `UpdateFailed` where the folder can't be read. A cancelled run can be gone on with: what is done is skipped."""
        files = await asyncio.to_thread(lambda: list(files_of(self._root)))
        if not files:
            raise UpdateFailed(f"{self._root}: no file here ends in {', '.join(TYPES)}.")
        self._run, self.outcome.resumed = self._index.begin_run(self._source.id, [])
        places = asyncio.Semaphore(self._extractor.workers_max)

        async def one(file: Path) -> None:
            async with places:
                await self._file(file)
                self._progress(self.outcome.seen, len(files), str(file))

        async with asyncio.TaskGroup() as group:
            for file in files:
                group.create_task(one(file))
        self.outcome.gone += self._index.end_run(self._source.id, drop_unseen=True)
        return self.outcome

    async def _file(self, file: Path) -> None:
        relative = quote(str(file.relative_to(self._root)) if file != self._root else file.name)
        url = self._options.prefix + relative
        before = self._index.page(self._source.id, url)
        try:
            stat = await asyncio.to_thread(file.stat)
            state = f"{stat.st_mtime_ns}:{stat.st_size}"
            if before is not None and before.etag == state:
                self._unchanged(before)
                return
            if stat.st_size > self._options.file_bytes:
                raise Unreadable(f"it is larger than {self._options.file_bytes:,} bytes")
            body = await asyncio.to_thread(file.read_bytes)
            digest = hashlib.sha256(body).hexdigest()
            if before is not None and before.hash == digest:
                self._unchanged(before, state)
                return
            reading_url = self._options.reading_prefix + relative
            reading = await self._extractor.read(body, reading_url, TYPES[file.suffix.lower()], "text")
        except (OSError, Unreadable) as error:
            if before is not None:
                self._index.keep_unchanged(before.id, self._run)
            self.outcome.complain(f"{file}: {error}")
            return
        if not reading.text or reading.kind == "binary":
            self.outcome.skipped += 1
            return
        links = tuple(
            self._options.prefix + link.url.removeprefix(self._options.reading_prefix)
            if link.url.startswith(self._options.reading_prefix)
            else link.url
            for link in reading.links
        )
        page = NewPage(
            url, reading.title or file.name, reading.text, digest, len(body), state, None, reading.published, links
        )
        self._index.keep(self._source.id, page, self._run)
        if before is None:
            self.outcome.new += 1
        else:
            self.outcome.changed += 1

    def _unchanged(self, before: PageRow, state: str | None = None) -> None:
        self._index.keep_unchanged(before.id, self._run, etag=state)
        self.outcome.unchanged += 1


def files_of(root: Path) -> Iterator[Path]:
    """In order; nothing hidden, and nothing that a link leads to outside of `root`. Raises `UpdateFailed`."""
    if not root.exists():
        raise UpdateFailed(f"{root}: there is no such file or folder.")
    if root.is_file():
        if root.suffix.lower() in TYPES:
            yield root
        return
    inside = root.resolve()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if name.startswith(".") or file.suffix.lower() not in TYPES or not file.is_file():
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(inside):
                continue
            yield file
