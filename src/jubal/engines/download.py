"""Downloads of large files that survive interruption: HTTP ranges, a `.part` file, one download of a file at a time.

Plain `urllib`, because it honours the machine's proxy and certificate settings and runs in a CLI as well as in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Final, TypeAlias

import msgspec

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the bytes there so far and the bytes in all, None where that is not known."""

CHUNK_BYTES: Final = 256 << 10
SILENCE_S: Final = 30.0
"""Longest wait for an answer, and for the next bytes of one."""
TRIES_MAX: Final = 5
"""Connections in a row that bring nothing new before a download is given up."""
PAUSE_FIRST_S: Final = 0.5
DISK_SPARE_BYTES: Final = 32 << 20
"""Left free beside a download: a full disk would stop the accounts store too."""
LOCK_POLL_S: Final = 0.2
MAGIC_BYTES: Final = 4
"""Enough of a file to tell what it is."""
_TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(Exception):
    """The download can't be done or completed. The message says why and how to mend it."""


class Refused(DownloadError):
    """Not a byte was given. status: the HTTP status, or None where there was no answer at all."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Cut(Exception):
    """One connection ended early; another may bring the rest."""


@dataclass(frozen=True, slots=True)
class Headers:
    """What a server said of a file. total: bytes in all. sha256: where a model hub tells it. validator: for If-Range."""

    total: int | None
    sha256: str | None = None
    validator: str | None = None


def fetch(
    url: str,
    part: Path,
    progress: Progress,
    *,
    token: str | None = None,
    accept: Callable[[Path], None] = lambda part: None,
    pause: Callable[[float], None] = time.sleep,
) -> Headers:
    """Brings `part` to its full length, beginning with what is there of the same file.

    token: sent as a bearer token, to the host of `url` only. accept: called when the file's first bytes are there; raises to
    end the download of something else. Raises `Refused` where not a byte is given, `DownloadError` where the download stays
    broken off (`part` is kept), and `OSError` of the disk.
    """
    tries = 0
    while True:
        had = size_of(part)
        try:
            return _one_connection(url, part, progress, token, accept)
        except _Cut as cut:
            tries = 1 if size_of(part) > had else tries + 1
            if tries >= TRIES_MAX:
                raise DownloadError(
                    f"The download of {_shown(url)} broke off after {size_of(part):,} bytes: {cut}. Run again to resume it."
                ) from cut
        pause(PAUSE_FIRST_S * 2 ** (tries - 1))


def forget(part: Path) -> None:
    """Removes an unfinished download."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def settle(part: Path, path: Path) -> None:
    """Makes a finished `part` the file `path`, so that a crash leaves the whole file or none of that name."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _notes(part).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def size_of(path: Path) -> int:
    """0 where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def check_room(folder: Path, needed: int) -> None:
    """Raises `DownloadError` where the disk has less than `needed` bytes, and some to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_SPARE_BYTES:
        raise DownloadError(
            f"The disk of {folder} is too full: {needed:,} bytes are needed, and {DISK_SPARE_BYTES:,} to spare; {free:,} are "
            "free. Free some space, or set JUBAL_HOME to a folder on a larger disk."
        )


@contextlib.contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Only one process at a time is inside for the same `path`. While waiting, the progress of the other one is shown."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(size_of(part_of(path)), None)
                time.sleep(LOCK_POLL_S)
        yield  # the lock goes with the open file, also when this process is killed


# ---------------------------------------------------------------------------------------------- one connection


def _one_connection(
    url: str, part: Path, progress: Progress, token: str | None, accept: Callable[[Path], None]
) -> Headers:
    had = _resumable(url, part)
    try:
        response, redirects = _open(url, token, _range_headers(part, had))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return _out_of_range(error.headers, part, had, progress)
        if error.code in _TRY_AGAIN:
            raise _Cut(f"HTTP {error.code} {error.reason}") from error
        raise Refused(f"{_shown(url)} answered HTTP {error.code} {error.reason}.", error.code) from error
    except (OSError, http.client.HTTPException) as error:
        if had:
            raise _Cut(_reason(error)) from error
        raise Refused(f"{_shown(url)} can't be reached: {_reason(error)}.") from error
    with response:
        start, told = _told(response, redirects)
        if response.status == 200:  # the whole file again: ranges are not known there, or the file has changed
            had = 0
        elif start != had:
            forget(part)
            raise _Cut("another piece of the file came than was asked for")
        if told.total is not None:
            check_room(part.parent, told.total - had)
        _note(part, url, told)
        _copy(response, part, had, told.total, progress, accept)
    return told


def _copy(
    response: http.client.HTTPResponse,
    part: Path,
    had: int,
    total: int | None,
    progress: Progress,
    accept: Callable[[Path], None],
) -> None:
    """Appends the response to the first `had` bytes of `part`. Raises `_Cut` where it ends early."""
    unseen = True
    with part.open("ab") as file:
        file.truncate(had)
        progress(had, total)
        while chunk := _read(response):
            file.write(chunk)
            had += len(chunk)
            if unseen and had >= MAGIC_BYTES:
                file.flush()
                accept(part)
                unseen = False
            progress(had, total)
    if total is not None and had != total:
        raise _Cut(f"{total - had:,} bytes are missing")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The network's errors become `_Cut`; those of the disk, which look alike, stay what they are."""
    try:
        return response.read1(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_reason(error)) from error


