"""The fetcher over real HTTP on loopback; every other address meets a connector that opens no socket."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable

import httpx2
import pytest
from aiohttp import web

from jubal.web.fetch import (
    REDIRECTS_MAX,
    BadContent,
    BadStatus,
    BadUrl,
    FetchError,
    FetchTimeout,
    RefusedAddress,
    SafeFetcher,
    TooLarge,
    TooManyRedirects,
    Unreachable,
)
from jubal.web.guard import AllowList, Guard, system_resolver
from jubal.web.transport import guarded_httpx_client
from tests.web.servers import GOOD, Connector, Handler, Names, Site, gives, sends_to, site, words

LIMIT = 100_000


async def local_names(host: str, port: int) -> list[str]:
    """The system's resolver for spellings of addresses; no name goes out of this machine."""
    if host in ("localhost", "0x7f.1") or not any(character.isalpha() for character in host):
        return await system_resolver(host, port)
    raise OSError("no such name")


def fetcher(*sites: Site, names: Names | None = None, allow: tuple[str, ...] = ()) -> tuple[SafeFetcher, Connector]:
    connector = Connector(*sites)
    allowed = [one.place for one in sites] + list(allow)
    made = SafeFetcher(allowed, timeout_s=20, user_agent="test/1", resolver=names or local_names, backend=connector)
    return made, connector


async def get(one: Site, path: str = "/page", **options: object) -> object:
    made, _ = fetcher(one)
    try:
        return await made.get(one.url + path, **{"bytes_max": LIMIT, **options})  # type: ignore[arg-type]
    finally:
        await made.close()


# ---------------------------------------------------------------------------------------------- what is fetched


async def test_a_page() -> None:
    async with site(page=gives(b"hello", content_type="Text/HTML; charset=utf-8", etag="x")) as one:
        made, connector = fetcher(one)
        got = await made.get(one.url + "/page#part", bytes_max=5, accept="text/html", headers={"x-own": "1"})
        await made.close()
    assert (got.url, got.status, got.content_type, got.body) == (one.url + "/page", 200, "text/html", b"hello")
    assert got.headers["etag"] == "x"
    assert connector.connected == [(GOOD, one.port)]
    [(asked, headers)] = one.requests
    assert asked == "GET /page"
    assert (headers["user-agent"], headers["accept"], headers["x-own"]) == ("test/1", "text/html", "1")
    assert headers["host"] == one.place
    assert "cookie" not in headers


async def test_nothing_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with site(page=gives(b"hello")) as one:
        assert (await get(one)).body == b"hello"  # type: ignore[attr-defined]


async def test_redirects_are_followed_and_each_is_a_new_connection_through_the_guard() -> None:
    async with site(page=gives(b"end")) as far:
        async with site(page=sends_to("/next", 301), next=sends_to(f"{far.url}/page", 307)) as near:
            made, connector = fetcher(near, far)
            got = await made.get(
                f"{near.url}/page", bytes_max=LIMIT, headers={"authorization": "Bearer s", "x-own": "1"}
            )
            await made.close()
    assert (got.url, got.body) == (f"{far.url}/page", b"end")
    assert connector.connected == [(GOOD, near.port), (GOOD, near.port), (GOOD, far.port)]
    assert [headers.get("authorization") for _, headers in near.requests] == ["Bearer s", "Bearer s"]
    [(_, headers)] = far.requests
    assert "authorization" not in headers, "meant for another origin"
    assert "x-own" not in headers
    assert headers["user-agent"] == "test/1"


async def test_no_cookie_is_kept() -> None:
    async with site(page=sends_to("/next"), next=gives(b"", set_cookie="a=b")) as one:
        one.handlers["/page"] = gives(status=302, location="/next", set_cookie="c=d")
        made, _ = fetcher(one)
        for _ in range(2):
            await made.get(one.url + "/page", bytes_max=LIMIT)
        await made.close()
    assert len(one.requests) == 4
    assert not any("cookie" in headers for _, headers in one.requests)


async def test_a_connection_is_kept_for_the_same_place_where_that_is_asked_for() -> None:
    async with site(page=gives(b"a")) as one:
        names = Names(good_test=[[GOOD], ["10.0.0.1"]])
        connector = Connector(one)
        made = SafeFetcher([one.place], keep_alive_s=20, resolver=names, backend=connector)
        for _ in range(2):
            await made.get(f"http://good.test:{one.port}/page", bytes_max=LIMIT)
        await made.close()
    assert len(connector.connected) == 1, "the checked address, still"
    assert names.asked == ["good.test"]


