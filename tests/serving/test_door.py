"""Whose address counts behind proxies."""

from __future__ import annotations

import pytest

from jubal.serving.door import TrustedProxies


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ((), "198.51.100.1", "203.0.113.9", "198.51.100.1"),  # anyone can write the header
        (("10.0.0.0/8",), "198.51.100.1", "203.0.113.9", "198.51.100.1"),
        (("10.0.0.0/8",), "10.1.2.3", "203.0.113.9", "203.0.113.9"),
        (("10.0.0.0/8",), "10.1.2.3", "192.0.2.1, 203.0.113.9", "203.0.113.9"),  # the client wrote the first one
        (("10.0.0.0/8",), "10.1.2.3", "203.0.113.9, 10.9.9.9", "203.0.113.9"),
        (("10.0.0.0/8",), "10.1.2.3", "10.4.4.4, 10.9.9.9", "10.4.4.4"),
        (("10.0.0.0/8",), "10.1.2.3", "203.0.113.9, nonsense", "10.1.2.3"),
        (("10.0.0.0/8",), "10.1.2.3", "", "10.1.2.3"),
        (("10.0.0.0/8",), "10.1.2.3", None, "10.1.2.3"),
        (("::1",), "::1", "2001:db8::5", "2001:db8::5"),
        (("127.0.0.1",), None, "203.0.113.9", None),
    ],
)
def test_the_clients_address(trusted: tuple[str, ...], peer: str | None, forwarded: str | None, client: str) -> None:
    assert TrustedProxies(trusted).client_of(peer, forwarded) == client


def test_what_is_no_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"`proxy\.example`"):
        TrustedProxies(["proxy.example"])
