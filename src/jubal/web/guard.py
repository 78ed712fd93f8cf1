"""Which addresses may be connected to, when a stranger names the host.

`is_public` is the rule for an address, `AllowList` what the operator opened beyond it, and `Guard` the one gate: it looks a host
up once and returns the addresses to connect to, all of them checked. Whoever connects must use these and look nothing up again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""All addresses of a host, as text; the port is only a hint. Raises `OSError`."""

PORTS: Final = frozenset({80, 443, 8080, 8443})
"""Where web servers listen. Any other port needs a word of the operator's."""
ADDRESSES_MAX: Final = 8
"""Of one host. More than that are not tried."""
LOOKUP_THREADS: Final = 8
"""Look-ups can't be cancelled: a name whose server never answers holds one of these, and none that anything else needs."""

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
_NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        # The standard library calls these global, each in at least one of the Python versions that are supported.
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # a cloud's internal services
        "100::/64",  # discard only
        "fec0::/10",  # site-local
        "64:ff9b:1::/48",  # NAT64 within a network
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "::/96",  # IPv4-compatible
    )
)


class Refused(Exception):
    """This address or port must not be connected to. The message is safe to show: it never tells what a name resolves to."""


# ---------------------------------------------------------------------------------------------- the rule


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could connect to `address`, whatever is wrapped in it."""
    if isinstance(address, IPv6Address):
        if address.scope_id is not None or address.teredo is not None:
            return False
        inner = _unwrapped(address)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return not any(address in network for network in _NEVER if network.version == address.version)


def _unwrapped(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to `address` may end at: IPv4-mapped, NAT64, 6to4, ISATAP."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    low = int(address) & 0xFFFF_FFFF
    if address in _NAT64 or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return IPv4Address(low)
    return None


# ---------------------------------------------------------------------------------------------- what the operator opens


class AllowList:
    """Hosts that may be reached although they are private, or on an unusual port.

    entries: `host` opens every port of that host, `host:port` that port only; an IPv6 address with a port stands in brackets. A
    host is a name, which stands for all its addresses, or an address, which is open under every name. Raises `ValueError`.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._open = frozenset(map(_entry, entries))

    def opens(self, host: str, port: int) -> bool:
        host = _plain(host)
        return (host, None) in self._open or (host, port) in self._open


def _entry(text: str) -> tuple[str, int | None]:
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"expected a host or host:port, got `{text}`")
        port = rest[1:]
        if rest == ":":
            host = ""
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
        host = host if port else ""
    if not host or any(character in host for character in "/@[]?# "):
        raise ValueError(f"expected a host or host:port, got `{text}`")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"expected a port from 1 to 65535 behind the host, got `{text}`")
    return _plain(host), int(port) if port else None


def _plain(host: str) -> str:
    """One spelling for each host: lower case, no final dot, addresses in their shortest form."""
    host = host.lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


# ---------------------------------------------------------------------------------------------- the gate


@cache
def _lookups() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="jubal-lookup")


async def system_resolver(host: str, port: int) -> list[str]:
    """The operating system's answer. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(
        _lookups(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    )
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Guard:
    """The gate in front of every connection. resolver: None for the operating system's."""

    def __init__(self, allowed: AllowList | None = None, resolver: Resolver | None = None) -> None:
        self._allowed = allowed or AllowList()
        self._resolver = resolver or system_resolver

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where to connect for `host`, by one look-up. One bad address refuses the whole host.

        Raises `Refused`; `OSError` where the look-up fails.
        """
        found = [host] if _is_literal(host) else await self._resolver(host, port)
        if not found:
            raise OSError(f"`{host}` has no address.")
        for text in found:
            self._check(host, text, port)
        return found[:ADDRESSES_MAX]

    def _check(self, host: str, text: str, port: int) -> None:
        if self._allowed.opens(host, port) or self._allowed.opens(text, port):
            return
        if port not in PORTS:
            raise Refused(f"Port {port} may not be fetched from, only {', '.join(map(str, sorted(PORTS)))}.")
        try:
            public = is_public(ipaddress.ip_address(text))
        except ValueError:  # no resolver should say such a thing
            public = False
        if not public:
            raise Refused(f"`{host[:200]}` is not a public address.")


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