async def test_it_can_be_read_as_a_stream_and_left_early() -> None:
    async with site(page=endless(b"x" * 1000)) as one:
        made, _ = fetcher(one)
        async with made.open(one.url + "/page", bytes_max=1 << 30) as answer:
            assert answer.status == 200
            assert (await anext(answer.pieces)).startswith(b"x")
        await asyncio.wait_for(one.left.wait(), 60)
        await made.close()


# ---------------------------------------------------------------------------------------------- the guard


@pytest.mark.parametrize(
    "host",
    words("""127.0.0.1 localhost LOCALHOST localhost. 2130706433 0x7f.1 0177.0.0.1 127.1 0.0.0.0 0 ①②⑦.⓪.⓪.① 127。0。0。1
    [::1] [::ffff:127.0.0.1] [::ffff:7f00:1] [64:ff9b::7f00:1] [fe80::1%25lo] [fd00::1] [2002:7f00:1::] [fec0::1] [::]
    [2a00:1450::5efe:7f00:1] [2001:0:4136:e378:8000:63bf:3fff:fdd2] [fd00:ec2::254]
    169.254.169.254 10.0.0.1 100.64.0.1 192.0.2.1 172.16.0.1 192.168.0.1 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255
    168.63.129.16 192.0.0.9 192.88.99.1"""),
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_private_addresses_in_every_spelling(host: str, scheme: str) -> None:
    made, connector = fetcher()
    with pytest.raises((RefusedAddress, BadUrl, Unreachable)) as caught:
        await made.get(f"{scheme}://{host}/", bytes_max=LIMIT)
    await made.close()
    assert connector.escaped == []
    assert not isinstance(caught.value, Unreachable) or host in ("[fe80::1%25lo]", "localhost.")


@pytest.mark.parametrize(
    "url", ["http://user@127.0.0.1/", "http://a:b@example.test/", "http://example.test@127.0.0.1/"]
)
async def test_addresses_with_a_user(url: str) -> None:
    made, connector = fetcher()
    with pytest.raises(BadUrl, match="user name"):
        await made.get(url, bytes_max=LIMIT)
    assert connector.escaped == []


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.test/", "gopher://a.test/", "data:text/plain,x", "unix:///run/x", "//a.test/", "/etc/passwd", "",
     "http://", "http:///x", "https://[::1", "http://a.test/\x00", "x" * 9000],
)  # fmt: skip
async def test_what_is_no_web_address(url: str) -> None:
    made, connector = fetcher()
    with pytest.raises(BadUrl):
        await made.get(url, bytes_max=LIMIT)
    assert connector.escaped == []


@pytest.mark.parametrize("port", [22, 25, 6379, 9000, 99999])
async def test_ports_of_other_services(port: int) -> None:
    made, connector = fetcher(names=Names(public_test=[["8.8.8.8"]]))
    for host in ("public.test", "8.8.8.8"):
        with pytest.raises(RefusedAddress, match=f"Port {port}"):
            await made.get(f"http://{host}:{port}/", bytes_max=LIMIT)
    assert connector.escaped == []


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1/", "http://127.0.0.1:{port}/", "http://localhost/", "//127.0.0.1/x", "http://169.254.169.254/latest/meta-data/",
     "http://[::ffff:7f00:1]/", "http://10.0.0.1/", "http://2130706433/", "http://{good}:22/", "http://{good}:80/",
     "http://127.0.0.2:9/", "https://public.test:22/"],
)  # fmt: skip
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_to_where_nobody_may_go(target: str, status: int) -> None:
    async with site() as one:
        one.handlers["/page"] = sends_to(target.format(port=one.port, good=GOOD), status)
        made, connector = fetcher(one)
        made._guard._resolver = Names(
            localhost=[["127.0.0.1"]], public_test=[["8.8.8.8"]], **{"2130706433": [["127.0.0.1"]]}
        )
        with pytest.raises(RefusedAddress):
            await made.get(one.url + "/page", bytes_max=LIMIT)
        await made.close()
    assert connector.escaped == []
    assert len(one.requests) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://a.test/", "http://u@127.0.0.1/", "javascript:x"])
async def test_redirects_to_what_is_no_web_address(target: str) -> None:
    async with site(page=sends_to(target)) as one:
        with pytest.raises(BadUrl):
            await get(one)


@pytest.mark.parametrize("target", ["/page", "/page#x", "?again"])
async def test_redirects_without_end(target: str) -> None:
    async with site(page=sends_to(target)) as one:
        with pytest.raises(TooManyRedirects):
            await get(one)
    assert len(one.requests) == REDIRECTS_MAX + 1


