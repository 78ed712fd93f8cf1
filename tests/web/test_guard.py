"""The rule for addresses, the allow list, and the gate."""

from __future__ import annotations

import ipaddress

import pytest

from jubal.web.guard import AllowList, Guard, Refused, is_public, system_resolver
from tests.web.servers import Names, words

NOT_PUBLIC = words("""
127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.168.1.1
192.0.0.1 192.0.0.9 192.0.0.170 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
:: ::1 ::7f00:1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1::808:808
2002:7f00:1:: 2002:a00:1::1 2002:a9fe:a9fe::1 2001:db8::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:10::1
fe80::1 fe80::1%lo fe80::1%25lo fec0::1 fd00::1 fd00:ec2::254 fc00::1 ff02::1 ff0e::1 100::1 3fff::1 5f00::1
2a00:1450::5efe:127.0.0.1 2a00:1450::5efe:10.0.0.1 2a00:1450::200:5efe:169.254.169.254 fe80::5efe:8.8.8.8%2
""")
PUBLIC = words("1.1.1.1 8.8.8.8 172.32.0.1 100.128.0.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1")


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_addresses_that_are_not_public(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        pytest.skip(f"{text} is no address in this Python")
    assert not is_public(address)


@pytest.mark.parametrize("text", PUBLIC)
def test_addresses_that_are(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


async def test_every_address_that_is_not_public_is_refused_as_a_literal_and_behind_a_name() -> None:
    for text in NOT_PUBLIC:
        guard = Guard(resolver=Names(bad_test=[[text]], **{text: [[text]]}))
        for host in (text, "bad.test"):
            with pytest.raises((Refused, OSError)):
                await guard.addresses(host, 443)


@pytest.mark.parametrize(
    ("entries", "host", "port", "opens"),
    [
        (["127.0.0.1"], "127.0.0.1", 9000, True),
        (["127.0.0.1"], "127.0.0.2", 80, False),
        (["127.0.0.1:9000"], "127.0.0.1", 9000, True),
        (["127.0.0.1:9000"], "127.0.0.1", 80, False),
        (["Intranet.Example."], "intranet.example", 443, True),
        (["intranet.example"], "evil.intranet.example", 443, False),
        (["intranet.example"], "intranet.example.evil.test", 443, False),
        (["[::1]:8080"], "::1", 8080, True),
        (["[::1]:8080"], "::1", 80, False),
        (["::1"], "0:0:0:0:0:0:0:1", 5, True),
        (["[::1]"], "::1", 5, True),
        ([], "127.0.0.1", 80, False),
    ],
)
def test_the_allow_list(entries: list[str], host: str, port: int, opens: bool) -> None:
    assert AllowList(entries).opens(host, port) is opens


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "http://host",
        "a/b",
        "[::1",
        "[::1]:",
        "[::1]x",
        "u@h",
        "h:٣",
    ],
)
def test_entries_that_are_none(entry: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        AllowList([entry])


async def test_one_bad_address_refuses_the_host() -> None:
    guard = Guard(AllowList(["127.0.0.2"]), Names(mixed_test=[["127.0.0.2", "10.0.0.1"]]))
    with pytest.raises(Refused) as caught:
        await guard.addresses("mixed.test", 80)
    assert "mixed.test" in str(caught.value)
    assert "10.0.0.1" not in str(caught.value), "what a name resolves to in here is nobody's business"


@pytest.mark.parametrize("port", [1, 22, 25, 81, 6379, 9000, 65535])
async def test_other_ports_need_the_allow_list(port: int) -> None:
    with pytest.raises(Refused, match=f"Port {port}"):
        await Guard(resolver=Names(public_test=[["8.8.8.8"]])).addresses("public.test", port)
    allowed = Guard(AllowList([f"public.test:{port}"]), Names(public_test=[["8.8.8.8"]]))
    assert await allowed.addresses("public.test", port) == ["8.8.8.8"]


async def test_a_literal_is_checked_without_a_look_up() -> None:
    names = Names()
    assert await Guard(resolver=names).addresses("8.8.8.8", 443) == ["8.8.8.8"]
    with pytest.raises(Refused):
        await Guard(resolver=names).addresses("127.0.0.1", 443)
    assert names.asked == []


async def test_a_name_without_addresses_and_an_answer_that_is_no_address() -> None:
    with pytest.raises(OSError, match="no address"):
        await Guard(resolver=Names(none_test=[[]])).addresses("none.test", 80)
    with pytest.raises(Refused):
        await Guard(resolver=Names(odd_test=[["not an address"]])).addresses("odd.test", 80)


@pytest.mark.parametrize("spelling", ["localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0"])
async def test_what_the_system_makes_of_odd_spellings_is_refused(spelling: str) -> None:
    """These are answered on this machine, without a name server."""
    assert await system_resolver("127.0.0.1", 80) == ["127.0.0.1"]
    with pytest.raises(Refused):
        await Guard().addresses(spelling, 80)
