"""Asking a search service that the operator configured, over JSON, within bounds."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from jubal.tools.web_search.providers.base import ProviderFailed
from jubal.web.guard import AllowList, Guard

ANSWER_BYTES_MAX: Final = 4 << 20
TIMEOUT_S: Final = 15.0
DEFAULT_PORT: Final = {"http": 80, "https": 443}


class Service:
    """One service at an address of the operator's, which may be private. name: for messages. mend: what to do about a refused key.

    Made without I/O. Redirects are not followed: a service has one address, and its key goes nowhere else.
    """

    def __init__(self, name: str, base_url: str, *, mend: str, timeout_s: float = TIMEOUT_S) -> None:
        self.name = name
        self._base = base_url.rstrip("/")
        self._mend = mend
        self._timeout_s = timeout_s
        self._client: Any = None

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: object = None,
    ) -> dict[str, Any]:
        """The answer's object. Raises `ProviderFailed`."""
        import httpx2

        content = None if body is None else msgspec.json.encode(body)
        sent = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
        if content is not None:
            sent["content-type"] = "application/json"
        request = self._opened().build_request(method, self._base + path, params=params, headers=sent, content=content)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._opened().send(request, stream=True, follow_redirects=False)
                try:
                    self._check(response.status_code)
                    raw = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise ProviderFailed(f"{self.name} did not answer within {self._timeout_s:g} s.") from None
        except httpx2.HTTPError as error:
            raise ProviderFailed(f"{self.name} can't be reached ({type(error).__name__}).") from error
        try:
            answer = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        if not isinstance(answer, dict):
            raise ProviderFailed(f"{self.name} answered with something that is not JSON. {self._mend}")
        return answer

    def _opened(self) -> Any:
        if self._client is None:
            from jubal.web.transport import guarded_httpx_client

            parts = urlsplit(self._base)
            host = parts.hostname or ""
            port = parts.port or DEFAULT_PORT.get(parts.scheme, 443)
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._client = guarded_httpx_client(Guard(AllowList([place])), timeout_s=self._timeout_s)
        return self._client

    def _check(self, status: int) -> None:
        if 200 <= status < 300:
            return
        match status:
            case 401 | 403:
                raise ProviderFailed(f"{self.name} refused access (HTTP {status}). {self._mend}")
            case 402 | 432 | 433:
                raise ProviderFailed(f"{self.name}: the plan's searches are used up (HTTP {status}).")
            case 429:
                raise ProviderFailed(f"{self.name} takes no more searches for now (HTTP 429). Try again later.")
            case _ if status >= 500:
                raise ProviderFailed(f"{self.name} has a fault of its own (HTTP {status}). Try again later.")
        raise ProviderFailed(f"{self.name} did not take the search (HTTP {status}). {self._mend}")

    async def _read(self, response: Any) -> bytes:
        """The body, counted as it comes. It was asked for uncompressed, so nothing can swell."""
        if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise ProviderFailed(f"{self.name} sent a compressed answer that was not asked for.")
        raw = bytearray()
        async for piece in response.aiter_raw():
            raw += piece
            if len(raw) > ANSWER_BYTES_MAX:
                raise ProviderFailed(f"{self.name} sent more than {ANSWER_BYTES_MAX:,} bytes.")
        return bytes(raw)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def rows(answer: object, *path: str) -> list[dict[str, Any]]:
    """The objects of the list at `path`; none where it is not there."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


def text_of(row: dict[str, Any], *names: str) -> str:
    """The first of these that is text and not empty, on one line."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""