async def test_a_name_with_a_good_and_a_bad_address_is_refused() -> None:
    async with site(page=gives(b"a")) as one:
        for answers in ([GOOD, "10.0.0.1"], ["127.0.0.1", GOOD]):
            made, connector = fetcher(one, names=Names(mixed_test=[answers]))
            with pytest.raises(RefusedAddress):
                await made.get(f"http://mixed.test:{one.port}/page", bytes_max=LIMIT)
            assert (connector.connected, connector.escaped) == ([], [])


async def test_a_name_that_changes_between_look_ups() -> None:
    async with site(page=gives(b"a")) as one:
        names = Names(rebind_test=[[GOOD], ["127.0.0.1"]])
        made, connector = fetcher(one, names=names)
        url = f"http://rebind.test:{one.port}/page"
        assert (await made.get(url, bytes_max=LIMIT)).body == b"a"
        assert names.asked == ["rebind.test"], "looked up once, and connected to that"
        assert one.requests[0][1]["host"] == f"rebind.test:{one.port}"
        with pytest.raises(RefusedAddress):
            await made.get(url, bytes_max=LIMIT)
        await made.close()
    assert connector.connected == [(GOOD, one.port)]
    assert connector.escaped == []


async def test_a_name_that_changes_between_redirects() -> None:
    async with site(page=sends_to("/next"), next=gives(b"secret")) as one:
        made, connector = fetcher(one, names=Names(rebind_test=[[GOOD], ["127.0.0.1"]]))
        with pytest.raises(RefusedAddress):
            await made.get(f"http://rebind.test:{one.port}/page", bytes_max=LIMIT)
        await made.close()
    assert connector.escaped == []
    assert len(one.requests) == 1


async def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    async with site(page=gives(b"a")) as one, site() as dead:
        pass
    async with site(page=gives(b"a")) as one:

        class Flaky(Connector):
            async def connect_tcp(self, host: str, port: int, *rest: object, **more: object):  # type: ignore[no-untyped-def,override]
                if host == "127.0.0.3":
                    raise OSError("nobody there")
                return await super().connect_tcp(host, port)

        names = Names(two_test=[["127.0.0.3", GOOD]])
        made = SafeFetcher([one.place, "127.0.0.3"], resolver=names, backend=Flaky(one))
        assert (await made.get(f"http://two.test:{one.port}/page", bytes_max=LIMIT)).body == b"a"
        await made.close()
    assert dead.requests == []


# ---------------------------------------------------------------------------------------------- bounds


def endless(piece: bytes, pause_s: float = 0.0, **headers: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in headers.items()})
        await response.prepare(request)
        while True:
            await response.write(piece)
            await asyncio.sleep(pause_s)

    return handle


async def test_too_large_by_its_own_account_is_not_read() -> None:
    async with site(page=gives(b"x" * (LIMIT + 1))) as one:
        with pytest.raises(TooLarge, match="100,000"):
            await get(one)
        assert len((await get(one, bytes_max=LIMIT + 1)).body) == LIMIT + 1  # type: ignore[attr-defined]


async def test_an_endless_body_is_cut() -> None:
    async with site(page=endless(b"x" * 10_000)) as one:
        with pytest.raises(TooLarge):
            await get(one)
        await asyncio.wait_for(one.left.wait(), 60)


