"""Fetches one address within bounds: of time, of bytes after decompression, of redirects; each hop through the guard.

    fetcher = SafeFetcher(allow_private_hosts=["127.0.0.1:8080"])
    page = await fetcher.get("https://example.com/", bytes_max=1 << 20)

FetchError
├── BadUrl              not an http or https address that can be fetched, or a redirect to one
├── RefusedAddress      the guard said no
├── TooManyRedirects
├── FetchTimeout        the whole took too long
├── Unreachable         no such host, no connection, or one that broke
├── BadStatus           answered, not with 2xx
├── TooLarge            more bytes than allowed, counted after decompression
└── BadContent          an encoding or a media type that is not taken

Their messages are for whoever named the address: they tell nothing that a fetch from elsewhere would not.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from jubal.web.guard import AllowList, Guard, Resolver

if TYPE_CHECKING:
    import httpcore2
    import httpx2

REDIRECTS_MAX: Final = 5
TIMEOUT_S: Final = 30.0
URL_LENGTH_MAX: Final = 8192
PIECE_BYTES: Final = 64 << 10
"""Largest piece that decompression makes at a time, so that a bomb is stopped while it is still small."""
GZIP: Final = b"\x1f\x8b"
NONE_LARGER: Final[Mapping[str, int]] = MappingProxyType({})
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

Permit: TypeAlias = Callable[[str], None]
"""Called with each address before it is asked, the targets of redirects included. Refuses by raising a `FetchError`."""

Reason: TypeAlias = Literal[
    "bad_url",
    "refused_address",
    "too_many_redirects",
    "timeout",
    "unreachable",
    "http_status",
    "too_large",
    "bad_content",
]


class FetchError(Exception):
    """It could not be fetched. message: safe to show. reason: machine-readable."""

    reason: Reason

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadUrl(FetchError):
    reason = "bad_url"


class RefusedAddress(FetchError):
    reason = "refused_address"


class TooManyRedirects(FetchError):
    reason = "too_many_redirects"


class FetchTimeout(FetchError):
    reason = "timeout"


class Unreachable(FetchError):
    reason = "unreachable"


class BadStatus(FetchError):
    reason = "http_status"

    def __init__(self, status: int) -> None:
        super().__init__(f"It answered with HTTP status {status}.")
        self.status = status


class TooLarge(FetchError):
    reason = "too_large"


class BadContent(FetchError):
    reason = "bad_content"


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer with status 2xx. url: after redirects. content_type: lower case, without parameters, "" where none is told.

    headers: lower-case names; the last one counts where a name comes twice.
    """

    url: str
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body is still to come. pieces: decompressed, and bounded."""

    url: str
    status: int
    content_type: str
    headers: Mapping[str, str]
    pieces: AsyncGenerator[bytes, None]


class SafeFetcher:
    """Made without I/O, usable by many tasks at once on one event loop; `close` after the last use.

    allow_private_hosts: see `AllowList`, raises its `ValueError`. timeout_s: for a whole fetch, redirects and body included.
    keep_alive_s: how long a connection is kept for the next fetch from the same place; 0: not at all.
    resolver, backend: for tests.
    """

    def __init__(
        self,
        allow_private_hosts: Iterable[str] = (),
        *,
        user_agent: str = "Jubal",
        timeout_s: float = TIMEOUT_S,
        keep_alive_s: float = 0.0,
        resolver: Resolver | None = None,
        backend: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._guard = Guard(AllowList(allow_private_hosts), resolver)
        self._user_agent = user_agent
        self._timeout_s = timeout_s
        self._keep_alive_s = keep_alive_s
        self._backend = backend
        self._transport: httpx2.AsyncBaseTransport | None = None

    async def get(
        self,
        url: str,
        *,
        bytes_max: int,
        larger: Mapping[str, int] = NONE_LARGER,
        accept: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        permit: Permit | None = None,
    ) -> Fetched:
        """The whole answer. Raises `FetchError`. headers: go no further than to the first origin. permit: for each hop.

        larger: bytes that answers of some media types may have in place of `bytes_max`.
        """
        async with self.open(
            url,
            bytes_max=bytes_max,
            larger=larger,
            accept=accept,
            headers=headers,
            timeout_s=timeout_s,
            permit=permit,
        ) as answer:
            body = b"".join([piece async for piece in answer.pieces])
        return Fetched(answer.url, answer.status, answer.content_type, body, answer.headers)

    @asynccontextmanager
    async def open(
        self,
        url: str,
        *,
        bytes_max: int,
        larger: Mapping[str, int] = NONE_LARGER,
        accept: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        permit: Permit | None = None,
    ) -> AsyncIterator[Answer]:
        """The same as a stream, for as long as the block is not left. Raises `FetchError`, the time in the block included."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        sent = {"accept": accept or "*/*", "user-agent": self._user_agent, **(headers or {})}
        deadline = asyncio.timeout(limit_s)
        try:
            async with deadline:
                response = await self._followed(url, sent, ("accept", "user-agent"), permit)
                try:
                    answer = _answer(response, bytes_max, larger)
                    async with aclosing(answer.pieces):
                        yield answer
                finally:
                    await response.aclose()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise FetchTimeout(f"It took longer than {limit_s:g} s.") from None

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def _followed(
        self, text: str, headers: dict[str, str], kept: tuple[str, ...], permit: Permit | None
    ) -> httpx2.Response:
        """The answer at the end of the redirects, its body not read. kept: headers that go on to another origin."""
        import httpx2

        url = _url(text)
        for _ in range(REDIRECTS_MAX + 1):
            if permit is not None:
                permit(str(url))
            response = await self._asked(
                httpx2.Request("GET", url, headers={**headers, "accept-encoding": "gzip, deflate"})
            )
            target = response.headers.get("location") if response.status_code in REDIRECTS else None
            if target is None:
                if not response.is_success:
                    await response.aclose()
                    raise BadStatus(response.status_code)
                return response
            await response.aclose()
            before, url = url, _url(target, url)
            if (before.scheme, before.host, before.port) != (url.scheme, url.host, url.port):
                headers = {name: value for name, value in headers.items() if name in kept}
        raise TooManyRedirects(f"It redirects more than {REDIRECTS_MAX} times.")

    async def _asked(self, request: httpx2.Request) -> httpx2.Response:
        """One hop."""
        import httpx2

        from jubal.web.transport import GuardedTransport, RefusedConnection

        if self._transport is None:
            self._transport = GuardedTransport(self._guard, keep_alive_s=self._keep_alive_s, inner=self._backend)
        try:
            response = await self._transport.handle_async_request(request)
        except RefusedConnection as error:
            raise RefusedAddress(str(error)) from None
        except httpx2.HTTPError as error:
            raise Unreachable("It can't be reached.") from error
        response.request = request
        return response


def _url(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """A checked address. Raises `BadUrl`. base: what a redirect's target is relative to."""
    import httpx2

    if len(text) > URL_LENGTH_MAX:
        raise BadUrl(f"The address is longer than {URL_LENGTH_MAX:,} characters.")
    try:
        url = base.join(text) if base is not None else httpx2.URL(text)
        host = url.host
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        raise BadUrl("This is not a valid address.") from None
    if url.scheme not in ("http", "https"):
        raise BadUrl("Only http and https addresses can be fetched.")
    if not host:
        raise BadUrl("The address names no host.")
    if url.userinfo:
        raise BadUrl("The address must not hold a user name or a password.")
    return url.copy_with(fragment=None)


def _answer(response: httpx2.Response, bytes_max: int, larger: Mapping[str, int]) -> Answer:
    """Raises `TooLarge` where the answer tells so at once."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    bytes_max = larger.get(kind, bytes_max)
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > bytes_max:
        raise _too_large(bytes_max)
    return Answer(
        str(response.request.url),
        response.status_code,
        kind,
        {name.lower(): value for name, value in response.headers.multi_items()},
        _pieces(response, bytes_max),
    )


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"It is larger than {bytes_max:,} bytes.")


async def _pieces(response: httpx2.Response, bytes_max: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes, decompressed. Raises `TooLarge`, `BadContent`, `Unreachable` where the connection breaks."""
    import httpx2

    decoder = _decoder(response.headers.get("content-encoding", ""))
    seen = 0
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    try:
        async for raw in response.stream:
            for piece in decoder.feed(raw):
                seen += len(piece)
                if seen > bytes_max:
                    raise _too_large(bytes_max)
                yield piece
    except zlib.error:
        raise BadContent("It is not compressed as its headers say.") from None
    except httpx2.HTTPError as error:
        raise Unreachable("The connection broke before the end.") from error
    if not decoder.whole:
        raise BadContent("Its compressed data ends too early.")


class _Plain:
    whole = True

    def feed(self, raw: bytes) -> Iterator[bytes]:
        yield raw


class _Inflater:
    """gzip (also in several members) and deflate (also without its header, as some servers send it), in bounded pieces."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._inflate = zlib.decompressobj(bits)
        self._begun = False

    @property
    def whole(self) -> bool:
        return self._inflate.eof or not self._begun

    def feed(self, raw: bytes) -> Iterator[bytes]:
        """Raises `zlib.error`."""
        if not self._begun and self._bits == zlib.MAX_WBITS and raw and raw[0] & 0x0F != zlib.DEFLATED:
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        piece = b""
        while raw or len(piece) == PIECE_BYTES:  # a full piece may have more behind it that needs no further input
            if self._inflate.eof:
                if not raw.startswith(GZIP):
                    return  # padding behind the end
                self._inflate = zlib.decompressobj(self._bits)
            self._begun = True
            piece = self._inflate.decompress(raw, PIECE_BYTES)
            raw = self._inflate.unconsumed_tail or self._inflate.unused_data
            if piece:
                yield piece


def _decoder(encoding: str) -> _Plain | _Inflater:
    """Raises `BadContent`: one encoding around another is how bombs are made large, and nobody else sends it."""
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip":
            return _Inflater(16 + zlib.MAX_WBITS)
        case "deflate":
            return _Inflater(zlib.MAX_WBITS)
    raise BadContent("It is compressed in a way that was not asked for.")
