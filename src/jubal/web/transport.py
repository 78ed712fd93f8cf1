"""HTTP connections that pass the guard: the address that is checked is the address that is connected to.

The check sits below redirects, proxies and pools, where a socket is opened, so nothing above can forget it. Heavy to import (an
HTTP client): do so where it is used.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpcore2
import httpx2

from jubal.web.guard import Guard, Refused

CONNECTIONS_MAX: Final = 64
NO_KEEP_ALIVE_S: Final = 0.0


class RefusedConnection(httpx2.ConnectError):
    """The guard said no. The message is safe to show."""


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens sockets to checked addresses only. inner: what really opens them; tests give one that records instead."""

    def __init__(self, guard: Guard, inner: httpcore2.AsyncNetworkBackend | None = None) -> None:
        self._guard = guard
        self._inner = inner or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the name is the base class's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """To the first address that answers. TLS above goes on with the name, not with the address."""
        until = None if timeout is None else time.monotonic() + timeout
        try:
            addresses = await self._guard.addresses(host, port)
        except Refused as error:
            raise RefusedConnection(str(error)) from None
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"`{host[:200]}` can't be found.") from error
        failure: Exception | None = None
        for address in addresses:
            left = None if until is None else max(0.001, until - time.monotonic())
            try:
                return await self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout, OSError) as error:
                failure = error
        assert failure is not None
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise RefusedConnection("UNIX sockets may not be fetched from.")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """What an HTTP client sends its requests through. HTTP/1.1 only: HTTP/2 may use one connection for several names.

    keep_alive_s: how long an idle connection may be used again for the same scheme, host and port, which is no new look-up.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        keep_alive_s: float = NO_KEEP_ALIVE_S,
        inner: httpcore2.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl_context or ssl.create_default_context(),
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=CONNECTIONS_MAX if keep_alive_s else 0,
            keepalive_expiry=keep_alive_s,
            http1=True,
            http2=False,
            network_backend=GuardedBackend(guard, inner),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.scheme not in ("http", "https"):
            raise httpx2.UnsupportedProtocol("Only http and https addresses may be fetched.")
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        url = httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        asked = httpcore2.Request(
            request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )
        with _translated():
            answer = await self._pool.handle_async_request(asked)
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for piece in self._answer.aiter_stream():
                yield piece

    async def aclose(self) -> None:
        await self._answer.aclose()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """The errors of the layer below as those of the client's library."""
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise httpx2.ReadTimeout(str(error)) from error
    except httpcore2.ConnectError as error:
        raise httpx2.ConnectError(str(error)) from error
    except (httpcore2.NetworkError, OSError) as error:
        raise httpx2.ReadError(str(error)) from error
    except (httpcore2.ProtocolError, httpcore2.UnsupportedProtocol) as error:
        raise httpx2.RemoteProtocolError(str(error)) from error


def no_cookies() -> CookieJar:
    """A jar that takes nothing: no fetch may tell the next one who it was."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def guarded_httpx_client(
    guard: Guard,
    *,
    headers: dict[str, str] | None = None,
    timeout_s: float = 30.0,
    keep_alive_s: float = 30.0,
    redirects_max: int = 5,
    inner: httpcore2.AsyncNetworkBackend | None = None,
) -> httpx2.AsyncClient:
    """A client for libraries that want one. Each connection, redirects included, passes the guard.

    Proxies and the like from the environment do not count. It bounds no bodies: whoever reads through it must.
    """
    return httpx2.AsyncClient(
        transport=GuardedTransport(guard, keep_alive_s=keep_alive_s, inner=inner),
        headers=headers,
        timeout=timeout_s,
        follow_redirects=True,
        max_redirects=redirects_max,
        trust_env=False,
        cookies=no_cookies(),
    )


class TooMuch(httpx2.ReadError):
    """A body was longer than its bound."""


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Ends bodies that are longer than bytes_max, as they are sent: compressed ones may become larger."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, bytes_max: int) -> None:
        self._inner = inner
        self._bytes_max = bytes_max

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["accept-encoding"] = "identity"
        answer = await self._inner.handle_async_request(request)
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        if answer.headers.get("content-encoding", "identity") != "identity":
            await answer.aclose()
            raise httpx2.RemoteProtocolError("The body is compressed, which was not asked for.")
        answer.stream = _BoundedBody(answer.stream, self._bytes_max)
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedBody(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, bytes_max: int) -> None:
        self._inner = inner
        self._left = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            self._left -= len(piece)
            if self._left < 0:
                raise TooMuch("The answer is too long.")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


def bounded_httpx_client(
    guard: Guard,
    *,
    bytes_max: int,
    headers: dict[str, str] | None = None,
    timeout_s: float = 30.0,
    redirects_max: int = 5,
) -> httpx2.AsyncClient:
    """As `guarded_httpx_client`, for libraries that read whole bodies into memory. bytes_max: of each body."""
    return httpx2.AsyncClient(
        transport=BoundedTransport(GuardedTransport(guard, keep_alive_s=30.0), bytes_max),
        headers=headers,
        timeout=timeout_s,
        follow_redirects=redirects_max > 0,
        max_redirects=redirects_max,
        trust_env=False,
        cookies=no_cookies(),
    )