def _told(response: http.client.HTTPResponse, redirects: _Redirects) -> tuple[int, Headers]:
    """Where the response begins in the file, and what it says of the file."""
    headers = response.headers
    start, total = 0, _number(headers.get("Content-Length"))
    if response.status == 206:
        start, total = _content_range(headers.get("Content-Range", ""))
    etag = headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return start, Headers(total, _sha256(redirects.hub_digest or headers.get("X-Linked-Etag")), validator)


def _content_range(text: str) -> tuple[int, int | None]:
    """`bytes 5-9/10` is (5, 10); anything else begins nowhere."""
    span, _, total = text.removeprefix("bytes ").partition("/")
    start = _number(span.split("-")[0])
    return (-1 if start is None else start), _number(total)


def _out_of_range(headers: Message, part: Path, had: int, progress: Progress) -> Headers:
    """The answer to a range that begins at the file's end, or beyond it: everything is there, or something else is."""
    total = _number(headers.get("Content-Range", "").rpartition("/")[2])
    if not had or total != had:
        forget(part)
        raise _Cut("what was there before is not a piece of this file")
    progress(had, had)
    return Headers(total, _noted(part).sha256)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _sha256(etag: str | None) -> str | None:
    """A model hub's digest of the file, which it sends as an ETag; None for any other kind."""
    digest = (etag or "").strip('"').lower()
    return digest if len(digest) == 64 and set(digest) <= set("0123456789abcdef") else None


# ---------------------------------------------------------------------------------------------- resuming


class _Noted(msgspec.Struct):
    """What is kept beside an unfinished download. origin: a digest of the address, which may hold a secret."""

    origin: str = ""
    validator: str | None = None
    sha256: str | None = None


def _noted(part: Path) -> _Noted:
    try:
        return msgspec.json.decode(_notes(part).read_bytes(), type=_Noted)
    except (OSError, msgspec.DecodeError):
        return _Noted()


def _note(part: Path, url: str, told: Headers) -> None:
    _notes(part).write_bytes(msgspec.json.encode(_Noted(_origin(url), told.validator, told.sha256)))


def _resumable(url: str, part: Path) -> int:
    """How many bytes of `part` are of this URL."""
    return size_of(part) if _noted(part).origin == _origin(url) else 0


def _origin(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _range_headers(part: Path, had: int) -> dict[str, str]:
    if not had:
        return {}
    validator = _noted(part).validator
    return {"Range": f"bytes={had}-", **({"If-Range": validator} if validator else {})}


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


# ---------------------------------------------------------------------------------------------- HTTP


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, never from https to http, and gives the token to no other host."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self.hub_digest: str | None = None

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.hub_digest = headers.get("X-Linked-Etag") or self.hub_digest
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise urllib.error.URLError(f"it redirects to {new.scheme}://{new.hostname}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and self._token and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        else:
            self._token = None
        return request


def _open(url: str, token: str | None, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, _Redirects]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"{url} is not an http or https address.")
    redirects = _Redirects(token)
    request = urllib.request.Request(url, headers={"User-Agent": "jubal", **headers})  # noqa: S310  checked above
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    response = urllib.request.build_opener(redirects).open(request, timeout=SILENCE_S)
    assert isinstance(response, http.client.HTTPResponse)
    return response, redirects


def _shown(url: str) -> str:
    """The address without credentials and without a signed query."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(reason) or type(reason).__name__
