"""Images of a prompt, fetched and checked before an engine sees them. Every engine gets the same: data URLs.

Limits: xai-api.md 6.3; those on the whole of a request are ours. Nothing is decoded: type and size stand in the first bytes.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, Protocol

from jubal.core.errors import BadRequest
from jubal.core.generation import Generation, ImagePart, Message, Part
from jubal.core.picture import picture_size, picture_type
from jubal.web.fetch import Fetched, FetchError

INLINE_BYTES_MAX: Final = 20 << 20
"""Of a data URL's image, decoded."""
FETCHED_BYTES_MAX: Final = 10 << 20
ALL_BYTES_MAX: Final = 64 << 20
"""Of all images of a request."""
FETCHED_MAX: Final = 128
"""Addresses that one request may have fetched: a server must not be a tool for flooding another one."""
FETCH_TIMEOUT_S: Final = 5.0
FETCHES_AT_ONCE: Final = 8
"""Of one request."""
FETCHES_OF_ALL: Final = 32
"""Of all requests together."""
SIDE_MIN: Final = 8
PIXELS_MIN: Final = 512
PIXELS_MAX: Final = 100_000_000
"""A file of a few kilobytes may claim any size, and whoever decodes it has to find the memory."""
HEAD_CHARACTERS: Final = 64 << 10
"""How much base64 is decoded to find the size. A multiple of 4. Where that is not enough, all of it is."""
ACCEPT: Final = "image/jpeg, image/png, image/webp"

_DATA_URL: Final = re.compile(r"data:(image/[A-Za-z0-9.+-]+);base64,")
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SAME: Final = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
"""Names that are in use and mean the same."""


class Fetcher(Protocol):
    """Gets what stands at an address. `web.fetch.SafeFetcher` is the real one."""

    async def get(
        self, url: str, *, bytes_max: int, accept: str | None = None, timeout_s: float | None = None
    ) -> Fetched:
        """Raises `FetchError`."""
        ...

    async def close(self) -> None: ...


class Images:
    """Belongs to one event loop. fetcher: makes what fetches addresses, when the first one comes; None: none are fetched."""

    def __init__(self, fetcher: Callable[[], Fetcher] | None = None) -> None:
        self._make = fetcher
        self._fetcher: Fetcher | None = None
        self._places = asyncio.Semaphore(FETCHES_OF_ALL)

    async def checked(self, generation: Generation) -> Generation:
        """The same request with every image as a data URL of known size. Raises `BadRequest` naming the image at fault."""
        found = list(_found(generation))
        if not found:
            return generation
        done = {image.url: _inline(image.url, where) for image, where in found if image.url.startswith("data:")}
        _check_all(done, found)
        if asked := {image.url: where for image, where in found if image.url not in done}:
            await self._fetch_all(asked, done)
            _check_all(done, found)
        return replace(generation, messages=tuple(_with_images(message, done) for message in generation.messages))

    async def close(self) -> None:
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            await fetcher.close()

    async def _fetch_all(self, asked: dict[str, str], done: dict[str, _Image]) -> None:
        """Each address once, several at a time. The first that fails ends the others."""
        if len(asked) > FETCHED_MAX:
            where = list(asked.values())[FETCHED_MAX]
            raise _bad(
                where, f"is the {FETCHED_MAX + 1}th image to fetch; a request takes {FETCHED_MAX}", "too_many_images"
            )
        places = asyncio.Semaphore(FETCHES_AT_ONCE)
        left = ALL_BYTES_MAX - sum(image.size_bytes for image in done.values())

        async def fetch(url: str, where: str) -> None:
            nonlocal left
            async with places, self._places:
                done[url] = image = await self._fetch(url, where)
            left -= image.size_bytes
            if left < 0:
                raise _too_much(where)

        refused: BadRequest | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for url, where in asked.items():
                    group.create_task(fetch(url, where))
        except* BadRequest as errors:
            refused = _first(errors)
        if refused is not None:  # raised up there it would be in a group again, before Python 3.11.4
            raise refused

    async def _fetch(self, url: str, where: str) -> _Image:
        if self._make is None:
            raise _bad(where, "is an address, and images are not fetched here: send a data URL", "image_not_fetched")
        if self._fetcher is None:
            self._fetcher = self._make()
        try:
            got = await self._fetcher.get(url, bytes_max=FETCHED_BYTES_MAX, accept=ACCEPT, timeout_s=FETCH_TIMEOUT_S)
        except FetchError as error:
            message = f"`{where}`: the image could not be fetched: {error.message}"
            raise BadRequest(message, param=where, code="image_not_fetched") from None
        kind = picture_type(got.body)
        if kind is None:
            raise _bad(where, "is not the address of a JPEG, PNG or WebP image", "unsupported_image")
        size = _checked_size(where, picture_size(got.body))
        return _Image(f"data:{kind};base64,{base64.b64encode(got.body).decode()}", size, len(got.body))


