"""Posts out of files, as a stream: X archives (folder, zip, `tweets.js`), answers of the X API v2, and plain JSON lines.

A value that can't be used is told with its line and does not end the reading. Memory is bounded by the longest value.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, TypeAlias

import msgspec

from jubal.tools.x_search.posts import HANDLE, Author, Post, XSearchError
from jubal.tools.x_search.records import Unfit, items_of

CHUNK: Final = 1 << 18
VALUE_BYTES_MAX: Final = 64 << 20
ARCHIVE_FILE: Final = re.compile(r"(?:tweets?|tweets?-part\d+)\.js")
ACCOUNT_FILE: Final = "account.js"
ACCOUNT_BYTES_MAX: Final = 1 << 20
LINES_SUFFIXES: Final = (".jsonl", ".ndjson")
HEAD: Final = 4_096
"""Bytes within which an array of an X archive begins."""
BOM: Final = b"\xef\xbb\xbf"
SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Bad:
    """Something that is no post. line: where it begins, from 1."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Position:
    """Bytes of all files that were read so far."""

    bytes: int


Read: TypeAlias = Post | Author | Bad | Position


@dataclass(frozen=True, slots=True)
class Part:
    """One file with posts. member: its name within the zip file `path`. owner: of an X archive, whose posts do not say it."""

    path: Path
    member: str | None
    size: int
    owner: Author | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.member is None else f"{self.path.name}/{self.member}"

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        if self.member is None:
            with self.path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(self.path) as whole, whole.open(self.member) as file:
                yield file


