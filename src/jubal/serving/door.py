"""Who comes in: the key of an HTTP request, and the address that it comes from."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

from jubal.accounts.guesses import WrongKeys
from jubal.accounts.keys import Caller
from jubal.core.errors import NotIdentified

if TYPE_CHECKING:
    from jubal.serving.http import Exchange
    from jubal.serving.pipeline import Pipeline

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
HOPS_MAX: Final = 20


class TrustedProxies:
    """Addresses and networks whose X-Forwarded-For is believed. Raises `ValueError` naming what is neither."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: list[Network] = []
        for text in networks:
            try:
                self._networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                raise ValueError(f"expected addresses or networks such as 10.0.0.0/8, got `{text}`") from None

    def client_of(self, peer: str | None, forwarded: str | None) -> str | None:
        """The client's address: the peer's, or what trusted proxies say of whom they speak for.

        The list is read from its end, where the nearest proxy wrote; the first address of no trusted proxy is the client's. What
        stands before it anyone may have written.
        """
        if peer is None or forwarded is None or not self._trusts(peer):
            return peer
        client = peer
        for hop in reversed(forwarded.split(",")[-HOPS_MAX:]):
            hop = hop.strip()
            try:
                ipaddress.ip_address(hop)
            except ValueError:
                return client
            client = hop
            if not self._trusts(hop):
                return client
        return client

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


class Door:
    """Identifies callers, and makes those wait who try wrong keys."""

    def __init__(
        self, pipeline: Pipeline, wrong_keys: WrongKeys | None = None, proxies: TrustedProxies | None = None
    ) -> None:
        self._pipeline = pipeline
        self._wrong_keys = wrong_keys or WrongKeys(0)
        self._proxies = proxies or TrustedProxies()

    async def identify(self, exchange: Exchange, *, management: bool = False) -> Caller:
        """By `Authorization: Bearer`, or by Anthropic's `x-api-key` (xai-api.md 2.1).

        Raises `NotIdentified`, `NotAllowed`, `TooFast` for too many wrong keys at a time, `StoreUnavailable`.
        """
        authorization = exchange.header(b"authorization")
        if authorization is None and (secret := exchange.header(b"x-api-key")) is not None:
            authorization = f"Bearer {secret}"
        caller = None if management or authorization is None else self._pipeline.known(authorization)
        if caller is None:
            caller = await self.identify_by(authorization, self.address(exchange), management=management)
        exchange.key_id = caller.key_id
        return caller

    async def identify_by(self, authorization: str | None, address: str | None, *, management: bool = False) -> Caller:
        """The same, of an authorization and an address, wherever they come from."""
        try:
            if management:
                return await self._pipeline.identify(authorization, management=True)
            return await self._pipeline.identify(authorization)
        except NotIdentified as error:
            if error.given:
                with self._wrong_keys.held_back(address) as delay_s:
                    await asyncio.sleep(delay_s)
            raise

    def address(self, exchange: Exchange) -> str | None:
        """Of the client; None where it has none, as on a UNIX socket."""
        client = exchange.scope.get("client")
        return self._proxies.client_of(client[0] if client else None, exchange.header(b"x-forwarded-for"))