class _Image:
    """An image that was checked. url: a data URL. size: pixels."""

    __slots__ = ("size", "size_bytes", "url")

    def __init__(self, url: str, size: tuple[int, int], size_bytes: int) -> None:
        self.url = url
        self.size = size
        self.size_bytes = size_bytes


def _found(generation: Generation) -> Iterator[tuple[ImagePart, str]]:
    """Every image, and the field that names it."""
    for index, message in enumerate(generation.messages):
        for number, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                yield part, part.where or f"messages[{index}].content[{number}].image_url.url"


def _with_images(message: Message, done: dict[str, _Image]) -> Message:
    if not message.has_image:
        return message
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ImagePart):
            image = done[part.url]
            part = replace(part, url=image.url, size=image.size)
        parts.append(part)
    return replace(message, parts=tuple(parts))


def _check_all(done: dict[str, _Image], found: list[tuple[ImagePart, str]]) -> None:
    """An image that is there twice counts twice: engines get it twice. Raises `BadRequest`."""
    total = 0
    for image, where in found:
        if image.url in done:
            total += done[image.url].size_bytes
            if total > ALL_BYTES_MAX:
                raise _too_much(where)


def _inline(url: str, where: str) -> _Image:
    """A data URL, checked. It goes on as it came. Raises `BadRequest`."""
    begun = _DATA_URL.match(url)
    if begun is None:
        raise _bad(where, "must be of the form data:image/png;base64,…", "invalid_image_url")
    told = begun.group(1).lower()
    size_bytes = (len(url) - begun.end()) * 3 // 4
    if size_bytes - 2 > INLINE_BYTES_MAX:
        raise _bad(where, f"holds more than {INLINE_BYTES_MAX >> 20} MiB", "image_too_large")
    head, size_bytes = _decoded_head(url, begun.end(), where)
    if size_bytes > INLINE_BYTES_MAX:
        raise _bad(where, f"holds more than {INLINE_BYTES_MAX >> 20} MiB", "image_too_large")
    kind = picture_type(head)
    if kind is None:
        raise _bad(where, "does not hold a JPEG, PNG or WebP image", "unsupported_image")
    if kind != _SAME.get(told, told):
        raise _bad(where, f"says {told[:40]} and holds {kind}", "image_type_mismatch")
    size = picture_size(head) or picture_size(base64.b64decode(url[begun.end() :]))
    return _Image(url, _checked_size(where, size), size_bytes)


def _decoded_head(url: str, start: int, where: str) -> tuple[bytes, int]:
    """The first bytes, and how many there are in all, of base64 that is right to its end. Raises `BadRequest`.

    Decoding 20 MiB to throw it away would hold up everybody else for longer than looking at its characters does.
    """
    try:
        text = url[start:].encode("ascii")
    except UnicodeEncodeError:
        text = b""
    body = text.rstrip(b"=")
    padding = len(text) - len(body)
    if not body or len(text) % 4 or padding > 2 or body.translate(None, _BASE64):
        raise _bad(where, "does not hold valid base64", "invalid_base64")
    return base64.b64decode(text[:HEAD_CHARACTERS]), len(text) // 4 * 3 - padding


def _checked_size(where: str, size: tuple[int, int] | None) -> tuple[int, int]:
    """Raises `BadRequest`."""
    if size is None:
        raise _bad(where, "holds a broken image: it does not tell its size", "invalid_image")
    width, height = size
    if min(size) < SIDE_MIN or width * height < PIXELS_MIN:
        raise _bad(
            where,
            f"holds an image of {width} x {height} pixels; it needs {SIDE_MIN} a side and {PIXELS_MIN} in all",
            "image_too_small",
        )
    if width * height > PIXELS_MAX:
        raise _bad(where, f"holds an image of {width} x {height} pixels; {PIXELS_MAX:,} are taken", "image_too_large")
    return size


def _too_much(where: str) -> BadRequest:
    return _bad(where, f"brings the images of this request to more than {ALL_BYTES_MAX >> 20} MiB", "image_too_large")


def _bad(where: str, what: str, code: str) -> BadRequest:
    return BadRequest(f"`{where}` {what}.", param=where, code=code)


def _first(errors: BaseExceptionGroup[BadRequest]) -> BadRequest:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BadRequest)
    return error