def parts_of(path: Path, author: str | None = None) -> list[Part]:
    """The files with posts that a path stands for. author: handle of the owner of an X archive that has no `account.js`.

    Raises `XSearchError` where there are none.
    """
    owner = Author(author) if author else None
    try:
        if path.is_dir():
            return _parts_of_folder(path, owner)
        if zipfile.is_zipfile(path):
            return _parts_of_zip(path, owner)
        size = path.stat().st_size
    except FileNotFoundError:
        raise XSearchError(f"{path}: there is no such file or folder.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise XSearchError(f"{path}: can't be read: {error}") from error
    beside = path.with_name(ACCOUNT_FILE)
    if owner is None and path.suffix == ".js" and beside.is_file():
        owner = _owner(beside.read_bytes()[:ACCOUNT_BYTES_MAX])
    return [Part(path, None, size, owner)]


def _parts_of_folder(folder: Path, owner: Author | None) -> list[Part]:
    places = [place for place in (folder / "data", folder) if place.is_dir()]
    for place in places:
        files = [file for file in place.iterdir() if ARCHIVE_FILE.fullmatch(file.name)]
        account = place / ACCOUNT_FILE
        if files:
            if owner is None and account.is_file():
                owner = _owner(account.read_bytes()[:ACCOUNT_BYTES_MAX])
            return [
                Part(file, None, file.stat().st_size, owner) for file in sorted(files, key=lambda one: _order(one.name))
            ]
    raise XSearchError(f"{folder}: no posts here. Expected the folder of an X archive, with data/tweets.js.")


def _parts_of_zip(path: Path, owner: Author | None) -> list[Part]:
    with zipfile.ZipFile(path) as whole:
        members = {one.filename: one.file_size for one in whole.infolist()}
        names = sorted((name for name in members if ARCHIVE_FILE.fullmatch(PurePosixPath(name).name)), key=_order)
        if not names:
            raise XSearchError(f"{path}: no posts here. Expected an X archive, with data/tweets.js.")
        account = str(PurePosixPath(names[0]).with_name(ACCOUNT_FILE))
        if owner is None and account in members:
            with whole.open(account) as file:
                owner = _owner(file.read(ACCOUNT_BYTES_MAX))
    return [Part(path, name, members[name], owner) for name in names]


def _order(name: str) -> tuple[str, int]:
    number = re.search(r"-part(\d+)\.js$", name)
    return (str(PurePosixPath(name).parent), int(number[1]) if number else 0)


def _owner(data: bytes) -> Author | None:
    """Of `account.js`: `window.YTD.account.part0 = [{"account": {…}}]`."""
    try:
        account = msgspec.json.decode(data[data.index(b"[") :].rstrip(b" \t\r\n;"))[0]["account"]
        handle, name = account["username"], account.get("accountDisplayName")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(handle, str) or not HANDLE.fullmatch(handle):
        return None
    return Author(handle, name if isinstance(name, str) else "")


# --------------------------------------------------------------------------------------------------- values of a file


def read(part: Part) -> Iterator[Read]:
    """The posts of one file with their authors; a `Position` now and then. Raises `XSearchError` where it can't be read on."""
    try:
        with part.open() as file:
            for value in _values(file, part.name):
                if isinstance(value, Position):
                    yield value
                    continue
                yield from _of_value(part, *value)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise XSearchError(f"{part.path}: can't be read: {error}") from error
    yield Position(part.size)


def _of_value(part: Part, line: int, data: bytes | str) -> Iterator[Read]:
    """data: the JSON text of the value, or why there is none."""
    if isinstance(data, str):
        yield Bad(part.name, line, data)
        return
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        yield Bad(part.name, line, f"not valid JSON: {error}")
        return
    for item in items_of(value, part.owner):
        yield Bad(part.name, line, item.reason) if isinstance(item, Unfit) else item


_Value: TypeAlias = "tuple[int, bytes | str]"


def _values(file: IO[bytes], name: str) -> Iterator[_Value | Position]:
    """The values of the file with their lines: those of its one array, of its lines, or all that stand one after another."""
    window = _Window(file)
    window.skip(SPACE + BOM)
    start = window.peek(64)
    if start.startswith((b"window.", b"YTD.", b"var ", b"const ")) and not window.seek_past(b"="):
        yield window.line, "expected `window.YTD.… = [`"
        return
    window.skip(SPACE)
    if window.peek(1) == b"[":
        window.take(1)
        yield from _elements(window, b"]")
    elif name.endswith(LINES_SUFFIXES) or _is_lines(window):
        yield from _lines(window)
    else:
        yield from _elements(window, b"")


def _is_lines(window: _Window) -> bool:
    """Whether the first line is a value of its own."""
    line, ended = window.peek_line(1 << 20)
    if not ended and len(line) == 1 << 20:
        return True
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # A file of lines may have a bad one at its beginning; a value over several lines begins with a bracket alone.
        return line.strip() not in (b"{", b"") and line.strip()[-1:] == b"}"
    return True


def _lines(window: _Window) -> Iterator[_Value | Position]:
    while True:
        number = window.line
        line = window.take_line(VALUE_BYTES_MAX)
        if line is None:
            return
        if len(line) > VALUE_BYTES_MAX:
            yield number, f"longer than {VALUE_BYTES_MAX >> 20} MiB"
        elif line.strip():
            yield number, line
        if window.moved():
            yield Position(window.position)


def _elements(window: _Window, end: bytes) -> Iterator[_Value | Position]:
    while True:
        window.skip(SPACE + b",")
        start = window.peek(1)
        if not start or start == end:
            if end and not start:
                yield window.line, "the file ends in the middle: it was cut off"
            return
        number = window.line
        value = window.take_value()
        if value is None:
            yield number, "the file ends in the middle of a value, or has one that is too long"
            return
        yield number, value
        if window.moved():
            yield Position(window.position)


_MARK: Final = re.compile(rb'["{}\[\]]')
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR_END: Final = re.compile(rb"[\s,\]}]")


class _Window:
    """A part of the file in memory, which moves on. line: of the next byte, from 1. position: its offset."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self._ended = False
        self.line = 1
        self.position = 0
        self._told = 0

    def moved(self) -> bool:
        """Whether it went on by a chunk since this was last so."""
        if self.position - self._told < CHUNK:
            return False
        self._told = self.position
        return True

    def _fill(self, least: int = 1) -> bool:
        """Reads at least so many bytes more; False at the end of the file."""
        if self._ended:
            return False
        some = self._file.read(max(CHUNK, least))
        self._ended = not some
        self._data = self._data[self._at :] + some
        self._at = 0
        return bool(some)

    def peek(self, count: int) -> bytes:
        while len(self._data) - self._at < count and self._fill():
            pass
        return self._data[self._at : self._at + count]

    def take(self, count: int) -> bytes:
        """The next bytes, which are in memory."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        self.line += taken.count(b"\n")
        self.position += len(taken)
        return taken

    def skip(self, chars: bytes) -> None:
        while self.peek(1):
            rest = self._data[self._at : self._at + CHUNK]
            left = len(rest.lstrip(chars))
            self.take(len(rest) - left)
            if left:
                return

    def seek_past(self, mark: bytes) -> bool:
        """Beyond the mark, which must come soon."""
        found = self.peek(HEAD).find(mark)
        self.take(max(0, found + len(mark)))
        return found >= 0

    def peek_line(self, most: int) -> tuple[bytes, bool]:
        """The next line, or `most` bytes of it, and whether its end was seen."""
        while (end := self._data.find(b"\n", self._at)) < 0 and len(self._data) - self._at < most and self._fill():
            pass
        return self._data[self._at : end if end >= 0 else self._at + most][:most], end >= 0

    def take_line(self, most: int) -> bytes | None:
        """The next line, or None at the end. Of a longer one more than `most` bytes are returned, and the rest is passed over."""
        searched = 0
        while (end := self._data.find(b"\n", self._at + searched)) < 0:
            searched = len(self._data) - self._at
            if searched > most:
                line = self.take(searched)
                while (end := self._data.find(b"\n", self._at)) < 0:
                    self.take(len(self._data) - self._at)
                    if not self._fill():
                        return line
                self.take(end + 1 - self._at)
                return line
            if not self._fill(searched):
                return self.take(searched) or None
        return self.take(end + 1 - self._at)

    def take_value(self) -> bytes | None:
        """The next JSON value, found by its brackets alone; None where it does not end, or not within bounds."""
        while True:
            end = self._value_end()
            if end is not None:
                return self.take(end - self._at)
            size = len(self._data) - self._at
            if size > VALUE_BYTES_MAX or not self._fill(size):
                return None

    def _value_end(self) -> int | None:
        """Where the value ends that begins here, or None where more has to be read."""
        data, at = self._data, self._at
        if data[at : at + 1] not in (b"{", b"["):
            if data[at : at + 1] == b'"':
                string = _STRING.match(data, at)
                return string.end() if string else None
            stop = _SCALAR_END.search(data, at + 1)
            return stop.start() if stop else len(data) if self._ended else None
        depth = 0
        while mark := _MARK.search(data, at):
            char = mark[0]
            if char == b'"':
                string = _STRING.match(data, mark.start())
                if string is None:
                    return None
                at = string.end()
                continue
            at = mark.end()
            depth += 1 if char in b"{[" else -1
            if depth == 0:
                return at
        return None


def size_of(parts: list[Part]) -> int:
    return sum(part.size for part in parts)