def _deflated(data: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", lambda data: gzip.compress(data[:70_000]) + gzip.compress(data[70_000:])),
        ("gzip", lambda data: gzip.compress(data) + b"\0\0"),
        ("deflate", zlib.compress),
        ("deflate", lambda data: _deflated(data, -15)),
        ("identity", bytes),
    ],
)
async def test_what_is_compressed_counts_as_it_is_read(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    body = b"0123456789" * 10_000
    async with site(page=gives(pack(body), content_encoding=encoding)) as one:
        assert (await get(one)).body == body  # type: ignore[attr-defined]
        with pytest.raises(TooLarge):
            await get(one, bytes_max=len(body) - 1)
    assert one.requests[0][1]["accept-encoding"] == "gzip, deflate"


async def test_a_decompression_bomb_is_stopped_while_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(b"\0" * 200_000_000, 9)
    made_bytes = 0
    real = zlib.decompressobj

    class Counting:
        def __init__(self, bits: int) -> None:
            self._inner = real(bits)

        def decompress(self, raw: bytes, length: int) -> bytes:
            nonlocal made_bytes
            piece = self._inner.decompress(raw, length)
            made_bytes += len(piece)
            return piece

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    async with site(page=gives(bomb, content_encoding="gzip")) as one:
        monkeypatch.setattr("jubal.web.fetch.zlib.decompressobj", Counting)
        with pytest.raises(TooLarge):
            await get(one, bytes_max=1_000_000)
    assert len(bomb) < 1_000_000 < made_bytes < 1_200_000


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
async def test_encodings_that_were_not_asked_for(encoding: str) -> None:
    async with site(page=gives(gzip.compress(gzip.compress(b"x")), content_encoding=encoding)) as one:
        with pytest.raises(BadContent):
            await get(one)


@pytest.mark.parametrize("body", [b"not gzip at all", gzip.compress(b"hello" * 100)[:-9]], ids=["none", "cut"])
async def test_compressed_data_that_is_broken(body: bytes) -> None:
    async with site(page=gives(body, content_encoding="gzip")) as one:
        with pytest.raises(BadContent):
            await get(one)


async def test_slow_headers_a_slow_body_and_a_slow_look_up_end_in_time() -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(3600)
        raise AssertionError

    async def no_answer(host: str, port: int) -> list[str]:
        await asyncio.sleep(3600)
        raise AssertionError

    async with site(headers=never, body=endless(b"x", 0.02)) as one:
        for path in ("/headers", "/body"):
            one.left.clear()
            one.requests.clear()
            with pytest.raises(FetchTimeout, match=r"0\.2 s"):
                await get(one, path, timeout_s=0.2)
            if one.requests:  # a busy machine may need those 0.2 s to connect
                await asyncio.wait_for(one.left.wait(), 60)
    made = SafeFetcher(timeout_s=0.2, resolver=no_answer, backend=Connector())
    with pytest.raises(FetchTimeout):
        await made.get("http://slow.test/", bytes_max=LIMIT)
    await made.close()


async def test_time_that_the_caller_ran_out_of_is_not_called_ours() -> None:
    async def run_out(limit: asyncio.Timeout) -> None:
        while not one.requests:
            await asyncio.sleep(0.01)
        limit.reschedule(asyncio.get_running_loop().time())

    async with site(page=endless(b"x", 0.02)) as one:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as group:
                group.create_task(run_out(limit))
                await get(one)
        await asyncio.wait_for(one.left.wait(), 60)


async def test_a_fetch_that_is_cancelled_leaves_no_connection() -> None:
    async with site(page=endless(b"x", 0.02)) as one:
        task = asyncio.create_task(get(one))
        while not one.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(one.left.wait(), 60)


@pytest.mark.parametrize("status", [304, 400, 401, 404, 500, 503])
async def test_a_status_that_is_no_answer(status: int) -> None:
    async with site(page=gives(b"x", status)) as one:
        with pytest.raises(BadStatus) as caught:
            await get(one)
    assert caught.value.status == status
    assert caught.value.reason == "http_status"


async def test_connections_that_fail_or_break() -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport is not None
        request.transport.close()
        return response

    async with site(page=cut) as one:
        with pytest.raises(Unreachable, match="broke"):
            await get(one)
    with pytest.raises(Unreachable):
        await get(one)  # nobody listens any more
    made, _ = fetcher(names=Names())
    with pytest.raises(Unreachable):
        await made.get("http://nowhere.test/", bytes_max=LIMIT)


async def test_errors_tell_nothing_of_the_inside() -> None:
    made, _ = fetcher(names=Names(inner_test=[["10.11.12.13"]]))
    with pytest.raises(FetchError) as caught:
        await made.get("http://inner.test/path?token=secret", bytes_max=LIMIT)
    assert caught.value.reason == "refused_address"
    assert not any(word in caught.value.message for word in ("10.11", "secret"))


# ---------------------------------------------------------------------------------------------- a client for others


async def test_a_client_for_libraries_passes_the_same_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with site(
        page=gives(b"hello", set_cookie="a=b"), away=sends_to("http://10.0.0.1/"), loop=sends_to("/loop")
    ) as one:
        connector = Connector(one)
        async with guarded_httpx_client(
            Guard(AllowList([one.place])), headers={"x-own": "1"}, inner=connector
        ) as client:
            for _ in range(2):
                assert (await client.get(one.url + "/page")).text == "hello"
            assert (await client.post(one.url + "/page", json={"a": 1})).status_code == 200
            with pytest.raises(httpx2.ConnectError, match="not a public address"):
                await client.get(one.url + "/away")
            with pytest.raises(httpx2.TooManyRedirects):
                await client.get(one.url + "/loop")
            with pytest.raises(httpx2.UnsupportedProtocol):
                await client.get("file:///etc/passwd")
            with pytest.raises(httpx2.ConnectError):
                await client.get("http://127.0.0.1:6379/")
    assert connector.escaped == []
    assert len(connector.connected) == 1, "kept alive"
    assert not any("cookie" in headers for _, headers in one.requests)
    assert one.requests[0][1]["x-own"] == "1"
