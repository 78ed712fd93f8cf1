"""Whoever tries wrong keys is answered slower and slower. Good keys are never held back: only a wrong one comes here."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from jubal.core.errors import TooFast

FREE: Final = 20
"""Wrong keys from one address that are answered at once: a deployment with a stale key tries that often by accident."""
FORGET_ONE_S: Final = 3.0
FIRST_DELAY_S: Final = 0.1
WAITING_MAX: Final = 16
"""Answers to one address that are held back at a time. More are refused at once: they would cost connections."""
ALL_WAITING_MAX: Final = 1_000
ADDRESSES_MAX: Final = 10_000
IPV6_PREFIX: Final = 64


@dataclass(slots=True)
class _Peer:
    """tries: wrong keys, less one for every `FORGET_ONE_S` since. waiting: answers that are held back now."""

    tries: float
    at_s: float
    waiting: int = 0


class WrongKeys:
    """Counts wrong keys by address, for one event loop. Its memory is bounded: the address that was quiet longest is forgotten.

    clock: monotonic seconds. delay_max_s: 0 for no delay at all.
    """

    def __init__(self, delay_max_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._delay_max_s = delay_max_s
        self._clock = clock
        self._peers: dict[str, _Peer] = {}
        self._waiting = 0

    @contextmanager
    def held_back(self, address: str | None) -> Iterator[float]:
        """One wrong key from an address: for how many seconds its answer is to be held back, while this is open.

        Raises `TooFast` where too many answers are held back already.
        """
        peer = self._peer(network_of(address or ""))
        delay_s = self._delay_s(peer)
        if delay_s and (peer.waiting >= WAITING_MAX or self._waiting >= ALL_WAITING_MAX):
            raise TooFast(
                "Too many wrong API keys from this address. Check the key before you try again.",
                code="too_many_wrong_keys",
                retry_after_s=max(1.0, delay_s),
            )
        peer.waiting += 1
        self._waiting += 1
        try:
            yield delay_s
        finally:
            peer.waiting -= 1
            self._waiting -= 1

    def _peer(self, network: str) -> _Peer:
        """With this try counted."""
        now = self._clock()
        peer = self._peers.pop(network, None)
        if peer is None:
            if len(self._peers) >= ADDRESSES_MAX:
                del self._peers[next(iter(self._peers))]
            peer = _Peer(0.0, now)
        peer.tries = max(0.0, peer.tries - (now - peer.at_s) / FORGET_ONE_S) + 1
        peer.at_s = now
        self._peers[network] = peer  # the newest is last
        return peer

    def _delay_s(self, peer: _Peer) -> float:
        over = peer.tries - FREE
        if over <= 0:
            return 0.0
        doublings = min(over - 1, 20.0)
        return float(min(self._delay_max_s, FIRST_DELAY_S * 2.0**doublings))


def network_of(address: str) -> str:
    """What counts as one: an IPv4 address, or the IPv6 network that one customer gets."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
